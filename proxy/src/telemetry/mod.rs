//! Logs, metrics and spans for people and programs that observe the process.

pub mod access_log;
pub mod event_log;
pub mod metrics;
pub mod request_summary;
pub mod traces;
