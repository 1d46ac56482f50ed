//! What the benchmarks, the allocation test and the two programs of this crate share.
//!
//! The figures and the commands that make them: README.md beside `Cargo.toml`. Deliberately absent: anything that the product needs; nothing depends on this crate.

pub mod allocations;
pub mod figures;
pub mod fixture;
pub mod load;
pub mod process;
pub mod stub;
