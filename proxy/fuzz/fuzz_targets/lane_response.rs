//! Any bytes that the lane accepts as an answer have one form.

#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::lane_response(bytes));
