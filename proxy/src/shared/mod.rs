//! Where rooms meet. The header of each file says which rooms write it and which read it.

pub mod certificates;
pub mod connections;
pub mod control_handle;
pub mod drain;
pub mod failover_budget;
pub mod prewarm;
pub mod published;
pub mod readiness;
pub mod recorder;
pub mod refusals;
pub mod reload_handle;
pub mod report;
pub mod settling;
