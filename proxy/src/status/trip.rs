//! A rollback as the API, the journal and the saved state tell of it.

use cutover_core::control::rollout::{Cause, SideNumbers, TickNumbers, TripNumbers};
use cutover_core::{PerSide, Trip, Wall};
use serde::{Deserialize, Serialize};

use super::percent;
use crate::clock;

/// A latch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatchStatus {
    /// The generation that tripped.
    pub generation: u64,
    /// What happened.
    #[serde(flatten)]
    pub trip: TripStatus,
}

/// A trip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripStatus {
    /// When, RFC 3339.
    pub at: String,
    /// A rule's name, `manual` or `state`.
    pub cause: String,
    /// The share in force before, in percent.
    pub from_percent: f64,
    /// What happened, with its numbers.
    pub sentence: String,
    /// Who rolled back, if a person did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// Why, if a person did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The counts that forced it, if a rule did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub numbers: Option<NumbersBySide>,
    /// The minute before it, tick by tick, if a rule did. The status leaves it out; the journal
    /// and the saved state have it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<TickStatus>,
}

/// What both sides did in one tick of a quarter of a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TickStatus {
    /// When it ended, in milliseconds since 1970.
    pub at_ms: i64,
    /// Of legacy.
    pub legacy: TickSide,
    /// Of new.
    pub new: TickSide,
}

/// Requests, failures, failures as far as they counted, 4xx answers, clients that gave up, and the
/// sum of the latencies in microseconds.
pub type TickSide = [u64; 6];

/// Mirrors the counts of one side.
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

    /// Back to the core's type.
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
    /// Of legacy.
    pub legacy: Numbers,
    /// Of new.
    pub new: Numbers,
}

/// The counts of one side over a rule's window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Requests that count.
    pub requests: u64,
    /// Failures among them.
    pub failed: u64,
    /// 4xx answers among them.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// p95 latency in microseconds.
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

    /// Back to the core's type.
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
    /// Mirrors a trip.
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
