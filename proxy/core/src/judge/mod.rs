//! The sequential judge of one rollout: is new worse, who says so, and is it new's fault?
//!
//! Each rule of the guard gathers evidence in a [`Detector`] (errors and latency limits as rates, comparisons with legacy over the same seconds). A rule trips when its evidence is such
//! that a healthy backend would show it once in `false_alarm_every`, the budget being shared over the rules, *and* it stands without any single user or client network, *and* legacy
//! is not just as bad. Four times a second all rules look ([`Judge::tick`]); in between each failure makes the rules about failures look at once ([`Judge::wake`]).
//!
//! The way of one look: differences of cumulative counts -> detectors -> strong enough? -> enough users? -> legacy bad, too? -> [`Finding`]. What the look after it needs (latency limits made
//! of legacy's last minutes, fair shares of users) goes to the request path as [`Aims`].
//!
//! Sides are compared by users whom the hash or chance placed, since all others differ from them. A comparison also has to hold with users as trials ([`trials`]). A limit that legacy itself has
//! not met for hours is raised to twice what legacy has ([`ever`]), and is a comparison then.
//!
//! At 100 % there is no legacy to compare with. Comparisons are then made with legacy's last minute of a thousand requests, kept from before; absolute rules go on as they are.
//!
//! Deliberately absent: models of load, seasons or deployments. The comparison is with the same seconds of the same traffic.

mod ever;
mod hurt;
mod ladder;
pub(crate) mod trials;
mod words;

use std::collections::VecDeque;
use std::time::Duration;

use crate::evidence::{Detector, Excursion, Tally, Test, log_mean};
use crate::guard::{Answer, GuardSettings, LatencyPoint, Rule, SharedCause, Verdict};
use crate::histogram::lowest_of;
use crate::outcome::FailureKind;
use crate::percent::{Percent, Ratio};
use crate::refuge::{Vital, Word};
use crate::side::{PerSide, Side};
use crate::time::{Mono, micros};
use crate::window::{CoarseLatencies, Span, Totals, Trials};
use crate::witness::{Aims, Class, Crowd, NETWORK_USERS, NO_CAP, TICK, USER_PERIOD, Witness, fair_share};

use ever::Ever;
use hurt::{Hurt, Needed};
use ladder::{LADDER, Ladder, MIN_LADDER};
use trials::{Blocks, Users};

/// Fewer requests of legacy than this in a minute make no baseline for the time after it.
const MIN_BASELINE: u64 = 1_000;
/// Without a request for so long, legacy is no control group any more.
const ALONE_AFTER: Duration = Duration::from_secs(10);
/// How long a rule that is sure about new waits for legacy to say how it fares ...
const LEGACY_WAIT: Duration = Duration::from_millis(500);
/// ... and for how many requests to new at most.
const LEGACY_WAIT_REQUESTS: f64 = 8.0;
/// A shared cause is over when nothing has spoken of it for this long.
pub const SHARED_LASTS: Duration = Duration::from_secs(60);
/// How long evidence of too few is there before people are told.
const HELD_SAID_AFTER: Duration = Duration::from_secs(5);
/// So many failures of new in a row, and it is good to know how legacy fares.
const SUSPICIOUS_STREAK: u32 = 2;
/// So many failures of legacy in a row, and it is not new alone that is dead.
const LEGACY_DEAD: u64 = 3;
/// With fewer requests on new than this, the part of new in a tick is mostly chance, so a comparison takes several ticks as one ...
const MIN_COMPARED: u64 = 8;
/// ... but not more than these.
const MAX_PENDING_TICKS: u32 = 4;
/// After a changed share sides are not compared for so long: new opens connections and fills caches, and fast answers of the new users come before their slow ones.
const GRACE: Duration = Duration::from_secs(2);
/// A latency is slower than legacy's only by at least so much, in microseconds: between fractions of a millisecond no user can tell.
const SLOWER_BY_US: u64 = 2_000;
/// More ticks than the logarithm of this one is of pass in no detector's life: some twenty-five days without a restart.
const LONG: f64 = 16.0;
/// How often limits and shares are made anew.
const AIM_EVERY: Duration = Duration::from_secs(1);

/// The limits of a latency watched on the request path, by their index in [`Aims::slow`].
const fn slow_index(point: LatencyPoint) -> u8 {
    match point {
        LatencyPoint::P50 => LADDER.len() as u8,
        LatencyPoint::P95 => LADDER.len() as u8 + 1,
        LatencyPoint::P99 => LADDER.len() as u8 + 2,
        LatencyPoint::Mean => LADDER.len() as u8 + 3,
    }
}

/// Requests that reached the age at which an unanswered one hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// How many reached it, answered or not.
    pub started: u64,
    /// How many of them have no answer yet.
    pub hung: u64,
    /// From how many different places they come, at least: a place is one of sixteen groups of networks, or of users when there are few networks.
    pub places: u32,
    /// The part of the place with the most of them, `0..=1`.
    pub top_place: f64,
}

/// What the shell saw of one rollout since it looked last.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Everything counted since the start, by side.
    pub totals: &'a PerSide<Totals>,
    /// Of users whom the hash or chance placed: the sides are compared by them.
    pub compared: &'a PerSide<Totals>,
    /// Failures since the last success.
    pub streaks: PerSide<u32>,
    /// Whether the side has a server that requests are sent to.
    pub available: PerSide<bool>,
    /// Whether a health check of the side has passed within its last two intervals.
    pub passes_checks: PerSide<bool>,
    /// Requests that reached the age of the hang rule since the last tick.
    pub waited: PerSide<Waited>,
    /// The same of users who are compared.
    pub waited_compared: PerSide<Waited>,
    /// Bad events on new that counted since the last look.
    pub witnesses: &'a [Witness],
    /// Whom new has served lately; `None` when nobody counted them for this look.
    pub crowd: Option<Crowd>,
}

impl<'a> Observed<'a> {
    /// Totals and nothing else: backends are there, nobody hangs, nobody was asked who they are, and all users are compared.
    pub fn of(totals: &'a PerSide<Totals>) -> Self {
        Self {
            totals,
            compared: totals,
            streaks: PerSide { legacy: 0, new: 0 },
            available: PerSide { legacy: true, new: true },
            passes_checks: PerSide { legacy: false, new: false },
            waited: PerSide::default(),
            waited_compared: PerSide::default(),
            witnesses: &[],
            crowd: None,
        }
    }
}

