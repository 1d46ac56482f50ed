//! Where the knee is, and what makes it: the highest rate that a target bears, and the name of what
//! ended it.
//!
//! Steps of open-loop load, each of one rate: doubled until one fails, then halved in between. A
//! step passes if nothing failed and the 99th percentile from the intended start stays within a
//! limit. What each step shows is kept as evidence; [`bottleneck::name`] reads it.

pub mod bottleneck;
mod search;

pub use crate::capacity::bottleneck::{Bottleneck, Evidence};

use crate::backend::Stats;
use crate::capacity::bottleneck::Limits;
use crate::capacity::search::Search;
use crate::driver::{Driver, Measurement, Outcome, Record, RunPlan, Target};
use crate::probe::{Moment, Probe};
use crate::report::{Times, readable};
use crate::values;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::sync::watch;

/// Rate of the requests that go directly to a backend, beside a step.
const DIRECT_RATE: f64 = 20.0;
/// Pause between two steps, for queues to empty.
const REST: Duration = Duration::from_millis(300);

/// The search for the knee.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacitySection {
    /// The first rate.
    #[serde(default = "first")]
    pub start: f64,
    /// The highest rate that is tried.
    #[serde(default = "highest")]
    pub most: f64,
    /// How long each rate lasts.
    #[serde(default = "step", deserialize_with = "values::duration")]
    pub step: Duration,
    /// The 99th percentile within which a step passes.
    #[serde(default = "p99", deserialize_with = "values::duration")]
    pub p99: Duration,
    /// How near the knee is to be found: 0.1 is within a tenth.
    #[serde(default = "precision")]
    pub precision: f64,
    /// A backend that is not one of ours: its own time is measured by a few requests beside the
    /// target.
    pub direct: Option<String>,
}

fn first() -> f64 {
    500.0
}

fn highest() -> f64 {
    200_000.0
}

fn step() -> Duration {
    Duration::from_secs(3)
}

fn p99() -> Duration {
    Duration::from_millis(50)
}

fn precision() -> f64 {
    0.1
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityReport {
    /// The highest rate that passed; none if none did.
    pub knee: Option<f64>,
    /// What ended it; none if nothing did up to the highest rate.
    pub bottleneck: Option<Bottleneck>,
    /// Why that is its name, with the numbers.
    pub sentence: String,
    /// The steps in their order.
    pub steps: Vec<CapacityStep>,
}

/// One rate.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityStep {
    /// Requests per second that were to be sent.
    pub rate: f64,
    /// Whether it passed.
    pub passed: bool,
    /// What it shows.
    pub evidence: Evidence,
}

/// What is explored, beside where the requests go.
pub struct Subject<'world> {
    /// The proxy, to see what it uses.
    pub probe: Option<Probe>,
    /// Processors it may use, if that is known better than by its affinity.
    pub cores: Option<f64>,
    /// A backend that is not one of ours.
    pub direct: Option<Target>,
    /// What our backends have counted.
    pub stats: &'world (dyn Fn() -> BTreeMap<String, Stats> + Send + Sync),
}

/// Looks for the knee. Also returns everything that was measured at the last rate that passed, or
/// at the last one.
pub async fn explore(
    section: &CapacitySection,
    plan: &RunPlan,
    subject: &Subject<'_>,
    stop: &watch::Receiver<bool>,
    say: &(dyn Fn(&str) + Send + Sync),
) -> io::Result<(CapacityReport, RunPlan, Measurement)> {
    let Subject { probe, cores, .. } = *subject;
    let mut search = Search::new(section.start, section.most, section.precision);
    let mut steps: Vec<CapacityStep> = Vec::new();
    let mut kept: Option<(bool, RunPlan, Measurement)> = None;
    while let Some(rate) = search.next()
        && !*stop.borrow()
    {
        let plan = RunPlan {
            rate,
            duration: section.step,
            seed: plan.seed + steps.len() as u64,
            ..plan.clone()
        };
        let (evidence, measurement) = measure(&plan, subject).await?;
        let passed = evidence.failed == 0
            && evidence.p99_us <= u64::try_from(section.p99.as_micros()).unwrap_or(u64::MAX);
        say(&format!(
            "{rate:.0} per second: {}, 99 % within {}, {} failed",
            if passed { "passed" } else { "too much" },
            readable(evidence.p99_us),
            evidence.failed
        ));
        search.found(rate, passed);
        steps.push(CapacityStep {
            rate,
            passed,
            evidence,
        });
        if passed || kept.as_ref().is_none_or(|(passed, _, _)| !passed) {
            kept = Some((passed, plan, measurement));
        }
        tokio::time::sleep(REST).await;
    }
    let (_, plan, measurement) =
        kept.ok_or_else(|| io::Error::other("the search was ended before its first step"))?;
    let limits = Limits {
        proxy_cores: cores.or_else(|| probe.and_then(|probe| probe.cores())),
        machine_cores: Probe::of(std::process::id()).cores().unwrap_or(1.0),
        in_flight: plan.in_flight() as u64,
        p99_us: u64::try_from(section.p99.as_micros()).unwrap_or(u64::MAX),
    };
    let knee = steps
        .iter()
        .filter(|step| step.passed)
        .map(|step| step.rate)
        .max_by(f64::total_cmp);
    // The gentlest step that passed shows how things are without load, the gentlest that failed
    // what broke first.
    let base = steps
        .iter()
        .filter(|step| step.passed)
        .min_by(|one, other| one.rate.total_cmp(&other.rate))
        .map(|step| &step.evidence);
    let broken = steps
        .iter()
        .filter(|step| !step.passed)
        .min_by(|one, other| one.rate.total_cmp(&other.rate));
    let (bottleneck, sentence) = match broken {
        None => (
            None,
            format!(
                "nothing gave way up to {:.0} requests per second",
                knee.unwrap_or(0.0)
            ),
        ),
        Some(broken) => {
            let (bottleneck, why) = bottleneck::name(base, &broken.evidence, &limits);
            (
                Some(bottleneck),
                format!(
                    "{bottleneck} at {:.0} requests per second: {why}",
                    broken.rate
                ),
            )
        }
    };
    Ok((
        CapacityReport {
            knee,
            bottleneck,
            sentence,
            steps,
        },
        plan,
        measurement,
    ))
}

