//! The report of a run: computed once from its records, and shown as a table or as JSON.
//!
//! [`Report::new`] is a pure function of plan and records, so every claim can be tested on
//! hand-written records. The meaning of the numbers:
//!
//! - *Latency* runs from the intended start. It covers answers of every status and the requests
//!   that timed out (with the time they had taken by then, which is a lower bound). Requests whose
//!   connection failed are not included: a fast refusal would flatter the percentiles.
//! - *Switches* of a user are found in the order in which its requests were sent. If two requests
//!   were in flight together, that order proves nothing about the order of decisions. Such a switch
//!   therefore counts as `overlapping`, without a direction. [`history`] and [`Stickiness`]
//!   describe which switches a scenario step explains.
//! - *Shares* are given with the 99.9 % Wilson interval. For users the expectation is the
//!   percentage itself. For requests it is the share of this population that the hash puts on new.
//!   Requests are drawn from a fixed population, so the luck of the hash with these users is not
//!   news there.
//! - *Failures* are server errors (5xx) and requests without a complete answer. A 4xx is an answer.
//! - *Blast radius* runs from the first failed answer to the last answer served by new. If a step
//!   broke something, it runs from that step to the last request, by sending time, that new
//!   answered or that failed.
//!
//! Deliberately absent: history across runs, and judgement beyond [`Report::violations`]. An
//! interval that misses the expectation is also not judged, because one run in a thousand misses it
//! by chance.

pub mod history;
pub mod timeline;

mod blast;
mod hash;
mod quantiles;
mod share;
mod stickiness;
mod table;

pub use crate::report::blast::{BlastRadius, SinceFault};
pub use crate::report::hash::{HashCheck, WrongAnswer};
pub use crate::report::history::{Direction, History, Segment};
pub use crate::report::quantiles::{Quantiles, Times};
pub use crate::report::share::{Share, Shares, Z_99_9, wilson_interval};
pub use crate::report::stickiness::{Stickiness, Switch};
pub use crate::report::table::readable;

use crate::driver::{Arrivals, Measurement, Outcome, Protocol, Record, RunPlan, TransportFailure};
use crate::report::blast::blast_radius;
use crate::report::hash::check_hash;
use crate::report::history::segments;
use crate::report::stickiness::check_stickiness;
use crate::users::Side;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The most switches and wrong answers that are listed individually. All of them are counted.
pub const MOST_EXAMPLES: usize = 20;
const TABLE_EXAMPLES: usize = 5;
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Everything a run measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The plan of the run.
    pub plan: PlanSummary,
    /// The number of requests, and their rate.
    pub requests: Requests,
    /// The time from the intended start to the end of the answer.
    pub latency: Quantiles,
    /// The generator's own lateness: released minus intended.
    pub release_lateness: Quantiles,
    /// The generator's lateness and the wait for a connection: sent minus intended.
    pub send_lateness: Quantiles,
    /// The answers by class of status.
    pub statuses: BTreeMap<&'static str, u64>,
    /// The failed requests, and the users they affected.
    pub failures: Failures,
    /// The sides that answered.
    pub sides: Sides,
    /// Whether every user stayed on one side.
    pub stickiness: Stickiness,
    /// Whether every answer came from the side that the hash assigns. `None` without salt and
    /// percentage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashCheck>,
    /// The shares on new.
    pub shares: Shares,
    /// The shares on new between moves of the split. There is one segment if nothing moved.
    pub segments: Vec<Segment>,
    /// The duration of the trouble. `None` if nothing failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blast_radius: Option<BlastRadius>,
    /// The violations that `--assert` reports, in words. Empty if there are none.
    pub violations: Vec<String>,
}

