//! The recording of a tick's counts in the evidence.

use super::observed::Observed;
use super::rules::most_at_once;
use super::{ALONE_AFTER, Judge};
use crate::guard::detector::{Detector, Test};
use crate::guard::judge::rules::Counter;
use crate::guard::judge::trials::Blocks;
use crate::side::PerSide;
use crate::stats::users::{Class, TICK, USER_PERIOD};
use crate::stats::window::Span;
use crate::time::Mono;

/// The last minute of both sides, including this tick, and the latencies of the last tick as pairs
/// of a counter and its number of entries.
#[derive(Clone, Copy, Debug)]
pub struct Recent<'a> {
    /// The last minute over all evidence.
    pub all: PerSide<&'a Span>,
    /// The last minute of users who are compared.
    pub compared: PerSide<&'a Span>,
    /// The tick's latencies of new, over all evidence.
    pub last_of_new: &'a [(u16, u64)],
    /// The tick's latencies of users who are compared.
    pub last_compared: PerSide<&'a [(u16, u64)]>,
}

impl Judge {
    /// Begins comparisons with the share in force when the pause after its change is over.
    /// Comparisons of latencies begin when new is warm.
    pub(super) fn begin_comparisons(&mut self, now: Mono) {
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

    /// Keeps up with the counts while the rollout is not judged.
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
        self.set_tracker_limits(recent, now);
    }

    pub(super) fn take_in(&mut self, observed: &Observed<'_>, now: Mono) {
        self.looked_at = now;
        if observed.waited.new.hung > 0 {
            self.hung = observed.waited;
        }
        self.hurt.add(observed.bad_events, now);
        self.population = observed.population.unwrap_or(self.population);
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
            // A single place may be a single user.
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

    /// Detects that legacy is no longer available for comparison, and that it is available again.
    pub(super) fn control_group(&mut self, observed: &Observed<'_>, now: Mono) {
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
                    .filter(|_| !matches!(part.source, Counter::Means))
                    .map(|baseline| {
                        Detector::new(Test::absolute(baseline.limit(rule.rule, part.source)), now)
                            .at_most(most_at_once(rule.rule, self.log_threshold))
                    });
                part.detector.restart(now);
            }
        }
    }

    /// Returns the part of legacy's users in this tick who received an answer that was not a
    /// failure; 1 without users.
    pub(super) fn served_part(&mut self, observed: &Observed<'_>) -> f64 {
        let counts = &observed.compared.legacy.counts;
        let total = (counts.appearances, counts.counted[Class::Failure.index()]);
        let before = std::mem::replace(&mut self.failures_seen, total);
        let (appeared, failed) = (
            total.0.saturating_sub(before.0),
            total.1.saturating_sub(before.1),
        );
        1.0 - failed as f64 / appeared.max(failed).max(1) as f64
    }
}
