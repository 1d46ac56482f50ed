//! The data path: from a client's connection to a backend's and back.
//!
//! ```text
//! Acceptor -> Listener: connection limit, facts of the connection, deadlines of heads
//!              |- lane: plain HTTP/1.1 ------------> Router    our logic about one request, without sockets and without pingora
//!              '- Adapter: pingora's phases -------> Router    with `spelling` and `tunnel` the only module that names pingora's request types
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `acceptor` | listening sockets |
//! | `listener` | one connection |
//! | `http2` | one HTTP/2 connection and its streams |
//! | `client` | the client's socket, and what pingora needs besides it |
//! | `deadlines` | deadlines of connections, and drain signals to them |
//! | `buffer`, `scratch` | bytes that were read, and bytes that are being assembled, in memory lent by the thread |
//! | `lane` | plain HTTP/1.1, forwarded as the bytes that were received |
//! | `adapter` | pingora's callbacks, translated |
//! | `spelling` | header names and targets as the client wrote them |
//! | `tunnel` | connections for upgrades |
//! | `router` | one request: identify, decide, edit, classify, record |
//! | `screen` | HTTP/1 heads that the lane does not take: read completely, and refused with a reason if malformed |
//! | `turn` | the part of a client's stream that is one HTTP/1 request |
//! | `strict` | forms that no request may have |
//! | `refusal` | why requests are refused, and how often |
//! | `fields` | the header fields that the router needs, found in one pass |
//! | `head` | the parts of a message that the router may see, and the edits it requests |
//! | `identity` | request -> user key |
//! | `forward` | headers to the backend |
//! | `trace` | W3C trace context, and the spans of a sampled request and its attempts |
//! | `reply` | the proxy's own answers |
//! | `pace` | the minimum rate of a body |
//! | `patience` | how long a request waits for its backend and for its body |
//! | `prewarmer` | connections to a backend before its first user |
//! | `hold_queue` | where requests wait while maintenance holds them |
//!
//! Never here: a file, a wait for the control plane, or a lock that all requests share. The one
//! exception is the connection list of the deadlines task, which is locked for a moment when a
//! connection begins and when it ends. A request reads one snapshot and adds to counters. Only a
//! request that maintenance holds waits, on purpose, in `hold_queue`.

pub mod adapter;
pub mod explain;
pub mod http2;
pub mod lane;
pub mod listener;
pub mod message;
pub mod prewarm;
pub mod router;
