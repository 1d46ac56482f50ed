//! The data path: from a client's connection to a backend's and back.
//!
//! ```text
//! Acceptor -> Listener: connection cap, facts of the connection, deadlines of heads
//!              |- lane: plain HTTP/1.1 ------------> Router    our logic about one request, without sockets and without pingora
//!              '- Adapter: pingora's phases -------> Router    the other room, with `spelling` and `tunnel`, that names pingora's request types
//! ```
//!
//! | room | what |
//! |---|---|
//! | `acceptor` | listening sockets |
//! | `listener` | one connection |
//! | `http2` | one connection of HTTP/2 and its streams |
//! | `client` | its socket, and what pingora needs beside it |
//! | `deadlines` | deadlines of connections, and orders to them |
//! | `buffer`, `scratch` | bytes that have been read, and bytes in the making, in memory lent by the thread |
//! | `lane` | plain HTTP/1.1, moved as the bytes that came |
//! | `adapter` | pingora's callbacks, translated |
//! | `spelling` | header names and targets as the client wrote them |
//! | `tunnel` | connections for upgrades |
//! | `router` | one request: identify, decide, edit, classify, record |
//! | `screen` | heads of HTTP/1 that the lane does not take: read whole, and refused with a reason where they are malformed |
//! | `turn` | the part of a client's stream that is one request of HTTP/1 |
//! | `strict` | what no request may look like |
//! | `refusal` | why requests are refused, and how often |
//! | `fields` | what the router wants to know of a header, in one pass |
//! | `head` | what the router may see of a message, and the edits it asks for |
//! | `identity` | request -> user key |
//! | `forward` | headers to the backend |
//! | `trace` | W3C trace context, and what a sampled request says of its attempts |
//! | `reply` | answers of our own |
//! | `pace` | how fast a body has to come |
//! | `patience` | how long a request waits for its backend and for its body |
//! | `prewarmer` | connections to a backend before its first user |
//! | `hold_queue` | where requests wait while maintenance holds them |
//!
//! Never here: a file, a wait for the control plane, a lock that is everybody's, save the
//! deadlines's list of connections, which is held for a moment when one begins and when one ends. A
//! request reads one snapshot and adds to counters; only one that maintenance holds waits, on
//! purpose, in `hold_queue`.

pub mod adapter;
pub mod explain;
pub mod http2;
pub mod lane;
pub mod listener;
pub mod message;
pub mod prewarm;
pub mod router;
