//! What goes wrong in a simulation.

use super::traffic::Traffic;
use crate::control::rollout::RolloutSettings;
use crate::side::Side;
use crate::stats::users::Requester;
use std::time::Duration;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// Where; `None` is both sides.
    pub side: Option<Side>,
    /// What.
    pub kind: FaultKind,
    /// From when on.
    pub from: Duration,
    /// For how long.
    pub lasts: Duration,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// This share of requests gets a 500.
    Errors(f64),
    /// Connections are refused.
    Refused,
    /// Requests get no answer.
    Hang,
    /// Latencies are this many times what they were.
    Slow(f64),
    /// This share of requests gets a 404.
    ClientErrors(f64),
    /// This share of users gets a 500 for everything.
    ErrorsOfUsers(f64),
    /// This share of users is sent in circles: every answer is a redirect.
    Redirects(f64),
    /// This share of requests takes so many times as long.
    Tail(f64, f64),
    /// There is no server.
    NoServer,
}

/// One user who fails, whatever the backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Noise {
    pub(super) who: Requester,
    pub(super) side: Side,
    pub(super) left: u32,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The rollout and its guard.
    pub settings: RolloutSettings,
    /// The traffic while nothing is wrong.
    pub traffic: Traffic,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// Of all chance.
    pub seed: u64,
    /// Whether failures are looked at between ticks, as in the proxy.
    pub between_ticks: bool,
    /// After how long a request that hangs fails.
    pub timeout: Duration,
}
