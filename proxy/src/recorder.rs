//! What happened so far, counted on the request path without a lock, a shared counter or an allocation.
//!
//! Each (thread, rollout, side) has a shard of its own that only that thread writes: plain loads and stores with relaxed order, no read-modify-write (about a nanosecond each).
//! Shards are cumulative and never reset, so there is no rotation to race with. A lock is taken once, when a thread first meets a rollout.
//!
//! The control plane reads through the one [`Reader`]. It keeps what it saw last and adds differences, so that the 32-bit latency counters may wrap, and descends only into octaves that
//! changed, so that idle shards cost twenty loads. A shard whose thread has ended is read one last time and let go; its counts stay in the totals.
//!
//! In flight is started minus finished. The two may be counted by different threads, since a task moves between them; each count still has one writer.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cutover_core::histogram::{COUNTERS, OCTAVE, OCTAVES, index_of};
use cutover_core::outcome::{CODE_CLASSES, code_class};
use cutover_core::window::Totals;
use cutover_core::{Ending, FailureKind, Outcome, PerSide, Reason, Side};

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

type Registry = Mutex<Vec<Registered>>;

#[derive(Debug)]
struct Registered {
    slot: usize,
    shards: Arc<PerSide<Shard>>,
}

/// A recorder and its one reader.
pub fn recorder() -> (Arc<Recorder>, Reader) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let registry: Arc<Registry> = Arc::default();
    let recorder = Recorder { id: NEXT.fetch_add(1, Ordering::Relaxed), registry: Arc::clone(&registry) };
    (Arc::new(recorder), Reader { registry, known: Vec::new(), slots: Vec::new() })
}

/// The shards of one thread by slot.
type BySlot = Vec<Option<Arc<PerSide<Shard>>>>;

thread_local! {
    /// Shards of this thread by recorder and slot. Almost always one recorder; tests run several in a process.
    static SHARDS: RefCell<Vec<(usize, BySlot)>> = const { RefCell::new(Vec::new()) };
}

impl Recorder {
    /// Counts a request as started on `side`; dropping the guard counts it as finished, however the request ends.
    pub fn begin(self: &Arc<Self>, slot: usize, side: Side, reason: Option<Reason>) -> InFlight {
        self.with(slot, |shards| {
            let shard = &shards[side];
            bump(&shard.started, 1);
            if let Some(reason) = reason {
                bump(&shard.reasons[reason.index()], 1);
            }
        });
        InFlight { recorder: Arc::clone(self), slot, side }
    }

    /// Counts the end of a request on `side`.
    pub fn record(&self, slot: usize, side: Side, ending: &Ending) {
        self.with(slot, |shards| shards[side].record(ending));
    }

    fn with(&self, slot: usize, use_shards: impl FnOnce(&PerSide<Shard>)) {
        // A thread that is being torn down has no shards any more; what it would have counted is lost with the process.
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
            use_shards(slots[slot].get_or_insert_with(|| self.register(slot)));
        });
    }

    fn register(&self, slot: usize) -> Arc<PerSide<Shard>> {
        let shards = Arc::new(PerSide::from_fn(|_| Shard::default()));
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).push(Registered { slot, shards: Arc::clone(&shards) });
        shards
    }
}

/// A request that has started and not finished.
#[derive(Debug)]
pub struct InFlight {
    recorder: Arc<Recorder>,
    slot: usize,
    side: Side,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.recorder.with(self.slot, |shards| bump(&shards[self.side].finished, 1));
    }
}

