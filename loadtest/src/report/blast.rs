//! The blast radius of a breakdown: how many answers and which users it hit, and for how long.
//!
//! Without a step that broke something, only the answers tell when the trouble began. With such a
//! step, the time to zero is measured by when requests were *sent*: a request that fails later was
//! sent earlier.

use crate::driver::Record;
use crate::report::milliseconds;
use crate::users::Side;
use serde::Serialize;

/// The duration of the trouble, in milliseconds since the start of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlastRadius {
    /// The time of the first failed answer.
    pub first_failure_ms: f64,
    /// The time of the last failed answer.
    pub last_failure_ms: f64,
    /// The time of the last answer served by new. `None` if there was none.
    pub last_new_ms: Option<f64>,
    /// The time from the first failed answer to the last answer served by new. It is 0 if new
    /// served no later answer.
    pub duration_ms: f64,
    /// What followed a step that broke something. `None` if there was no such step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_fault: Option<SinceFault>,
}

/// What followed a step that broke something.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SinceFault {
    /// The time of the fault.
    pub fault_ms: f64,
    /// The number of requests that failed after the fault.
    pub bad_answers: u64,
    /// The number of distinct users with such a request.
    pub users_hurt: u64,
    /// The time from the fault to the last request, by sending time, that new answered or that
    /// failed.
    pub time_to_zero_ms: f64,
    /// The number of requests sent after the last one that new answered or that failed. If it is
    /// 0, the trouble did not end within the run.
    pub requests_after: u64,
}

/// Measures the blast radius from records sorted by user. Returns `None` if nothing failed and
/// nothing was broken.
pub(super) fn blast_radius(records: &[Record], fault: Option<u64>) -> Option<BlastRadius> {
    let failures = || records.iter().filter(|record| record.outcome.is_failure());
    let since_fault = fault.map(|fault| since_fault(records, fault));
    let first_failure = failures().map(|record| record.finished).min().or(fault)?;
    let last_failure = failures().map(|record| record.finished).max().or(fault)?;
    let last_new = records
        .iter()
        .filter(|record| record.outcome.side() == Some(Side::New))
        .map(|record| record.finished)
        .max();
    Some(BlastRadius {
        first_failure_ms: milliseconds(first_failure),
        last_failure_ms: milliseconds(last_failure),
        last_new_ms: last_new.map(milliseconds),
        duration_ms: milliseconds(last_new.unwrap_or(0).saturating_sub(first_failure)),
        since_fault,
    })
}

fn since_fault(records: &[Record], fault: u64) -> SinceFault {
    let sent = |record: &Record| record.sent.unwrap_or(record.released);
    let after = || records.iter().filter(|record| record.finished >= fault);
    let bad = || after().filter(|record| record.outcome.is_failure());
    let mut hurt: Vec<u32> = bad().map(|record| record.user).collect();
    // The records are sorted by user.
    hurt.dedup();
    let last = after()
        .filter(|record| record.outcome.is_failure() || record.outcome.side() == Some(Side::New))
        .map(sent)
        .max()
        .unwrap_or(fault)
        .max(fault);
    SinceFault {
        fault_ms: milliseconds(fault),
        bad_answers: bad().count() as u64,
        users_hurt: hurt.len() as u64,
        time_to_zero_ms: milliseconds(last - fault),
        requests_after: records.iter().filter(|record| sent(record) > last).count() as u64,
    }
}
