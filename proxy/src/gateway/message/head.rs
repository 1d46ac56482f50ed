//! What the router may see of a message, and the edits it asks for. Two small traits, so that the
//! engine that moves bytes can change.

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
    /// The host asked for, of the target or else of the `Host` header.
    fn host_value(&self) -> Option<Value<'_>> {
        self.authority()
            .map(str::as_bytes)
            .or_else(|| self.first(&http::header::HOST))
            .map(Value::Text)
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
    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8]));
}

/// A value for a header, as whoever asks for the edit has it: an engine that keeps header values
/// shares what can be shared, one that writes bytes copies them once.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// One of our own words.
    Word(&'static str),
    /// One that exists already.
    Shared(&'a HeaderValue),
    /// Bytes.
    Text(&'a [u8]),
}

impl Value<'_> {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Word(word) => word.as_bytes(),
            Self::Shared(value) => value.as_bytes(),
            Self::Text(text) => text,
        }
    }

    /// As a header value. Bytes that are none become an empty one; they come from heads that have
    /// been parsed, or from us.
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

/// Changes to a head, in the order asked for. Names are statics, so that no engine has to copy
/// them.
pub trait Edits {
    /// Replaces every value of a header by this one.
    fn set(&mut self, name: &'static HeaderName, value: Value<'_>);
    /// Adds a value.
    fn append(&mut self, name: &'static HeaderName, value: Value<'_>);
    /// Removes every value of a header.
    fn remove(&mut self, name: &HeaderName);
    /// Whether a header is there.
    fn contains(&self, name: &HeaderName) -> bool;
    /// Removes every header whose name begins so.
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

/// The names in a map that begin so.
pub fn names_with(map: &HeaderMap, prefix: &str) -> Vec<HeaderName> {
    map.keys()
        .filter(|name| name.as_str().starts_with(prefix))
        .cloned()
        .collect()
}

/// Something that is awaited, and its deadline. Times are microseconds of the deadlines watch.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Wait {
    /// Zero while nothing is awaited.
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

    /// For how long it is awaited in all; `None` while nothing is.
    pub(in crate::gateway) fn limit(&self) -> Option<Duration> {
        (self.due_us.load(Ordering::Relaxed) != 0)
            .then(|| Duration::from_micros(self.limit_us.load(Ordering::Relaxed)))
    }

    pub(in crate::gateway) fn is_over(&self, now_us: u64) -> bool {
        (1..now_us).contains(&self.due_us.load(Ordering::Relaxed))
    }
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
    pub stay: DrainMarker,
    /// The tunnel that its present request has become, or the stream that it is.
    pub tunnel: ArcSwapOption<Tunnel>,
    /// The server that this connection warms up, if it is one of our own: it has no client.
    pub warms: Option<Arc<Server>>,
    /// What its present request waits for: something of the backend, that the backend takes more
    /// of the upload, and more of it from the client.
    pub(in crate::gateway) answer: Wait,
    pub(in crate::gateway) taking: Wait,
    pub(in crate::gateway) body: Wait,
    /// Whether the client is awaited to read, so that nothing can be expected of the backend.
    is_client_behind: AtomicBool,
    /// The socket of the present attempt, if it is the attempt's alone; -1 if there is none.
    upstream: AtomicI32,
    /// Until when something is awaited, in microseconds of the process; zero while nothing is.
    due_us: AtomicU64,
    /// Whether its request is to end before its time.
    is_sent_away: AtomicBool,
    /// Whether its request and the answer are over, with nothing of either left, and the client
    /// expects the connection to go on.
    is_answered_whole: AtomicBool,
}

impl Conn {
    /// A connection from this address.
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

    /// A connection of our own, to warm up this server.
    pub fn warm_up(server: Arc<Server>) -> Self {
        Self {
            warms: Some(server),
            ..Self::new(IpAddr::V4(Ipv4Addr::LOCALHOST), false, false)
        }
    }

    /// The same for one of the streams of the connection: they come and go side by side.
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

    /// The request and its answer are over, and the client expects the connection to go on.
    pub(in crate::gateway) fn answered_whole(&self) {
        self.is_answered_whole.store(true, Ordering::Relaxed);
    }

    /// Whether the last request ended so. Asks once.
    pub(in crate::gateway) fn take_answered_whole(&self) -> bool {
        self.is_answered_whole.swap(false, Ordering::Relaxed)
    }

    /// A request head has come; its request is served now, and has limits of its own.
    pub fn head_came(&self) {
        self.wait_until(0);
    }

    /// Until when something is awaited, in microseconds of the process; zero while nothing is, or
    /// nothing that has a limit here. See [`Deadlines`](crate::gateway::listener::deadlines::Deadlines).
    pub(in crate::gateway) fn due_us(&self) -> u64 {
        self.due_us.load(Ordering::Relaxed)
    }

    pub(in crate::gateway) fn wait_until(&self, due_us: u64) {
        self.due_us.store(due_us, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_overdue(&self, now_us: u64) -> bool {
        (1..now_us).contains(&self.due_us())
    }

    /// Whether anything that is awaited has not come in time.
    pub(in crate::gateway) fn has_to_look(&self, now_us: u64) -> bool {
        self.is_overdue(now_us) || self.is_answer_late(now_us) || self.body.is_over(now_us)
    }

    /// Whether the backend has let a deadline pass.
    pub(in crate::gateway) fn is_answer_late(&self, now_us: u64) -> bool {
        !self.is_client_behind() && (self.answer.is_over(now_us) || self.taking.is_over(now_us))
    }

    pub(in crate::gateway) fn set_client_behind(&self, is_behind: bool) {
        self.is_client_behind.store(is_behind, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_client_behind(&self) -> bool {
        self.is_client_behind.load(Ordering::Relaxed)
    }

    /// The socket of the attempt that begins; -1 for one that others share, and when the attempt is
    /// over.
    pub(in crate::gateway) fn set_upstream(&self, socket: RawFd) {
        self.upstream.store(socket, Ordering::Relaxed);
    }

    /// The socket of the attempt that is under way. Asks once.
    pub(in crate::gateway) fn take_upstream(&self) -> Option<RawFd> {
        Some(self.upstream.swap(-1, Ordering::Relaxed)).filter(|socket| *socket >= 0)
    }

    pub(in crate::gateway) fn send_away(&self) {
        self.is_sent_away.store(true, Ordering::Relaxed);
    }

    pub(in crate::gateway) fn is_sent_away(&self) -> bool {
        self.is_sent_away.load(Ordering::Relaxed)
    }

    /// The order to leave has been heard.
    pub(in crate::gateway) fn heard(&self) {
        self.is_sent_away.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overdue_that_has_no_limit() {
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
