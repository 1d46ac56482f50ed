//! Deadlines of connections and of HTTP/2 streams, and drain signals to them, without a timer for
//! each.
//!
//! A connection records until when it is willing to wait, which costs one store per step. One task
//! checks all of them eight times within the shortest limit and wakes the late ones. Therefore a
//! deadline is never early and at most a quarter late, and a request needs no timer. Time in which
//! the process stood still, for example on a paused machine, does not count: bytes received
//! meanwhile are read first. The same task also learns for all connections when requests are
//! drained after a rollback, and when connections without a request are closed as the process ends.
//!
//! Idle connections to backends are also checked, once per second.
//!
//! The lock is taken when a connection begins or ends, and for each check. An HTTP/1.1 request
//! never takes it. An HTTP/2 stream counts as a connection here.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use cutover_core::time::micros;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::clock;
use crate::gateway::message::head::Conn;
use crate::shared::drain::DrainSignal;
use crate::shared::published::{Published, Snapshot};

/// The number of checks within the shortest limit.
const LOOKS: u32 = 8;
/// The minimum time between two checks, whatever the limits are.
const LEAST: Duration = Duration::from_millis(5);
const MOST: Duration = Duration::from_millis(250);

/// The largest number of steps that count between two checks. Any further time was a standstill.
const STANDSTILL: u32 = 3;

/// How often idle connections to backends are checked.
const TIDY: Duration = Duration::from_secs(1);

/// Watches all connections. There is one per process.
#[derive(Debug)]
pub struct Deadlines {
    /// The time of the last check, in microseconds of a clock that stops with the process.
    now_us: AtomicU64,
    /// The time between two checks, in microseconds.
    step_us: AtomicU64,
    is_dismissed: AtomicBool,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    all: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    conn: Arc<Conn>,
    waker: Waker,
}

impl Entries {
    fn wake(&self, who: impl Fn(&Conn) -> bool) {
        self.all
            .iter()
            .flatten()
            .filter(|entry| who(&entry.conn))
            .for_each(|entry| entry.waker.wake_by_ref());
    }
}

impl Deadlines {
    /// Creates the deadlines for this configuration.
    pub fn new(snapshot: &Snapshot) -> Self {
        let now_us = AtomicU64::new(clock::mono().as_micros());
        Self {
            now_us,
            step_us: AtomicU64::new(micros(step(snapshot))),
            is_dismissed: AtomicBool::new(false),
            entries: Mutex::default(),
        }
    }

    /// Watches until the process ends.
    pub async fn work(
        self: Arc<Self>,
        published: Arc<Published>,
        drains: DrainSignal,
        mut dismissed: watch::Receiver<bool>,
    ) {
        let mut orders = drains.listen();
        let mut changes = published.changes();
        let mut tidied = clock::mono();
        let mut looked = tidied;
        // This timer keeps running while other events are handled. Frequent changes must not delay
        // every check.
        let mut next = pin!(sleep(self.step()));
        loop {
            tokio::select! {
                () = &mut next => {
                    next.set(sleep(self.step()));
                    let now = clock::mono();
                    self.go_on(now.since(looked));
                    looked = now;
                    if now.since(tidied) >= TIDY {
                        tidied = now;
                        published.load().common.backends.values().for_each(|backend| backend.tidy(now));
                    }
                }
                () = orders.come() => self.entries().wake(|conn| {
                    let is_meant = orders.means(&conn.stay);
                    if is_meant {
                        conn.send_away();
                        // The request may have ended meanwhile, and the signal is not meant for the
                        // next one.
                        if !orders.means(&conn.stay) {
                            conn.heard();
                        }
                    }
                    is_meant
                }),
                _ = dismissed.wait_for(|dismissed| *dismissed), if !self.is_dismissed() => {
                    self.is_dismissed.store(true, Ordering::Release);
                    self.entries().wake(|conn| conn.due_us() != 0);
                }
                // The sender lives as long as the value we read from it.
                _ = changes.changed() => self.step_us.store(micros(step(&published.load())), Ordering::Relaxed),
            }
        }
    }

    /// Performs a check at this time after the last one. Time beyond some steps was a standstill of
    /// the process, and makes no connection late.
    fn go_on(&self, passed: Duration) {
        self.look(
            self.now_us.load(Ordering::Relaxed) + micros(passed.min(self.step() * STANDSTILL)),
        );
    }

    fn look(&self, now_us: u64) {
        self.now_us.store(now_us, Ordering::Relaxed);
        self.entries().wake(|conn| conn.has_to_look(now_us));
    }

    /// Returns the time of the last check, in microseconds.
    pub(in crate::gateway) fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }

    /// Returns the deadline for something that is awaited from now on, for at most `limit`.
    pub(in crate::gateway) fn due(&self, limit: Duration) -> u64 {
        let now = self.now_us() + self.step_us.load(Ordering::Relaxed);
        now.saturating_add(micros(limit))
    }

    fn step(&self) -> Duration {
        Duration::from_micros(self.step_us.load(Ordering::Relaxed))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether connections without a request have to end.
    pub fn is_dismissed(&self) -> bool {
        self.is_dismissed.load(Ordering::Acquire)
    }

    /// Watches a connection until the returned value is dropped. Has to be called from the task
    /// that serves the connection.
    pub async fn watch(self: Arc<Self>, conn: Arc<Conn>) -> Deadline {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let entry = Entry {
            conn: Arc::clone(&conn),
            waker,
        };
        let at = {
            let mut entries = self.entries();
            match entries.free.pop() {
                Some(at) => {
                    entries.all[at] = Some(entry);
                    at
                }
                None => {
                    entries.all.push(Some(entry));
                    entries.all.len() - 1
                }
            }
        };
        Deadline {
            dog: self,
            conn,
            at,
        }
    }
}

