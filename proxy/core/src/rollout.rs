//! One rollout: what the file asks for, what is in force, and the latch between the two.
//!
//! The latch is a phase. [`Phase::RolledBack`] is left only by `rearm` or by a generation above the one it tripped at: not by a restart, a re-applied file, a touch, a
//! reformat or a changed percentage. Plans, stages and gates will be phases of their own beside it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bucket::Salt;
use crate::guard::{Guard, GuardSettings, Verdict};
use crate::percent::Percent;
use crate::side::{PerSide, Side};
use crate::split::{Anonymous, KeySource, Match, RolloutRule, RolloutSplit, UserList};
use crate::time::{Mono, Now, Wall};
use crate::window::{Span, Totals, Window};

/// One rollout as the file means it.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutSettings {
    /// Unique among the rollouts.
    pub id: Arc<str>,
    /// Which requests it takes.
    pub matches: Match,
    /// The salt of its hash; without `:`.
    pub salt: Box<str>,
    /// Where the user key comes from, in order.
    pub keys: Vec<KeySource>,
    /// What happens to a request without a key.
    pub anonymous: Anonymous,
    /// Users on new whatever their bucket.
    pub always_new: UserList,
    /// Users on legacy whatever their bucket.
    pub always_legacy: UserList,
    /// Names of the backends.
    pub backends: PerSide<Arc<str>>,
    /// The share of users asked for.
    pub percent: Percent,
    /// Raised by an operator to re-arm after a rollback.
    pub generation: u64,
    /// When new counts as worse.
    pub guard: GuardSettings,
}

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

/// A trip that still holds, and the generation it holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latch {
    /// The generation that tripped: effective is zero while the file's generation is at most this.
    pub generation: u64,
    /// What tripped it.
    pub trip: Trip,
}

/// Why a rollout went to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// When.
    pub at: Wall,
    /// By what or whom.
    pub cause: Cause,
    /// The percentage that was in force.
    pub from: Percent,
    /// What happened, with its numbers, as a person says it.
    pub sentence: String,
}

/// What sent a rollout to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A rule of the guard.
    Guard {
        /// [`crate::guard::Rule::name`].
        rule: String,
        /// The requests and failures of both sides over the rule's window.
        numbers: PerSide<TripNumbers>,
    },
    /// A person or a program said so.
    Manual {
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// The saved state could not be read, so nobody knows whether it was rolled back.
    State,
}

impl Cause {
    /// The label of `rollbacks_total`: the rule, `manual` or `state`.
    pub fn label(&self) -> &str {
        match self {
            Self::Guard { rule, .. } => rule,
            Self::Manual { .. } => "manual",
            Self::State => "state",
        }
    }
}

/// The counts of one side that forced a trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TripNumbers {
    /// Requests that count.
    pub requests: u64,
    /// Failures among them.
    pub failed: u64,
    /// 4xx answers among them.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// p95 latency in microseconds.
    pub p95_us: Option<u64>,
}

impl TripNumbers {
    fn of(span: &Span) -> Self {
        let counts = &span.counts;
        Self { requests: counts.requests, failed: counts.failed(), client_errors: counts.client_errors, aborts: counts.aborts, p95_us: span.latencies.quantile(0.95) }
    }
}

/// How far back the numbers of `status` and the metrics' quantiles look.
pub const RECENT: Duration = Duration::from_secs(60);

/// A running rollout. Owned by the control plane alone.
#[derive(Clone, Debug)]
pub struct Rollout {
    settings: RolloutSettings,
    rule: Arc<RolloutRule>,
    phase: Phase,
    judged: PerSide<Window>,
    recent: PerSide<Window>,
    dry_run_breach: Option<&'static str>,
}