/// The last minute of both sides, this tick included, and the latencies of the last tick as counters and how many fell into each.
#[derive(Clone, Copy, Debug)]
pub struct Recent<'a> {
    /// Of all evidence.
    pub all: PerSide<&'a Span>,
    /// Of users who are compared.
    pub compared: PerSide<&'a Span>,
    /// The tick's latencies of new, of all evidence.
    pub last_of_new: &'a [(u16, u64)],
    /// The tick's latencies of users who are compared.
    pub last_compared: PerSide<&'a [(u16, u64)]>,
}

/// What a look finds, beyond "carry on".
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// New is worse.
    Worse(Case),
    /// New is bad, and legacy is, too.
    Shared(Case),
    /// The same as before.
    StillShared,
    /// The evidence is strong, but it is that of too few.
    Held(Case),
}

/// A rule and what it has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The rule.
    pub rule: Rule,
    /// Its numbers, as a person says them.
    pub sentence: String,
    /// Its numbers.
    pub numbers: PerSide<TripNumbers>,
    /// Since when its evidence has grown, if it is known how legacy fared before: then legacy has changed since.
    pub legacy_changed_since: Option<Mono>,
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
    pub(crate) fn of(span: &Span) -> Self {
        let counts = &span.counts;
        Self { requests: counts.requests, failed: counts.failed(), client_errors: counts.client_errors, aborts: counts.aborts, p95_us: span.latencies.quantile(0.95) }
    }
}

/// What a judge knows, for another process that goes on with it. Times are those of the clock that both share.
///
/// Left out: who was hurt and whom new serves, since each process hashes users with a key of its own; and the windows of the last minute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heritage {
    /// The evidence of each rule, by the rule with its limits: evidence on another limit is none.
    pub rules: Vec<(String, Vec<PartHeritage>)>,
    /// Sides are compared from then on.
    pub compares_from: Option<Mono>,
    /// Latencies are compared from then on.
    pub warm_until: Option<Mono>,
    /// What is known of legacy's rates over the last hours, by the rule with its limits: when each block ended, and the rate in it.
    pub ever: Vec<(String, Vec<(Mono, f64)>)>,
    /// Whether there was no legacy to compare with.
    pub alone: bool,
}

/// The evidence of one part of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartHeritage {
    /// [`Detector::numbers`].
    pub evidence: Vec<f64>,
    /// The limit, and the evidence, of what stands in while there is no legacy.
    pub alone: Option<(f64, Vec<f64>)>,
}

/// The judge of one rollout.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: GuardSettings,
    rules: Vec<RuleState>,
    log_threshold: f64,
    hurt: Hurt,
    crowd: Crowd,
    /// New's requests at the ticks of the last ten seconds.
    requests: VecDeque<(Mono, u64)>,
    baseline: Option<Baseline>,
    ladder: Ladder,
    /// Above it latencies count alike in a mean, in microseconds.
    mean_bound: Option<f64>,
    /// New's part of the users.
    share: f64,
    raised_at: Option<Mono>,
    compares_from: Option<Mono>,
    warm_until: Option<Mono>,
    blocks: Blocks,
    trials_seen: PerSide<Trials>,
    latencies_seen: PerSide<CoarseLatencies>,
    legacy_requests: u64,
    legacy_seen: Option<Mono>,
    alone: bool,
    aims: Aims,
    aimed_at: Option<Mono>,
    down_since: Option<Mono>,
    streak: u32,
    streak_since: Mono,
    /// Requests and failures of legacy when new's last success was.
    legacy_at_streak: Option<(u64, u64)>,
    /// Requests and failures of legacy now.
    legacy_counts: (u64, u64),
    /// What is known of legacy beside its counts.
    legacy: Vital,
    /// When both sides were last found bad at once.
    shared_at: Option<Mono>,
    started: bool,
    /// When it looked last.
    looked_at: Mono,
    /// Of the last tick in which requests to new hung.
    hung: PerSide<Waited>,
}

/// Legacy's last good minute.
#[derive(Clone, Debug)]
struct Baseline {
    /// Of users who are compared.
    span: Span,
    /// The steps of the ladder.
    limits: [Option<u64>; LADDER.len()],
}

#[derive(Clone, Debug)]
struct RuleState {
    rule: Rule,
    parts: Vec<Part>,
    /// A comparison that has to be sure, too, where legacy has any of what the limit is about.
    versus: Option<Part>,
    waiting_since: Option<Mono>,
    held_since: Option<Mono>,
    held_said: bool,
    last: Answer,
    /// Why the last look did not trip although the evidence is there.
    remark: Option<String>,
}

/// One detector of a rule, and what it counts.
#[derive(Clone, Debug)]
struct Part {
    source: Source,
    detector: Detector,
    /// Stands in while there is no legacy to compare with.
    alone: Option<Detector>,
    seen: Tally,
    /// What is counted but not yet folded: comparisons wait until new has a few requests.
    pending: Tally,
    pending_ticks: u32,
    /// Users as trials: of each comparison, and of a limit that has become one.
    users: Option<Users>,
    /// Of a limit: the one of the file, and how legacy stands to it as ever.
    limit: Option<(f64, Ever)>,
    /// After which raise the limit in force was made.
    followed_at: Option<Option<Mono>>,
}

/// What a detector counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Bad(Class),
    Waited,
    WaitedCompared,
    Values(Class),
    /// The latencies of both sides in the tick.
    Means,
}

/// A limit becomes another one when what is in force moves by this part.
const LIMIT_MOVES: f64 = 0.25;
/// So many times as often as on legacy may happen what a limit is about, where it has become a comparison.
const TOLERATED_OF_LIMIT: f64 = 2.0;

/// For so many ticks at least new has to be slower: a machine that stalls makes everything slow that is under way, and by accident more on one side.
const SLOW_TICKS: f64 = 8.0;
/// The same of the tail, in which a stall weighs more and the time between stalls less.
const SLOW_TAIL_TICKS: f64 = 16.0;

/// The most that a tick may add to the evidence of a rule.
pub(crate) fn most_at_once(rule: Rule, log_threshold: f64) -> f64 {
    if matches!(rule, Rule::Latency(..) | Rule::LatencyVsLegacy(_)) { log_threshold / SLOW_TICKS } else { f64::INFINITY }
}

