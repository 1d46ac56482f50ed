//! The availability of a backend: whether legacy can take users, which must be known before a
//! rollback moves them.
//!
//! There are three sources. The requests of users are one, while there are any. Health checks are
//! another, where the file configures them. The third is a probe of the backend:
//! [`Effect::Ask`](crate::control::plane::Effect::Ask) lets the shell send one check, or make one
//! connection, and [`Availability::answered`] records the result.
//!
//! A good answer to a user within the last second is enough, so a rollback to a legacy that serves
//! users has no waiting time. Otherwise the answer to a probe decides, and only after that a health
//! check.
//!
//! The results that many users receive take precedence over all of these. A backend that fails four
//! of five users, or keeps them waiting, cannot take users, whatever a check or a connection says.

use std::time::Duration;

use crate::time::Mono;

/// How long a good answer to a user, or to a probe, counts.
const FRESH: Duration = Duration::from_secs(1);
/// After this number of failures since the last good answer, that answer no longer counts.
const FAILURES: u64 = 3;
/// How long after a probe the next one is sent. The next one is sent sooner after the first failed
/// probe, which may have been too slow by accident.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_SOON: Duration = Duration::from_millis(250);
/// This number of failed probes in a row is a decisive answer.
const FAILED_ANSWERS: u32 = 2;
/// A probe without an answer has failed after this time, whatever the shell does.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// A backend that answered a user within this time does not need to be probed.
const JUST_NOW: Duration = Duration::from_millis(250);
/// A backend is down after this number of failed probes in a row without a good answer in between.
const DOWN_AFTER: u32 = 3;
/// How long a backend must give no good answer before it counts as down.
const SILENT: Duration = Duration::from_secs(2);

/// The approximate time for which the results of users count.
const FARES: Duration = Duration::from_secs(2);
/// A number of failures that one user cannot cause in that time. The failures of one user count at
/// most four times a second.
const FAILING: f64 = 12.0;
/// A backend counts as failing its users at this number of failures for each good answer.
const FAILURES_PER_GOOD: f64 = 4.0;

/// What is known about one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Availability {
    /// Whether the backend has a server that receives requests.
    has_server: bool,
    /// Whether a health check has passed within the last two intervals.
    passes_checks: bool,
    /// The number of good and failed answers to users since the start.
    seen: (u64, u64),
    /// The time of the last good answer to a user, and the number of failures since then.
    good_at: Option<Mono>,
    failed_since: u64,
    /// The good and failed answers to users over the last seconds. Older answers count less.
    fares: (f64, f64),
    fares_at: Mono,
    failed_at: Option<Mono>,
    asked_at: Option<Mono>,
    is_pending: bool,
    answered: Option<(Mono, bool)>,
    /// The number of good probes in a row, and the number of failed ones.
    good_answers: u32,
    failed_answers: u32,
    /// The time since which all answers have been good.
    alive_since: Option<Mono>,
}

/// Whether a backend can take users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The backend can take users.
    Alive,
    /// The backend cannot take users, as far as is known.
    Dead,
    /// The backend must be probed, or has been probed and has not answered yet.
    Unknown,
}

impl Availability {
    /// Records the counts of user requests since the start, and what the shell knows about the
    /// servers.
    pub fn see(
        &mut self,
        good: u64,
        failed: u64,
        has_server: bool,
        passes_checks: bool,
        now: Mono,
    ) {
        let (good_before, failed_before) = std::mem::replace(&mut self.seen, (good, failed));
        self.has_server = has_server;
        self.passes_checks = passes_checks;
        if good > good_before {
            (self.good_at, self.failed_since) = (Some(now), 0);
            self.alive_since.get_or_insert(now);
        } else {
            self.failed_since += failed.saturating_sub(failed_before);
        }
        if self.is_pending
            && self
                .asked_at
                .is_some_and(|asked| now.since(asked) > ANSWER_WITHIN)
        {
            self.answered(false, now);
        }
        if self.failed_since >= FAILURES || !has_server {
            self.alive_since = None;
        }
    }

    /// Records the results of users since the last call. Each user counts at most four times a
    /// second. A user who gives up or waits for too long counts as a failure.
    pub fn users_fared(&mut self, good: u64, failed: u64, now: Mono) {
        let left = (-now.since(self.fares_at).as_secs_f64() / FARES.as_secs_f64()).exp();
        self.fares = (
            self.fares.0 * left + good as f64,
            self.fares.1 * left + failed as f64,
        );
        self.fares_at = now;
        if failed > 0 {
            self.failed_at = Some(now);
        }
        if self.fails_users(now) {
            self.alive_since = None;
        }
    }

    /// Whether the backend fails four of five users, and several of them.
    pub fn fails_users(&self, now: Mono) -> bool {
        let (good, failed) = self.fares;
        failed >= FAILING
            && failed >= FAILURES_PER_GOOD * good
            && self.failed_at.is_some_and(|at| now.since(at) <= FARES)
    }

