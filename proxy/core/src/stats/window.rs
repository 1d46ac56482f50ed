//! Windows of counts: cumulative totals, and spans as differences of two snapshots.
//!
//! The data path only ever adds to cumulative counts. Every statement about "the last 30 s" is a
//! difference. Counts are never reset, so the guard, the page and Prometheus read the same numbers
//! and cannot disagree. A [`Window`] keeps the differences of its ticks in a sparse form and their
//! running sum. Its memory use is therefore proportional to the number of events and not to its
//! length.

use std::collections::VecDeque;
use std::time::Duration;

use crate::stats::histogram::{COUNTERS, Latencies, index_of, lowest_of};
use crate::stats::outcome::{CODE_CLASSES, Ending, FailureKind, Outcome, code_class};
use crate::stats::users::{BLOCKS, Class, Counted};
use crate::time::Mono;

/// All counts of one side since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The number of answers by status class, evidence or not, in the order of [`CODE_CLASSES`].
    pub code_classes: [u64; CODE_CLASSES.len()],
    /// The counts that rules use.
    pub counts: Counts,
    /// The latencies of evidence, up to the response header.
    pub latencies: Latencies,
    /// The users as trials.
    pub trials: Trials,
    /// The latencies of users who appear in a tick, one of each, in a coarser form. Means are
    /// compared with them.
    pub of_users: CoarseLatencies,
}

/// The number of counters of [`CoarseLatencies`].
pub const COARSE: usize = COUNTERS / COARSE_STEP;
/// The number of counters of [`Latencies`] that form one counter here. Each is an eighth of an
/// octave wide.
const COARSE_STEP: usize = 16;

/// Latencies in counters an eighth of an octave wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoarseLatencies(pub [u64; COARSE]);

impl Default for CoarseLatencies {
    fn default() -> Self {
        Self([0; COARSE])
    }
}

impl CoarseLatencies {
    /// Returns the counter for a counter of [`Latencies`].
    pub const fn index_of(index: usize) -> usize {
        index / COARSE_STEP
    }

    /// Returns the difference between earlier counts and these: the lowest latency of each counter
    /// in microseconds, and its number of entries.
    pub fn since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = (u64, u64)> + Clone + 'a {
        let news = self
            .0
            .iter()
            .zip(&earlier.0)
            .enumerate()
            .map(|(index, (now, before))| {
                (lowest_of(index * COARSE_STEP), now.saturating_sub(*before))
            });
        news.filter(|(_, count)| *count > 0)
    }
}

/// Users as trials, each at most once in a block. Blocks of several lengths run side by side, and
/// the shortest is listed first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trials {
    /// The number of users whose first answer in the block has been received.
    pub served: [u64; BLOCKS],
    /// The number of these users whose first answer was bad, by [`Class::index`].
    pub first_bad: [[u64; BLOCKS]; Class::COUNT],
    /// The number of users with their first bad event in the block, by [`Class::index`].
    pub affected: [[u64; BLOCKS]; Class::COUNT],
}

impl Trials {
    /// Returns the difference between earlier trials and these.
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }

    /// Adds the trials of another source.
    pub fn add(&mut self, other: &Self) {
        *self = self.zip(other, |mine, theirs| mine + theirs);
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let blocks = |mine: &[u64; BLOCKS], theirs: &[u64; BLOCKS]| {
            std::array::from_fn(|block| op(mine[block], theirs[block]))
        };
        Self {
            served: blocks(&self.served, &other.served),
            first_bad: std::array::from_fn(|class| {
                blocks(&self.first_bad[class], &other.first_bad[class])
            }),
            affected: std::array::from_fn(|class| {
                blocks(&self.affected[class], &other.affected[class])
            }),
        }
    }

    /// Adds the counts of one ended request.
    pub fn record(&mut self, counted: Counted) {
        let bump = |counts: &mut [u64; BLOCKS], blocks: usize| {
            counts.iter_mut().take(blocks).for_each(|count| *count += 1);
        };
        bump(&mut self.served, counted.first_in());
        for class in counted.bad_indexes() {
            bump(&mut self.first_bad[class], counted.first_in());
            bump(&mut self.affected[class], counted.affected_in(class));
        }
    }
}

/// The scalar counts of evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of requests that show something about the backend: successes, client errors and
    /// failures.
    pub requests: u64,
    /// The number of failures by [`FailureKind::index`].
    pub failures: [u64; FailureKind::COUNT],
    /// The number of 4xx answers.
    pub client_errors: u64,
    /// The number of requests that the client aborted. They are not among `requests`.
    pub aborts: u64,
    /// The number of users seen for the first time in a tick, which counted bad events are
    /// compared with.
    pub appearances: u64,
    /// The number of bad events as far as they count: at most a fixed number of each user and
    /// network. Indexed by [`Class::index`].
    pub counted: [u64; Class::COUNT],
    /// The sum of the latencies in microseconds, for the mean.
    pub latency_sum_us: u64,
}

