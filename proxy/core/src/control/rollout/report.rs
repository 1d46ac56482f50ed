//! The report of a rollout in words and numbers.

use super::recent::spans;
use super::{Phase, Rollout};
use crate::guard::{Guard, Verdict};
use crate::routing::split::RolloutRule;
use crate::side::PerSide;
use crate::stats::users::TrackerLimits;
use crate::stats::window::Span;
use std::sync::Arc;

impl Rollout {
    /// Returns the present verdict of every rule of the guard.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Guard::new(&self.settings.guard).verdicts(self.judged_spans());
        verdicts.extend(self.judge.verdicts(self.recent()));
        if self.latch().is_some() {
            // The evidence that led to the rollback is in the latch. No evidence is collected now.
            for verdict in &mut verdicts {
                (verdict.progress, verdict.users_progress) = (
                    verdict.progress.map(|_| 0.0),
                    verdict.users_progress.map(|_| 0.0),
                );
            }
        }
        verdicts
    }

    /// Describes the state of the rollout in one sentence.
    pub fn sentence(&self) -> String {
        let desired = self.desired();
        if let (Phase::Holding, Some(stranded)) = (&self.phase, &self.stranded) {
            return format!(
                "{desired} % asked, {} % of users are on new and raises are frozen: new is worse, \
                 but legacy does not answer, so no user was moved: {}",
                self.effective(),
                stranded.sentence
            );
        }
        match (&self.phase, &self.shared) {
            (Phase::RolledBack(latch), _) if self.is_spilled() => format!(
                "{desired} % asked, rolled back and latched at generation {}, but legacy does not \
                 serve users: they are on new meanwhile. {}",
                latch.generation, latch.trip.sentence
            ),
            (Phase::RolledBack(latch), _) => format!(
                "{desired} % asked, rolled back and latched at generation {}: 0 % of users are on \
                 new. {}. `rearm` or a generation above {} lifts it",
                latch.generation, latch.trip.sentence, latch.generation
            ),
            (Phase::Holding, Some(shared)) => {
                format!(
                    "{desired} % asked, {} % of users are on new and raises are frozen, because \
                     both sides are bad at once: {}",
                    self.effective(),
                    shared.sentence
                )
            }
            (Phase::Holding, None) if self.wanted() < desired => {
                format!(
                    "{desired} % asked, {} % of users are on new: {} % are held back as a control \
                     group",
                    self.wanted(),
                    self.settings.holdback
                )
            }
            (Phase::Holding, None) => format!("{desired} % of users are on new"),
        }
    }

    /// Returns the part of the rollout that only a changed file changes.
    pub(crate) fn rule(&self) -> &Arc<RolloutRule> {
        &self.rule
    }

    /// Returns the counts of both sides over the last minute.
    pub fn recent(&self) -> PerSide<&Span> {
        spans(&self.recent.all)
    }

    /// Returns the counts over the last minute of users whom the hash or chance placed. The sides
    /// are compared by these users.
    pub fn recent_compared(&self) -> PerSide<&Span> {
        spans(&self.recent.compared)
    }

    /// Returns the limits that the request path must watch for this rollout.
    pub fn tracker_limits(&self) -> &TrackerLimits {
        self.judge.tracker_limits()
    }
}
