//! What came out of a scenario: each run with all that was measured, and the numbers over several
//! runs.

use crate::backend::Stats;
use crate::capacity::CapacityReport;
use crate::driver::Record;
use crate::probe::Sample;
use crate::report::timeline::Timeline;
use crate::report::{Quantiles, Report, Times, readable};
use crate::scenario::expect::Verdict;
use crate::scenario::steps::StepDone;
use crate::slow::SlowReport;
use crate::websockets::WebSocketReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Lateness of the generator below which it is never worth a word.
const LATE_US: u64 = 1_000;
/// A wait for a connection that is more than an unlucky moment.
const FULL_US: u64 = 50_000;
/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
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

/// A stretch of a run, or several of one name.
#[derive(Debug, Clone, Serialize)]
pub struct PartOutcome {
    /// Its name.
    pub name: String,
    /// Begins and ends in milliseconds.
    pub windows_ms: Vec<(f64, f64)>,
    /// Requests that were to start in it.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Latency from the intended start.
    pub latency: Quantiles,
    /// The 99th percentile of its median second: a few seconds in which the machine had other work
    /// do not move it.
    pub typical_p99_us: u64,
}

impl PartOutcome {
    /// Of the records that were to start within these windows.
    pub fn of(name: &str, windows: &[(Duration, Duration)], records: &[Record]) -> Self {
        let bounds: Vec<(u64, u64)> = windows
            .iter()
            .map(|(from, to)| {
                (
                    crate::driver::nanoseconds(*from),
                    crate::driver::nanoseconds(*to),
                )
            })
            .collect();
        // Each record with the second of its window, counted over all windows.
        let mut seconds: BTreeMap<(usize, u64), Vec<&Record>> = BTreeMap::new();
        for record in records {
            if let Some(window) = bounds
                .iter()
                .position(|(begin, end)| (*begin..*end).contains(&record.intended))
            {
                seconds
                    .entry((window, (record.intended - bounds[window].0) / SECOND))
                    .or_default()
                    .push(record);
            }
        }
        let within = || seconds.values().flatten();
        let mut by_second: Vec<u64> = seconds
            .values()
            .map(|records| {
                Times::of(records.iter().filter_map(|record| record.latency()))
                    .quantiles()
                    .p99_us
            })
            .collect();
        by_second.sort_unstable();
        Self {
            name: name.to_owned(),
            windows_ms: windows
                .iter()
                .map(|(from, to)| (from.as_secs_f64() * 1e3, to.as_secs_f64() * 1e3))
                .collect(),
            requests: within().count() as u64,
            failed: within()
                .filter(|record| record.outcome.is_failure())
                .count() as u64,
            latency: Times::of(within().filter_map(|record| record.latency())).quantiles(),
            typical_p99_us: by_second.get(by_second.len() / 2).copied().unwrap_or(0),
        }
    }
}

impl RunOutcome {
    /// What there is to say when the generator was too late for its numbers to be believed, or what
    /// it loaded was full.
    pub fn lateness_note(&self) -> Option<String> {
        let late = self.report.release_lateness.p99_us;
        let latency = self.report.latency.p99_us;
        let waited = self.report.send_lateness.p99_us;
        if late > LATE_US && late > latency / 4 {
            return Some(format!(
                "latencies are not to be trusted: the generator itself was late (99 % of releases \
                 within {}, of answers within {}); give it more processor or ask for less",
                readable(late),
                readable(latency)
            ));
        }
        if let Some((busy, starved)) = self
            .mean_proxy_cores()
            .filter(|(busy, starved)| self.capacity.is_none() && starved > busy)
        {
            return Some(format!(
                "latencies are not to be trusted: the proxy used {busy:.2} processors and waited \
                 for {starved:.2}, so this machine has other work"
            ));
        }
        (self.capacity.is_none() && waited > FULL_US && waited > latency / 2).then(|| {
            format!(
                "latencies are mostly waiting: all {} connections were busy for up to {} (99 %), \
                 so the target, or this machine, was full; ask for less",
                self.report.plan.connections,
                readable(waited)
            )
        })
    }