impl Counts {
    /// Returns the number of failures of all kinds.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Returns the number of users who received a good answer, and of users who received a failure
    /// or gave up. Each counts at most four times a second.
    pub fn users_fared(&self) -> (u64, u64) {
        let bad = self.counted[Class::Failure.index()] + self.counted[Class::Abort.index()];
        (
            self.appearances
                .min(self.requests.saturating_sub(self.failed())),
            bad,
        )
    }

    /// Returns the difference between earlier counts and these.
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }

    /// Adds the counts of another source.
    pub fn add(&mut self, other: &Self) {
        *self = self.zip(other, |mine, theirs| mine + theirs);
    }

    fn zip(mut self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        self.requests = op(self.requests, other.requests);
        for (mine, theirs) in self.failures.iter_mut().zip(other.failures) {
            *mine = op(*mine, theirs);
        }
        for (mine, theirs) in self.counted.iter_mut().zip(other.counted) {
            *mine = op(*mine, theirs);
        }
        self.client_errors = op(self.client_errors, other.client_errors);
        self.appearances = op(self.appearances, other.appearances);
        self.aborts = op(self.aborts, other.aborts);
        self.latency_sum_us = op(self.latency_sum_us, other.latency_sum_us);
        self
    }
}

impl Totals {
    /// Adds one ended request that counts in these classes of bad events. The recorder does the
    /// same with atomics, and this function defines the meaning.
    pub fn record(&mut self, ending: &Ending, counted: Counted) {
        self.code_classes[code_class(ending.status)] += 1;
        if !ending.evidence.counts() {
            return;
        }
        self.counts.appearances += u64::from(counted.is_appearance());
        self.trials.record(counted);
        for class in counted.indexes() {
            self.counts.counted[class] += 1;
        }
        match ending.outcome {
            Outcome::Success => self.counts.requests += 1,
            Outcome::ClientError => {
                self.counts.requests += 1;
                self.counts.client_errors += 1;
            }
            Outcome::Failure(kind) => {
                self.counts.requests += 1;
                self.counts.failures[kind.index()] += 1;
            }
            Outcome::Aborted => {
                self.counts.aborts += 1;
                return;
            }
            Outcome::Ignored => return,
        }
        if let Some(latency_us) = ending.latency_us {
            self.latencies.record(latency_us);
            if counted.is_appearance() {
                self.of_users.0[CoarseLatencies::index_of(index_of(latency_us))] += 1;
            }
            self.counts.latency_sum_us += latency_us;
        }
    }
}

/// The events between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The difference of the scalar counts.
    pub counts: Counts,
    /// The difference of the latencies.
    pub latencies: Latencies,
    /// The period that the span covers.
    pub covers: Duration,
}

impl Span {
    /// Returns the mean latency in microseconds; `None` without samples.
    pub fn mean_us(&self) -> Option<u64> {
        self.counts
            .latency_sum_us
            .checked_div(self.latencies.total())
    }
}

/// The last `length` of one side, with the resolution of a tick. An outcome leaves at the first
/// tick at which its own tick is `length` ago.
///
/// The first tick only defines where counting begins: earlier totals are not part of the window.
#[derive(Clone, Debug)]
pub struct Window {
    length: Duration,
    seen: Option<Seen>,
    ticks: VecDeque<Tick>,
    sum: Span,
}

/// The last snapshot, and its time.
#[derive(Clone, Debug)]
struct Seen {
    at: Mono,
    totals: Totals,
}

#[derive(Clone, Debug)]
struct Tick {
    start: Mono,
    end: Mono,
    counts: Counts,
    latencies: Box<[(u16, u64)]>,
}

impl Window {
    /// Creates an empty window, which begins with its first tick.
    pub fn new(length: Duration) -> Self {
        Self {
            length,
            seen: None,
            ticks: VecDeque::new(),
            sum: Span::default(),
        }
    }

    /// Creates a window that begins now, for totals that are all zero now.
    pub fn from_nothing(length: Duration, now: Mono) -> Self {
        Self {
            seen: Some(Seen {
                at: now,
                totals: Totals::default(),
            }),
            ..Self::new(length)
        }
    }

    /// Returns the full length of the window.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Changes the length. A shorter window discards older counts at the next tick.
    pub fn set_length(&mut self, length: Duration) {
        self.length = length;
    }

    /// Discards everything. The next tick begins the window again.
    pub fn restart(&mut self) {
        *self = Self::new(self.length);
    }

    /// Records the cumulative totals at `now`. A late call is one longer tick.
    pub fn tick(&mut self, now: Mono, totals: &Totals) {
        let Some(seen) = &mut self.seen else {
            self.seen = Some(Seen {
                at: now,
                totals: totals.clone(),
            });
            return;
        };
        let counts = totals.counts.since(&seen.totals.counts);
        let mut latencies = Vec::new();
        if totals.latencies.total() != seen.totals.latencies.total() {
            for (index, (&count, &before)) in totals
                .latencies
                .counts()
                .iter()
                .zip(seen.totals.latencies.counts())
                .enumerate()
            {
                if count > before {
                    latencies.push((index as u16, count - before));
                }
            }
        }
        for &(index, count) in &latencies {
            seen.totals.latencies.add(usize::from(index), count);
            self.sum.latencies.add(usize::from(index), count);
        }
        seen.totals.counts = totals.counts;
        let start = std::mem::replace(&mut seen.at, now);
        self.sum.counts = self.sum.counts.zip(&counts, |sum, tick| sum + tick);
        self.ticks.push_back(Tick {
            start,
            end: now,
            counts,
            latencies: latencies.into_boxed_slice(),
        });
        self.forget(now);
        self.sum.covers = self
            .ticks
            .front()
            .map_or(Duration::ZERO, |tick| now.since(tick.start));
    }

