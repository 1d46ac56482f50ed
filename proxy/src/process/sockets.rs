//! Listening sockets, and where they come from: bound here, given by systemd, or passed on by the
//! process before this one.
//!
//! A socket that was given is found by the address in the file: by the address it was configured
//! with if a process passed it on (so that port 0 keeps its port), by the address it listens on if
//! it comes from systemd. Whatever the file asks for beyond that is bound. A socket of systemd that
//! the file does not ask for is a mistake and ends the start: clients would connect and wait for
//! ever.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// What a socket is for.
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
    /// Where the file says the address.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Http => "[listen] http",
            Self::Https => "[listen] https",
            Self::Admin => "[admin] address",
        }
    }
}

/// A listening socket and the address in the file that it is for.
#[derive(Debug)]
pub struct Socket {
    /// What it is for.
    pub purpose: Purpose,
    /// The address in the file.
    pub configured: SocketAddr,
    /// The socket.
    pub listener: TcpListener,
}

impl Socket {
    /// The same socket once more.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self {
            purpose: self.purpose,
            configured: self.configured,
            listener: self.listener.try_clone()?,
        })
    }
}

/// Sockets that somebody has bound before.
#[derive(Debug, Default)]
pub enum Given {
    /// None.
    #[default]
    Nothing,
    /// By systemd: what they are for is told by their addresses alone.
    BySystemd(Vec<TcpListener>),
    /// By the process before this one.
    ByProcess(Vec<Socket>),
}

impl Given {
    /// What systemd passes to this process, if anything. Before any thread is started, since it
    /// clears the environment.
    ///
    /// # Errors
    /// When something is passed that does not listen on TCP.
    pub fn by_systemd() -> io::Result<Self> {
        let mut passed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for at in 0..passed.len() {
            if let Some(listener) = passed.take_tcp_listener(at)? {
                // A copy that no child inherits.
                listeners.push(listener.try_clone()?);
            }
        }
        Ok(if listeners.is_empty() {
            Self::Nothing
        } else {
            Self::BySystemd(listeners)
        })
    }

    /// The socket for an address: a given one, or bound now.
    ///
    /// # Errors
    /// When it cannot be bound.
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

    /// The addresses of sockets that systemd passed and nobody has taken. What a process passed on
    /// and nobody has taken is closed.
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

/// Whether a socket that listens on one address is what the file means by another.
/// `ListenStream=80` listens on `[::]:80`, which takes IPv4, too.
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
    fn a_socket_of_systemd_is_found_by_its_address_and_what_is_left_is_named() {
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
    fn a_socket_for_all_of_ipv6_is_one_for_all_of_ipv4_too() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert!(is_for(address("[::]:80"), address("0.0.0.0:80")));
        assert!(!is_for(address("[::]:80"), address("0.0.0.0:81")));
        assert!(!is_for(address("[::]:80"), address("10.0.0.1:80")));
        assert!(!is_for(address("0.0.0.0:80"), address("[::]:80")));
    }

    #[test]
    fn a_socket_of_the_process_before_keeps_its_port_where_the_file_says_none() {
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
