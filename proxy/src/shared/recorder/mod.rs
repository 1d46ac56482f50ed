//! The counts of requests so far, recorded on the request path without a lock, a shared counter or
//! an allocation.
//!
//! Each (thread, rollout, side) has a shard of its own that only that thread writes. It uses plain
//! loads and stores with relaxed order, and no read-modify-write (about a nanosecond each). Shards
//! are cumulative and never reset, so there is no rotation to race with. A lock is taken once, when
//! a thread first meets a rollout.
//!
//! The control plane reads through the one [`Reader`]. The reader keeps the values it saw last and
//! adds differences, so that the 32-bit latency counters may wrap. It descends only into octaves
//! that changed, so that idle shards cost twenty loads. A shard whose thread has ended is read one
//! last time and released, and its counts stay in the totals.
//!
//! The number in flight is started minus finished. The two may be counted by different threads,
//! because a task moves between them, but each count still has one writer.
//!
//! Affected users are counted by the core's [`UserTracker`]. There is one for each rollout, shared
//! by all threads, and only bad and slow requests pay for it. A failure on new also wakes the
//! control loop, so that the judgement need not wait for the next tick. Requests without an answer
//! are counted by the tick in which they began to wait, in a ring of [`WAIT_TICKS`]. Thus requests
//! of a certain age can be counted without reading any single request.
//!
//! What maintenance did to requests is counted separately, because it says nothing about any
//! backend.
//!
//! Written by: request threads. Read by: the control loop.

mod in_flight;
mod maintenance;
mod reader;
mod shard;

use crate::shared::recorder::shard::Counter;
use std::cell::{OnceCell, RefCell};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cutover_core::{
    Ending, Evidence, Mono, Outcome, PerSide, Reason, Requester, Side, UserTracker,
};
use tokio::sync::Notify;

use crate::shared::failover_budget::FailoverBudget;
pub use in_flight::{Held, InFlight};
pub use maintenance::Halted;
pub use reader::{Look, Reader, SlotTotals};
use shard::Shard;
pub use shard::WAIT_TICKS;

/// The slot of requests that match no rollout. The slots of rollouts follow it: see [`slot_of`].
pub const UNMATCHED: usize = 0;

/// Returns the recorder slot of a control-plane slot.
pub const fn slot_of(rollout_slot: usize) -> usize {
    rollout_slot + 1
}

/// The writing half, one per process, shared by all request threads.
#[derive(Debug)]
pub struct Recorder {
    id: usize,
    registry: Arc<Registry>,
}

/// The state that the two halves share.
#[derive(Debug, Default)]
struct Registry {
    shards: Mutex<Vec<Registered>>,
    /// The shared state by slot.
    shared: Mutex<Vec<Shared>>,
    /// Notified by each failure on new.
    failed: Arc<Notify>,
}

/// The state of a slot that all threads share. A request that succeeds only reads it.
#[derive(Clone, Debug, Default)]
struct Shared {
    watch: Arc<UserTracker>,
    rescue: Arc<FailoverBudget>,
    websockets: Arc<PerSide<AtomicU64>>,
}

impl Registry {
    fn watch(&self, slot: usize) -> Arc<UserTracker> {
        self.shared(slot).watch
    }

    fn shared(&self, slot: usize) -> Shared {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.len() <= slot {
            shared.resize_with(slot + 1, Default::default);
        }
        shared[slot].clone()
    }
}

#[derive(Debug)]
struct Registered {
    slot: usize,
    is_compared: bool,
    shards: Arc<PerSide<Shard>>,
}

/// The origin of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The user or network that sent the request.
    pub who: Requester,
    /// The path of the request.
    pub path: &'a str,
    /// The epoch of the rollout under which the request was decided.
    pub epoch: u64,
    /// The time at which the request ended.
    pub at: Mono,
}

/// Creates a recorder and its one reader.
pub fn recorder() -> (Arc<Recorder>, Reader) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let registry: Arc<Registry> = Arc::default();
    let recorder = Recorder {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        registry: Arc::clone(&registry),
    };
    (
        Arc::new(recorder),
        Reader {
            registry,
            known: Vec::new(),
            slots: Vec::new(),
        },
    )
}

