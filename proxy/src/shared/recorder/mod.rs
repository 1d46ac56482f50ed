//! What happened so far, counted on the request path without a lock, a shared counter or an
//! allocation.
//!
//! Each (thread, rollout, side) has a shard of its own that only that thread writes: plain loads
//! and stores with relaxed order, no read-modify-write (about a nanosecond each). Shards are
//! cumulative and never reset, so there is no rotation to race with. A lock is taken once, when a
//! thread first meets a rollout.
//!
//! The control plane reads through the one [`Reader`]. It keeps what it saw last and adds
//! differences, so that the 32-bit latency counters may wrap, and descends only into octaves that
//! changed, so that idle shards cost twenty loads. A shard whose thread has ended is read one last
//! time and let go; its counts stay in the totals.
//!
//! In flight is started minus finished. The two may be counted by different threads, since a task
//! moves between them; each count still has one writer.
//!
//! Who was hurt is counted by the core's [`Watch`], one for each rollout, shared by all threads:
//! bad and slow requests pay for it. A failure on new also rings a bell, so that the judge need not
//! wait for its tick. Requests without an answer are counted by the tick in which they began to
//! wait, in a ring of [`WAIT_TICKS`], so that those of a certain age can be told without looking at
//! any request.
//!
//! What maintenance did to requests is counted apart: it says nothing about any backend.

use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cutover_core::stats::histogram::{COUNTERS, OCTAVE, OCTAVES, index_of};
use cutover_core::stats::outcome::{CODE_CLASSES, code_class};
use cutover_core::stats::users::{BLOCKS, LastCrowd, tick_of};
use cutover_core::stats::window::{COARSE, CoarseLatencies, Counts, Totals, Trials};
use cutover_core::{
    Class, Counted, Crowd, Ending, Evidence, FailureKind, Mono, Observed, Outcome, PerSide, Reason,
    Side, Waited, Watch, Who, Witness,
};
use tokio::sync::Notify;

use crate::shared::failover_budget::{Ration, Rescue};

/// The slot of requests that match no rollout. Rollouts follow after it: see [`slot_of`].
pub const UNMATCHED: usize = 0;

/// The recorder slot of a control-plane slot.
pub const fn slot_of(rollout_slot: usize) -> usize {
    rollout_slot + 1
}

/// The writing half, one per process, shared by all request threads.
#[derive(Debug)]
pub struct Recorder {
    id: usize,
    registry: Arc<Registry>,
}

/// What the two halves share.
#[derive(Debug, Default)]
struct Registry {
    shards: Mutex<Vec<Registered>>,
    /// By slot.
    shared: Mutex<Vec<Shared>>,
    /// Rung by each failure on new.
    failed: Arc<Notify>,
}

/// What all threads share of a slot; a request that succeeds only reads it.
#[derive(Clone, Debug, Default)]
struct Shared {
    watch: Arc<Watch>,
    rescue: Arc<Rescue>,
    websockets: Arc<PerSide<AtomicU64>>,
}

impl Registry {
    fn watch(&self, slot: usize) -> Arc<Watch> {
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

/// How many ticks the ring of waiting requests holds. One that waits longer is taken for one of the
/// present round, which is why a hang is noticed at a minute at the latest.
pub const WAIT_TICKS: usize = 256;
/// Into how many places waiting requests are told apart.
const PLACES: usize = 16;
const WAIT_CELLS: usize = WAIT_TICKS * PLACES;

/// Where a request came from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// Who sent it.
    pub who: Who,
    /// What was asked for.
    pub path: &'a str,
    /// The epoch of the rollout it was decided under.
    pub epoch: u64,
    /// When it ended.
    pub at: Mono,
}

/// What maintenance did to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// Answered with 503 at once.
    Refused,
    /// Parked.
    Held,
    /// Let go after it was parked, to be decided.
    Released,
    /// Answered with 503 after it was parked for as long as may be.
    Expired,
    /// Its client hung up while it was parked.
    Left,
}

impl Halted {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All of them, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Refused,
        Self::Held,
        Self::Released,
        Self::Expired,
        Self::Left,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Held => "held",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Left => "left",
        }
    }

    /// The place in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A recorder and its one reader.
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

