//! What the gate may see of a message, and the edits it asks for. Two small traits, so that the engine that moves bytes can change.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cutover_core::Mono;
use http::{HeaderName, HeaderValue, Method};

/// The head of a request as an engine holds it.
pub trait Head {
    /// The method.
    fn method(&self) -> &Method;
    /// The path of the target as sent, without the query; begins with `/` for the origin form.
    fn path(&self) -> &str;
    /// The query without its question mark.
    fn query(&self) -> Option<&str>;
    /// The host asked for, with its port if one was sent: of the target for the absolute form, otherwise of the `Host` header.
    fn host(&self) -> Option<&str>;
    /// Whether this is HTTP/1.1 or later, where a host is required.
    fn requires_host(&self) -> bool;
    /// How many bytes the head had on the wire; zero where the engine cannot tell.
    fn size(&self) -> usize;
    /// The first value of a header.
    fn first(&self, name: &HeaderName) -> Option<&[u8]>;
    /// Calls back with every value of a header, in order.
    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8]));
}

/// Changes to a head, in the order asked for.
pub trait Edits {
    /// Replaces every value of a header by this one.
    fn set(&mut self, name: HeaderName, value: HeaderValue);
    /// Adds a value.
    fn append(&mut self, name: HeaderName, value: HeaderValue);
    /// Removes every value of a header.
    fn remove(&mut self, name: &HeaderName);
    /// Whether a header is there.
    fn contains(&self, name: &HeaderName) -> bool;
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
    /// Since when a request head is awaited, in microseconds of the monotonic clock plus one; zero while a request is served.
    awaiting_head: AtomicU64,
}

impl Conn {
    /// A connection from this address.
    pub fn new(peer: IpAddr, trusted: bool) -> Self {
        let peer = peer.to_canonical();
        let peer_value = HeaderValue::from_str(&peer.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { peer, peer_value, trusted, awaiting_head: AtomicU64::new(0) }
    }

    /// From now on a request head is awaited.
    pub fn await_head(&self, now: Mono) {
        self.awaiting_head.store(now.as_micros() + 1, Ordering::Relaxed);
    }

    /// A request head has come.
    pub fn head_came(&self) {
        self.awaiting_head.store(0, Ordering::Relaxed);
    }

    /// For how long a request head has been awaited; `None` while a request is served.
    pub fn awaited_for(&self, now: Mono) -> Option<Duration> {
        let since = self.awaiting_head.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.since(Mono::from_micros(since)))
    }
}
