//! One rollout: what the file asks for, what is in force, and the latch between the two.
//!
//! The latch is a phase. [`Phase::RolledBack`] is left only by `rearm` or by a generation above the one it tripped at: not by a restart, a re-applied file, a touch, a
//! reformat or a changed percentage. Plans, stages and gates will be phases of their own beside it.
//!
//! While both sides are bad at once the share is frozen: it may fall, but a raise waits until that is over.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bucket::Salt;
use crate::guard::{Guard, GuardSettings, Mode, Verdict, seconds};
pub use crate::judge::TripNumbers;
use crate::judge::{Case, Finding, Heritage as JudgeHeritage, Judge, Observed, SHARED_LASTS};
use crate::maintenance::Restriction;
use crate::percent::Percent;
use crate::side::{PerSide, Side};
use crate::split::{Anonymous, Failover, Key, Match, RolloutRule, RolloutSplit, UserList};
use crate::time::{Mono, Now, Wall};
use crate::window::{Counts, Span, Window};
use crate::witness::{Aims, Class};

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
    pub keys: Vec<Key>,
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
    /// The share of users kept on legacy even at 100 %, as a control group.
    pub holdback: Percent,
    /// Whether a request that fails on new is answered by legacy.
    pub failover: Failover,
    /// Path prefixes below which a file that is missing on one side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
    /// How long after a rollback what outlives a request (WebSockets, streams) may stay on new.
    pub drain_on_rollback: Duration,
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
    /// The last minute, tick by tick, the newest last; of trips by the guard only.
    pub history: Vec<TickNumbers>,
}

/// What both sides did in one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickNumbers {
    /// When the tick ended.
    pub at: Wall,
    /// Each side.
    pub sides: PerSide<SideNumbers>,
}

/// What one side did in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideNumbers {
    /// Requests that count.
    pub requests: u64,
    /// Failures among them.
    pub failed: u64,
    /// Failures as far as they counted: at most so many of each user.
    pub counted: u64,
    /// 4xx answers.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// Sum of the latencies in microseconds.
    pub latency_sum_us: u64,
}

impl SideNumbers {
    /// The same of whole counts.
    pub fn of(counts: &Counts) -> Self {
        Self {
            requests: counts.requests,
            failed: counts.failed(),
            counted: counts.counted[Class::Failure.index()],
            client_errors: counts.client_errors,
            aborts: counts.aborts,
            latency_sum_us: counts.latency_sum_us,
        }
    }
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

/// How far back the numbers of `status` and the metrics' quantiles look.
pub const RECENT: Duration = Duration::from_secs(60);

/// How many ticks a trip remembers.
const HISTORY: usize = 240;

/// When both sides turn bad within this time of a raise, the raise is undone: it may be what broke them, and undoing it is cheap.
pub const RAISE_SUSPECT: Duration = Duration::from_secs(600);

/// A second report of a dry run is a new one after this pause.
const QUIET: Duration = Duration::from_secs(60);

/// What a rollout knows beside its standing, for another process that goes on with it. Times are those of the clock that both share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heritage {
    /// The evidence of its judge.
    pub judge: JudgeHeritage,
    /// The share that was in force.
    pub share: Percent,
    /// When it was raised last.
    pub raised_at: Option<Mono>,
    /// The share that a shared cause froze, when that was last spoken of, and why.
    pub frozen: Option<(Percent, Mono, String)>,
}

/// A running rollout. Owned by the control plane alone.
#[derive(Clone, Debug)]
pub struct Rollout {
    settings: RolloutSettings,
    rule: Arc<RolloutRule>,
    phase: Phase,
    judged: PerSide<Window>,
    recent: PerSide<Window>,
    judge: Judge,
    history: VecDeque<TickNumbers>,
    raised_at: Option<Mono>,
    shared: Option<Shared>,
    dry_run_breach: Option<Mono>,
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
    /// A rollout with these settings, standing where `phase` says. `new_since` is now for a slot that has never counted anything; a slot with a past begins with its next tick.
    pub(crate) fn new(settings: RolloutSettings, slot: usize, phase: Phase, new_since: Option<Mono>) -> Self {
        let windows = |length: Duration| PerSide::from_fn(|_| new_since.map_or_else(|| Window::new(length), |now| Window::from_nothing(length, now)));
        Self {
            rule: Arc::new(rule_of(&settings, slot)),
            phase,
            judged: windows(settings.guard.window),
            recent: windows(RECENT),
            judge: Judge::new(&settings.guard, new_since.is_some(), new_since.unwrap_or_default()),
            history: VecDeque::with_capacity(HISTORY),
            settings,
            raised_at: None,
            shared: None,
            dry_run_breach: None,
        }
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

    /// The share of users in force: zero while rolled back, else the one asked for, less those held back and what a shared cause freezes.
    pub fn effective(&self) -> Percent {
        match (&self.phase, &self.shared) {
            (Phase::RolledBack(_), _) => Percent::ZERO,
            (Phase::Holding, None) => self.wanted(),
            (Phase::Holding, Some(shared)) => self.wanted().min(shared.frozen),
        }
    }

    /// The share asked for, without the control group.
    fn wanted(&self) -> Percent {
        let most = Percent::FULL.thousandths() - self.settings.holdback.thousandths();
        self.settings.percent.min(Percent::from_thousandths(most).unwrap_or_default())
    }

    /// Whether both sides are bad at once, and raises are frozen.
    pub fn has_shared_cause(&self) -> bool {
        self.shared.is_some()
    }

    /// What the last minute looked like.
    pub fn recent(&self) -> PerSide<&Span> {
        PerSide { legacy: self.recent.legacy.span(), new: self.recent.new.span() }
    }

    /// What every rule of the guard says now.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Guard::new(&self.settings.guard).verdicts(self.judged());
        verdicts.extend(self.judge.verdicts(self.recent()));
        verdicts
    }