/// What one thread has of a slot.
#[derive(Debug)]
struct Local {
    /// Of requests whose users are compared, and what is counted of all requests.
    shards: Arc<PerSide<Shard>>,
    /// Of all other requests; made for the first of them.
    apart: OnceCell<Arc<PerSide<Shard>>>,
    watch: Arc<Watch>,
    rescue: Arc<Rescue>,
    websockets: Arc<PerSide<AtomicU64>>,
}

/// The same by slot.
type BySlot = Vec<Option<Local>>;

thread_local! {
    /// Shards of this thread by recorder and slot. Almost always one recorder; tests run several in a process.
    static SHARDS: RefCell<Vec<(usize, BySlot)>> = const { RefCell::new(Vec::new()) };
}

impl Recorder {
    /// Counts a request as started on `side`; dropping the guard counts it as finished, however the
    /// request ends.
    pub fn begin(self: &Arc<Self>, slot: usize, side: Side, reason: Option<Reason>) -> InFlight {
        self.with(slot, |local| {
            let shard = &local.shards[side];
            bump(&shard.started, 1);
            if let Some(reason) = reason {
                bump(&shard.reasons[reason.index()], 1);
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

    /// Counts the end of a request on `side`. Of a rollout that was re-armed since it was decided,
    /// it is no evidence.
    pub fn record(&self, slot: usize, side: Side, ending: &Ending, origin: &Origin<'_>) {
        self.with(slot, |local| {
            self.record_locally(local, slot, side, ending, origin);
        });
    }

    /// Counts a request of this slot as parked; dropping the guard counts it as one whose client
    /// left.
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
            bump(&local.shards.legacy.halted[halted.index()], 1);
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

    /// The permits and counts of requests of a slot that legacy may save. Only for requests that
    /// have failed.
    pub fn rescue(&self, slot: usize) -> Arc<Rescue> {
        let mut found = None;
        self.with(slot, |local| found = Some(Arc::clone(&local.rescue)));
        found.unwrap_or_default()
    }

    fn with(&self, slot: usize, use_local: impl FnOnce(&Local)) {
        // A thread that is being torn down has no shards any more; what it would have counted is
        // lost with the process.
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

    /// Where a request of this evidence is counted.
    fn shards<'a>(&self, local: &'a Local, slot: usize, evidence: Evidence) -> &'a PerSide<Shard> {
        if evidence.is_compared() {
            &local.shards
        } else {
            local.apart.get_or_init(|| self.new_shards(slot, false))
        }
    }
}

/// A request that is parked.
#[derive(Debug)]
pub struct Held {
    recorder: Arc<Recorder>,
    slot: usize,
    ending: Halted,
}

impl Held {
    /// Counts how the wait ended.
    pub fn end(mut self, ending: Halted) {
        self.ending = ending;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.recorder.halted(self.slot, self.ending);
    }
}

/// A request that has started and not finished.
#[derive(Debug)]
pub struct InFlight {
    recorder: Arc<Recorder>,
    slot: usize,
    side: Side,
    /// The cell of the ring it waits in, and where that is.
    waiting: Option<(usize, Evidence)>,
    is_finished: bool,
    /// Of an open WebSocket: where it is counted.
    websocket: Option<Arc<PerSide<AtomicU64>>>,
}

impl InFlight {
    /// The request has become a WebSocket, and is one to its end.
    pub fn is_a_websocket(&mut self) {
        if self.websocket.is_none() {
            let mut counted = None;
            self.recorder.with(self.slot, |local| {
                counted = Some(Arc::clone(&local.websockets));
            });
            if let Some(counted) = &counted {
                counted[self.side].fetch_add(1, Ordering::Relaxed);
            }
            self.websocket = counted;
        }
    }

    /// Counts the end of the request, and that it is no longer in flight.
    pub fn end(mut self, ending: &Ending, origin: &Origin<'_>) {
        self.is_finished = true;
        self.recorder.with(self.slot, |local| {
            if let Some((cell, evidence)) = self.waiting {
                bump16(
                    &self.recorder.shards(local, self.slot, evidence)[self.side].waits_ended[cell],
                );
            }
            self.recorder
                .record_locally(local, self.slot, self.side, ending, origin);
            bump(&local.shards[self.side].finished, 1);
        });
    }

    /// Counts the request as waiting for an answer from now on: all of it has been sent.
    pub fn waits(&mut self, who: Who, evidence: Evidence, at: Mono) {
        if self.waiting.is_some() {
            return;
        }
        self.recorder.with(self.slot, |local| {
            let place = if local.watch.tells_networks_apart() {
                who.network
            } else {
                who.user
            };
            let cell = tick_of(at) as usize % WAIT_TICKS * PLACES + place as usize % PLACES;
            bump16(&self.recorder.shards(local, self.slot, evidence)[self.side].waits_begun[cell]);
            self.waiting = Some((cell, evidence));
        });
    }

    /// Counts the request as answered.
    pub fn is_answered(&mut self) {
        if let Some((cell, evidence)) = self.waiting.take() {
            self.recorder.with(self.slot, |local| {
                bump16(
                    &self.recorder.shards(local, self.slot, evidence)[self.side].waits_ended[cell],
                );
            });
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(counted) = &self.websocket {
            counted[self.side].fetch_sub(1, Ordering::Relaxed);
        }
        if !self.is_finished {
            self.is_answered();
            self.recorder.with(self.slot, |local| {
                bump(&local.shards[self.side].finished, 1);
            });
        }
    }
}

/// The counts of one thread for one side of one rollout.
#[derive(Debug)]
struct Shard {
    started: AtomicU64,
    finished: AtomicU64,
    reasons: [AtomicU64; Reason::COUNT],
    /// Of no side: counted in the shard of legacy.
    halted: [AtomicU64; Halted::COUNT],
    code_classes: [AtomicU64; CODE_CLASSES.len()],
    requests: AtomicU64,
    failures: [AtomicU64; FailureKind::COUNT],
    client_errors: AtomicU64,
    aborts: AtomicU64,
    appearances: AtomicU64,
    counted: [AtomicU64; Class::COUNT],
    trials: SharedTrials,
    latency_sum_us: AtomicU64,
    of_users: [AtomicU32; COARSE],
    octaves: [AtomicU32; OCTAVES],
    latencies: Box<[AtomicU32]>,
    /// By tick and place. They wrap; their difference does not.
    waits_begun: Box<[AtomicU16]>,
    waits_ended: Box<[AtomicU16]>,
}

/// The counts of [`Trials`], written by one thread.
#[derive(Debug, Default)]
struct SharedTrials {
    served: [AtomicU32; BLOCKS],
    first_bad: [[AtomicU32; BLOCKS]; Class::COUNT],
    affected: [[AtomicU32; BLOCKS]; Class::COUNT],
    /// How often anything was added.
    changes: AtomicU32,
}

impl SharedTrials {
    /// The meaning is that of [`Trials::record`].
    #[cold]
    fn record(&self, counted: Counted) {
        let add = |counts: &[AtomicU32; BLOCKS], blocks: usize| {
            counts.iter().take(blocks).for_each(bump32);
        };
        add(&self.served, counted.first_in());
        for class in counted.bad_indexes() {
            add(&self.first_bad[class], counted.first_in());
            add(&self.affected[class], counted.affected_in(class));
        }
        let changes = &self.changes;
        changes.store(
            changes.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }

    /// What has come since it was read last, if anything.
    fn news(&self, seen: &mut SeenTrials) -> Option<Trials> {
        let changes = self.changes.load(Ordering::Acquire);
        if std::mem::replace(&mut seen.changes, changes) == changes {
            return None;
        }
        let news = |counts: &[AtomicU32; BLOCKS], seen: &mut [u32; BLOCKS]| {
            std::array::from_fn(|block| {
                let count = counts[block].load(Ordering::Relaxed);
                u64::from(count.wrapping_sub(std::mem::replace(&mut seen[block], count)))
            })
        };
        Some(Trials {
            served: news(&self.served, &mut seen.served),
            first_bad: std::array::from_fn(|class| {
                news(&self.first_bad[class], &mut seen.first_bad[class])
            }),
            affected: std::array::from_fn(|class| {
                news(&self.affected[class], &mut seen.affected[class])
            }),
        })
    }
}

/// What was last seen of [`SharedTrials`].
#[derive(Debug, Default)]
struct SeenTrials {
    served: [u32; BLOCKS],
    first_bad: [[u32; BLOCKS]; Class::COUNT],
    affected: [[u32; BLOCKS]; Class::COUNT],
    changes: u32,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            finished: AtomicU64::default(),
            reasons: Default::default(),
            halted: Default::default(),
            code_classes: Default::default(),
            requests: AtomicU64::default(),
            failures: Default::default(),
            client_errors: AtomicU64::default(),
            aborts: AtomicU64::default(),
            appearances: AtomicU64::default(),
            counted: Default::default(),
            trials: SharedTrials::default(),
            latency_sum_us: AtomicU64::default(),
            of_users: [const { AtomicU32::new(0) }; COARSE],
            octaves: Default::default(),
            latencies: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            waits_begun: (0..WAIT_CELLS).map(|_| AtomicU16::new(0)).collect(),
            waits_ended: (0..WAIT_CELLS).map(|_| AtomicU16::new(0)).collect(),
        }
    }
}

impl Shard {
    /// The meaning is that of [`Totals::record`]; a test holds the two against each other.
    fn record(&self, ending: &Ending, counted: Counted) {
        bump(&self.code_classes[code_class(ending.status)], 1);
        if !ending.evidence.counts() {
            return;
        }
        if counted.is_appearance() {
            bump(&self.appearances, 1);
        }
        if counted.is_of_users() {
            self.trials.record(counted);
        }
        if counted.is_bad_anywhere() {
            counted
                .indexes()
                .for_each(|class| bump(&self.counted[class], 1));
        }
        match ending.outcome {
            Outcome::Success => {}
            Outcome::ClientError => bump(&self.client_errors, 1),
            Outcome::Failure(kind) => bump(&self.failures[kind.index()], 1),
            Outcome::Aborted => return bump(&self.aborts, 1),
            Outcome::Ignored => return,
        }
        bump(&self.requests, 1);
        if let Some(latency_us) = ending.latency_us {
            let index = index_of(latency_us);
            bump(&self.latency_sum_us, latency_us);
            if counted.is_appearance() {
                bump32(&self.of_users[CoarseLatencies::index_of(index)]);
            }
            bump32(&self.latencies[index]);
            bump32(&self.octaves[index / OCTAVE]);
        }
    }
}

/// Adds on the only thread that writes this counter.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// Adds one on the only thread that writes this counter.
fn bump32(counter: &AtomicU32) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// Adds one on the only thread that writes this counter.
fn bump16(counter: &AtomicU16) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// Everything a slot has counted, as the reader last saw it.
#[derive(Clone, Debug, Default)]
pub struct SlotTotals {
    /// Outcomes, for the guard and the metrics.
    pub totals: PerSide<Totals>,
    /// Those of users whom the hash or chance placed: the sides are compared by them.
    pub compared: PerSide<Totals>,
    /// Decisions by [`Reason::index`], both sides together.
    pub reasons: [u64; Reason::COUNT],
    /// Requests that have started and not finished.
    pub in_flight: PerSide<u64>,
    /// Open WebSockets.
    pub websockets: PerSide<u64>,
    /// What became of failing requests that could be saved, in the order of
    /// [`Saving::ALL`](crate::shared::failover_budget::Saving::ALL).
    pub savings: [u64; 3],
    /// What maintenance did to requests, by [`Halted::index`].
    pub halted: [u64; Halted::COUNT],
}

impl SlotTotals {
    /// How many requests are parked.
    pub fn parked(&self) -> u64 {
        let count = |halted: Halted| self.halted[halted.index()];
        count(Halted::Held)
            .saturating_sub(count(Halted::Released) + count(Halted::Expired) + count(Halted::Left))
    }
}

/// What one look sees of a slot, beside its totals.
#[derive(Debug, Default)]
pub struct Look {
    streaks: PerSide<u32>,
    waited: PerSide<Waited>,
    waited_compared: PerSide<Waited>,
    witnesses: Vec<Witness>,
    crowd: Option<Crowd>,
}

impl Look {
    /// The same for the judge.
    pub fn observed<'a>(
        &'a self,
        totals: &'a PerSide<Totals>,
        compared: &'a PerSide<Totals>,
        available: PerSide<bool>,
        passes_checks: PerSide<bool>,
    ) -> Observed<'a> {
        Observed {
            totals,
            compared,
            streaks: self.streaks,
            available,
            passes_checks,
            waited: self.waited,
            waited_compared: self.waited_compared,
            witnesses: &self.witnesses,
            crowd: self.crowd,
        }
    }
}

/// The reading half: sums the shards of all threads. Owned by the control plane.
#[derive(Debug)]
pub struct Reader {
    registry: Arc<Registry>,
    known: Vec<Known>,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    sum: SlotTotals,
    started: PerSide<u64>,
    finished: PerSide<u64>,
    /// Of users who are not compared, and of those who are.
    waits: [PerSide<Waits>; 2],
    crowd: LastCrowd,
    ration: Ration,
}

/// What the reader knows of the ring of waiting requests of one side.
#[derive(Clone, Debug)]
struct Waits {
    /// Of threads that have ended.
    retired_begun: Box<[u16]>,
    retired_ended: Box<[u16]>,
    /// What had begun, and what still waited, when a cell was read last: a round of the ring ago.
    begun: Box<[u16]>,
    stuck: Box<[u16]>,
}

impl Default for Waits {
    fn default() -> Self {
        let cells = || vec![0; WAIT_CELLS].into_boxed_slice();
        Self {
            retired_begun: cells(),
            retired_ended: cells(),
            begun: cells(),
            stuck: cells(),
        }
    }
}

#[derive(Debug)]
struct Known {
    slot: usize,
    is_compared: bool,
    shards: Arc<PerSide<Shard>>,
    seen: PerSide<Seen>,
}

/// What was last seen of one shard.
#[derive(Debug)]
struct Seen {
    started: u64,
    finished: u64,
    reasons: [u64; Reason::COUNT],
    halted: [u64; Halted::COUNT],
    code_classes: [u64; CODE_CLASSES.len()],
    requests: u64,
    failures: [u64; FailureKind::COUNT],
    client_errors: u64,
    aborts: u64,
    appearances: u64,
    counted: [u64; Class::COUNT],
    trials: SeenTrials,
    latency_sum_us: u64,
    of_users: [u32; COARSE],
    octaves: [u32; OCTAVES],
    latencies: Box<[u32]>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            started: 0,
            finished: 0,
            reasons: Default::default(),
            halted: Default::default(),
            code_classes: Default::default(),
            requests: 0,
            failures: Default::default(),
            client_errors: 0,
            aborts: 0,
            appearances: 0,
            counted: [0; Class::COUNT],
            trials: SeenTrials::default(),
            latency_sum_us: 0,
            of_users: [0; COARSE],
            octaves: Default::default(),
            latencies: vec![0; COUNTERS].into_boxed_slice(),
        }
    }
}

