//! Any bytes that the lane accepts as a request have one form.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::lane_request(bytes));