    /// Processors that the proxy used and waited for, over the samples; none if that is not known.
    fn mean_proxy_cores(&self) -> Option<(f64, f64)> {
        let cores: Vec<_> = self
            .samples
            .iter()
            .filter_map(|sample| sample.used.proxy)
            .collect();
        let mean = |read: &dyn Fn(&crate::probe::Cores) -> f64| {
            cores.iter().map(read).sum::<f64>() / cores.len() as f64
        };
        (!cores.is_empty()).then(|| (mean(&|one| one.busy), mean(&|one| one.starved)))
    }

    /// How much more memory the proxy held at the end than after the first tenth of the run; none
    /// if that is not known.
    pub fn memory_growth_mib(&self) -> Option<f64> {
        let held: Vec<f64> = self
            .samples
            .iter()
            .filter_map(|sample| Some(sample.proxy?.memory_bytes as f64 / MIB))
            .collect();
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
    let since = |run: &RunOutcome| {
        run.report
            .blast_radius
            .as_ref()
            .and_then(|blast| blast.since_fault.clone())
    };
    type Read = Box<dyn Fn(&RunOutcome) -> Option<f64>>;
    let numbers: [(&str, &str, Read); 8] = [
        (
            "bad answers",
            "",
            Box::new(move |run| Some(since(run)?.bad_answers as f64)),
        ),
        (
            "users hurt",
            "",
            Box::new(move |run| Some(since(run)?.users_hurt as f64)),
        ),
        (
            "time to zero",
            "ms",
            Box::new(move |run| Some(since(run)?.time_to_zero_ms)),
        ),
        (
            "fault to end of its step",
            "ms",
            Box::new(|run| {
                run.steps
                    .iter()
                    .find(|step| step.fault)
                    .map(|step| step.end_ms - step.begin_ms)
            }),
        ),
        (
            "failed requests",
            "",
            Box::new(|run| Some(run.report.failures.requests as f64)),
        ),
        (
            "latency p50",
            "ms",
            Box::new(|run| Some(run.report.latency.p50_us as f64 / 1e3)),
        ),
        (
            "latency p99",
            "ms",
            Box::new(|run| Some(run.report.latency.p99_us as f64 / 1e3)),
        ),
        (
            "lateness p99",
            "ms",
            Box::new(|run| Some(run.report.release_lateness.p99_us as f64 / 1e3)),
        ),
    ];
    numbers
        .into_iter()
        .filter_map(|(name, unit, read)| {
            OverRuns::of(
                name,
                unit,
                runs.iter().map(read).collect::<Option<Vec<f64>>>()?,
            )
        })
        .collect()
}

impl OverRuns {
    fn of(name: &'static str, unit: &'static str, values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            *sorted.get(middle)?
        } else {
            (sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0
        };
        Some(Self {
            name,
            unit,
            least: *sorted.first()?,
            median,
            most: *sorted.last()?,
            values,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{OverRuns, PartOutcome};
    use crate::driver::{Outcome, Record};
    use http::StatusCode;
    use std::time::Duration;

    #[test]
    fn a_part_of_several_windows_is_measured_as_one_and_by_its_median_second() {
        let record = |at_ms: u64, took_ms: u64| Record {
            user: 1,
            outcome: Outcome::Answered {
                status: StatusCode::OK,
                side: None,
            },
            intended: at_ms * 1_000_000,
            released: at_ms * 1_000_000,
            sent: Some(at_ms * 1_000_000),
            finished: (at_ms + took_ms) * 1_000_000,
        };
        let records = [
            record(100, 1),
            record(1_100, 900),
            record(2_500, 500),
            record(5_000, 3),
            record(5_999, 4),
            record(6_000, 800),
        ];
        let windows = [
            (Duration::ZERO, Duration::from_secs(2)),
            (Duration::from_secs(5), Duration::from_secs(6)),
        ];
        let part = PartOutcome::of("quiet", &windows, &records);
        assert_eq!((part.requests, part.failed), (4, 0));
        assert!(part.latency.p99_us > 890_000, "{part:?}");
        assert!((3_900..4_100).contains(&part.typical_p99_us), "{part:?}");
        assert_eq!(PartOutcome::of("none", &windows, &[]).typical_p99_us, 0);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let over = OverRuns::of("n", "", vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((over.least, over.median, over.most), (1.0, 2.5, 4.0));
        assert_eq!(over.values, [4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            OverRuns::of("n", "", vec![5.0]).expect("a value").median,
            5.0
        );
    }
}
