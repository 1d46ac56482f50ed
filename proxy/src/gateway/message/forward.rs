//! Headers to the backend. Our own headers are set, and forged ones never reach a backend.
//!
//! Names under `x-cutover-` are reserved for the proxy. The forwarding headers and `x-request-id`
//! are kept from `trusted_proxies` only. Those of any other client are replaced.

use std::net::IpAddr;

use http::HeaderName;

use crate::gateway::message::head::{Conn, Edits, Head, Value};

/// Names the backend that serves the request: `legacy` or `new`.
pub static BACKEND: HeaderName = HeaderName::from_static("x-cutover-backend");
/// Names the rollout that decided.
pub static ROLLOUT: HeaderName = HeaderName::from_static("x-cutover-rollout");
/// The user's bucket.
pub static BUCKET: HeaderName = HeaderName::from_static("x-cutover-bucket");
/// Names the step that decided.
pub static REASON: HeaderName = HeaderName::from_static("x-cutover-reason");
/// The side that a tester wants, with the token.
pub static OVERRIDE: HeaderName = HeaderName::from_static("x-cutover-override");
/// The chain of client addresses.
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme the client used.
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the client requested.
pub static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The id of this request.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A cookie for the client.
pub static SET_COOKIE: HeaderName = http::header::SET_COOKIE;
/// Says what a cache may do with an answer.
pub static CACHE_CONTROL: HeaderName = http::header::CACHE_CONTROL;
/// The W3C trace context.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The vendor data of the W3C trace context.
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The prefix of the names that are reserved for the proxy.
pub const PREFIX: &str = "x-cutover-";
/// Every name that a backend may trust as ours.
pub static OURS: [&HeaderName; 9] = [
    &BACKEND,
    &ROLLOUT,
    &BUCKET,
    &REASON,
    &OVERRIDE,
    &FORWARDED_FOR,
    &FORWARDED_PROTO,
    &FORWARDED_HOST,
    &REQUEST_ID,
];

/// Returns the address of the client. This is the right-most one in `X-Forwarded-For` that is not a
/// trusted proxy, as far as the chain is trusted, starting from us.
pub fn client_address(
    head: &impl Head,
    conn: &Conn,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    if !conn.trusted {
        return conn.peer;
    }
    let mut chain: Vec<&[u8]> = Vec::new();
    head.each(&FORWARDED_FOR, &mut |value| {
        chain.extend(value.split(|&byte| byte == b','));
    });
    let mut client = conn.peer;
    for hop in chain.into_iter().rev() {
        // An unreadable hop ends the search. The hop before it is the last known one.
        let Some(address) = std::str::from_utf8(hop.trim_ascii())
            .ok()
            .and_then(parse_hop)
        else {
            return client;
        };
        client = address;
        if !is_trusted(address) {
            return client;
        }
    }
    client
}

/// Returns the network of a client: the first 24 bits of an IPv4 address, the first 48 bits of an
/// IPv6 address. One customer of an access provider rarely has more than that.
pub fn network_of(address: IpAddr) -> [u8; 7] {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [4, a, b, c, 0, 0, 0]
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, ..] = v6.octets();
            [6, a, b, c, d, e, f]
        }
    }
}

/// Parses an address as proxies write it: bare, in brackets, or with a port.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.split_once(']'))
        .map_or(hop, |(address, _)| address);
    let address = bare.parse().ok().or_else(|| {
        hop.parse::<std::net::SocketAddr>()
            .ok()
            .map(|address| address.ip())
    });
    address.map(|address: IpAddr| address.to_canonical())
}

/// Sets `X-Forwarded-*`. The values are appended to those of a trusted proxy (`before`), and
/// replace those of any other client.
pub fn set_forwarding(
    edits: &mut impl Edits,
    conn: &Conn,
    host: Option<Value<'_>>,
    before: Option<&[u8]>,
) {
    match before {
        Some(before) => {
            let chain = [before, b", ", conn.peer_value.as_bytes()].concat();
            edits.set(&FORWARDED_FOR, Value::Text(&chain));
        }
        None => edits.set(&FORWARDED_FOR, Value::Shared(&conn.peer_value)),
    }
    if !conn.trusted || !edits.contains(&FORWARDED_PROTO) {
        edits.set(
            &FORWARDED_PROTO,
            Value::Word(if conn.tls { "https" } else { "http" }),
        );
    }
    if !conn.trusted || !edits.contains(&FORWARDED_HOST) {
        match host {
            Some(host) => edits.set(&FORWARDED_HOST, host),
            None => edits.remove(&FORWARDED_HOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::TestHead;

    fn client(peer: &str, trusted: bool, forwarded: &[&str]) -> String {
        let conn = Conn::new(peer.parse().expect("an address"), trusted, false);
        let head = forwarded.iter().fold(TestHead::get("/"), |head, value| {
            head.with("x-forwarded-for", value)
        });
        client_address(&head, &conn, |address| {
            address.to_string().starts_with("10.")
        })
        .to_string()
    }

    #[test]
    fn the_client_is_the_right_most_untrusted_hop() {
        assert_eq!(
            client("203.0.113.9", false, &["198.51.100.1"]),
            "203.0.113.9"
        );
        assert_eq!(client("10.0.0.1", true, &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(
            client("10.0.0.1", true, &["6.6.6.6, 198.51.100.1, 10.0.0.7"]),
            "198.51.100.1"
        );
        assert_eq!(
            client("10.0.0.1", true, &["6.6.6.6", "198.51.100.1:4711"]),
            "198.51.100.1"
        );
        assert_eq!(
            client("10.0.0.1", true, &["6.6.6.6, nonsense, 10.0.0.7"]),
            "10.0.0.7"
        );
        assert_eq!(
            client("10.0.0.1", true, &["[2001:db8::1]:80"]),
            "2001:db8::1"
        );
        assert_eq!(client("10.0.0.1", true, &[]), "10.0.0.1");
    }
}
