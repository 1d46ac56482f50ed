//! The evaluation of the evidence: whether it is strong, whether enough users contribute to it, and
//! whether legacy is as bad, in this order.

use std::time::Duration;

use crate::guard::detector::{Excursion, Test, log_mean};
use crate::guard::judge::affected::{self, Needed};
use crate::guard::judge::rules::{Counter, RuleState};
use crate::guard::judge::{Finding, Judge, Observed, SHARED_LASTS, trials, wording};
use crate::guard::{Answer, Rule, SharedCause};
use crate::side::PerSide;
use crate::stats::users::Class;
use crate::stats::window::Span;
use crate::time::{Mono, micros};

/// How long a rule that is certain about new waits for evidence about legacy ...
const LEGACY_WAIT: Duration = Duration::from_millis(500);
/// ... and the maximum number of requests to new during that wait.
const LEGACY_WAIT_REQUESTS: f64 = 8.0;
/// How long evidence of too few users must exist before it is reported.
const HELD_SAID_AFTER: Duration = Duration::from_secs(5);
/// After this number of failures of legacy in a row, new is not the only side that is dead.
const LEGACY_DEAD: u64 = 3;
/// No detector lives for more ticks than the number whose logarithm this is: about twenty-five days
/// without a restart.
const LONG: f64 = 16.0;

/// How legacy performs by the measure of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Good,
    Bad,
    Unknown { leans_bad: bool },
}

/// Returns how legacy performed over the very period that made the case against new. Legacy may be
/// beyond the limit itself, and then only a comparison can blame new. Or it would by now show a
/// breach if it were as bad as new. The first is decided by a likelihood ratio of twenty to one.
/// The second needs one of four hundred, because an error there costs a rollback.
pub(super) fn legacy_view(rule: &RuleState, recent: PerSide<&Span>) -> View {
    let Some(part) = rule.strongest() else {
        return View::Good;
    };
    let tally = part.in_force().excursion().tally;
    match part.detector.test() {
        Test::Mean { limit, .. } => match recent.legacy.mean_us() {
            Some(mean) if mean as f64 > *limit => View::Bad,
            Some(_) | None => View::Good,
        },
        Test::Absolute { limit, .. } => {
            // All bad events are included, not only those that count: a backend that fails for one
            // user is failing, regardless of who the user is.
            let rate = |bad: u64, of: u64| bad as f64 / of.max(bad).max(1) as f64;
            let (m, y) = (tally.all_m.max(tally.all_y) as f64, tally.all_y as f64);
            let log_ratio = |rate: f64| {
                y * (rate / limit).ln() + (m - y) * ((1.0 - rate) / (1.0 - limit).max(1e-9)).ln()
            };
            let (of_new, of_legacy) = (
                rate(tally.all_x, tally.all_n).clamp((limit * 1.5).min(0.99), 0.99),
                rate(tally.all_y, tally.all_m).min(0.99),
            );
            if of_legacy > *limit && log_ratio(of_legacy) >= 3.0 {
                View::Bad
            } else if log_ratio(of_new) > -6.0 {
                View::Unknown {
                    leans_bad: of_legacy > *limit && log_ratio(of_new) > 0.0,
                }
            } else {
                View::Good
            }
        }
        Test::Relative { .. } | Test::MeanVsLegacy { .. } => View::Good,
    }
}

