//! The sequential judge of one rollout: is new worse, who says so, and is it new's fault?
//!
//! Each rule of the guard gathers evidence in a [`Detector`] (errors and latency limits as rates,
//! comparisons with legacy over the same seconds). A rule trips when its evidence is such
//! that a healthy backend would show it once in `false_alarm_every`, the budget being shared over
//! the rules, *and* it stands without any single user or client network, *and* legacy is not just
//! as bad. Four times a second all rules look ([`Judge::tick`]); in between each failure makes the
//! rules about failures look at once ([`Judge::wake`]).
//!
//! The way of one look: differences of cumulative counts -> detectors -> strong enough? -> enough
//! users? -> legacy bad, too? -> [`Finding`]. What the look after it needs (latency limits made
//! of legacy's last minutes, fair shares of users) goes to the request path as [`Aims`].
//!
//! Sides are compared by users whom the hash or chance placed, since all others differ from them. A
//! comparison also has to hold with users as trials. A limit that legacy itself has not met for
//! hours is raised to twice what legacy has, and is a comparison then.
//!
//! At 100 % there is no legacy to compare with. Comparisons are then made with legacy's last minute
//! of a thousand requests, kept from before; absolute rules go on as they are.
//!
//! Deliberately absent: models of load, seasons or deployments. The comparison is with the same
//! seconds of the same traffic.

mod affected;
mod blame;
mod ladder;
mod rules;
mod targets;
pub(crate) mod trials;
mod usual_rate;
mod wording;

use std::collections::VecDeque;
use std::time::Duration;

use crate::guard::availability::{Vital, Word};
use crate::guard::detector::{Detector, Test};
use crate::guard::{GuardSettings, Rule, Verdict};
use crate::percent::Percent;
use crate::side::{PerSide, Side};
use crate::stats::histogram::lowest_of;
use crate::stats::users::{Aims, Class, Crowd, TICK, USER_PERIOD, Witness};
use crate::stats::window::{CoarseLatencies, Counts, Span, Totals, Trials};
use crate::time::Mono;

use crate::guard::judge::affected::Hurt;
use crate::guard::judge::ladder::Ladder;
use crate::guard::judge::rules::{Part, RuleState, Source, key_of, waited};
use crate::guard::judge::targets::Baseline;
use crate::guard::judge::trials::Blocks;
pub(crate) use rules::most_at_once;

/// Without a request for so long, legacy is no control group any more.
const ALONE_AFTER: Duration = Duration::from_secs(10);
/// A shared cause is over when nothing has spoken of it for this long.
pub const SHARED_LASTS: Duration = Duration::from_secs(60);
/// So many failures of new in a row, and it is good to know how legacy fares.
const SUSPICIOUS_STREAK: u32 = 2;
/// After a changed share sides are not compared for so long: new opens connections and fills
/// caches, and fast answers of the new users come before their slow ones.
const GRACE: Duration = Duration::from_secs(2);
/// A legacy that fails this part of its users, and more, is nothing to compare other answers with.
const NO_YARDSTICK: f64 = 0.2;
/// A latency is slower than legacy's only by at least so much, in microseconds: between fractions
/// of a millisecond no user can tell.
const SLOWER_BY_US: u64 = 2_000;

/// Requests that reached the age at which an unanswered one hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// How many reached it, answered or not.
    pub started: u64,
    /// How many of them have no answer yet.
    pub hung: u64,
    /// From how many different places they come, at least: a place is one of sixteen groups of
    /// networks, or of users when there are few networks.
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
    /// Totals and nothing else: backends are there, nobody hangs, nobody was asked who they are,
    /// and all users are compared.
    pub fn of(totals: &'a PerSide<Totals>) -> Self {
        Self {
            totals,
            compared: totals,
            streaks: PerSide { legacy: 0, new: 0 },
            available: PerSide {
                legacy: true,
                new: true,
            },
            passes_checks: PerSide {
                legacy: false,
                new: false,
            },
            waited: PerSide::default(),
            waited_compared: PerSide::default(),
            witnesses: &[],
            crowd: None,
        }
    }
}

/// The last minute of both sides, this tick included, and the latencies of the last tick as
/// counters and how many fell into each.
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
    /// Since when its evidence has grown, if it is known how legacy fared before: then legacy has
    /// changed since.
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
        Self {
            requests: counts.requests,
            failed: counts.failed(),
            client_errors: counts.client_errors,
            aborts: counts.aborts,
            p95_us: span.latencies.quantile(0.95),
        }
    }
}