/// The counts of one thread for one side of one rollout.
#[derive(Debug)]
struct Shard {
    started: AtomicU64,
    finished: AtomicU64,
    reasons: [AtomicU64; Reason::COUNT],
    code_classes: [AtomicU64; CODE_CLASSES.len()],
    requests: AtomicU64,
    failures: [AtomicU64; FailureKind::COUNT],
    client_errors: AtomicU64,
    aborts: AtomicU64,
    latency_sum_us: AtomicU64,
    octaves: [AtomicU32; OCTAVES],
    latencies: Box<[AtomicU32]>,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            finished: AtomicU64::default(),
            reasons: Default::default(),
            code_classes: Default::default(),
            requests: AtomicU64::default(),
            failures: Default::default(),
            client_errors: AtomicU64::default(),
            aborts: AtomicU64::default(),
            latency_sum_us: AtomicU64::default(),
            octaves: Default::default(),
            latencies: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl Shard {
    /// The meaning is that of [`Totals::record`]; a test holds the two against each other.
    fn record(&self, ending: &Ending) {
        bump(&self.code_classes[code_class(ending.status)], 1);
        if !ending.evidence {
            return;
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
            bump32(&self.latencies[index]);
            bump32(&self.octaves[index / OCTAVE]);
        }
    }
}

/// Adds on the only thread that writes this counter.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Adds one on the only thread that writes this counter.
fn bump32(counter: &AtomicU32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Everything a slot has counted, as the reader last saw it.
#[derive(Clone, Debug, Default)]
pub struct SlotTotals {
    /// Outcomes, for the guard and the metrics.
    pub totals: PerSide<Totals>,
    /// Decisions by [`Reason::index`], both sides together.
    pub reasons: [u64; Reason::COUNT],
    /// Requests that have started and not finished.
    pub in_flight: PerSide<u64>,
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
}

#[derive(Debug)]
struct Known {
    slot: usize,
    shards: Arc<PerSide<Shard>>,
    seen: PerSide<Seen>,
}

/// What was last seen of one shard.
#[derive(Debug)]
struct Seen {
    started: u64,
    finished: u64,
    reasons: [u64; Reason::COUNT],
    code_classes: [u64; CODE_CLASSES.len()],
    requests: u64,
    failures: [u64; FailureKind::COUNT],
    client_errors: u64,
    aborts: u64,
    latency_sum_us: u64,
    octaves: [u32; OCTAVES],
    latencies: Box<[u32]>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            started: 0,
            finished: 0,
            reasons: Default::default(),
            code_classes: Default::default(),
            requests: 0,
            failures: Default::default(),
            client_errors: 0,
            aborts: 0,
            latency_sum_us: 0,
            octaves: Default::default(),
            latencies: vec![0; COUNTERS].into_boxed_slice(),
        }
    }
}

impl Reader {
    /// Adds what has been counted since the last call.
    pub fn read(&mut self) {
        for registered in self.registry.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.known.push(Known { slot: registered.slot, shards: registered.shards, seen: PerSide::default() });
        }
        for known in &mut self.known {
            if self.slots.len() <= known.slot {
                self.slots.resize_with(known.slot + 1, Slot::default);
            }
            let slot = &mut self.slots[known.slot];
            for side in Side::BOTH {
                add_news(&known.shards[side], &mut known.seen[side], slot, side);
            }
        }
        // A shard that only we still hold belonged to a thread that has ended: nobody can write it any more (`get_mut` makes its last writes visible). It is let go once all it
        // counted is in the sums; a thread that ended since the look above is let go at the next read.
        self.known.retain_mut(|known| Arc::get_mut(&mut known.shards).is_none_or(|shards| shards.legacy.differs(&known.seen.legacy) || shards.new.differs(&known.seen.new)));
        for slot in &mut self.slots {
            // Started is summed with finished of the same pass, but other threads go on meanwhile: never below zero.
            slot.sum.in_flight = PerSide::from_fn(|side| slot.started[side].saturating_sub(slot.finished[side]));
        }
    }

    /// The sums of one slot as of the last [`Reader::read`]; `None` before its first request.
    pub fn slot(&self, slot: usize) -> Option<&SlotTotals> {
        self.slots.get(slot).map(|slot| &slot.sum)
    }

    /// The totals of all rollouts by control-plane slot, for a tick.
    pub fn rollouts(&self) -> impl ExactSizeIterator<Item = &PerSide<Totals>> {
        self.slots.iter().skip(slot_of(0)).map(|slot| &slot.sum.totals)
    }

    /// Requests in flight over all slots and sides.
    pub fn in_flight(&self) -> u64 {
        self.slots.iter().map(|slot| slot.sum.in_flight.legacy + slot.sum.in_flight.new).sum()
    }
}

impl Shard {
    /// Whether requests were counted that the reader has not seen.
    fn differs(&self, seen: &Seen) -> bool {
        self.started.load(Ordering::Relaxed) != seen.started
            || self.finished.load(Ordering::Relaxed) != seen.finished
            || self.code_classes.iter().zip(&seen.code_classes).any(|(counter, seen)| counter.load(Ordering::Relaxed) != *seen)
    }
}

