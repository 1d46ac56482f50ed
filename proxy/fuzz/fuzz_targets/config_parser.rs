//! Any text is a configuration or gives a list of problems with their places.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::config(bytes));
