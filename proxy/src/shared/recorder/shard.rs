//! The counters of one thread for one rollout and side.

use super::maintenance::Halted;
use super::reader::{Slot, SlotTotals};
use cutover_core::stats::histogram::{COUNTERS, OCTAVE, OCTAVES, index_of};
use cutover_core::stats::outcome::{CODE_CLASSES, code_class};
use cutover_core::stats::users::BLOCKS;
use cutover_core::stats::window::{COARSE, CoarseLatencies, Counts, Totals, Trials};
use cutover_core::{Class, Counted, Ending, FailureKind, Outcome, Reason, Side};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A counter of a shard. A new one is a variant here and a line in [`Counter::index`]; the reader
/// adds up all of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    /// Requests that have finished.
    Finished,
    /// Requests that have started.
    Started,
    /// Decisions by their reason.
    Reason(Reason),
    /// Requests that maintenance refused or held. They belong to no side: the shard of legacy
    /// counts them.
    Halted(Halted),
    /// Answers by the class of their status.
    CodeClass(usize),
    /// Failures by their kind.
    Failure(FailureKind),
    /// Bad events that count, by their class.
    Counted(usize),
    /// Users seen for the first time in a tick.
    Appearances,
    /// 4xx answers.
    ClientErrors,
    /// Clients that gave up.
    Aborts,
    /// Requests that count as evidence.
    Requests,
    /// The sum of the latencies in microseconds.
    LatencySumUs,
}

impl Counter {
    /// How many counters there are.
    pub(super) const COUNT: usize = Self::LatencySumUs.index() + 1;

    /// Returns the place of a counter in a shard. The reader goes through them in this order, which
    /// matters twice. A request between two reads must count as in flight and not as minus one, so
    /// `Finished` comes before `Started`. And it must never be in `Failure` but not in `Requests`,
    /// so the parts come before the whole.
    pub(super) const fn index(self) -> usize {
        const REASONS: usize = 2;
        const HALTED: usize = REASONS + Reason::COUNT;
        const CODE_CLASS: usize = HALTED + Halted::COUNT;
        const FAILURES: usize = CODE_CLASS + CODE_CLASSES.len();
        const COUNTED: usize = FAILURES + FailureKind::COUNT;
        const LAST: usize = COUNTED + Class::COUNT;
        match self {
            Self::Finished => 0,
            Self::Started => 1,
            Self::Reason(reason) => REASONS + reason.index(),
            Self::Halted(halted) => HALTED + halted.index(),
            Self::CodeClass(class) => CODE_CLASS + class,
            Self::Failure(kind) => FAILURES + kind.index(),
            Self::Counted(class) => COUNTED + class,
            Self::Appearances => LAST,
            Self::ClientErrors => LAST + 1,
            Self::Aborts => LAST + 2,
            Self::Requests => LAST + 3,
            Self::LatencySumUs => LAST + 4,
        }
    }
}

/// The counts of one thread for one side of one rollout.
#[derive(Debug)]
pub(super) struct Shard {
    /// By [`Counter::index`].
    pub(super) counters: [AtomicU64; Counter::COUNT],
    pub(super) trials: SharedTrials,
    pub(super) of_users: [AtomicU32; COARSE],
    pub(super) octaves: [AtomicU32; OCTAVES],
    pub(super) latencies: Box<[AtomicU32]>,
    /// The number of waits begun, by tick and place. The counters wrap, but their difference does
    /// not.
    pub(super) waits_begun: Box<[AtomicU16]>,
    pub(super) waits_ended: Box<[AtomicU16]>,
}

/// The counts of [`Trials`], which one thread writes.
#[derive(Debug, Default)]
pub(super) struct SharedTrials {
    pub(super) served: [AtomicU32; BLOCKS],
    pub(super) first_bad: [[AtomicU32; BLOCKS]; Class::COUNT],
    pub(super) affected: [[AtomicU32; BLOCKS]; Class::COUNT],
    /// The number of additions.
    pub(super) changes: AtomicU32,
}

impl SharedTrials {
    /// Counts a request. The meaning is that of [`Trials::record`].
    #[cold]
    pub(super) fn record(&self, counted: Counted) {
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

    /// Returns what was added since the last read, if anything.
    pub(super) fn news(&self, seen: &mut SeenTrials) -> Option<Trials> {
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

/// The values of [`SharedTrials`] at the last read.
#[derive(Debug, Default)]
pub(super) struct SeenTrials {
    pub(super) served: [u32; BLOCKS],
    pub(super) first_bad: [[u32; BLOCKS]; Class::COUNT],
    pub(super) affected: [[u32; BLOCKS]; Class::COUNT],
    pub(super) changes: u32,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; Counter::COUNT],
            trials: SharedTrials::default(),
            of_users: [const { AtomicU32::new(0) }; COARSE],
            octaves: Default::default(),
            latencies: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(),
            waits_begun: (0..WAIT_CELLS).map(|_| AtomicU16::new(0)).collect(),
            waits_ended: (0..WAIT_CELLS).map(|_| AtomicU16::new(0)).collect(),
        }
    }
}

impl Shard {
    /// Adds to the counter at an index of [`Counter`]. Only the thread that owns the shard may call
    /// this. Callers compute the index, or most of it, at compile time.
    pub(super) fn bump(&self, index: usize, by: u64) {
        bump(&self.counters[index], by);
    }
}

