//! The identification of a bottleneck from evidence, as a pure function.
//!
//! Anything slow appears slow everywhere: a busy backend fills the proxy's connections, and those
//! fill the generator's. The question is therefore not what is full. It is what has changed between
//! the gentlest step that passed and the gentlest step that failed. The checks run from the outside
//! to the inside:
//!
//! 1. Answers were refused while processors were idle: a limit on connections.
//! 2. The wait for one of the generator's connections has grown and the exchange on it has not: the
//!    generator has too few.
//! 3. The exchange has grown, and most of that is time in the backend: the backend.
//! 4. The proxy has used, or waited for, nearly all the processors it may use: the proxy.
//! 5. The generator was late by itself: the generator. A proxy that takes all processors also makes
//!    the generator late, so this check runs after the one for the proxy.
//! 6. The exchange has grown with idle processors, and the number of requests in the backend at
//!    once had a ceiling: again a limit on connections, this time inside.

use crate::driver::{Outcome, TransportFailure};
use crate::probe::{Cores, Used};
use crate::report::readable;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The share of the available processors above which they count as the limit.
const FULL: f64 = 0.85;
/// The share of failures that have to be refusals.
const MOSTLY: f64 = 0.5;
/// The factor by which an exchange has to be longer to count as grown.
const GROWN: f64 = 1.5;

/// The cause that ends the growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// The processors of the proxy.
    ProxyCpu,
    /// The time spent in the backend.
    Backend,
    /// A limit on connections or on concurrent requests.
    ConnectionLimit,
    /// The load generator itself.
    Generator,
    /// No cause that the evidence supports.
    Unknown,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ProxyCpu => "the processors of the proxy",
            Self::Backend => "the backend",
            Self::ConnectionLimit => "a limit on connections",
            Self::Generator => "the load generator",
            Self::Unknown => "something that the evidence does not name",
        })
    }
}

/// The measurements of one step. Times are means in microseconds unless stated otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evidence {
    /// The 99th percentile of latency from the intended start.
    pub p99_us: u64,
    /// The number of requests.
    pub requests: u64,
    /// The number of failed requests.
    pub failed: u64,
    /// The number of requests that failed by a refusal: no connection, a reset, 429 or 503.
    pub refused: u64,
    /// The 99th percentile of the generator's own lateness.
    pub late_p99_us: u64,
    /// The time from the release of a request to its connection.
    pub wait_us: f64,
    /// The 99th percentile of the time from the release of a request to its connection.
    pub wait_p99_us: u64,
    /// The time from getting a connection to the end of the answer.
    pub exchange_us: Option<f64>,
    /// The time spent in the backend.
    pub service_us: Option<f64>,
    /// The highest number of concurrent requests that a backend has seen so far.
    pub most_in_backend: Option<u64>,
    /// The processor time that was used.
    pub used: Used,
}

/// The limits that evidence is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The number of processors that the proxy may use.
    pub proxy_cores: Option<f64>,
    /// The number of processors of the machine that this process may use.
    pub machine_cores: f64,
    /// The highest number of requests that the generator can have in flight.
    pub in_flight: u64,
    /// The 99th percentile of latency up to which a step passes, in microseconds.
    pub p99_us: u64,
}

/// Whether a failure means that a limit was reached.
pub(super) fn is_refusal(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answered { status, .. } => matches!(
            *status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ),
        Outcome::Failed(TransportFailure::Connect | TransportFailure::Reset) => true,
        Outcome::Failed(
            TransportFailure::Timeout | TransportFailure::Waiting | TransportFailure::Protocol,
        ) => false,
    }
}

