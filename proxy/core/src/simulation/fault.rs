//! The faults of a simulation.

use super::traffic::Traffic;
use crate::control::rollout::RolloutSettings;
use crate::side::Side;
use crate::stats::users::Requester;
use std::time::Duration;

/// A fault in a simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The side that has the fault. `None` means both sides.
    pub side: Option<Side>,
    /// The kind of the fault.
    pub kind: FaultKind,
    /// The time at which the fault begins.
    pub from: Duration,
    /// How long the fault lasts.
    pub lasts: Duration,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// This share of requests receives a 500.
    Errors(f64),
    /// Connections are refused.
    Refused,
    /// Requests receive no answer.
    Hang,
    /// Latencies are multiplied by this factor.
    Slow(f64),
    /// This share of requests receives a 404.
    ClientErrors(f64),
    /// This share of users receives a 500 for every request.
    ErrorsOfUsers(f64),
    /// This share of users is redirected in circles: every answer is a redirect.
    Redirects(f64),
    /// This share of requests takes this many times as long.
    Tail(f64, f64),
    /// There is no server.
    NoServer,
}

/// A user whose requests fail on every backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Noise {
    pub(super) who: Requester,
    pub(super) side: Side,
    pub(super) left: u32,
}

/// The description of a simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The rollout and its guard.
    pub settings: RolloutSettings,
    /// The traffic while nothing is wrong.
    pub traffic: Traffic,
    /// The faults, with their times.
    pub faults: Vec<Fault>,
    /// The seed of all random numbers.
    pub seed: u64,
    /// Whether failures are evaluated between ticks, as in the proxy.
    pub between_ticks: bool,
    /// The time after which a hanging request fails.
    pub timeout: Duration,
}
