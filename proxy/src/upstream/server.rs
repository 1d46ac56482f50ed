//! One server of a backend.

use super::DEPARTURES;
use crate::upstream::pool::Pool;
use arc_swap::ArcSwap;
use cutover_core::Mono;
use pingora::listeners::ALPN;
use pingora::upstreams::peer::HttpPeer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The number of consecutive requests without an answer that eject a server.
pub(super) const FAILURES_TO_EJECT: u32 = 5;

/// The duration of the first ejection. The second is twice as long, and so on.
pub(super) const EJECTED_FOR: Duration = Duration::from_secs(10);

/// The largest factor for the duration of an ejection.
pub(super) const MAX_EJECTIONS: u32 = 30;

/// The way in which an attempt got its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// The connection was established.
    New,
    /// The connection was in the pool.
    Reused,
    /// There was no connection.
    Failed,
}

impl Connect {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::New, Self::Reused, Self::Failed];

    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Reused => "reused",
            Self::Failed => "failed",
        }
    }
}

/// The attempts at a backend. The counts continue when the file changes the backend.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// The number of attempts in flight.
    pub(super) active: AtomicUsize,
    /// The number of attempts by the way they got their connection.
    pub(super) connects: [AtomicU64; Connect::ALL.len()],
}

/// One address of a backend, and its state.
#[derive(Debug)]
pub struct Server {
    pub(super) peer: HttpPeer,
    pub(super) address: SocketAddr,
    /// The name in the file.
    pub(super) name: String,
    pub(super) in_flight: AtomicUsize,
    pub(super) traffic: Arc<Traffic>,
    /// The idle connections of the lane. The proxy engine keeps its own.
    pub(super) pool: ArcSwap<Pool>,
    /// How often the open HTTP/2 connections were abandoned.
    pub(super) departures: AtomicU64,
    /// Whether the server passes its checks. Always true without checks.
    pub(super) passes_checks: AtomicBool,
    /// The time of the last passed check, in microseconds of the process. Zero means never.
    pub(super) check_passed_us: AtomicU64,
    /// The number of consecutive requests without an answer.
    pub(super) failures: AtomicU32,
    pub(super) ejections: AtomicU32,
    /// The end of the ejection, in microseconds of the process. Zero means never.
    pub(super) ejected_until_us: AtomicU64,
    /// The time of the last return. Zero means never.
    pub(super) back_since_us: AtomicU64,
}

/// A server chosen for one attempt. Dropping it ends the attempt.
#[derive(Debug)]
pub struct Chosen {
    pub(super) server: Arc<Server>,
}

impl Chosen {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        server.in_flight.fetch_add(1, Ordering::Relaxed);
        server.traffic.active.fetch_add(1, Ordering::Relaxed);
        Self {
            server: Arc::clone(server),
        }
    }

    /// Returns the server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.server.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.server.traffic.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Returns the address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the name in the file, such as `shop.internal:3000`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the host and port, as our own requests name them.
    pub fn host(&self) -> &str {
        self.name.trim_start_matches("https://")
    }

    /// Returns the peer that pingora connects to.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// Returns the peer that pingora connects to for one attempt.
    pub fn peer_for_attempt(&self) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer.group_key ^= self.departures.load(Ordering::Relaxed) << DEPARTURES;
        peer
    }

    /// Sends no more requests over the HTTP/2 connections that are open now, because one of them
    /// may be dead. Requests in flight on them continue.
    pub fn leave_connections(&self) {
        if self.peer.options.alpn != ALPN::H1 {
            self.departures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the idle connections of the lane.
    pub fn pool(&self) -> arc_swap::Guard<Arc<Pool>> {
        self.pool.load()
    }

    /// Returns whether the server passes its checks.
    pub fn passes_checks(&self) -> bool {
        self.passes_checks.load(Ordering::Relaxed)
    }

    /// Returns whether the server may be used.
    pub fn is_healthy(&self, now: Mono) -> bool {
        self.passes_checks() && self.ejected_until_us.load(Ordering::Relaxed) <= micros(now)
    }

    /// Returns whether the server gave no answer several times in a row, or is ejected for that.
    pub(super) fn is_silent(&self, now: Mono) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_TO_EJECT || !self.is_healthy(now)
    }

    /// Records that the result of the checks has changed.
    pub fn checked(&self, passes: bool, now: Mono) {
        if !self.passes_checks.swap(passes, Ordering::Relaxed) && passes {
            self.came_back(now);
        }
    }

    /// Records that a check has passed.
    pub fn check_passed(&self, now: Mono) {
        self.check_passed_us.store(micros(now), Ordering::Relaxed);
    }

    /// Records whether an attempt got its connection.
    pub fn connected(&self, how: Connect) {
        self.traffic.connects[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the server has answered, whatever the answer.
    pub fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn came_back(&self, now: Mono) {
        self.failures.store(0, Ordering::Relaxed);
        self.back_since_us.store(micros(now), Ordering::Relaxed);
    }

    /// Returns the fraction of its share that the server gets while it warms up, between 0 and 1.
    pub(super) fn warmth(&self, slow_start: Duration, now: Mono) -> f64 {
        // An ejection ends by itself, and the time of return is the end of the ejection.
        let back = self
            .back_since_us
            .load(Ordering::Relaxed)
            .max(self.ejected_until_us.load(Ordering::Relaxed));
        if slow_start.is_zero() || back == 0 {
            return 1.0;
        }
        (micros(now).saturating_sub(back) as f64 / slow_start.as_micros() as f64).clamp(0.05, 1.0)
    }

    /// Takes over the state of the server that this one replaces in a changed file.
    pub(super) fn inherit(&self, before: &Self) {
        for (to, from) in [
            (&self.ejected_until_us, &before.ejected_until_us),
            (&self.back_since_us, &before.back_since_us),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for (to, from) in [
            (&self.failures, &before.failures),
            (&self.ejections, &before.ejections),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.passes_checks
            .store(before.passes_checks(), Ordering::Relaxed);
        self.pool.store(before.pool.load_full());
    }
}

pub(super) fn micros(at: Mono) -> u64 {
    cutover_core::time::micros(at.since(Mono::default()))
}

/// Prepares a peer for one new connection that is not kept. If one kept connection was unusable,
/// others are likely to be as well.
pub fn make_fresh(peer: &mut HttpPeer) {
    peer.group_key ^= FRESH;
    peer.options.idle_timeout = Some(Duration::ZERO);
}

/// The group that separates connections that are not kept from the others.
pub(super) const FRESH: u64 = 2;
