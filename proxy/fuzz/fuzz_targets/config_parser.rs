//! Any text is a configuration or a list of problems with places in it.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::config(bytes));
