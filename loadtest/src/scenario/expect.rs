//! The expectations of a scenario, and whether they hold.
//!
//! This is a pure function of the measurements. Three things are always expected: every user stays
//! on one side, sides match the hash, and steps succeed. Limits on numbers apply only if the file
//! has them, because a number missed on a busy machine says little about a proxy.

use crate::report::readable;
use crate::scenario::outcome::RunOutcome;
use crate::values;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The expectations of a scenario.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The highest number of requests that may fail.
    pub failed: Option<u64>,
    /// The highest number of bad answers after a fault.
    pub bad_answers: Option<u64>,
    /// The highest number of users with a bad answer.
    pub users_hurt: Option<u64>,
    /// The longest time from a fault to the last request on new.
    #[serde(deserialize_with = "values::some_duration")]
    pub time_to_zero: Option<Duration>,
    /// Whether the share of each segment has to agree with the hash: the expected share must lie
    /// within the 99.9 % interval.
    pub share: bool,
    /// The highest 99th percentile of latency.
    #[serde(deserialize_with = "values::some_duration")]
    pub p99: Option<Duration>,
    /// The comparison of the 99th percentile of one part with that of another part.
    pub p99_ratio: Option<Ratio>,
    /// The highest number of WebSockets that may end before the kit closes them.
    pub websockets_lost: Option<u64>,
    /// How much more memory the proxy may hold at the end than after a tenth of the run, in MiB.
    pub memory_growth_mib: Option<f64>,
    /// The lowest acceptable value of the highest rate without failures and within the latency
    /// limit.
    pub knee_at_least: Option<f64>,
    /// The bottleneck that has to be found.
    pub bottleneck: Option<crate::capacity::Bottleneck>,
}

/// The comparison of the 99th percentile of one part with that of another part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// The part that is compared.
    pub part: String,
    /// The part that it is compared with.
    pub to: String,
    /// The highest ratio. If it is absent, the ratio is only reported.
    pub most: Option<f64>,
    /// The highest ratio of the median seconds of the two parts. It remains meaningful if the
    /// machine occasionally had other work.
    pub most_typical: Option<f64>,
}

/// One expectation and whether it holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The name of the expectation.
    pub name: &'static str,
    /// Whether the expectation holds. `None` if the number is only reported.
    pub holds: Option<bool>,
    /// The numbers, in a sentence.
    pub sentence: String,
    /// Whether the numbers of the run are doubtful.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub warns: bool,
}