impl Reader {
    /// Adds what has been counted since the last call.
    pub fn read(&mut self) {
        self.add_all(true);
        let Self {
            registry,
            known,
            slots,
        } = self;
        // A shard that only we still hold belonged to a thread that has ended: nobody can write it
        // any more (`get_mut` makes its last writes visible). It is let go once all it
        // counted is in the sums; a thread that ended since the look above is let go at the next
        // read.
        known.retain_mut(|known| {
            let Some(shards) = Arc::get_mut(&mut known.shards) else {
                return true;
            };
            let keep =
                shards.legacy.differs(&known.seen.legacy) || shards.new.differs(&known.seen.new);
            if !keep {
                for side in Side::BOTH {
                    slots[known.slot].waits[usize::from(known.is_compared)][side]
                        .retire(&shards[side]);
                }
            }
            keep
        });
        for (at, slot) in slots.iter_mut().enumerate() {
            let shared = registry.shared(at);
            slot.sum.savings = shared.rescue.counts();
            slot.sum.websockets =
                PerSide::from_fn(|side| shared.websockets[side].load(Ordering::Relaxed));
            // Started is summed with finished of the same pass, but other threads go on meanwhile:
            // never below zero.
            slot.sum.in_flight =
                PerSide::from_fn(|side| slot.started[side].saturating_sub(slot.finished[side]));
        }
    }