/// Names the bottleneck and gives the numbers that support it.
pub fn name(base: Option<&Evidence>, broken: &Evidence, limits: &Limits) -> (Bottleneck, String) {
    let proxy = broken
        .used
        .proxy
        .zip(limits.proxy_cores)
        .map(|(cores, may_use)| ((cores.busy + cores.starved) / may_use, cores, may_use));
    let proxy_is_full = proxy.is_some_and(|(share, _, _)| share >= FULL);
    let idle = proxy.map_or(
        "the proxy's processors are not known".to_owned(),
        |(_, cores, may_use)| format!("the proxy used {:.2} of {may_use} processors", cores.busy),
    );

    if broken.failed > 0 && broken.refused as f64 >= MOSTLY * broken.failed as f64 && !proxy_is_full
    {
        return (
            Bottleneck::ConnectionLimit,
            format!(
                "{} of {} requests were refused (no connection, a reset, 429 or 503) while {idle}",
                broken.refused, broken.requests
            ),
        );
    }
    let exchange = broken.exchange_us.unwrap_or(0.0);
    if let Some(base) = base
        && let Some(before) = base.exchange_us
    {
        if exchange <= GROWN * before && broken.wait_p99_us as f64 >= MOSTLY * broken.p99_us as f64
        {
            return (
                Bottleneck::Generator,
                format!(
                    "its {} connections were all busy: 99 % of requests had one within {}, of the \
                     {} that they took, and an exchange took {} as it did without load",
                    limits.in_flight,
                    readable(broken.wait_p99_us),
                    readable(broken.p99_us),
                    time(exchange)
                ),
            );
        }
        if let (Some(service), Some(before_service)) = (broken.service_us, base.service_us)
            && exchange > before
            && service - before_service >= MOSTLY * (exchange - before)
            && service >= GROWN * before_service
        {
            return (
                Bottleneck::Backend,
                format!(
                    "its answers took {} instead of {}, of the {} that an exchange took; {idle}",
                    time(service),
                    time(before_service),
                    time(exchange)
                ),
            );
        }
    } else if let Some(service) = broken.service_us
        && exchange > 0.0
        && service >= MOSTLY * exchange
    {
        return (
            Bottleneck::Backend,
            format!(
                "its answers took {} of the {} that an exchange took; {idle}",
                time(service),
                time(exchange)
            ),
        );
    }
    if let Some((_, cores, may_use)) = proxy
        && proxy_is_full
    {
        let shared = if cores.starved > cores.busy {
            " (waited more than used: the machine has other work)"
        } else {
            ""
        };
        return (
            Bottleneck::ProxyCpu,
            format!(
                "it used {:.2} and waited for {:.2} of the {may_use} processors it may \
                 use{shared}; an exchange took {}",
                cores.busy,
                cores.starved,
                time(exchange)
            ),
        );
    }
    let own = broken.used.generator.unwrap_or_default();
    if broken.late_p99_us > limits.p99_us / 4 || is_full(&own, limits.machine_cores) {
        return (
            Bottleneck::Generator,
            format!(
                "it released requests up to {} late (99 %), and used {:.2} and waited for {:.2} \
                 of {} processors; {idle}",
                readable(broken.late_p99_us),
                own.busy,
                own.starved,
                limits.machine_cores
            ),
        );
    }
    if let Some(most) = broken.most_in_backend
        && most < limits.in_flight
    {
        return (
            Bottleneck::ConnectionLimit,
            format!(
                "no backend saw more than {most} requests at once of the {} that could be in \
                 flight, while {idle}",
                limits.in_flight
            ),
        );
    }
    (
        Bottleneck::Unknown,
        format!(
            "an exchange took {}, requests waited {} for a connection, and {idle}",
            time(exchange),
            time(broken.wait_us)
        ),
    )
}

fn is_full(cores: &Cores, of: f64) -> bool {
    (cores.busy + cores.starved) / of >= FULL
}