    /// What the request path must watch for it.
    pub fn aims(&self) -> &Aims {
        self.judge.aims()
    }

    /// Where it stands, in one sentence.
    pub fn sentence(&self) -> String {
        let desired = self.desired();
        match (&self.phase, &self.shared) {
            (Phase::RolledBack(latch), _) => format!(
                "{desired} % asked, rolled back and latched at generation {}: 0 % of users are on new. {}. `rearm` or a generation above {} lifts it",
                latch.generation, latch.trip.sentence, latch.generation
            ),
            (Phase::Holding, Some(shared)) => {
                format!("{desired} % asked, {} % of users are on new and raises are frozen, because both sides are bad at once: {}", self.effective(), shared.sentence)
            }
            (Phase::Holding, None) if self.wanted() < desired => {
                format!("{desired} % asked, {} % of users are on new: {} % are held back as a control group", self.wanted(), self.settings.holdback)
            }
            (Phase::Holding, None) => format!("{desired} % of users are on new"),
        }
    }

    /// The part of it that only a changed file changes.
    pub(crate) fn rule(&self) -> &Arc<RolloutRule> {
        &self.rule
    }

    /// What the data path needs of it.
    pub(crate) fn split(&self, maintenance: Restriction) -> RolloutSplit {
        RolloutSplit { rule: Arc::clone(&self.rule), percent: self.effective(), latched: self.latch().is_some(), epoch: self.aims().epoch, maintenance }
    }