/// The part of the plan that the numbers depend on.
#[derive(Debug, Clone, Serialize)]
pub struct PlanSummary {
    /// The target that received the requests.
    pub target: String,
    /// The protocol of the requests.
    pub protocol: Protocol,
    /// The method of every request.
    pub method: String,
    /// The path of every request.
    pub path: String,
    /// The size of the body of every request, in bytes.
    pub body_bytes: usize,
    /// Where a request carried its user.
    pub key: String,
    /// The rate, in requests per second.
    pub rate: f64,
    /// The distribution of the intended starts.
    pub arrivals: Arrivals,
    /// The planned duration, in milliseconds.
    pub duration_ms: u64,
    /// The size of the population.
    pub users: u32,
    /// The number of keep-alive connections.
    pub connections: usize,
    /// The seed of the run.
    pub seed: u64,
    /// The longest time that a request may take, in milliseconds.
    pub timeout_ms: u64,
    /// The salt of the hash, if the sides were checked against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// The percentage on new, if the sides were checked against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// The numbers of requests.
#[derive(Debug, Clone, Serialize)]
pub struct Requests {
    /// The number of requests released by the pacer. Every one of them ended.
    pub finished: u64,
    /// The number of requests sent on a connection.
    pub sent: u64,
    /// The requests sent per second, over the time it took to send them.
    pub sent_per_second: f64,
    /// Whether the run was stopped before its planned duration.
    pub stopped_early: bool,
}

/// The failures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Failures {
    /// The number of requests that failed, in whatever way.
    pub requests: u64,
    /// The number of answers with a status of 500 or above.
    pub server_errors: u64,
    /// The number of requests without a complete answer, by kind.
    pub transport: BTreeMap<&'static str, u64>,
    /// The number of distinct users with a failed request.
    pub users_hurt: u64,
}

/// The answers by the side they named.
#[derive(Debug, Clone, Serialize)]
pub struct Sides {
    /// The header that names the side.
    pub header: String,
    /// The number of answers from legacy.
    pub legacy: u64,
    /// The number of answers from new.
    pub new: u64,
    /// The number of answers below 500 that named neither side.
    pub unnamed: u64,
    /// The number of answers of 500 and above that named neither side, such as the proxy's own.
    pub unnamed_errors: u64,
}

impl Report {
    /// Computes the report of a run in which nothing was done to the split.
    pub fn new(plan: &RunPlan, mut measurement: Measurement) -> Self {
        measurement.sort();
        Self::of(plan, &measurement, &History::default())
    }

    /// Computes the report of a run from its sorted records.
    pub fn of(plan: &RunPlan, measurement: &Measurement, history: &History) -> Self {
        let Measurement {
            records,
            paced,
            stopped,
        } = measurement;
        let sides = count_sides(plan, records);
        let (stickiness, users_on_new) = check_stickiness(records, &history.moves);
        let oracle = plan.oracle.as_ref();
        let segments = segments(records, oracle, plan.users, history);
        // With moves there is no single expected share for the whole run.
        let still = oracle.filter(|_| history.changes.is_empty());
        let shares = Shares {
            users: Share::new(
                users_on_new,
                stickiness.users_seen,
                still.map(|oracle| oracle.percent().as_share()),
            ),
            requests: Share::new(
                sides.new,
                sides.new + sides.legacy,
                still.map(|oracle| {
                    f64::from(oracle.users_on_new(plan.users)) / f64::from(plan.users)
                }),
            ),
        };
        let mut report = Self {
            plan: PlanSummary::new(plan),
            requests: count_requests(records, *paced, *stopped),
            latency: Times::of(records.iter().filter_map(Record::latency)).quantiles(),
            release_lateness: Times::of(
                records
                    .iter()
                    .map(|record| record.released.saturating_sub(record.intended)),
            )
            .quantiles(),
            send_lateness: Times::of(
                records
                    .iter()
                    .filter_map(|record| Some(record.sent?.saturating_sub(record.intended))),
            )
            .quantiles(),
            statuses: count_statuses(records),
            failures: count_failures(records),
            sides,
            stickiness,
            hash: oracle.map(|oracle| check_hash(records, oracle, history)),
            shares,
            segments,
            blast_radius: blast_radius(records, history.fault),
            violations: Vec::new(),
        };
        report.violations = report.find_violations();
        report
    }

    fn find_violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        if self.requests.finished == 0 {
            violations.push("no request was made, so nothing was checked".to_owned());
        }
        violations.extend(self.stickiness.violation());
        violations.extend(self.hash.as_ref().and_then(HashCheck::violation));
        if self.sides.unnamed > 0 {
            violations.push(format!(
                "{} answers named neither legacy nor new in {}, so their side was not checked",
                self.sides.unnamed, self.sides.header
            ));
        }
        if self.failures.requests > 0 {
            violations.push(format!(
                "{} of {} requests failed ({}), to {} users",
                self.failures.requests,
                self.requests.finished,
                self.failures.kinds(),
                self.failures.users_hurt
            ));
        }
        violations
    }
}