    /// The same for counts only: latencies stay where they were. Cheap enough for every failure.
    pub fn read_counts(&mut self) {
        self.add_all(false);
    }

    fn add_all(&mut self, with_latencies: bool) {
        for registered in self
            .registry
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            self.known.push(Known {
                slot: registered.slot,
                is_compared: registered.is_compared,
                shards: registered.shards,
                seen: PerSide::default(),
            });
        }
        for known in &mut self.known {
            if self.slots.len() <= known.slot {
                self.slots.resize_with(known.slot + 1, Slot::default);
            }
            let slot = &mut self.slots[known.slot];
            for side in Side::BOTH {
                add_news(
                    &known.shards[side],
                    &mut known.seen[side],
                    slot,
                    (side, known.is_compared),
                    with_latencies,
                );
            }
        }
    }

    /// The bell that each failure on new rings.
    pub fn failed(&self) -> Arc<Notify> {
        Arc::clone(&self.registry.failed)
    }

    /// The watch of a slot.
    pub fn watch(&self, slot: usize) -> Arc<Watch> {
        self.registry.watch(slot)
    }

    /// Hands out the permits to save failing requests until the next tick.
    pub fn hand_out_permits(&mut self, now: Mono) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            slot.ration
                .hand_out(&self.registry.shared(at).rescue, slot.started.new, now);
        }
    }

    /// What is seen of a slot beside its totals. At a tick, `aged` are the ticks whose requests
    /// have now reached the age at which they hang.
    pub fn look(&mut self, slot: usize, now: Mono, aged: Option<Range<u64>>) -> Look {
        let watch = self.registry.watch(slot);
        let known = self.slots.get_mut(slot);
        // Once a second, and not for all slots at once.
        let is_due = aged.is_some() && (tick_of(now) as usize + slot).is_multiple_of(4);
        let crowd = match known {
            Some(slot) => slot.crowd.look(&watch, is_due, now),
            None => is_due.then(|| watch.crowd(now)),
        };
        let (waited, waited_compared) = aged
            .filter(|ticks| !ticks.is_empty())
            .map(|ticks| self.waited(slot, ticks))
            .unwrap_or_default();
        Look {
            streaks: watch.streaks(),
            witnesses: watch.drain(),
            crowd,
            waited,
            waited_compared,
        }
    }

    /// The requests that began to wait in these ticks, and those of them that still wait: of all
    /// users, and of those who are compared. Each tick is to be asked for once, within a round of
    /// the ring.
    fn waited(&mut self, slot: usize, ticks: Range<u64>) -> (PerSide<Waited>, PerSide<Waited>) {
        let compared = self.places(slot, ticks.clone(), true);
        let apart = self.places(slot, ticks, false);
        let all = PerSide::from_fn(|side| compared[side].plus(&apart[side]).waited());
        (all, compared.map(Places::waited))
    }

    fn places(&mut self, slot: usize, ticks: Range<u64>, is_compared: bool) -> PerSide<Places> {
        let Some(sums) = self.slots.get_mut(slot) else {
            return PerSide::default();
        };
        let shards: Vec<&PerSide<Shard>> = self
            .known
            .iter()
            .filter(|known| known.slot == slot && known.is_compared == is_compared)
            .map(|known| &*known.shards)
            .collect();
        PerSide::from_fn(|side| {
            let waits = &mut sums.waits[usize::from(is_compared)][side];
            let mut places = Places::default();
            for tick in ticks.clone() {
                for (place, hung) in places.hung.iter_mut().enumerate() {
                    let cell = tick as usize % WAIT_TICKS * PLACES + place;
                    let sum = |cells: fn(&Shard) -> &[AtomicU16], retired: u16| {
                        shards.iter().fold(retired, |sum, shards| {
                            sum.wrapping_add(cells(&shards[side])[cell].load(Ordering::Relaxed))
                        })
                    };
                    // Ended before begun, so that a request between the two reads counts as waiting
                    // and not as minus one.
                    let ended = sum(|shard| &shard.waits_ended, waits.retired_ended[cell]);
                    let begun = sum(|shard| &shard.waits_begun, waits.retired_begun[cell]);
                    let waiting = begun.wrapping_sub(ended);
                    let news = begun.wrapping_sub(std::mem::replace(&mut waits.begun[cell], begun));
                    places.started += u64::from(news);
                    *hung += u64::from(
                        waiting
                            .saturating_sub(std::mem::replace(&mut waits.stuck[cell], waiting))
                            .min(news),
                    );
                }
            }
            places
        })
    }

    /// The sums of one slot as of the last [`Reader::read`]; `None` before its first request.
    pub fn slot(&self, slot: usize) -> Option<&SlotTotals> {
        self.slots.get(slot).map(|slot| &slot.sum)
    }

    /// The totals of all rollouts by control-plane slot, for a tick, and those of users who are
    /// compared.
    pub fn rollouts(&self) -> impl ExactSizeIterator<Item = (&PerSide<Totals>, &PerSide<Totals>)> {
        self.slots
            .iter()
            .skip(slot_of(0))
            .map(|slot| (&slot.sum.totals, &slot.sum.compared))
    }

    /// Requests in flight over all slots and sides.
    pub fn in_flight(&self) -> u64 {
        self.slots
            .iter()
            .map(|slot| slot.sum.in_flight.legacy + slot.sum.in_flight.new)
            .sum()
    }
}

