//! The statistics of the guard: outcomes, latencies, windows of them, and users.

pub mod histogram;
pub mod outcome;
pub mod users;
pub mod window;
