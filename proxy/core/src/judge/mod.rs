//! The sequential judge of one rollout: is new worse, who says so, and is it new's fault?
//!
//! Each rule of the guard gathers evidence in a [`Detector`] (errors and latency limits as rates, comparisons with legacy over the same seconds). A rule trips when its evidence is such
//! that a healthy backend would show it once in `false_alarm_every`, the budget being shared over the rules, *and* it stands without any single user or client network, *and* legacy
//! is not just as bad. Four times a second all rules look ([`Judge::tick`]); in between each failure makes the rules about failures look at once ([`Judge::wake`]).
//!
//! The way of one look: differences of cumulative counts -> detectors -> strong enough? -> enough users? -> legacy bad, too? -> [`Finding`]. What the look after it needs (latency limits made
//! of legacy's last minute, fair shares of users) goes to the request path as [`Aims`].
//!
//! At 100 % there is no legacy to compare with. Comparisons are then made with legacy's last minute of a thousand requests, kept from before; absolute rules go on as they are.
//!
//! Deliberately absent: models of load, seasons or deployments. The comparison is with the same seconds of the same traffic.

mod hurt;
mod words;

use std::collections::VecDeque;
use std::time::Duration;

use crate::evidence::{Detector, Excursion, Tally, Test, log_mean};
use crate::guard::{Answer, GuardSettings, LatencyPoint, Rule, SharedCause, Verdict};
use crate::histogram::lowest_of;
use crate::outcome::FailureKind;
use crate::percent::Ratio;
use crate::side::{PerSide, Side};
use crate::time::{Mono, micros};
use crate::window::{Span, Totals};
use crate::witness::{Aims, Class, Crowd, NETWORK_USERS, NO_CAP, TICK, USER_PERIOD, Witness, fair_share};

use hurt::{Hurt, Needed};

/// The points of legacy's latency that new is compared at, as the share of requests that are slower.
const LADDER: [f64; 3] = [0.5, 0.1, 0.05];
/// Fewer latencies of legacy than this in a minute make no ladder.
const MIN_LADDER: u64 = 200;
/// Fewer requests of legacy than this in a minute make no baseline for the time after it.
const MIN_BASELINE: u64 = 1_000;
/// Without a request for so long, legacy is no control group any more.
const ALONE_AFTER: Duration = Duration::from_secs(10);
/// How long a rule that is sure about new waits for legacy to say how it fares.
const LEGACY_WAIT: Duration = Duration::from_millis(500);
/// A shared cause is over when nothing has spoken of it for this long.
pub const SHARED_LASTS: Duration = Duration::from_secs(60);
/// How long evidence of too few is there before people are told.
const HELD_SAID_AFTER: Duration = Duration::from_secs(5);
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
/// How often limits and shares are made anew.
const AIM_EVERY: Duration = Duration::from_secs(1);

/// The limits of a latency watched on the request path, by their index in [`Aims::slow`].
const fn slow_index(point: LatencyPoint) -> u8 {
    match point {
        LatencyPoint::P50 => 3,
        LatencyPoint::P95 => 4,
        LatencyPoint::P99 => 5,
        LatencyPoint::Mean => 6,
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
    /// Failures since the last success.
    pub streaks: PerSide<u32>,
    /// Whether the side has a server that requests are sent to.
    pub available: PerSide<bool>,
    /// Requests that reached the age of the hang rule since the last tick.
    pub waited: PerSide<Waited>,
    /// Bad events on new that counted since the last look.
    pub witnesses: &'a [Witness],
    /// Whom new has served lately; `None` when nobody counted them for this look.
    pub crowd: Option<Crowd>,
}

impl<'a> Observed<'a> {
    /// Totals and nothing else: backends are there, nobody hangs, nobody was asked who they are.
    pub fn of(totals: &'a PerSide<Totals>) -> Self {
        let waited = PerSide::default();
        Self { totals, streaks: PerSide { legacy: 0, new: 0 }, available: PerSide { legacy: true, new: true }, waited, witnesses: &[], crowd: None }
    }
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
    compares_from: Option<Mono>,
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
    /// When both sides were last found bad at once.
    shared_at: Option<Mono>,
    started: bool,
}

/// Legacy's last good minute.
#[derive(Clone, Debug)]
struct Baseline {
    span: Span,
}

#[derive(Clone, Debug)]
struct RuleState {
    rule: Rule,
    parts: Vec<Part>,
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
}

/// What a detector counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Bad(Class),
    Waited,
    Values(Class),
}

