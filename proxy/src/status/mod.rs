//! What is, as data for people and programs: the shape of `GET /api/v1/rollouts` and of `cutover
//! status --json`. The edge's mirror of the core's types.

mod rollout;
mod trip;

use serde::{Deserialize, Serialize};

pub use rollout::{
    FailoverStatus, GuardStatus, MaintenanceStatus, RolloutStatus, RuleStatus, SideStatus, percent,
};
pub use trip::{LatchStatus, Numbers, NumbersBySide, TickSide, TickStatus, TripStatus, tick_side};

/// How the whole process stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the split in force.
    pub revision: u64,
    /// The file.
    pub config: ConfigStatus,
    /// Whether the latches are on disk.
    pub latch_durable: bool,
    /// What people have to know about the journal: that it is not the file it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// The maintenance of everything, requests that match no rollout included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// Parked requests of all rollouts, and of none.
    #[serde(default)]
    pub held_requests: u64,
    /// All rollouts in file order.
    pub rollouts: Vec<RolloutStatus>,
}

/// How the file stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its path.
    pub file: String,
    /// SHA-256 over everything that was read for the file in force.
    pub digest: String,
    /// Whether the file as it is now is the one in force.
    pub last_reload_successful: bool,
    /// When the file in force was read.
    pub last_success_at: String,
    /// What is wrong with the file as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<String>,
    /// Keys that changed in the file but need a restart.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub restart_needed: Vec<String>,
    /// Files that have changed and may still be being written: what was read before is in force.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waiting_for: Vec<String>,
}
