//! The name of a bottleneck, from evidence: a pure function.
//!
//! Everything slow looks slow everywhere: a busy backend fills the proxy's connections, and those
//! the generator's. So the question is not what is full but what has changed between the gentlest
//! step that passed and the gentlest that failed, asked from the outside to the inside:
//!
//! 1. Answers that were refused while processors were idle: a limit on connections.
//! 2. The wait for one of the generator's connections has grown and the exchange on it has not: the
//!    generator has too few.
//! 3. The exchange has grown, and most of that is time in the backend: the backend.
//! 4. The proxy has used, or waited for, nearly all the processors it may use: the proxy.
//! 5. The generator was late by itself: the generator. A proxy that takes all there is makes it
//!    late, too, which is why this comes after.
//! 6. The exchange has grown with idle processors, and the backend never saw more than so many
//!    requests at once: a limit on connections again, this time inside.

use crate::driver::{Outcome, TransportFailure};
use crate::probe::{Cores, Used};
use crate::report::readable;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Share of the processors from which on they are the limit.
const FULL: f64 = 0.85;
/// Share of failures that have to be refusals.
const MOSTLY: f64 = 0.5;
/// How much longer an exchange has to take to have grown.
const GROWN: f64 = 1.5;

/// What ends the growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// The proxy's processors.
    ProxyCpu,
    /// The backend's time.
    Backend,
    /// A number of connections or requests at once.
    ConnectionLimit,
    /// The load generator itself.
    Generator,
    /// Nothing that the evidence names.
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

/// What a step shows. Times are means in microseconds unless they say otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evidence {
    /// 99th percentile of latency from the intended start.
    pub p99_us: u64,
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that failed by a refusal: no connection, a reset, 429 or 503.
    pub refused: u64,
    /// 99th percentile of the generator's own lateness.
    pub late_p99_us: u64,
    /// From the release to a connection.
    pub wait_us: f64,
    /// Its 99th percentile.
    pub wait_p99_us: u64,
    /// From a connection to the end of the answer.
    pub exchange_us: Option<f64>,
    /// In the backend.
    pub service_us: Option<f64>,
    /// Most requests at once that a backend has seen so far.
    pub most_in_backend: Option<u64>,
    /// Processors.
    pub used: Used,
}

/// What evidence is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processors that the proxy may use.
    pub proxy_cores: Option<f64>,
    /// Processors of the machine that this process may use.
    pub machine_cores: f64,
    /// Most requests that the generator can have in flight.
    pub in_flight: u64,
    /// The latency within which a step passes.
    pub p99_us: u64,
}

/// Whether a failure says that there is no room.
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

/// Names what broke, with the numbers that say so.
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
        // It makes the generator late, too.
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
    fn a_backend_whose_own_time_has_grown_is_named_though_everything_in_front_of_it_is_full() {
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
    fn refusals_with_idle_processors_are_a_limit_on_connections() {
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
    fn few_requests_at_once_in_the_backend_are_a_limit_on_connections_inside() {
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
    fn the_generator_is_named_when_its_connections_are_few_or_it_is_late() {
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
    fn what_nothing_explains_is_not_given_a_name() {
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
