//! One rollout: what the file asks for, what is in force, and the latch between the two.
//!
//! The latch is a phase. [`Phase::RolledBack`] is left only by `rearm` or by a generation above the
//! one it tripped at: not by a restart, a re-applied file, a touch, a reformat or a changed
//! percentage. Plans, stages and gates will be phases of their own beside it.
//!
//! While both sides are bad at once the share is frozen: it may fall, but a raise waits until that
//! is over.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::control::aftermath::Aftermath;
use crate::control::maintenance::Restriction;
use crate::guard::availability::Word;
pub use crate::guard::judge::TripNumbers;
use crate::guard::judge::{
    Case, Finding, Heritage as JudgeHeritage, Judge, Observed, Recent, SHARED_LASTS,
};
use crate::guard::{Guard, GuardSettings, Judged, Mode, Verdict, seconds};
use crate::percent::Percent;
use crate::routing::bucket::Salt;
use crate::routing::split::{
    Anonymous, Failover, Key, Match, RolloutRule, RolloutSplit, Spill, UserList,
};
use crate::side::{PerSide, Side};
use crate::stats::users::{Aims, Class};
use crate::stats::window::{Counts, Span, Window};
use crate::time::{Mono, Now, Wall};

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

/// When both sides turn bad within this time of a raise, the raise is undone: it may be what broke
/// them, and undoing it is cheap.
pub const RAISE_SUSPECT: Duration = Duration::from_secs(600);

/// A legacy that is back within this time gets the users of new by the evidence that there is.
const STRANDED_MEMORY: Duration = Duration::from_secs(10);

/// A second report of a dry run is a new one after this pause.
const QUIET: Duration = Duration::from_secs(60);

/// What a rollout knows beside its standing, for another process that goes on with it. Times are
/// those of the clock that both share.
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

/// One window over all evidence, and one over that of users who are compared.
#[derive(Clone, Debug)]
struct Windows {
    all: PerSide<Window>,
    compared: PerSide<Window>,
}

impl Windows {
    fn new(length: Duration, new_since: Option<Mono>) -> Self {
        let window = || {
            PerSide::from_fn(|_| {
                new_since.map_or_else(
                    || Window::new(length),
                    |now| Window::from_nothing(length, now),
                )
            })
        };
        Self {
            all: window(),
            compared: window(),
        }
    }

    fn tick(&mut self, now: Mono, observed: &Observed<'_>) {
        for side in Side::BOTH {
            self.all[side].tick(now, &observed.totals[side]);
            self.compared[side].tick(now, &observed.compared[side]);
        }
    }

    fn each(&mut self, change: impl Fn(&mut Window)) {
        for side in Side::BOTH {
            change(&mut self.all[side]);
            change(&mut self.compared[side]);
        }
    }

    fn recent(&self) -> Recent<'_> {
        Recent {
            all: spans(&self.all),
            compared: spans(&self.compared),
            last_of_new: self.all.new.last_latencies(),
            last_compared: PerSide {
                legacy: self.compared.legacy.last_latencies(),
                new: self.compared.new.last_latencies(),
            },
        }
    }
}

