//! Whatever the lane takes for a request has one form.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::lane_request(bytes));
