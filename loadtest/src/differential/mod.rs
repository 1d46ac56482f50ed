//! The same messages through two engines of the proxy.
//!
//! Cutover has two engines for HTTP/1.1, and nobody may be able to tell which of them served him
//! but by what `rules` lists. So this starts two processes that differ in `[listen] engine` only,
//! plays made-up conversations through both, bad ones for the most part, and compares what each end
//! got. What is not the same is explained by a listed rule, or it is a finding.
//!
//! `generate` makes cases, `client` and `backend` play their two ends, `wire` reads what they get,
//! `engine` is the process between them, `threads` is where they run, `compare` and `rules` judge,
//! `shrink` makes a finding small, `show` prints it, `report` is what there is to say.
//!
//! A difference is looked at again before it counts: both engines play the case some more times. If
//! the reference alone gives both outcomes it is chance; if the difference does not show again it
//! is listed as unrepeated, and only `--strict` makes that a failure.

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
