//! The definition of when new counts as worse: the settings of a guard, its rules, and the plain
//! judging of mode `threshold`. The sequential judging is in [`crate::guard::judge`].
//!
//! Mode `threshold` is the plain rule: over `window`, with at least `min_requests` on new, strictly
//! above the limit. It is exact at its limits. Counts are compared as integers. A latency limit is
//! judged by how many requests were slower than it ("p99 above 800 ms" is "more than 1 % of
//! requests above 800 ms"), never by a rounded quantile. Only the rules that the file names apply.
//!
//! The limitation of this mode is documented rather than hidden: it has no error control. Short
//! windows and small samples roll back a healthy backend by chance.

pub mod availability;
pub mod detector;
pub mod judge;
mod rule;
mod settings;
mod threshold;
mod wording;

pub use rule::{COMPARED_POINT, LatencyPoint, MIN_COMPARED_EVENTS, Rule, SharedCause};
pub use settings::{GuardSettings, Mode};
pub use threshold::{Guard, Judged};
pub use wording::{millis, seconds, share};

/// The present verdict of one rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The rule.
    pub rule: Rule,
    /// The answer of the rule.
    pub answer: Answer,
    /// The numbers behind the answer, in one sentence.
    pub sentence: String,
    /// The decimal logarithm of the evidence that new is worse, for rules that collect evidence.
    /// `None` for others.
    pub evidence_log10: Option<f64>,
    /// The part of the evidence that a rollback needs, `0..=1` on the scale of logarithms, for
    /// rules that collect evidence. It is 0 while nothing is wrong.
    pub progress: Option<f64>,
    /// The progress of users as trials, `0..=1`, for rules that need enough different users.
    pub users_progress: Option<f64>,
}

/// The answer of a rule to whether new is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// New is within the limit.
    Pass,
    /// New is beyond the limit.
    Breach,
    /// There are too few requests to decide.
    Inconclusive,
    /// New is beyond the limit, and so is legacy: neither side is to blame in particular.
    SharedCause,
    /// New is beyond the limit, but too few users, networks or clients show it.
    TooFewUsers,
    /// New is beyond the limit, but legacy does not answer: users are not moved.
    NoRefuge,
}

impl Answer {
    /// Returns the name used in `status` and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Breach => "breach",
            Self::Inconclusive => "inconclusive",
            Self::SharedCause => "shared_cause",
            Self::TooFewUsers => "held",
            Self::NoRefuge => "no_refuge",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PerSide;
    use crate::Rate;
    use crate::Ratio;
    use crate::Span;
    use crate::stats::outcome::{Ending, FailureKind, Outcome};
    use crate::stats::window::{Totals, Window};
    use crate::time::Mono;
    use std::time::Duration;

    /// Returns a span of `total` requests of which `failed` failed and `client_errors` were 4xx,
    /// all at `latency_us`.
    fn span(total: u64, failed: u64, client_errors: u64, latency_us: u64) -> Span {
        let mut totals = Totals::default();
        let mut window = Window::new(Duration::from_secs(10));
        window.tick(Mono::default(), &totals);
        for i in 0..total {
            let outcome = if i < failed {
                Outcome::Failure(FailureKind::Status)
            } else if i < failed + client_errors {
                Outcome::ClientError
            } else {
                Outcome::Success
            };
            totals.record(
                &Ending {
                    outcome,
                    status: None,
                    latency_us: Some(latency_us),
                    evidence: crate::stats::outcome::Evidence::Compared,
                },
                crate::stats::users::Counted::default(),
            );
        }
        window.tick(Mono::from_micros(1), &totals);
        window.span().clone()
    }

    fn settings(rule: Rule) -> GuardSettings {
        GuardSettings {
            mode: Mode::Threshold,
            min_requests: 50,
            window: Duration::from_secs(10),
            rules: vec![rule],
            ..GuardSettings::default()
        }
    }

    fn check(rule: Rule, legacy: &Span, new: &Span, answer: Answer) -> String {
        let settings = settings(rule);
        let verdict = Guard::new(&settings)
            .verdicts(Judged::of(PerSide { legacy, new }))
            .remove(0);
        assert_eq!(verdict.answer, answer, "{}", verdict.sentence);
        assert_eq!(
            Guard::new(&settings)
                .breach(Judged::of(PerSide { legacy, new }))
                .is_some(),
            answer == Answer::Breach
        );
        verdict.sentence
    }

    fn ratio(text: &str) -> Ratio {
        Ratio::parse(text).expect("a ratio")
    }

