//! Why a start fails.

use crate::reload::source::SourceError;
use crate::shared::certificates::Unusable;
use std::io::{self};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no usable configuration, and none that was kept: the exit code is 2.
    #[error("{error}\n{why}\nhint: {hint}")]
    NoLastGood {
        /// What is wrong with the file.
        error: SourceError,
        /// Why nothing stands in for it.
        why: String,
        /// What to type.
        hint: String,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {address} ({key}): {error}{}", hint(.error))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Where the file says it.
        key: &'static str,
        /// Why.
        error: io::Error,
    },
    /// systemd has passed sockets that the file does not ask for.
    #[error("systemd passes sockets that listen on {}, and the file asks for none of them\nhint: `ListenStream=` of the socket unit and `[listen]` or `[admin]` of the file must say the same addresses", addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "))]
    Unused {
        /// Their addresses.
        addresses: Vec<SocketAddr>,
    },
    /// The process before this one does not let it take over.
    #[error("cannot take over: {0}")]
    Upgrade(io::Error),
    /// A certificate cannot be used.
    #[error("{0}")]
    Certificate(#[from] Unusable),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {} ([state] directory): {error}\nhint: {}", directory.display(), state_hint(.error))]
    State {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file of the access log cannot be opened.
    #[error("cannot write the access log {} ([log] file): {error}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
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
}

pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "\nhint: another process listens there; `ss -ltnp` shows which",
        io::ErrorKind::PermissionDenied => "\nhint: ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "\nhint: this machine has no such address",
        _ => "",
    }
}

pub(super) fn state_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "give each process a directory of its own, or stop the other one"
        }
        _ => "a rollback must survive a restart, so this directory must exist and be writable",
    }
}