fn time(microseconds: f64) -> String {
    readable(microseconds.max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::{Bottleneck, Evidence, Limits, name};
    use crate::probe::{Cores, Used};

    const LIMITS: Limits = Limits {
        proxy_cores: Some(1.0),
        machine_cores: 2.0,
        in_flight: 128,
        p99_us: 50_000,
    };

    fn used(proxy: f64, generator: f64) -> Used {
        let cores = |busy| Some(Cores { busy, starved: 0.0 });
        Used {
            proxy: cores(proxy),
            generator: cores(generator),
            backends: cores(0.1),
        }
    }

    fn gentle() -> Evidence {
        Evidence {
            p99_us: 2_000,
            requests: 1_000,
            wait_us: 20.0,
            exchange_us: Some(500.0),
            service_us: Some(100.0),
            most_in_backend: Some(10),
            used: used(0.2, 0.2),
            ..Evidence::default()
        }
    }

    fn check(broken: Evidence, expected: Bottleneck, words: &str) {
        let (found, why) = name(Some(&gentle()), &broken, &LIMITS);
        assert_eq!(found, expected, "{why}");
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn a_proxy_that_uses_or_waits_for_its_processors_is_named() {
        let slow = Evidence {
            p99_us: 90_000,
            wait_us: 30_000.0,
            exchange_us: Some(60_000.0),
            most_in_backend: Some(40),
            ..gentle()
        };
        check(
            Evidence {
                used: used(0.97, 0.5),
                ..slow.clone()
            },
            Bottleneck::ProxyCpu,
            "used 0.97 and waited for 0.00 of the 1 processors",
        );
        let starved = Used {
            proxy: Some(Cores {
                busy: 0.6,
                starved: 0.35,
            }),
            ..used(0.0, 0.9)
        };
        // A proxy without free processors also makes the generator late.
        check(
            Evidence {
                used: starved,
                late_p99_us: 40_000,
                ..slow
            },
            Bottleneck::ProxyCpu,
            "used 0.60 and waited for 0.35",
        );
    }

    #[test]
    fn a_slower_backend_is_named_though_everything_in_front_is_full() {
        let broken = Evidence {
            p99_us: 400_000,
            wait_us: 200_000.0,
            exchange_us: Some(150_000.0),
            service_us: Some(140_000.0),
            most_in_backend: Some(128),
            used: used(0.3, 0.2),
            ..gentle()
        };
        check(
            broken.clone(),
            Bottleneck::Backend,
            "took 140.00ms instead of 100us",
        );
        check(
            Evidence {
                used: used(0.99, 0.2),
                ..broken.clone()
            },
            Bottleneck::Backend,
            "instead of",
        );
        let (found, why) = name(None, &broken, &LIMITS);
        assert_eq!(found, Bottleneck::Backend, "{why}");
    }

    #[test]
    fn refusals_with_idle_processors_are_a_connection_limit() {
        check(
            Evidence {
                failed: 700,
                refused: 690,
                used: used(0.3, 0.3),
                ..gentle()
            },
            Bottleneck::ConnectionLimit,
            "690 of 1000 requests were refused",
        );
        check(
            Evidence {
                failed: 700,
                refused: 690,
                used: used(0.99, 0.3),
                exchange_us: Some(90_000.0),
                ..gentle()
            },
            Bottleneck::ProxyCpu,
            "0.99",
        );
        let (found, _) = name(
            None,
            &Evidence {
                failed: 700,
                refused: 690,
                used: used(0.3, 0.3),
                ..gentle()
            },
            &LIMITS,
        );
        assert_eq!(found, Bottleneck::ConnectionLimit);
    }

    #[test]
    fn low_concurrency_in_the_backend_is_a_connection_limit_inside() {
        check(
            Evidence {
                p99_us: 90_000,
                wait_us: 9_000.0,
                exchange_us: Some(80_000.0),
                most_in_backend: Some(12),
                used: used(0.3, 0.3),
                ..gentle()
            },
            Bottleneck::ConnectionLimit,
            "more than 12 requests at once of the 128",
        );
    }

    #[test]
    fn the_generator_is_named_when_it_is_late_or_lacks_connections() {
        check(
            Evidence {
                p99_us: 90_000,
                wait_us: 8_000.0,
                wait_p99_us: 80_000,
                exchange_us: Some(520.0),
                most_in_backend: Some(128),
                ..gentle()
            },
            Bottleneck::Generator,
            "128 connections were all busy",
        );
        check(
            Evidence {
                p99_us: 90_000,
                late_p99_us: 60_000,
                wait_us: 100.0,
                exchange_us: Some(2_000.0),
                most_in_backend: Some(128),
                used: used(0.5, 1.4),
                ..gentle()
            },
            Bottleneck::Generator,
            "60.00ms late",
        );
    }

    #[test]
    fn an_unexplained_slowdown_is_unknown() {
        check(
            Evidence {
                p99_us: 90_000,
                wait_us: 100.0,
                exchange_us: Some(80_000.0),
                most_in_backend: Some(128),
                ..gentle()
            },
            Bottleneck::Unknown,
            "an exchange took 80.00ms",
        );
    }
}
