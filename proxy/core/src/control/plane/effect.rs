//! What the control plane wants done, in order.

use super::actor::Actor;
use crate::control::maintenance::{MaintenanceWindow, Scope};
use crate::control::rollout::{Phase, Trip};
use crate::percent::Percent;
use crate::routing::restriction::Maintenance;
use crate::routing::split::Split;
use crate::side::Side;
use crate::time::Wall;
use std::sync::Arc;

/// Something the shell must do, in the order given.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Put this split before the data path.
    Publish(Split),
    /// Make this durable.
    Persist(Standings),
    /// Write it into the journal, the log and tell people.
    Announce(Box<Announcement>),
    /// Ask a backend whether it can take users, by a health check or a connection, and tell with
    /// [`Event::Answered`] what came of it within a quarter of a second.
    Ask {
        /// For which rollout.
        rollout: Arc<str>,
        /// Which of its sides.
        side: Side,
    },
}

/// Where everything stands, as it is made durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Each rollout, those with a latch that left the file included.
    pub rollouts: Vec<Standing>,
    /// What is kept out, by whom it concerns.
    pub maintenance: Vec<(Scope, MaintenanceWindow)>,
}

/// Where one rollout stands, as it is made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The rollout.
    pub id: Arc<str>,
    /// The share asked for; `None` when the rollout is no longer in the file.
    pub percent: Option<Percent>,
    /// Holding, or latched and why.
    pub phase: Phase,
}

/// One change, for the journal and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// When.
    pub at: Wall,
    /// Which rollout; [`windows::EVERYTHING`] for a change that is not of one.
    pub rollout: Arc<str>,
    /// What changed.
    pub change: Change,
    /// Who changed it.
    pub actor: Actor,
    /// Why.
    pub reason: String,
    /// All of it in one sentence.
    pub sentence: String,
    /// The share of users on new from now on; `None` for a change that is not of one rollout.
    pub effective: Option<Percent>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The process started with this rollout.
    Started,
    /// A rollout came into the file.
    Added,
    /// A rollout left the file.
    Removed,
    /// The share asked for changed.
    Percent {
        /// Before.
        from: Percent,
        /// From now on.
        to: Percent,
    },
    /// Other settings changed.
    Settings,
    /// Latched at 0 %.
    RolledBack(Trip),
    /// The latch was lifted.
    Rearmed,
    /// The guard would have rolled back, were it not a dry run.
    DryRunBreach,
    /// Both sides are bad at once: raises are frozen.
    SharedCause,
    /// Both sides are not bad at once any more: raises go through.
    SharedCauseEnded,
    /// The evidence is there, but too few are hurt to roll back.
    Held,
    /// New is worse, but legacy does not answer: nobody is moved, and raises are frozen.
    NoRefuge,
    /// New is not worse any more, or legacy answers again: raises go through.
    NoRefugeEnded,
    /// After a rollback of the guard legacy does not answer: users are on new meanwhile.
    Spilled,
    /// Legacy answers again: its users are back.
    SpillEnded,
    /// After a rollback of the guard legacy does not carry the load.
    LegacyOverloaded,
    /// Something is kept out from now on, or let in again.
    Maintenance {
        /// The mode from now on.
        mode: Maintenance,
        /// When it ends by itself.
        until: Option<Wall>,
    },
}

impl Change {
    /// The name in records.
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

/// What the saved state said at start.
#[derive(Clone, Debug)]
pub enum Restored {
    /// There was none: the first start.
    Fresh,
    /// Where everything stood.
    Known(Standings),
    /// It could not be read, for this reason: every rollout starts latched at 0 %.
    Unreadable(String),
}
