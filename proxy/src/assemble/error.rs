//! The errors of a failed start.

use crate::reload::source::SourceError;
use crate::shared::certificates::Unusable;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no usable configuration and no saved one. The exit code is 2.
    #[error("{error}\n{why}")]
    NoLastGood {
        /// The problem with the file.
        error: SourceError,
        /// Why no saved configuration replaces the file.
        why: String,
        /// The command to type.
        hint: String,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {address} ({key}): {error}")]
    Bind {
        /// The address of the port.
        address: SocketAddr,
        /// The key in the configuration file that names the address.
        key: &'static str,
        /// The error of the operating system.
        error: io::Error,
    },
    /// systemd passed sockets that the configuration file does not use.
    #[error("systemd passes sockets that are not in the file: {}", listed(.addresses))]
    Unused {
        /// The addresses of the unused sockets.
        addresses: Vec<SocketAddr>,
    },
    /// The predecessor process refused the handover.
    #[error("cannot take over: {0}")]
    Upgrade(io::Error),
    /// A certificate cannot be used.
    #[error("{0}")]
    Certificate(#[from] Unusable),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {} ([state] directory): {error}", directory.display())]
    State {
        /// The state directory.
        directory: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file of the access log cannot be opened.
    #[error("cannot write the access log {} ([log] file): {error}", path.display())]
    Log {
        /// The path of the access log.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The operating system refused a thread or a runtime.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

impl StartError {
    /// Creates the error of a state directory that cannot be used.
    pub(super) fn state(directory: &Path, error: io::Error) -> Self {
        Self::State {
            directory: directory.to_owned(),
            error,
        }
    }

    /// Returns what to do next, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoLastGood { hint, .. } => Some(hint),
            Self::Bind { error, .. } => match error.kind() {
                io::ErrorKind::AddrInUse => {
                    Some("another process listens there; `ss -ltnp` shows which")
                }
                io::ErrorKind::PermissionDenied => {
                    Some("ports below 1024 need CAP_NET_BIND_SERVICE")
                }
                io::ErrorKind::AddrNotAvailable => Some("this machine has no such address"),
                _ => None,
            },
            Self::Unused { .. } => Some(
                "`ListenStream=` of the socket unit and `[listen]` or `[admin]` of the file must \
                 name the same addresses",
            ),
            Self::State { error, .. } if error.kind() == io::ErrorKind::ResourceBusy => {
                Some("give each process a directory of its own, or stop the other one")
            }
            Self::State { .. } => Some(
                "a rollback must survive a restart, so this directory must exist and be writable",
            ),
            Self::Upgrade(_)
            | Self::Certificate(_)
            | Self::Tls(_)
            | Self::Log { .. }
            | Self::System(_) => None,
        }
    }
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses
        .iter()
        .map(SocketAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
