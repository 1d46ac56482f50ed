//! The progress of a run and its tally, shared by all workers.

use crate::differential::report::{Kind, Tally};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The marker of a worker that plays no case.
const IDLE: u64 = u64::MAX;

/// The progress of the run.
#[derive(Debug)]
pub struct Course {
    next: AtomicU64,
    end: u64,
    tally: Mutex<Tally>,
    playing: Vec<AtomicU64>,
}

impl Course {
    /// Creates the progress of a run over these cases with the given number of workers. No case has
    /// been played yet.
    pub fn new(cases: Range<u64>, workers: usize) -> Self {
        Self {
            next: AtomicU64::new(cases.start),
            end: cases.end,
            tally: Mutex::default(),
            playing: (0..workers).map(|_| AtomicU64::new(IDLE)).collect(),
        }
    }

    /// Returns the next case for a worker that has finished its previous one.
    pub fn take(&self, worker: usize) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let taken = (number < self.end).then_some(number);
        if let Some(playing) = self.playing.get(worker) {
            playing.store(taken.unwrap_or(IDLE), Ordering::Relaxed);
        }
        taken
    }

    /// Returns the cases that are being played.
    pub fn playing(&self) -> Vec<u64> {
        self.playing
            .iter()
            .map(|case| case.load(Ordering::Relaxed))
            .filter(|&case| case != IDLE)
            .collect()
    }

    /// Stops the run from starting further cases.
    pub fn stop(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }

    /// Returns the tally.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a progress line for the waiting user.
    pub fn progress(&self, took: Duration) -> String {
        let tally = self.tally();
        let count = |kinds: &BTreeMap<_, Kind>| kinds.values().map(|kind| kind.cases).sum::<u64>();
        let rate = tally.cases as f64 / took.as_secs_f64().max(0.001);
        format!(
            "{} cases, {rate:.0} per second, {} unexplained, {} unrepeated",
            tally.cases,
            count(&tally.unexplained),
            count(&tally.unrepeated)
        )
    }
}