    /// Starts from earlier counts without treating them as new events.
    pub fn begin(&mut self, good: u64, failed: u64) {
        self.seen = (good, failed);
    }

    /// Records the answer to a probe.
    pub fn answered(&mut self, is_good: bool, now: Mono) {
        self.is_pending = false;
        self.answered = Some((now, is_good));
        if is_good {
            self.good_answers += 1;
            (self.failed_answers, self.failed_since) = (0, 0);
            self.alive_since.get_or_insert(now);
        } else {
            self.failed_answers += 1;
            self.good_answers = 0;
            self.alive_since = None;
        }
    }

    /// Whether the backend should be probed now. If so, it is recorded as probed.
    pub fn ask(&mut self, now: Mono) -> bool {
        let again = if self.failed_answers == 1 {
            ASK_AGAIN_SOON
        } else {
            ASK_AGAIN
        };
        let is_due =
            !self.is_pending && self.asked_at.is_none_or(|asked| now.since(asked) >= again);
        if is_due {
            (self.is_pending, self.asked_at) = (true, Some(now));
        }
        is_due
    }

    /// Whether a user received a good answer a moment ago.
    pub fn is_serving(&self, now: Mono) -> bool {
        self.is_good_within(JUST_NOW, now)
    }

    fn is_good_within(&self, time: Duration, now: Mono) -> bool {
        let denied_at = self
            .answered
            .filter(|(_, is_good)| !is_good)
            .map(|(at, _)| at);
        self.has_server
            && self.failed_since < FAILURES
            && self.good_at.is_some_and(|at| {
                now.since(at) <= time && denied_at.is_none_or(|denied| denied < at)
            })
    }

    /// Returns what is known about the backend now.
    pub fn word(&self, now: Mono) -> Word {
        if !self.has_server || self.fails_users(now) {
            return Word::Dead;
        }
        if self.is_good_within(FRESH, now) {
            return Word::Alive;
        }
        if self.is_pending {
            return Word::Unknown;
        }
        match self.answered {
            Some((at, true)) if now.since(at) <= FRESH => Word::Alive,
            Some((at, false))
                if now.since(at) <= FRESH && self.failed_answers >= FAILED_ANSWERS =>
            {
                Word::Dead
            }
            Some((at, false)) if now.since(at) <= FRESH => Word::Unknown,
            _ if self.passes_checks => Word::Alive,
            _ => Word::Unknown,
        }
    }

    /// Returns the answer to the last probe, if it was sent after the given moment.
    pub fn answer_since(&self, since: Mono) -> Option<bool> {
        self.answered
            .filter(|(at, _)| {
                *at >= since
                    && self
                        .asked_at
                        .is_some_and(|asked| asked >= since.back(JUST_NOW))
            })
            .map(|(_, is_good)| is_good)
    }

    /// Whether the backend has recovered after it was dead: a user has received a good answer since
    /// then, or two probes in a row were good.
    pub fn is_back_since(&self, dead_at: Mono) -> bool {
        self.has_server
            && (self.good_at.is_some_and(|at| at > dead_at) && self.failed_since < FAILURES
                || self.good_answers >= 2)
    }

    /// Whether the backend should be probed because it has given no good answer for a while.
    pub fn is_silent(&self, since: Mono, now: Mono) -> bool {
        let last_good = self
            .good_at
            .into_iter()
            .chain(
                self.answered
                    .filter(|(_, is_good)| *is_good)
                    .map(|(at, _)| at),
            )
            .chain([since])
            .max();
        let is_failing =
            !self.has_server || self.failed_since >= FAILURES || self.failed_answers > 0;
        is_failing && last_good.is_none_or(|at| now.since(at) >= SILENT) || self.fails_users(now)
    }

    /// Whether the backend is down: it has no server, it fails its users, or probes failed without
    /// a good answer in between.
    pub fn is_down(&self, since: Mono, now: Mono) -> bool {
        self.is_silent(since, now)
            && (!self.has_server || self.failed_answers >= DOWN_AFTER || self.fails_users(now))
    }

