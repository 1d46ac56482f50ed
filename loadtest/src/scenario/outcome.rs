//! The outcome of a scenario: each run with all its measurements, and statistics over several runs.

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

/// The lateness of the generator below which it is never reported, in microseconds.
const LATE_US: u64 = 1_000;
/// The wait for a connection above which it is more than bad luck, in microseconds.
const FULL_US: u64 = 50_000;
/// One second, in nanoseconds.
const SECOND: u64 = 1_000_000_000;
const MIB: f64 = 1024.0 * 1024.0;

/// The outcome of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The name of the scenario, or of its file.
    pub scenario: String,
    /// The title of the scenario.
    pub title: String,
    /// The description of the scenario, in a paragraph.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// The version of the kit.
    pub version: &'static str,
    /// The verdicts over all runs.
    pub verdicts: Vec<Verdict>,
    /// The statistics over several runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub over_runs: Vec<OverRuns>,
    /// The outcomes of the runs.
    pub runs: Vec<RunOutcome>,
    /// The scenario as it was played, including changed settings.
    pub text: String,
}

/// The outcome of one run.
#[derive(Debug, Clone, Serialize)]
pub struct RunOutcome {
    /// The seed of the run. The seed and the scenario reproduce the same requests.
    pub seed: u64,
    /// The measurements of the load.
    pub report: Report,
    /// The run over time.
    pub timeline: Timeline,
    /// The percentile curve of latency: quantile and microseconds.
    pub curve: Vec<(f64, u64)>,
    /// The parts that were measured separately.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartOutcome>,
    /// The steps that were taken during the run.
    pub steps: Vec<StepDone>,
    /// The resource use of the processes.
    pub samples: Vec<Sample>,
    /// The counters of the sample backends.
    pub backends: BTreeMap<String, Stats>,
    /// The result of the WebSockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websockets: Option<WebSocketReport>,
    /// The result of the slow clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slow: Vec<SlowReport>,
    /// The result of the capacity search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityReport>,
    /// The percentile distribution of latency, in the format of `.hgrm` files.
    #[serde(skip)]
    pub hgrm: String,
}

/// The measurements of one part of a run, with one or more time ranges.
#[derive(Debug, Clone, Serialize)]
pub struct PartOutcome {
    /// The name of the part.
    pub name: String,
    /// The start and end of each range, in milliseconds.
    pub windows_ms: Vec<(f64, f64)>,
    /// The number of requests with an intended start in the part.
    pub requests: u64,
    /// The number of these requests that failed.
    pub failed: u64,
    /// The latency from the intended start.
    pub latency: Quantiles,
    /// The 99th percentile of the part's median second. A few seconds in which the machine had
    /// other work do not change it.
    pub typical_p99_us: u64,
}

impl PartOutcome {
    /// Measures a part from the records with an intended start within these windows.
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
        // Groups each record by the second of its window, counted over all windows.
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
    /// Returns a note if the generator was too late for credible numbers, or if the target was
    /// full.
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

    /// Returns the mean number of processors that the proxy used and waited for over the samples,
    /// or `None` if it is not known.
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

    /// Returns how much more memory the proxy held at the end than after the first tenth of the
    /// run, or `None` if that is not known.
    pub fn memory_growth_mib(&self) -> Option<f64> {
        let held: Vec<f64> = self
            .samples
            .iter()
            .filter_map(|sample| Some(sample.proxy?.memory_bytes as f64 / MIB))
            .collect();
        Some(held.last()? - held.get(held.len() / 10).filter(|_| held.len() >= 10)?)
    }
}

/// The statistics of a number over several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OverRuns {
    /// The name of the number.
    pub name: &'static str,
    /// The unit of the number, if it has one.
    pub unit: &'static str,
    /// The smallest value.
    pub least: f64,
    /// The median value.
    pub median: f64,
    /// The largest value.
    pub most: f64,
    /// The value in each run.
    pub values: Vec<f64>,
}

/// Returns the statistics over several runs. It is empty for a single run.
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
    fn a_part_of_several_windows_is_measured_as_one() {
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
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let over = OverRuns::of("n", "", vec![4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((over.least, over.median, over.most), (1.0, 2.5, 4.0));
        assert_eq!(over.values, [4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            OverRuns::of("n", "", vec![5.0]).expect("a value").median,
            5.0
        );
    }
}
