//! The sequential judge of one rollout: whether new is worse, how many users show it, and whether
//! it is new's fault.
//!
//! Each rule of the guard collects evidence in a [`Detector`](crate::guard::detector::Detector)
//! (errors and latency limits as rates,
//! comparisons with legacy over the same seconds). A rule trips when three conditions hold. Its
//! evidence is such that a healthy backend would show it once in `false_alarm_every`, where the
//! budget is shared over the rules. The evidence *also* holds without any single user or client
//! network. Legacy is *not* just as bad. Four times a second all rules are evaluated
//! ([`Judge::tick`]). In between, each failure makes the rules about failures evaluate at once
//! ([`Judge::wake`]).
//!
//! The steps of one evaluation: differences of cumulative counts -> detectors -> strong enough? ->
//! enough users? -> legacy bad, too? -> [`Finding`]. The request path receives what the next
//! evaluation needs as [`TrackerLimits`]: latency limits derived from legacy's last minutes, and
//! fair shares of users.
//!
//! The sides are compared by users whom the hash or chance placed, because all others differ from
//! them. A comparison must also hold with users as trials. A limit that legacy itself has not met
//! for hours is raised to twice legacy's rate, and then works as a comparison.
//!
//! At 100 % there is no legacy to compare with. Comparisons then use legacy's last minute of a
//! thousand requests, kept from before. Absolute rules continue unchanged.
//!
//! Deliberately absent: models of load, seasons or deployments. The comparison uses the same
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

/// After this time without a request, legacy is no longer a control group.
const ALONE_AFTER: Duration = Duration::from_secs(10);

/// A shared cause ends after this time without a new sign of it.
pub const SHARED_LASTS: Duration = Duration::from_secs(60);

/// After this number of failures of new in a row, the state of legacy should be known.
const SUSPICIOUS_STREAK: u32 = 2;

/// How long the sides are not compared after a changed share. New opens connections and fills
/// caches, and fast answers of the new users arrive before their slow ones.
const GRACE: Duration = Duration::from_secs(2);

/// A legacy that fails at least this part of its users cannot serve as a reference for other
/// answers.
const NO_REFERENCE: f64 = 0.2;

/// The minimum difference in microseconds by which a latency counts as slower than legacy's. Users
/// cannot notice fractions of a millisecond.
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
    /// The latency in microseconds above which all values count alike in a mean.
    mean_bound: Option<f64>,
    /// New's share of the users.
    share: f64,
    raised_at: Option<Mono>,
    compares_from: Option<Mono>,
    warm_until: Option<Mono>,
    blocks: Blocks,
    trials_seen: PerSide<Trials>,
    latencies_seen: PerSide<CoarseLatencies>,
    /// Appearances of legacy's compared users, and failures among them, as of the last tick.
    failures_seen: (u64, u64),
    legacy_requests: u64,
    legacy_seen: Option<Mono>,
    alone: bool,
    tracker_limits: TrackerLimits,
    aimed_at: Option<Mono>,
    down_since: Option<Mono>,
    streak: u32,
    streak_since: Mono,
    /// Requests and failures of legacy at the time of new's last success.
    legacy_at_streak: Option<(u64, u64)>,
    /// The counts of legacy up to the last evaluation.
    legacy_counts: Counts,
    /// What is known about legacy besides its counts.
    legacy: Availability,
    /// The time at which both sides were last found bad at the same time.
    shared_at: Option<Mono>,
    started: bool,
    /// The time of the last evaluation.
    looked_at: Mono,
    /// The waiting requests of the last tick in which requests to new hung.
    hung: PerSide<Waited>,
}

impl Judge {
    /// Creates a judge without evidence, and without users on new: see [`Judge::begin`]. A judge
    /// for a slot that has counted before starts with its first evaluation.
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