impl Source {
    /// The counts of this source since the start; what was tried is requests, or in a comparison the appearances of users.
    fn tally(self, observed: &Observed<'_>, compares: bool) -> Tally {
        // A limit goes over all of new; legacy is only looked at as far as it is like new.
        let (new, legacy) = (if compares { &observed.compared.new } else { &observed.totals.new }, &observed.compared.legacy);
        let (of_new, of_legacy) = (&new.latencies, &legacy.latencies);
        let (new, legacy) = (&new.counts, &legacy.counts);
        let class = match self {
            Self::Bad(class) | Self::Values(class) => class,
            Self::Waited | Self::WaitedCompared | Self::Means => return Tally::default(),
        };
        let of = |all: fn(&crate::window::Counts) -> u64| (all(new), all(legacy));
        let (all_x, all_y) = match class {
            Class::Failure => of(crate::window::Counts::failed),
            Class::ClientError => of(|counts| counts.client_errors),
            Class::Abort => of(|counts| counts.aborts),
            Class::Redirects | Class::Slow(_) => (new.counted[class.index()], legacy.counted[class.index()]),
        };
        let (all_n, all_m) = match class {
            Class::Failure | Class::ClientError | Class::Redirects => (new.requests, legacy.requests),
            // Those who gave up are not among the requests.
            Class::Abort => (new.requests + new.aborts, legacy.requests + legacy.aborts),
            Class::Slow(_) => (of_new.total(), of_legacy.total()),
        };
        let connects = if class == Class::Failure { new.failures[FailureKind::Connect.index()] } else { 0 };
        // Sides are compared by users, so that a busy one of them does not make the other side look bad.
        let (n, m) = if compares { (new.appearances, legacy.appearances) } else { (all_n, all_m) };
        Tally { n, x: new.counted[class.index()], m, y: legacy.counted[class.index()], all_x, all_y, all_n, all_m, connects }
    }
}

/// Waiting requests as a tally. A limit and a comparison differ in whose requests they are.
fn waited(new: Waited, legacy: Waited) -> Tally {
    Tally { n: new.started, x: new.hung, m: legacy.started, y: legacy.hung, all_x: new.hung, all_y: legacy.hung, all_n: new.started, all_m: legacy.started, connects: 0 }
}

/// A rule with its limits, as one process says it to another.
fn key_of(rule: Rule) -> String {
    format!("{rule:?}")
}

impl RuleState {
    fn new(rule: Rule, settings: &GuardSettings, share: f64, now: Mono) -> Self {
        let part = |source, test| Part {
            source,
            detector: Detector::new(test, now).at_most(most_at_once(rule, log_threshold(settings))),
            alone: None,
            seen: Tally::default(),
            pending: Tally::default(),
            pending_ticks: 0,
            users: None,
            limit: None,
            followed_at: None,
        };
        let limit = |source, limit: f64| vec![Part { limit: Some((limit, Ever::default())), ..part(source, Test::absolute(limit)) }];
        let compare = |class: Class, tolerated: f64, above| {
            let users = Users::new(class.index(), tolerated, above, share);
            Part { users: Some(users), ..part(Source::Bad(class), Test::relative(tolerated)) }
        };
        let relative = |class, ratio: Ratio| vec![compare(class, ratio.factor(), None)];
        let parts = match rule {
            Rule::ErrorsMax(max) => limit(Source::Bad(Class::Failure), max.fraction()),
            Rule::ErrorsVsLegacy(ratio) => relative(Class::Failure, ratio),
            Rule::ClientErrorsVsLegacy(ratio) => relative(Class::ClientError, ratio),
            Rule::AbortsVsLegacy(ratio) => relative(Class::Abort, ratio),
            Rule::RedirectsVsLegacy(ratio) => relative(Class::Redirects, ratio),
            Rule::Latency(LatencyPoint::Mean, limit_us) => vec![part(Source::Values(Class::Slow(slow_index(LatencyPoint::Mean))), Test::mean(limit_us as f64))],
            Rule::Latency(point, _) => limit(Source::Bad(Class::Slow(slow_index(point))), point.slower_share()),
            Rule::LatencyVsLegacy(_) => {
                let steps = LADDER.iter().enumerate().map(|(step, slower)| {
                    let part = compare(Class::Slow(step as u8), 1.0, Some(*slower));
                    let most = log_threshold(settings) / if *slower < 0.05 { SLOW_TAIL_TICKS } else { SLOW_TICKS };
                    Part { detector: part.detector.at_most(most), ..part }
                });
                steps.chain([part(Source::Means, Test::mean_vs_legacy())]).collect()
            }
            Rule::Hang(_) => limit(Source::Waited, settings.hang_limit()),
            Rule::Health(_) | Rule::Dead(_) => Vec::new(),
        };
        let versus = matches!(rule, Rule::Hang(_)).then(|| part(Source::WaitedCompared, Test::relative(TOLERATED_OF_LIMIT)));
        Self { rule, parts, versus, waiting_since: None, held_since: None, held_said: false, last: Answer::Pass, remark: None }
    }

    fn compares(&self) -> bool {
        self.rule.compares()
    }

    /// Whether it is about latencies and compares, so that it waits until new is warm.
    fn waits_for_warmth(&self) -> bool {
        matches!(self.rule, Rule::LatencyVsLegacy(_))
    }

    /// The users of its parts, where they have to hold, too.
    fn users(&self) -> impl Iterator<Item = &Users> + Clone {
        self.parts.iter().filter_map(|part| part.users.as_ref())
    }

    /// The rules that look at each failure, and not only at ticks.
    fn looks_between_ticks(&self) -> bool {
        matches!(self.rule, Rule::ErrorsMax(_) | Rule::Dead(_))
    }

    /// All blocks of its users begin anew with this share.
    fn begin_users(&mut self, share: f64) {
        self.parts.iter_mut().filter_map(|part| part.users.as_mut()).for_each(|users| users.begin(share));
    }

    fn log_evidence(&self) -> f64 {
        log_mean(self.parts.iter().map(|part| part.in_force().log_evidence()))
    }

    fn log_accusation(&self) -> f64 {
        self.parts.iter().map(|part| part.in_force().log_accusation()).fold(0.0, f64::max)
    }

    fn strongest(&self) -> Option<&Part> {
        self.parts.iter().max_by(|a, b| a.in_force().log_evidence().total_cmp(&b.in_force().log_evidence()))
    }

    fn restart(&mut self, now: Mono) {
        for part in self.parts.iter_mut().chain(&mut self.versus) {
            (part.pending, part.pending_ticks) = (Tally::default(), 0);
            part.detector.restart(now);
            if let Some(alone) = &mut part.alone {
                alone.restart(now);
            }
        }
        self.waiting_since = None;
        self.held_since = None;
        self.last = Answer::Pass;
        self.remark = None;
    }
}

impl Part {
    fn is_relative(&self) -> bool {
        matches!(self.detector.test(), Test::Relative { .. } | Test::MeanVsLegacy { .. })
    }

    /// Whether the limit in force is above the one of the file, because legacy has never met that.
    fn is_lenient(&self) -> bool {
        matches!((self.detector.test(), &self.limit), (Test::Absolute { limit, .. }, Some((of_file, _))) if *limit > *of_file * (1.0 + 1e-9))
    }

