//! Counts of client connections, and of requests that the lane left to the proxy engine.
//!
//! Written by: the listener and the lane. Read by: the metrics, and the shutdown of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counters of open client connections, of refused ones, and of requests that the lane declined.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    refused: AtomicU64,
    declines: Declines,
}

impl Connections {
    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were closed at once because `max_connections` were
    /// open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns the counts of requests that the lane left to the proxy engine.
    pub fn declines(&self) -> &Declines {
        &self.declines
    }

    /// Counts a connection as open, or as refused if `max` connections are open already.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<OpenConnection> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(OpenConnection(Arc::clone(self)))
    }
}

/// An open connection. It is counted until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Connections>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The reason why a request is left to the proxy engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    /// The head is not plain, or large.
    Head,
    /// The request is not HTTP/1.1.
    Version,
    /// The method is not a common one.
    Method,
    /// The target is not a path in plain characters.
    Target,
    /// There is not exactly one plain `Host`.
    Host,
    /// The body is not framed by a single length.
    Framing,
    /// There are hop-by-hop fields.
    HopByHop,
    /// The exchange may be long-lived.
    Lasts,
    /// The request has a body where none is usual, so it could not be sent twice.
    Body,
    /// A backend speaks TLS or HTTP/2.
    Backend,
    /// Maintenance holds the request.
    Held,
}

impl Declined {
    /// All reasons.
    pub const ALL: [Self; 11] = [
        Self::Head,
        Self::Version,
        Self::Method,
        Self::Target,
        Self::Host,
        Self::Framing,
        Self::HopByHop,
        Self::Lasts,
        Self::Body,
        Self::Backend,
        Self::Held,
    ];

    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Version => "version",
            Self::Method => "method",
            Self::Target => "target",
            Self::Host => "host",
            Self::Framing => "framing",
            Self::HopByHop => "hop_by_hop",
            Self::Lasts => "lasts",
            Self::Body => "body",
            Self::Backend => "backend",
            Self::Held => "held",
        }
    }
}

/// The number of declined requests by reason. All threads share the counters, because such a
/// request is slow anyway.
#[derive(Debug, Default)]
pub struct Declines([AtomicU64; Declined::ALL.len()]);

impl Declines {
    /// Counts one request as declined.
    pub fn add(&self, why: Declined) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many requests were declined for this reason.
    pub fn count(&self, why: Declined) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }
}

/// The number of clients that may linger at once. More than that indicates an attack.
pub const MOST_LINGERING: usize = 1_024;

/// Returns how many clients currently linger.
pub fn lingering() -> usize {
    LINGERING.load(Ordering::Relaxed)
}

/// One lingering connection. Lingering connections no longer count as open, so they have a limit of
/// their own.
#[derive(Debug)]
pub struct Lingering;

static LINGERING: AtomicUsize = AtomicUsize::new(0);

impl Lingering {
    /// Returns a slot, or `None` if `most` slots are taken.
    pub fn enter(most: usize) -> Option<Self> {
        let place = LINGERING.fetch_add(1, Ordering::Relaxed) < most;
        // A connection without a slot is closed at once.
        Some(Self).filter(|_| place)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        LINGERING.fetch_sub(1, Ordering::Relaxed);
    }
}
