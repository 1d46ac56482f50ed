//! The report of the control loop about all rollouts.
//!
//! Written by: the control loop. Read by: the admin port and the metrics.

use std::sync::Arc;

use cutover_core::PerSide;

use crate::shared::published::Common;
use crate::shared::recorder::SlotTotals;
use crate::status::Status;

/// The report of the control loop: the status, and the counts behind it for the metrics.
#[derive(Debug)]
pub struct Report {
    /// The status, for people and programs.
    pub status: Status,
    /// The counts and latencies of each rollout, in the order of the status, and of requests that
    /// match none.
    pub measured: Vec<Measured>,
    /// The counts of requests that match no rollout.
    pub unmatched: SlotTotals,
    /// The configuration file in force.
    pub common: Arc<Common>,
    /// The rollbacks since the start, by rollout and label.
    pub rollbacks: Vec<(Arc<str>, String, u64)>,
}

/// The counts of one rollout.
#[derive(Debug)]
pub struct Measured {
    /// The counts since the start of the process.
    pub totals: SlotTotals,
    /// p50, p95 and p99 of the last minute, in seconds.
    pub recent_quantiles: PerSide<Option<[f64; 3]>>,
}