    /// Takes how legacy fared in this tick, and puts the limit in force that follows from how it fares as ever.
    fn follow_legacy(&mut self, (tried, bad): (u64, u64), is_shared: bool, share: f64, raised_at: Option<Mono>, now: Mono) {
        let Some((of_file, ever)) = &mut self.limit else { return };
        let has_ended = ever.tick(tried, bad, is_shared, now);
        if !has_ended && self.followed_at == Some(raised_at) {
            return;
        }
        self.followed_at = Some(raised_at);
        let Test::Absolute { limit, .. } = self.detector.test() else { return };
        let wanted = ever.limit(*of_file, raised_at, now);
        if (wanted / limit - 1.0).abs() <= LIMIT_MOVES && (wanted > *of_file) == (*limit > *of_file) {
            return;
        }
        self.detector = self.detector.with(Test::absolute(wanted), now);
        self.users = match self.source {
            Source::Bad(class) if wanted > *of_file => Some(Users::new(class.index(), TOLERATED_OF_LIMIT, None, share)),
            _ => None,
        };
    }

    fn in_force(&self) -> &Detector {
        self.alone.as_ref().unwrap_or(&self.detector)
    }

    /// Folds what one tick brought, and begins the next.
    fn tick(&mut self, tally: &Tally, now: Mono) {
        if self.is_relative() && self.alone.is_none() {
            self.pending = self.pending.plus(tally);
            self.pending_ticks += 1;
            if self.pending.n < MIN_COMPARED && self.pending_ticks < MAX_PENDING_TICKS {
                return;
            }
            self.pending_ticks = 0;
            let pending = std::mem::take(&mut self.pending);
            self.detector.fold(&pending, now);
            return;
        }
        self.fold(tally, now);
    }

    fn fold(&mut self, tally: &Tally, now: Mono) {
        self.alone.as_mut().unwrap_or(&mut self.detector).fold(tally, now);
    }

    /// The "+ 1" of the next tick; while a comparison waits, its tick goes on.
    fn begin_tick(&mut self) {
        if self.pending_ticks == 0 {
            self.alone.as_mut().unwrap_or(&mut self.detector).begin_tick();
        }
    }
}

impl Judge {
    /// A judge without evidence, and with nobody on new: see [`Judge::begin`]. One for a slot that has counted before begins with its first look.
    pub fn new(settings: &GuardSettings, is_new_slot: bool, now: Mono) -> Self {
        let share = 0.0;
        let rules: Vec<RuleState> = settings.rules.iter().filter(|rule| settings.judges(**rule)).map(|&rule| RuleState::new(rule, settings, share, now)).collect();
        Self {
            ladder: Ladder::default(),
            mean_bound: None,
            share,
            raised_at: None,
            warm_until: None,
            blocks: Blocks::new(now),
            trials_seen: PerSide::default(),
            latencies_seen: PerSide::default(),
            legacy: Vital::default(),
            log_threshold: log_threshold(settings),
            rules,
            settings: settings.clone(),
            hurt: Hurt::default(),
            crowd: Crowd::default(),
            requests: VecDeque::new(),
            baseline: None,
            compares_from: None,
            legacy_requests: 0,
            legacy_seen: None,
            alone: false,
            aims: Aims::default(),
            aimed_at: None,
            down_since: None,
            streak: 0,
            streak_since: now,
            legacy_at_streak: None,
            legacy_counts: (0, 0),
            shared_at: None,
            started: is_new_slot,
            looked_at: now,
            hung: PerSide::default(),
        }
    }

    /// What it knows, for another process.
    pub fn heritage(&self) -> Heritage {
        let part = |part: &Part| PartHeritage {
            evidence: part.detector.numbers(),
            alone: part.alone.as_ref().and_then(|alone| match alone.test() {
                Test::Absolute { limit, .. } => Some((*limit, alone.numbers())),
                Test::Relative { .. } | Test::Mean { .. } | Test::MeanVsLegacy { .. } => None,
            }),
        };
        let rules = self.rules.iter().map(|state| (key_of(state.rule), state.parts.iter().map(part).collect())).collect();
        let known = |state: &RuleState| Some((key_of(state.rule), state.parts.first()?.limit.as_ref()?.1.known()));
        let ever = self.rules.iter().filter_map(known).collect();
        Heritage { rules, compares_from: self.compares_from, warm_until: self.warm_until, ever, alone: self.alone }
    }

    /// Goes on with what another process knew. Only for a judge that has seen nothing.
    pub fn inherit(&mut self, heritage: &Heritage, now: Mono) {
        self.compares_from = heritage.compares_from;
        self.warm_until = heritage.warm_until;
        self.alone = heritage.alone;
        // Nobody has seen legacy for a while: it has to come first.
        self.legacy_seen = heritage.alone.then(Mono::default);
        for state in &mut self.rules {
            let key = key_of(state.rule);
            let known = heritage.ever.iter().find(|(rule, _)| *rule == key);
            if let (Some((_, known)), Some((_, ever))) = (known, state.parts.first_mut().and_then(|part| part.limit.as_mut())) {
                ever.take_up(known);
                // The evidence that follows is on the limit that was in force there.
                state.parts[0].follow_legacy((0, 0), false, self.share, self.raised_at, now);
            }
            let Some((_, parts)) = heritage.rules.iter().find(|(rule, parts)| *rule == key && parts.len() == state.parts.len()) else { continue };
            for (part, heritage) in state.parts.iter_mut().zip(parts) {
                part.detector.take_up(&heritage.evidence);
                part.alone = heritage.alone.as_ref().map(|(limit, evidence)| {
                    let mut alone = Detector::new(Test::absolute(*limit), now).at_most(most_at_once(state.rule, self.log_threshold));
                    alone.take_up(evidence);
                    alone
                });
            }
        }
    }

    /// Takes other settings. Evidence of rules that stay as they are is kept.
    pub fn set(&mut self, settings: &GuardSettings, now: Mono) {
        if self.settings == *settings {
            return;
        }
        let fresh = Self::new(settings, true, now);
        let mut before = std::mem::replace(&mut self.rules, fresh.rules);
        for rule in &mut self.rules {
            match before.iter().position(|old| old.rule == rule.rule) {
                Some(at) => *rule = before.swap_remove(at),
                // Counts so far are not about this rule.
                None => {
                    *rule = RuleState::new(rule.rule, settings, 0.0, now);
                    rule.begin_users(self.share);
                    self.started = false;
                }
            }
        }
        self.settings = settings.clone();
        self.log_threshold = fresh.log_threshold;
        self.aimed_at = None;
    }

