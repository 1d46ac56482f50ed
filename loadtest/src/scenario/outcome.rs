//! What came out of a scenario: each run with all that was measured, and the numbers over several runs.

use super::expect::Verdict;
use super::steps::StepDone;
use crate::backend::Stats;
use crate::capacity::CapacityReport;
use crate::driver::Record;
use crate::probe::Sample;
use crate::report::timeline::Timeline;
use crate::report::{Quantiles, Report, Times, readable};
use crate::slow::SlowReport;
use crate::websockets::WebSocketReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Lateness of the generator below which it is never worth a word.
const LATE_US: u64 = 1_000;
/// A wait for a connection that is more than an unlucky moment.
const FULL_US: u64 = 50_000;
const MIB: f64 = 1024.0 * 1024.0;

/// What came out of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name, or its file's.
    pub scenario: String,
    /// What it shows.
    pub title: String,
    /// In a paragraph.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Version of the kit.
    pub version: &'static str,
    /// What was asked, and the answers over all runs.
    pub verdicts: Vec<Verdict>,
    /// The numbers over several runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub over_runs: Vec<OverRuns>,
    /// Each run.
    pub runs: Vec<RunOutcome>,
    /// The scenario as it was played, its settings included.
    pub text: String,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct RunOutcome {
    /// Its seed: with it and the scenario the same requests are made again.
    pub seed: u64,
    /// What the load measured.
    pub report: Report,
    /// Over time.
    pub timeline: Timeline,
    /// The percentile curve of latency: quantile and microseconds.
    pub curve: Vec<(f64, u64)>,
    /// Stretches that were measured apart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartOutcome>,
    /// What happened meanwhile.
    pub steps: Vec<StepDone>,
    /// What processes used.
    pub samples: Vec<Sample>,
    /// What the sample backends counted.
    pub backends: BTreeMap<String, Stats>,
    /// The WebSockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websockets: Option<WebSocketReport>,
    /// The slow clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slow: Vec<SlowReport>,
    /// The search for the knee.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityReport>,
    /// The percentile distribution of latency, as `.hgrm` files have it.
    #[serde(skip)]
    pub hgrm: String,
}

/// A stretch of a run.
#[derive(Debug, Clone, Serialize)]
pub struct PartOutcome {
    /// Its name.
    pub name: String,
    /// Its begin.
    pub from_ms: f64,
    /// Its end.
    pub to_ms: f64,
    /// Requests that were to start in it.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Latency from the intended start.
    pub latency: Quantiles,
}

impl PartOutcome {
    /// Of the records that were to start within these times.
    pub fn of(name: &str, from: Duration, to: Duration, records: &[Record]) -> Self {
        let (begin, end) = (crate::driver::nanoseconds(from), crate::driver::nanoseconds(to));
        let within = || records.iter().filter(|record| (begin..end).contains(&record.intended));
        Self {
            name: name.to_owned(),
            from_ms: from.as_secs_f64() * 1e3,
            to_ms: to.as_secs_f64() * 1e3,
            requests: within().count() as u64,
            failed: within().filter(|record| record.outcome.is_failure()).count() as u64,
            latency: Times::of(within().filter_map(Record::latency)).quantiles(),
        }
    }
}

impl RunOutcome {
    /// What there is to say when the generator was too late for its numbers to be believed, or what it loaded was full.
    pub fn lateness_note(&self) -> Option<String> {
        let late = self.report.release_lateness.p99_us;
        let latency = self.report.latency.p99_us;
        let waited = self.report.send_lateness.p99_us;
        if late > LATE_US && late > latency / 4 {
            return Some(format!(
                "latencies are not to be trusted: the generator itself was late (99 % of releases within {}, of answers within {}); give it more processor or ask for less",
                readable(late),
                readable(latency)
            ));
        }
        (self.capacity.is_none() && waited > FULL_US && waited > latency / 2).then(|| {
            format!(
                "latencies are mostly waiting: all {} connections were busy for up to {} (99 %), so the target, or this machine, was full; ask for less",
                self.report.plan.connections,
                readable(waited)
            )
        })
    }

    /// How much more memory the proxy held at the end than after the first tenth of the run; none if that is not known.
    pub fn memory_growth_mib(&self) -> Option<f64> {
        let held: Vec<f64> = self.samples.iter().filter_map(|sample| Some(sample.proxy?.memory_bytes as f64 / MIB)).collect();
        Some(held.last()? - held.get(held.len() / 10).filter(|_| held.len() >= 10)?)
    }
}

/// A number over several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OverRuns {
    /// What it is.
    pub name: &'static str,
    /// Its unit, if it has one.
    pub unit: &'static str,
    /// Least.
    pub least: f64,
    /// Median.
    pub median: f64,
    /// Most.
    pub most: f64,
    /// In each run.
    pub values: Vec<f64>,
}

/// The numbers over several runs; none for a single one.
pub fn over_runs(runs: &[RunOutcome]) -> Vec<OverRuns> {
    if runs.len() < 2 {
        return Vec::new();
    }
    let since = |run: &RunOutcome| run.report.blast_radius.as_ref().and_then(|blast| blast.since_fault.clone());
    type Read = Box<dyn Fn(&RunOutcome) -> Option<f64>>;
    let numbers: [(&str, &str, Read); 8] = [
        ("bad answers", "", Box::new(move |run| Some(since(run)?.bad_answers as f64))),
        ("users hurt", "", Box::new(move |run| Some(since(run)?.users_hurt as f64))),
        ("time to zero", "ms", Box::new(move |run| Some(since(run)?.time_to_zero_ms))),
        ("fault to end of its step", "ms", Box::new(|run| run.steps.iter().find(|step| step.fault).map(|step| step.end_ms - step.begin_ms))),
        ("failed requests", "", Box::new(|run| Some(run.report.failures.requests as f64))),
        ("latency p50", "ms", Box::new(|run| Some(run.report.latency.p50_us as f64 / 1e3))),
        ("latency p99", "ms", Box::new(|run| Some(run.report.latency.p99_us as f64 / 1e3))),
        ("lateness p99", "ms", Box::new(|run| Some(run.report.release_lateness.p99_us as f64 / 1e3))),
    ];
    numbers.into_iter().filter_map(|(name, unit, read)| OverRuns::of(name, unit, runs.iter().map(read).collect::<Option<Vec<f64>>>()?)).collect()
}

impl OverRuns {
    fn of(name: &'static str, unit: &'static str, values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { *sorted.get(middle)? } else { (sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0 };
        Some(Self { name, unit, least: *sorted.first()?, median, most: *sorted.last()?, values })
    }
}

#[cfg(test)]
mod tests {
    use super::OverRuns;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let over = OverRuns::of("n", "", vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((over.least, over.median, over.most), (1.0, 2.5, 4.0));
        assert_eq!(over.values, [4.0, 1.0, 3.0, 2.0]);
        assert_eq!(OverRuns::of("n", "", vec![5.0]).expect("a value").median, 5.0);
    }
}