fn spans(windows: &PerSide<Window>) -> PerSide<&Span> {
    PerSide {
        legacy: windows.legacy.span(),
        new: windows.new.span(),
    }
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

    /// What the last minute looked like.
    pub fn recent(&self) -> PerSide<&Span> {
        spans(&self.recent.all)
    }

    /// The same of users whom the hash or chance placed: by them the sides are compared.
    pub fn recent_compared(&self) -> PerSide<&Span> {
        spans(&self.recent.compared)
    }

    /// What every rule of the guard says now.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Guard::new(&self.settings.guard).verdicts(self.judged_spans());
        verdicts.extend(self.judge.verdicts(self.recent()));
        if self.latch().is_some() {
            // What led to the rollback is in the latch; nothing is gathered now.
            for verdict in &mut verdicts {
                (verdict.progress, verdict.users_progress) = (
                    verdict.progress.map(|_| 0.0),
                    verdict.users_progress.map(|_| 0.0),
                );
            }
        }
        verdicts
    }

    /// What the request path must watch for it.
    pub fn aims(&self) -> &Aims {
        self.judge.aims()
    }

    /// Where it stands, in one sentence.
    pub fn sentence(&self) -> String {
        let desired = self.desired();
        if let (Phase::Holding, Some(stranded)) = (&self.phase, &self.stranded) {
            return format!(
                "{desired} % asked, {} % of users are on new and raises are frozen: new is worse, \
                 but legacy does not answer, so nobody was moved: {}",
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

    /// The part of it that only a changed file changes.
    pub(crate) fn rule(&self) -> &Arc<RolloutRule> {
        &self.rule
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
            epoch: self.aims().epoch,
            maintenance,
        }
    }

    /// Takes what was seen in one tick, and says what must happen.
    pub(crate) fn tick(&mut self, now: Now, observed: &Observed<'_>) -> Vec<Judgement> {
        if self.settings.guard.mode == Mode::Threshold {
            self.judged.tick(now.mono, observed);
        }
        self.recent.tick(now.mono, observed);
        self.remember(TickNumbers {
            at: now.wall,
            sides: self
                .recent
                .all
                .map(|window| SideNumbers::of(&window.last_counts())),
        });
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            self.judge.skip(observed, &self.recent.recent(), now.mono);
            return self.watch_legacy(now.mono);
        }
        let finding = self.judge.tick(observed, &self.recent.recent(), now.mono);
        let mut judgements = self.thaw(now.mono);
        let breach = Guard::new(&self.settings.guard)
            .breach(self.judged_spans())
            .map(|verdict| {
                let numbers = spans(&self.judged.all).map(|span| TripNumbers::of(span));
                Finding::Worse(Case {
                    rule: verdict.rule,
                    sentence: verdict.sentence,
                    numbers,
                    legacy_changed_since: None,
                })
            });
        judgements.extend(
            breach
                .or(finding)
                .and_then(|finding| self.weigh(finding, now)),
        );
        judgements.extend(self.suspect(now.mono));
        judgements
    }

    /// What has frozen raises may be over.
    fn thaw(&mut self, now: Mono) -> Vec<Judgement> {
        let before = self.effective();
        let mut judgements = Vec::new();
        if self
            .shared
            .take_if(|shared| now.since(shared.last) > SHARED_LASTS)
            .is_some()
        {
            judgements.push(Judgement::SharedCauseEnded);
        }
        if self
            .stranded
            .take_if(|stranded| now.since(stranded.last) > SHARED_LASTS)
            .is_some()
        {
            judgements.push(Judgement::NoRefugeEnded);
        }
        self.share_changed(before, now);
        judgements
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

    /// Before a rollback may come it is good to know whether legacy can take users.
    fn suspect(&mut self, now: Mono) -> Option<Judgement> {
        if self.settings.guard.dry_run
            || self.latch().is_some()
            || self.stranded.is_none() && !self.judge.is_suspicious()
        {
            return None;
        }
        let is_told = self.stranded.is_none() && self.judge.has_legacy_spoken(now);
        (!is_told && self.judge.legacy().ask(now)).then_some(Judgement::Ask(Side::Legacy))
    }

    /// While it is rolled back by the guard: can legacy carry its users?
    fn watch_legacy(&mut self, now: Mono) -> Vec<Judgement> {
        let Some(aftermath) = self.aftermath.as_mut() else {
            return Vec::new();
        };
        let legacy = &self.recent.all.legacy;
        let counts = self.recent.all.map(Window::last_counts);
        aftermath.watch(
            self.judge.legacy(),
            PerSide {
                legacy: &counts.legacy,
                new: &counts.new,
            },
            legacy.last_latencies(),
            now,
        )
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

    /// A failure has just happened, or legacy has answered a question: looks at failures only.
    pub(crate) fn wake(&mut self, now: Now, observed: &Observed<'_>) -> Vec<Judgement> {
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            return Vec::new();
        }
        let finding = self.judge.wake(observed, spans(&self.recent.all), now.mono);
        let mut judgements: Vec<Judgement> = finding
            .and_then(|finding| self.weigh(finding, now))
            .into_iter()
            .collect();
        if judgements
            .iter()
            .any(|judgement| matches!(judgement, Judgement::Trip { .. }))
        {
            // The failures that decided are those since the last tick.
            let sides = PerSide::from_fn(|side| {
                SideNumbers::of(&self.recent.all[side].since_last(&observed.totals[side]))
            });
            self.remember(TickNumbers {
                at: now.wall,
                sides,
            });
        }
        judgements.extend(self.suspect(now.mono));
        judgements
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
                let raised_at = self
                    .raised_at
                    .filter(|raised_at| now.mono.since(*raised_at) < RAISE_SUSPECT);
                // Undone is a raise that legacy has become worse after, and that legacy can take
                // back.
                let is_undone = |raised_at: &Mono| {
                    case.legacy_changed_since
                        .is_some_and(|since| since >= *raised_at)
                };
                if let Some(raised_at) = raised_at.filter(is_undone)
                    && self.legacy_word(now.mono) == Word::Alive
                {
                    let ago = seconds(Duration::from_secs(now.mono.since(raised_at).as_secs()));
                    case.sentence.push_str(&format!(
                        ". Rolled back all the same, because the share was raised {ago} ago"
                    ));
                    return self.act_on(case, now);
                }
                let frozen = self.effective();
                let was_known = self
                    .shared
                    .replace(Shared {
                        frozen,
                        last: now.mono,
                        sentence: case.sentence.clone(),
                    })
                    .is_some();
                (!was_known).then_some(Judgement::SharedCause(case.sentence))
            }
        }
    }

    fn act_on(&mut self, case: Case, now: Now) -> Option<Judgement> {
        if self.settings.guard.dry_run {
            self.judge.forget(case.rule, now.mono);
            let said = self.dry_run_breach.replace(now.mono);
            let is_news = said.is_none_or(|at| now.mono.since(at) > QUIET);
            return is_news.then_some(Judgement::WouldTrip(case));
        }
        let is_back = match &self.stranded {
            Some(stranded) => self.judge.legacy().is_back_since(stranded.since),
            None => true,
        };
        match self.legacy_word(now.mono) {
            Word::Alive if is_back => Some(Judgement::Trip {
                cause: Cause::Guard {
                    rule: case.rule.name().to_owned(),
                    numbers: case.numbers,
                },
                sentence: case.sentence,
            }),
            // The rule is still sure when the answer comes.
            Word::Unknown => self
                .ask_legacy(now.mono)
                .then_some(Judgement::Ask(Side::Legacy)),
            Word::Alive | Word::Dead => self.strand(case, now.mono),
        }
    }

    /// New is worse, and legacy cannot take its users: nobody is moved. After a while, whether new
    /// stays worse is told by what comes, not by what was.
    fn strand(&mut self, case: Case, now: Mono) -> Option<Judgement> {
        let (frozen, was) = (self.effective(), self.stranded.take());
        let since = was.as_ref().map_or(now, |stranded| stranded.since);
        if now.since(since) > STRANDED_MEMORY {
            self.judge.forget(case.rule, now);
        }
        self.stranded = Some(Stranded {
            frozen,
            since,
            last: now,
            sentence: case.sentence.clone(),
        });
        was.is_none().then_some(Judgement::NoRefuge(case.sentence))
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

    /// What it knows beside its standing, for another process.
    pub fn heritage(&self) -> Heritage {
        let frozen = self
            .shared
            .as_ref()
            .map(|shared| (shared.frozen, shared.last, shared.sentence.clone()));
        Heritage {
            judge: self.judge.heritage(),
            share: self.effective(),
            raised_at: self.raised_at,
            frozen,
        }
    }

    /// Goes on with what another process knew of it.
    pub(crate) fn inherit(&mut self, heritage: Heritage, now: Mono) {
        self.raised_at = heritage.raised_at;
        self.judge.was_raised(heritage.raised_at);
        self.judge.inherit(&heritage.judge, now);
        if self.latch().is_some() {
            return;
        }
        self.shared = heritage.frozen.map(|(frozen, last, sentence)| Shared {
            frozen,
            last,
            sentence,
        });
        // A file that was changed between the two processes.
        self.share_changed(heritage.share, now);
    }

    /// Latches for a trip of another process, with its cause.
    pub(crate) fn adopt(&mut self, trip: Trip, now: Mono) {
        self.aftermath =
            matches!(trip.cause, Cause::Guard { .. }).then(|| Aftermath::restored(now));
        self.phase = Phase::RolledBack(Latch {
            generation: self.settings.generation,
            trip,
        });
        (self.shared, self.stranded) = (None, None);
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

    /// The spans that the rules of mode `threshold` look at: a limit at all of new, a comparison at
    /// users who are compared.
    fn judged_spans(&self) -> Judged<'_> {
        Judged {
            all: spans(&self.judged.all),
            compared: spans(&self.judged.compared),
        }
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
    /// New is worse, but legacy does not answer: nobody is moved, and raises are frozen.
    NoRefuge(String),
    /// That is over.
    NoRefugeEnded,
    /// A backend is to be asked whether it can take users.
    Ask(Side),
    /// After a rollback: users are sent to new because legacy does not answer, or no longer.
    Spilled(bool),
    /// New fails those users, too: they are back on legacy.
    SpillFailed,
    /// After a rollback: legacy does not carry the load.
    Overloaded(String),
    /// Something is wrong for too few to roll back.
    Held(String),
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} % before)", self.sentence, self.from)
    }
}

/// The data path's part of settings. What is left out on purpose: percent and latch, which change
/// without the file.
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
