//! The data path: from a client's connection to a backend's and back.
//!
//! ```text
//! listener ──┬── lane ──────┬── router    plain HTTP/1.1: one pass over the received bytes
//!            ├── adapter ───┤             the proxy engine (pingora): everything else in HTTP/1
//!            └── http2 ─────┘             one HTTP/2 connection; its streams go to the adapter
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `listener` | accepts clients: connection limit, handshakes, deadlines of heads |
//! | `router` | decides about one request, edits its headers and records its end |
//! | `message` | what the router understands of a message, whichever engine moves its bytes |
//! | `lane` | plain HTTP/1.1, forwarded as the bytes that were received |
//! | `adapter` | the callbacks of the proxy engine, translated to the router |
//! | `http2` | HTTP/2 connections of clients and their streams |
//! | `prewarm` | connections to a backend before its first user |
//! | `explain` | why a request goes where it goes, for the command and the API |
//!
//! Never here: a file, a wait for the control plane, or a lock that all requests share. The one
//! exception is the connection list of the deadlines task, which is locked for a moment when a
//! connection begins and when it ends. A request reads one snapshot and adds to counters. Only a
//! request that maintenance holds waits, on purpose, in `router::hold_queue`.

pub mod adapter;
pub mod explain;
pub mod http2;
pub mod lane;
pub mod listener;
pub mod message;
pub mod prewarm;
pub mod router;
