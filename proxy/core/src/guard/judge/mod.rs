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
//! of legacy's last minutes, fair shares of users) goes to the request path as [`TrackerLimits`].
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
mod finding;
mod handover;
mod intake;
mod ladder;
mod observed;
mod rules;
mod targets;
pub(crate) mod trials;
mod usual_rate;
mod wording;

use std::collections::VecDeque;
use std::time::Duration;

use crate::guard::availability::{Availability, Word};
use crate::guard::detector::Test;
use crate::guard::{GuardSettings, Rule, Verdict};
use crate::percent::Percent;
use crate::side::{PerSide, Side};
use crate::stats::histogram::lowest_of;
use crate::stats::users::{Population, TICK, TrackerLimits};
use crate::stats::window::{CoarseLatencies, Counts, Span, Trials};
use crate::time::Mono;

use crate::guard::judge::affected::AffectedUsers;
use crate::guard::judge::ladder::Ladder;
use crate::guard::judge::rules::{Counter, RuleState, waited};
use crate::guard::judge::targets::Baseline;
use crate::guard::judge::trials::Blocks;
pub use finding::{Case, Finding, TripNumbers};
pub use handover::{Handover, PartHandover};
pub use intake::Recent;
pub use observed::{Observed, Waited};
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
const NO_REFERENCE: f64 = 0.2;

/// A latency is slower than legacy's only by at least so much, in microseconds: between fractions
/// of a millisecond no user can tell.
const SLOWER_BY_US: u64 = 2_000;

/// The judge of one rollout.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: GuardSettings,
    rules: Vec<RuleState>,
    log_threshold: f64,
    hurt: AffectedUsers,
    population: Population,
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
    tracker_limits: TrackerLimits,
    aimed_at: Option<Mono>,
    down_since: Option<Mono>,
    streak: u32,
    streak_since: Mono,
    /// Requests and failures of legacy when new's last success was.
    legacy_at_streak: Option<(u64, u64)>,
    /// What was counted of legacy up to the last look.
    legacy_counts: Counts,
    /// What is known of legacy beside its counts.
    legacy: Availability,
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
            legacy: Availability::default(),
            log_threshold: log_threshold(settings),
            rules,
            settings: settings.clone(),
            hurt: AffectedUsers::default(),
            population: Population::default(),
            requests: VecDeque::new(),
            baseline: None,
            compares_from: None,
            legacy_requests: 0,
            legacy_seen: None,
            alone: false,
            tracker_limits: TrackerLimits::default(),
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
        self.tracker_limits.epoch += 1;
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
    pub fn legacy(&mut self) -> &mut Availability {
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
    pub fn tracker_limits(&self) -> &TrackerLimits {
        &self.tracker_limits
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
                    rests |= served <= 1.0 - NO_REFERENCE;
                }
                if !was_started {
                    continue;
                }
                let of_legacy = match part.source {
                    Counter::Waited => (
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
                    Counter::Bad(_) => part.tick(&news, now),
                    Counter::Values(_) => part.detector.fold_values(
                        recent
                            .last_of_new
                            .iter()
                            .map(|&(index, count)| (lowest_of(usize::from(index)) as f64, count)),
                        &news,
                        now,
                    ),
                    Counter::Waited => part.fold(
                        &waited(observed.waited.new, observed.waited_compared.legacy),
                        now,
                    ),
                    Counter::WaitedCompared => part.tick(
                        &waited(
                            observed.waited_compared.new,
                            observed.waited_compared.legacy,
                        ),
                        now,
                    ),
                    Counter::Means => {
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
        self.set_tracker_limits(recent, now);
        for rule in &mut self.rules {
            for part in rule.parts.iter_mut().chain(&mut rule.versus) {
                part.begin_tick();
            }
        }
        finding
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