async fn measure(plan: &RunPlan, subject: &Subject<'_>) -> io::Result<(Evidence, Measurement)> {
    let Subject { probe, stats, .. } = *subject;
    let counted = stats();
    let before = Moment::look(probe);
    let beside = match &subject.direct {
        Some(target) => Some(Driver::start(RunPlan {
            rate: DIRECT_RATE,
            duration: plan.duration,
            timeout: plan.timeout,
            ..RunPlan::to(target.clone())
        })?),
        None => None,
    };
    let driver = Driver::start(plan.clone())?;
    // Looked at while the load is on, not after its end.
    tokio::time::sleep(plan.duration).await;
    let used = Moment::look(probe).since(&before);
    let mut measurement = driver.finish().await?;
    measurement.sort();
    let service_us = match beside {
        Some(beside) => mean(beside.finish().await?.records.iter().filter_map(exchange)),
        None => service(&counted, &stats()),
    };
    let records = &measurement.records;
    let failures = |matches: &dyn Fn(&Outcome) -> bool| {
        records
            .iter()
            .filter(|record| record.outcome.is_failure() && matches(&record.outcome))
            .count() as u64
    };
    let evidence = Evidence {
        p99_us: Times::of(records.iter().filter_map(Record::latency))
            .quantiles()
            .p99_us,
        failed: failures(&|_| true),
        refused: failures(&bottleneck::is_refusal),
        requests: records.len() as u64,
        late_p99_us: Times::of(
            records
                .iter()
                .map(|record| record.released.saturating_sub(record.intended)),
        )
        .quantiles()
        .p99_us,
        wait_us: mean(records.iter().map(wait)).unwrap_or(0.0),
        wait_p99_us: Times::of(records.iter().map(wait)).quantiles().p99_us,
        exchange_us: mean(records.iter().filter_map(exchange)),
        service_us,
        most_in_backend: counted_most(&stats()),
        used,
    };
    Ok((evidence, measurement))
}

fn wait(record: &Record) -> u64 {
    record
        .sent
        .unwrap_or(record.finished)
        .saturating_sub(record.released)
}

fn exchange(record: &Record) -> Option<u64> {
    Some(record.finished.saturating_sub(record.sent?))
}

/// The mean of these times in microseconds.
fn mean(nanoseconds: impl Iterator<Item = u64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u64);
    for one in nanoseconds {
        sum += one as f64;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64 / 1e3)
}

/// The mean time of an answer in our backends, of those between two countings.
fn service(before: &BTreeMap<String, Stats>, after: &BTreeMap<String, Stats>) -> Option<f64> {
    let sum = |counted: &BTreeMap<String, Stats>, of: &dyn Fn(&Stats) -> u64| {
        counted.values().map(of).sum::<u64>()
    };
    let answered = |stats: &Stats| stats.requests;
    let requests = sum(after, &answered).saturating_sub(sum(before, &answered));
    let busy =
        sum(after, &|stats| stats.busy_us).saturating_sub(sum(before, &|stats| stats.busy_us));
    (requests > 0).then(|| busy as f64 / requests as f64)
}

fn counted_most(stats: &BTreeMap<String, Stats>) -> Option<u64> {
    stats.values().map(|stats| stats.most_in_flight).max()
}
