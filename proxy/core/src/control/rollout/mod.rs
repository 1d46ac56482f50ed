//! One rollout: the share that the file requests, the share in force, and the latch between the
//! two.
//!
//! The latch is a phase. [`Phase::RolledBack`] is left only by `rearm` or by a generation above the
//! one at which it tripped. A restart, a re-applied file, a touch, a reformat or a changed
//! percentage does not leave it. Plans and stages will be phases of their own beside it.
//!
//! While both sides are bad at the same time the share is frozen: it may fall, but a raise waits
//! until that is over.

mod handover;
mod judging;
mod recent;
mod report;
mod settings;
mod trip;

pub(crate) use judging::{Judgement, Spilled};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::control::aftermath::Aftermath;
use crate::guard::availability::Word;
use crate::guard::judge::Judge;
pub use crate::guard::judge::TripNumbers;
use crate::percent::Percent;
use crate::routing::restriction::Restriction;
use crate::routing::split::{RolloutRule, RolloutSplit, Spill};
use crate::side::Side;
use crate::stats::window::Window;
use crate::time::{Mono, Now};
pub use handover::Handover;
pub use judging::rule_of;
use recent::Windows;
pub use settings::RolloutSettings;
pub use trip::{Cause, Latch, SideNumbers, TickNumbers, Trip};

/// The phase of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The rollout is at the percentage of the file.
    Holding,
    /// The rollout is latched at 0 %.
    RolledBack(Latch),
}

impl Phase {
    /// All names, for metrics and schemas.
    pub const NAMES: [&'static str; 2] = ["holding", "rolled_back"];

    /// Returns the name used in `status`, metrics and records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Holding => "holding",
            Self::RolledBack(_) => "rolled_back",
        }
    }
}

/// The period that the numbers of `status` and the quantiles of the metrics cover.
pub const RECENT: Duration = Duration::from_secs(60);

/// The number of ticks that a trip records.
const HISTORY: usize = 240;

/// A raise is undone when both sides turn bad within this time after it. The raise may have caused
/// it, and undoing it is cheap.
pub const RAISE_SUSPECT: Duration = Duration::from_secs(600);

/// If legacy recovers within this time, the existing evidence decides whether it receives the users
/// of new.
const STRANDED_MEMORY: Duration = Duration::from_secs(10);

/// After a pause of this length, a report of a dry run counts as a new one.
const QUIET: Duration = Duration::from_secs(60);

/// A running rollout, owned only by the control plane.
#[derive(Clone, Debug)]
pub struct Rollout {
    settings: RolloutSettings,
    rule: Arc<RolloutRule>,
    phase: Phase,
    judged: Windows,
    recent: Windows,
    judge: Judge,
    history: VecDeque<TickNumbers>,
    raised_at: Option<Mono>,
    shared: Option<Shared>,
    stranded: Option<Stranded>,
    /// The observation of legacy with the users it received. Present while the rollout is rolled
    /// back by the guard.
    aftermath: Option<Aftermath>,
    dry_run_breach: Option<Mono>,
}

/// The state in which new is worse and legacy cannot take its users.
#[derive(Clone, Debug)]
struct Stranded {
    /// The share that was in force when this state began, or less.
    frozen: Percent,
    since: Mono,
    last: Mono,
    sentence: String,
}

/// The state in which both sides are bad at the same time.
#[derive(Clone, Debug)]
struct Shared {
    /// The share that was in force when this state began, or less.
    frozen: Percent,
    last: Mono,
    sentence: String,
}

impl Rollout {
    /// Creates a rollout with these settings, in the given phase. `new_since` is now for a slot
    /// that has never counted anything. A slot with earlier counts starts with its next tick.
    pub(crate) fn new(
        settings: RolloutSettings,
        slot: usize,
        phase: Phase,
        new_since: Option<Mono>,
    ) -> Self {
        let mut rollout = Self {
            rule: Arc::new(rule_of(&settings, slot)),
            phase,
            judged: Windows::new(settings.guard.window, new_since),
            recent: Windows::new(RECENT, new_since),
            judge: Judge::new(
                &settings.guard,
                new_since.is_some(),
                new_since.unwrap_or_default(),
            ),
            history: VecDeque::with_capacity(HISTORY),
            settings,
            raised_at: None,
            shared: None,
            stranded: None,
            aftermath: None,
            dry_run_breach: None,
        };
        rollout.judge.begin(rollout.effective());
        if rollout.is_rolled_back_by_guard() {
            rollout.aftermath = Some(Aftermath::restored(new_since.unwrap_or_default()));
        }
        rollout
    }

    /// Returns the id of the rollout.
    pub fn id(&self) -> &Arc<str> {
        &self.settings.id
    }

    /// Returns the settings from the file.
    pub fn settings(&self) -> &RolloutSettings {
        &self.settings
    }

    /// Returns the index of the rollout's slot in the recorder.
    pub fn slot(&self) -> usize {
        self.rule.slot
    }

    /// Returns the phase of the rollout.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Returns the latch while the rollout is rolled back.
    pub fn latch(&self) -> Option<&Latch> {
        match &self.phase {
            Phase::Holding => None,
            Phase::RolledBack(latch) => Some(latch),
        }
    }

    /// Returns the requested share of users.
    pub fn desired(&self) -> Percent {
        self.settings.percent
    }

