//! Any request head gives one user, no user, or a refusal; never a panic.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::keys(bytes));