/// Waiting requests by the place they come from.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    started: u64,
    hung: [u64; PLACES],
}

impl Places {
    fn plus(&self, other: &Self) -> Self {
        Self {
            started: self.started + other.started,
            hung: std::array::from_fn(|place| self.hung[place] + other.hung[place]),
        }
    }

    fn waited(&self) -> Waited {
        let hung: u64 = self.hung.iter().sum();
        let top = self.hung.iter().max().copied().unwrap_or_default();
        let top_place = if hung == 0 {
            0.0
        } else {
            top as f64 / hung as f64
        };
        Waited {
            started: self.started,
            hung,
            places: self.hung.iter().filter(|count| **count > 0).count() as u32,
            top_place,
        }
    }
}

impl Shard {
    /// Whether requests were counted that the reader has not seen.
    fn differs(&self, seen: &Seen) -> bool {
        self.started.load(Ordering::Relaxed) != seen.started
            || self.finished.load(Ordering::Relaxed) != seen.finished
            || self
                .halted
                .iter()
                .zip(&seen.halted)
                .any(|(counter, seen)| counter.load(Ordering::Relaxed) != *seen)
            || self
                .code_classes
                .iter()
                .zip(&seen.code_classes)
                .any(|(counter, seen)| counter.load(Ordering::Relaxed) != *seen)
    }
}

