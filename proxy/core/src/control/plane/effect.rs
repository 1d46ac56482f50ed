//! The effects that the control plane requests, in order.

use super::actor::Actor;
use crate::control::maintenance::{MaintenanceWindow, Scope};
use crate::control::rollout::{Phase, Trip};
use crate::percent::Percent;
use crate::routing::restriction::Maintenance;
use crate::routing::split::Split;
use crate::side::Side;
use crate::time::Wall;
use std::sync::Arc;

/// An action that the shell must perform, in the given order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Publish this split to the data path.
    Publish(Split),
    /// Make these standings durable.
    Persist(Standings),
    /// Write the announcement to the journal and the log, and notify people.
    Announce(Box<Announcement>),
    /// Probe whether a backend can take users, by a health check or a connection. The result is
    /// reported with [`Event::Answered`](crate::Event::Answered) within a quarter of a second.
    Ask {
        /// The rollout that the probe is for.
        rollout: Arc<str>,
        /// The side that is probed.
        side: Side,
    },
}

/// The state of all rollouts and maintenance windows, as it is made durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// The state of each rollout, including rollouts with a latch that left the file.
    pub rollouts: Vec<Standing>,
    /// The maintenance windows, by scope.
    pub maintenance: Vec<(Scope, MaintenanceWindow)>,
}

/// The state of one rollout, as it is made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The id of the rollout.
    pub id: Arc<str>,
    /// The requested share. `None` when the rollout is no longer in the file.
    pub percent: Option<Percent>,
    /// The phase: holding, or latched with a cause.
    pub phase: Phase,
}

/// One change, for the journal and for notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The time of the change.
    pub at: Wall,
    /// The rollout that changed, or [`EVERYTHING`](crate::control::maintenance::EVERYTHING) for a
    /// change that does not belong to
    /// one rollout.
    pub rollout: Arc<str>,
    /// What changed.
    pub change: Change,
    /// Who made the change.
    pub actor: Actor,
    /// The reason for the change.
    pub reason: String,
    /// The whole change in one sentence.
    pub sentence: String,
    /// The share of users on new from now on. `None` for a change that does not belong to one
    /// rollout.
    pub effective: Option<Percent>,
}

/// The kind of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The process started with this rollout.
    Started,
    /// A rollout was added to the file.
    Added,
    /// A rollout was removed from the file.
    Removed,
    /// The requested share changed.
    Percent {
        /// The share before the change.
        from: Percent,
        /// The share after the change.
        to: Percent,
    },
    /// Other settings changed.
    Settings,
    /// The rollout was latched at 0 %.
    RolledBack(Trip),
    /// The latch was lifted.
    Rearmed,
    /// The guard would have rolled back if it were not a dry run.
    DryRunBreach,
    /// Both sides are bad at the same time: raises are frozen.
    SharedCause,
    /// Both sides are no longer bad at the same time: raises are allowed again.
    SharedCauseEnded,
    /// The evidence is sufficient, but too few users are affected for a rollback.
    Held,
    /// New is worse, but legacy does not answer: users are not moved, and raises are frozen.
    NoRefuge,
    /// New is no longer worse, or legacy answers again: raises are allowed again.
    NoRefugeEnded,
    /// Legacy does not answer after a rollback by the guard: its users are on new meanwhile.
    Spilled,
    /// Legacy answers again: its users are back on it.
    SpillEnded,
    /// Legacy does not carry the load after a rollback by the guard.
    LegacyOverloaded,
    /// A maintenance mode begins or ends.
    Maintenance {
        /// The mode from now on.
        mode: Maintenance,
        /// The time at which the mode ends by itself. `None` if it has no end.
        until: Option<Wall>,
    },
}

impl Change {
    /// Returns the name used in records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Percent { .. } => "percent",
            Self::Settings => "settings",
            Self::RolledBack(_) => "rollback",
            Self::Rearmed => "rearm",
            Self::DryRunBreach => "dry_run_breach",
            Self::SharedCause => "shared_cause",
            Self::SharedCauseEnded => "shared_cause_ended",
            Self::Held => "held",
            Self::NoRefuge => "no_refuge",
            Self::NoRefugeEnded => "no_refuge_ended",
            Self::Spilled => "spilled",
            Self::SpillEnded => "spill_ended",
            Self::LegacyOverloaded => "legacy_overloaded",
            Self::Maintenance { .. } => "maintenance",
        }
    }
}

/// The result of reading the saved state at start.
#[derive(Clone, Debug)]
pub enum Restored {
    /// There was no saved state: this is the first start.
    Fresh,
    /// The saved state of all rollouts and maintenance windows.
    Known(Standings),
    /// The saved state could not be read, for the given reason: every rollout starts latched at 0
    /// %.
    Unreadable(String),
}
