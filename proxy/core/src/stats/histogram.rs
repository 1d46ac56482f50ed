//! Latency histograms in HDR buckets: 2 significant digits from 1 us to 60 s, 2,560 counters,
//! relative width at most 0.78 %.
//!
//! The index is the one of `hdrhistogram` with the same bounds. Atomics on the request path, sums
//! in the control plane and the library's quantiles therefore use the same buckets, and a test
//! compares the two. Three digits would cost seven times the memory without a benefit for any rule.
//!
//! Quantiles are for people. A limit is judged by [`Latencies::above`], a count of requests that
//! were certainly slower than the limit. The count is exact at the limit, where a quantile would be
//! off by the width of its bucket.

use hdrhistogram::Histogram;

/// The number of counters.
pub const COUNTERS: usize = 2_560;
/// The number of octaves (halves of HDR's buckets) of [`OCTAVE`] counters.
pub const OCTAVES: usize = COUNTERS / OCTAVE;
/// The number of counters in an octave.
pub const OCTAVE: usize = 128;
/// The largest latency that is distinguished, in microseconds. Slower ones are counted as this one.
pub const MAX_US: u64 = 60_000_000;

const SUB_BUCKET_BITS: u32 = 8;
const SUB_BUCKET_MASK: u64 = (1 << SUB_BUCKET_BITS) - 1;

/// Returns the counter for a latency in microseconds. Zero counts as one, and more than 60 s counts
/// as 60 s.
pub const fn index_of(latency_us: u64) -> usize {
    let value = if latency_us > MAX_US {
        MAX_US
    } else {
        latency_us
    };
    let bucket = (u64::BITS - SUB_BUCKET_BITS) - (value | SUB_BUCKET_MASK).leading_zeros();
    let sub_bucket = value >> bucket;
    (bucket as usize * OCTAVE) + sub_bucket as usize
}

/// Returns the smallest latency in microseconds that belongs to the counter `index`.
pub const fn lowest_of(index: usize) -> u64 {
    if index < 2 * OCTAVE {
        return index as u64;
    }
    let bucket = index / OCTAVE - 1;
    ((index - bucket * OCTAVE) as u64) << bucket
}

/// Counts of latencies. Sums and differences are computed bucket by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: vec![0; COUNTERS].into_boxed_slice(),
            total: 0,
        }
    }
}

impl Latencies {
    /// Adds one latency in microseconds.
    pub fn record(&mut self, latency_us: u64) {
        self.add(index_of(latency_us), 1);
    }

    /// Adds `count` latencies to the counter `index`, which is below [`COUNTERS`].
    pub fn add(&mut self, index: usize, count: u64) {
        self.counts[index] += count;
        self.total += count;
    }

    /// Removes `count` latencies that were added to the counter `index` before.
    pub fn subtract(&mut self, index: usize, count: u64) {
        debug_assert!(
            self.counts[index] >= count,
            "only what was added can be taken away"
        );
        self.counts[index] -= count;
        self.total -= count;
    }

    /// Returns the number of counted latencies.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the count of one counter.
    pub fn count(&self, index: usize) -> u64 {
        self.counts[index]
    }

    /// Returns all counters in order.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the number of latencies that are certainly above `limit_us`: those in counters that
    /// begin above it.
    pub fn above(&self, limit_us: u64) -> u64 {
        let first = index_of(limit_us) + 1;
        self.counts[first.min(COUNTERS)..].iter().sum()
    }

    /// Returns the latency in microseconds at `quantile` in `0.0..=1.0`, as read by `hdrhistogram`
    /// (the highest value of its counter); `None` without samples.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        self.quantiles(&[quantile]).map(|values| values[0])
    }

    /// Returns several quantiles at once; `None` without samples.
    pub fn quantiles(&self, quantiles: &[f64]) -> Option<Vec<u64>> {
        if self.total == 0 {
            return None;
        }
        let mut histogram = empty();
        for (index, &count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            // Values up to 60 s are in range by construction of `index_of`, so the library's bounds
            // drop nothing.
            histogram.saturating_record_n(lowest_of(index), count);
        }
        Some(
            quantiles
                .iter()
                .map(|&quantile| histogram.value_at_quantile(quantile))
                .collect(),
        )
    }
}

/// Returns an empty library histogram with the bounds of this module.
fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_US, 2).expect("1 us to 60 s with two digits are valid bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_equals_the_one_of_the_library() {
        let mut library = empty();
        assert_eq!(library.distinct_values(), COUNTERS);
        let mut value = 1u64;
        while value <= MAX_US {
            assert_eq!(
                lowest_of(index_of(value)),
                library.lowest_equivalent(value),
                "{value} us"
            );
            value += 1 + value / 97;
        }
        library.saturating_record(MAX_US);
        assert_eq!(index_of(MAX_US), index_of(u64::MAX));
        assert!(index_of(u64::MAX) < COUNTERS);
    }

    #[test]
    fn every_counter_begins_at_its_lowest_value() {
        for index in 1..=index_of(MAX_US) {
            assert_eq!(index_of(lowest_of(index)), index);
            assert_eq!(index_of(lowest_of(index) - 1), index - 1);
        }
    }

    #[test]
    fn a_latency_at_the_limit_is_not_above_it() {
        let mut latencies = Latencies::default();
        for latency_us in [799_999, 800_000, 800_000] {
            latencies.record(latency_us);
        }
        assert_eq!(latencies.above(800_000), 0);
        latencies.record(810_000);
        assert_eq!(latencies.above(800_000), 1);
        assert_eq!(latencies.total(), 4);
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut latencies = Latencies::default();
        for latency_us in 1..=10_000u64 {
            latencies.record(latency_us * 100);
        }
        for (quantile, exact) in [(0.5, 500_000.0), (0.95, 950_000.0), (0.99, 990_000.0)] {
            let found = latencies
                .quantile(quantile)
                .map(|us| us as f64)
                .unwrap_or_default();
            assert!(
                (found / exact - 1.0).abs() < 0.01,
                "p{quantile}: {found} against {exact}"
            );
        }
        assert_eq!(Latencies::default().quantile(0.5), None);
    }
}