/// For so many ticks at least new has to be slower: a machine that stalls makes everything slow that is under way, and by accident more on one side.
const SLOW_TICKS: f64 = 8.0;

/// The most that a tick may add to the evidence of a rule.
pub(crate) fn most_at_once(rule: Rule, log_threshold: f64) -> f64 {
    if matches!(rule, Rule::Latency(..) | Rule::LatencyVsLegacy(_)) { log_threshold / SLOW_TICKS } else { f64::INFINITY }
}

impl Source {
    /// The counts of this source since the start; what was tried is requests, or the appearances of users.
    fn tally(self, totals: &PerSide<Totals>, by_users: bool) -> Tally {
        let (new, legacy) = (&totals.new.counts, &totals.legacy.counts);
        let class = match self {
            Self::Bad(class) | Self::Values(class) => class,
            Self::Waited => return Tally::default(),
        };
        let of = |all: fn(&crate::window::Counts) -> u64| (all(new), all(legacy));
        let (all_x, all_y) = match class {
            Class::Failure => of(crate::window::Counts::failed),
            Class::ClientError => of(|counts| counts.client_errors),
            Class::Abort => of(|counts| counts.aborts),
            Class::Slow(_) => (new.counted[class.index()], legacy.counted[class.index()]),
        };
        let (all_n, all_m) = match class {
            Class::Failure | Class::ClientError => (new.requests, legacy.requests),
            // Those who gave up are not among the requests.
            Class::Abort => (new.requests + new.aborts, legacy.requests + legacy.aborts),
            Class::Slow(_) => (totals.new.latencies.total(), totals.legacy.latencies.total()),
        };
        let connects = if class == Class::Failure { new.failures[FailureKind::Connect.index()] } else { 0 };
        // Sides are compared by users, so that a busy one of them does not make the other side look bad.
        let (n, m) = if by_users { (new.appearances, legacy.appearances) } else { (all_n, all_m) };
        Tally { n, x: new.counted[class.index()], m, y: legacy.counted[class.index()], all_x, all_y, all_n, all_m, connects }
    }
}

/// A rule with its limits, as one process says it to another.
fn key_of(rule: Rule) -> String {
    format!("{rule:?}")
}

impl RuleState {
    fn new(rule: Rule, settings: &GuardSettings, now: Mono) -> Self {
        let part = |source, test| Part {
            source,
            detector: Detector::new(test, now).at_most(most_at_once(rule, log_threshold(settings))),
            alone: None,
            seen: Tally::default(),
            pending: Tally::default(),
            pending_ticks: 0,
        };
        let relative = |class, ratio: Ratio| vec![part(Source::Bad(class), Test::relative(ratio.factor()))];
        let parts = match rule {
            Rule::ErrorsMax(max) => vec![part(Source::Bad(Class::Failure), Test::absolute(max.fraction()))],
            Rule::ErrorsVsLegacy(ratio) => relative(Class::Failure, ratio),
            Rule::ClientErrorsVsLegacy(ratio) => relative(Class::ClientError, ratio),
            Rule::AbortsVsLegacy(ratio) => relative(Class::Abort, ratio),
            Rule::Latency(LatencyPoint::Mean, limit_us) => vec![part(Source::Values(Class::Slow(slow_index(LatencyPoint::Mean))), Test::mean(limit_us as f64))],
            Rule::Latency(point, _) => vec![part(Source::Bad(Class::Slow(slow_index(point))), Test::absolute(point.slower_share()))],
            Rule::LatencyVsLegacy(_) => (0..LADDER.len()).map(|step| part(Source::Bad(Class::Slow(step as u8)), Test::relative(1.0))).collect(),
            Rule::Hang(_) => vec![part(Source::Waited, Test::absolute(settings.hang_limit()))],
            Rule::Health(_) | Rule::Dead(_) => Vec::new(),
        };
        Self { rule, parts, waiting_since: None, held_since: None, held_said: false, last: Answer::Pass, remark: None }
    }

