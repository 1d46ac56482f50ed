//! Observation after a rollback by the guard: whether legacy carries the users it received.
//!
//! For one minute the errors and latency of legacy are compared with its own values before the
//! rollback, and with those of new. While the latch holds, a legacy that does not answer at all is
//! probed again and again. Users move to new meanwhile if new answers. The same applies to a legacy
//! that answers but fails four of five users. If new fails them as well, they go back. Each time
//! the wait before users move again doubles, so that users are not moved back and forth without
//! end.

use std::time::Duration;

use crate::control::rollout::{Judgement, Spilled};
use crate::guard::availability::Availability;
use crate::guard::{millis, seconds, share};
use crate::side::{PerSide, Side};
use crate::stats::histogram::lowest_of;
use crate::stats::window::{Counts, Span};
use crate::time::Mono;

/// How long after a rollback legacy is compared with its own past.
const WATCHED: Duration = Duration::from_secs(60);
/// Legacy counts as worse at this multiple of its own past value, if it is also worse than new.
const TIMES: f64 = 2.0;
/// The fraction of requests that are slower than a p95.
const ABOVE_P95: f64 = 0.05;
/// The logarithm of a likelihood ratio of twenty to one.
const LOG_RATIO: f64 = 3.0;
/// Fewer failures than this are attributed to chance.
const MIN_BAD: u64 = 5;
/// A failure rate below this is not attributed to overload.
const MIN_RATE: f64 = 0.01;
/// How long legacy must be healthy before users go back to it.
const BACK_AFTER: Duration = Duration::from_secs(10);
/// How many times the wait is doubled at most: up to about five minutes.
const MAX_DOUBLED: u32 = 5;

/// What is known about both sides since a rollback.
#[derive(Clone, Debug)]
pub(crate) struct Aftermath {
    since: Mono,
    before: PerSide<Before>,
    failed: u64,
    requests: u64,
    slow: u64,
    answers: u64,
    is_said: bool,
    is_spilled: bool,
    /// How often users were spilled to new.
    spills: u32,
    /// The time before which users are not spilled again.
    stays_until: Option<Mono>,
    new: Availability,
}

/// The state of one side before the rollback.
#[derive(Clone, Copy, Debug)]
struct Before {
    errors: f64,
    p95_us: Option<u64>,
}

impl Before {
    fn of(span: &Span) -> Self {
        let counts = &span.counts;
        Self {
            errors: counts.failed() as f64 / counts.requests.max(1) as f64,
            p95_us: span.latencies.quantile(0.95),
        }
    }
}

impl Aftermath {
    /// Creates the state for a rollback that happens now, after the given last minute.
    pub(crate) fn new(recent: PerSide<&Span>, now: Mono) -> Self {
        let before = recent.map(|span| Before::of(span));
        Self {
            since: now,
            before,
            failed: 0,
            requests: 0,
            slow: 0,
            answers: 0,
            is_said: false,
            is_spilled: false,
            spills: 0,
            stays_until: None,
            new: Availability::default(),
        }
    }

    /// Creates the state for a rollback by another process, or by the predecessor. The earlier
    /// counts of both sides are not known here.
    pub(crate) fn restored(now: Mono) -> Self {
        let nothing = Span::default();
        Self {
            is_said: true,
            ..Self::new(
                PerSide {
                    legacy: &nothing,
                    new: &nothing,
                },
                now,
            )
        }
    }

    /// Whether users were moved to new because legacy does not answer or fails them.
    pub(crate) fn is_spilled(&self) -> bool {
        self.is_spilled
    }

    /// Records the answer of new to the probe whether it can take users.
    pub(crate) fn new_answered(&mut self, is_good: bool, now: Mono) {
        self.new.answered(is_good, now);
    }

    /// Returns how long users stay where they are before they are moved again.
    fn wait(&self) -> Duration {
        BACK_AFTER * 2u32.pow(self.spills.saturating_sub(1).min(MAX_DOUBLED))
    }

