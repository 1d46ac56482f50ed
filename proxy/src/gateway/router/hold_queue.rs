//! Holds requests during maintenance, and releases them in the order of arrival.
//!
//! A request takes a slot, joins the line and waits until it is released, its time limit is reached
//! or its client disconnects, whichever is first. One task, the [`Releaser`], owns the line, so
//! that there is an order and no lock. Requests give it the sending half of a channel, and it sends
//! when their mode is over. It is woken by what is published and releases requests in small
//! batches, because ten thousand requests at once would hit the backend harder than any client may.
//!
//! Nothing is read from a client whose request is held, because that would take bytes from its body
//! or from its next request. So the kernel is queried for whether the client is still connected.
//!
//! A slot is freed when its request stops waiting for any reason. A request that has left does not
//! use up the release of one that waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cutover_core::Maintenance;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::clock;
use crate::gateway::message::head::{Conn, Head};
use crate::gateway::router::{Exchange, Router, Step};
use crate::shared::published::{Published, Snapshot};

/// The number of requests that are released at once.
const BATCH: usize = 16;
/// The time between two batches. It limits the rate to 8,000 requests per second.
const PAUSE: Duration = Duration::from_millis(2);
/// How often a held request checks whether its client is still connected.
const LOOK: Duration = Duration::from_millis(250);

/// The states of a TCP socket, as Linux numbers them, in which the other end has closed: CLOSE and
/// CLOSE_WAIT.
const CLOSED: [u8; 2] = [7, 8];

/// The limits on how many requests are held, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct HoldLimits {
    /// The number of requests that are held at the same time, over all rollouts.
    pub places: usize,
    /// How long one request is held, over all its waits.
    pub longest: Duration,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self {
            places: 10_000,
            longest: Duration::from_secs(30),
        }
    }
}

/// The way in which the wait of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldOutcome {
    /// The mode is over and the request is next in line.
    Released,
    /// The request was held for as long as allowed.
    Expired,
    /// The client disconnected.
    Left,
    /// The request was never held, because every slot was taken.
    NoPlace,
}

/// The slots of held requests. There is one queue per process.
#[derive(Debug)]
pub struct HoldQueue {
    limits: HoldLimits,
    taken: Arc<AtomicUsize>,
    line: mpsc::UnboundedSender<Waiting>,
}

/// One request in the line.
#[derive(Debug)]
struct Waiting {
    /// The rollout that holds the request. `None` if no rollout matched.
    rollout: Option<Arc<str>>,
    go: oneshot::Sender<()>,
}

impl Waiting {
    fn is_held(&self, snapshot: &Snapshot) -> bool {
        let Some(id) = &self.rollout else {
            return snapshot.split.maintenance.mode == Maintenance::Hold;
        };
        // A rollout that left the file holds no requests: the request is decided again.
        snapshot
            .split
            .rollouts
            .iter()
            .any(|rollout| rollout.rule.id == *id && rollout.maintenance.mode == Maintenance::Hold)
    }

    fn has_left(&self) -> bool {
        self.go.is_closed()
    }
}

/// A slot, which is freed when it is dropped.
#[derive(Debug)]
pub struct HoldSlot<'a>(&'a HoldQueue);

impl Drop for HoldSlot<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl HoldQueue {
    /// Creates the queue and its releaser.
    pub fn new(published: Arc<Published>, limits: HoldLimits) -> (Self, Releaser) {
        let (line, arrivals) = mpsc::unbounded_channel();
        let taken: Arc<AtomicUsize> = Arc::default();
        let releaser = Releaser {
            published,
            arrivals,
            taken: Arc::clone(&taken),
            line: VecDeque::new(),
        };
        (
            Self {
                limits,
                taken,
                line,
            },
            releaser,
        )
    }

    /// Returns a slot, unless all are taken.
    pub fn place(&self) -> Option<HoldSlot<'_>> {
        let take = |taken: usize| (taken < self.limits.places).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()
            .map(|_| HoldSlot(self))
    }

    /// Holds a request once, and returns what the router makes of it afterwards. `tcp_state` is the
    /// current state of the client's socket, as the kernel numbers it.
    pub async fn hold(
        &self,
        router: &Router,
        mut exchange: Exchange,
        head: &(impl Head + Sync),
        conn: &Conn,
        tcp_state: impl Fn() -> Option<u8>,
    ) -> (Exchange, Step) {
        let has_left = || tcp_state().is_some_and(|state| CLOSED.contains(&state));
        let why = match self.place() {
            None => HoldOutcome::NoPlace,
            Some(place) => {
                router.park(&mut exchange);
                place
                    .wait(exchange.rollout().cloned(), exchange.parked(), has_left)
                    .await
            }
        };
        router.unparked(exchange, head, conn, why, clock::mono())
    }
}

