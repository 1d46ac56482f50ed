//! One rollout: what the file asks for, what is in force, and the latch between the two.
//!
//! The latch is a phase. [`Phase::RolledBack`] is left only by `rearm` or by a generation above the
//! one it tripped at: not by a restart, a re-applied file, a touch, a reformat or a changed
//! percentage. Plans, stages and gates will be phases of their own beside it.
//!
//! While both sides are bad at once the share is frozen: it may fall, but a raise waits until that
//! is over.

mod handover;
mod judging;
mod recent;
mod report;
mod settings;
mod trip;

pub(crate) use judging::Judgement;
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

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// At the percentage of the file.
    Holding,
    /// Latched at 0 %.
    RolledBack(Latch),
}

impl Phase {
    /// All names, for metrics and schemas.
    pub const NAMES: [&'static str; 2] = ["holding", "rolled_back"];

    /// The name used in `status`, metrics and records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Holding => "holding",
            Self::RolledBack(_) => "rolled_back",
        }
    }
}

/// How far back the numbers of `status` and the metrics' quantiles look.
pub const RECENT: Duration = Duration::from_secs(60);

/// How many ticks a trip remembers.
const HISTORY: usize = 240;

/// When both sides turn bad within this time of a raise, the raise is undone: it may be what broke
/// them, and undoing it is cheap.
pub const RAISE_SUSPECT: Duration = Duration::from_secs(600);

/// A legacy that is back within this time gets the users of new by the evidence that there is.
const STRANDED_MEMORY: Duration = Duration::from_secs(10);

/// A second report of a dry run is a new one after this pause.
const QUIET: Duration = Duration::from_secs(60);

/// A running rollout. Owned by the control plane alone.
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
    /// While it is rolled back by the guard: how legacy fares with the users it got.
    aftermath: Option<Aftermath>,
    dry_run_breach: Option<Mono>,
}

/// New is worse, and legacy cannot take its users.
#[derive(Clone, Debug)]
struct Stranded {
    /// The share that was in force when it began, or less.
    frozen: Percent,
    since: Mono,
    last: Mono,
    sentence: String,
}

/// Both sides are bad at once.
#[derive(Clone, Debug)]
struct Shared {
    /// The share that was in force when it began, or less.
    frozen: Percent,
    last: Mono,
    sentence: String,
}

impl Rollout {
    /// A rollout with these settings, standing where `phase` says. `new_since` is now for a slot
    /// that has never counted anything; a slot with a past begins with its next tick.
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

    /// The id.
    pub fn id(&self) -> &Arc<str> {
        &self.settings.id
    }

    /// What the file asks for.
    pub fn settings(&self) -> &RolloutSettings {
        &self.settings
    }

    /// Its place in the recorder.
    pub fn slot(&self) -> usize {
        self.rule.slot
    }

    /// Where it stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The latch, while rolled back.
    pub fn latch(&self) -> Option<&Latch> {
        match &self.phase {
            Phase::Holding => None,
            Phase::RolledBack(latch) => Some(latch),
        }
    }

    /// The share of users asked for.
    pub fn desired(&self) -> Percent {
        self.settings.percent
    }

    /// The share of users in force: zero while rolled back, else the one asked for, less those held
    /// back and what a shared cause freezes.
    pub fn effective(&self) -> Percent {
        match &self.phase {
            Phase::RolledBack(_) => Percent::ZERO,
            Phase::Holding => self
                .frozen()
                .map_or_else(|| self.wanted(), |frozen| self.wanted().min(frozen)),
        }
    }

    /// The share that may not be exceeded while raises are frozen.
    fn frozen(&self) -> Option<Percent> {
        self.shared
            .iter()
            .map(|shared| shared.frozen)
            .chain(self.stranded.iter().map(|stranded| stranded.frozen))
            .min()
    }

    /// The share asked for, without the control group.
    fn wanted(&self) -> Percent {
        let most = Percent::FULL.thousandths() - self.settings.holdback.thousandths();
        self.settings
            .percent
            .min(Percent::from_thousandths(most).unwrap_or_default())
    }

    /// Whether both sides are bad at once, and raises are frozen.
    pub fn has_shared_cause(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether new is worse, and legacy does not answer, so that nobody is moved and raises are
    /// frozen.
    pub fn has_no_refuge(&self) -> bool {
        self.stranded.is_some()
    }

    fn is_rolled_back_by_guard(&self) -> bool {
        self.latch()
            .is_some_and(|latch| matches!(latch.trip.cause, Cause::Guard { .. }))
    }

    /// Whether legacy cannot take the users it got by a rollback of the guard, so that they are on
    /// new.
    pub fn is_spilled(&self) -> bool {
        self.aftermath.as_ref().is_some_and(Aftermath::is_spilled)
    }

    /// What the data path needs of it.
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

    /// Tells the judge that the share is not what it was.
    fn share_changed(&mut self, before: Percent, now: Mono) {
        let after = self.effective();
        if after > before {
            self.raised_at = Some(now);
        }
        if after != before {
            self.judge.share_changed(after, after > before, now);
        }
    }

    /// Takes the answer of a backend to the question whether it can take users.
    pub(crate) fn answered(&mut self, side: Side, is_good: bool, now: Mono) {
        match (side, &mut self.aftermath) {
            (Side::Legacy, _) => self.judge.answered(is_good, now),
            (Side::New, Some(aftermath)) => aftermath.new_answered(is_good, now),
            (Side::New, None) => {}
        }
    }

    /// Whether legacy can take users, before a person sends everybody there.
    pub(crate) fn legacy_word(&self, now: Mono) -> Word {
        self.judge.legacy_word(now)
    }

    /// Whether legacy is to be asked now; then it counts as asked.
    pub(crate) fn ask_legacy(&mut self, now: Mono) -> bool {
        self.judge.legacy().ask(now)
    }

    /// Sends everybody to legacy and latches at the present generation.
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

    /// Lifts the latch; the guard starts from nothing.
    pub(crate) fn rearm(&mut self, now: Mono) {
        self.phase = Phase::Holding;
        (self.dry_run_breach, self.aftermath) = (None, None);
        self.judge.restart(now);
        self.share_changed(Percent::ZERO, now);
        self.judged.each(Window::restart);
    }

    /// Takes changed settings. A latch stays unless the generation rose above it.
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
