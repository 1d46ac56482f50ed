//! Whether a backend can take users: what a rollback has to know of legacy before it moves anybody.
//!
//! Three things tell. Users' requests do, while there are any. Health checks do, where the file has
//! them. And the backend can be asked: [`Effect::Ask`](crate::control::plane::Effect::Ask) lets the shell
//! send one check, or make one connection, and [`Availability::answered`] takes the result.
//!
//! A good answer to a user within the last second is enough, so a rollback onto a legacy that
//! serves users waits for nothing. Otherwise an answer to a question decides, and only then a
//! check.
//!
//! Above all stands how many users fare: a backend that fails four of five of them, or keeps them
//! waiting, can take nobody, whatever a check or a connection says.

use std::time::Duration;

use crate::time::Mono;

/// A good answer to a user, or to a question, counts for so long.
const FRESH: Duration = Duration::from_secs(1);
/// After so many failures since its last good answer, that answer says nothing any longer.
const FAILURES: u64 = 3;
/// A question is asked again after this time; sooner after the first one that failed, which may
/// have been too slow by accident.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_SOON: Duration = Duration::from_millis(250);
/// So many failed questions in a row are a word.
const FAILED_ANSWERS: u32 = 2;
/// A question without an answer has failed after this time, whatever the shell does.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Whoever answered a user within this time need not be asked.
const JUST_NOW: Duration = Duration::from_millis(250);
/// So many failed questions in a row, and nothing good meanwhile, and the backend is down.
const DOWN_AFTER: u32 = 3;
/// For so long nothing good may come before a backend is down.
const SILENT: Duration = Duration::from_secs(2);

/// What users got counts for about this long.
const FARES: Duration = Duration::from_secs(2);
/// More failures than one user can bring in that time, whose failures count at most four times a
/// second.
const FAILING: f64 = 12.0;
/// A backend fails its users with so many failures for each good answer.
const FAILURES_PER_GOOD: f64 = 4.0;

/// What is known of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Availability {
    /// Whether it has a server that requests are sent to.
    has_server: bool,
    /// Whether a health check has passed within the last two intervals.
    passes_checks: bool,
    /// Good and failed answers to users since the start.
    seen: (u64, u64),
    /// When a user got a good answer last, and how many failed since.
    good_at: Option<Mono>,
    failed_since: u64,
    /// Good and failed answers to users of the last seconds, those longer ago counting less.
    fares: (f64, f64),
    fares_at: Mono,
    failed_at: Option<Mono>,
    asked_at: Option<Mono>,
    is_pending: bool,
    answered: Option<(Mono, bool)>,
    /// Good questions in a row, and failed ones.
    good_answers: u32,
    failed_answers: u32,
    /// Since when there has been nothing but good.
    alive_since: Option<Mono>,
}

/// Whether a backend can take users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It can.
    Alive,
    /// It cannot, as far as anybody can tell.
    Dead,
    /// It has to be asked, or has been and has not answered yet.
    Unknown,
}

impl Availability {
    /// Takes what was counted of requests of users since the start, and what the shell knows of its
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

    /// Takes how users fared since the last call: each user counts at most four times a second, and
    /// one who gives up or waits for too long has got a failure.
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

    /// Whether it fails four of five users, and several of them.
    pub fn fails_users(&self, now: Mono) -> bool {
        let (good, failed) = self.fares;
        failed >= FAILING
            && failed >= FAILURES_PER_GOOD * good
            && self.failed_at.is_some_and(|at| now.since(at) <= FARES)
    }

    /// Begins with what was counted before, without taking it for something that happens now.
    pub fn begin(&mut self, good: u64, failed: u64) {
        self.seen = (good, failed);
    }

    /// Takes the answer to a question.
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

    /// Whether it should be asked now; then it counts as asked.
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

    /// Whether a user got a good answer a moment ago.
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

    /// What is known of it now.
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

    /// The answer to the last question, if it was put after a moment.
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

    /// Whether it is back after it was dead: a user has got a good answer since then, or two
    /// questions in a row were good.
    pub fn is_back_since(&self, dead_at: Mono) -> bool {
        self.has_server
            && (self.good_at.is_some_and(|at| at > dead_at) && self.failed_since < FAILURES
                || self.good_answers >= 2)
    }

    /// Whether it should be asked because nothing good has come of it for a while.
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

    /// Whether it is down: it has no server, it fails its users, or questions failed and nothing
    /// good came meanwhile.
    pub fn is_down(&self, since: Mono, now: Mono) -> bool {
        self.is_silent(since, now)
            && (!self.has_server || self.failed_answers >= DOWN_AFTER || self.fails_users(now))
    }

    /// For how long nothing but good has come of it.
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

    /// A backend with a server, as of a moment.
    fn seen(good: u64, failed: u64, millis: u64) -> Availability {
        let mut vital = Availability::default();
        vital.see(good, failed, true, false, at(millis));
        vital
    }

    #[test]
    fn a_good_answer_to_a_user_counts_for_a_second_and_not_beyond_three_failures() {
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
            "without a server there is nobody to ask"
        );
    }

    #[test]
    fn a_question_is_asked_once_a_second_and_its_answer_stands_above_a_check() {
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
    fn a_question_that_the_shell_forgets_has_failed() {
        let mut vital = seen(0, 0, 0);
        assert!(vital.ask(at(10)));
        vital.see(0, 0, true, false, at(600));
        assert!(vital.ask(at(600)));
        vital.see(0, 0, true, false, at(1_200));
        assert_eq!(vital.word(at(1_200)), Word::Dead);
    }

    #[test]
    fn a_backend_that_fails_four_of_five_users_can_take_nobody_whatever_it_says_when_asked() {
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
            "nobody has failed for two seconds"
        );
    }

    #[test]
    fn who_was_dead_is_back_after_a_user_or_two_questions() {
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
    fn a_backend_is_down_after_two_silent_seconds_and_three_failed_questions() {
        let mut vital = seen(5, 0, 0);
        assert!(
            !vital.is_silent(at(0), at(5_000)),
            "nobody has asked it anything"
        );
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
