//! What can happen to the control plane.

use super::actor::Actor;
use crate::control::rollout::{RolloutSettings, Trip};
use crate::guard::judge::Observed;
use crate::routing::restriction::Maintenance;
use crate::side::Side;
use std::time::Duration;

/// Something the control plane must know.
#[derive(Debug)]
pub enum Event<'a> {
    /// Time passed: what was seen of every recorder slot, by slot. Slots beyond the end have no
    /// traffic yet.
    Tick(&'a [Observed<'a>]),
    /// A request to new has failed, between ticks: the same, but without latencies and hanging
    /// requests.
    Failure(&'a [Observed<'a>]),
    /// A valid file, the first one included.
    Settings {
        /// All rollouts in file order.
        rollouts: Vec<RolloutSettings>,
        /// Who changed the file, as far as known.
        actor: Actor,
        /// Why, as far as known.
        reason: String,
    },
    /// A backend was asked whether it can take users ([`Effect::Ask`]), and this came of it.
    Answered {
        /// The rollout it was asked for.
        rollout: &'a str,
        /// The side.
        side: Side,
        /// Whether it can.
        is_good: bool,
        /// The same as at a failure.
        observed: &'a [Observed<'a>],
    },
    /// Somebody wants something of one rollout.
    Command {
        /// Its id.
        rollout: &'a str,
        /// What.
        command: Command,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
    /// Another process that serves the same users has rolled back: the same latch holds here.
    Tripped {
        /// Its id. One that is not here, or is latched already, changes nothing.
        rollout: &'a str,
        /// What happened there.
        trip: Trip,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
    /// Somebody wants something kept out, or let in again.
    Maintenance {
        /// Of one rollout, or of everything.
        rollout: Option<&'a str>,
        /// What; [`Maintenance::Off`] lets in.
        mode: Maintenance,
        /// For how long; `None` until somebody says otherwise.
        lasts: Option<Duration>,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
}

/// What somebody can want of a rollout. A changed percentage is not among them: it goes through the
/// file and arrives as settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everybody to legacy, latched.
    Rollback {
        /// Also if legacy does not answer.
        force: bool,
    },
    /// Lift the latch; the percentage of the file is in force again.
    Rearm,
}
