//! One drive of one proxy: a load of some seconds, and the resources that the proxy spent on it.
//!
//! The measure is CPU per request and not requests per second, because the latter varies with every
//! other process on the machine. Figures are taken between two instants within the load, so they
//! include neither the opening of connections nor the last answers.

use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::peers::load::{Load, Pace, Plan};
use crate::peers::peer::Running;
use crate::peers::population::{After, Requests, requests};
use crate::peers::process;

/// The smallest share of an open loop's rate that has to be answered. A load that cannot keep up
/// would measure itself.
const REACHED: f64 = 0.98;
/// The largest share of its time that a proxy's core may have spent on other work in a calm round.
const CALM_LOST: f64 = 0.05;

/// The largest p99 lateness of the load itself in a calm round, in microseconds. This lateness is
/// part of every latency.
const CALM_LATE_US: f64 = 500.0;

/// The conditions that all drives of a run share.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The time before the measured time.
    pub warm_up: Duration,
    /// The measured time.
    pub measured: Duration,
    /// The number of connections of the load.
    pub connections: usize,
    /// The core of the proxies. `None` if they are not pinned to one.
    pub core: Option<usize>,
    /// The requests sent on kept connections.
    pub kept: Requests,
    /// The requests that each get a connection of their own.
    pub closing: Requests,
}

impl Conditions {
    /// Creates the usual requests under these conditions.
    pub fn new(
        warm_up: Duration,
        measured: Duration,
        connections: usize,
        core: Option<usize>,
    ) -> Self {
        Self {
            warm_up,
            measured,
            connections,
            core,
            kept: requests(After::Keep),
            closing: requests(After::Close),
        }
    }
}

/// The result of one drive of one proxy.
#[derive(Clone, Debug, Serialize)]
pub struct Drive {
    /// The CPU time of the proxy per request answered, in microseconds.
    pub cpu_us_per_request: f64,
    /// The number of requests answered per second.
    pub requests_per_second: f64,
    /// The CPU time of the proxy divided by the elapsed time.
    pub busy: f64,
    /// The share of time that other work took of the proxy's core. `None` if the proxy is not
    /// pinned to one.
    pub lost: Option<f64>,
    /// The CPU time of load and backends divided by the elapsed time.
    pub load_busy: f64,
    /// The number of requests without an answer of a backend.
    pub failed: u64,
    /// The error of the first failed request.
    pub first_failure: Option<String>,
    /// The measurements that only an open loop has.
    pub open: Option<Open>,
}

/// The measurements that only an open loop has.
#[derive(Clone, Debug, Serialize)]
pub struct Open {
    /// The intended rate, in requests per second.
    pub rate: f64,
    /// The latencies in microseconds from the intended start.
    pub latency_us: Option<Quantiles>,
    /// The lateness of the load itself, in microseconds.
    pub lateness_us: Option<Quantiles>,
}

/// The quantiles of one drive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // Their names say it.
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
}

impl Quantiles {
    /// Converts a histogram in nanoseconds to quantiles in microseconds. Returns `None` if it is
    /// empty.
    fn of(recorded: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| recorded.value_at_quantile(quantile) as f64 / 1_000.0;
        (!recorded.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
        })
    }
}

impl Drive {
    /// Whether enough of an open loop's rate was answered.
    pub fn has_reached_its_rate(&self) -> bool {
        self.open
            .as_ref()
            .is_none_or(|open| self.requests_per_second >= open.rate * REACHED)
    }

    /// Whether the proxy had its core to itself and received the requests on time and at the
    /// intended rate.
    pub fn is_calm(&self) -> bool {
        let late = self
            .open
            .as_ref()
            .and_then(|open| open.lateness_us)
            .map_or(0.0, |late| late.p99);
        self.has_reached_its_rate()
            && late <= CALM_LATE_US
            && self.lost.is_none_or(|lost| lost <= CALM_LOST)
    }
}

/// The counters at one instant within a load.
struct Sample {
    at: Instant,
    cpu: Duration,
    load_cpu: Duration,
    idle: Option<Duration>,
    answered: u64,
}

impl Sample {
    fn take(proxy: &Running, load: &Load, core: Option<usize>) -> io::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            cpu: proxy.process.cpu_time()?,
            load_cpu: process::own_cpu_time()?,
            idle: core.map(process::idle_time).transpose()?,
            answered: load.answered(),
        })
    }
}

