//! The quantiles of times, and the percentile distribution that the HdrHistogram plotter reads.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt::Write;

/// The longest latency that is distinguished, in microseconds. Longer ones count as this one.
const LONGEST_MICROSECONDS: u64 = 600_000_000;
const NANOSECONDS_PER_MICROSECOND: u64 = 1_000;
/// The number of lines for each halving of the distance to 100 %, as the tools of HdrHistogram
/// write them.
const LINES_PER_HALF: u32 = 5;

/// The quantiles of a time in microseconds, with three significant digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The number of values.
    pub count: u64,
    /// The mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: u64,
    /// The 90th percentile.
    pub p90_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The 99.9th percentile.
    pub p999_us: u64,
    /// The largest value.
    pub max_us: u64,
}

/// A histogram of times in microseconds.
#[derive(Debug, Clone)]
pub struct Times(Option<Histogram<u64>>);

impl Times {
    /// Creates a histogram from times in nanoseconds.
    pub fn of(nanoseconds: impl Iterator<Item = u64>) -> Self {
        // Only impossible bounds are refused, and these bounds are constants.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_MICROSECONDS, 3).ok();
        if let Some(histogram) = &mut histogram {
            for value in nanoseconds {
                histogram.saturating_record(value / NANOSECONDS_PER_MICROSECOND);
            }
        }
        Self(histogram)
    }

    /// Returns the quantiles of the times.
    pub fn quantiles(&self) -> Quantiles {
        let Some(histogram) = &self.0 else {
            return Quantiles::default();
        };
        Quantiles {
            count: histogram.len(),
            mean_us: histogram.mean(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }

    /// Returns the points of the percentile curve: quantile and microseconds.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        let Some(histogram) = self.0.as_ref().filter(|histogram| !histogram.is_empty()) else {
            return Vec::new();
        };
        histogram
            .iter_quantiles(LINES_PER_HALF)
            .map(|point| (point.quantile_iterated_to(), point.value_iterated_to()))
            .collect()
    }

    /// Returns the percentile distribution in milliseconds, in the format of `.hgrm` files.
    pub fn hgrm(&self) -> String {
        let mut text = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        let Some(histogram) = &self.0 else {
            return text;
        };
        let mut total = 0;
        // Writing to a string does not fail.
        for point in histogram.iter_quantiles(LINES_PER_HALF) {
            total += point.count_since_last_iteration();
            let value = point.value_iterated_to() as f64 / 1e3;
            let quantile = point.quantile_iterated_to();
            let _ = if quantile < 1.0 {
                writeln!(
                    text,
                    "{value:12.3} {quantile:2.12} {total:10} {:14.2}",
                    1.0 / (1.0 - quantile)
                )
            } else {
                writeln!(text, "{value:12.3} {quantile:2.12} {total:10}")
            };
        }
        let _ = writeln!(
            text,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
            histogram.mean() / 1e3,
            histogram.stdev() / 1e3
        );
        let _ = writeln!(
            text,
            "#[Max     = {:12.3}, Total count    = {:12}]",
            histogram.max() as f64 / 1e3,
            histogram.len()
        );
        let _ = writeln!(
            text,
            "#[Buckets = {:12}, SubBuckets     = {:12}]",
            histogram.buckets(),
            2_048
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Times;

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn the_distribution_has_the_columns_and_the_footer_of_the_plotter() {
        let times = Times::of((1..=1_000).map(|n| n * MILLISECOND));
        let text = times.hgrm();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        assert_eq!(lines[1], "");
        let rows: Vec<Vec<f64>> = lines[2..]
            .iter()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace()
                    .map(|cell| cell.parse().expect("a number"))
                    .collect()
            })
            .collect();
        assert!(
            rows.iter()
                .all(|row| row.len() == 4 || (row.len() == 3 && row[1] == 1.0)),
            "{text}"
        );
        assert!(
            rows.is_sorted_by(|one, other| one[0] <= other[0]
                && one[1] <= other[1]
                && one[2] <= other[2]),
            "{text}"
        );
        assert_eq!(rows.last().expect("rows")[2], 1_000.0);
        let median = rows.iter().find(|row| row[1] >= 0.5).expect("a median");
        assert!((median[0] - 500.0).abs() < 1.0, "{median:?}");
        assert_eq!(
            lines[lines.len() - 3..]
                .iter()
                .filter(|line| line.starts_with("#["))
                .count(),
            3
        );
        assert!(
            lines[lines.len() - 2].contains("Total count    =         1000]"),
            "{text}"
        );
    }

    #[test]
    fn no_times_give_an_empty_distribution() {
        let times = Times::of(std::iter::empty());
        assert!(times.curve().is_empty());
        assert_eq!(times.quantiles().count, 0);
        assert!(times.hgrm().contains("Total count    =            0]"));
    }
}
