//! Durable state: the state directory, and the only thread that writes it.

pub mod journal;
pub mod last_good;
pub mod regular_file;
pub mod status_file;
pub mod writer;
