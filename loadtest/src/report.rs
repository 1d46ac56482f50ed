//! What a run measured: computed once from its records, shown as a table or as JSON.
//!
//! [`Report::new`] is a pure function of plan and records, so every claim can be tested on records
//! written by hand. How the numbers are meant:
//!
//! - *Latency* runs from the intended start. It covers answers of every status and the requests
//!   given up for time (at the time they had cost by then, a lower bound). Requests whose connection
//!   failed are not in it: a fast refusal would flatter the percentiles.
//! - *Switches* of a user are found in the order in which its requests were sent. Where two requests
//!   were in flight together that order proves nothing about the order of decisions, so such a
//!   switch counts as `overlapping`, without a direction.
//! - *Shares* come with the 99.9 % Wilson interval. For users the expectation is the percentage
//!   itself. For requests it is the share of this population that the hash puts on new: requests are
//!   drawn from a fixed population, so the luck of the hash with these users is no news there.
//! - *Failures* are server errors (5xx) and requests without a whole answer. A 4xx is an answer.
//! - *Blast radius* runs from the first failed answer to the last answer served by new.
//!
//! Deliberately absent: judgement beyond [`Report::violations`], an interval that misses the
//! expectation included (one run in a thousand does so by chance), and history across runs.

use crate::driver::{Arrivals, Measurement, Outcome, Record, RunPlan, TransportFailure};
use crate::users::{Side, user_name};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Most switches and wrong answers that are listed one by one; all of them are counted.
pub const MOST_EXAMPLES: usize = 20;
/// Two-sided 99.9 % quantile of the normal distribution.
pub const Z_99_9: f64 = 3.290_526_731_491_926;

const TABLE_EXAMPLES: usize = 5;
/// Longest latency told apart, in microseconds; longer ones count as this.
const LONGEST_MICROSECONDS: u64 = 60_000_000;
const NANOSECONDS_PER_MICROSECOND: u64 = 1_000;
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Everything a run measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was run.
    pub plan: PlanSummary,
    /// How many requests, how fast.
    pub requests: Requests,
    /// Time from the intended start to the end of the answer.
    pub latency: Quantiles,
    /// The generator's own lateness: released minus intended.
    pub release_lateness: Quantiles,
    /// Sent minus intended: the generator's lateness and the wait for a connection.
    pub send_lateness: Quantiles,
    /// Answers by class of status.
    pub statuses: BTreeMap<&'static str, u64>,
    /// What failed, and whom it hurt.
    pub failures: Failures,
    /// Which side answered.
    pub sides: Sides,
    /// Whether every user stayed on one side.
    pub stickiness: Stickiness,
    /// Whether every answer came from the side the hash says; absent without salt and percentage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashCheck>,
    /// How much is on new.
    pub shares: Shares,
    /// How long trouble lasted; absent when nothing failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blast_radius: Option<BlastRadius>,
    /// What `--assert` objects to, in words; empty when all is well.
    pub violations: Vec<String>,
}

/// The plan, as far as the numbers depend on it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanSummary {
    /// Where the requests went.
    pub target: String,
    /// Path of every request.
    pub path: String,
    /// Requests per second.
    pub rate: f64,
    /// How the intended starts were spread.
    pub arrivals: Arrivals,
    /// Planned duration.
    pub duration_ms: u64,
    /// Size of the population.
    pub users: u32,
    /// Keep-alive connections.
    pub connections: usize,
    /// Seed.
    pub seed: u64,
    /// Longest time a request may take.
    pub timeout_ms: u64,
    /// Salt of the hash, if the sides were checked against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// Percentage on new, if the sides were checked against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// How many requests there were.
#[derive(Debug, Clone, Serialize)]
pub struct Requests {
    /// Released by the pacer; every one of them ended.
    pub finished: u64,
    /// Sent on a connection.
    pub sent: u64,
    /// Sent per second, over the time it took to send them.
    pub sent_per_second: f64,
    /// Whether the run was stopped before its planned duration.
    pub stopped_early: bool,
}