    /// Applies other settings. Evidence of rules that stay unchanged is kept.
    pub fn set(&mut self, settings: &GuardSettings, now: Mono) {
        if self.settings == *settings {
            return;
        }
        let fresh = Self::new(settings, true, now);
        let mut before = std::mem::replace(&mut self.rules, fresh.rules);
        for rule in &mut self.rules {
            match before.iter().position(|old| old.rule == rule.rule) {
                Some(at) => *rule = before.swap_remove(at),
                // The counts so far do not concern this rule.
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

    /// Discards all evidence. Later results of requests from before belong to another epoch.
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

    /// Records that the share of users on new has changed or is known for the first time. A raise
    /// sends users to a backend that may not be warm.
    pub fn share_changed(&mut self, share: Percent, is_raise: bool, now: Mono) {
        self.share = share.as_ratio();
        self.compares_from = Some(now.forward(GRACE));
        if is_raise {
            self.raised_at = Some(now);
            self.warm_until = Some(now.forward(self.settings.warm_up.max(GRACE)));
        }
    }

    /// Sets the share of users on new at the beginning.
    pub fn begin(&mut self, share: Percent) {
        self.share = share.as_ratio();
        self.rules
            .iter_mut()
            .for_each(|rule| rule.begin_users(self.share));
    }

    /// Returns whether legacy can take users.
    pub fn legacy_word(&self, now: Mono) -> Word {
        self.legacy.word(now)
    }

    /// Records when the share was raised last, if another process did it.
    pub fn was_raised(&mut self, raised_at: Option<Mono>) {
        self.raised_at = raised_at;
    }

    /// Whether requests of legacy's users have shown that legacy is healthy since new began to
    /// fail.
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

    /// Records the answer to a probe whether legacy can take users.
    pub fn answered(&mut self, is_good: bool, now: Mono) {
        self.legacy.answered(is_good, now);
    }

    /// Returns what is known about legacy.
    pub fn legacy(&mut self) -> &mut Availability {
        &mut self.legacy
    }

    /// Whether a rollback may be near, so that it should be known whether legacy can take users.
    pub fn is_suspicious(&self) -> bool {
        self.streak >= SUSPICIOUS_STREAK
            || self
                .rules
                .iter()
                .any(|rule| self.progress(rule).is_some_and(|progress| progress >= 0.5))
    }

    /// Returns how long latencies are not compared yet, as of the last evaluation.
    fn warms_up(&self) -> Option<Duration> {
        self.warm_until.map(|until| until.since(self.looked_at))
    }

    /// Discards the evidence of one rule.
    pub fn forget(&mut self, rule: Rule, now: Mono) {
        self.rules
            .iter_mut()
            .filter(|state| state.rule == rule)
            .for_each(|state| state.restart(now));
    }

    /// Returns the limits that the request path must watch.
    pub fn tracker_limits(&self) -> &TrackerLimits {
        &self.tracker_limits
    }

    /// Evaluates all rules, once per tick. A late call is one longer tick.
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
                    // A request that fails cannot receive a 4xx or a redirect as well. New's errors
                    // change nothing, so that failing on purpose cannot make it look slow.
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
                        // The largest counter of legacy that a latency of new may reach without
                        // being slower.
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

    /// Evaluates failures only, between ticks, because one has just happened.
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

    /// Returns the present verdict of every rule, for people.
    pub fn verdicts(&self, recent: PerSide<&Span>) -> Vec<Verdict> {
        self.rules
            .iter()
            .map(|rule| self.verdict(rule, recent))
            .collect()
    }

    /// Returns the part of the evidence that a rollback needs, `0..=1`, for a rule that collects
    /// evidence.
    fn progress(&self, rule: &RuleState) -> Option<f64> {
        (!rule.parts.is_empty())
            .then(|| (rule.log_accusation() / self.log_threshold).clamp(0.0, 1.0))
    }
}

impl GuardSettings {
    /// Whether the sequential judge evaluates this rule. It evaluates all of them in its own mode,
    /// and those about the present moment in threshold mode.
    pub fn judges(&self, rule: Rule) -> bool {
        match self.mode {
            crate::guard::Mode::Sequential => true,
            crate::guard::Mode::Threshold => rule.is_immediate(),
            crate::guard::Mode::Off => false,
        }
    }
}

/// Returns the logarithm of the evidence at which a rule trips: the ticks of `false_alarm_every`,
/// multiplied by the number of rules that share it.
pub fn log_threshold(settings: &GuardSettings) -> f64 {
    (settings.false_alarm_every.as_secs_f64() / TICK.as_secs_f64() * settings.gathering() as f64)
        .ln()
}
