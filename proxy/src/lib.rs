//! Cutover: an edge reverse proxy that moves live users from an old stack to a new one.
//!
//! The rooms and what may know what: ARCHITECTURE.md. `assemble` is the only file that knows all of
//! them; the gateway, control, watch and admin meet through three handles,
//! [`published::Published`], [`recorder::Recorder`] and [`control_handle::ControlHandle`].

pub mod access_log;
pub mod admin;
pub mod assemble;
pub mod certificates;
pub mod cli;
pub mod clock;
pub mod control;
pub mod control_handle;
pub mod demo;
pub mod disk;
pub mod drain;
pub mod ended;
pub mod event_log;
pub mod explain;
pub mod gateway;
pub mod handover;
pub mod health;
pub mod journal;
pub mod last_good;
pub mod metrics;
pub mod pool;
pub mod published;
pub mod question;
pub mod readiness;
pub mod recorder;
pub mod regular;
pub mod replay;
pub mod rescue;
pub mod rest;
pub mod shortage;
pub mod sockets;
pub mod source;
pub mod state_file;
pub mod status;
pub mod succession;
pub mod supervisor;
pub mod terminal;
pub mod traces;
pub mod upstream;
pub mod warm_up;
pub mod watch;