impl Rollout {
    /// A rollout with these settings, standing where `phase` says. `new_since` is now for a slot that has never counted anything; a slot with a past begins with its next tick.
    pub(crate) fn new(settings: RolloutSettings, slot: usize, phase: Phase, new_since: Option<Mono>) -> Self {
        let windows = |length: Duration| PerSide::from_fn(|_| new_since.map_or_else(|| Window::new(length), |now| Window::from_nothing(length, now)));
        Self { rule: Arc::new(rule_of(&settings, slot)), phase, judged: windows(settings.guard.window), recent: windows(RECENT), settings, dry_run_breach: None }
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

    /// The share of users in force: the one asked for, or zero while rolled back.
    pub fn effective(&self) -> Percent {
        match &self.phase {
            Phase::Holding => self.settings.percent,
            Phase::RolledBack(_) => Percent::ZERO,
        }
    }

    /// What the last minute looked like.
    pub fn recent(&self) -> PerSide<&Span> {
        PerSide { legacy: self.recent.legacy.span(), new: self.recent.new.span() }
    }

    /// What every rule of the guard says now.
    pub fn verdicts(&self) -> Vec<Verdict> {
        Guard::new(&self.settings.guard).verdicts(self.judged())
    }

    /// Where it stands, in one sentence.
    pub fn sentence(&self) -> String {
        match &self.phase {
            Phase::Holding => format!("{} % of users are on new", self.desired()),
            Phase::RolledBack(latch) => format!(
                "{} % asked, rolled back and latched at generation {}: 0 % of users are on new. {}. `rearm` or a generation above {} lifts it",
                self.desired(),
                latch.generation,
                latch.trip.sentence,
                latch.generation
            ),
        }
    }

    /// What the data path needs of it.
    pub(crate) fn split(&self) -> RolloutSplit {
        RolloutSplit { rule: Arc::clone(&self.rule), percent: self.effective(), latched: self.latch().is_some() }
    }

    /// Takes the totals of one tick, and says what it sees: a trip that must happen, or the first breach under `dry_run`.
    pub(crate) fn tick(&mut self, now: Now, totals: &PerSide<Totals>) -> Judgement {
        for side in Side::BOTH {
            self.judged[side].tick(now.mono, &totals[side]);
            self.recent[side].tick(now.mono, &totals[side]);
        }
        if self.latch().is_some() {
            return Judgement::Nothing;
        }
        let Some(verdict) = Guard::new(&self.settings.guard).breach(self.judged()) else {
            self.dry_run_breach = None;
            return Judgement::Nothing;
        };
        let rule = verdict.rule.name();
        if self.settings.guard.dry_run {
            let first = self.dry_run_breach.replace(rule) != Some(rule);
            return if first { Judgement::WouldTrip(Box::new(verdict)) } else { Judgement::Nothing };
        }
        let cause = Cause::Guard { rule: rule.to_owned(), numbers: self.judged().map(|span| TripNumbers::of(span)) };
        Judgement::Trip { cause, sentence: verdict.sentence }
    }

    /// Sends everybody to legacy and latches at the present generation.
    pub(crate) fn trip(&mut self, now: Now, cause: Cause, sentence: String) -> Trip {
        let trip = Trip { at: now.wall, cause, from: self.effective(), sentence };
        self.phase = Phase::RolledBack(Latch { generation: self.settings.generation, trip: trip.clone() });
        trip
    }

    /// Lifts the latch; the guard starts from nothing.
    pub(crate) fn rearm(&mut self) {
        self.phase = Phase::Holding;
        self.dry_run_breach = None;
        for side in Side::BOTH {
            self.judged[side].restart();
        }
    }

    /// Takes changed settings. A latch stays unless the generation rose above it.
    pub(crate) fn apply(&mut self, settings: RolloutSettings) {
        let slot = self.slot();
        for side in Side::BOTH {
            self.judged[side].set_length(settings.guard.window);
        }
        self.settings = settings;
        self.rule = Arc::new(rule_of(&self.settings, slot));
        if self.latch().is_some_and(|latch| self.settings.generation > latch.generation) {
            self.rearm();
        }
    }

    fn judged(&self) -> PerSide<&Span> {
        PerSide { legacy: self.judged.legacy.span(), new: self.judged.new.span() }
    }
}

/// What a tick makes of a rollout.
pub(crate) enum Judgement {
    /// Carry on.
    Nothing,
    /// Roll back.
    Trip {
        /// The rule and its numbers.
        cause: Cause,
        /// The same as a sentence.
        sentence: String,
    },
    /// The guard would roll back if it were not a dry run. Said once per breach.
    WouldTrip(Box<Verdict>),
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} % before)", self.sentence, self.from)
    }
}

/// The data path's part of settings. What is left out on purpose: percent and latch, which change without the file.
pub fn rule_of(settings: &RolloutSettings, slot: usize) -> RolloutRule {
    RolloutRule {
        id: Arc::clone(&settings.id),
        slot,
        matches: settings.matches.clone(),
        salt: Salt::new(&settings.salt),
        keys: settings.keys.clone(),
        anonymous: settings.anonymous,
        always_new: settings.always_new.clone(),
        always_legacy: settings.always_legacy.clone(),
        backends: settings.backends.clone(),
    }
}
