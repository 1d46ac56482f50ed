//! What the benchmarks, the allocation test and the programs of this crate share.
//!
//! The figures and the commands that make them: README.md beside `Cargo.toml`. Deliberately absent:
//! anything that the product needs; nothing depends on this crate.

pub mod allocations;
pub mod fixture;
