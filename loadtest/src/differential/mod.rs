//! Differential testing: the same messages through two engines of the proxy.
//!
//! Cutover has two engines for HTTP/1.1. A client must not be able to tell which of them served it,
//! except by what `rules` lists. This test starts two processes that differ only in `[listen]
//! engine`, plays generated conversations through both, most of them malformed, and compares what
//! each end received. A difference is either explained by a listed rule or is a finding.
//!
//! `generate` makes cases. `client` and `backend` play their two ends, and `wire` reads what they
//! receive. `engine` is the process between them, and `threads` is where they run. `compare` and
//! `rules` judge. `shrink` reduces a finding, `show` prints it, and `report` collects the results.
//!
//! A difference is checked again before it counts: both engines play the case some more times. If
//! the reference alone gives both outcomes, the difference is chance. If the difference does not
//! recur, it is listed as unrepeated, and only `--strict` makes that a failure.

pub mod case;
pub mod compare;
pub mod generate;
pub mod report;
pub mod rules;
pub mod wire;

mod backend;
mod bench;
mod client;
mod course;
mod engine;
mod lookup;
mod run;
mod shrink;
mod threads;

pub use crate::differential::run::{Arguments, run};
