//! What the gate may see of a message, and the edits it asks for. Two small traits, so that the engine that moves bytes can change.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cutover_core::Mono;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::tunnel::Tunnel;
use crate::drain::Stay;
use crate::upstream::Server;

/// The head of a request as an engine holds it.
pub trait Head {
    /// The method.
    fn method(&self) -> &Method;
    /// The path of the target as sent, without the query; begins with `/` for the origin form.
    fn path(&self) -> &str;
    /// The query without its question mark.
    fn query(&self) -> Option<&str>;
    /// The host of the target, with its port if one was sent: for the absolute form only.
    fn authority(&self) -> Option<&str> {
        None
    }
    /// The host asked for as a header value, of the target or else of the `Host` header; without a copy where the engine has one.
    fn host_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.authority().map(str::as_bytes).or_else(|| self.first(&http::header::HOST))?).ok()
    }
    /// Whether this is HTTP/1.1 or later, where a host is required.
    fn requires_host(&self) -> bool;
    /// The target as it stands in the request line; the path where the engine has no line.
    fn target(&self) -> &[u8] {
        self.path().as_bytes()
    }
    /// The bytes of the head as they came; empty where the engine has none.
    fn raw(&self) -> &[u8] {
        b""
    }
    /// How many bytes the head had on the wire; zero where the engine cannot tell.
    fn size(&self) -> usize;
    /// The first value of a header.
    fn first(&self, name: &HeaderName) -> Option<&[u8]>;
    /// Calls back with every value of a header, in order.
    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8]));
    /// Calls back with every field, its name in lower case. Values of one name come in order.
    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a str, &'a [u8]));
}

/// Changes to a head, in the order asked for. Names are statics, so that no engine has to copy them.
pub trait Edits {
    /// Replaces every value of a header by this one.
    fn set(&mut self, name: &'static HeaderName, value: HeaderValue);
    /// Adds a value.
    fn append(&mut self, name: &'static HeaderName, value: HeaderValue);
    /// Removes every value of a header.
    fn remove(&mut self, name: &HeaderName);
    /// Whether a header is there.
    fn contains(&self, name: &HeaderName) -> bool;
    /// Removes every header whose name begins so.
    fn remove_all(&mut self, prefix: &str);
}

impl Edits for HeaderMap {
    fn set(&mut self, name: &'static HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }

    fn append(&mut self, name: &'static HeaderName, value: HeaderValue) {
        Self::append(self, name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn remove_all(&mut self, prefix: &str) {
        names_with(self, prefix).iter().for_each(|name| drop(Self::remove(self, name)));
    }
}

/// The names in a map that begin so.
pub fn names_with(map: &HeaderMap, prefix: &str) -> Vec<HeaderName> {
    map.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect()
}

/// What is known of the client's connection, computed once for all of its requests.
#[derive(Debug)]
pub struct Conn {
    /// The address of whoever opened the connection.
    pub peer: IpAddr,
    /// The same as a header value.
    pub peer_value: HeaderValue,
    /// Whether its forwarding headers are believed.
    pub trusted: bool,
    /// Whether it is encrypted.
    pub tls: bool,
    /// Where its present request is.
    pub stay: Stay,
    /// The tunnel that its present request has become, or the stream that it is.
    pub tunnel: ArcSwapOption<Tunnel>,
    /// The server that this connection warms up, if it is one of our own: it has no client.
    pub warms: Option<Arc<Server>>,
    /// When a body came on last, in microseconds of the process; zero while none is awaited.
    body_moved_us: AtomicU64,
    /// Counts the turns of the connection: even while a request head is awaited, odd while a request is served. Written by the task of the connection alone.
    turn: AtomicU64,
}

impl Conn {
    /// A connection from this address.
    pub fn new(peer: IpAddr, trusted: bool, tls: bool) -> Self {
        let peer = peer.to_canonical();
        let peer_value = HeaderValue::from_str(&peer.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { peer, peer_value, trusted, tls, stay: Stay::default(), tunnel: ArcSwapOption::default(), warms: None, body_moved_us: AtomicU64::default(), turn: AtomicU64::new(0) }
    }

    /// A connection of our own, to warm up this server.
    pub fn warm_up(server: Arc<Server>) -> Self {
        Self { warms: Some(server), ..Self::new(IpAddr::V4(Ipv4Addr::LOCALHOST), false, false) }
    }

    /// The same for one of the streams of the connection: they come and go side by side.
    pub fn for_stream(&self) -> Self {
        let Self { peer, peer_value, trusted, tls, .. } = self;
        Self {
            peer: *peer,
            peer_value: peer_value.clone(),
            trusted: *trusted,
            tls: *tls,
            stay: Stay::default(),
            tunnel: ArcSwapOption::default(),
            warms: None,
            body_moved_us: AtomicU64::default(),
            turn: AtomicU64::new(0),
        }
    }

    /// A part of a body has come, or is awaited from now on.
    pub fn body_moved(&self, now: Mono) {
        self.body_moved_us.store(cutover_core::time::micros(now.since(Mono::default())).max(1), Ordering::Relaxed);
    }

    /// All of the body is there.
    pub fn body_ended(&self) {
        self.body_moved_us.store(0, Ordering::Relaxed);
    }

    /// For how long nothing has come of a body that is awaited.
    pub fn body_rests(&self, now: Mono) -> Duration {
        match self.body_moved_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            moved => now.since(Mono::from_micros(moved)),
        }
    }

    /// A request head has come; its request is served now.
    pub fn head_came(&self) {
        self.turn.store(self.turn.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
    }

    /// The request is over; the next head is awaited.
    pub fn await_head(&self) {
        self.turn.store((self.turn.load(Ordering::Relaxed) | 1) + 1, Ordering::Relaxed);
    }

    /// Which turn the connection is in.
    pub fn turn(&self) -> Turn {
        Turn(self.turn.load(Ordering::Relaxed))
    }
}

/// One turn of a connection: awaiting a request head, or serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// Whether a request head is awaited.
    pub fn awaits_a_head(self) -> bool {
        self.0.is_multiple_of(2)
    }

    /// Whether it is the first head of the connection.
    pub fn is_first(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_turns() {
        let conn = Conn::new(IpAddr::from([192, 0, 2, 7]), false, false);
        assert!(conn.turn().is_first() && conn.turn().awaits_a_head());
        conn.head_came();
        assert!(!conn.turn().awaits_a_head());
        conn.await_head();
        let awaiting = conn.turn();
        assert!(awaiting.awaits_a_head() && !awaiting.is_first());
        conn.await_head();
        assert!(conn.turn().awaits_a_head() && conn.turn() != awaiting, "a request that was never told of is a turn all the same");
    }
}