impl HoldSlot<'_> {
    /// Waits until the rollout is no longer held and this request is next in line. `already` is how
    /// long the request waited before. `has_left` is called from time to time.
    pub async fn wait(
        self,
        rollout: Option<Arc<str>>,
        already: Duration,
        has_left: impl Fn() -> bool,
    ) -> HoldOutcome {
        let (go, mut turn) = oneshot::channel();
        // If the releaser is gone, the process is ending, and no more requests are released.
        if self.0.line.send(Waiting { rollout, go }).is_err() {
            return HoldOutcome::Expired;
        }
        let mut limit = std::pin::pin!(sleep(self.0.limits.longest.saturating_sub(already)));
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                let_go = &mut turn => return if let_go.is_ok() { HoldOutcome::Released } else { HoldOutcome::Expired },
                () = &mut limit => return HoldOutcome::Expired,
                _ = looks.tick() => if has_left() {
                    return HoldOutcome::Left;
                },
            }
        }
    }
}

/// Releases held requests. There is one per process, as a task beside the requests.
#[derive(Debug)]
pub struct Releaser {
    published: Arc<Published>,
    arrivals: mpsc::UnboundedReceiver<Waiting>,
    taken: Arc<AtomicUsize>,
    line: VecDeque<Waiting>,
}

impl Releaser {
    /// Works until the queue is gone.
    pub async fn work(mut self) {
        let mut changes = self.published.changes();
        loop {
            tokio::select! {
                arrived = self.arrivals.recv() => match arrived {
                    Some(waiting) => self.take_in(waiting).await,
                    None => return,
                },
                // The sender lives as long as the value we read from it.
                _ = changes.changed() => self.let_go().await,
            }
        }
    }

    async fn take_in(&mut self, waiting: Waiting) {
        let is_held = waiting.is_held(&self.published.load());
        self.line.push_back(waiting);
        // A request that has left stays in line until the line is cleaned up. If the line is twice
        // as long as the number of slots, at least half of the requests in it have left.
        if self.line.len() > 2 * self.taken.load(Ordering::Acquire).max(BATCH) {
            self.line.retain(|waiting| !waiting.has_left());
        }
        // The mode ended between the decision and the arrival.
        if !is_held {
            self.let_go().await;
        }
    }

