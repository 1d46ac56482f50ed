//! The resources that processes use, read from `/proc`: processor time, the wait for a processor,
//! memory, and open files.
//!
//! The wait matters as much as the use: on a shared machine a process that is starved of processors
//! uses few. The time of this process is split by threads, because the generator and the sample
//! backends share it.
//!
//! Deliberately absent: systems other than Linux. There everything reads as unknown, and a report
//! says so.

use crate::stopping::stopped;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The name of the threads of sample backends.
pub const BACKEND_THREADS: &str = "backend";

/// What a process had used at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// The processor time.
    pub busy: Duration,
    /// The time in which a thread was ready to run but had no processor.
    pub starved: Duration,
}

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Holding {
    /// The resident memory in bytes.
    pub memory_bytes: u64,
    /// The number of open files, including connections.
    pub files: u64,
}

/// A process that is monitored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pid: u32,
}

impl Probe {
    /// Creates a probe of the process with this ID.
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// Returns the usage of the threads whose names `takes` accepts, or `None` if the process
    /// cannot be read.
    pub fn usage(&self, takes: impl Fn(&str) -> bool) -> Option<Usage> {
        let mut usage = Usage::default();
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))
            .ok()?
            .flatten()
        {
            // A thread that has ended in the meantime is left out.
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            if takes(name.trim_end())
                && let Some((busy, starved)) = schedule_of(&thread.path())
            {
                usage.busy += busy;
                usage.starved += starved;
            }
        }
        Some(usage)
    }

    /// Returns what the process holds, or `None` if it cannot be read.
    pub fn holding(&self) -> Option<Holding> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()?;
        let files =
            fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, |files| files.count() as u64);
        Some(Holding {
            memory_bytes: kib * 1024,
            files,
        })
    }

    /// Returns the number of processors that the process may use, by its affinity.
    pub fn cores(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?
            .trim();
        count_list(list)
    }
}

/// Returns the processor time and the waiting time of a thread.
fn schedule_of(task: &Path) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    Some((
        Duration::from_nanos(numbers.next()?.ok()?),
        Duration::from_nanos(numbers.next()?.ok()?),
    ))
}

/// Counts the numbers in a list such as `0-3,8`.
fn count_list(list: &str) -> Option<f64> {
    let mut count = 0_u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(f64::from(count))
}

/// The processors that were used, and waited for, over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cores {
    /// The number of processors used.
    pub busy: f64,
    /// The number of processors waited for.
    pub starved: f64,
}

impl Usage {
    /// Returns what was used between two moments.
    pub fn since(&self, earlier: &Self, time: Duration) -> Cores {
        let seconds = time.as_secs_f64().max(1e-9);
        Cores {
            busy: self.busy.saturating_sub(earlier.busy).as_secs_f64() / seconds,
            starved: self.starved.saturating_sub(earlier.starved).as_secs_f64() / seconds,
        }
    }
}

/// The processes of a scenario at one moment.
#[derive(Debug, Clone)]
pub struct Moment {
    at: Instant,
    proxy: Option<Usage>,
    generator: Option<Usage>,
    backends: Option<Usage>,
}

impl Moment {
    /// Reads the usage of the proxy, if there is one, and of this process.
    pub fn look(proxy: Option<Probe>) -> Self {
        let own = Probe::of(std::process::id());
        Self {
            at: Instant::now(),
            proxy: proxy.and_then(|proxy| proxy.usage(|_| true)),
            generator: own.usage(|name| !name.starts_with(BACKEND_THREADS)),
            backends: own.usage(|name| name.starts_with(BACKEND_THREADS)),
        }
    }

    /// Returns what was used since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Used {
        let time = self.at.duration_since(earlier.at);
        let between = |now: &Option<Usage>, then: &Option<Usage>| {
            Some(now.as_ref()?.since(then.as_ref()?, time))
        };
        Used {
            proxy: between(&self.proxy, &earlier.proxy),
            generator: between(&self.generator, &earlier.generator),
            backends: between(&self.backends, &earlier.backends),
        }
    }
}

/// The processors used over some time, by user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Used {
    /// The processors used by the proxy.
    pub proxy: Option<Cores>,
    /// The processors used by the generator.
    pub generator: Option<Cores>,
    /// The processors used by sample backends in this process.
    pub backends: Option<Cores>,
}

/// One sample of the processes of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The time of the sample, in milliseconds since the start of the run.
    pub at_ms: f64,
    /// The processors used since the previous sample.
    pub used: Used,
    /// What the proxy holds.
    pub proxy: Option<Holding>,
}

/// Takes a sample every `every` until `stop` is signalled, and returns the list.
pub async fn sample(
    proxy: Option<Probe>,
    start: Instant,
    every: Duration,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut before = Moment::look(proxy);
    let mut ticks = tokio::time::interval(every);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return samples,
            _ = ticks.tick() => {}
        }
        let now = Moment::look(proxy);
        samples.push(Sample {
            at_ms: start.elapsed().as_secs_f64() * 1e3,
            used: now.since(&before),
            proxy: proxy.and_then(|proxy| proxy.holding()),
        });
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::{Probe, Usage, count_list};
    use std::time::Duration;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, count) in [
            ("0", Some(1.0)),
            ("0-1", Some(2.0)),
            ("0-3,8", Some(5.0)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(count_list(list), count, "{list}");
        }
    }

    #[test]
    fn use_is_a_difference_over_time() {
        let usage = |busy, starved| Usage {
            busy: Duration::from_millis(busy),
            starved: Duration::from_millis(starved),
        };
        let cores = usage(1_500, 250).since(&usage(1_000, 0), Duration::from_secs(1));
        assert_eq!((cores.busy, cores.starved), (0.5, 0.25));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_can_be_read() {
        let own = Probe::of(std::process::id());
        assert!(own.holding().expect("holding").memory_bytes > 0);
        assert!(own.cores().expect("cores") >= 1.0);
        own.usage(|_| true).expect("usage");
        assert_eq!(Probe::of(u32::MAX).holding(), None);
    }
}