    /// Forgets all evidence; what requests of the past still bring belongs to another epoch.
    pub fn restart(&mut self, now: Mono) {
        for rule in &mut self.rules {
            rule.restart(now);
        }
        self.hurt.clear();
        self.down_since = None;
        self.streak = 0;
        self.streak_since = now;
        self.shared_at = None;
        self.aims.epoch += 1;
    }

    /// The share of users on new has changed, or is said for the first time. A raise brings users to a backend that may not be warm.
    pub fn share_changed(&mut self, share: Percent, is_raise: bool, now: Mono) {
        self.share = share.as_ratio();
        self.compares_from = Some(now.forward(GRACE));
        if is_raise {
            self.raised_at = Some(now);
            self.warm_until = Some(now.forward(self.settings.warm_up.max(GRACE)));
        }
    }

    /// The share of users on new at the beginning.
    pub fn begin(&mut self, share: Percent) {
        self.share = share.as_ratio();
        self.rules.iter_mut().for_each(|rule| rule.begin_users(self.share));
    }

    /// Whether legacy can take users.
    pub fn legacy_word(&self, now: Mono) -> Word {
        self.legacy.word(now)
    }

    /// When the share was raised last, if another process did it.
    pub fn was_raised(&mut self, raised_at: Option<Mono>) {
        self.raised_at = raised_at;
    }

    /// Whether users of legacy have told since new began to fail that legacy is well.
    pub fn has_legacy_spoken(&self, now: Mono) -> bool {
        let counts = self.legacy_counts;
        let since = self.legacy_at_streak.filter(|_| self.streak >= SUSPICIOUS_STREAK);
        since.map_or_else(|| self.legacy.is_serving(now), |(requests, failed)| counts.0 - requests >= 2 + 2 * (counts.1 - failed))
    }

    /// Takes the answer to a question whether legacy can take users.
    pub fn answered(&mut self, is_good: bool, now: Mono) {
        self.legacy.answered(is_good, now);
    }

    /// What is known of legacy.
    pub fn legacy(&mut self) -> &mut Vital {
        &mut self.legacy
    }

    /// Whether a rollback may be near, so that it is good to know whether legacy can take users.
    pub fn is_suspicious(&self) -> bool {
        self.streak >= SUSPICIOUS_STREAK || self.rules.iter().any(|rule| self.progress(rule).is_some_and(|progress| progress >= 0.5))
    }

    /// For how long latencies are not compared yet, as of the last look.
    fn warms_up(&self) -> Option<Duration> {
        self.warm_until.map(|until| until.since(self.looked_at))
    }

    /// Forgets the evidence of one rule.
    pub fn forget(&mut self, rule: Rule, now: Mono) {
        self.rules.iter_mut().filter(|state| state.rule == rule).for_each(|state| state.restart(now));
    }

    /// What the request path must watch.
    pub fn aims(&self) -> &Aims {
        &self.aims
    }

    /// Looks at everything. Once for each tick; a late call is one longer tick.
    pub fn tick(&mut self, observed: &Observed<'_>, recent: &Recent<'_>, now: Mono) -> Option<Finding> {
        self.take_in(observed, now);
        let was_started = std::mem::replace(&mut self.started, true);
        self.control_group(observed, now);
        self.ladder.tick(recent.last_compared.legacy, now);
        self.begin_comparisons(now);
        let (is_shared, in_grace, warms_up) = (self.in_shared_cause(now), self.compares_from.is_some(), self.warm_until.is_some());
        let due = self.blocks.tick(now);
        let trials = PerSide::from_fn(|side| {
            let total = &observed.compared[side].trials;
            let news = total.since(&self.trials_seen[side]);
            self.trials_seen[side].clone_from(total);
            news
        });
        let latencies_before = std::mem::replace(&mut self.latencies_seen, observed.compared.map(|totals| totals.of_users));
        let bound = self.mean_bound;
        for rule in &mut self.rules {
            let (rests, ratio) = (in_grace || warms_up && rule.waits_for_warmth(), rule.rule.ratio());
            for part in rule.parts.iter_mut().chain(&mut rule.versus) {
                let total = part.source.tally(observed, part.is_relative());
                let news = total.since(&std::mem::replace(&mut part.seen, total));
                if !was_started {
                    continue;
                }
                let of_legacy = match part.source {
                    Source::Waited => (observed.waited_compared.legacy.started, observed.waited_compared.legacy.hung),
                    _ => (news.all_m, news.all_y),
                };
                part.follow_legacy(of_legacy, is_shared, self.share, self.raised_at, now);
                if part.is_relative() && rests {
                    continue;
                }
                if let Some(users) = part.users.as_mut().filter(|_| !rests) {
                    users.tick(PerSide { legacy: &trials.legacy, new: &trials.new }, &due);
                }
                match part.source {
                    Source::Bad(_) => part.tick(&news, now),
                    Source::Values(_) => part.detector.fold_values(recent.last_of_new.iter().map(|&(index, count)| (lowest_of(usize::from(index)) as f64, count)), &news, now),
                    Source::Waited => part.fold(&waited(observed.waited.new, observed.waited_compared.legacy), now),
                    Source::WaitedCompared => part.tick(&waited(observed.waited_compared.new, observed.waited_compared.legacy), now),
                    Source::Means => {
                        let Some(bound) = bound else { continue };
                        // What of legacy's a latency of new may be, at most, to be no slower.
                        let as_legacy = |latency_us: u64| (latency_us as f64 / ratio).min(latency_us.saturating_sub(SLOWER_BY_US) as f64);
                        let values = |side: Side| -> Vec<(f64, u64)> {
                            let as_legacy = |us| if side == Side::New { as_legacy(us) } else { us as f64 };
                            self.latencies_seen[side].since(&latencies_before[side]).map(|(us, count)| ((as_legacy(us) / bound).min(1.0), count)).collect()
                        };
                        part.detector.fold_both(&values(Side::New), &values(Side::Legacy), &news, now);
                    }
                }
            }
        }
        let finding = self.find(observed, recent.all, now, false);
        self.aim(recent, now);
        for rule in &mut self.rules {
            for part in rule.parts.iter_mut().chain(&mut rule.versus) {
                part.begin_tick();
            }
        }
        finding
    }

    /// Comparisons begin with the share that is in force when the pause after its change is over; those of latencies when new is warm.
    fn begin_comparisons(&mut self, now: Mono) {
        let is_over = |from: &mut Option<Mono>| from.take_if(|from| now >= *from).is_some();
        let (settled, warm) = (is_over(&mut self.compares_from), is_over(&mut self.warm_until));
        if settled {
            self.blocks = Blocks::new(now);
        }
        for rule in &mut self.rules {
            let is_latency = rule.waits_for_warmth();
            if is_latency && warm {
                rule.restart(now);
            }
            if settled || is_latency && warm {
                rule.begin_users(self.share);
            }
        }
    }

