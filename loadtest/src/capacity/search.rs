//! The choice of the next rate. It is a pure sequence, so it can be tested without a target.

/// How often the first rate is halved when it is too high.
const HALVINGS: u32 = 5;
/// The highest number of steps after doubling. A moving limit must not keep the search running.
const BISECTIONS: u32 = 8;

/// A search that doubles the rate, then halves the gap between what passed and what failed.
#[derive(Debug, Clone)]
pub(super) struct Search {
    start: f64,
    most: f64,
    precision: f64,
    passed: Option<f64>,
    failed: Option<f64>,
    halvings: u32,
    bisections: u32,
}

impl Search {
    pub(super) fn new(start: f64, most: f64, precision: f64) -> Self {
        Self {
            start: start.max(1.0),
            most,
            precision: precision.max(0.01),
            passed: None,
            failed: None,
            halvings: 0,
            bisections: 0,
        }
    }

    /// Returns the next rate, or `None` once the result is precise enough.
    pub(super) fn next(&self) -> Option<f64> {
        match (self.passed, self.failed) {
            (None, None) => Some(self.start),
            (Some(passed), None) => (passed < self.most).then_some((passed * 2.0).min(self.most)),
            (None, Some(failed)) => {
                (self.halvings <= HALVINGS && failed >= 2.0).then_some(failed / 2.0)
            }
            (Some(passed), Some(failed)) => (failed > passed * (1.0 + self.precision)
                && self.bisections < BISECTIONS)
                .then_some((passed + failed) / 2.0),
        }
    }

    /// Records whether a rate passed.
    pub(super) fn found(&mut self, rate: f64, passed: bool) {
        match (self.passed, self.failed) {
            (Some(_), Some(_)) => self.bisections += 1,
            (None, _) => self.halvings += 1,
            (Some(_), None) => {}
        }
        if passed {
            self.passed = Some(rate);
        } else {
            self.failed = Some(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Search;

    fn knee(limit: f64, start: f64, most: f64) -> (Vec<f64>, Option<f64>) {
        let mut search = Search::new(start, most, 0.1);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            search.found(rate, rate <= limit);
            tried.push(rate);
        }
        (tried, search.passed)
    }

    #[test]
    fn rates_double_until_one_fails_and_then_bisect() {
        let (tried, knee) = knee(3_000.0, 500.0, 1e6);
        assert_eq!(tried[..4], [500.0, 1_000.0, 2_000.0, 4_000.0]);
        assert!(
            (2_700.0..=3_000.0).contains(&knee.expect("a knee")),
            "{knee:?}"
        );
    }

    #[test]
    fn a_first_rate_that_is_too_high_is_halved() {
        let (tried, knee) = knee(100.0, 500.0, 1e6);
        assert_eq!(tried[..4], [500.0, 250.0, 125.0, 62.5]);
        assert!((90.0..=100.0).contains(&knee.expect("a knee")), "{knee:?}");
    }

    #[test]
    fn the_search_ends_when_every_rate_fails_or_every_rate_passes() {
        let (tried, none) = knee(0.0, 500.0, 1e6);
        assert_eq!((tried.len(), none), (6, None));
        let (tried, most) = knee(1e9, 500.0, 3_000.0);
        assert_eq!(
            (tried, most),
            (vec![500.0, 1_000.0, 2_000.0, 3_000.0], Some(3_000.0))
        );
    }
}
