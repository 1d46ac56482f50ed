//! The schedule of requests: a pure sequence of instants, and the thread that keeps to it.
//!
//! The pacer has its own thread because the timers of the runtime tick in milliseconds, which is
//! coarser than the latencies measured here.

use crate::driver::{Release, StopHandle};
use crate::users::UserDraws;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The longest single sleep of the pacer, so that it soon notices a stop.
const PACER_SLICE: Duration = Duration::from_millis(50);
/// A constant that makes the gaps between requests independent of the draws of users under the same
/// seed.
const ARRIVAL_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

/// The distribution of the intended starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponential gaps, as with many independent users.
    Poisson,
}

/// The intended starts of a run, as times since its start.
#[derive(Debug, Clone)]
pub struct Schedule {
    rate: f64,
    duration: Duration,
    gaps: Gaps,
}

#[derive(Debug, Clone)]
enum Gaps {
    Equal { issued: u64 },
    Exponential { seconds: f64, random: Box<StdRng> },
}

impl Schedule {
    /// Creates the starts from zero up to `duration`. The first start of a constant schedule is at
    /// zero.
    pub fn new(arrivals: Arrivals, rate: f64, duration: Duration, seed: u64) -> Self {
        let gaps = match arrivals {
            Arrivals::Constant => Gaps::Equal { issued: 0 },
            Arrivals::Poisson => Gaps::Exponential {
                seconds: 0.0,
                random: Box::new(StdRng::seed_from_u64(seed ^ ARRIVAL_STREAM)),
            },
        };
        Self {
            rate,
            duration,
            gaps,
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match &mut self.gaps {
            Gaps::Equal { issued } => {
                // The start is computed from the count, not by adding gaps, so that rounding does
                // not drift.
                let seconds = *issued as f64 / self.rate;
                *issued += 1;
                seconds
            }
            Gaps::Exponential { seconds, random } => {
                // 1 - u is in (0, 1], so its logarithm is finite.
                *seconds -= (1.0 - random.random::<f64>()).ln() / self.rate;
                *seconds
            }
        };
        (seconds < self.duration.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
    }
}

/// How long the pacer released requests, and whether it was stopped.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) time: Duration,
    pub(super) stopped: bool,
}

/// Releases a request at each instant of the schedule.
pub(super) fn pace(
    schedule: Schedule,
    mut users: UserDraws,
    start: Instant,
    release: &mpsc::UnboundedSender<Release>,
    stop: &StopHandle,
) -> Paced {
    let duration = schedule.duration;
    for intended in schedule {
        let released = loop {
            let now = start.elapsed();
            if stop.is_stopped() || release.is_closed() {
                return Paced {
                    time: now,
                    stopped: true,
                };
            }
            if now >= intended {
                break now;
            }
            thread::sleep((intended - now).min(PACER_SLICE));
        };
        // A closed queue is noticed in the next iteration.
        let _ = release.send(Release {
            user: users.draw(),
            intended,
            released,
        });
    }
    Paced {
        time: duration,
        stopped: false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, Schedule};
    use std::time::Duration;

    #[test]
    fn a_constant_schedule_has_equal_gaps_from_zero_to_the_duration() {
        let starts: Vec<Duration> =
            Schedule::new(Arrivals::Constant, 4.0, Duration::from_secs(1), 1).collect();
        assert_eq!(starts, [0, 250, 500, 750].map(Duration::from_millis));
    }

    #[test]
    fn a_poisson_schedule_repeats_for_a_seed_and_keeps_the_rate() {
        let starts = |seed| {
            Schedule::new(Arrivals::Poisson, 1_000.0, Duration::from_secs(10), seed)
                .collect::<Vec<Duration>>()
        };
        let one = starts(1);
        assert_eq!(one, starts(1));
        assert_ne!(one, starts(2));
        assert!(one.is_sorted());
        assert!(one.iter().all(|start| *start < Duration::from_secs(10)));
        // Ten standard deviations around 10000.
        assert!((9_000..=11_000).contains(&one.len()), "{}", one.len());
    }
}
