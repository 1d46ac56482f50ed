//! A rollback as the API, the journal and the saved state report it.

use cutover_core::control::rollout::{Cause, SideNumbers, TickNumbers, TripNumbers};
use cutover_core::{PerSide, Trip, Wall};
use serde::{Deserialize, Serialize};

use super::percent;
use crate::clock;

/// The status of a latch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatchStatus {
    /// The generation that tripped.
    pub generation: u64,
    /// The trip that set the latch.
    #[serde(flatten)]
    pub trip: TripStatus,
}

/// The data of a trip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripStatus {
    /// The time of the trip, in RFC 3339.
    pub at: String,
    /// The name of a rule, `manual` or `state`.
    pub cause: String,
    /// The share in force before, in percent.
    pub from_percent: f64,
    /// A sentence about what happened, with its numbers.
    pub sentence: String,
    /// Who rolled back, if a person did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// The reason of the rollback, if a person rolled back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The counts that forced the trip, if a rule tripped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub numbers: Option<NumbersBySide>,
    /// The minute before the trip, tick by tick, if a rule tripped. The status omits it; the
    /// journal and the saved state contain it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<TickStatus>,
}

/// The counts of both sides in one tick of a quarter of a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TickStatus {
    /// The end of the tick, in milliseconds since 1970.
    pub at_ms: i64,
    /// The counts of legacy.
    pub legacy: TickSide,
    /// The counts of new.
    pub new: TickSide,
}

/// Requests, failures, failures as far as they counted, 4xx answers, clients that gave up, and the
/// sum of the latencies in microseconds.
pub type TickSide = [u64; 6];

/// Converts the counts of one side.
pub fn tick_side(numbers: &SideNumbers) -> TickSide {
    let SideNumbers {
        requests,
        failed,
        counted,
        client_errors,
        aborts,
        latency_sum_us,
    } = *numbers;
    [
        requests,
        failed,
        counted,
        client_errors,
        aborts,
        latency_sum_us,
    ]
}

impl TickStatus {
    fn new(tick: &TickNumbers) -> Self {
        Self {
            at_ms: tick.at.as_millis(),
            legacy: tick_side(&tick.sides.legacy),
            new: tick_side(&tick.sides.new),
        }
    }

    /// Converts the counts back to the type of the core.
    pub fn restore(&self) -> TickNumbers {
        let side = |[
            requests,
            failed,
            counted,
            client_errors,
            aborts,
            latency_sum_us,
        ]: TickSide| SideNumbers {
            requests,
            failed,
            counted,
            client_errors,
            aborts,
            latency_sum_us,
        };
        TickNumbers {
            at: Wall::from_millis(self.at_ms),
            sides: PerSide {
                legacy: side(self.legacy),
                new: side(self.new),
            },
        }
    }
}

/// The counts of both sides over a rule's window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumbersBySide {
    /// The counts of legacy.
    pub legacy: Numbers,
    /// The counts of new.
    pub new: Numbers,
}

/// The counts of one side over a rule's window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// The number of requests that count.
    pub requests: u64,
    /// The number of failures among the requests.
    pub failed: u64,
    /// The number of 4xx answers among the requests.
    pub client_errors: u64,
    /// The number of requests whose client gave up.
    pub aborts: u64,
    /// The p95 latency in microseconds.
    pub p95_us: Option<u64>,
}

impl Numbers {
    fn new(numbers: &TripNumbers) -> Self {
        let TripNumbers {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        } = *numbers;
        Self {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        }
    }

    /// Converts the counts back to the type of the core.
    pub fn restore(&self) -> TripNumbers {
        let Self {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        } = *self;
        TripNumbers {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        }
    }
}

impl TripStatus {
    /// Converts a trip.
    pub fn new(trip: &Trip) -> Self {
        let (actor, reason, numbers) = match &trip.cause {
            Cause::Guard { numbers, .. } => (
                None,
                None,
                Some(NumbersBySide {
                    legacy: Numbers::new(&numbers.legacy),
                    new: Numbers::new(&numbers.new),
                }),
            ),
            Cause::Manual { actor, reason } => (Some(actor.clone()), Some(reason.clone()), None),
            Cause::State => (None, None, None),
        };
        Self {
            at: clock::rfc3339(trip.at),
            cause: trip.cause.label().to_owned(),
            from_percent: percent(trip.from),
            sentence: trip.sentence.clone(),
            actor,
            reason,
            numbers,
            history: trip.history.iter().map(TickStatus::new).collect(),
        }
    }
}
