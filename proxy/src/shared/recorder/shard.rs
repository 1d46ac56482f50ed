//! The counters of one thread for one rollout and side.

use super::maintenance::Halted;
use super::reader::{Slot, SlotTotals};
use cutover_core::stats::histogram::{COUNTERS, OCTAVE, OCTAVES, index_of};
use cutover_core::stats::outcome::{CODE_CLASSES, code_class};
use cutover_core::stats::users::BLOCKS;
use cutover_core::stats::window::{COARSE, CoarseLatencies, Counts, Totals, Trials};
use cutover_core::{Class, Counted, Ending, FailureKind, Outcome, Reason, Side};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The counts of one thread for one side of one rollout.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) started: AtomicU64,
    pub(super) finished: AtomicU64,
    pub(super) reasons: [AtomicU64; Reason::COUNT],
    /// Of no side: counted in the shard of legacy.
    pub(super) halted: [AtomicU64; Halted::COUNT],
    pub(super) code_classes: [AtomicU64; CODE_CLASSES.len()],
    pub(super) requests: AtomicU64,
    pub(super) failures: [AtomicU64; FailureKind::COUNT],
    pub(super) client_errors: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) appearances: AtomicU64,
    pub(super) counted: [AtomicU64; Class::COUNT],
    pub(super) trials: SharedTrials,
    pub(super) latency_sum_us: AtomicU64,
    pub(super) of_users: [AtomicU32; COARSE],
    pub(super) octaves: [AtomicU32; OCTAVES],
    pub(super) latencies: Box<[AtomicU32]>,
    /// By tick and place. They wrap; their difference does not.
    pub(super) waits_begun: Box<[AtomicU16]>,
    pub(super) waits_ended: Box<[AtomicU16]>,
}

/// The counts of [`Trials`], written by one thread.
#[derive(Debug, Default)]
pub(super) struct SharedTrials {
    pub(super) served: [AtomicU32; BLOCKS],
    pub(super) first_bad: [[AtomicU32; BLOCKS]; Class::COUNT],
    pub(super) affected: [[AtomicU32; BLOCKS]; Class::COUNT],
    /// How often anything was added.
    pub(super) changes: AtomicU32,
}

impl SharedTrials {
    /// The meaning is that of [`Trials::record`].
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

    /// What has come since it was read last, if anything.
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

/// What was last seen of [`SharedTrials`].
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
    pub(super) fn record(&self, ending: &Ending, counted: Counted) {
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

impl Shard {
    /// Whether requests were counted that the reader has not seen.
    pub(super) fn differs(&self, seen: &Seen) -> bool {
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

/// Adds on the only thread that writes this counter.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// Adds one on the only thread that writes this counter.
pub(super) fn bump32(counter: &AtomicU32) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// Adds one on the only thread that writes this counter.
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

pub(super) fn news(counter: &AtomicU64, seen: &mut u64) -> u64 {
    let count = counter.load(Ordering::Relaxed);
    count.wrapping_sub(std::mem::replace(seen, count))
}

/// What was last seen of one shard.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) started: u64,
    pub(super) finished: u64,
    pub(super) reasons: [u64; Reason::COUNT],
    pub(super) halted: [u64; Halted::COUNT],
    pub(super) code_classes: [u64; CODE_CLASSES.len()],
    pub(super) requests: u64,
    pub(super) failures: [u64; FailureKind::COUNT],
    pub(super) client_errors: u64,
    pub(super) aborts: u64,
    pub(super) appearances: u64,
    pub(super) counted: [u64; Class::COUNT],
    pub(super) trials: SeenTrials,
    pub(super) latency_sum_us: u64,
    pub(super) of_users: [u32; COARSE],
    pub(super) octaves: [u32; OCTAVES],
    pub(super) latencies: Box<[u32]>,
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

/// How many ticks the ring of waiting requests holds. One that waits longer is taken for one of the
/// present round, which is why a hang is noticed at a minute at the latest.
pub const WAIT_TICKS: usize = 256;

/// Into how many places waiting requests are told apart.
pub(super) const PLACES: usize = 16;

pub(super) const WAIT_CELLS: usize = WAIT_TICKS * PLACES;
