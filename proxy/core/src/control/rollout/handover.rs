//! The state that a rollout hands over to the successor process.

use super::trip::{Cause, Latch, Trip};
use super::{Phase, Rollout, Shared};
use crate::control::aftermath::Aftermath;
use crate::guard::judge::Handover as JudgeHandover;
use crate::percent::Percent;
use crate::time::Mono;

/// What a rollout knows beyond its standing, for another process that continues it. Times are those
/// of the clock that both processes share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handover {
    /// The evidence of the rollout's judge.
    pub judge: JudgeHandover,
    /// The share that was in force.
    pub share: Percent,
    /// The time of the last raise.
    pub raised_at: Option<Mono>,
    /// The share that a shared cause froze, the time of the last report about it, and the reason.
    pub frozen: Option<(Percent, Mono, String)>,
}

impl Rollout {
    /// Returns what the rollout knows beyond its standing, for another process.
    pub fn handover(&self) -> Handover {
        let frozen = self
            .shared
            .as_ref()
            .map(|shared| (shared.frozen, shared.last, shared.sentence.clone()));
        Handover {
            judge: self.judge.handover(),
            share: self.effective(),
            raised_at: self.raised_at,
            frozen,
        }
    }

    /// Adopts what another process knew about this rollout.
    pub(crate) fn inherit(&mut self, handover: Handover, now: Mono) {
        self.raised_at = handover.raised_at;
        self.judge.was_raised(handover.raised_at);
        self.judge.inherit(&handover.judge, now);
        if self.latch().is_some() {
            return;
        }
        self.shared = handover.frozen.map(|(frozen, last, sentence)| Shared {
            frozen,
            last,
            sentence,
        });
        // The file may have been changed between the two processes.
        self.share_changed(handover.share, now);
    }

    /// Latches because of a trip of another process, with the same cause.
    pub(crate) fn adopt(&mut self, trip: Trip, now: Mono) {
        self.aftermath =
            matches!(trip.cause, Cause::Guard { .. }).then(|| Aftermath::restored(now));
        self.phase = Phase::RolledBack(Latch {
            generation: self.settings.generation,
            trip,
        });
        (self.shared, self.stranded) = (None, None);
    }
}
