//! A run over time in steps of equal width, for charts.

use crate::driver::Record;
use crate::report::quantiles::{Quantiles, Times};
use crate::users::Side;
use serde::Serialize;
use std::time::Duration;

/// The most steps of a timeline. The width is chosen to match.
const MOST_STEPS: u128 = 120;
/// The round widths of a step, in milliseconds.
const WIDTHS_MS: [u64; 12] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
];

/// A run over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// The width of a step, in milliseconds.
    pub width_ms: u64,
    /// The steps, from the start of the run.
    pub steps: Vec<Step>,
}

/// The results of the requests with an intended start in one step.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Step {
    /// The start of the step, in milliseconds.
    pub at_ms: u64,
    /// The number of answers that named legacy.
    pub legacy: u64,
    /// The number of answers that named new.
    pub new: u64,
    /// The number of requests without a side.
    pub unnamed: u64,
    /// The number of failed requests among all of them.
    pub failed: u64,
    /// The latency from the intended start.
    pub latency: Quantiles,
}

impl Timeline {
    /// Creates the timeline of these records over the time of the intended starts.
    pub fn of(records: &[Record], duration: Duration) -> Self {
        let width_ms = WIDTHS_MS
            .into_iter()
            .find(|width| duration.as_millis() / u128::from(*width) <= MOST_STEPS)
            .unwrap_or(WIDTHS_MS[WIDTHS_MS.len() - 1]);
        let width = width_ms * 1_000_000;
        let mut by_step: Vec<Vec<&Record>> = Vec::new();
        for record in records {
            let at = usize::try_from(record.intended / width).unwrap_or(usize::MAX);
            if at >= by_step.len() {
                by_step.resize(at + 1, Vec::new());
            }
            by_step[at].push(record);
        }
        let steps = by_step
            .iter()
            .zip(0_u64..)
            .map(|(records, number)| Step::of(records, number * width_ms))
            .collect();
        Self { width_ms, steps }
    }
}

impl Step {
    fn of(records: &[&Record], at_ms: u64) -> Self {
        let count = |matches: &dyn Fn(&Record) -> bool| {
            records.iter().filter(|record| matches(record)).count() as u64
        };
        Self {
            at_ms,
            legacy: count(&|record| record.outcome.side() == Some(Side::Legacy)),
            new: count(&|record| record.outcome.side() == Some(Side::New)),
            unnamed: count(&|record| record.outcome.side().is_none()),
            failed: count(&|record| record.outcome.is_failure()),
            latency: Times::of(records.iter().filter_map(|record| record.latency())).quantiles(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Timeline;
    use crate::driver::{Outcome, Record, TransportFailure};
    use crate::users::Side;
    use http::StatusCode;
    use std::time::Duration;

    #[test]
    fn requests_count_in_the_step_of_their_intended_start() {
        let record = |at_ms: u64, outcome| Record {
            user: 1,
            outcome,
            intended: at_ms * 1_000_000,
            released: 0,
            sent: None,
            finished: (at_ms + 3) * 1_000_000,
        };
        let answered = |side| Outcome::Answered {
            status: StatusCode::OK,
            side,
        };
        let records = [
            record(0, answered(Some(Side::New))),
            record(99, answered(Some(Side::Legacy))),
            record(100, answered(None)),
            record(350, Outcome::Failed(TransportFailure::Reset)),
        ];
        let timeline = Timeline::of(&records, Duration::from_secs(10));
        assert_eq!(timeline.width_ms, 100);
        let counts: Vec<_> = timeline
            .steps
            .iter()
            .map(|step| (step.at_ms, step.legacy, step.new, step.unnamed, step.failed))
            .collect();
        assert_eq!(
            counts,
            [
                (0, 1, 1, 0, 0),
                (100, 0, 0, 1, 0),
                (200, 0, 0, 0, 0),
                (300, 0, 0, 1, 1)
            ]
        );
        assert_eq!(timeline.steps[0].latency.count, 2);
        assert_eq!(Timeline::of(&[], Duration::from_secs(600)).width_ms, 5_000);
    }
}
