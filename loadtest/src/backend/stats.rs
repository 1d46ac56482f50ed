//! What a backend counted since its start. Requests on the control paths do not count.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::backend::lock;

/// What a backend counted since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests read in full.
    pub requests: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests left without an answer on an open connection.
    pub hung: u64,
    /// Requests whose connection was closed instead of an answer.
    pub reset: u64,
    /// Time that answers took, over all of them, in microseconds: from the whole request to the
    /// head of the answer.
    pub busy_us: u64,
    /// Most requests at once.
    pub most_in_flight: u64,
    /// Connections that are open.
    pub connections: u64,
    /// Connections closed because there were too many.
    pub turned_away: u64,
    /// WebSockets opened.
    pub websockets: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    hung: AtomicU64,
    reset: AtomicU64,
    busy_us: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    connections: AtomicU64,
    turned_away: AtomicU64,
    websockets: AtomicU64,
    statuses: Mutex<BTreeMap<u16, u64>>,
}

impl Counters {
    pub(super) fn read(&self) -> Stats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            requests: value(&self.requests),
            statuses: lock(&self.statuses).clone(),
            hung: value(&self.hung),
            reset: value(&self.reset),
            busy_us: value(&self.busy_us),
            most_in_flight: value(&self.most_in_flight),
            connections: value(&self.connections),
            turned_away: value(&self.turned_away),
            websockets: value(&self.websockets),
        }
    }

    pub(super) fn hung(&self) {
        self.hung.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reset(&self) {
        self.reset.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn websocket(&self) {
        self.websockets.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, status: u16) {
        *lock(&self.statuses).entry(status).or_default() += 1;
    }

    /// A connection, for as long as the guard lives.
    pub(super) fn open(&self) -> Open<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }

    /// A request, for as long as the guard lives.
    pub(super) fn begin(&self) -> Begun<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        Begun {
            counters: self,
            at: Instant::now(),
        }
    }
}

pub(super) struct Open<'counters>(&'counters Counters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Begun<'counters> {
    counters: &'counters Counters,
    at: Instant,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.counters
            .busy_us
            .fetch_add(microseconds(self.at.elapsed()), Ordering::Relaxed);
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