    /// Takes what was seen in one tick, and says what must happen.
    pub(crate) fn tick(&mut self, now: Now, observed: &Observed<'_>) -> Vec<Judgement> {
        for side in Side::BOTH {
            self.judged[side].tick(now.mono, &observed.totals[side]);
            self.recent[side].tick(now.mono, &observed.totals[side]);
        }
        self.remember(TickNumbers { at: now.wall, sides: self.recent.map(|window| SideNumbers::of(&window.last_counts())) });
        let recent = PerSide { legacy: self.recent.legacy.span(), new: self.recent.new.span() };
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            self.judge.skip(observed, recent, now.mono);
            return Vec::new();
        }
        let finding = self.judge.tick(observed, recent, self.recent.new.last_latencies(), now.mono);
        let mut judgements = Vec::new();
        if let Some(shared) = &self.shared
            && now.mono.since(shared.last) > SHARED_LASTS
        {
            self.shared = None;
            judgements.push(Judgement::SharedCauseEnded);
        }
        let breach = Guard::new(&self.settings.guard).breach(self.judged()).map(|verdict| {
            let numbers = self.judged().map(|span| TripNumbers::of(span));
            Finding::Worse(Case { rule: verdict.rule, sentence: verdict.sentence, numbers })
        });
        judgements.extend(breach.or(finding).and_then(|finding| self.weigh(finding, now)));
        judgements
    }

    /// A failure has just happened: looks at failures only.
    pub(crate) fn wake(&mut self, now: Now, observed: &Observed<'_>) -> Option<Judgement> {
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            return None;
        }
        let recent = PerSide { legacy: self.recent.legacy.span(), new: self.recent.new.span() };
        let finding = self.judge.wake(observed, recent, now.mono)?;
        let judgement = self.weigh(finding, now)?;
        if matches!(judgement, Judgement::Trip { .. }) {
            // The failures that decided are those since the last tick.
            let sides = PerSide::from_fn(|side| SideNumbers::of(&self.recent[side].since_last(&observed.totals[side])));
            self.remember(TickNumbers { at: now.wall, sides });
        }
        Some(judgement)
    }

    fn remember(&mut self, tick: TickNumbers) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(tick);
    }

    /// What a finding comes to, under the settings and after what was done lately.
    fn weigh(&mut self, finding: Finding, now: Now) -> Option<Judgement> {
        match finding {
            Finding::Held(case) => Some(Judgement::Held(case.sentence)),
            Finding::Worse(case) => self.act_on(case, now),
            Finding::StillShared => {
                if let Some(shared) = &mut self.shared {
                    shared.last = now.mono;
                }
                None
            }
            Finding::Shared(mut case) => {
                if let Some(raised_at) = self.raised_at.filter(|raised_at| now.mono.since(*raised_at) < RAISE_SUSPECT) {
                    let ago = seconds(Duration::from_secs(now.mono.since(raised_at).as_secs()));
                    case.sentence.push_str(&format!(". Rolled back all the same, because the share was raised {ago} ago"));
                    return self.act_on(case, now);
                }
                let frozen = self.effective();
                let was_known = self.shared.replace(Shared { frozen, last: now.mono, sentence: case.sentence.clone() }).is_some();
                (!was_known).then_some(Judgement::SharedCause(case.sentence))
            }
        }
    }

    fn act_on(&mut self, case: Case, now: Now) -> Option<Judgement> {
        if !self.settings.guard.dry_run {
            return Some(Judgement::Trip { cause: Cause::Guard { rule: case.rule.name().to_owned(), numbers: case.numbers }, sentence: case.sentence });
        }
        self.judge.forget(case.rule, now.mono);
        let said = self.dry_run_breach.replace(now.mono);
        let is_news = said.is_none_or(|at| now.mono.since(at) > QUIET);
        is_news.then_some(Judgement::WouldTrip(case))
    }

    /// Sends everybody to legacy and latches at the present generation.
    pub(crate) fn trip(&mut self, now: Now, cause: Cause, sentence: String) -> Trip {
        let history = if matches!(cause, Cause::Guard { .. }) { self.history.iter().copied().collect() } else { Vec::new() };
        let trip = Trip { at: now.wall, cause, from: self.effective(), sentence, history };
        self.phase = Phase::RolledBack(Latch { generation: self.settings.generation, trip: trip.clone() });
        self.shared = None;
        trip
    }

    /// Lifts the latch; the guard starts from nothing.
    pub(crate) fn rearm(&mut self, now: Mono) {
        self.phase = Phase::Holding;
        self.dry_run_breach = None;
        self.raised_at = Some(now);
        self.judge.restart(now);
        self.judge.share_changed(now);
        for side in Side::BOTH {
            self.judged[side].restart();
        }
    }

    /// What it knows beside its standing, for another process.
    pub fn heritage(&self) -> Heritage {
        let frozen = self.shared.as_ref().map(|shared| (shared.frozen, shared.last, shared.sentence.clone()));
        Heritage { judge: self.judge.heritage(), share: self.effective(), raised_at: self.raised_at, frozen }
    }

    /// Goes on with what another process knew of it.
    pub(crate) fn inherit(&mut self, heritage: Heritage, now: Mono) {
        self.judge.inherit(&heritage.judge, now);
        self.raised_at = heritage.raised_at;
        if self.latch().is_some() {
            return;
        }
        self.shared = heritage.frozen.map(|(frozen, last, sentence)| Shared { frozen, last, sentence });
        // A file that was changed between the two processes.
        let share = self.effective();
        if share > heritage.share {
            self.raised_at = Some(now);
        }
        if share != heritage.share {
            self.judge.share_changed(now);
        }
    }

    /// Latches for a trip of another process, with its cause.
    pub(crate) fn adopt(&mut self, trip: Trip) {
        self.phase = Phase::RolledBack(Latch { generation: self.settings.generation, trip });
        self.shared = None;
    }

    /// Takes changed settings. A latch stays unless the generation rose above it.
    pub(crate) fn apply(&mut self, settings: RolloutSettings, now: Mono) {
        let slot = self.slot();
        for side in Side::BOTH {
            self.judged[side].set_length(settings.guard.window);
        }
        self.judge.set(&settings.guard, now);
        let before = self.effective();
        self.settings = settings;
        self.rule = Arc::new(rule_of(&self.settings, slot));
        if self.latch().is_some_and(|latch| self.settings.generation > latch.generation) {
            self.rearm(now);
        }
        let after = self.effective();
        if let Some(shared) = &mut self.shared {
            shared.frozen = after;
        }
        if after > before {
            self.raised_at = Some(now);
        }
        if after != before {
            self.judge.share_changed(now);
        }
    }

    fn judged(&self) -> PerSide<&Span> {
        PerSide { legacy: self.judged.legacy.span(), new: self.judged.new.span() }
    }
}

/// What a tick makes of a rollout.
pub(crate) enum Judgement {
    /// Roll back.
    Trip {
        /// The rule and its numbers.
        cause: Cause,
        /// The same as a sentence.
        sentence: String,
    },
    /// The guard would roll back if it were not a dry run. Said once per breach.
    WouldTrip(Case),
    /// Both sides have become bad at once: raises are frozen.
    SharedCause(String),
    /// That is over.
    SharedCauseEnded,
    /// Something is wrong for too few to roll back.
    Held(String),
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
        failover: settings.failover,
        fallback_on_404: settings.fallback_on_404.clone(),
    }
}
