//! Code that the benchmarks, the allocation test and the programs of this crate share.
//!
//! README.md beside `Cargo.toml` lists the figures and the commands that measure them. Deliberately
//! absent: anything that the product needs; nothing depends on this crate.

pub mod allocations;
pub mod fixture;