    /// Looks at failures only, between ticks, because one has just happened.
    pub fn wake(&mut self, observed: &Observed<'_>, recent: PerSide<&Span>, now: Mono) -> Option<Finding> {
        if !self.started {
            return None;
        }
        self.take_in(observed, now);
        for rule in self.rules.iter_mut().filter(|rule| rule.looks_between_ticks()) {
            for part in &mut rule.parts {
                let total = part.source.tally(observed, part.is_relative());
                let news = total.since(&std::mem::replace(&mut part.seen, total));
                part.fold(&news, now);
            }
        }
        self.find(observed, recent, now, true)
    }

    /// Keeps up with what is counted while nobody is judged.
    pub fn skip(&mut self, observed: &Observed<'_>, recent: &Recent<'_>, now: Mono) {
        self.take_in(observed, now);
        self.control_group(observed, now);
        self.ladder.tick(recent.last_compared.legacy, now);
        self.blocks.tick(now);
        self.trials_seen = observed.compared.map(|totals| totals.trials.clone());
        self.latencies_seen = observed.compared.map(|totals| totals.of_users);
        for part in self.rules.iter_mut().flat_map(|rule| rule.parts.iter_mut().chain(&mut rule.versus)) {
            part.seen = part.source.tally(observed, part.is_relative());
        }
        self.started = true;
        self.aim(recent, now);
    }

    fn take_in(&mut self, observed: &Observed<'_>, now: Mono) {
        self.looked_at = now;
        if observed.waited.new.hung > 0 {
            self.hung = observed.waited;
        }
        self.hurt.add(observed.witnesses, now);
        self.crowd = observed.crowd.unwrap_or(self.crowd);
        let counts = &observed.totals.legacy.counts;
        self.legacy_counts = (counts.requests, counts.failed());
        if !self.started {
            self.legacy.begin(counts.requests - counts.failed(), counts.failed());
        }
        self.legacy.see(counts.requests - counts.failed(), counts.failed(), observed.available.legacy, observed.passes_checks.legacy, now);
        if observed.streaks.new < self.streak || observed.streaks.new == 0 {
            self.streak_since = now;
        }
        if observed.streaks.new == 0 {
            self.legacy_at_streak = None;
        } else if self.legacy_at_streak.is_none() || observed.streaks.new < self.streak {
            self.legacy_at_streak = Some((counts.requests, counts.failed()));
        }
        self.streak = observed.streaks.new;
        match (observed.available.new, self.down_since) {
            (true, _) => self.down_since = None,
            (false, None) => self.down_since = Some(now),
            (false, Some(_)) => {}
        }
        let served = observed.totals.new.counts.requests;
        if self.requests.back().is_none_or(|(at, _)| now.since(*at) >= TICK) {
            self.requests.push_back((now, served));
        }
        while self.requests.len() > 1 && now.since(self.requests[0].0) > USER_PERIOD {
            self.requests.pop_front();
        }
    }

    /// Notices when legacy stops being there to compare with, and when it comes back.
    fn control_group(&mut self, observed: &Observed<'_>, now: Mono) {
        let total = observed.compared.legacy.counts.requests;
        if std::mem::replace(&mut self.legacy_requests, total) != total || self.legacy_seen.is_none() {
            self.legacy_seen = Some(now);
        }
        let alone = self.legacy_seen.is_some_and(|seen| now.since(seen) > ALONE_AFTER);
        if alone == self.alone {
            return;
        }
        self.alone = alone;
        let baseline = self.baseline.as_ref().filter(|_| alone);
        for rule in self.rules.iter_mut().filter(|rule| rule.compares()) {
            for part in &mut rule.parts {
                part.alone = baseline
                    .filter(|_| !matches!(part.source, Source::Means))
                    .map(|baseline| Detector::new(Test::absolute(baseline.limit(rule.rule, part.source)), now).at_most(most_at_once(rule.rule, self.log_threshold)));
                part.detector.restart(now);
            }
        }
    }

    /// The first rule that is breached, or else the first that would be.
    fn find(&mut self, observed: &Observed<'_>, recent: PerSide<&Span>, now: Mono, between_ticks: bool) -> Option<Finding> {
        let mut found: Option<Finding> = None;
        for at in 0..self.rules.len() {
            if between_ticks && !self.rules[at].looks_between_ticks() {
                continue;
            }
            let (answer, remark) = self.examine(at, observed, recent, now);
            let rule = &mut self.rules[at];
            rule.last = answer;
            rule.remark = remark;
            // Said once, when it is not just the moment before enough users are hurt.
            let held_for = |since: Option<Mono>| since.map_or(Duration::ZERO, |since| now.since(since));
            rule.held_since = if answer == Answer::Held { rule.held_since.or(Some(now)) } else { None };
            match answer {
                Answer::Breach | Answer::SharedCause => {}
                Answer::Held if !rule.held_said && held_for(rule.held_since) >= HELD_SAID_AFTER => rule.held_said = true,
                Answer::Held => continue,
                Answer::Pass | Answer::Inconclusive | Answer::NoRefuge => {
                    rule.held_said = false;
                    continue;
                }
            }
            // During an outage this is found many times a second.
            if answer == Answer::SharedCause && self.in_shared_cause(now) {
                self.rules[at].restart(now);
                self.rules[at].last = answer;
                self.shared_at = Some(now);
                found.get_or_insert(Finding::StillShared);
                continue;
            }
            let case = self.case(at, recent, now);
            match answer {
                Answer::Breach => {
                    found = Some(Finding::Worse(case));
                    break;
                }
                Answer::SharedCause => {
                    // From here on evidence is gathered anew: whether legacy recovers is told by what comes, not by what was.
                    self.rules[at].restart(now);
                    self.rules[at].last = answer;
                    self.shared_at = Some(now);
                    found = Some(Finding::Shared(case));
                }
                Answer::Held if found.is_none() => found = Some(Finding::Held(case)),
                Answer::Pass | Answer::Inconclusive | Answer::Held | Answer::NoRefuge => {}
            }
        }
        found
    }

