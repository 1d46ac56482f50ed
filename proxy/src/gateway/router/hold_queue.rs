//! Where requests wait while maintenance holds them, and the task that lets them go in the order in
//! which they came.
//!
//! A request takes a place, stands in line and waits for its turn, its time limit or its client's
//! hanging up, whichever is first. One task, the [`Releaser`], owns the line, so that there is
//! an order and no lock: requests hand it the sending half of a channel, and it sends when their
//! mode is over. It wakes by what is published and lets go in small batches: ten thousand
//! requests at once would hit the backend harder than any client may.
//!
//! Nothing is read from a client whose request waits, since that would take bytes from its body or
//! from its next request. So the kernel is asked whether it is still there.
//!
//! A place is freed when its request stops waiting for whatever reason. Nobody who has left is let
//! go in place of somebody who waits.

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

/// How many are let go at once.
const BATCH: usize = 16;
/// The time between two batches: 8,000 requests in a second at most.
const PAUSE: Duration = Duration::from_millis(2);
/// How often a parked request looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(250);

/// States of a TCP socket, as Linux numbers them, in which the other end has closed: CLOSE and
/// CLOSE_WAIT.
const CLOSED: [u8; 2] = [7, 8];

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct HoldLimits {
    /// Requests at the same time, over all rollouts.
    pub places: usize,
    /// One request, over all its waits.
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

/// How the wait of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldOutcome {
    /// The mode is over and it is its turn.
    Released,
    /// It has waited as long as may be.
    Expired,
    /// Its client hung up.
    Left,
    /// It never waited: every place was taken.
    NoPlace,
}

/// The places. One set per process.
#[derive(Debug)]
pub struct HoldQueue {
    limits: HoldLimits,
    taken: Arc<AtomicUsize>,
    line: mpsc::UnboundedSender<Waiting>,
}

/// One request in line.
#[derive(Debug)]
struct Waiting {
    /// The rollout that holds it; `None` where none matched.
    rollout: Option<Arc<str>>,
    go: oneshot::Sender<()>,
}

impl Waiting {
    fn is_held(&self, snapshot: &Snapshot) -> bool {
        let Some(id) = &self.rollout else {
            return snapshot.split.maintenance.mode == Maintenance::Hold;
        };
        // A rollout that left the file holds nobody: the request is decided anew.
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

/// A place, freed when it is dropped.
#[derive(Debug)]
pub struct HoldSlot<'a>(&'a HoldQueue);

impl Drop for HoldSlot<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl HoldQueue {
    /// Places, and who lets go from them.
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

    /// A place, unless all are taken.
    pub fn place(&self) -> Option<HoldSlot<'_>> {
        let take = |taken: usize| (taken < self.limits.places).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()
            .map(|_| HoldSlot(self))
    }

    /// Parks a request once, and says what the router makes of it afterwards. `tcp_state` is that
    /// of the client's socket now, as the kernel numbers it.
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
    /// Waits until the rollout is not held any more and it is this request's turn. `already` is how
    /// long it has waited before; `has_left` is asked from time to time.
    pub async fn wait(
        self,
        rollout: Option<Arc<str>>,
        already: Duration,
        has_left: impl Fn() -> bool,
    ) -> HoldOutcome {
        let (go, mut turn) = oneshot::channel();
        // An releaser who is gone: the process goes down, and nobody will be let go any more.
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

/// Lets parked requests go. One per process, as a task beside the requests.
#[derive(Debug)]
pub struct Releaser {
    published: Arc<Published>,
    arrivals: mpsc::UnboundedReceiver<Waiting>,
    taken: Arc<AtomicUsize>,
    line: VecDeque<Waiting>,
}

impl Releaser {
    /// Works until the places are gone.
    pub async fn work(mut self) {
        let mut changes = self.published.changes();
        loop {
            tokio::select! {
                arrived = self.arrivals.recv() => match arrived {
                    Some(waiting) => self.take_in(waiting).await,
                    None => return,
                },
                // The sender lives as long as what we read from it.
                _ = changes.changed() => self.let_go().await,
            }
        }
    }

    async fn take_in(&mut self, waiting: Waiting) {
        let is_held = waiting.is_held(&self.published.load());
        self.line.push_back(waiting);
        // Who has left stays in line until somebody looks. Twice as many as may wait are at least
        // half of them gone.
        if self.line.len() > 2 * self.taken.load(Ordering::Acquire).max(BATCH) {
            self.line.retain(|waiting| !waiting.has_left());
        }
        // The mode ended between the decision and the arrival.
        if !is_held {
            self.let_go().await;
        }
    }

    /// Goes along the line once: whoever is not held any more goes, the others stay in their order.
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

    /// HoldQueue under a world whose maintenance is `hold` for everything.
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

        /// Parks a request and returns when it is in line.
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
    async fn everybody_is_let_go_in_the_order_in_which_they_came() {
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
    async fn one_rollout_goes_while_another_waits() {
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
    async fn who_comes_when_the_mode_is_just_over_goes_at_once() {
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
    async fn nobody_waits_longer_than_the_limit_over_all_waits() {
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
    async fn a_place_is_freed_by_whoever_leaves_and_no_more_are_given_than_there_are() {
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
    async fn who_has_left_does_not_fill_the_line() {
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