/// The state of one thread for a slot.
#[derive(Debug)]
struct Local {
    /// The shards of requests whose users are compared, with the counts that cover all requests.
    shards: Arc<PerSide<Shard>>,
    /// The shards of all other requests, created for the first of them.
    apart: OnceCell<Arc<PerSide<Shard>>>,
    watch: Arc<UserTracker>,
    rescue: Arc<FailoverBudget>,
    websockets: Arc<PerSide<AtomicU64>>,
}

/// The state of one thread by slot.
type BySlot = Vec<Option<Local>>;

thread_local! {
    /// The shards of this thread by recorder and slot. There is almost always one recorder, but
    /// tests run several in a process.
    static SHARDS: RefCell<Vec<(usize, BySlot)>> = const { RefCell::new(Vec::new()) };
}

impl Recorder {
    /// Counts a request as started on `side`. Dropping the guard counts it as finished, however the
    /// request ends.
    pub fn begin(self: &Arc<Self>, slot: usize, side: Side, reason: Option<Reason>) -> InFlight {
        self.with(slot, |local| {
            let shard = &local.shards[side];
            shard.bump(const { Counter::Started.index() }, 1);
            if let Some(reason) = reason {
                shard.bump(Counter::Reason(reason).index(), 1);
            }
        });
        InFlight {
            recorder: Arc::clone(self),
            slot,
            side,
            waiting: None,
            is_finished: false,
            websocket: None,
        }
    }

    /// Counts the end of a request on `side`. The request is no evidence if its rollout was
    /// re-armed after the decision.
    pub fn record(&self, slot: usize, side: Side, ending: &Ending, origin: &Origin<'_>) {
        self.with(slot, |local| {
            self.record_locally(local, slot, side, ending, origin);
        });
    }

    /// Counts a request of this slot as held. Dropping the guard counts it as one whose client
    /// disconnected.
    pub fn hold(self: &Arc<Self>, slot: usize) -> Held {
        self.halted(slot, Halted::Held);
        Held {
            recorder: Arc::clone(self),
            slot,
            ending: Halted::Left,
        }
    }

    /// Counts what maintenance did to a request of this slot.
    pub fn halted(&self, slot: usize, halted: Halted) {
        self.with(slot, |local| {
            local.shards.legacy.bump(Counter::Halted(halted).index(), 1);
        });
    }

    fn record_locally(
        &self,
        local: &Local,
        slot: usize,
        side: Side,
        ending: &Ending,
        origin: &Origin<'_>,
    ) {
        let evidence = if local.watch.is_of(origin.epoch) {
            ending.evidence
        } else {
            Evidence::None
        };
        let ending = Ending {
            evidence,
            ..*ending
        };
        let counted = local
            .watch
            .see(side, &ending, origin.who, origin.path, origin.at);
        self.shards(local, slot, evidence)[side].record(&ending, counted);
        if side == Side::New && evidence.counts() && matches!(ending.outcome, Outcome::Failure(_)) {
            self.registry.failed.notify_one();
        }
    }

    /// Returns the failover budget of a slot. Only for requests that have failed.
    pub fn rescue(&self, slot: usize) -> Arc<FailoverBudget> {
        let mut found = None;
        self.with(slot, |local| found = Some(Arc::clone(&local.rescue)));
        found.unwrap_or_default()
    }

    fn with(&self, slot: usize, use_local: impl FnOnce(&Local)) {
        // A thread that is ending no longer has shards. The counts that are missed here are lost
        // with the process.
        let _ = SHARDS.try_with(|recorders| {
            let mut recorders = recorders.borrow_mut();
            let at = match recorders.iter().position(|(id, _)| *id == self.id) {
                Some(at) => at,
                None => {
                    recorders.push((self.id, Vec::new()));
                    recorders.len() - 1
                }
            };
            let slots = &mut recorders[at].1;
            if slots.len() <= slot {
                slots.resize_with(slot + 1, || None);
            }
            use_local(slots[slot].get_or_insert_with(|| self.register(slot)));
        });
    }

