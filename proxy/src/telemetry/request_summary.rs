//! What is known of a request that has ended, said once for its line in the access log and for its
//! span.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::{Decision, Outcome, Wall};
use http::Method;

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// When.
    pub at: Wall,
    /// From its start to its end.
    pub total: Duration,
    /// The method.
    pub method: Method,
    /// The path as sent, without the query, which may hold secrets.
    pub path: Box<str>,
    /// The status the client got.
    pub status: Option<u16>,
    /// The rollout that decided, if one matched.
    pub rollout: Option<Arc<str>>,
    /// Where it went and why.
    pub decision: Option<Decision>,
    /// Why the other side was asked than the one decided, if it was.
    pub moved: Option<&'static str>,
    /// What it says about the backend.
    pub outcome: Outcome,
    /// The client's address.
    pub client: IpAddr,
}

/// What moves the bytes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Pingora's HTTP proxy.
    #[default]
    Proxy,
    /// The fast lane.
    Lane,
}

impl Engine {
    /// The name used in the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Lane => "lane",
        }
    }
}

/// The id of a request.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// One of ours.
    Ours([u8; 32]),
    /// That of a trusted proxy.
    Theirs(Box<[u8]>),
}

impl RequestId {
    /// Its text.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Ours(id) => id,
            Self::Theirs(id) => id,
        }
    }
}
