//! The findings of the judge.

use crate::guard::Rule;
use crate::side::PerSide;
use crate::stats::window::Span;
use crate::time::Mono;

/// The result of an evaluation, other than "no action".
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// New is worse.
    Worse(Case),
    /// New is bad, and so is legacy.
    Shared(Case),
    /// Both sides are still bad.
    StillShared,
    /// The evidence is strong, but it is based on too few users.
    TooFewUsers(Case),
}

/// A rule and its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The rule.
    pub rule: Rule,
    /// A sentence for people that contains the numbers.
    pub sentence: String,
    /// The numbers of both sides.
    pub numbers: PerSide<TripNumbers>,
    /// The time since which the evidence has grown, if legacy's earlier rate is known: legacy has
    /// changed since then. `None` otherwise.
    pub legacy_changed_since: Option<Mono>,
}

/// The counts of one side that forced a trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TripNumbers {
    /// The number of requests that count.
    pub requests: u64,
    /// The number of failures among the requests.
    pub failed: u64,
    /// The number of 4xx answers among the requests.
    pub client_errors: u64,
    /// The number of requests that the client aborted.
    pub aborts: u64,
    /// The p95 latency in microseconds. `None` if it is unknown.
    pub p95_us: Option<u64>,
}

impl TripNumbers {
    pub(crate) fn of(span: &Span) -> Self {
        let counts = &span.counts;
        Self {
            requests: counts.requests,
            failed: counts.failed(),
            client_errors: counts.client_errors,
            aborts: counts.aborts,
            p95_us: span.latencies.quantile(0.95),
        }
    }
}
