//! The real control plane on virtual time, with made-up traffic: what would this guard do?
//!
//! Requests come one by one (Poisson arrivals, users drawn from a population, evenly or by an
//! activity of their own), are routed by the real hash, counted by the real [`UserTracker`], and
//! judged by the real [`ControlPlane`]: nothing of the engine is imitated. All chance comes from
//! one seed, so every run can be had again. `cutover simulate`, the forecast of `cutover check` and
//! the long runs of the tests use it.
//!
//! A request ends when it begins, but for those that hang and for long polls. Deliberately absent:
//! queues, retries and everything else that would make of this a model of somebody's backend.

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

/// At most one look between ticks in this time.
pub const WAKE_PAUSE: Duration = Duration::from_millis(2);

/// A question whether a backend can take users is given up after this time.
pub const ASK_PATIENCE: Duration = Duration::from_millis(250);

/// Why the plane is shown what was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// A tick is over.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A side has answered a question.
    Answer(Side, bool),
}

/// How long a poll waits.
const POLL: Duration = Duration::from_secs(14);

/// The part of users who poll.
const POLLERS: f64 = 0.2;

const DAY: f64 = 86_400.0;