    fn examine(&mut self, at: usize, observed: &Observed<'_>, recent: PerSide<&Span>, now: Mono) -> (Answer, Option<String>) {
        let rule = &self.rules[at];
        match rule.rule {
            Rule::Health(limit_us) => {
                let down = self.down_since.is_some_and(|since| micros(now.since(since)) >= limit_us);
                return match (down, observed.available.legacy) {
                    (false, _) => (Answer::Pass, None),
                    (true, true) => (Answer::Breach, None),
                    (true, false) => (self.of_shared(), None),
                };
            }
            Rule::Dead(limit) => {
                if self.streak < limit {
                    self.rules[at].waiting_since = None;
                    return (Answer::Pass, None);
                }
                if self.in_shared_cause(now) {
                    return (self.of_shared(), None);
                }
                let summary = self.hurt.summary(Class::Failure, self.streak_since, false);
                let needed = Needed::of(&self.crowd, self.settings.min_users);
                if let Some(remark) = words::too_few(&summary, &needed) {
                    return (Answer::Held, Some(remark));
                }
                let view = self.legacy_since_streak(observed);
                return self.blame(at, view, now);
            }
            _ => {}
        }
        // Evidence is at most what has grown since an onset, times the ticks there were: at rest it need not be worked out.
        if rule.log_accusation() + LONG < self.log_threshold || rule.log_evidence() < self.log_threshold {
            self.rules[at].waiting_since = None;
            return (Answer::Pass, None);
        }
        if let Some(remark) = self.leans_on_few(rule) {
            return (Answer::Held, Some(remark));
        }
        if self.users_progress(rule).is_some_and(|progress| progress < 1.0) {
            return (Answer::Held, Some(words::TOO_FEW_USERS.to_owned()));
        }
        // Where legacy's requests hang, too, more of new's have to.
        let legacy_has_any = rule.strongest().is_some_and(|part| part.in_force().excursion().tally.y > 0);
        if legacy_has_any && rule.versus.as_ref().is_some_and(|versus| versus.detector.log_evidence() < self.log_threshold) {
            return (Answer::Pass, Some(words::AS_LEGACY.to_owned()));
        }
        if rule.compares() || self.alone {
            return (Answer::Breach, None);
        }
        let view = legacy_view(rule, recent);
        self.blame(at, view, now)
    }

    /// How far users as trials are on the way to what a rollback needs, of rules that they have to hold for.
    fn users_progress(&self, rule: &RuleState) -> Option<f64> {
        rule.users().next()?;
        Some(trials::progress(rule.users(), trials::log_budget(&self.settings), self.alone).clamp(0.0, 1.0))
    }

    /// What a rule that is sure about new makes of how legacy fares.
    fn blame(&mut self, at: usize, view: View, now: Mono) -> (Answer, Option<String>) {
        // Among the many looks of a long outage one would find legacy good by chance. While it lasts, comparisons blame.
        if self.in_shared_cause(now) {
            return (self.of_shared(), None);
        }
        match view {
            View::Good => (Answer::Breach, None),
            View::Bad => (self.of_shared(), None),
            View::Unknown { leans_bad } => {
                let since = *self.rules[at].waiting_since.get_or_insert(now);
                let answer = self.legacy.answer_since(self.streak_since);
                let wait = if answer == Some(false) { LEGACY_WAIT } else { self.legacy_wait() };
                match (answer, leans_bad) {
                    // Whoever answers while no user has failed is well; whoever does not, where users fail, is not.
                    (Some(true), false) => (Answer::Breach, None),
                    (Some(false), true) => (self.of_shared(), None),
                    _ if now.since(since) < wait => (Answer::Pass, Some(words::WAITING.to_owned())),
                    (_, false) => (Answer::Breach, None),
                    (_, true) => (self.of_shared(), None),
                }
            }
        }
    }

    /// How long to wait for legacy's word: no longer than new needs for some more requests.
    fn legacy_wait(&self) -> Duration {
        let (Some((first, before)), Some((last, after))) = (self.requests.front(), self.requests.back()) else { return LEGACY_WAIT };
        let rate = (after - before) as f64 / last.since(*first).as_secs_f64().max(1e-3);
        LEGACY_WAIT.min(Duration::from_secs_f64(LEGACY_WAIT_REQUESTS / rate.max(1.0)))
    }

    fn in_shared_cause(&self, now: Mono) -> bool {
        self.shared_at.is_some_and(|at| now.since(at) < SHARED_LASTS)
    }

    /// How legacy has fared since new began to fail without a break.
    fn legacy_since_streak(&self, observed: &Observed<'_>) -> View {
        let counts = &observed.totals.legacy.counts;
        let before = self.legacy_at_streak.unwrap_or((counts.requests, counts.failed()));
        let (requests, failed) = (counts.requests - before.0, counts.failed() - before.1);
        match (failed, requests.saturating_sub(failed)) {
            _ if self.alone => View::Good,
            (LEGACY_DEAD.., 0) => View::Bad,
            (failed, good) if good >= 2 && good > failed => View::Good,
            (failed, _) => View::Unknown { leans_bad: failed > 0 },
        }
    }

    fn of_shared(&self) -> Answer {
        match self.settings.shared_cause {
            SharedCause::Hold => Answer::SharedCause,
            SharedCause::Rollback => Answer::Breach,
        }
    }

    /// Whether the evidence falls with a single user or network, or comes from too few. `None` when it stands.
    fn leans_on_few(&self, rule: &RuleState) -> Option<String> {
        let needed = Needed::of(&self.crowd, self.settings.min_users);
        let part = rule.strongest()?;
        let Excursion { since, tally } = part.in_force().excursion();
        let class = match part.source {
            // A client cannot make a connection to the backend fail.
            Source::Bad(Class::Failure) if tally.connects * 5 >= tally.all_x * 4 && tally.connects > 0 => return None,
            Source::Bad(class) | Source::Values(class) => class,
            // Values do not say whose they are: those above legacy's p90 do.
            Source::Means | Source::WaitedCompared => Class::Slow(1),
            Source::Waited => {
                let waited = &self.hung.new;
                let places = needed.networks.max(needed.users.min(2)) as u32;
                return (waited.places < places || (needed.without_top_network && waited.top_place > 0.8)).then(|| words::ONE_PLACE.to_owned());
            }
        };
        let summary = self.hurt.summary(class, since, rule.compares());
        if let Some(remark) = words::too_few(&summary, &needed) {
            return Some(remark);
        }
        let without = |share: fn(&hurt::Summary) -> f64| {
            log_mean(rule.parts.iter().map(|part| {
                let Source::Bad(class) = part.source else { return part.in_force().log_evidence() };
                let share = share(&self.hurt.summary(class, part.in_force().excursion().since, rule.compares()));
                part.in_force().log_evidence_without(share)
            }))
        };
        if needed.without_top_user && without(|summary| summary.top_user) < self.log_threshold {
            return Some(words::one_user(&summary));
        }
        (needed.without_top_network && without(|summary| summary.top_network) < self.log_threshold).then(|| words::one_network(&summary))
    }

