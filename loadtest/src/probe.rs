//! What processes use, by `/proc`: processor time, the wait for a processor, memory, open files.
//!
//! The wait matters as much as the use: on a shared machine a process that is starved for
//! processors uses few. Time of this very process is told apart by threads, because generator and
//! sample backends share it.
//!
//! Deliberately absent: other systems than Linux. There everything reads as unknown, and a report
//! says so.

use crate::stopping::stopped;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How the threads of sample backends are called.
pub const BACKEND_THREADS: &str = "backend";

/// What a process had used at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Processor time.
    pub busy: Duration,
    /// Time in which a thread could have run and had no processor.
    pub starved: Duration,
}

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Holding {
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Open files, connections among them.
    pub files: u64,
}

/// A process that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pid: u32,
}

impl Probe {
    /// Of the process with this id.
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// What the threads used whose names `takes` likes; none if the process cannot be read.
    pub fn usage(&self, takes: impl Fn(&str) -> bool) -> Option<Usage> {
        let mut usage = Usage::default();
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))
            .ok()?
            .flatten()
        {
            // A thread that has ended meanwhile is left out.
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

    /// What it holds; none if the process cannot be read.
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

    /// Processors it may use, by its affinity.
    pub fn cores(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?
            .trim();
        count_list(list)
    }
}

/// Processor time and waiting time of a thread.
fn schedule_of(task: &Path) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    Some((
        Duration::from_nanos(numbers.next()?.ok()?),
        Duration::from_nanos(numbers.next()?.ok()?),
    ))
}

/// How many numbers a list such as `0-3,8` has.
fn count_list(list: &str) -> Option<f64> {
    let mut count = 0_u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(f64::from(count))
}

/// Processors that were used, and waited for, over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cores {
    /// Used.
    pub busy: f64,
    /// Waited for.
    pub starved: f64,
}

impl Usage {
    /// What was used between two moments.
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
    /// Looks at the proxy, if there is one, and at this process.
    pub fn look(proxy: Option<Probe>) -> Self {
        let own = Probe::of(std::process::id());
        Self {
            at: Instant::now(),
            proxy: proxy.and_then(|proxy| proxy.usage(|_| true)),
            generator: own.usage(|name| !name.starts_with(BACKEND_THREADS)),
            backends: own.usage(|name| name.starts_with(BACKEND_THREADS)),
        }
    }

    /// What was used since an earlier look.
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

/// Processors used over some time, by whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Used {
    /// The proxy.
    pub proxy: Option<Cores>,
    /// The generator.
    pub generator: Option<Cores>,
    /// Sample backends in this process.
    pub backends: Option<Cores>,
}

/// The processes of a scenario over time.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// When, since the start of the run.
    pub at_ms: f64,
    /// Processors used since the sample before.
    pub used: Used,
    /// What the proxy holds.
    pub proxy: Option<Holding>,
}

/// Takes a sample every `every` into the list that it returns when `stop` comes.
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