    /// Goes through the line once. Requests that are no longer held are released, and the others
    /// keep their order.
    async fn let_go(&mut self) {
        let mut snapshot = self.published.load();
        let mut stay = VecDeque::new();
        let mut gone = 0;
        while let Some(waiting) = self.line.pop_front() {
            if waiting.has_left() {
                continue;
            }
            if waiting.is_held(&snapshot) {
                stay.push_back(waiting);
                continue;
            }
            gone += usize::from(waiting.go.send(()).is_ok());
            if gone == BATCH {
                gone = 0;
                sleep(PAUSE).await;
                snapshot = self.published.load();
            }
        }
        self.line = stay;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::World;
    use std::sync::Mutex;
    use std::sync::PoisonError;
    use tokio::task::{JoinHandle, yield_now};

    const PATIENT: HoldLimits = HoldLimits {
        places: 10_000,
        longest: Duration::from_secs(30),
    };

    /// A hold queue in a test environment whose maintenance is `hold` for everything.
    struct Lot {
        world: World,
        hold_queue: Arc<HoldQueue>,
        released: Arc<Mutex<Vec<usize>>>,
    }

    impl Lot {
        fn open(limits: HoldLimits) -> Self {
            let mut world = World::new();
            world.maintain(None, Maintenance::Hold, None);
            let (hold_queue, releaser) = HoldQueue::new(Arc::clone(&world.published), limits);
            drop(tokio::spawn(releaser.work()));
            Self {
                world,
                hold_queue: Arc::new(hold_queue),
                released: Arc::default(),
            }
        }

        /// Holds a request and returns when it is in line.
        async fn park(&self, number: usize, rollout: Option<&str>) -> JoinHandle<HoldOutcome> {
            let (hold_queue, released, rollout) = (
                Arc::clone(&self.hold_queue),
                Arc::clone(&self.released),
                rollout.map(Arc::from),
            );
            let before = self.taken();
            let task = tokio::spawn(async move {
                let Some(place) = hold_queue.place() else {
                    return HoldOutcome::NoPlace;
                };
                let why = place.wait(rollout, Duration::ZERO, || false).await;
                if why == HoldOutcome::Released {
                    released
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(number);
                }
                why
            });
            while self.taken() == before && !task.is_finished() {
                yield_now().await;
            }
            task
        }

        fn taken(&self) -> usize {
            self.hold_queue.taken.load(Ordering::Acquire)
        }

        fn released(&self) -> Vec<usize> {
            self.released
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }
    }

    #[tokio::test]
    async fn held_requests_are_released_in_the_order_of_arrival() {
        let mut lot = Lot::open(PATIENT);
        let count = 5 * BATCH + 3;
        let mut tasks = Vec::new();
        for number in 0..count {
            tasks.push(lot.park(number, None).await);
        }
        assert_eq!((lot.taken(), lot.released()), (count, vec![]));
        lot.world.maintain(None, Maintenance::Off, None);
        for task in tasks {
            assert_eq!(task.await.expect("no panic"), HoldOutcome::Released);
        }
        assert_eq!(lot.released(), (0..count).collect::<Vec<_>>());
        assert_eq!(lot.taken(), 0);
    }

    #[tokio::test]
    async fn one_rollout_is_released_while_another_is_held() {
        let mut lot = Lot::open(PATIENT);
        lot.world.maintain(Some("mint"), Maintenance::Hold, None);
        let mint = lot.park(0, Some("mint")).await;
        let checkout = lot.park(1, Some("checkout")).await;
        let unmatched = lot.park(2, None).await;
        lot.world.maintain(None, Maintenance::Off, None);
        assert_eq!(
            (
                checkout.await.expect("no panic"),
                unmatched.await.expect("no panic")
            ),
            (HoldOutcome::Released, HoldOutcome::Released)
        );
        assert!(!mint.is_finished());
        lot.world.maintain(Some("mint"), Maintenance::Full, None);
        assert_eq!(
            mint.await.expect("no panic"),
            HoldOutcome::Released,
            "a stricter mode answers them"
        );
    }

    #[tokio::test]
    async fn a_request_that_arrives_as_the_mode_ends_is_released_at_once() {
        let mut lot = Lot::open(PATIENT);
        lot.world.maintain(None, Maintenance::Off, None);
        assert_eq!(
            lot.park(0, None).await.await.expect("no panic"),
            HoldOutcome::Released
        );
        assert_eq!(
            lot.park(1, Some("left the file"))
                .await
                .await
                .expect("no panic"),
            HoldOutcome::Released
        );
    }

    #[tokio::test]
    async fn the_time_limit_applies_to_all_waits_of_a_request_together() {
        let lot = Lot::open(HoldLimits {
            longest: Duration::from_millis(30),
            ..PATIENT
        });
        assert_eq!(
            lot.park(0, None).await.await.expect("no panic"),
            HoldOutcome::Expired
        );
        let place = lot.hold_queue.place().expect("a place");
        assert_eq!(
            place.wait(None, Duration::from_millis(30), || false).await,
            HoldOutcome::Expired
        );
        assert_eq!(lot.taken(), 0);
    }

    #[tokio::test]
    async fn a_request_that_leaves_frees_its_slot_and_slots_are_limited() {
        let mut lot = Lot::open(HoldLimits {
            places: 2,
            ..PATIENT
        });
        let (first, second) = (lot.park(0, None).await, lot.park(1, None).await);
        assert_eq!(
            lot.park(2, None).await.await.expect("no panic"),
            HoldOutcome::NoPlace
        );
        // The engine gave the request up.
        first.abort();
        assert!(first.await.is_err());
        let third = lot.park(3, None).await;
        assert!(lot.hold_queue.place().is_none());
        lot.world.maintain(None, Maintenance::Off, None);
        assert_eq!(
            (
                second.await.expect("no panic"),
                third.await.expect("no panic")
            ),
            (HoldOutcome::Released, HoldOutcome::Released)
        );
        assert_eq!(lot.released(), [1, 3]);

        lot.world.maintain(None, Maintenance::Hold, None);
        let place = lot.hold_queue.place().expect("all are free again");
        assert_eq!(
            place.wait(None, Duration::ZERO, || true).await,
            HoldOutcome::Left,
            "the client hung up"
        );
        assert_eq!(lot.taken(), 0);
    }

    #[tokio::test]
    async fn requests_that_have_left_do_not_fill_the_line() {
        let mut world = World::new();
        world.maintain(Some("checkout"), Maintenance::Hold, None);
        let (hold_queue, mut releaser) = HoldQueue::new(Arc::clone(&world.published), PATIENT);
        drop(hold_queue);
        for _ in 0..1_000 {
            let rollout = Some("checkout".into());
            let (go, _) = oneshot::channel();
            releaser.take_in(Waiting { rollout, go }).await;
            assert!(releaser.line.len() <= 2 * BATCH);
        }
    }
}