/// Quantiles of a time in microseconds, with two significant digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// What failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failures {
    /// Requests that failed, in whatever way.
    pub requests: u64,
    /// Answers with a status of 500 or above.
    pub server_errors: u64,
    /// Requests without a whole answer, by kind.
    pub transport: BTreeMap<&'static str, u64>,
    /// Distinct users with a failed request.
    pub users_hurt: u64,
}

/// Answers by the side they named.
#[derive(Debug, Clone, Serialize)]
pub struct Sides {
    /// Header that names the side.
    pub header: String,
    /// Answers from legacy.
    pub legacy: u64,
    /// Answers from new.
    pub new: u64,
    /// Answers below 500 that named neither.
    pub unnamed: u64,
    /// Answers of 500 and above that named neither, such as the proxy's own.
    pub unnamed_errors: u64,
}

/// The way a user went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Direction {
    /// From legacy to new.
    #[serde(rename = "legacy->new")]
    LegacyToNew,
    /// From new back to legacy.
    #[serde(rename = "new->legacy")]
    NewToLegacy,
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::LegacyToNew => "legacy->new",
            Self::NewToLegacy => "new->legacy",
        })
    }
}

/// Whether every user stayed on one side.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stickiness {
    /// Users with at least one answer that named a side.
    pub users_seen: u64,
    /// Users with at least two such answers; the others cannot have switched.
    pub users_seen_again: u64,
    /// Users that were seen on both sides.
    pub users_on_both_sides: u64,
    /// Users whose first switch was to new.
    pub users_first_to_new: u64,
    /// Users whose first switch was to legacy.
    pub users_first_to_legacy: u64,
    /// Users whose first switch overlapped.
    pub users_first_overlapping: u64,
    /// Switches of all users.
    pub switches: u64,
    /// Switches from legacy to new.
    pub legacy_to_new: u64,
    /// Switches from new to legacy.
    pub new_to_legacy: u64,
    /// Switches between two requests that were in flight together.
    pub overlapping: u64,
    /// Some of the switches.
    pub examples: Vec<Switch>,
}

/// One change of side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Switch {
    /// The user.
    pub user: String,
    /// The way it went, in the order of sending.
    pub direction: Direction,
    /// Whether the two requests were in flight together, so that the order proves nothing.
    pub overlapping: bool,
    /// When the first request on the other side was sent.
    pub at_ms: f64,
}

/// Whether every answer came from the side the hash says.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HashCheck {
    /// Answers that named a side.
    pub checked: u64,
    /// Answers from the other side.
    pub wrong_answers: u64,
    /// Distinct users with such an answer.
    pub wrong_users: u64,
    /// Some of the wrong answers.
    pub examples: Vec<WrongAnswer>,
}

/// An answer from the side where its user does not belong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WrongAnswer {
    /// The user.
    pub user: String,
    /// Bucket of the user, 0 to 99999.
    pub bucket: u64,
    /// Where the user belongs.
    pub expected: Side,
    /// Who answered.
    pub found: Side,
    /// When the answer was whole.
    pub at_ms: f64,
}

/// How much is on new.
#[derive(Debug, Clone, Serialize)]
pub struct Shares {
    /// Of the users that were seen, each by its last answer.
    pub users: Share,
    /// Of the answers that named a side.
    pub requests: Share,
}

/// A measured share with its interval.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// On new.
    pub on_new: u64,
    /// Of how many.
    pub total: u64,
    /// Their ratio; absent when there were none.
    pub measured: Option<f64>,
    /// 99.9 % Wilson interval of the true share; absent when there were none.
    pub interval: Option<(f64, f64)>,
    /// Share that was to be expected, if salt and percentage are known.
    pub expected: Option<f64>,
    /// Whether the expected share lies in the interval.
    pub expected_in_interval: Option<bool>,
}

