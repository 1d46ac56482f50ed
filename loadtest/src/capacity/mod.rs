//! The capacity search: the highest rate that a target sustains, and the name of the bottleneck
//! that ended the growth.
//!
//! The search runs steps of open-loop load, each at one rate. The rate is doubled until a step
//! fails, and then the gap is halved. A step passes if nothing failed and the 99th percentile from
//! the intended start stays within a limit. The measurements of each step are kept as evidence for
//! [`bottleneck::name`].

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

/// The rate of the requests sent directly to a backend during a step, in requests per second.
const DIRECT_RATE: f64 = 20.0;
/// The pause between two steps, so that queues can empty.
const REST: Duration = Duration::from_millis(300);

/// The configuration of the capacity search.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacitySection {
    /// The first rate, in requests per second.
    #[serde(default = "first")]
    pub start: f64,
    /// The highest rate that is tried, in requests per second.
    #[serde(default = "highest")]
    pub most: f64,
    /// The duration of each step.
    #[serde(default = "step", deserialize_with = "values::duration")]
    pub step: Duration,
    /// The 99th percentile of latency up to which a step passes.
    #[serde(default = "p99", deserialize_with = "values::duration")]
    pub p99: Duration,
    /// The relative precision of the result: 0.1 means within a tenth.
    #[serde(default = "precision")]
    pub precision: f64,
    /// The address of an external backend. Its own time is measured by a few requests sent to it
    /// directly.
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

/// The result of the capacity search.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityReport {
    /// The highest rate that passed. `None` means that no rate passed.
    pub knee: Option<f64>,
    /// The bottleneck that ended the growth. `None` means that nothing failed up to the highest
    /// rate.
    pub bottleneck: Option<Bottleneck>,
    /// The reason for the named bottleneck, with the numbers.
    pub sentence: String,
    /// The steps in the order in which they ran.
    pub steps: Vec<CapacityStep>,
}

/// One step of the capacity search.
#[derive(Debug, Clone, Serialize)]
pub struct CapacityStep {
    /// The intended rate, in requests per second.
    pub rate: f64,
    /// Whether the step passed.
    pub passed: bool,
    /// The measurements of the step.
    pub evidence: Evidence,
}

/// The system under test, apart from the address that receives the requests.
pub struct Subject<'world> {
    /// The probe of the proxy process, which measures its use of processors.
    pub probe: Option<Probe>,
    /// The number of processors that the proxy may use, if it is known more exactly than from its
    /// affinity.
    pub cores: Option<f64>,
    /// An external backend.
    pub direct: Option<Target>,
    /// A function that returns the counters of the kit's own backends.
    pub stats: &'world (dyn Fn() -> BTreeMap<String, Stats> + Send + Sync),
}

/// Searches for the highest rate. Also returns all measurements of the last rate that passed or, if
/// none passed, of the last rate.
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
    // The gentlest step that passed shows the system without load. The gentlest step that failed
    // shows what broke first.
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
    // The processors are sampled while the load runs, not after its end.
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

/// Returns the mean of these times in microseconds.
fn mean(nanoseconds: impl Iterator<Item = u64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u64);
    for one in nanoseconds {
        sum += one as f64;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64 / 1e3)
}

/// Returns the mean time of the answers in the kit's own backends between two snapshots.
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