    /// Returns the share of users in force. It is zero while rolled back. Otherwise it is the
    /// requested share, less the control group and limited by what a shared cause freezes.
    pub fn effective(&self) -> Percent {
        match &self.phase {
            Phase::RolledBack(_) => Percent::ZERO,
            Phase::Holding => self
                .frozen()
                .map_or_else(|| self.wanted(), |frozen| self.wanted().min(frozen)),
        }
    }

    /// Returns the share that may not be exceeded while raises are frozen.
    fn frozen(&self) -> Option<Percent> {
        self.shared
            .iter()
            .map(|shared| shared.frozen)
            .chain(self.stranded.iter().map(|stranded| stranded.frozen))
            .min()
    }

    /// Returns the requested share without the control group.
    fn wanted(&self) -> Percent {
        let most = Percent::FULL.thousandths() - self.settings.holdback.thousandths();
        self.settings
            .percent
            .min(Percent::from_thousandths(most).unwrap_or_default())
    }

    /// Whether both sides are bad at the same time, so that raises are frozen.
    pub fn has_shared_cause(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether new is worse and legacy does not answer, so that users are not moved and raises are
    /// frozen.
    pub fn has_no_refuge(&self) -> bool {
        self.stranded.is_some()
    }

    fn is_rolled_back_by_guard(&self) -> bool {
        self.latch()
            .is_some_and(|latch| matches!(latch.trip.cause, Cause::Guard { .. }))
    }

    /// Whether legacy cannot take the users it received by a rollback of the guard, so that they
    /// are on new.
    pub fn is_spilled(&self) -> bool {
        self.aftermath.as_ref().is_some_and(Aftermath::is_spilled)
    }

    /// Returns the part of the rollout that the data path needs.
    pub(crate) fn split(&self, maintenance: Restriction) -> RolloutSplit {
        let spill = match (self.is_rolled_back_by_guard(), self.is_spilled()) {
            (false, _) => Spill::Never,
            (true, false) => Spill::WithoutServer,
            (true, true) => Spill::Now,
        };
        RolloutSplit {
            rule: Arc::clone(&self.rule),
            percent: self.effective(),
            latched: self.latch().is_some(),
            spill,
            epoch: self.tracker_limits().epoch,
            maintenance,
        }
    }

    /// Informs the judge that the share has changed.
    fn share_changed(&mut self, before: Percent, now: Mono) {
        let after = self.effective();
        if after > before {
            self.raised_at = Some(now);
        }
        if after != before {
            self.judge.share_changed(after, after > before, now);
        }
    }

    /// Records the answer of a backend to the probe whether it can take users.
    pub(crate) fn answered(&mut self, side: Side, is_good: bool, now: Mono) {
        match (side, &mut self.aftermath) {
            (Side::Legacy, _) => self.judge.answered(is_good, now),
            (Side::New, Some(aftermath)) => aftermath.new_answered(is_good, now),
            (Side::New, None) => {}
        }
    }

    /// Returns whether legacy can take users, before an operator sends all users there.
    pub(crate) fn legacy_word(&self, now: Mono) -> Word {
        self.judge.legacy_word(now)
    }

    /// Whether legacy must be probed now. If so, it is recorded as probed.
    pub(crate) fn ask_legacy(&mut self, now: Mono) -> bool {
        self.judge.legacy().ask(now)
    }

    /// Sends all users to legacy and latches at the present generation.
    pub(crate) fn trip(&mut self, now: Now, cause: Cause, sentence: String) -> Trip {
        let history = if matches!(cause, Cause::Guard { .. }) {
            self.history.iter().copied().collect()
        } else {
            Vec::new()
        };
        if matches!(cause, Cause::Guard { .. }) {
            self.aftermath = Some(Aftermath::new(self.recent(), now.mono));
        }
        let trip = Trip {
            at: now.wall,
            cause,
            from: self.effective(),
            sentence,
            history,
        };
        self.phase = Phase::RolledBack(Latch {
            generation: self.settings.generation,
            trip: trip.clone(),
        });
        (self.shared, self.stranded) = (None, None);
        trip
    }

    /// Lifts the latch. The guard then starts without evidence.
    pub(crate) fn rearm(&mut self, now: Mono) {
        self.phase = Phase::Holding;
        (self.dry_run_breach, self.aftermath) = (None, None);
        self.judge.restart(now);
        self.share_changed(Percent::ZERO, now);
        self.judged.each(Window::restart);
    }

    /// Applies changed settings. A latch stays unless the generation rose above it.
    pub(crate) fn apply(&mut self, settings: RolloutSettings, now: Mono) {
        let slot = self.slot();
        self.judged
            .each(|window| window.set_length(settings.guard.window));
        if self.settings.guard.mode != settings.guard.mode {
            // Only mode `threshold` keeps these windows.
            self.judged.each(Window::restart);
        }
        self.judge.set(&settings.guard, now);
        let before = self.effective();
        self.settings = settings;
        self.rule = Arc::new(rule_of(&self.settings, slot));
        if self
            .latch()
            .is_some_and(|latch| self.settings.generation > latch.generation)
        {
            self.rearm(now);
        }
        let after = self.effective();
        if let Some(shared) = &mut self.shared {
            shared.frozen = after;
        }
        if let Some(stranded) = &mut self.stranded {
            stranded.frozen = after;
        }
        self.share_changed(before, now);
    }
}