/// How long trouble lasted, in milliseconds since the start of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlastRadius {
    /// First failed answer.
    pub first_failure_ms: f64,
    /// Last failed answer.
    pub last_failure_ms: f64,
    /// Last answer served by new; absent when there was none.
    pub last_new_ms: Option<f64>,
    /// From the first failed answer to the last answer served by new; 0 when none came after it.
    pub duration_ms: f64,
}

impl Report {
    /// Computes the report of a run.
    pub fn new(plan: &RunPlan, measurement: Measurement) -> Self {
        let Measurement { mut records, paced, stopped } = measurement;
        // By user, each user's requests in the order of sending; unsent ones say nothing of sides.
        records.sort_unstable_by_key(|record| (record.user, record.sent, record.intended));

        let sides = count_sides(plan, &records);
        let (stickiness, users_on_new) = check_stickiness(&records);
        let hash = check_hash(plan, &records);
        let failures = count_failures(&records);
        let shares = Shares {
            users: Share::new(users_on_new, stickiness.users_seen, plan.oracle.as_ref().map(|oracle| oracle.percent().as_share())),
            requests: Share::new(sides.new, sides.new + sides.legacy, plan.oracle.as_ref().map(|oracle| f64::from(oracle.users_on_new(plan.users)) / f64::from(plan.users))),
        };
        let mut report = Self {
            plan: PlanSummary::new(plan),
            requests: count_requests(&records, paced, stopped),
            latency: quantiles(records.iter().filter_map(latency)),
            release_lateness: quantiles(records.iter().map(|record| record.released.saturating_sub(record.intended))),
            send_lateness: quantiles(records.iter().filter_map(|record| Some(record.sent?.saturating_sub(record.intended)))),
            statuses: count_statuses(&records),
            failures,
            sides,
            stickiness,
            hash,
            shares,
            blast_radius: blast_radius(&records),
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
        if self.stickiness.users_on_both_sides > 0 {
            violations.push(format!(
                "{} of {} users were seen on more than one side, with {} switches",
                self.stickiness.users_on_both_sides, self.stickiness.users_seen, self.stickiness.switches
            ));
        }
        if let Some(hash) = &self.hash
            && hash.wrong_answers > 0
        {
            violations.push(format!("{} of {} answers came from a side other than the hash says, to {} users", hash.wrong_answers, hash.checked, hash.wrong_users));
        }
        if self.sides.unnamed > 0 {
            violations.push(format!("{} answers named neither legacy nor new in {}, so their side was not checked", self.sides.unnamed, self.sides.header));
        }
        if self.failures.requests > 0 {
            violations.push(format!("{} of {} requests failed ({}), to {} users", self.failures.requests, self.requests.finished, self.failures.kinds(), self.failures.users_hurt));
        }
        violations
    }
}

impl PlanSummary {
    fn new(plan: &RunPlan) -> Self {
        let oracle = plan.oracle.as_ref();
        Self {
            target: plan.target.to_string(),
            path: plan.path.to_string(),
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
    /// The kinds that occurred, such as `5xx 12, reset 3`.
    fn kinds(&self) -> String {
        std::iter::once(("5xx", self.server_errors))
            .chain(self.transport.iter().map(|(kind, count)| (*kind, *count)))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Share {
    fn new(on_new: u64, total: u64, expected: Option<f64>) -> Self {
        let interval = wilson_interval(on_new, total, Z_99_9);
        Self {
            on_new,
            total,
            measured: (total > 0).then(|| on_new as f64 / total as f64),
            interval,
            expected,
            expected_in_interval: expected.zip(interval).map(|(expected, (low, high))| (low..=high).contains(&expected)),
        }
    }
}

/// Wilson's interval for a share of `successes` in `trials`; none without trials.
///
/// Chosen over the textbook interval because it also holds at shares near 0 and 1, where a cutover
/// spends its first and its last days.
pub fn wilson_interval(successes: u64, trials: u64, z: f64) -> Option<(f64, f64)> {
    if trials == 0 || successes > trials {
        return None;
    }
    let count = trials as f64;
    let share = successes as f64 / count;
    let z_squared = z * z;
    let denominator = 1.0 + z_squared / count;
    let centre = (share + z_squared / (2.0 * count)) / denominator;
    let half_width = z / denominator * (share * (1.0 - share) / count + z_squared / (4.0 * count * count)).sqrt();
    // The ends are exact there; computed, they would miss by a rounding error.
    let low = if successes == 0 { 0.0 } else { centre - half_width };
    let high = if successes == trials { 1.0 } else { centre + half_width };
    Some((low, high))
}

fn named_side(record: &Record) -> Option<Side> {
    match record.outcome {
        Outcome::Answered { side, .. } => side,
        Outcome::Failed(_) => None,
    }
}

/// The latency of a request in nanoseconds, if it counts.
fn latency(record: &Record) -> Option<u64> {
    match record.outcome {
        Outcome::Answered { .. } | Outcome::Failed(TransportFailure::Timeout | TransportFailure::Waiting) => Some(record.finished.saturating_sub(record.intended)),
        Outcome::Failed(_) => None,
    }
}

fn quantiles(nanoseconds: impl Iterator<Item = u64>) -> Quantiles {
    let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, LONGEST_MICROSECONDS, 2) else {
        // Only impossible bounds are refused, and these are constants.
        return Quantiles::default();
    };
    for value in nanoseconds {
        histogram.saturating_record(value / NANOSECONDS_PER_MICROSECOND);
    }
    Quantiles {
        count: histogram.len(),
        mean_us: histogram.mean(),
        p50_us: histogram.value_at_quantile(0.5),
        p90_us: histogram.value_at_quantile(0.9),
        p99_us: histogram.value_at_quantile(0.99),
        p999_us: histogram.value_at_quantile(0.999),
        max_us: histogram.max(),
    }
}

fn count_requests(records: &[Record], paced: Duration, stopped: bool) -> Requests {
    let sent = records.iter().filter(|record| record.sent.is_some()).count();
    let last_sent = records.iter().filter_map(|record| record.sent).max().map_or(Duration::ZERO, Duration::from_nanos);
    let seconds = paced.max(last_sent).as_secs_f64();
    Requests { finished: records.len() as u64, sent: sent as u64, sent_per_second: if seconds > 0.0 { sent as f64 / seconds } else { 0.0 }, stopped_early: stopped }
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
    let mut failures = Failures { requests: 0, server_errors: 0, transport: TransportFailure::ALL.iter().map(|kind| (kind.name(), 0)).collect(), users_hurt: 0 };
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
    let mut sides = Sides { header: plan.side_header.to_string(), legacy: 0, new: 0, unnamed: 0, unnamed_errors: 0 };
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

/// Follows each user from answer to answer. Also returns how many users ended on new.
fn check_stickiness(records: &[Record]) -> (Stickiness, u64) {
    let mut found = Stickiness::default();
    let mut users_on_new = 0;
    for of_user in records.chunk_by(|one, other| one.user == other.user) {
        let mut last: Option<(Side, u64)> = None;
        let mut answers = 0_u64;
        let mut switched = false;
        for record in of_user {
            let (Some(side), Some(sent)) = (named_side(record), record.sent) else {
                continue;
            };
            answers += 1;
            let last_finished = match last {
                Some((last_side, last_finished)) if last_side != side => {
                    let switch = Switch {
                        user: user_name(record.user),
                        direction: match side {
                            Side::New => Direction::LegacyToNew,
                            Side::Legacy => Direction::NewToLegacy,
                        },
                        overlapping: sent < last_finished,
                        at_ms: milliseconds(sent),
                    };
                    found.add(switch, !switched);
                    switched = true;
                    last_finished
                }
                Some((_, last_finished)) => last_finished,
                None => 0,
            };
            last = Some((side, last_finished.max(record.finished)));
        }
        found.users_seen += u64::from(answers > 0);
        found.users_seen_again += u64::from(answers > 1);
        found.users_on_both_sides += u64::from(switched);
        users_on_new += u64::from(last.is_some_and(|(side, _)| side == Side::New));
    }
    (found, users_on_new)
}

impl Stickiness {
    fn add(&mut self, switch: Switch, first_of_user: bool) {
        let first = u64::from(first_of_user);
        self.switches += 1;
        if switch.overlapping {
            self.overlapping += 1;
            self.users_first_overlapping += first;
        } else if switch.direction == Direction::LegacyToNew {
            self.legacy_to_new += 1;
            self.users_first_to_new += first;
        } else {
            self.new_to_legacy += 1;
            self.users_first_to_legacy += first;
        }
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(switch);
        }
    }
}

fn check_hash(plan: &RunPlan, records: &[Record]) -> Option<HashCheck> {
    let oracle = plan.oracle.as_ref()?;
    let mut check = HashCheck::default();
    for of_user in records.chunk_by(|one, other| one.user == other.user) {
        let user = user_name(of_user[0].user);
        let expected = oracle.side(&user);
        let wrong_before = check.wrong_answers;
        for record in of_user {
            let Some(found) = named_side(record) else {
                continue;
            };
            check.checked += 1;
            if found == expected {
                continue;
            }
            check.wrong_answers += 1;
            if check.examples.len() < MOST_EXAMPLES {
                check.examples.push(WrongAnswer { user: user.clone(), bucket: oracle.bucket(&user), expected, found, at_ms: milliseconds(record.finished) });
            }
        }
        check.wrong_users += u64::from(check.wrong_answers > wrong_before);
    }
    Some(check)
}

fn blast_radius(records: &[Record]) -> Option<BlastRadius> {
    let failures = || records.iter().filter(|record| record.outcome.is_failure());
    let first_failure = failures().map(|record| record.finished).min()?;
    let last_failure = failures().map(|record| record.finished).max()?;
    let last_new = records.iter().filter(|record| named_side(record) == Some(Side::New)).map(|record| record.finished).max();
    Some(BlastRadius {
        first_failure_ms: milliseconds(first_failure),
        last_failure_ms: milliseconds(last_failure),
        last_new_ms: last_new.map(milliseconds),
        duration_ms: milliseconds(last_new.unwrap_or(0).saturating_sub(first_failure)),
    })
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time in microseconds, in the unit that reads best.
fn readable(microseconds: u64) -> String {
    let value = microseconds as f64;
    if microseconds < 1_000 {
        format!("{microseconds}us")
    } else if microseconds < 1_000_000 {
        format!("{:.2}ms", value / 1e3)
    } else {
        format!("{:.2}s", value / 1e6)
    }
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        writeln!(
            formatter,
            "{:<15}{}{}: {} per second ({}) for {}, {} users, {} connections, seed {}",
            "plan",
            plan.target,
            plan.path,
            plan.rate,
            match plan.arrivals {
                Arrivals::Constant => "constant",
                Arrivals::Poisson => "Poisson",
            },
            readable(plan.duration_ms.saturating_mul(1_000)),
            plan.users,
            plan.connections,
            plan.seed
        )?;
        writeln!(
            formatter,
            "{:<15}{} finished, {} sent, {:.1} sent per second{}",
            "requests",
            self.requests.finished,
            self.requests.sent,
            self.requests.sent_per_second,
            if self.requests.stopped_early { " (stopped early)" } else { "" }
        )?;
        writeln!(
            formatter,
            "{:<15}p50 {}, p90 {}, p99 {}, p99.9 {}, max {} (from the intended start, {} requests)",
            "latency",
            readable(self.latency.p50_us),
            readable(self.latency.p90_us),
            readable(self.latency.p99_us),
            readable(self.latency.p999_us),
            readable(self.latency.max_us),
            self.latency.count
        )?;
        for (label, lateness, meaning) in [("lateness", &self.release_lateness, "of the generator itself"), ("", &self.send_lateness, "with the wait for a connection")] {
            writeln!(formatter, "{label:<15}p50 {}, p99 {}, max {} ({meaning})", readable(lateness.p50_us), readable(lateness.p99_us), readable(lateness.max_us))?;
        }
        let statuses: Vec<String> = self.statuses.iter().filter(|(_, count)| **count > 0).map(|(class, count)| format!("{class} {count}")).collect();
        writeln!(formatter, "{:<15}{}", "statuses", if statuses.is_empty() { "none".to_owned() } else { statuses.join(", ") })?;
        let kinds = self.failures.kinds();
        writeln!(formatter, "{:<15}{} requests{}{kinds}, {} users hurt", "failures", self.failures.requests, if kinds.is_empty() { "" } else { ": " }, self.failures.users_hurt)?;
        writeln!(
            formatter,
            "{:<15}legacy {}, new {}, unnamed {} (and {} with an error), by {}",
            "sides", self.sides.legacy, self.sides.new, self.sides.unnamed, self.sides.unnamed_errors, self.sides.header
        )?;
        self.write_stickiness(formatter)?;
        self.write_hash(formatter)?;
        for (label, share) in [("users on new", &self.shares.users), ("answers on new", &self.shares.requests)] {
            writeln!(formatter, "{label:<15}{share}")?;
        }
        if let Some(blast) = &self.blast_radius {
            writeln!(
                formatter,
                "{:<15}{:.1}ms from the first failed answer (at {:.1}ms) to the last answer served by new ({}); last failed answer at {:.1}ms",
                "blast radius",
                blast.duration_ms,
                blast.first_failure_ms,
                blast.last_new_ms.map_or("none".to_owned(), |last| format!("at {last:.1}ms")),
                blast.last_failure_ms
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn write_stickiness(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.stickiness;
        writeln!(
            formatter,
            "{:<15}{} of {} users on more than one side ({} seen more than once)",
            "stickiness", found.users_on_both_sides, found.users_seen, found.users_seen_again
        )?;
        if found.switches == 0 {
            return Ok(());
        }
        writeln!(formatter, "{:<15}{} switches: legacy->new {}, new->legacy {}, overlapping {}", "", found.switches, found.legacy_to_new, found.new_to_legacy, found.overlapping)?;
        writeln!(
            formatter,
            "{:<15}first switch of a user: legacy->new {}, new->legacy {}, overlapping {}",
            "", found.users_first_to_new, found.users_first_to_legacy, found.users_first_overlapping
        )?;
        for switch in found.examples.iter().take(TABLE_EXAMPLES) {
            writeln!(formatter, "{:<15}  {} {} at {:.1}ms{}", "", switch.user, switch.direction, switch.at_ms, if switch.overlapping { " (overlapping)" } else { "" })?;
        }
        Ok(())
    }

    fn write_hash(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(check) = &self.hash else {
            return writeln!(formatter, "{:<15}not checked (needs --salt and --percent)", "hash");
        };
        writeln!(formatter, "{:<15}{} of {} answers from the wrong side, to {} users", "hash", check.wrong_answers, check.checked, check.wrong_users)?;
        for wrong in check.examples.iter().take(TABLE_EXAMPLES) {
            writeln!(formatter, "{:<15}  {} (bucket {}) expected {}, found {} at {:.1}ms", "", wrong.user, wrong.bucket, wrong.expected, wrong.found, wrong.at_ms)?;
        }
        Ok(())
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(measured), Some((low, high))) = (self.measured, self.interval) else {
            return formatter.write_str("none seen");
        };
        write!(formatter, "{:.3}% ({} of {}), 99.9% interval {:.3}% to {:.3}%", measured * 100.0, self.on_new, self.total, low * 100.0, high * 100.0)?;
        if let (Some(expected), Some(inside)) = (self.expected, self.expected_in_interval) {
            write!(formatter, ", expected {:.3}% {}", expected * 100.0, if inside { "inside" } else { "OUTSIDE" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, Report, Z_99_9, wilson_interval};
    use crate::driver::{Measurement, Outcome, Record, RunPlan, Target, TransportFailure};
    use crate::units::Percent;
    use crate::users::{Oracle, Side};
    use http::StatusCode;
    use std::time::Duration;

    const MILLISECOND: u64 = 1_000_000;

    async fn plan(oracle: Option<Oracle>) -> RunPlan {
        RunPlan { rate: 100.0, users: 10, connections: 1, oracle, ..RunPlan::to(Target::resolve("http://127.0.0.1:1", false).await.expect("a loopback target")) }
    }

    fn answered(status: u16, side: Option<Side>) -> Outcome {
        Outcome::Answered { status: StatusCode::from_u16(status).expect("a status"), side }
    }

    /// A request sent on time; instants in milliseconds.
    fn record(user: u32, sent: u64, finished: u64, outcome: Outcome) -> Record {
        Record { user, outcome, intended: sent * MILLISECOND, released: sent * MILLISECOND, sent: Some(sent * MILLISECOND), finished: finished * MILLISECOND }
    }

    async fn report(oracle: Option<Oracle>, records: Vec<Record>) -> Report {
        let measurement = Measurement { records, paced: Duration::from_secs(1), stopped: false };
        Report::new(&plan(oracle).await, measurement)
    }

    #[test]
    fn wilson_gives_the_intervals_of_newcombe_1998() {
        for (successes, trials, low, high) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)] {
            let found = wilson_interval(successes, trials, 1.959_964).expect("an interval");
            assert!((found.0 - low).abs() < 5e-5, "{found:?}");
            assert!((found.1 - high).abs() < 5e-5, "{found:?}");
        }
    }

    #[test]
    fn wilson_stays_within_zero_and_one_and_is_absent_without_trials() {
        assert_eq!(wilson_interval(0, 0, Z_99_9), None);
        let (none, _) = wilson_interval(0, 7, Z_99_9).expect("an interval");
        let (_, all) = wilson_interval(7, 7, Z_99_9).expect("an interval");
        assert_eq!((none, all), (0.0, 1.0));
    }

    #[tokio::test]
    async fn latency_and_lateness_run_from_the_intended_start() {
        let late =
            Record { user: 0, outcome: answered(200, Some(Side::New)), intended: 0, released: 2 * MILLISECOND, sent: Some(5_000 * MILLISECOND), finished: 6_000 * MILLISECOND };
        let report = report(None, vec![late]).await;
        let near = |found: u64, microseconds: u64| found.abs_diff(microseconds) < microseconds / 50;
        assert!(near(report.latency.max_us, 6_000_000));
        assert!(near(report.send_lateness.max_us, 5_000_000));
        assert!(near(report.release_lateness.max_us, 2_000));
    }

    #[tokio::test]
    async fn latency_includes_requests_given_up_but_not_refused_ones() {
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
    async fn switches_follow_the_order_of_sending_not_of_arrival_of_the_records() {
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
    async fn a_switch_between_requests_in_flight_together_has_no_direction() {
        let report = report(None, vec![record(1, 0, 50, answered(200, Some(Side::Legacy))), record(1, 10, 11, answered(200, Some(Side::New)))]).await;
        assert_eq!(report.stickiness.users_on_both_sides, 1);
        assert_eq!(report.stickiness.overlapping, 1);
        assert_eq!(report.stickiness.legacy_to_new, 0);
    }

    #[tokio::test]
    async fn wrong_sides_are_counted_by_answer_and_by_user() {
        // At 0 % everyone belongs on legacy.
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
        assert_eq!((check.checked, check.wrong_answers, check.wrong_users), (3, 2, 1));
        assert_eq!(check.examples[0].expected, Side::Legacy);
        assert_eq!(report.stickiness.users_on_both_sides, 0);
        assert!(report.violations[0].contains("2 of 3 answers"), "{:?}", report.violations);
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
    async fn a_run_without_requests_is_a_violation_and_still_a_report() {
        let report = report(None, Vec::new()).await;
        assert_eq!(report.violations.len(), 1);
        assert!(report.to_string().contains("none seen"));
        serde_json::to_string(&report).expect("json");
    }
}