/// Returns an eighth of the shortest limit.
fn step(snapshot: &Snapshot) -> Duration {
    let settings = &snapshot.common.settings;
    let of_clients = [
        settings.listen.header_timeout,
        settings.listen.keepalive_timeout,
        settings.listen.body_idle_timeout,
        settings.listen.write_timeout,
    ];
    let of_backends = settings.backends.iter().flat_map(|backend| {
        [
            backend.connect_timeout,
            backend.response_timeout,
            backend.body_pause_timeout,
            backend.stream_idle_timeout,
        ]
    });
    of_clients
        .into_iter()
        .chain(of_backends)
        .min()
        .map_or(MOST, |shortest| (shortest / LOOKS).clamp(LEAST, MOST))
}

/// A connection that is watched.
#[derive(Debug)]
pub struct Deadline {
    dog: Arc<Deadlines>,
    conn: Arc<Conn>,
    at: usize,
}

/// The reason why a connection was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The connection did not receive in time what it waits for.
    Overdue,
    /// The request of the connection is drained.
    SentAway,
}

impl Deadline {
    /// Returns the connection.
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Sets the deadline to at most `limit` from now.
    pub fn within(&self, limit: Duration) {
        self.conn.wait_until(self.dog.due(limit));
    }

    /// Returns why the task was woken. It has to be called each time before the task continues to
    /// wait.
    pub fn alarm(&self) -> Option<Alarm> {
        if self.conn.is_sent_away() {
            return Some(Alarm::SentAway);
        }
        self.conn
            .is_overdue(self.dog.now_us.load(Ordering::Relaxed))
            .then_some(Alarm::Overdue)
    }

    /// Returns whether the backend of the request has missed a deadline that has not been noticed
    /// yet.
    pub fn is_answer_late(&self) -> bool {
        self.conn.is_answer_late(self.dog.now_us())
    }

    /// Returns whether a connection without a request has to end.
    pub fn is_dismissed(&self) -> bool {
        self.dog.is_dismissed()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let gone = {
            let mut entries = self.dog.entries();
            entries.free.push(self.at);
            entries.all[self.at].take()
        };
        // This drop is outside the lock, because it may drop the last reference to a task.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::World;
    use std::future::Future;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn dog() -> Arc<Deadlines> {
        Arc::new(Deadlines::new(&World::new().published.load()))
    }

    fn watched(dog: &Arc<Deadlines>, bell: &Arc<Bell>) -> Deadline {
        let conn = Arc::new(Conn::new(IpAddr::V4(Ipv4Addr::LOCALHOST), false, false));
        let waker = Waker::from(Arc::clone(bell));
        match pin!(Arc::clone(dog).watch(conn)).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(watched) => watched,
            Poll::Pending => panic!("nothing to wait for"),
        }
    }

    #[test]
    fn a_late_connection_is_woken_and_no_other_before_its_time() {
        let (dog, bell) = (dog(), Arc::new(Bell::default()));
        let watched = watched(&dog, &bell);
        let began = dog.now_us.load(Ordering::Relaxed);
        let step = micros(dog.step());
        watched.within(Duration::from_secs(1));
        dog.look(began + 1_000_000);
        assert_eq!((bell.0.load(Ordering::SeqCst), watched.alarm()), (0, None));
        dog.look(began + 1_000_001 + step);
        assert_eq!(
            (bell.0.load(Ordering::SeqCst), watched.alarm()),
            (1, Some(Alarm::Overdue))
        );
        watched.conn().head_came();
        dog.look(began + 9_000_000);
        assert_eq!((bell.0.load(Ordering::SeqCst), watched.alarm()), (1, None));
    }

    #[test]
    fn a_standstill_of_the_process_makes_no_connection_late() {
        let (dog, bell) = (dog(), Arc::new(Bell::default()));
        let watched = watched(&dog, &bell);
        watched.within(Duration::from_secs(1));
        dog.go_on(Duration::from_secs(3_600));
        assert_eq!((bell.0.load(Ordering::SeqCst), watched.alarm()), (0, None));
        // The steps that counted, and the other steps until then.
        let mut steps = STANDSTILL;
        while watched.alarm().is_none() {
            dog.go_on(dog.step());
            steps += 1;
        }
        assert_eq!(
            (
                bell.0.load(Ordering::SeqCst),
                dog.step() * (steps - 2) <= Duration::from_secs(1)
            ),
            (1, true),
            "{steps} steps of {:?}",
            dog.step()
        );
    }

    #[test]
    fn a_slot_is_free_after_its_connection_has_ended() {
        let (dog, bell) = (dog(), Arc::new(Bell::default()));
        let (first, second) = (watched(&dog, &bell), watched(&dog, &bell));
        drop(first);
        assert_eq!(watched(&dog, &bell).at, 0);
        assert_eq!(second.at, 1);
        assert_eq!(dog.entries().all.len(), 2);
    }
}
