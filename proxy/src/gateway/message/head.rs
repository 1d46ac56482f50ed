//! The parts of a message that the router may see, and the edits it requests. These are two small
//! traits, so that the engine that moves bytes can be replaced.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cutover_core::time::micros;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::gateway::adapter::tunnel::Tunnel;
use crate::shared::drain::DrainMarker;
use crate::upstream::Server;

/// Fields of an answer that belong to one connection (RFC 9110, section 7.6.1), besides
/// `Connection` and those that it names. Fields that frame the message are not listed.
pub(in crate::gateway) const HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::TE,
    http::header::TRAILER,
    http::header::UPGRADE,
];

/// The head of a request as an engine holds it.
pub trait Head {
    /// Returns the method.
    fn method(&self) -> &Method;
    /// Returns the path of the target as sent, without the query. In the origin form it begins with
    /// `/`.
    fn path(&self) -> &str;
    /// Returns the query without its question mark.
    fn query(&self) -> Option<&str>;
    /// Returns the host of the target, with its port if one was sent. Only the absolute form has
    /// one.
    fn authority(&self) -> Option<&str> {
        None
    }
    /// Returns the requested host, from the target or else from the `Host` header.
    fn host_value(&self) -> Option<Value<'_>> {
        self.authority()
            .map(str::as_bytes)
            .or_else(|| self.first(&http::header::HOST))
            .map(Value::Text)
    }
    /// Returns whether this is HTTP/1.1 or later, where a host is required.
    fn requires_host(&self) -> bool;
    /// Returns the target as it stands in the request line, or the path if the engine has no
    /// request line.
    fn target(&self) -> &[u8] {
        self.path().as_bytes()
    }
    /// Returns the bytes of the head as received. Empty if the engine does not have them.
    fn raw(&self) -> &[u8] {
        b""
    }
    /// Returns the size of the head on the wire in bytes. Zero if the engine does not know it.
    fn size(&self) -> usize;
    /// Returns the first value of a header.
    fn first(&self, name: &HeaderName) -> Option<&[u8]>;
    /// Calls `found` with every value of a header, in order.
    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8]));
    /// Calls `found` with every field and its name in lower case. Values of one name are passed in
    /// order.
    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8]));
}

/// A value for a header, in the form in which the caller has it. An engine that keeps header values
/// shares what can be shared. An engine that writes bytes copies them once.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// One of our constants.
    Word(&'static str),
    /// An existing header value.
    Shared(&'a HeaderValue),
    /// Plain bytes.
    Text(&'a [u8]),
}

impl Value<'_> {
    /// Returns the bytes of the value.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Word(word) => word.as_bytes(),
            Self::Shared(value) => value.as_bytes(),
            Self::Text(text) => text,
        }
    }

    /// Converts the value to a header value. Invalid bytes become an empty value, but all bytes are
    /// from parsed heads or from us.
    pub fn to_header(self) -> HeaderValue {
        match self {
            Self::Word(word) => HeaderValue::from_static(word),
            Self::Shared(value) => value.clone(),
            Self::Text(text) => {
                HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
            }
        }
    }
}

/// Changes to a head, in the order requested. Names are statics, so that no engine has to copy
/// them.
pub trait Edits {
    /// Replaces every value of a header with this one.
    fn set(&mut self, name: &'static HeaderName, value: Value<'_>);
    /// Adds a value.
    fn append(&mut self, name: &'static HeaderName, value: Value<'_>);
    /// Removes every value of a header.
    fn remove(&mut self, name: &HeaderName);
    /// Returns whether a header is present.
    fn contains(&self, name: &HeaderName) -> bool;
    /// Removes every header whose name begins with this prefix.
    fn remove_all(&mut self, prefix: &str);
}

impl Edits for HeaderMap {
    fn set(&mut self, name: &'static HeaderName, value: Value<'_>) {
        self.insert(name, value.to_header());
    }