    fn compares(&self) -> bool {
        matches!(self.rule, Rule::ErrorsVsLegacy(_) | Rule::LatencyVsLegacy(_) | Rule::ClientErrorsVsLegacy(_) | Rule::AbortsVsLegacy(_))
    }

    /// The rules that look at each failure, and not only at ticks.
    fn looks_between_ticks(&self) -> bool {
        matches!(self.rule, Rule::ErrorsMax(_) | Rule::Dead(_))
    }

    fn log_evidence(&self) -> f64 {
        log_mean(self.parts.iter().map(|part| part.in_force().log_evidence()))
    }

    fn strongest(&self) -> Option<&Part> {
        self.parts.iter().max_by(|a, b| a.in_force().log_evidence().total_cmp(&b.in_force().log_evidence()))
    }

    fn restart(&mut self, now: Mono) {
        for part in &mut self.parts {
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
        matches!(self.detector.test(), Test::Relative { .. })
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
    /// A judge without evidence. One for a slot that has counted before begins with its first look.
    pub fn new(settings: &GuardSettings, is_new_slot: bool, now: Mono) -> Self {
        let rules: Vec<RuleState> = settings.rules.iter().filter(|rule| settings.judges(**rule)).map(|&rule| RuleState::new(rule, settings, now)).collect();
        Self {
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
            shared_at: None,
            started: is_new_slot,
        }
    }

    /// What it knows, for another process.
    pub fn heritage(&self) -> Heritage {
        let part = |part: &Part| PartHeritage {
            evidence: part.detector.numbers(),
            alone: part.alone.as_ref().and_then(|alone| match alone.test() {
                Test::Absolute { limit, .. } => Some((*limit, alone.numbers())),
                Test::Relative { .. } | Test::Mean { .. } => None,
            }),
        };
        let rules = self.rules.iter().map(|state| (key_of(state.rule), state.parts.iter().map(part).collect())).collect();
        Heritage { rules, compares_from: self.compares_from, alone: self.alone }
    }

    /// Goes on with what another process knew. Only for a judge that has seen nothing.
    pub fn inherit(&mut self, heritage: &Heritage, now: Mono) {
        self.compares_from = heritage.compares_from;
        self.alone = heritage.alone;
        // Nobody has seen legacy for a while: it has to come first.
        self.legacy_seen = heritage.alone.then(Mono::default);
        for state in &mut self.rules {
            let key = key_of(state.rule);
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
                None => self.started = false,
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

    /// The share of users on new has changed.
    pub fn share_changed(&mut self, now: Mono) {
        self.compares_from = Some(now.forward(GRACE));
    }

    /// Forgets the evidence of one rule.
    pub fn forget(&mut self, rule: Rule, now: Mono) {
        self.rules.iter_mut().filter(|state| state.rule == rule).for_each(|state| state.restart(now));
    }

    /// What the request path must watch.
    pub fn aims(&self) -> &Aims {
        &self.aims
    }

    /// Looks at everything. Once for each tick; a late call is one longer tick. `recent` is the last minute of both sides, this tick included, `latencies` those of new in this tick.
    pub fn tick(&mut self, observed: &Observed<'_>, recent: PerSide<&Span>, latencies: &[(u16, u64)], now: Mono) -> Option<Finding> {
        self.take_in(observed, now);
        let was_started = std::mem::replace(&mut self.started, true);
        self.control_group(observed, now);
        for rule in &mut self.rules {
            for part in &mut rule.parts {
                let total = part.source.tally(observed.totals, part.is_relative());
                let news = total.since(&std::mem::replace(&mut part.seen, total));
                if !was_started {
                    continue;
                }
                if part.is_relative() && self.compares_from.is_some_and(|from| now < from) {
                    continue;
                }
                match part.source {
                    Source::Bad(_) => part.tick(&news, now),
                    Source::Values(_) => part.detector.fold_values(latencies.iter().map(|&(index, count)| (lowest_of(usize::from(index)) as f64, count)), &news, now),
                    Source::Waited => {
                        let (new, legacy) = (observed.waited.new, observed.waited.legacy);
                        let waited = Tally {
                            n: new.started,
                            x: new.hung,
                            m: legacy.started,
                            y: legacy.hung,
                            all_x: new.hung,
                            all_y: legacy.hung,
                            all_n: new.started,
                            all_m: legacy.started,
                            connects: 0,
                        };
                        part.fold(&waited, now);
                    }
                }
            }
        }
        let finding = self.find(observed, recent, now, false);
        self.aim(recent, now);
        for rule in &mut self.rules {
            for part in &mut rule.parts {
                part.begin_tick();
            }
        }
        finding
    }

    /// Looks at failures only, between ticks, because one has just happened.
    pub fn wake(&mut self, observed: &Observed<'_>, recent: PerSide<&Span>, now: Mono) -> Option<Finding> {
        if !self.started {
            return None;
        }
        self.take_in(observed, now);
        for rule in self.rules.iter_mut().filter(|rule| rule.looks_between_ticks()) {
            for part in &mut rule.parts {
                let total = part.source.tally(observed.totals, part.is_relative());
                let news = total.since(&std::mem::replace(&mut part.seen, total));
                part.fold(&news, now);
            }
        }
        self.find(observed, recent, now, true)
    }

    /// Keeps up with what is counted while nobody is judged.
    pub fn skip(&mut self, observed: &Observed<'_>, recent: PerSide<&Span>, now: Mono) {
        self.take_in(observed, now);
        self.control_group(observed, now);
        for part in self.rules.iter_mut().flat_map(|rule| &mut rule.parts) {
            part.seen = part.source.tally(observed.totals, part.is_relative());
        }
        self.started = true;
        self.aim(recent, now);
    }

    fn take_in(&mut self, observed: &Observed<'_>, now: Mono) {
        self.hurt.add(observed.witnesses, now);
        self.crowd = observed.crowd.unwrap_or(self.crowd);
        if observed.streaks.new < self.streak || observed.streaks.new == 0 {
            self.streak_since = now;
        }
        if observed.streaks.new == 0 {
            self.legacy_at_streak = None;
        } else if self.legacy_at_streak.is_none() || observed.streaks.new < self.streak {
            let counts = &observed.totals.legacy.counts;
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
        let total = observed.totals.legacy.counts.requests;
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
                part.alone =
                    baseline.map(|baseline| Detector::new(Test::absolute(baseline.limit(rule.rule, part.source)), now).at_most(most_at_once(rule.rule, self.log_threshold)));
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
                Answer::Pass | Answer::Inconclusive => {
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
            let case = self.case(at, observed, recent, now);
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
                Answer::Pass | Answer::Inconclusive | Answer::Held => {}
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
                let summary = self.hurt.summary(Class::Failure, self.streak_since);
                let needed = Needed::of(&self.crowd, self.settings.min_users);
                if let Some(remark) = words::too_few(&summary, &needed) {
                    return (Answer::Held, Some(remark));
                }
                let view = self.legacy_since_streak(observed);
                return self.blame(at, view, now);
            }
            _ => {}
        }
        if rule.log_evidence() < self.log_threshold {
            self.rules[at].waiting_since = None;
            return (Answer::Pass, None);
        }
        if let Some(remark) = self.leans_on_few(rule, observed) {
            return (Answer::Held, Some(remark));
        }
        if rule.compares() || self.alone {
            return (Answer::Breach, None);
        }
        let view = legacy_view(rule, recent);
        self.blame(at, view, now)
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
                match (now.since(since) >= LEGACY_WAIT, leans_bad) {
                    (false, _) => (Answer::Pass, Some(words::WAITING.to_owned())),
                    (true, false) => (Answer::Breach, None),
                    (true, true) => (self.of_shared(), None),
                }
            }
        }
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
    fn leans_on_few(&self, rule: &RuleState, observed: &Observed<'_>) -> Option<String> {
        let needed = Needed::of(&self.crowd, self.settings.min_users);
        let part = rule.strongest()?;
        let Excursion { since, tally } = part.in_force().excursion();
        let class = match part.source {
            // A client cannot make a connection to the backend fail.
            Source::Bad(Class::Failure) if tally.connects * 5 >= tally.all_x * 4 && tally.connects > 0 => return None,
            Source::Bad(class) | Source::Values(class) => class,
            Source::Waited => {
                let waited = &observed.waited.new;
                let places = needed.networks.max(needed.users.min(2)) as u32;
                return (waited.places < places || (needed.without_top_network && waited.top_place > 0.8)).then(|| words::ONE_PLACE.to_owned());
            }
        };
        let summary = self.hurt.summary(class, since);
        if let Some(remark) = words::too_few(&summary, &needed) {
            return Some(remark);
        }
        let without = |share: fn(&hurt::Summary) -> f64| {
            log_mean(rule.parts.iter().map(|part| {
                let Source::Bad(class) = part.source else { return part.in_force().log_evidence() };
                let share = share(&self.hurt.summary(class, part.in_force().excursion().since));
                part.in_force().log_evidence_without(share)
            }))
        };
        if needed.without_top_user && without(|summary| summary.top_user) < self.log_threshold {
            return Some(words::one_user(&summary));
        }
        (needed.without_top_network && without(|summary| summary.top_network) < self.log_threshold).then(|| words::one_network(&summary))
    }

    /// Makes limits and shares for the request path from what is known now.
    fn aim(&mut self, recent: PerSide<&Span>, now: Mono) {
        if self.aimed_at.is_some_and(|at| now.since(at) < AIM_EVERY) {
            return;
        }
        self.aimed_at = Some(now);
        if recent.legacy.counts.requests >= MIN_BASELINE && !self.alone {
            self.baseline = Some(Baseline { span: recent.legacy.clone() });
        }
        let of_legacy = match &self.baseline {
            Some(baseline) if self.alone => &baseline.span,
            _ => recent.legacy,
        };
        self.aims.slow = PerSide::from_fn(|_| [u64::MAX; crate::witness::LIMITS]);
        for rule in &self.settings.rules {
            match *rule {
                Rule::LatencyVsLegacy(ratio) if of_legacy.latencies.total() >= MIN_LADDER => {
                    let points = LADDER.map(|slower| 1.0 - slower);
                    for (step, limit_us) in of_legacy.latencies.quantiles(&points).into_iter().flatten().enumerate() {
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
        let (counts, base) = (&recent.legacy.counts, (recent.legacy.counts.requests as f64).max(1.0));
        let many_networks = hurt::are_many(self.crowd.networks_60s);
        let share = |rate: f64| {
            let of_network = if many_networks { fair_share(rate, requests, self.crowd.networks_10s, NETWORK_USERS) } else { NO_CAP };
            (fair_share(rate, requests, self.crowd.users_10s, 1), of_network)
        };
        let shares = &mut self.aims.shares;
        shares[Class::Failure.index()] = share(self.settings.hang_limit().max(counts.failed() as f64 / base));
        shares[Class::ClientError.index()] = share((counts.client_errors as f64 / base).max(0.01));
        shares[Class::Abort.index()] = share((counts.aborts as f64 / base).max(0.01));
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
        let accusation = rule.parts.iter().map(|part| part.in_force().log_accusation()).fold(0.0, f64::max);
        (!rule.parts.is_empty()).then(|| (accusation / self.log_threshold).clamp(0.0, 1.0))
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
            Rule::ErrorsVsLegacy(ratio) | Rule::ClientErrorsVsLegacy(ratio) | Rule::AbortsVsLegacy(ratio) => ratio.factor(),
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
                View::Unknown { leans_bad: of_legacy > *limit }
            } else {
                View::Good
            }
        }
        Test::Relative { .. } => View::Good,
    }
}
