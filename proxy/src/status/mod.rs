//! The current status as data for people and programs: the shape of `GET /api/v1/rollouts` and of
//! `cutover status --json`. These types mirror those of the core.

mod rollout;
mod trip;

use serde::{Deserialize, Serialize};

pub use rollout::{
    FailoverStatus, GuardStatus, MaintenanceStatus, RolloutStatus, RuleStatus, SideStatus, percent,
};
pub use trip::{LatchStatus, Numbers, NumbersBySide, TickSide, TickStatus, TripStatus, tick_side};

/// The status of the whole process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The revision of the split in force.
    pub revision: u64,
    /// The status of the configuration file.
    pub config: ConfigStatus,
    /// Whether the latches are on disk.
    pub latch_durable: bool,
    /// A note about the journal for operators, which says that the file is not the previous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// The maintenance of all traffic, including requests that match no rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// The number of held requests of all rollouts, and of none.
    #[serde(default)]
    pub held_requests: u64,
    /// All rollouts in the order of the file.
    pub rollouts: Vec<RolloutStatus>,
}

/// The status of the configuration file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The path of the file.
    pub file: String,
    /// The SHA-256 over everything that was read for the file in force.
    pub digest: String,
    /// Whether the current content of the file is in force.
    pub last_reload_successful: bool,
    /// The time at which the file in force was read.
    pub last_success_at: String,
    /// The problems of the current content of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<String>,
    /// The keys that changed in the file but need a restart.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub restart_needed: Vec<String>,
    /// The files that have changed and may still be being written. Their previous content is in
    /// force.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waiting_for: Vec<String>,
}