    /// Returns the latencies of the last tick, as pairs of a counter and its number of entries.
    pub fn last_latencies(&self) -> &[(u16, u64)] {
        self.ticks.back().map_or(&[], |tick| &tick.latencies)
    }

    /// Returns the counts of the last tick.
    pub fn last_counts(&self) -> Counts {
        self.ticks
            .back()
            .map_or_else(Counts::default, |tick| tick.counts)
    }

    /// Returns the counts since the last tick.
    pub fn since_last(&self, totals: &Totals) -> Counts {
        self.seen.as_ref().map_or_else(Counts::default, |seen| {
            totals.counts.zip(&seen.totals.counts, u64::saturating_sub)
        })
    }

    /// Returns the counts in the window up to the last tick.
    pub fn span(&self) -> &Span {
        &self.sum
    }

    fn forget(&mut self, now: Mono) {
        while let Some(tick) = self
            .ticks
            .pop_front_if(|tick| now.since(tick.end) >= self.length)
        {
            self.sum.counts = self.sum.counts.zip(&tick.counts, |sum, gone| sum - gone);
            for &(index, count) in &tick.latencies {
                self.sum.latencies.subtract(usize::from(index), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(outcome: Outcome, latency_us: u64) -> Ending {
        Ending {
            outcome,
            status: Some(200),
            latency_us: Some(latency_us),
            evidence: crate::stats::outcome::Evidence::Compared,
        }
    }

    fn at(seconds: u64) -> Mono {
        Mono::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_window_holds_exactly_the_outcomes_of_its_length() {
        let mut totals = Totals::default();
        let mut window = Window::new(Duration::from_secs(10));
        window.tick(at(0), &totals);
        for second in 1..=30 {
            totals.record(
                &ending(
                    if second % 2 == 0 {
                        Outcome::Success
                    } else {
                        Outcome::Failure(FailureKind::Status)
                    },
                    second * 1_000,
                ),
                Counted::default(),
            );
            window.tick(at(second), &totals);
            let expected = second.min(10);
            assert_eq!(window.span().counts.requests, expected);
            assert_eq!(window.span().latencies.total(), expected);
            assert_eq!(window.span().covers, Duration::from_secs(expected));
        }
        assert_eq!(window.span().counts.failed(), 5);
        assert_eq!(window.span().mean_us(), Some(25_500));
    }

    #[test]
    fn events_before_a_window_begins_are_not_in_it() {
        let mut totals = Totals::default();
        let mut window = Window::new(Duration::from_secs(10));
        totals.record(
            &ending(Outcome::Failure(FailureKind::Reset), 10),
            Counted::default(),
        );
        window.tick(at(0), &totals);
        totals.record(
            &ending(Outcome::Failure(FailureKind::Reset), 10),
            Counted::default(),
        );
        window.tick(at(1), &totals);
        assert_eq!(window.span().counts.failed(), 1);
        window.restart();
        window.tick(at(3), &totals);
        window.tick(at(4), &totals);
        assert_eq!(window.span().counts, Counts::default());
    }

    #[test]
    fn a_late_tick_is_one_longer_tick() {
        let mut totals = Totals::default();
        let mut window = Window::new(Duration::from_secs(10));
        window.tick(at(0), &totals);
        totals.record(&ending(Outcome::Success, 5), Counted::default());
        window.tick(at(1), &totals);
        totals.record(&ending(Outcome::Success, 5), Counted::default());
        window.tick(at(60), &totals);
        assert_eq!(window.span().counts.requests, 1);
        assert_eq!(window.span().covers, Duration::from_secs(59));
    }

    #[test]
    fn a_request_that_is_no_evidence_counts_only_in_the_answers() {
        let mut totals = Totals::default();
        totals.record(
            &Ending {
                outcome: Outcome::Failure(FailureKind::Status),
                status: Some(500),
                latency_us: Some(1),
                evidence: crate::stats::outcome::Evidence::None,
            },
            Counted::default(),
        );
        totals.record(
            &Ending {
                outcome: Outcome::Ignored,
                status: Some(400),
                latency_us: None,
                evidence: crate::stats::outcome::Evidence::Compared,
            },
            Counted::default(),
        );
        totals.record(
            &Ending {
                outcome: Outcome::Aborted,
                status: None,
                latency_us: Some(7),
                evidence: crate::stats::outcome::Evidence::Compared,
            },
            Counted::default(),
        );
        assert_eq!(totals.code_classes, [1, 0, 0, 0, 1, 1]);
        assert_eq!(
            totals.counts,
            Counts {
                aborts: 1,
                ..Counts::default()
            }
        );
        assert_eq!(totals.latencies.total(), 0);
    }
}