    /// Returns how long all answers of the backend have been good.
    pub fn alive_for(&self, now: Mono) -> Duration {
        self.alive_since
            .map_or(Duration::ZERO, |since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_micros(millis * 1_000)
    }

    /// A backend with a server, as of a given moment.
    fn seen(good: u64, failed: u64, millis: u64) -> Availability {
        let mut vital = Availability::default();
        vital.see(good, failed, true, false, at(millis));
        vital
    }

    #[test]
    fn a_good_answer_counts_for_a_second_and_up_to_three_failures() {
        let mut vital = seen(1, 0, 1_000);
        assert_eq!(
            (vital.word(at(1_900)), vital.word(at(2_100))),
            (Word::Alive, Word::Unknown)
        );
        vital.see(1, 2, true, false, at(1_500));
        assert_eq!(vital.word(at(1_500)), Word::Alive);
        vital.see(1, 3, true, false, at(1_600));
        assert_eq!(vital.word(at(1_600)), Word::Unknown);
        vital.see(1, 3, false, false, at(1_700));
        assert_eq!(
            vital.word(at(1_700)),
            Word::Dead,
            "without a server there is nothing to probe"
        );
    }

    #[test]
    fn a_probe_is_sent_once_a_second_and_outranks_a_check() {
        let mut vital = seen(0, 0, 0);
        assert!(vital.ask(at(10)) && !vital.ask(at(20)));
        assert_eq!(vital.word(at(20)), Word::Unknown);
        vital.answered(false, at(30));
        vital.see(0, 0, true, true, at(40));
        assert_eq!(
            vital.word(at(40)),
            Word::Unknown,
            "one answer may be late by accident"
        );
        assert!(!vital.ask(at(200)) && vital.ask(at(260)));
        vital.answered(false, at(270));
        assert_eq!(
            (vital.word(at(270)), vital.word(at(1_300))),
            (Word::Dead, Word::Alive)
        );
        assert!(!vital.ask(at(900)) && vital.ask(at(1_270)));
        vital.answered(true, at(1_280));
        assert_eq!(vital.word(at(1_290)), Word::Alive);
        assert_eq!(
            (vital.answer_since(at(1_270)), vital.answer_since(at(2_000))),
            (Some(true), None)
        );
    }

    #[test]
    fn a_probe_that_the_shell_forgets_has_failed() {
        let mut vital = seen(0, 0, 0);
        assert!(vital.ask(at(10)));
        vital.see(0, 0, true, false, at(600));
        assert!(vital.ask(at(600)));
        vital.see(0, 0, true, false, at(1_200));
        assert_eq!(vital.word(at(1_200)), Word::Dead);
    }

    #[test]
    fn a_backend_failing_four_of_five_users_is_dead_despite_good_probes() {
        let mut vital = seen(5, 0, 0);
        let mut at_millis = 0;
        let mut fare = |vital: &mut Availability, good: u64, failed: u64, ticks: u64| {
            for _ in 0..ticks {
                at_millis += 250;
                vital.users_fared(good, failed, at(at_millis));
                vital.answered(true, at(at_millis));
            }
            (
                vital.word(at(at_millis)),
                vital.is_down(at(0), at(at_millis)),
            )
        };
        assert_eq!(fare(&mut vital, 25, 0, 20), (Word::Alive, false));
        assert_eq!(fare(&mut vital, 0, 25, 20), (Word::Dead, true));
        assert_eq!(
            fare(&mut vital, 25, 25, 20),
            (Word::Alive, false),
            "half of them is better than nothing"
        );
        assert_eq!(fare(&mut vital, 0, 0, 40), (Word::Alive, false));
        assert_eq!(
            fare(&mut vital, 0, 1, 400),
            (Word::Alive, false),
            "that is one user, who asks again and again"
        );
        assert_eq!(fare(&mut vital, 0, 25, 20), (Word::Dead, true));
        assert_eq!(
            fare(&mut vital, 0, 0, 9),
            (Word::Alive, false),
            "no user has failed for two seconds"
        );
    }

    #[test]
    fn a_dead_backend_is_back_after_a_good_user_or_two_good_probes() {
        let mut vital = seen(5, 0, 0);
        assert!(!vital.is_back_since(at(100)));
        vital.answered(true, at(200));
        assert!(!vital.is_back_since(at(100)));
        vital.answered(true, at(1_200));
        assert!(vital.is_back_since(at(100)));
        let mut vital = seen(5, 0, 0);
        vital.see(6, 0, true, false, at(300));
        assert!(vital.is_back_since(at(100)));
    }

    #[test]
    fn a_backend_is_down_after_two_silent_seconds_and_three_failed_probes() {
        let mut vital = seen(5, 0, 0);
        assert!(!vital.is_silent(at(0), at(5_000)), "it was not probed");
        vital.see(5, 3, true, false, at(1_000));
        assert!(vital.is_silent(at(0), at(2_100)) && !vital.is_down(at(0), at(2_100)));
        (0..3).for_each(|question| vital.answered(false, at(2_200 + question * 1_000)));
        assert!(vital.is_down(at(0), at(4_300)));
        assert_eq!(vital.alive_for(at(4_300)), Duration::ZERO);
        vital.see(5, 3, true, false, at(5_000));
        vital.answered(true, at(5_100));
        vital.see(6, 3, true, false, at(5_200));
        assert!(
            !vital.is_down(at(0), at(5_300))
                && vital.alive_for(at(9_100)) == Duration::from_secs(4)
        );
    }
}