    fn append(&mut self, name: &'static HeaderName, value: Value<'_>) {
        Self::append(self, name, value.to_header());
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn remove_all(&mut self, prefix: &str) {
        names_with(self, prefix)
            .iter()
            .for_each(|name| drop(Self::remove(self, name)));
    }
}

/// Returns the names in a map that begin with this prefix.
pub fn names_with(map: &HeaderMap, prefix: &str) -> Vec<HeaderName> {
    map.keys()
        .filter(|name| name.as_str().starts_with(prefix))
        .cloned()
        .collect()
}

/// An awaited event and its deadline. Times are microseconds of the deadlines task.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Wait {
    /// The deadline. Zero while nothing is awaited.
    due_us: AtomicU64,
    limit_us: AtomicU64,
}

impl Wait {
    pub(in crate::gateway) fn begin(&self, due_us: u64, limit: Duration) {
        self.limit_us.store(micros(limit), Ordering::Relaxed);
        self.due_us.store(due_us, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn end(&self) {
        self.due_us.store(0, Ordering::Relaxed);
    }

    /// Returns the whole limit of the wait. `None` while nothing is awaited.
    pub(in crate::gateway) fn limit(&self) -> Option<Duration> {
        (self.due_us.load(Ordering::Relaxed) != 0)
            .then(|| Duration::from_micros(self.limit_us.load(Ordering::Relaxed)))
    }

    pub(in crate::gateway) fn is_over(&self, now_us: u64) -> bool {
        (1..now_us).contains(&self.due_us.load(Ordering::Relaxed))
    }
}

/// The facts about a client's connection, computed once for all its requests.
#[derive(Debug)]
pub struct Conn {
    /// The address of the peer that opened the connection.
    pub peer: IpAddr,
    /// The address as a header value.
    pub peer_value: HeaderValue,
    /// Whether the forwarding headers of the connection are trusted.
    pub trusted: bool,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The marker that says which rollout and side the current request is on.
    pub stay: DrainMarker,
    /// The tunnel or stream that the current request has become.
    pub tunnel: ArcSwapOption<Tunnel>,
    /// The server that this connection prewarms. `Some` only for one of our own connections, which
    /// has no client.
    pub warms: Option<Arc<Server>>,
    /// The wait for a part of the backend's answer. The waits for the backend to take more of the
    /// upload, and for the client to send more of it, stand beside it.
    pub(in crate::gateway) answer: Wait,
    pub(in crate::gateway) taking: Wait,
    pub(in crate::gateway) body: Wait,
    /// Whether the client still has to read, so that nothing can be expected of the backend.
    is_client_behind: AtomicBool,
    /// The socket of the current attempt, if no other request shares it. -1 if there is none.
    upstream: AtomicI32,
    /// The deadline of the awaited event, in microseconds of the process. Zero while nothing is
    /// awaited.
    due_us: AtomicU64,
    /// Whether the request of the connection has to end early.
    is_sent_away: AtomicBool,
    /// Whether the request and its answer are complete, with no bytes of either left, and the
    /// client expects the connection to stay open.
    is_answered_whole: AtomicBool,
}

impl Conn {
    /// Creates a connection from this address.
    pub fn new(peer: IpAddr, trusted: bool, tls: bool) -> Self {
        let peer = peer.to_canonical();
        let peer_value = HeaderValue::from_str(&peer.to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self {
            peer,
            peer_value,
            trusted,
            tls,
            stay: DrainMarker::default(),
            tunnel: ArcSwapOption::default(),
            warms: None,
            answer: Wait::default(),
            taking: Wait::default(),
            body: Wait::default(),
            is_client_behind: AtomicBool::default(),
            upstream: AtomicI32::new(-1),
            due_us: AtomicU64::default(),
            is_sent_away: AtomicBool::default(),
            is_answered_whole: AtomicBool::default(),
        }
    }

    /// Creates a connection of our own that prewarms this server.
    pub fn warm_up(server: Arc<Server>) -> Self {
        Self {
            warms: Some(server),
            ..Self::new(IpAddr::V4(Ipv4Addr::LOCALHOST), false, false)
        }
    }

    /// Creates a copy for one stream of the connection, because streams run concurrently.
    pub fn for_stream(&self) -> Self {
        let Self {
            peer,
            peer_value,
            trusted,
            tls,
            ..
        } = self;
        Self {
            peer: *peer,
            peer_value: peer_value.clone(),
            trusted: *trusted,
            tls: *tls,
            stay: DrainMarker::default(),
            tunnel: ArcSwapOption::default(),
            warms: None,
            answer: Wait::default(),
            taking: Wait::default(),
            body: Wait::default(),
            is_client_behind: AtomicBool::default(),
            upstream: AtomicI32::new(-1),
            due_us: AtomicU64::default(),
            is_sent_away: AtomicBool::default(),
            is_answered_whole: AtomicBool::default(),
        }
    }

    /// Records that the request and its answer are complete and that the client expects the
    /// connection to stay open.
    pub(in crate::gateway) fn answered_whole(&self) {
        self.is_answered_whole.store(true, Ordering::Relaxed);
    }

    /// Returns whether the last request ended completely, and resets that fact.
    pub(in crate::gateway) fn take_answered_whole(&self) -> bool {
        self.is_answered_whole.swap(false, Ordering::Relaxed)
    }

    /// Records that a request head was received. The request is being served now, and has limits of
    /// its own.
    pub fn head_came(&self) {
        self.wait_until(0);
    }

    /// Returns the deadline of the awaited event, in microseconds of the process. Zero while
    /// nothing is awaited that has a limit here. See
    /// [`Deadlines`](crate::gateway::listener::deadlines::Deadlines).
    pub(in crate::gateway) fn due_us(&self) -> u64 {
        self.due_us.load(Ordering::Relaxed)
    }

    pub(in crate::gateway) fn wait_until(&self, due_us: u64) {
        self.due_us.store(due_us, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_overdue(&self, now_us: u64) -> bool {
        (1..now_us).contains(&self.due_us())
    }

    /// Returns whether anything awaited did not arrive in time.
    pub(in crate::gateway) fn has_to_look(&self, now_us: u64) -> bool {
        self.is_overdue(now_us) || self.is_answer_late(now_us) || self.body.is_over(now_us)
    }

    /// Returns whether the backend has missed a deadline.
    pub(in crate::gateway) fn is_answer_late(&self, now_us: u64) -> bool {
        !self.is_client_behind() && (self.answer.is_over(now_us) || self.taking.is_over(now_us))
    }

    pub(in crate::gateway) fn set_client_behind(&self, is_behind: bool) {
        self.is_client_behind.store(is_behind, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_client_behind(&self) -> bool {
        self.is_client_behind.load(Ordering::Relaxed)
    }

    /// Sets the socket of the attempt that begins. The value is -1 for a socket that other requests
    /// share, and after the attempt.
    pub(in crate::gateway) fn set_upstream(&self, socket: RawFd) {
        self.upstream.store(socket, Ordering::Relaxed);
    }

    /// Returns the socket of the attempt in flight, and resets it.
    pub(in crate::gateway) fn take_upstream(&self) -> Option<RawFd> {
        Some(self.upstream.swap(-1, Ordering::Relaxed)).filter(|socket| *socket >= 0)
    }

    pub(in crate::gateway) fn send_away(&self) {
        self.is_sent_away.store(true, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_sent_away(&self) -> bool {
        self.is_sent_away.load(Ordering::Relaxed)
    }

    /// Records that the drain signal was handled.
    pub(in crate::gateway) fn heard(&self) {
        self.is_sent_away.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_a_limit_is_never_overdue() {
        let conn = Conn::new(IpAddr::from([192, 0, 2, 7]), false, false);
        assert!(!conn.is_overdue(u64::MAX));
        conn.wait_until(5);
        assert_eq!(
            [4, 5, 6].map(|now| conn.is_overdue(now)),
            [false, false, true]
        );
        conn.head_came();
        assert!(!conn.is_overdue(u64::MAX));
    }
}
