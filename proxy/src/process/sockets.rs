//! Listening sockets, which are bound here, given by systemd, or passed on by the predecessor
//! process.
//!
//! A given socket is found by the address in the file. For a socket from a predecessor this is the
//! address it was configured with, so that port 0 keeps its port. For a socket from systemd this is
//! the address on which it listens. Any other address in the file is bound here. A socket of
//! systemd that the file does not use is a mistake and ends the start, because clients would
//! connect and wait forever.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// The purpose of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Requests without TLS.
    Http,
    /// Requests with TLS.
    Https,
    /// The admin port.
    Admin,
}

impl Purpose {
    /// Returns the key in the file that names the address.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Http => "[listen] http",
            Self::Https => "[listen] https",
            Self::Admin => "[admin] address",
        }
    }
}

/// A listening socket and its address in the file.
#[derive(Debug)]
pub struct Socket {
    /// The purpose of the socket.
    pub purpose: Purpose,
    /// The address in the file.
    pub configured: SocketAddr,
    /// The listening socket itself.
    pub listener: TcpListener,
}

impl Socket {
    /// Duplicates the socket.
    ///
    /// # Errors
    /// Fails when the process has too many open files.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self {
            purpose: self.purpose,
            configured: self.configured,
            listener: self.listener.try_clone()?,
        })
    }
}

/// Sockets that were bound before this process started.
#[derive(Debug, Default)]
pub enum Given {
    /// No sockets.
    #[default]
    Nothing,
    /// Sockets from systemd, whose purpose follows from their addresses alone.
    BySystemd(Vec<TcpListener>),
    /// Sockets from the predecessor process.
    ByProcess(Vec<Socket>),
}

impl Given {
    /// Returns the sockets that systemd passes to this process, if any. It must be called before
    /// any thread is started, since it clears the environment.
    ///
    /// # Errors
    /// Fails when a passed socket does not listen on TCP.
    pub fn by_systemd() -> io::Result<Self> {
        let mut passed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for at in 0..passed.len() {
            if let Some(listener) = passed.take_tcp_listener(at)? {
                // The copy is not inherited by child processes.
                listeners.push(listener.try_clone()?);
            }
        }
        Ok(if listeners.is_empty() {
            Self::Nothing
        } else {
            Self::BySystemd(listeners)
        })
    }

    /// Returns the socket for an address, which is a given one or is bound now.
    ///
    /// # Errors
    /// Fails when the address cannot be bound.
    pub fn take(&mut self, purpose: Purpose, configured: SocketAddr) -> io::Result<Socket> {
        let given = match self {
            Self::Nothing => None,
            Self::ByProcess(sockets) => {
                let at = sockets.iter().position(|socket| {
                    socket.purpose == purpose && socket.configured == configured
                });
                at.map(|at| sockets.swap_remove(at).listener)
            }
            Self::BySystemd(listeners) => {
                let at = listeners.iter().position(|listener| {
                    listener
                        .local_addr()
                        .is_ok_and(|address| is_for(address, configured))
                });
                at.map(|at| listeners.swap_remove(at))
            }
        };
        let listener = given.map_or_else(|| TcpListener::bind(configured), Ok)?;
        Ok(Socket {
            purpose,
            configured,
            listener,
        })
    }

    /// Returns the addresses of sockets that systemd passed and that were not taken. Unused sockets
    /// of a predecessor are closed.
    pub fn unused(&self) -> Vec<SocketAddr> {
        match self {
            Self::Nothing | Self::ByProcess(_) => Vec::new(),
            Self::BySystemd(listeners) => listeners
                .iter()
                .filter_map(|listener| listener.local_addr().ok())
                .collect(),
        }
    }
}

/// Whether a socket that listens on one address is the one that the file names by another.
/// `ListenStream=80` listens on `[::]:80`, which also accepts IPv4.
fn is_for(listens: SocketAddr, configured: SocketAddr) -> bool {
    let takes_all =
        configured.ip().is_unspecified() && listens.ip().is_unspecified() && listens.is_ipv6();
    listens == configured || (takes_all && listens.port() == configured.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    #[test]
    fn systemd_sockets_match_by_address_and_unused_ones_are_named() {
        let ((http, http_address), (other, other_address)) = (bound(), bound());
        let mut given = Given::BySystemd(vec![other, http]);
        let taken = given.take(Purpose::Http, http_address).expect("taken");
        assert_eq!(
            taken.listener.local_addr().expect("an address"),
            http_address
        );
        assert_eq!(given.unused(), [other_address]);
    }

    #[test]
    fn a_socket_for_all_of_ipv6_also_serves_all_of_ipv4() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert!(is_for(address("[::]:80"), address("0.0.0.0:80")));
        assert!(!is_for(address("[::]:80"), address("0.0.0.0:81")));
        assert!(!is_for(address("[::]:80"), address("10.0.0.1:80")));
        assert!(!is_for(address("0.0.0.0:80"), address("[::]:80")));
    }

    #[test]
    fn a_socket_of_the_predecessor_keeps_its_port_for_port_zero() {
        let (listener, address) = bound();
        let configured: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let mut given = Given::ByProcess(vec![Socket {
            purpose: Purpose::Http,
            configured,
            listener,
        }]);
        let admin = given.take(Purpose::Admin, configured).expect("bound");
        assert_ne!(
            admin.listener.local_addr().expect("an address"),
            address,
            "it is not for the admin port"
        );
        assert_eq!(
            given
                .take(Purpose::Http, configured)
                .expect("taken")
                .listener
                .local_addr()
                .expect("an address"),
            address
        );
        assert_eq!(given.unused(), []);
    }
}