    fn register(&self, slot: usize) -> Local {
        let shards = self.new_shards(slot, true);
        let Shared {
            watch,
            rescue,
            websockets,
        } = self.registry.shared(slot);
        Local {
            shards,
            apart: OnceCell::new(),
            watch,
            rescue,
            websockets,
        }
    }

    fn new_shards(&self, slot: usize, is_compared: bool) -> Arc<PerSide<Shard>> {
        let shards = Arc::new(PerSide::from_fn(|_| Shard::default()));
        self.registry
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Registered {
                slot,
                is_compared,
                shards: Arc::clone(&shards),
            });
        shards
    }

    /// Returns the shards in which a request of this evidence is counted.
    fn shards<'a>(&self, local: &'a Local, slot: usize, evidence: Evidence) -> &'a PerSide<Shard> {
        if evidence.is_compared() {
            &local.shards
        } else {
            local.apart.get_or_init(|| self.new_shards(slot, false))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutover_core::FailureKind;
    use cutover_core::Totals;
    use cutover_core::Waited;
    use proptest::prelude::*;

    fn ending(outcome: Outcome, latency_us: u64) -> Ending {
        Ending {
            outcome,
            status: Some(200),
            latency_us: Some(latency_us),
            evidence: cutover_core::Evidence::Compared,
        }
    }

    #[test]
    fn the_counts_of_many_threads_are_read_completely() {
        let (recorder, mut reader) = recorder();
        let threads: Vec<_> = (0..8u64)
            .map(|thread| {
                let recorder = Arc::clone(&recorder);
                std::thread::spawn(move || {
                    for request in 0..10_000u64 {
                        let in_flight = recorder.begin(1, Side::New, Some(Reason::Bucket));
                        let outcome = if request % 10 == 0 {
                            Outcome::Failure(FailureKind::Status)
                        } else {
                            Outcome::Success
                        };
                        recorder.record(
                            1,
                            Side::New,
                            &ending(outcome, thread * 1_000 + request),
                            &Origin::default(),
                        );
                        drop(in_flight);
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            reader.read();
        }
        // The threads have to be joined, because a thread releases its shards after its last line.
        threads
            .into_iter()
            .for_each(|thread| thread.join().expect("the thread ends"));
        reader.read();
        let slot = reader.slot(1).expect("the slot has traffic");
        assert_eq!(slot.totals.new.counts.requests, 80_000);
        assert_eq!(slot.totals.new.counts.failed(), 8_000);
        assert_eq!(slot.totals.new.latencies.total(), 80_000);
        assert_eq!(slot.reasons[Reason::Bucket.index()], 80_000);
        assert_eq!(slot.in_flight, PerSide { legacy: 0, new: 0 });
        reader.read();
        assert!(
            reader.known.is_empty(),
            "shards of ended threads are let go"
        );
        assert_eq!(
            reader.slot(1).map(|slot| slot.totals.new.counts.requests),
            Some(80_000)
        );
    }

    #[test]
    fn a_request_is_in_flight_until_any_thread_drops_its_guard() {
        let (recorder, mut reader) = recorder();
        let in_flight = recorder.begin(1, Side::Legacy, None);
        reader.read();
        assert_eq!(reader.in_flight(), 1);
        std::thread::spawn(move || drop(in_flight))
            .join()
            .expect("the thread ends");
        reader.read();
        assert_eq!(reader.in_flight(), 0);
    }

    fn tick(number: u64) -> Mono {
        Mono::from_micros(number * 250_000)
    }

    #[test]
    fn waiting_requests_of_an_age_are_found_by_their_starting_tick() {
        let (recorder, mut reader) = recorder();
        let mut waiting = Vec::new();
        for user in 0..40 {
            let mut in_flight = recorder.begin(1, Side::New, None);
            in_flight.waits(Requester { user, network: 0 }, Evidence::Compared, tick(7));
            if user % 4 == 0 {
                in_flight.is_answered();
            }
            waiting.push(in_flight);
        }
        reader.read();
        assert_eq!(reader.waited(1, 6..7).0.new, Waited::default());
        let waited = reader.waited(1, 7..8).0.new;
        assert_eq!(
            (waited.started, waited.hung, waited.places),
            (40, 30, 12),
            "{waited:?}"
        );
        assert_eq!(
            reader.waited(1, 7..8).0.new,
            Waited::default(),
            "each request is told once"
        );
        // One round of the ring later, the earlier requests still wait, and are not reported again.
        let mut late = recorder.begin(1, Side::New, None);
        late.waits(
            Requester {
                user: 1,
                network: 0,
            },
            Evidence::Limits,
            tick(7 + WAIT_TICKS as u64),
        );
        reader.read();
        let waited = reader.waited(1, 263..264).0.new;
        assert_eq!((waited.started, waited.hung), (1, 1));
    }

    #[test]
    fn the_waits_of_ended_threads_are_kept() {
        let (recorder, mut reader) = recorder();
        let begin = |user| {
            let recorder = Arc::clone(&recorder);
            std::thread::spawn(move || {
                let mut in_flight = recorder.begin(1, Side::New, None);
                in_flight.waits(Requester { user, network: 0 }, Evidence::Compared, tick(3));
                in_flight
            })
            .join()
            .expect("the thread ends")
        };
        let waiting = [begin(1), begin(2), begin(3)];
        reader.read();
        reader.read();
        std::thread::spawn(move || drop(waiting))
            .join()
            .expect("the thread ends");
        reader.read();
        reader.read();
        let waited = reader.waited(1, 3..4).0.new;
        assert_eq!((waited.started, waited.hung), (3, 0));
    }

    #[test]
    fn a_request_decided_before_a_re_arm_is_no_evidence_after_it() {
        let (recorder, mut reader) = recorder();
        let failure = ending(Outcome::Failure(FailureKind::Status), 5);
        recorder.record(1, Side::New, &failure, &Origin::default());
        reader
            .watch(1)
            .set_tracker_limits(&cutover_core::TrackerLimits {
                epoch: 1,
                ..Default::default()
            });
        recorder.record(1, Side::New, &failure, &Origin::default());
        recorder.record(
            1,
            Side::New,
            &failure,
            &Origin {
                epoch: 1,
                who: Requester {
                    user: 9,
                    network: 9,
                },
                ..Origin::default()
            },
        );
        reader.read();
        let slot = reader.slot(1).expect("the slot has traffic");
        assert_eq!(slot.totals.new.counts.failed(), 2);
        assert_eq!(
            slot.totals.new.code_classes[2], 3,
            "the answers are counted all the same"
        );
    }

    proptest! {
        #[test]
        fn the_recorder_counts_in_the_same_way_as_totals(endings in proptest::collection::vec((0usize..10, 100u16..600, 0u64..70_000_000, 0usize..3), 0..200)) {
            let (recorder, mut reader) = recorder();
            let (mut expected, mut expected_compared) = (Totals::default(), Totals::default());
            let watch = UserTracker::default();
            for (outcome, status, latency_us, evidence) in endings {
                let outcome = match outcome {
                    0 => Outcome::Success,
                    1 => Outcome::ClientError,
                    2 => Outcome::Aborted,
                    3 => Outcome::Ignored,
                    kind => Outcome::Failure(FailureKind::ALL[kind - 4]),
                };
                let evidence = [Evidence::None, Evidence::Limits, Evidence::Compared][evidence];
                let ending = Ending { outcome, status: Some(status), latency_us: Some(latency_us), evidence };
                let counted = watch.see(Side::New, &ending, Requester::default(), "", Mono::default());
                expected.record(&ending, counted);
                if evidence.is_compared() {
                    expected_compared.record(&ending, counted);
                }
                recorder.record(3, Side::New, &ending, &Origin::default());
            }
            reader.read();
            let found = reader.slot(3).cloned().unwrap_or_default();
            prop_assert_eq!(&found.totals.new, &expected);
            prop_assert_eq!(&found.compared.new, &expected_compared);
        }
    }
}