impl Shard {
    /// Counts a request. The meaning is that of [`Totals::record`], and a test compares the two.
    pub(super) fn record(&self, ending: &Ending, counted: Counted) {
        self.bump(
            const { Counter::CodeClass(0).index() } + code_class(ending.status),
            1,
        );
        if !ending.evidence.counts() {
            return;
        }
        if counted.is_appearance() {
            self.bump(const { Counter::Appearances.index() }, 1);
        }
        if counted.is_of_users() {
            self.trials.record(counted);
        }
        if counted.is_bad_anywhere() {
            counted
                .indexes()
                .for_each(|class| self.bump(const { Counter::Counted(0).index() } + class, 1));
        }
        match ending.outcome {
            Outcome::Success => {}
            Outcome::ClientError => self.bump(const { Counter::ClientErrors.index() }, 1),
            Outcome::Failure(kind) => self.bump(Counter::Failure(kind).index(), 1),
            Outcome::Aborted => return self.bump(const { Counter::Aborts.index() }, 1),
            Outcome::Ignored => return,
        }
        self.bump(const { Counter::Requests.index() }, 1);
        if let Some(latency_us) = ending.latency_us {
            let index = index_of(latency_us);
            self.bump(const { Counter::LatencySumUs.index() }, latency_us);
            if counted.is_appearance() {
                bump32(&self.of_users[CoarseLatencies::index_of(index)]);
            }
            bump32(&self.latencies[index]);
            bump32(&self.octaves[index / OCTAVE]);
        }
    }
}

impl Shard {
    /// Returns whether requests were counted that the reader has not seen.
    pub(super) fn differs(&self, seen: &Seen) -> bool {
        self.counters
            .iter()
            .zip(&seen.counters)
            .any(|(counter, seen)| counter.load(Ordering::Relaxed) != *seen)
    }
}

/// Adds `by` to a counter. Only the one thread that writes this counter may call it.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// Adds one to a counter. Only the one thread that writes this counter may call it.
pub(super) fn bump32(counter: &AtomicU32) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// Adds one to a counter. Only the one thread that writes this counter may call it.
pub(super) fn bump16(counter: &AtomicU16) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

pub(super) fn add_latencies(shard: &Shard, seen: &mut Seen, sums: &mut [Option<&mut Totals>]) {
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

pub(super) fn add_news(
    shard: &Shard,
    seen: &mut Seen,
    slot: &mut Slot,
    (side, is_compared): (Side, bool),
    with_latencies: bool,
) {
    let new: [u64; Counter::COUNT] = std::array::from_fn(|index| {
        if index == Counter::LatencySumUs.index() && !with_latencies {
            return 0;
        }
        news(&shard.counters[index], &mut seen.counters[index])
    });
    let new = |counter: Counter| new[counter.index()];
    slot.finished[side] += new(Counter::Finished);
    slot.started[side] += new(Counter::Started);
    for reason in Reason::ALL {
        slot.sum.reasons[reason.index()] += new(Counter::Reason(reason));
    }
    for halted in Halted::ALL {
        slot.sum.halted[halted.index()] += new(Counter::Halted(halted));
    }
    let counts = Counts {
        failures: FailureKind::ALL.map(|kind| new(Counter::Failure(kind))),
        counted: std::array::from_fn(|class| new(Counter::Counted(class))),
        appearances: new(Counter::Appearances),
        client_errors: new(Counter::ClientErrors),
        aborts: new(Counter::Aborts),
        requests: new(Counter::Requests),
        latency_sum_us: new(Counter::LatencySumUs),
    };
    let SlotTotals {
        totals, compared, ..
    } = &mut slot.sum;
    let mut sums: [Option<&mut Totals>; 2] = [
        Some(&mut totals[side]),
        is_compared.then(|| &mut compared[side]),
    ];
    if with_latencies {
        add_latencies(shard, seen, &mut sums);
        if let Some(trials) = shard.trials.news(&mut seen.trials) {
            sums.iter_mut()
                .flatten()
                .for_each(|sum| sum.trials.add(&trials));
        }
    }
    for sum in sums.into_iter().flatten() {
        sum.counts.add(&counts);
        for (class, sum) in sum.code_classes.iter_mut().enumerate() {
            *sum += new(Counter::CodeClass(class));
        }
    }
}

pub(super) fn news(counter: &AtomicU64, seen: &mut u64) -> u64 {
    let count = counter.load(Ordering::Relaxed);
    count.wrapping_sub(std::mem::replace(seen, count))
}

/// The values of one shard at the last read.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) counters: [u64; Counter::COUNT],
    pub(super) trials: SeenTrials,
    pub(super) of_users: [u32; COARSE],
    pub(super) octaves: [u32; OCTAVES],
    pub(super) latencies: Box<[u32]>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            counters: [0; Counter::COUNT],
            trials: SeenTrials::default(),
            of_users: [0; COARSE],
            octaves: Default::default(),
            latencies: vec![0; COUNTERS].into_boxed_slice(),
        }
    }
}

/// The number of ticks that the ring of waiting requests holds. A request that waits longer is
/// mistaken for one of the current round. Therefore a hang has to be detected within a minute at
/// the latest.
pub const WAIT_TICKS: usize = 256;

/// The number of places by which waiting requests are distinguished.
pub(super) const PLACES: usize = 16;

pub(super) const WAIT_CELLS: usize = WAIT_TICKS * PLACES;