/// Drives a proxy at this pace.
///
/// # Errors
/// Fails if the proxy ends or answers nothing.
pub async fn drive(proxy: &mut Running, pace: Pace, conditions: &Conditions) -> io::Result<Drive> {
    let Conditions {
        warm_up,
        measured,
        connections,
        core,
        kept,
        closing,
    } = conditions.clone();
    let requests = if pace == Pace::Reconnecting {
        closing
    } else {
        kept
    };
    let load = Load::start(
        Plan {
            address: proxy.address,
            connections,
            pace,
            measured: warm_up..warm_up + measured,
            requests,
        },
        std::mem::take(&mut proxy.sightings),
    )?;
    tokio::time::sleep_until((load.started() + warm_up).into()).await;
    let before = Sample::take(proxy, &load, core)?;
    tokio::time::sleep_until((load.started() + warm_up + measured).into()).await;
    let after = Sample::take(proxy, &load, core)?;
    let seen = load.stop();
    proxy.sightings = seen.sightings;
    if !proxy.process.is_running()? {
        return Err(io::Error::other(format!(
            "{} ended under load",
            proxy.peer.name()
        )));
    }
    let seconds = (after.at - before.at).as_secs_f64();
    let answered = (after.answered - before.answered) as f64;
    if answered == 0.0 {
        let why = seen
            .first_failure
            .unwrap_or_else(|| "no failure either".to_owned());
        return Err(io::Error::other(format!(
            "{} answered nothing for {seconds:.0} s ({why})",
            proxy.peer.name()
        )));
    }
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let idle = before
        .idle
        .zip(after.idle)
        .map(|(before, after)| after.saturating_sub(before).as_secs_f64());
    Ok(Drive {
        cpu_us_per_request: cpu * 1e6 / answered,
        requests_per_second: answered / seconds,
        busy: cpu / seconds,
        lost: idle.map(|idle| ((seconds - idle - cpu) / seconds).max(0.0)),
        load_busy: after.load_cpu.saturating_sub(before.load_cpu).as_secs_f64() / seconds,
        failed: seen.failed,
        first_failure: seen.first_failure,
        open: match pace {
            Pace::Open { rate } => Some(Open {
                rate,
                latency_us: Quantiles::of(&seen.latency_ns),
                lateness_us: Quantiles::of(&seen.lateness_ns),
            }),
            Pace::Closed | Pace::Reconnecting => None,
        },
    })
}

/// Returns the order of the rows in this round. A different row is first each time, so no row
/// always follows the same neighbour's noise.
pub fn turned(rows: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |turn| (round + turn) % rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a drive with these figures and without any problem.
    pub(crate) fn of(cpu_us_per_request: f64, p99: Option<f64>) -> Drive {
        let quantiles = |p99| {
            Some(Quantiles {
                p50: p99 / 2.0,
                p90: p99 / 1.5,
                p99,
                p99_9: p99 * 2.0,
            })
        };
        let open = p99.map(|p99| Open {
            rate: 1_000.0,
            latency_us: quantiles(p99),
            lateness_us: quantiles(10.0),
        });
        Drive {
            cpu_us_per_request,
            requests_per_second: 1_000.0,
            busy: 0.5,
            lost: Some(0.01),
            load_busy: 0.3,
            failed: 0,
            first_failure: None,
            open,
        }
    }

    #[test]
    fn every_row_is_first_in_one_round() {
        let orders: Vec<Vec<usize>> = (0..4).map(|round| turned(3, round).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }

    #[test]
    fn a_round_is_calm_if_the_core_was_free_and_the_rate_was_reached() {
        assert!(of(10.0, None).is_calm());
        assert!(of(10.0, Some(5.0)).is_calm());
        assert!(
            !Drive {
                lost: Some(0.06),
                ..of(10.0, None)
            }
            .is_calm()
        );
        assert!(
            Drive {
                lost: None,
                ..of(10.0, None)
            }
            .is_calm()
        );
        let slow = Drive {
            requests_per_second: 970.0,
            ..of(10.0, Some(5.0))
        };
        assert!(!slow.has_reached_its_rate() && !slow.is_calm());
        let late = |p99| Drive {
            open: of(10.0, Some(p99)).open.map(|open| Open {
                lateness_us: open.latency_us,
                ..open
            }),
            ..of(10.0, None)
        };
        assert!(late(400.0).is_calm() && !late(600.0).is_calm());
        assert!(
            Drive {
                requests_per_second: 970.0,
                ..of(10.0, None)
            }
            .is_calm(),
            "a closed loop has no rate"
        );
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut recorded = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
        assert_eq!(Quantiles::of(&recorded), None);
        (1..=1_000).for_each(|microseconds| recorded.saturating_record(microseconds * 1_000));
        let Quantiles {
            p50,
            p90,
            p99,
            p99_9,
        } = Quantiles::of(&recorded).expect("something was");
        for (found, expected) in [(p50, 500.0), (p90, 900.0), (p99, 990.0), (p99_9, 999.0)] {
            assert!(
                (found - expected).abs() <= expected / 1_000.0 + 0.01,
                "{found} {expected}"
            );
        }
    }
}