    /// Records the counts of both sides for one tick, and the latencies of legacy.
    pub(crate) fn watch(
        &mut self,
        legacy: &mut Availability,
        counts: PerSide<&Counts>,
        latencies: &[(u16, u64)],
        now: Mono,
    ) -> Vec<Judgement> {
        let mut judgements: Vec<Judgement> = self
            .carries(counts.legacy, latencies, now)
            .into_iter()
            .collect();
        let (good, bad) = counts.new.users_fared();
        self.new.users_fared(good, bad, now);
        if self.is_spilled {
            if self.new.fails_users(now) {
                self.is_spilled = false;
                self.stays_until = Some(now.forward(self.wait()));
                judgements.push(Judgement::Spill(Spilled::Failed));
            } else if legacy.alive_for(now) >= self.wait() {
                self.is_spilled = false;
                judgements.push(Judgement::Spill(Spilled::Back));
            } else if legacy.ask(now) {
                judgements.push(Judgement::Ask(Side::Legacy));
            }
            return judgements;
        }
        if !legacy.is_silent(self.since, now) || self.stays_until.is_some_and(|until| now < until) {
            return judgements;
        }
        if legacy.ask(now) {
            judgements.push(Judgement::Ask(Side::Legacy));
        }
        if legacy.is_down(self.since, now) {
            let silent_since = now.back(Duration::from_secs(1));
            if self.new.answer_since(silent_since) == Some(true) {
                self.is_spilled = true;
                self.spills += 1;
                judgements.push(Judgement::Spill(Spilled::ToNew));
            } else if self.new.ask(now) {
                judgements.push(Judgement::Ask(Side::New));
            }
        }
        judgements
    }

    /// Reports once if legacy has become worse than it was and worse than new.
    fn carries(
        &mut self,
        counts: &Counts,
        latencies: &[(u16, u64)],
        now: Mono,
    ) -> Option<Judgement> {
        let after = now.since(self.since);
        if self.is_said || after > WATCHED {
            return None;
        }
        let PerSide { legacy, new } = self.before;
        self.requests += counts.requests;
        self.failed += counts.failed();
        let after = seconds(Duration::from_secs(after.as_secs().max(1)));
        let limit = (TIMES * legacy.errors).max(new.errors).max(MIN_RATE);
        if is_above(self.failed, self.requests, limit) {
            self.is_said = true;
            let percent = |rate: f64| format!("{} %", (rate * 1e3).round() / 10.0);
            let of = format!(
                "{} of {} requests ({})",
                self.failed,
                self.requests,
                share(self.failed, self.requests)
            );
            return Some(Judgement::Overloaded(format!(
                "legacy failed {of} in the {after} since the rollback, {} before it; new failed {}",
                percent(legacy.errors),
                percent(new.errors)
            )));
        }
        let p95_us = legacy.p95_us?;
        let limit_us = ((TIMES * p95_us as f64) as u64).max(new.p95_us.unwrap_or_default());
        for &(index, count) in latencies {
            self.answers += count;
            self.slow += if lowest_of(usize::from(index)) > limit_us {
                count
            } else {
                0
            };
        }
        if !is_above(self.slow, self.answers, TIMES * ABOVE_P95) {
            return None;
        }
        self.is_said = true;
        let of = format!(
            "{} of {} requests ({})",
            self.slow,
            self.answers,
            share(self.slow, self.answers)
        );
        let new_p95 = new.p95_us.map_or_else(|| "unknown".to_owned(), millis);
        Some(Judgement::Overloaded(format!(
            "legacy took more than {} for {of} in the {after} since the rollback; its p95 was {} \
             before it, new's {new_p95}",
            millis(limit_us),
            millis(p95_us)
        )))
    }
}