    /// Makes limits and shares for the request path from what is known now.
    fn aim(&mut self, recent: &Recent<'_>, now: Mono) {
        self.aims.blocks = self.blocks.begun();
        if self.aimed_at.is_some_and(|at| now.since(at) < AIM_EVERY) {
            return;
        }
        self.aimed_at = Some(now);
        self.mean_bound = self.ladder.mean_bound();
        let legacy = recent.compared.legacy;
        if legacy.counts.requests >= MIN_BASELINE && !self.alone {
            self.baseline = Some(Baseline { span: legacy.clone(), limits: self.ladder.limits(&legacy.latencies) });
        }
        let limits = match &self.baseline {
            Some(baseline) if self.alone => baseline.limits,
            _ => self.ladder.limits(&legacy.latencies),
        };
        self.aims.slow = PerSide::from_fn(|_| [u64::MAX; crate::witness::LIMITS]);
        for rule in &self.settings.rules {
            match *rule {
                Rule::LatencyVsLegacy(ratio) => {
                    for (step, limit_us) in limits.into_iter().enumerate().filter_map(|(step, limit)| Some((step, limit?))) {
                        self.aims.slow.legacy[step] = limit_us;
                        self.aims.slow.new[step] = ((limit_us as f64 * ratio.factor()) as u64).max(limit_us + SLOWER_BY_US);
                    }
                }
                Rule::Latency(point, limit_us) => {
                    for side in Side::BOTH {
                        self.aims.slow[side][usize::from(slow_index(point))] = limit_us;
                    }
                }
                _ => {}
            }
        }
        let requests = self.requests.back().map_or(0, |(_, last)| last - self.requests[0].1) as f64;
        let (counts, base) = (&legacy.counts, (legacy.counts.requests as f64).max(1.0));
        let many_networks = hurt::are_many(self.crowd.networks_60s);
        let share = |rate: f64| {
            let of_network = if many_networks { fair_share(rate, requests, self.crowd.networks_10s, NETWORK_USERS) } else { NO_CAP };
            (fair_share(rate, requests, self.crowd.users_10s, 1), of_network)
        };
        let shares = &mut self.aims.shares;
        shares[Class::Failure.index()] = share(self.settings.hang_limit().max(counts.failed() as f64 / base));
        shares[Class::ClientError.index()] = share((counts.client_errors as f64 / base).max(0.01));
        shares[Class::Abort.index()] = share((counts.aborts as f64 / base).max(0.01));
        shares[Class::Redirects.index()] = share(0.01);
        for (step, slower) in LADDER.into_iter().enumerate() {
            shares[Class::Slow(step as u8).index()] = share(slower);
        }
        for point in [LatencyPoint::P50, LatencyPoint::P95, LatencyPoint::P99, LatencyPoint::Mean] {
            shares[Class::Slow(slow_index(point)).index()] = share(point.slower_share());
        }
    }

    /// What every rule says now, for people.
    pub fn verdicts(&self, recent: PerSide<&Span>) -> Vec<Verdict> {
        self.rules.iter().map(|rule| self.verdict(rule, recent)).collect()
    }

    /// The part of the evidence that a rollback needs, `0..=1`, of a rule that gathers evidence.
    fn progress(&self, rule: &RuleState) -> Option<f64> {
        (!rule.parts.is_empty()).then(|| (rule.log_accusation() / self.log_threshold).clamp(0.0, 1.0))
    }
}

impl GuardSettings {
    /// Whether the sequential judge looks at this rule: at all of them in its own mode, and at those about the moment in threshold mode.
    pub fn judges(&self, rule: Rule) -> bool {
        match self.mode {
            crate::guard::Mode::Sequential => true,
            crate::guard::Mode::Threshold => rule.is_immediate(),
            crate::guard::Mode::Off => false,
        }
    }
}

/// The logarithm of the evidence at which a rule trips: the ticks of `false_alarm_every`, times the rules that share it.
pub fn log_threshold(settings: &GuardSettings) -> f64 {
    (settings.false_alarm_every.as_secs_f64() / TICK.as_secs_f64() * settings.gathering() as f64).ln()
}

impl Baseline {
    /// The rate of counted bad events per appearance that new may have by this baseline: what legacy had, three standard errors up, times what the rule tolerates.
    fn limit(&self, rule: Rule, source: Source) -> f64 {
        let (Source::Bad(class) | Source::Values(class)) = source else { return 0.5 };
        let counts = &self.span.counts;
        let events = counts.counted[class.index()] as f64;
        let upper = (events + 2.0 + 3.0 * (events + 1.0).sqrt()) / (counts.appearances as f64).max(1.0);
        let tolerated = match rule {
            Rule::ErrorsVsLegacy(ratio) | Rule::ClientErrorsVsLegacy(ratio) | Rule::AbortsVsLegacy(ratio) | Rule::RedirectsVsLegacy(ratio) => ratio.factor(),
            _ => 1.0,
        };
        (tolerated * upper).min(0.9)
    }
}

/// How legacy fares in what a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Good,
    Bad,
    Unknown { leans_bad: bool },
}

/// Whether legacy, over the very time that made the case against new, is beyond the limit itself (then only a comparison can blame new), or would by now show it if it were as bad as new.
/// The first is a likelihood ratio of twenty to one, the second one of four hundred: here an error costs a rollback.
fn legacy_view(rule: &RuleState, recent: PerSide<&Span>) -> View {
    let Some(part) = rule.strongest() else { return View::Good };
    let tally = part.in_force().excursion().tally;
    match part.detector.test() {
        Test::Mean { limit, .. } => match recent.legacy.mean_us() {
            Some(mean) if mean as f64 > *limit => View::Bad,
            Some(_) | None => View::Good,
        },
        Test::Absolute { limit, .. } => {
            // All of what was bad, not only what counts: a backend that fails for one user is failing, whoever the user is.
            let rate = |bad: u64, of: u64| bad as f64 / of.max(bad).max(1) as f64;
            let (m, y) = (tally.all_m.max(tally.all_y) as f64, tally.all_y as f64);
            let log_ratio = |rate: f64| y * (rate / limit).ln() + (m - y) * ((1.0 - rate) / (1.0 - limit).max(1e-9)).ln();
            let (of_new, of_legacy) = (rate(tally.all_x, tally.all_n).clamp((limit * 1.5).min(0.99), 0.99), rate(tally.all_y, tally.all_m).min(0.99));
            if of_legacy > *limit && log_ratio(of_legacy) >= 3.0 {
                View::Bad
            } else if log_ratio(of_new) > -6.0 {
                View::Unknown { leans_bad: of_legacy > *limit && log_ratio(of_new) > 0.0 }
            } else {
                View::Good
            }
        }
        Test::Relative { .. } | Test::MeanVsLegacy { .. } => View::Good,
    }
}