impl PlanSummary {
    fn new(plan: &RunPlan) -> Self {
        let oracle = plan.oracle.as_ref();
        Self {
            target: plan.target.to_string(),
            protocol: plan.protocol,
            method: plan.method.to_string(),
            path: plan.path.to_string(),
            body_bytes: plan.body_bytes,
            key: plan.key.to_string(),
            rate: plan.rate,
            arrivals: plan.arrivals,
            duration_ms: whole_milliseconds(plan.duration),
            users: plan.users,
            connections: plan.connections,
            seed: plan.seed,
            timeout_ms: whole_milliseconds(plan.timeout),
            salt: oracle.map(|oracle| oracle.salt().to_owned()),
            percent: oracle.map(|oracle| f64::from(oracle.percent().thousandths()) / 1_000.0),
        }
    }
}

impl Failures {
    /// Returns the kinds that occurred, such as `5xx 12, reset 3`.
    pub fn kinds(&self) -> String {
        std::iter::once(("5xx", self.server_errors))
            .chain(self.transport.iter().map(|(kind, count)| (*kind, *count)))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn count_requests(records: &[Record], paced: Duration, stopped: bool) -> Requests {
    let sent = records
        .iter()
        .filter(|record| record.sent.is_some())
        .count();
    let last_sent = records
        .iter()
        .filter_map(|record| record.sent)
        .max()
        .map_or(Duration::ZERO, Duration::from_nanos);
    let seconds = paced.max(last_sent).as_secs_f64();
    Requests {
        finished: records.len() as u64,
        sent: sent as u64,
        sent_per_second: if seconds > 0.0 {
            sent as f64 / seconds
        } else {
            0.0
        },
        stopped_early: stopped,
    }
}

fn count_statuses(records: &[Record]) -> BTreeMap<&'static str, u64> {
    let mut statuses: BTreeMap<_, _> = STATUS_CLASSES.iter().map(|class| (*class, 0)).collect();
    for record in records {
        if let Outcome::Answered { status, .. } = record.outcome {
            let class = usize::from(status.as_u16() / 100).saturating_sub(1);
            let class = STATUS_CLASSES.get(class).copied().unwrap_or("other");
            *statuses.entry(class).or_default() += 1;
        }
    }
    statuses
}

fn count_failures(records: &[Record]) -> Failures {
    let mut failures = Failures {
        requests: 0,
        server_errors: 0,
        transport: TransportFailure::ALL
            .iter()
            .map(|kind| (kind.name(), 0))
            .collect(),
        users_hurt: 0,
    };
    let mut last_hurt = None;
    for record in records {
        if !record.outcome.is_failure() {
            continue;
        }
        failures.requests += 1;
        match record.outcome {
            Outcome::Answered { .. } => failures.server_errors += 1,
            Outcome::Failed(kind) => *failures.transport.entry(kind.name()).or_default() += 1,
        }
        // The records are sorted by user.
        if last_hurt != Some(record.user) {
            last_hurt = Some(record.user);
            failures.users_hurt += 1;
        }
    }
    failures
}

fn count_sides(plan: &RunPlan, records: &[Record]) -> Sides {
    let mut sides = Sides {
        header: plan.side_header.to_string(),
        legacy: 0,
        new: 0,
        unnamed: 0,
        unnamed_errors: 0,
    };
    for record in records {
        if let Outcome::Answered { status, side } = record.outcome {
            match side {
                Some(Side::Legacy) => sides.legacy += 1,
                Some(Side::New) => sides.new += 1,
                None if status.is_server_error() => sides.unnamed_errors += 1,
                None => sides.unnamed += 1,
            }
        }
    }
    sides
}

/// Converts nanoseconds to milliseconds, as reports show them.
pub(crate) fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Direction, History, Report, Z_99_9, wilson_interval};
    use crate::driver::{Measurement, Outcome, Record, RunPlan, Target, TransportFailure};
    use crate::units::Percent;
    use crate::users::{Oracle, Side};
    use http::StatusCode;
    use std::time::Duration;

    const MILLISECOND: u64 = 1_000_000;

    async fn plan(oracle: Option<Oracle>) -> RunPlan {
        RunPlan {
            rate: 100.0,
            users: 10,
            connections: 1,
            oracle,
            ..RunPlan::to(
                Target::resolve("http://127.0.0.1:1", false)
                    .await
                    .expect("a loopback target"),
            )
        }
    }

    fn answered(status: u16, side: Option<Side>) -> Outcome {
        Outcome::Answered {
            status: StatusCode::from_u16(status).expect("a status"),
            side,
        }
    }

    /// Creates the record of a request sent on time. Instants are in milliseconds.
    fn record(user: u32, sent: u64, finished: u64, outcome: Outcome) -> Record {
        Record {
            user,
            outcome,
            intended: sent * MILLISECOND,
            released: sent * MILLISECOND,
            sent: Some(sent * MILLISECOND),
            finished: finished * MILLISECOND,
        }
    }

    async fn report(oracle: Option<Oracle>, records: Vec<Record>) -> Report {
        let measurement = Measurement {
            records,
            paced: Duration::from_secs(1),
            stopped: false,
        };
        Report::new(&plan(oracle).await, measurement)
    }

    #[test]
    fn wilson_gives_the_intervals_of_newcombe_1998() {
        for (successes, trials, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let found = wilson_interval(successes, trials, 1.959_964).expect("an interval");
            assert!((found.0 - low).abs() < 5e-5, "{found:?}");
            assert!((found.1 - high).abs() < 5e-5, "{found:?}");
        }
    }

    #[test]
    fn wilson_stays_within_zero_and_one_and_is_none_without_trials() {
        assert_eq!(wilson_interval(0, 0, Z_99_9), None);
        let (none, _) = wilson_interval(0, 7, Z_99_9).expect("an interval");
        let (_, all) = wilson_interval(7, 7, Z_99_9).expect("an interval");
        assert_eq!((none, all), (0.0, 1.0));
    }

    #[tokio::test]
    async fn latency_and_lateness_run_from_the_intended_start() {
        let late = Record {
            user: 0,
            outcome: answered(200, Some(Side::New)),
            intended: 0,
            released: 2 * MILLISECOND,
            sent: Some(5_000 * MILLISECOND),
            finished: 6_000 * MILLISECOND,
        };
        let report = report(None, vec![late]).await;
        let near = |found: u64, microseconds: u64| found.abs_diff(microseconds) < microseconds / 50;
        assert!(near(report.latency.max_us, 6_000_000));
        assert!(near(report.send_lateness.max_us, 5_000_000));
        assert!(near(report.release_lateness.max_us, 2_000));
    }

    #[tokio::test]
    async fn latency_includes_timed_out_requests_but_not_refused_ones() {
        let report = report(
            None,
            vec![
                record(0, 0, 1, answered(404, Some(Side::Legacy))),
                record(1, 0, 10_000, Outcome::Failed(TransportFailure::Timeout)),
                record(2, 0, 10_000, Outcome::Failed(TransportFailure::Waiting)),
                record(3, 0, 1, Outcome::Failed(TransportFailure::Connect)),
                record(4, 0, 1, Outcome::Failed(TransportFailure::Reset)),
            ],
        )
        .await;
        assert_eq!(report.latency.count, 3);
        assert_eq!(report.failures.requests, 4);
        assert_eq!(report.failures.transport["waiting"], 1);
        assert_eq!(report.statuses["4xx"], 1);
    }

    #[tokio::test]
    async fn switches_follow_the_order_of_sending_not_of_the_records() {
        let report = report(
            None,
            vec![
                record(1, 40, 41, answered(200, Some(Side::Legacy))),
                record(1, 20, 21, answered(200, Some(Side::New))),
                record(1, 0, 1, answered(200, Some(Side::Legacy))),
                record(2, 5, 6, answered(200, Some(Side::New))),
                record(2, 6, 7, answered(500, Some(Side::New))),
                record(3, 6, 7, answered(200, Some(Side::Legacy))),
            ],
        )
        .await;
        let found = &report.stickiness;
        assert_eq!(found.users_seen, 3);
        assert_eq!(found.users_seen_again, 2);
        assert_eq!(found.users_on_both_sides, 1);
        assert_eq!((found.legacy_to_new, found.new_to_legacy), (1, 1));
        assert_eq!(found.users_first_to_new, 1);
        assert_eq!(found.users_first_to_legacy, 0);
        let directions: Vec<_> = found.examples.iter().map(|one| one.direction).collect();
        assert_eq!(directions, [Direction::LegacyToNew, Direction::NewToLegacy]);
        assert_eq!(found.examples[0].user, "user-1");
        assert_eq!(report.shares.users.on_new, 1);
    }

    #[tokio::test]
    async fn a_switch_between_overlapping_requests_has_no_direction() {
        let report = report(
            None,
            vec![
                record(1, 0, 50, answered(200, Some(Side::Legacy))),
                record(1, 10, 11, answered(200, Some(Side::New))),
            ],
        )
        .await;
        assert_eq!(report.stickiness.users_on_both_sides, 1);
        assert_eq!(report.stickiness.overlapping, 1);
        assert_eq!(report.stickiness.legacy_to_new, 0);
    }

    #[tokio::test]
    async fn wrong_sides_are_counted_by_answer_and_by_user() {
        // At 0 % every user belongs to legacy.
        let oracle = Oracle::new("checkout", Percent::ZERO);
        let report = report(
            Some(oracle),
            vec![
                record(1, 0, 1, answered(200, Some(Side::New))),
                record(1, 2, 3, answered(200, Some(Side::New))),
                record(2, 4, 5, answered(200, Some(Side::Legacy))),
                record(3, 6, 7, Outcome::Failed(TransportFailure::Reset)),
            ],
        )
        .await;
        let check = report.hash.as_ref().expect("a check");
        assert_eq!(
            (check.checked, check.wrong_answers, check.wrong_users),
            (3, 2, 1)
        );
        assert_eq!(check.examples[0].expected, Side::Legacy);
        assert_eq!(report.stickiness.users_on_both_sides, 0);
        assert!(
            report.violations[0].contains("2 of 3 answers"),
            "{:?}",
            report.violations
        );
        assert_eq!(report.shares.requests.expected, Some(0.0));
        assert_eq!(report.shares.requests.expected_in_interval, Some(false));
    }

    #[tokio::test]
    async fn the_blast_radius_ends_with_the_last_answer_of_new() {
        let report = report(
            None,
            vec![
                record(1, 0, 10, answered(200, Some(Side::New))),
                record(1, 20, 30, answered(500, Some(Side::New))),
                record(2, 40, 70, answered(200, Some(Side::New))),
                record(3, 80, 90, answered(200, Some(Side::Legacy))),
            ],
        )
        .await;
        let blast = report.blast_radius.expect("a failure");
        assert_eq!(blast.first_failure_ms, 30.0);
        assert_eq!(blast.last_failure_ms, 30.0);
        assert_eq!(blast.last_new_ms, Some(70.0));
        assert_eq!(blast.duration_ms, 40.0);
        assert_eq!(report.failures.users_hurt, 1);
    }

    #[tokio::test]
    async fn the_effects_of_a_fault_are_counted_by_sending_time() {
        let mut measurement = Measurement {
            records: vec![
                record(1, 0, 10, answered(500, Some(Side::New))),
                record(1, 20, 30, answered(200, Some(Side::New))),
                record(1, 40, 41, answered(502, None)),
                record(1, 50, 51, answered(500, Some(Side::New))),
                record(2, 60, 90, Outcome::Failed(TransportFailure::Reset)),
                record(2, 70, 71, answered(200, Some(Side::Legacy))),
                record(3, 95, 96, answered(200, Some(Side::Legacy))),
            ],
            paced: Duration::from_secs(1),
            stopped: false,
        };
        measurement.sort();
        let history = History {
            fault: Some(25 * MILLISECOND),
            ..History::default()
        };
        let blast = Report::of(&plan(None).await, &measurement, &history)
            .blast_radius
            .expect("a fault")
            .since_fault
            .expect("a fault");
        assert_eq!(
            (blast.fault_ms, blast.bad_answers, blast.users_hurt),
            (25.0, 3, 2)
        );
        assert_eq!((blast.time_to_zero_ms, blast.requests_after), (35.0, 2));
    }

    #[tokio::test]
    async fn an_answer_without_a_side_is_a_violation_unless_it_is_an_error() {
        let unnamed = report(None, vec![record(1, 0, 1, answered(200, None))]).await;
        assert_eq!(unnamed.violations.len(), 1);
        assert!(unnamed.violations[0].contains("x-served-by"));
        let error = report(None, vec![record(1, 0, 1, answered(502, None))]).await;
        assert_eq!(error.sides.unnamed_errors, 1);
        assert_eq!(error.violations.len(), 1);
        assert!(error.violations[0].contains("1 of 1 requests failed (5xx 1)"));
    }

    #[tokio::test]
    async fn a_run_without_requests_is_a_violation_with_a_report() {
        let report = report(None, Vec::new()).await;
        assert_eq!(report.violations.len(), 1);
        assert!(report.to_string().contains("none seen"));
        serde_json::to_string(&report).expect("json");
    }
}
