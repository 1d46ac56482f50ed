//! Cutover: an edge reverse proxy that moves live users from an old stack to a new one.
//!
//! ARCHITECTURE.md describes the modules and which of them may know which. `assemble` is the only
//! module that knows all of them. The modules `gateway`, `control`, `reload` and `admin` meet
//! through three handles, [`shared::published::Published`], [`shared::recorder::Recorder`] and
//! [`shared::control_handle::ControlHandle`].

pub mod admin;
pub mod assemble;
pub mod cli;
pub mod clock;
pub mod control;
pub mod demo;
pub mod gateway;
pub mod process;
pub mod reload;
pub mod shared;
pub mod state;
pub mod status;
pub mod telemetry;
pub mod terminal;
pub mod upstream;
