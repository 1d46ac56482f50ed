//! The environment of the process: its sockets, systemd, and the upgrade to a new program.

pub mod sockets;
pub mod systemd;
pub mod upgrade;