impl Expect {
    /// Returns the names of the parts that are mentioned.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.p99_ratio
            .iter()
            .flat_map(|ratio| [ratio.part.as_str(), ratio.to.as_str()])
    }

    /// Returns the verdict on each expectation for a run.
    pub fn judge(&self, run: &RunOutcome) -> Vec<Verdict> {
        let report = &run.report;
        let mut verdicts = Vec::new();
        let mut say = |name, holds, sentence| {
            verdicts.push(Verdict {
                name,
                holds,
                sentence,
                warns: false,
            });
        };

        let found = &report.stickiness;
        let sentence = found.violation().unwrap_or_else(|| {
            format!(
                "no user changed sides but by a step: {} users, {} of them seen again, {} \
                 switches, all explained",
                found.users_seen, found.users_seen_again, found.switches
            )
        });
        say(
            "sticky",
            Some(found.unexplained == 0 && report.requests.finished > 0),
            sentence,
        );
        if let Some(hash) = &report.hash {
            let sentence = hash.violation().unwrap_or_else(|| {
                format!("{} answers came from the side the hash says", hash.checked)
            });
            say("hash", Some(hash.wrong_answers == 0), sentence);
        }
        let failed: Vec<String> = run
            .steps
            .iter()
            .filter_map(|step| {
                Some(format!(
                    "{} at {:.1} s: {}",
                    step.name,
                    step.begin_ms / 1e3,
                    step.failed.as_ref()?
                ))
            })
            .collect();
        if !run.steps.is_empty() {
            let sentence = if failed.is_empty() {
                if run.steps.len() == 1 {
                    "the step was done".to_owned()
                } else {
                    format!("all {} steps were done", run.steps.len())
                }
            } else {
                format!(
                    "{} of {} steps failed: {}",
                    failed.len(),
                    run.steps.len(),
                    failed.join("; ")
                )
            };
            say("steps", Some(failed.is_empty()), sentence);
        }
        if self.share {
            let outside = report
                .segments
                .iter()
                .filter(|one| one.requests.expected_in_interval == Some(false))
                .count();
            let sentence = format!(
                "in {} of {} segments the expected share is within the 99.9 % interval",
                report.segments.len() - outside,
                report.segments.len()
            );
            say("share", Some(outside == 0), sentence);
        }
        let failures = &report.failures;
        let kinds = failures.kinds();
        let sentence = format!(
            "{} of {} requests failed{}{kinds}",
            failures.requests,
            report.requests.finished,
            if kinds.is_empty() { "" } else { ": " }
        );
        say(
            "failed",
            self.failed.map(|most| failures.requests <= most),
            sentence + &limit(self.failed),
        );
        if let Some(since) = report
            .blast_radius
            .as_ref()
            .and_then(|blast| blast.since_fault.as_ref())
        {
            say(
                "bad answers",
                self.bad_answers.map(|most| since.bad_answers <= most),
                format!(
                    "{} bad answers after the fault{}",
                    since.bad_answers,
                    limit(self.bad_answers)
                ),
            );
            say(
                "users hurt",
                self.users_hurt.map(|most| since.users_hurt <= most),
                format!("{} users hurt{}", since.users_hurt, limit(self.users_hurt)),
            );
            let ended = if since.requests_after == 0 {
                ", and none was sent after it: it did not end within the run"
            } else {
                ""
            };
            let sentence = format!(
                "{:.1} ms from the fault to the last request on new{ended}{}",
                since.time_to_zero_ms,
                limit(self.time_to_zero.map(|most| format!("{most:?}")))
            );
            say(
                "time to zero",
                self.time_to_zero.map(|most| {
                    since.requests_after > 0 && since.time_to_zero_ms <= most.as_secs_f64() * 1e3
                }),
                sentence,
            );
        }
        if let Some(most) = self.p99 {
            let p99 = report.latency.p99_us;
            say(
                "p99",
                Some(u128::from(p99) <= most.as_micros()),
                format!(
                    "99 % of answers within {}{}",
                    readable(p99),
                    limit(Some(format!("{most:?}")))
                ),
            );
        }
        if let Some(ratio) = &self.p99_ratio {
            let part = |name: &str| {
                run.parts.iter().find(|part| {
                    part.name == name && part.latency.p99_us > 0 && part.typical_p99_us > 0
                })
            };
            match part(&ratio.part).zip(part(&ratio.to)) {
                Some((part, to)) => {
                    let whole = part.latency.p99_us as f64 / to.latency.p99_us as f64;
                    let typical = part.typical_p99_us as f64 / to.typical_p99_us as f64;
                    let sentence = format!(
                        "99 % within {} in {}, {} in {}: {whole:.2} times{}; in the median second \
                         {} against {}: {typical:.2} times{}",
                        readable(part.latency.p99_us),
                        ratio.part,
                        readable(to.latency.p99_us),
                        ratio.to,
                        limit(ratio.most),
                        readable(part.typical_p99_us),
                        readable(to.typical_p99_us),
                        limit(ratio.most_typical)
                    );
                    let holds = [
                        ratio.most.map(|most| whole <= most),
                        ratio.most_typical.map(|most| typical <= most),
                    ]
                    .into_iter()
                    .flatten()
                    .reduce(|one, other| one && other);
                    say("p99 ratio", holds, sentence);
                }
                None => say(
                    "p99 ratio",
                    Some(false),
                    format!("{} or {} had no answers", ratio.part, ratio.to),
                ),
            }
        }
        if let Some(websockets) = &run.websockets {
            let lost = websockets.lost();
            let sentence = format!(
                "{} WebSockets opened, {} refused, {lost} ended before we closed them",
                websockets.opened,
                websockets.refused.values().sum::<u64>()
            );
            say(
                "websockets",
                self.websockets_lost
                    .map(|most| lost <= most && websockets.refused.is_empty()),
                sentence + &limit(self.websockets_lost),
            );
        }
        if let Some(most) = self.memory_growth_mib {
            match run.memory_growth_mib() {
                Some(growth) => say(
                    "memory",
                    Some(growth <= most),
                    format!(
                        "the proxy grew by {growth:.1} MiB after the first tenth of the run{}",
                        limit(Some(most))
                    ),
                ),
                None => say(
                    "memory",
                    Some(false),
                    "how much memory the proxy held is not known".to_owned(),
                ),
            }
        }
        if let Some(capacity) = &run.capacity {
            let holds = self
                .bottleneck
                .map(|expected| capacity.bottleneck == Some(expected));
            let expected = self
                .bottleneck
                .filter(|_| holds == Some(false))
                .map_or(String::new(), |expected| format!(" (expected {expected})"));
            say(
                "bottleneck",
                holds,
                format!("{}{expected}", capacity.sentence),
            );
            let knee = capacity.knee.unwrap_or(0.0);
            say(
                "knee",
                self.knee_at_least.map(|least| knee >= least),
                format!(
                    "{knee:.0} requests per second{}",
                    self.knee_at_least
                        .map_or(String::new(), |least| format!(" (at least {least})"))
                ),
            );
        }
        let doubt = run.lateness_note();
        let warns = doubt.is_some();
        let sentence = doubt.unwrap_or_else(|| {
            format!(
                "on time: 99 % of requests were released within {}",
                readable(report.release_lateness.p99_us)
            )
        });
        verdicts.push(Verdict {
            name: "generator",
            holds: None,
            sentence,
            warns,
        });
        verdicts
    }
}

