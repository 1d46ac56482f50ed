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

/// So many requests in a row without an answer send a server out.
pub(super) const FAILURES_TO_EJECT: u32 = 5;

/// For how long, the first time; twice as long the second, and so on.
pub(super) const EJECTED_FOR: Duration = Duration::from_secs(10);

/// At most so many times as long.
pub(super) const MAX_EJECTIONS: u32 = 30;

/// How an attempt got its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// It was made.
    New,
    /// It was in the pool.
    Reused,
    /// It did not.
    Failed,
}

impl Connect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::New, Self::Reused, Self::Failed];

    /// The name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Reused => "reused",
            Self::Failed => "failed",
        }
    }
}

/// Attempts at a backend; goes on when the file changes it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Under way.
    pub(super) active: AtomicUsize,
    /// How they got their connection.
    pub(super) connects: [AtomicU64; Connect::ALL.len()],
}

/// One address of a backend, and what is known of it.
#[derive(Debug)]
pub struct Server {
    pub(super) peer: HttpPeer,
    pub(super) address: SocketAddr,
    /// As the file names it.
    pub(super) name: String,
    pub(super) in_flight: AtomicUsize,
    pub(super) traffic: Arc<Traffic>,
    /// Connections of the lane that rest. Those of the proxy engine are its own.
    pub(super) pool: ArcSwap<Pool>,
    /// How often the connections of HTTP/2 that were open were left.
    pub(super) departures: AtomicU64,
    /// Whether its checks pass. Without checks they do.
    pub(super) passes_checks: AtomicBool,
    /// When a check passed last, in microseconds of the process; zero is never.
    pub(super) check_passed_us: AtomicU64,
    /// Requests in a row that got no answer.
    pub(super) failures: AtomicU32,
    pub(super) ejections: AtomicU32,
    /// In microseconds of the process; zero is never.
    pub(super) ejected_until_us: AtomicU64,
    /// When it came back last; zero is never.
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

    /// The server.
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
    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As the file names it, such as `shop.internal:3000`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its host and port, as requests of our own name it.
    pub fn host(&self) -> &str {
        self.name.trim_start_matches("https://")
    }

    /// What pingora connects to.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// What pingora connects to for one attempt.
    pub fn peer_for_attempt(&self) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer.group_key ^= self.departures.load(Ordering::Relaxed) << DEPARTURES;
        peer
    }

    /// Sends no more requests over the connections of HTTP/2 that are open now: one of them may be
    /// dead. What is under way on them goes on.
    pub fn leave_connections(&self) {
        if self.peer.options.alpn != ALPN::H1 {
            self.departures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Connections of the lane that rest.
    pub fn pool(&self) -> arc_swap::Guard<Arc<Pool>> {
        self.pool.load()
    }

    /// Whether its checks pass.
    pub fn passes_checks(&self) -> bool {
        self.passes_checks.load(Ordering::Relaxed)
    }

    /// Whether it may be asked.
    pub fn is_healthy(&self, now: Mono) -> bool {
        self.passes_checks() && self.ejected_until_us.load(Ordering::Relaxed) <= micros(now)
    }

    /// The result of its checks has changed.
    pub fn checked(&self, passes: bool, now: Mono) {
        if !self.passes_checks.swap(passes, Ordering::Relaxed) && passes {
            self.came_back(now);
        }
    }

    /// A check has passed.
    pub fn check_passed(&self, now: Mono) {
        self.check_passed_us.store(micros(now), Ordering::Relaxed);
    }

    /// An attempt at it has its connection, or has none.
    pub fn connected(&self, how: Connect) {
        self.traffic.connects[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// It has answered, whatever it said.
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

    /// Between 0 and 1: how much of its share it gets while it warms up.
    pub(super) fn warmth(&self, slow_start: Duration, now: Mono) -> f64 {
        // An ejection ends by itself; what comes back begins there.
        let back = self
            .back_since_us
            .load(Ordering::Relaxed)
            .max(self.ejected_until_us.load(Ordering::Relaxed));
        if slow_start.is_zero() || back == 0 {
            return 1.0;
        }
        (micros(now).saturating_sub(back) as f64 / slow_start.as_micros() as f64).clamp(0.05, 1.0)
    }

    /// What is known of a server holds for the one that takes its place in a changed file.
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

/// Makes a peer for one connection that is not a kept one, and is not kept. Where one kept
/// connection was of no use, others are likely to be.
pub fn make_fresh(peer: &mut HttpPeer) {
    peer.group_key ^= FRESH;
    peer.options.idle_timeout = Some(Duration::ZERO);
}

/// Keeps connections that are not to be kept apart from the others.
pub(super) const FRESH: u64 = 2;
