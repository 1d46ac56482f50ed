//! What leaves the process for people and programs that watch it: logs, metrics and spans.

pub mod access_log;
pub mod event_log;
pub mod metrics;
pub mod request_summary;
pub mod traces;