/// What a judge knows, for another process that goes on with it. Times are those of the clock that
/// both share.
///
/// Left out: who was hurt and whom new serves, since each process hashes users with a key of its
/// own; and the windows of the last minute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heritage {
    /// The evidence of each rule, by the rule with its limits: evidence on another limit is none.
    pub rules: Vec<(String, Vec<PartHeritage>)>,
    /// Sides are compared from then on.
    pub compares_from: Option<Mono>,
    /// Latencies are compared from then on.
    pub warm_until: Option<Mono>,
    /// What is known of legacy's rates over the last hours, by the rule with its limits: when each
    /// block ended, and the rate in it.
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
    /// Appearances of legacy's users who are compared, and failures among them, as of the last
    /// tick.
    failures_seen: (u64, u64),
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
    /// What was counted of legacy up to the last look.
    legacy_counts: Counts,
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

impl Judge {
    /// A judge without evidence, and with nobody on new: see [`Judge::begin`]. One for a slot that
    /// has counted before begins with its first look.
    pub fn new(settings: &GuardSettings, is_new_slot: bool, now: Mono) -> Self {
        let share = 0.0;
        let rules: Vec<RuleState> = settings
            .rules
            .iter()
            .filter(|rule| settings.judges(**rule))
            .map(|&rule| RuleState::new(rule, settings, share, now))
            .collect();
        Self {
            ladder: Ladder::default(),
            mean_bound: None,
            share,
            raised_at: None,
            warm_until: None,
            blocks: Blocks::new(now),
            trials_seen: PerSide::default(),
            latencies_seen: PerSide::default(),
            failures_seen: (0, 0),
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
            legacy_counts: Counts::default(),
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
        let rules = self
            .rules
            .iter()
            .map(|state| (key_of(state.rule), state.parts.iter().map(part).collect()))
            .collect();
        let known = |state: &RuleState| {
            Some((
                key_of(state.rule),
                state.parts.first()?.limit.as_ref()?.1.known(),
            ))
        };
        let ever = self.rules.iter().filter_map(known).collect();
        Heritage {
            rules,
            compares_from: self.compares_from,
            warm_until: self.warm_until,
            ever,
            alone: self.alone,
        }
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
            if let (Some((_, known)), Some((_, ever))) = (
                known,
                state.parts.first_mut().and_then(|part| part.limit.as_mut()),
            ) {
                ever.take_up(known);
                // The evidence that follows is on the limit that was in force there.
                state.parts[0].follow_legacy((0, 0), false, self.share, self.raised_at, now);
            }
            let Some((_, parts)) = heritage
                .rules
                .iter()
                .find(|(rule, parts)| *rule == key && parts.len() == state.parts.len())
            else {
                continue;
            };
            for (part, heritage) in state.parts.iter_mut().zip(parts) {
                part.detector.take_up(&heritage.evidence);
                part.alone = heritage.alone.as_ref().map(|(limit, evidence)| {
                    let mut alone = Detector::new(Test::absolute(*limit), now)
                        .at_most(most_at_once(state.rule, self.log_threshold));
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

    /// The share of users on new has changed, or is said for the first time. A raise brings users
    /// to a backend that may not be warm.
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
        self.rules
            .iter_mut()
            .for_each(|rule| rule.begin_users(self.share));
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
        let counts = &self.legacy_counts;
        let since = self
            .legacy_at_streak
            .filter(|_| self.streak >= SUSPICIOUS_STREAK);
        since.map_or_else(
            || self.legacy.is_serving(now),
            |(requests, failed)| counts.requests - requests >= 2 + 2 * (counts.failed() - failed),
        )
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
        self.streak >= SUSPICIOUS_STREAK
            || self
                .rules
                .iter()
                .any(|rule| self.progress(rule).is_some_and(|progress| progress >= 0.5))
    }

    /// For how long latencies are not compared yet, as of the last look.
    fn warms_up(&self) -> Option<Duration> {
        self.warm_until.map(|until| until.since(self.looked_at))
    }

    /// Forgets the evidence of one rule.
    pub fn forget(&mut self, rule: Rule, now: Mono) {
        self.rules
            .iter_mut()
            .filter(|state| state.rule == rule)
            .for_each(|state| state.restart(now));
    }

    /// What the request path must watch.
    pub fn aims(&self) -> &Aims {
        &self.aims
    }

    /// Looks at everything. Once for each tick; a late call is one longer tick.
    pub fn tick(
        &mut self,
        observed: &Observed<'_>,
        recent: &Recent<'_>,
        now: Mono,
    ) -> Option<Finding> {
        self.take_in(observed, now);
        let was_started = std::mem::replace(&mut self.started, true);
        self.control_group(observed, now);
        self.ladder.tick(recent.last_compared.legacy, now);
        self.begin_comparisons(now);
        let (is_shared, in_grace, warms_up) = (
            self.in_shared_cause(now),
            self.compares_from.is_some(),
            self.warm_until.is_some(),
        );
        let due = self.blocks.tick(now);
        let trials = PerSide::from_fn(|side| {
            let total = &observed.compared[side].trials;
            let news = total.since(&self.trials_seen[side]);
            self.trials_seen[side].clone_from(total);
            news
        });
        let latencies_before = std::mem::replace(
            &mut self.latencies_seen,
            observed.compared.map(|totals| totals.of_users),
        );
        let bound = self.mean_bound;
        let served = self.served_part(observed);
        for rule in &mut self.rules {
            let (is_paused, ratio) = (
                in_grace || warms_up && rule.waits_for_warmth(),
                rule.rule.ratio(),
            );
            for part in rule.parts.iter_mut().chain(&mut rule.versus) {
                let total = part.source.tally(observed, part.is_relative());
                let mut news = total.since(&std::mem::replace(&mut part.seen, total));
                let mut rests = is_paused;
                if part.is_relative() && part.source.is_of_served() {
                    // Who gets an error cannot get a 4xx or a redirect as well. New's errors change
                    // nothing: nobody shall make it look slow by failing on purpose.
                    news.m = (news.m as f64 * served).round() as u64;
                    rests |= served <= 1.0 - NO_YARDSTICK;
                }
                if !was_started {
                    continue;
                }
                let of_legacy = match part.source {
                    Source::Waited => (
                        observed.waited_compared.legacy.started,
                        observed.waited_compared.legacy.hung,
                    ),
                    _ => (news.all_m, news.all_y),
                };
                part.follow_legacy(of_legacy, is_shared, self.share, self.raised_at, now);
                if part.is_relative() && rests {
                    continue;
                }
                if let Some(users) = part.users.as_mut().filter(|_| !rests) {
                    users.tick(
                        PerSide {
                            legacy: &trials.legacy,
                            new: &trials.new,
                        },
                        &due,
                    );
                }
                match part.source {
                    Source::Bad(_) => part.tick(&news, now),
                    Source::Values(_) => part.detector.fold_values(
                        recent
                            .last_of_new
                            .iter()
                            .map(|&(index, count)| (lowest_of(usize::from(index)) as f64, count)),
                        &news,
                        now,
                    ),
                    Source::Waited => part.fold(
                        &waited(observed.waited.new, observed.waited_compared.legacy),
                        now,
                    ),
                    Source::WaitedCompared => part.tick(
                        &waited(
                            observed.waited_compared.new,
                            observed.waited_compared.legacy,
                        ),
                        now,
                    ),
                    Source::Means => {
                        let Some(bound) = bound else { continue };
                        // What of legacy's a latency of new may be, at most, to be no slower.
                        let as_legacy = |latency_us: u64| {
                            (latency_us as f64 / ratio)
                                .min(latency_us.saturating_sub(SLOWER_BY_US) as f64)
                        };
                        let values = |side: Side| -> Vec<(f64, u64)> {
                            let as_legacy = |us| {
                                if side == Side::New {
                                    as_legacy(us)
                                } else {
                                    us as f64
                                }
                            };
                            self.latencies_seen[side]
                                .since(&latencies_before[side])
                                .map(|(us, count)| ((as_legacy(us) / bound).min(1.0), count))
                                .collect()
                        };
                        part.detector.fold_both(
                            &values(Side::New),
                            &values(Side::Legacy),
                            &news,
                            now,
                        );
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

    /// The part of legacy's users in this tick who got an answer that was no failure. 1 without
    /// users.
    fn served_part(&mut self, observed: &Observed<'_>) -> f64 {
        let counts = &observed.compared.legacy.counts;
        let total = (counts.appearances, counts.counted[Class::Failure.index()]);
        let before = std::mem::replace(&mut self.failures_seen, total);
        let (appeared, failed) = (
            total.0.saturating_sub(before.0),
            total.1.saturating_sub(before.1),
        );
        1.0 - failed as f64 / appeared.max(failed).max(1) as f64
    }

    /// Comparisons begin with the share that is in force when the pause after its change is over;
    /// those of latencies when new is warm.
    fn begin_comparisons(&mut self, now: Mono) {
        let is_over = |from: &mut Option<Mono>| from.take_if(|from| now >= *from).is_some();
        let (settled, warm) = (
            is_over(&mut self.compares_from),
            is_over(&mut self.warm_until),
        );
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
    pub fn wake(
        &mut self,
        observed: &Observed<'_>,
        recent: PerSide<&Span>,
        now: Mono,
    ) -> Option<Finding> {
        if !self.started {
            return None;
        }
        self.take_in(observed, now);
        for rule in self
            .rules
            .iter_mut()
            .filter(|rule| rule.looks_between_ticks())
        {
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
        self.served_part(observed);
        for part in self
            .rules
            .iter_mut()
            .flat_map(|rule| rule.parts.iter_mut().chain(&mut rule.versus))
        {
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
        if !self.started {
            self.legacy
                .begin(counts.requests - counts.failed(), counts.failed());
        }
        self.legacy.see(
            counts.requests - counts.failed(),
            counts.failed(),
            observed.available.legacy,
            observed.passes_checks.legacy,
            now,
        );
        let before = std::mem::replace(&mut self.legacy_counts, *counts);
        if self.started {
            let (good, bad) = counts.since(&before).users_fared();
            // One place may be one user.
            let hung = if observed.waited.legacy.places > 1 {
                observed.waited.legacy.hung
            } else {
                0
            };
            self.legacy.users_fared(good, bad + hung, now);
        }
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
        if self
            .requests
            .back()
            .is_none_or(|(at, _)| now.since(*at) >= TICK)
        {
            self.requests.push_back((now, served));
        }
        while self.requests.len() > 1 && now.since(self.requests[0].0) > USER_PERIOD {
            self.requests.pop_front();
        }
    }

    /// Notices when legacy stops being there to compare with, and when it comes back.
    fn control_group(&mut self, observed: &Observed<'_>, now: Mono) {
        let total = observed.compared.legacy.counts.requests;
        if std::mem::replace(&mut self.legacy_requests, total) != total
            || self.legacy_seen.is_none()
        {
            self.legacy_seen = Some(now);
        }
        let alone = self
            .legacy_seen
            .is_some_and(|seen| now.since(seen) > ALONE_AFTER);
        if alone == self.alone {
            return;
        }
        self.alone = alone;
        let baseline = self.baseline.as_ref().filter(|_| alone);
        for rule in self.rules.iter_mut().filter(|rule| rule.compares()) {
            for part in &mut rule.parts {
                part.alone = baseline
                    .filter(|_| !matches!(part.source, Source::Means))
                    .map(|baseline| {
                        Detector::new(Test::absolute(baseline.limit(rule.rule, part.source)), now)
                            .at_most(most_at_once(rule.rule, self.log_threshold))
                    });
                part.detector.restart(now);
            }
        }
    }

    /// What every rule says now, for people.
    pub fn verdicts(&self, recent: PerSide<&Span>) -> Vec<Verdict> {
        self.rules
            .iter()
            .map(|rule| self.verdict(rule, recent))
            .collect()
    }

    /// The part of the evidence that a rollback needs, `0..=1`, of a rule that gathers evidence.
    fn progress(&self, rule: &RuleState) -> Option<f64> {
        (!rule.parts.is_empty())
            .then(|| (rule.log_accusation() / self.log_threshold).clamp(0.0, 1.0))
    }
}

impl GuardSettings {
    /// Whether the sequential judge looks at this rule: at all of them in its own mode, and at
    /// those about the moment in threshold mode.
    pub fn judges(&self, rule: Rule) -> bool {
        match self.mode {
            crate::guard::Mode::Sequential => true,
            crate::guard::Mode::Threshold => rule.is_immediate(),
            crate::guard::Mode::Off => false,
        }
    }
}

/// The logarithm of the evidence at which a rule trips: the ticks of `false_alarm_every`, times the
/// rules that share it.
pub fn log_threshold(settings: &GuardSettings) -> f64 {
    (settings.false_alarm_every.as_secs_f64() / TICK.as_secs_f64() * settings.gathering() as f64)
        .ln()
}