    #[test]
    fn an_error_rate_at_the_limit_passes_and_one_more_breaches() {
        let rule = Rule::ErrorsMax(Rate::from_ppm(10_000).expect("a rate"));
        let legacy = span(1000, 0, 0, 10);
        check(rule, &legacy, &span(200, 2, 0, 10), Answer::Pass);
        let sentence = check(rule, &legacy, &span(200, 3, 0, 10), Answer::Breach);
        assert_eq!(
            sentence,
            "new failed 3 of 200 requests (1.5 %), limit 1 %; legacy 0 of 1000 (0 %), in the last \
             10 s"
        );
    }

    #[test]
    fn fewer_requests_than_the_minimum_are_inconclusive() {
        let rule = Rule::ErrorsMax(Rate::from_ppm(10_000).expect("a rate"));
        let sentence = check(
            rule,
            &span(0, 0, 0, 1),
            &span(49, 49, 0, 10),
            Answer::Inconclusive,
        );
        assert_eq!(
            sentence,
            "not enough data: 49 of 50 requests on new in the last 10 s"
        );
        check(
            rule,
            &span(0, 0, 0, 1),
            &span(50, 50, 0, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn no_requests_at_all_never_breach_even_with_a_minimum_of_zero() {
        let settings = GuardSettings {
            min_requests: 0,
            ..settings(Rule::ErrorsMax(Rate::from_ppm(0).expect("a rate")))
        };
        let nothing = span(0, 0, 0, 1);
        assert_eq!(
            Guard::new(&settings).breach(Judged::of(PerSide {
                legacy: &nothing,
                new: &nothing
            })),
            None
        );
    }

    #[test]
    fn a_comparison_needs_both_sides() {
        let rule = Rule::ErrorsVsLegacy(ratio("2"));
        check(
            rule,
            &span(49, 0, 0, 10),
            &span(500, 500, 0, 10),
            Answer::Inconclusive,
        );
        check(
            rule,
            &span(100, 5, 0, 10),
            &span(100, 10, 0, 10),
            Answer::Pass,
        );
        check(
            rule,
            &span(100, 5, 0, 10),
            &span(100, 11, 0, 10),
            Answer::Breach,
        );
        check(
            Rule::ClientErrorsVsLegacy(ratio("2")),
            &span(100, 0, 5, 10),
            &span(100, 0, 11, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn a_handful_of_deliberate_requests_does_not_decide_a_comparison() {
        let rule = Rule::ClientErrorsVsLegacy(ratio("2"));
        check(
            rule,
            &span(500, 0, 0, 10),
            &span(500, 0, MIN_COMPARED_EVENTS - 1, 10),
            Answer::Pass,
        );
        check(
            rule,
            &span(500, 0, 0, 10),
            &span(500, 0, MIN_COMPARED_EVENTS, 10),
            Answer::Breach,
        );
    }

    #[test]
    fn a_latency_exactly_at_its_limit_passes() {
        for point in [
            LatencyPoint::P50,
            LatencyPoint::P95,
            LatencyPoint::P99,
            LatencyPoint::Mean,
        ] {
            check(
                Rule::Latency(point, 800_000),
                &span(0, 0, 0, 1),
                &span(100, 0, 0, 800_000),
                Answer::Pass,
            );
            check(
                Rule::Latency(point, 800_000),
                &span(0, 0, 0, 1),
                &span(100, 0, 0, 810_000),
                Answer::Breach,
            );
        }
    }

    #[test]
    fn latency_is_compared_with_legacy_over_the_same_seconds() {
        let rule = Rule::LatencyVsLegacy(ratio("1.5"));
        check(
            rule,
            &span(100, 0, 0, 100_000),
            &span(100, 0, 0, 149_000),
            Answer::Pass,
        );
        let sentence = check(
            rule,
            &span(100, 0, 0, 100_000),
            &span(100, 0, 0, 160_000),
            Answer::Breach,
        );
        assert_eq!(
            sentence,
            "new's p95 is 160 ms over 100 requests, limit 1.5 times legacy's 100 ms over 100, in \
             the last 10 s"
        );
    }

    #[test]
    fn a_guard_that_is_off_has_no_verdicts() {
        let settings = GuardSettings {
            mode: Mode::Off,
            ..GuardSettings::default()
        };
        let (legacy, new) = (span(1000, 0, 0, 1), span(1000, 1000, 0, 1));
        assert_eq!(
            Guard::new(&settings).breach(Judged::of(PerSide {
                legacy: &legacy,
                new: &new
            })),
            None
        );
        assert!(
            Guard::new(&settings)
                .verdicts(Judged::of(PerSide {
                    legacy: &legacy,
                    new: &new
                }))
                .is_empty()
        );
    }
}
