//! The events that the control plane handles.

use super::actor::Actor;
use crate::control::rollout::{RolloutSettings, Trip};
use crate::guard::judge::Observed;
use crate::routing::restriction::Maintenance;
use crate::side::Side;
use std::time::Duration;

/// An event that the control plane must handle.
#[derive(Debug)]
pub enum Event<'a> {
    /// Time passed. Contains the observations of every recorder slot, indexed by slot. Slots beyond
    /// the end have no traffic yet.
    Tick(&'a [Observed<'a>]),
    /// A request to new has failed between ticks. Contains the same observations, but without
    /// latencies and hanging requests.
    Failure(&'a [Observed<'a>]),
    /// A valid file was loaded, which may be the first one.
    Settings {
        /// All rollouts, in file order.
        rollouts: Vec<RolloutSettings>,
        /// Who changed the file, as far as known.
        actor: Actor,
        /// The reason for the change, as far as known.
        reason: String,
    },
    /// A backend was probed to find out whether it can take users
    /// ([`Effect::Ask`](crate::Effect::Ask)), and this is
    /// the result.
    Answered {
        /// The rollout that the probe was for.
        rollout: &'a str,
        /// The side that was probed.
        side: Side,
        /// Whether the backend can take users.
        is_good: bool,
        /// The observations, in the same form as for a failure.
        observed: &'a [Observed<'a>],
    },
    /// A command for one rollout was received.
    Command {
        /// The id of the rollout.
        rollout: &'a str,
        /// The command.
        command: Command,
        /// Who sent the command.
        actor: Actor,
        /// The reason that was given.
        reason: String,
    },
    /// Another process that serves the same users has rolled back: the same latch applies here.
    Tripped {
        /// The id of the rollout. An id that is unknown here, or whose rollout is already latched,
        /// changes nothing.
        rollout: &'a str,
        /// The trip of the other process.
        trip: Trip,
        /// Who caused the rollback.
        actor: Actor,
        /// The reason for the rollback.
        reason: String,
    },
    /// An operator begins or ends maintenance.
    Maintenance {
        /// The id of one rollout. `None` for everything.
        rollout: Option<&'a str>,
        /// The mode. [`Maintenance::Off`] ends maintenance.
        mode: Maintenance,
        /// How long the mode lasts. `None` if it lasts until an operator ends it.
        lasts: Option<Duration>,
        /// Who set the mode.
        actor: Actor,
        /// The reason that was given.
        reason: String,
    },
}

/// A command for a rollout. A changed percentage is not one of them: it is written to the file and
/// arrives as settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Moves all users to legacy and latches the rollout.
    Rollback {
        /// Whether to roll back even if legacy does not answer.
        force: bool,
    },
    /// Lifts the latch, so that the percentage of the file is in force again.
    Rearm,
}
