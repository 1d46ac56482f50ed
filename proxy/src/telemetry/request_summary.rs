//! The facts of a request that has ended, collected once for its line in the access log and for its
//! span.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::{Decision, Outcome, Wall};
use http::Method;

/// The facts of a request that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The time of the request.
    pub at: Wall,
    /// The time from the start of the request to its end.
    pub total: Duration,
    /// The method of the request.
    pub method: Method,
    /// The path as sent, without the query, which may hold secrets.
    pub path: Box<str>,
    /// The status that the client received.
    pub status: Option<u16>,
    /// The rollout that decided, if one matched.
    pub rollout: Option<Arc<str>>,
    /// The side that was chosen, and the reason.
    pub decision: Option<Decision>,
    /// Why the request was sent to the other side than the one decided, if it was.
    pub moved: Option<&'static str>,
    /// What the request says about the backend.
    pub outcome: Outcome,
    /// The address of the client.
    pub client: IpAddr,
}

/// The engine that moves the bytes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Pingora's HTTP proxy.
    #[default]
    Proxy,
    /// The fast lane.
    Lane,
}

impl Engine {
    /// Returns the name used in the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Lane => "lane",
        }
    }
}

/// The ID of a request.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// An ID that Cutover generated.
    Ours([u8; 32]),
    /// An ID from a trusted proxy.
    Theirs(Box<[u8]>),
}

impl RequestId {
    /// Returns the text of the ID.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Ours(id) => id,
            Self::Theirs(id) => id,
        }
    }
}
