//! Integration tests with the real proxy on port 0, real backends, real files and real signals.
//! They form one binary, so that it links once.
//!
//! No test waits a fixed time for an event. Each one repeats its check until a deadline.

#![allow(clippy::unwrap_used, missing_docs)]

mod admin;
mod architecture;
mod breach;
mod cli;
mod demo;
mod failover;
mod figures;
mod gateway;
mod h2_backends;
mod h2_connections;
mod h2_peers;
mod harness;
mod hostile_backends;
mod http2;
mod journal;
mod judge;
mod lane;
mod last_good;
mod logs;
mod maintenance;
mod malformed;
mod outcomes;
mod outlive;
mod process;
mod raw;
mod refuge;
mod reload;
mod requests;
mod seeds;
mod silence;
mod slow_writers;
mod starting;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod upgrade;
