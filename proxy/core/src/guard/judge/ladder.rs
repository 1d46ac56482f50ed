//! The points of legacy's latency at which new is compared: the median, and the tail.

use std::collections::VecDeque;
use std::time::Duration;

use crate::stats::histogram::Latencies;
use crate::time::Mono;

/// The steps, as the share of legacy's requests that are slower.
pub(crate) const LADDER: [f64; 5] = [0.5, 0.1, 0.05, 0.01, 0.001];
/// The number of steps that are based on legacy's last minute. The others are based on its last ten
/// minutes.
const OF_A_MINUTE: usize = 3;
/// With fewer latencies of legacy than this in a minute, there is no step.
pub(crate) const MIN_LADDER: u64 = 200;
/// The number of slower requests of legacy that a step of the tail needs.
const MIN_SLOWER: f64 = 10.0;
/// The length of the parts in which latencies are kept. There are as many parts as make ten
/// minutes.
const PART: Duration = Duration::from_secs(60);
const PARTS: usize = 10;
/// A value above this many times legacy's p99 is counted as that limit, because the mean of
/// unbounded values can be anything.
const MEAN_BOUND: f64 = 10.0;

/// The latencies of legacy over the last ten minutes.
#[derive(Clone, Debug, Default)]
pub(super) struct Ladder {
    parts: VecDeque<Vec<(u16, u64)>>,
    running: Latencies,
    began: Option<Mono>,
    sum: Latencies,
}

impl Ladder {
    /// Records the latencies of one tick, as pairs of a counter and its number of entries.
    pub(super) fn tick(&mut self, latencies: &[(u16, u64)], now: Mono) {
        let began = *self.began.get_or_insert(now);
        for &(index, count) in latencies {
            self.running.add(usize::from(index), count);
            self.sum.add(usize::from(index), count);
        }
        if now.since(began) < PART {
            return;
        }
        self.began = Some(now);
        let part = std::mem::take(&mut self.running);
        self.parts.push_back(
            part.counts()
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
                .map(|(index, count)| (index as u16, *count))
                .collect(),
        );
        if self.parts.len() > PARTS - 1 {
            for (index, count) in self.parts.pop_front().unwrap_or_default() {
                self.sum.subtract(usize::from(index), count);
            }
        }
    }

    /// Returns the latency in microseconds at each step. It is `None` where legacy has too few
    /// requests for the step. `minute` is legacy's last minute.
    pub(super) fn limits(&self, minute: &Latencies) -> [Option<u64>; LADDER.len()] {
        let points = LADDER.map(|slower| 1.0 - slower);
        let of_minute = (minute.total() >= MIN_LADDER)
            .then(|| minute.quantiles(&points[..OF_A_MINUTE]))
            .flatten();
        let of_ten = self.sum.quantiles(&points[OF_A_MINUTE..]);
        std::array::from_fn(|step| match step.checked_sub(OF_A_MINUTE) {
            None => of_minute.as_ref().map(|limits| limits[step]),
            Some(at) => of_ten
                .as_ref()
                .filter(|_| self.sum.total() as f64 * LADDER[step] >= MIN_SLOWER)
                .map(|limits| limits[at]),
        })
    }

    /// Returns the latency in microseconds above which all values count alike in a mean; `None`
    /// while legacy has too few requests.
    pub(super) fn mean_bound(&self) -> Option<f64> {
        (self.sum.total() >= MIN_LADDER)
            .then(|| self.sum.quantile(0.99))
            .flatten()
            .map(|p99| (MEAN_BOUND * p99 as f64).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::histogram::index_of;

    #[test]
    fn the_tail_uses_ten_minutes_and_needs_enough_requests() {
        let second = |second: u64| Mono::from_micros(second * 1_000_000);
        let mut ladder = Ladder::default();
        let mut minute = Latencies::default();
        let tick = [(index_of(1_000) as u16, 19), (index_of(50_000) as u16, 1)];
        assert_eq!(ladder.limits(&minute), [None; 5]);
        for at in 0..=60 {
            ladder.tick(&tick, second(at));
            minute.add(usize::from(tick[0].0), 19);
            minute.add(usize::from(tick[1].0), 1);
        }
        let limits = ladder.limits(&minute);
        assert!(
            limits[0].is_some_and(|limit| limit < 1_100)
                && limits[3].is_some_and(|limit| limit > 49_000),
            "{limits:?}"
        );
        assert_eq!(limits[4], None, "1,220 latencies have no p99.9");
        (61..1_200).for_each(|at| ladder.tick(&tick, second(at)));
        assert!(ladder.limits(&minute)[4].is_some());
        assert!(
            ladder.sum.total() <= 20 * 600 + 20 && ladder.sum.total() >= 20 * 540,
            "{}",
            ladder.sum.total()
        );
        assert!(ladder.mean_bound().is_some_and(|bound| bound > 490_000.0));
        (1_200..2_400).for_each(|at| ladder.tick(&[], second(at)));
        assert_eq!((ladder.sum.total(), ladder.mean_bound()), (0, None));
    }
}