impl Waits {
    /// Takes over what a thread that has ended had counted.
    fn retire(&mut self, shard: &Shard) {
        for (retired, cells) in [
            (&mut self.retired_begun, &shard.waits_begun),
            (&mut self.retired_ended, &shard.waits_ended),
        ] {
            for (sum, cell) in retired.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
    }
}

fn add_news(
    shard: &Shard,
    seen: &mut Seen,
    slot: &mut Slot,
    (side, is_compared): (Side, bool),
    with_latencies: bool,
) {
    // Finished before started, so that a request between the two reads counts as in flight and not
    // as minus one.
    slot.finished[side] += news(&shard.finished, &mut seen.finished);
    slot.started[side] += news(&shard.started, &mut seen.started);
    for (sum, (counter, seen)) in slot
        .sum
        .reasons
        .iter_mut()
        .zip(shard.reasons.iter().zip(&mut seen.reasons))
    {
        *sum += news(counter, seen);
    }
    for (sum, (counter, seen)) in slot
        .sum
        .halted
        .iter_mut()
        .zip(shard.halted.iter().zip(&mut seen.halted))
    {
        *sum += news(counter, seen);
    }
    let code_classes: [u64; CODE_CLASSES.len()] = std::array::from_fn(|class| {
        news(&shard.code_classes[class], &mut seen.code_classes[class])
    });
    // Parts before the whole: a request counted between the reads is in `requests` and not yet in
    // `failures`, never the other way round.
    let mut counts = Counts {
        failures: std::array::from_fn(|kind| news(&shard.failures[kind], &mut seen.failures[kind])),
        counted: std::array::from_fn(|class| news(&shard.counted[class], &mut seen.counted[class])),
        appearances: news(&shard.appearances, &mut seen.appearances),
        client_errors: news(&shard.client_errors, &mut seen.client_errors),
        aborts: news(&shard.aborts, &mut seen.aborts),
        requests: news(&shard.requests, &mut seen.requests),
        latency_sum_us: 0,
    };
    let SlotTotals {
        totals, compared, ..
    } = &mut slot.sum;
    let mut sums: [Option<&mut Totals>; 2] = [
        Some(&mut totals[side]),
        is_compared.then(|| &mut compared[side]),
    ];
    if with_latencies {
        counts.latency_sum_us = news(&shard.latency_sum_us, &mut seen.latency_sum_us);
        add_latencies(shard, seen, &mut sums);
        if let Some(trials) = shard.trials.news(&mut seen.trials) {
            sums.iter_mut()
                .flatten()
                .for_each(|sum| sum.trials.add(&trials));
        }
    }
    for sum in sums.into_iter().flatten() {
        sum.counts.add(&counts);
        for (sum, news) in sum.code_classes.iter_mut().zip(code_classes) {
            *sum += news;
        }
    }
}

fn add_latencies(shard: &Shard, seen: &mut Seen, sums: &mut [Option<&mut Totals>]) {
    if shard
        .octaves
        .iter()
        .zip(&seen.octaves)
        .any(|(counter, seen)| counter.load(Ordering::Acquire) != *seen)
    {
        for (index, (counter, seen)) in shard.of_users.iter().zip(&mut seen.of_users).enumerate() {
            let count = counter.load(Ordering::Relaxed);
            let new = count.wrapping_sub(std::mem::replace(seen, count));
            sums.iter_mut()
                .flatten()
                .for_each(|sum| sum.of_users.0[index] += u64::from(new));
        }
    }
    for (octave, (counter, seen_octave)) in shard.octaves.iter().zip(&mut seen.octaves).enumerate()
    {
        let count = counter.load(Ordering::Acquire);
        if count == *seen_octave {
            continue;
        }
        *seen_octave = count;
        let range = octave * OCTAVE..(octave + 1) * OCTAVE;
        for (index, (counter, seen)) in range.clone().zip(
            shard.latencies[range.clone()]
                .iter()
                .zip(&mut seen.latencies[range]),
        ) {
            let count = counter.load(Ordering::Relaxed);
            let new = count.wrapping_sub(*seen);
            if new > 0 {
                *seen = count;
                for sum in sums.iter_mut().flatten() {
                    sum.latencies.add(index, u64::from(new));
                }
            }
        }
    }
}

fn news(counter: &AtomicU64, seen: &mut u64) -> u64 {
    let count = counter.load(Ordering::Relaxed);
    count.wrapping_sub(std::mem::replace(seen, count))
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn what_many_threads_count_is_read_completely() {
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
        // Joined, not only finished: a thread lets its shards go after its last line.
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
    fn a_request_is_in_flight_until_its_guard_is_dropped_even_on_another_thread() {
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
    fn requests_that_still_wait_at_an_age_are_told_by_the_tick_they_began_in() {
        let (recorder, mut reader) = recorder();
        let mut waiting = Vec::new();
        for user in 0..40 {
            let mut in_flight = recorder.begin(1, Side::New, None);
            in_flight.waits(Who { user, network: 0 }, Evidence::Compared, tick(7));
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
        // A round of the ring later: those of before still wait, and are not told again.
        let mut late = recorder.begin(1, Side::New, None);
        late.waits(
            Who {
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
    fn waits_of_threads_that_have_ended_are_not_forgotten() {
        let (recorder, mut reader) = recorder();
        let begin = |user| {
            let recorder = Arc::clone(&recorder);
            std::thread::spawn(move || {
                let mut in_flight = recorder.begin(1, Side::New, None);
                in_flight.waits(Who { user, network: 0 }, Evidence::Compared, tick(3));
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
    fn what_was_decided_before_a_re_arming_is_no_evidence_after_it() {
        let (recorder, mut reader) = recorder();
        let failure = ending(Outcome::Failure(FailureKind::Status), 5);
        recorder.record(1, Side::New, &failure, &Origin::default());
        reader.watch(1).aim(&cutover_core::Aims {
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
                who: Who {
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
        fn the_recorder_counts_what_totals_mean(endings in proptest::collection::vec((0usize..10, 100u16..600, 0u64..70_000_000, 0usize..3), 0..200)) {
            let (recorder, mut reader) = recorder();
            let (mut expected, mut expected_compared) = (Totals::default(), Totals::default());
            let watch = Watch::default();
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
                let counted = watch.see(Side::New, &ending, Who::default(), "", Mono::default());
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