impl Judge {
    /// Returns the first rule that is breached, or otherwise the first rule that would be.
    pub(super) fn find(
        &mut self,
        observed: &Observed<'_>,
        recent: PerSide<&Span>,
        now: Mono,
        between_ticks: bool,
    ) -> Option<Finding> {
        let mut found: Option<Finding> = None;
        for at in 0..self.rules.len() {
            if between_ticks && !self.rules[at].looks_between_ticks() {
                continue;
            }
            let (answer, remark) = self.examine(at, observed, recent, now);
            let rule = &mut self.rules[at];
            rule.last = answer;
            rule.remark = remark;
            // The hold is reported once, and only if it is not just the moment before enough users
            // are affected.
            let held_for =
                |since: Option<Mono>| since.map_or(Duration::ZERO, |since| now.since(since));
            rule.held_since = if answer == Answer::TooFewUsers {
                rule.held_since.or(Some(now))
            } else {
                None
            };
            match answer {
                Answer::Breach | Answer::SharedCause => {}
                Answer::TooFewUsers
                    if !rule.held_said && held_for(rule.held_since) >= HELD_SAID_AFTER =>
                {
                    rule.held_said = true;
                }
                Answer::TooFewUsers => continue,
                Answer::Pass | Answer::Inconclusive | Answer::NoRefuge => {
                    rule.held_said = false;
                    continue;
                }
            }
            // During an outage this result occurs many times a second.
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
                    // Evidence is collected again from here: only later events decide whether
                    // legacy recovers.
                    self.rules[at].restart(now);
                    self.rules[at].last = answer;
                    self.shared_at = Some(now);
                    found = Some(Finding::Shared(case));
                }
                Answer::TooFewUsers if found.is_none() => found = Some(Finding::TooFewUsers(case)),
                Answer::Pass | Answer::Inconclusive | Answer::TooFewUsers | Answer::NoRefuge => {}
            }
        }
        found
    }

    pub(super) fn examine(
        &mut self,
        at: usize,
        observed: &Observed<'_>,
        recent: PerSide<&Span>,
        now: Mono,
    ) -> (Answer, Option<String>) {
        let rule = &self.rules[at];
        match rule.rule {
            Rule::Health(limit_us) => {
                let down = self
                    .down_since
                    .is_some_and(|since| micros(now.since(since)) >= limit_us);
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
                let needed = Needed::of(&self.population, self.settings.min_users);
                if let Some(remark) = wording::too_few(&summary, &needed) {
                    return (Answer::TooFewUsers, Some(remark));
                }
                let view = self.legacy_since_streak(observed);
                return self.blame(at, view, now);
            }
            _ => {}
        }
        // Evidence is at most its growth since an onset, multiplied by the number of ticks. It does
        // not need to be computed while it is at rest.
        if rule.log_accusation() + LONG < self.log_threshold
            || rule.log_evidence() < self.log_threshold
        {
            self.rules[at].waiting_since = None;
            return (Answer::Pass, None);
        }
        if let Some(remark) = self.leans_on_few(rule) {
            return (Answer::TooFewUsers, Some(remark));
        }
        if self
            .users_progress(rule)
            .is_some_and(|progress| progress < 1.0)
        {
            return (Answer::TooFewUsers, Some(wording::TOO_FEW_USERS.to_owned()));
        }
        // If requests to legacy hang as well, more requests to new must hang.
        let legacy_has_any = rule
            .strongest()
            .is_some_and(|part| part.in_force().excursion().tally.y > 0);
        if legacy_has_any
            && rule
                .versus
                .as_ref()
                .is_some_and(|versus| versus.detector.log_evidence() < self.log_threshold)
        {
            return (Answer::Pass, Some(wording::AS_LEGACY.to_owned()));
        }
        if rule.compares() || self.alone {
            return (Answer::Breach, None);
        }
        let view = legacy_view(rule, recent);
        self.blame(at, view, now)
    }

    /// Returns the progress of the user trials towards a rollback, for rules that require it.
    pub(super) fn users_progress(&self, rule: &RuleState) -> Option<f64> {
        rule.users().next()?;
        Some(
            trials::progress(rule.users(), trials::log_budget(&self.settings), self.alone)
                .clamp(0.0, 1.0),
        )
    }

    /// Decides the outcome of a rule that is certain about new, given how legacy performs.
    pub(super) fn blame(&mut self, at: usize, view: View, now: Mono) -> (Answer, Option<String>) {
        // Among the many evaluations during a long outage, one would find legacy good by chance.
        // While the outage lasts, only comparisons blame new.
        if self.in_shared_cause(now) {
            return (self.of_shared(), None);
        }
        match view {
            View::Good => (Answer::Breach, None),
            View::Bad => (self.of_shared(), None),
            View::Unknown { leans_bad } => {
                let since = *self.rules[at].waiting_since.get_or_insert(now);
                let answer = self.legacy.answer_since(self.streak_since);
                let wait = if answer == Some(false) {
                    LEGACY_WAIT
                } else {
                    self.legacy_wait()
                };
                match (answer, leans_bad) {
                    // A side that answers and has not failed a user is healthy. A side that does
                    // not answer while users fail is not.
                    (Some(true), false) => (Answer::Breach, None),
                    (Some(false), true) => (self.of_shared(), None),
                    _ if now.since(since) < wait => {
                        (Answer::Pass, Some(wording::WAITING.to_owned()))
                    }
                    (_, false) => (Answer::Breach, None),
                    (_, true) => (self.of_shared(), None),
                }
            }
        }
    }

    /// Returns how long to wait for evidence about legacy: no longer than new needs for some more
    /// requests.
    pub(super) fn legacy_wait(&self) -> Duration {
        let (Some((first, before)), Some((last, after))) =
            (self.requests.front(), self.requests.back())
        else {
            return LEGACY_WAIT;
        };
        let rate = (after - before) as f64 / last.since(*first).as_secs_f64().max(1e-3);
        LEGACY_WAIT.min(Duration::from_secs_f64(
            LEGACY_WAIT_REQUESTS / rate.max(1.0),
        ))
    }

    pub(super) fn in_shared_cause(&self, now: Mono) -> bool {
        self.shared_at
            .is_some_and(|at| now.since(at) < SHARED_LASTS)
    }

    /// Returns how legacy has performed since new began to fail without interruption.
    pub(super) fn legacy_since_streak(&self, observed: &Observed<'_>) -> View {
        let counts = &observed.totals.legacy.counts;
        let before = self
            .legacy_at_streak
            .unwrap_or((counts.requests, counts.failed()));
        let (requests, failed) = (counts.requests - before.0, counts.failed() - before.1);
        match (failed, requests.saturating_sub(failed)) {
            _ if self.alone => View::Good,
            (LEGACY_DEAD.., 0) => View::Bad,
            (failed, good) if good >= 2 && good > failed => View::Good,
            (failed, _) => View::Unknown {
                leans_bad: failed > 0,
            },
        }
    }

    pub(super) fn of_shared(&self) -> Answer {
        match self.settings.shared_cause {
            SharedCause::Hold => Answer::SharedCause,
            SharedCause::Rollback => Answer::Breach,
        }
    }

    /// Explains why the evidence depends on a single user or network, or is based on too few.
    /// `None` when the evidence holds.
    pub(super) fn leans_on_few(&self, rule: &RuleState) -> Option<String> {
        let needed = Needed::of(&self.population, self.settings.min_users);
        let part = rule.strongest()?;
        let Excursion { since, tally } = part.in_force().excursion();
        let class = match part.source {
            // A client cannot make a connection to the backend fail.
            Counter::Bad(Class::Failure)
                if tally.connects * 5 >= tally.all_x * 4 && tally.connects > 0 =>
            {
                return None;
            }
            Counter::Bad(class) | Counter::Values(class) => class,
            // The values do not identify their users. The class of requests above legacy's p90
            // does.
            Counter::Means | Counter::WaitedCompared => Class::Slow(1),
            Counter::Waited => {
                let waited = &self.hung.new;
                let places = needed.networks.max(needed.users.min(2)) as u32;
                return (waited.places < places
                    || (needed.without_top_network && waited.top_place > 0.8))
                    .then(|| wording::ONE_PLACE.to_owned());
            }
        };
        let summary = self.hurt.summary(class, since, rule.compares());
        if let Some(remark) = wording::too_few(&summary, &needed) {
            return Some(remark);
        }
        let without = |share: fn(&affected::Summary) -> f64| {
            log_mean(rule.parts.iter().map(|part| {
                let Counter::Bad(class) = part.source else {
                    return part.in_force().log_evidence();
                };
                let share = share(&self.hurt.summary(
                    class,
                    part.in_force().excursion().since,
                    rule.compares(),
                ));
                part.in_force().log_evidence_without(share)
            }))
        };
        if needed.without_top_user && without(|summary| summary.top_user) < self.log_threshold {
            return Some(wording::one_user(&summary));
        }
        (needed.without_top_network && without(|summary| summary.top_network) < self.log_threshold)
            .then(|| wording::one_network(&summary))
    }
}