fn add_news(shard: &Shard, seen: &mut Seen, slot: &mut Slot, side: Side) {
    // Finished before started, so that a request between the two reads counts as in flight and not as minus one.
    slot.finished[side] += news(&shard.finished, &mut seen.finished);
    slot.started[side] += news(&shard.started, &mut seen.started);
    for (sum, (counter, seen)) in slot.sum.reasons.iter_mut().zip(shard.reasons.iter().zip(&mut seen.reasons)) {
        *sum += news(counter, seen);
    }
    let totals = &mut slot.sum.totals[side];
    for (sum, (counter, seen)) in totals.code_classes.iter_mut().zip(shard.code_classes.iter().zip(&mut seen.code_classes)) {
        *sum += news(counter, seen);
    }
    let counts = &mut totals.counts;
    // Parts before the whole: a request counted between the reads is in `requests` and not yet in `failures`, never the other way round.
    for (sum, (counter, seen)) in counts.failures.iter_mut().zip(shard.failures.iter().zip(&mut seen.failures)) {
        *sum += news(counter, seen);
    }
    counts.client_errors += news(&shard.client_errors, &mut seen.client_errors);
    counts.aborts += news(&shard.aborts, &mut seen.aborts);
    counts.requests += news(&shard.requests, &mut seen.requests);
    counts.latency_sum_us += news(&shard.latency_sum_us, &mut seen.latency_sum_us);
    for (octave, (counter, seen_octave)) in shard.octaves.iter().zip(&mut seen.octaves).enumerate() {
        let count = counter.load(Ordering::Acquire);
        if count == *seen_octave {
            continue;
        }
        *seen_octave = count;
        let range = octave * OCTAVE..(octave + 1) * OCTAVE;
        for (index, (counter, seen)) in range.clone().zip(shard.latencies[range.clone()].iter().zip(&mut seen.latencies[range])) {
            let count = counter.load(Ordering::Relaxed);
            let new = count.wrapping_sub(*seen);
            if new > 0 {
                *seen = count;
                totals.latencies.add(index, u64::from(new));
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
        Ending { outcome, status: Some(200), latency_us: Some(latency_us), evidence: true }
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
                        let outcome = if request % 10 == 0 { Outcome::Failure(FailureKind::Status) } else { Outcome::Success };
                        recorder.record(1, Side::New, &ending(outcome, thread * 1_000 + request));
                        drop(in_flight);
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            reader.read();
        }
        // Joined, not only finished: a thread lets its shards go after its last line.
        threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
        reader.read();
        let slot = reader.slot(1).expect("the slot has traffic");
        assert_eq!(slot.totals.new.counts.requests, 80_000);
        assert_eq!(slot.totals.new.counts.failed(), 8_000);
        assert_eq!(slot.totals.new.latencies.total(), 80_000);
        assert_eq!(slot.reasons[Reason::Bucket.index()], 80_000);
        assert_eq!(slot.in_flight, PerSide { legacy: 0, new: 0 });
        reader.read();
        assert!(reader.known.is_empty(), "shards of ended threads are let go");
        assert_eq!(reader.slot(1).map(|slot| slot.totals.new.counts.requests), Some(80_000));
    }

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped_even_on_another_thread() {
        let (recorder, mut reader) = recorder();
        let in_flight = recorder.begin(1, Side::Legacy, None);
        reader.read();
        assert_eq!(reader.in_flight(), 1);
        std::thread::spawn(move || drop(in_flight)).join().expect("the thread ends");
        reader.read();
        assert_eq!(reader.in_flight(), 0);
    }

    proptest! {
        #[test]
        fn the_recorder_counts_what_totals_mean(endings in proptest::collection::vec((0usize..10, 100u16..600, 0u64..70_000_000, any::<bool>()), 0..200)) {
            let (recorder, mut reader) = recorder();
            let mut expected = Totals::default();
            for (outcome, status, latency_us, evidence) in endings {
                let outcome = match outcome {
                    0 => Outcome::Success,
                    1 => Outcome::ClientError,
                    2 => Outcome::Aborted,
                    3 => Outcome::Ignored,
                    kind => Outcome::Failure(FailureKind::ALL[kind - 4]),
                };
                let ending = Ending { outcome, status: Some(status), latency_us: Some(latency_us), evidence };
                expected.record(&ending);
                recorder.record(3, Side::New, &ending);
            }
            reader.read();
            let found = reader.slot(3).map(|slot| slot.totals.new.clone()).unwrap_or_default();
            prop_assert_eq!(found, expected);
        }
    }
}