/// Formats the limit in brackets.
fn limit(most: Option<impl std::fmt::Display>) -> String {
    most.map_or(String::new(), |most| format!(" (at most {most})"))
}

/// Merges the verdicts of several runs into one list. An expectation that fails in one run fails.
/// Its sentence comes from the first failed run, or otherwise from the last run. Numbers that are
/// only reported appear for a single run. For several runs there are statistics over all of them.
pub fn over_runs(runs: &[Vec<Verdict>]) -> Vec<Verdict> {
    if let [only] = runs {
        return only.clone();
    }
    let mut merged: Vec<Verdict> = Vec::new();
    for (number, verdicts) in runs.iter().enumerate() {
        for verdict in verdicts
            .iter()
            .filter(|verdict| verdict.holds.is_some() || verdict.warns)
        {
            let place = if verdict.holds == Some(true) {
                format!("in {} runs, the last: ", number + 1)
            } else {
                format!("run {}: ", number + 1)
            };
            let told = Verdict {
                sentence: place + &verdict.sentence,
                ..verdict.clone()
            };
            match merged.iter_mut().find(|one| one.name == verdict.name) {
                Some(one) if one.holds == Some(true) => *one = told,
                // The first verdict that failed, or that is doubtful, stays.
                Some(_) => {}
                None => merged.push(told),
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::{Verdict, over_runs};

    #[test]
    fn a_failure_in_one_run_fails_and_names_the_run() {
        let verdict = |holds, sentence: &str| Verdict {
            name: "sticky",
            holds,
            sentence: sentence.to_owned(),
            warns: false,
        };
        let merged = over_runs(&[
            vec![verdict(Some(true), "a")],
            vec![verdict(Some(false), "b")],
            vec![verdict(Some(true), "c")],
        ]);
        assert_eq!(merged, [verdict(Some(false), "run 2: b")]);
        assert_eq!(
            over_runs(&[vec![verdict(Some(true), "a")]]),
            [verdict(Some(true), "a")]
        );
        assert_eq!(
            over_runs(&[
                vec![verdict(Some(true), "a")],
                vec![verdict(Some(true), "b")]
            ]),
            [verdict(Some(true), "in 2 runs, the last: b")]
        );
        assert_eq!(
            over_runs(&[vec![verdict(None, "a")], vec![verdict(None, "b")]]),
            []
        );
        assert_eq!(over_runs(&[vec![verdict(None, "a")]]), [verdict(None, "a")]);
    }
}
