//! The servers of a backend: addresses resolved off the request path, peers prepared beforehand.
//!
//! A [`Backend`] outlives reloads as long as its settings stay the same. Peers are identified by address, so a reload that does not change an address finds the connection pool warm.
//! A name that stops resolving keeps its last good addresses. A backend without any address is "without a server": the decision then sends its users to the other side.
//!
//! Deliberately absent until the edge is built: active health checks, ejection, TLS and HTTP/2 to the backend.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cutover_config::Backend as BackendSettings;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use pingora::upstreams::peer::HttpPeer;

/// Keeps connections that are not to be kept apart from the others.
const FRESH: u64 = 2;

/// One backend of the file, ready to be sent to.
#[derive(Debug)]
pub struct Backend {
    settings: BackendSettings,
    peers: ArcSwap<Vec<HttpPeer>>,
    /// The last good addresses of each server. Only the resolver takes this lock.
    resolved: Mutex<Vec<Vec<SocketAddr>>>,
    next: AtomicUsize,
}

impl Backend {
    /// A backend with its addresses resolved now. May block on DNS: never call it on the request path.
    pub fn new(settings: BackendSettings) -> Self {
        let resolved = Mutex::new(vec![Vec::new(); settings.servers.len()]);
        let backend = Self { settings, peers: ArcSwap::default(), resolved, next: AtomicUsize::new(0) };
        backend.resolve();
        backend
    }

    /// What the file says.
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Whether there is a server to send to.
    pub fn is_available(&self) -> bool {
        !self.peers.load().is_empty()
    }

    /// How many servers there are to send to.
    pub fn servers(&self) -> usize {
        self.peers.load().len()
    }

    /// The next server in turn, or, after `tried` failed, the one behind it. `None` when no name has resolved to an address.
    pub fn next_peer(&self, tried: Option<SocketAddr>) -> Option<Box<HttpPeer>> {
        let peers = self.peers.load();
        let at = match tried.and_then(|tried| peers.iter().position(|peer| peer._address.as_inet() == Some(&tried))) {
            Some(failed) => failed + 1,
            None if peers.len() > 1 => self.next.fetch_add(1, Ordering::Relaxed),
            None => 0,
        };
        peers.get(at.checked_rem(peers.len())?).map(|peer| Box::new(peer.clone()))
    }

    /// Resolves the names again and returns those that failed, with the reason. May block on DNS.
    pub fn resolve(&self) -> Vec<(String, String)> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Vec::new();
        for (server, addresses) in self.settings.servers.iter().zip(resolved.iter_mut()) {
            match (server.host.as_str(), server.port).to_socket_addrs() {
                Ok(found) => *addresses = of_one_family(found.collect()),
                Err(error) => failed.push((server.to_string(), error.to_string())),
            }
        }
        let mut addresses: Vec<SocketAddr> = resolved.iter().flatten().copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let before = self.peers.load();
        let unchanged = before.len() == addresses.len() && before.iter().zip(&addresses).all(|(peer, address)| peer._address.as_inet() == Some(address));
        if !unchanged {
            self.peers.store(Arc::new(addresses.iter().map(|address| self.peer(*address)).collect()));
        }
        failed
    }

    fn peer(&self, address: SocketAddr) -> HttpPeer {
        let mut peer = HttpPeer::new(address, false, String::new());
        peer.options.connection_timeout = Some(self.settings.connect_timeout);
        peer.options.total_connection_timeout = Some(self.settings.connect_timeout);
        peer.options.read_timeout = Some(self.settings.response_timeout);
        peer.options.write_timeout = Some(self.settings.response_timeout);
        peer.options.idle_timeout = Some(self.settings.idle_timeout);
        peer
    }
}

/// Whether something waits unread on a kept connection: its end, or bytes that nobody asked for. The engine looks, too, but at what the runtime has been told, not at what has come since.
pub fn has_unread(socket: RawFd) -> bool {
    recv(socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) != Err(Errno::EAGAIN)
}

/// Makes a peer for one connection that is not a kept one, and is not kept. Where one kept connection was of no use, others are likely to be.
pub fn make_fresh(peer: &mut HttpPeer) {
    peer.group_key = FRESH;
    peer.options.idle_timeout = Some(Duration::ZERO);
}

/// The addresses of a name in one family, IPv4 where there is a choice: `localhost` is one server, not one per protocol.
fn of_one_family(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v4 = found.iter().any(SocketAddr::is_ipv4);
    found.into_iter().filter(|address| address.is_ipv4() == v4).collect()
}
