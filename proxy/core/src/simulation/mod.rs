//! The real control plane on virtual time, with simulated traffic: it shows what a guard would do.
//!
//! Requests arrive one by one. Arrivals are Poisson, and users are drawn from a population, evenly
//! or by an activity of their own. Requests are routed by the real hash, counted by the real
//! [`UserTracker`](crate::UserTracker), and judged by the real
//! [`ControlPlane`](crate::ControlPlane): no part of the engine is imitated. All
//! random numbers are derived from one seed, so every run can be repeated. `cutover simulate`, the
//! forecast of `cutover check` and the long runs of the tests use it.
//!
//! A request ends when it begins, except for hanging requests and long polls. Deliberately absent:
//! queues, retries and everything else that would make this a model of a particular backend.

mod chance;
mod fault;
pub mod forecast;
mod notice;
mod requests;
mod traffic;
mod world;

use std::time::Duration;

use crate::side::Side;
pub use chance::Chance;
pub use fault::{Fault, FaultKind, Scenario};
pub use notice::{Noticed, notice};
pub use traffic::Traffic;
pub use world::World;

/// The minimum time between two evaluations between ticks.
pub const WAKE_PAUSE: Duration = Duration::from_millis(2);

/// The time after which a probe whether a backend can take users is given up.
pub const ASK_PATIENCE: Duration = Duration::from_millis(250);

/// The reason for which observations are passed to the control plane.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// A tick is over.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A side has answered a probe.
    Answer(Side, bool),
}

/// How long a poll waits.
const POLL: Duration = Duration::from_secs(14);

/// The fraction of users who poll.
const POLLERS: f64 = 0.2;

const DAY: f64 = 86_400.0;
