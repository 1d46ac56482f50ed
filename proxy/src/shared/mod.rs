//! The types through which two modules communicate. Each file says which module writes it and which
//! reads it.

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
