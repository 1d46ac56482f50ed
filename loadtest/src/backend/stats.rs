//! The counters of a backend since its start. Requests on the control paths are not counted.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::backend::lock;

/// The counters of a backend since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The number of requests read in full.
    pub requests: u64,
    /// The number of answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// The number of requests left without an answer on an open connection.
    pub hung: u64,
    /// The number of requests whose connection was closed instead of answered.
    pub reset: u64,
    /// The total time of all answers, in microseconds. Each is measured from the complete request
    /// to the head of the answer.
    pub busy_us: u64,
    /// The highest number of requests in flight at once.
    pub most_in_flight: u64,
    /// The number of open connections.
    pub connections: u64,
    /// The number of connections closed because the limit was reached.
    pub turned_away: u64,
    /// The number of WebSockets opened.
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

    /// Counts a connection as open for the lifetime of the returned guard.
    pub(super) fn open(&self) -> Open<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }

    /// Counts a request as in flight for the lifetime of the returned guard.
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