/// Whether a count of bad events exceeds a limit by more than chance, judged by the likelihood
/// ratio.
fn is_above(bad: u64, of: u64, limit: f64) -> bool {
    let rate = (bad as f64 / of.max(1) as f64).min(0.999);
    if bad < MIN_BAD || rate <= limit {
        return false;
    }
    let (x, n) = (bad as f64, of.max(bad) as f64);
    x * (rate / limit).ln() + (n - x) * ((1.0 - rate) / (1.0 - limit).max(1e-9)).ln() >= LOG_RATIO
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::outcome::FailureKind;
    use crate::stats::users::Class;
    use crate::stats::window::Totals;

    fn at(seconds: u64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    fn span(requests: u64, failed: u64, latency_us: u64) -> Span {
        let mut totals = Totals::default();
        totals.counts.requests = requests;
        totals.counts.failures[FailureKind::Status.index()] = failed;
        (0..requests).for_each(|_| totals.latencies.record(latency_us));
        Span {
            counts: totals.counts,
            latencies: totals.latencies,
            covers: Duration::from_secs(60),
        }
    }

    fn names(judgements: &[Judgement]) -> Vec<&'static str> {
        judgements
            .iter()
            .map(|judgement| match judgement {
                Judgement::Ask(Side::Legacy) => "ask legacy",
                Judgement::Ask(Side::New) => "ask new",
                Judgement::Spill(Spilled::ToNew) => "spilled",
                Judgement::Spill(Spilled::Back) => "back",
                Judgement::Overloaded(_) => "overloaded",
                _ => "else",
            })
            .collect()
    }

    #[test]
    fn a_legacy_that_fails_more_than_new_did_is_reported_once() {
        let (legacy, new) = (span(10_000, 10, 5_000), span(500, 25, 5_000));
        let mut aftermath = Aftermath::new(
            PerSide {
                legacy: &legacy,
                new: &new,
            },
            at(100),
        );
        let mut vital = Availability::default();
        vital.see(10, 0, true, false, at(100));
        assert!(
            aftermath
                .watch(
                    &mut vital,
                    PerSide {
                        legacy: &span(500, 20, 5_000).counts,
                        new: &Counts::default()
                    },
                    &[],
                    at(101)
                )
                .is_empty(),
            "no more than new failed"
        );
        let said = aftermath.watch(
            &mut vital,
            PerSide {
                legacy: &span(500, 300, 5_000).counts,
                new: &Counts::default(),
            },
            &[],
            at(102),
        );
        let [Judgement::Overloaded(sentence)] = &said[..] else {
            panic!("told: {:?}", names(&said))
        };
        assert_eq!(
            sentence,
            "legacy failed 320 of 1000 requests (32 %) in the 2 s since the rollback, 0.1 % \
             before it; new failed 5 %"
        );
        assert!(
            aftermath
                .watch(
                    &mut vital,
                    PerSide {
                        legacy: &span(500, 300, 5_000).counts,
                        new: &Counts::default()
                    },
                    &[],
                    at(103)
                )
                .is_empty()
        );
    }

    #[test]
    fn a_legacy_that_becomes_slower_than_new_was_is_reported() {
        let (legacy, new) = (span(10_000, 0, 5_000), span(500, 0, 8_000));
        let mut aftermath = Aftermath::new(
            PerSide {
                legacy: &legacy,
                new: &new,
            },
            at(100),
        );
        let mut vital = Availability::default();
        vital.see(10, 0, true, false, at(100));
        let tick =
            |latency_us: u64| [(crate::stats::histogram::index_of(latency_us) as u16, 200u64)];
        assert!(
            aftermath
                .watch(
                    &mut vital,
                    PerSide {
                        legacy: &span(200, 0, 1).counts,
                        new: &Counts::default()
                    },
                    &tick(9_000),
                    at(101)
                )
                .is_empty()
        );
        assert_eq!(
            names(&aftermath.watch(
                &mut vital,
                PerSide {
                    legacy: &span(200, 0, 1).counts,
                    new: &Counts::default()
                },
                &tick(40_000),
                at(102)
            )),
            ["overloaded"]
        );
    }

    #[test]
    fn a_silent_legacy_spills_to_new_until_it_recovers() {
        let calm = span(1_000, 0, 5_000);
        let mut aftermath = Aftermath::new(
            PerSide {
                legacy: &calm,
                new: &calm,
            },
            at(100),
        );
        let (mut vital, none) = (Availability::default(), Counts::default());
        vital.see(10, 0, true, false, at(100));
        assert!(
            aftermath
                .watch(
                    &mut vital,
                    PerSide {
                        legacy: &none,
                        new: &none
                    },
                    &[],
                    at(101)
                )
                .is_empty(),
            "no probe is requested"
        );
        vital.see(10, 5, true, false, at(101));
        let mut seen = Vec::new();
        for second in 102..=107 {
            let judgements = aftermath.watch(
                &mut vital,
                PerSide {
                    legacy: &none,
                    new: &none,
                },
                &[],
                at(second),
            );
            seen.extend(names(&judgements));
            for judgement in judgements {
                match judgement {
                    Judgement::Ask(Side::Legacy) => vital.answered(false, at(second)),
                    Judgement::Ask(Side::New) => aftermath.new_answered(true, at(second)),
                    _ => {}
                }
            }
        }
        assert_eq!(
            seen,
            [
                "ask legacy",
                "ask legacy",
                "ask legacy",
                "ask legacy",
                "ask new",
                "ask legacy",
                "spilled",
                "ask legacy"
            ]
        );
        assert!(aftermath.is_spilled());
        let mut back = None;
        for second in 108..140 {
            let judgements = aftermath.watch(
                &mut vital,
                PerSide {
                    legacy: &none,
                    new: &none,
                },
                &[],
                at(second),
            );
            if names(&judgements).contains(&"back") {
                back = Some(second);
                break;
            }
            vital.see(10, 5, true, false, at(second));
            vital.answered(true, at(second));
            vital.see(10 + second, 5, true, false, at(second));
        }
        assert_eq!(back, Some(118));
    }

    /// The results that users received on one side in a tick.
    fn tick(good: u64, failed: u64) -> Counts {
        let mut counts = span(good + failed, failed, 1).counts;
        counts.appearances = good + failed;
        counts.counted[Class::Failure.index()] = failed;
        counts
    }

    #[test]
    fn a_failing_legacy_spills_to_new_and_each_wait_doubles() {
        let calm = span(1_000, 0, 5_000);
        let mut aftermath = Aftermath::new(
            PerSide {
                legacy: &calm,
                new: &calm,
            },
            at(100),
        );
        let (mut vital, none) = (Availability::default(), Counts::default());
        vital.see(10, 0, true, false, at(100));
        let mut moved = Vec::new();
        for quarter in 400..1_000 {
            let now = Mono::from_micros(quarter * 250_000);
            let is_on_new = aftermath.is_spilled();
            let (legacy, new) = if is_on_new {
                (none, tick(25, 1))
            } else {
                (tick(0, 25), none)
            };
            vital.users_fared(0, legacy.counted[Class::Failure.index()], now);
            // The probe asks only for a connection, and legacy accepts it.
            for judgement in aftermath.watch(
                &mut vital,
                PerSide {
                    legacy: &legacy,
                    new: &new,
                },
                &[],
                now,
            ) {
                match judgement {
                    Judgement::Ask(Side::Legacy) => vital.answered(true, now),
                    Judgement::Ask(Side::New) => aftermath.new_answered(true, now),
                    Judgement::Spill(_) => {
                        moved.push(now.since(at(100)).as_secs());
                    }
                    _ => {}
                }
            }
        }
        let away: Vec<u64> = moved
            .chunks_exact(2)
            .map(|pair| pair[1] - pair[0])
            .collect();
        assert!(
            matches!(away[..], [10..=13, 20..=23, 40..=43, ..]),
            "{away:?} of {moved:?}"
        );
        assert!(moved[0] <= 2, "{moved:?}");
    }

    #[test]
    fn users_whom_new_also_fails_go_back_and_stay_longer_each_time() {
        let calm = span(1_000, 0, 5_000);
        let mut aftermath = Aftermath::new(
            PerSide {
                legacy: &calm,
                new: &calm,
            },
            at(100),
        );
        let (mut vital, none) = (Availability::default(), Counts::default());
        vital.see(10, 0, true, false, at(100));
        let mut tries = 0;
        for quarter in 400..1_200 {
            let now = Mono::from_micros(quarter * 250_000);
            let (legacy, new) = if aftermath.is_spilled() {
                (none, tick(0, 25))
            } else {
                (tick(0, 25), none)
            };
            vital.users_fared(0, legacy.counted[Class::Failure.index()], now);
            for judgement in aftermath.watch(
                &mut vital,
                PerSide {
                    legacy: &legacy,
                    new: &new,
                },
                &[],
                now,
            ) {
                match judgement {
                    Judgement::Ask(Side::Legacy) => vital.answered(true, now),
                    Judgement::Ask(Side::New) => aftermath.new_answered(true, now),
                    Judgement::Spill(Spilled::Failed) => tries += 1,
                    _ => {}
                }
            }
        }
        assert!((4..=5).contains(&tries), "{tries} in 200 seconds");
    }
}
