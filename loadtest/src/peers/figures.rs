//! Medians with their range. A mean would carry one disturbed round into the result, and these
//! machines are shared.

/// The median of some figures, and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median. For an even count it is the mean of the two middle figures.
    pub median: f64,
    /// The smallest figure.
    pub min: f64,
    /// The largest figure.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of these figures, or `None` if there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self {
            median: f64::midpoint(sorted[lower], sorted[upper]),
            min,
            max,
        })
    }

    /// Formats the median and, if the figures differ, the range with the given number of decimals.
    pub fn text(&self, decimals: usize) -> String {
        if self.min == self.max {
            return format!("{:.decimals$}", self.median);
        }
        format!(
            "{:.decimals$} ({:.decimals$}..{:.decimals$})",
            self.median, self.min, self.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
        assert_eq!(
            Spread::of([4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median),
            Some(2.5)
        );
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_spread_reads_as_median_and_range() {
        let spread = Spread {
            median: 1.25,
            min: 1.0,
            max: 2.0,
        };
        assert_eq!(
            (spread.text(2), spread.text(0)),
            ("1.25 (1.00..2.00)".to_owned(), "1 (1..2)".to_owned())
        );
        assert_eq!(
            Spread {
                median: 1.0,
                min: 1.0,
                max: 1.0
            }
            .text(1),
            "1.0"
        );
    }
}
