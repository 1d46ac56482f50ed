//! What the judge finds.

use crate::guard::Rule;
use crate::side::PerSide;
use crate::stats::window::Span;
use crate::time::Mono;

/// What a look finds, beyond "carry on".
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// New is worse.
    Worse(Case),
    /// New is bad, and legacy is, too.
    Shared(Case),
    /// The same as before.
    StillShared,
    /// The evidence is strong, but it is that of too few.
    Held(Case),
}

/// A rule and what it has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The rule.
    pub rule: Rule,
    /// Its numbers, as a person says them.
    pub sentence: String,
    /// Its numbers.
    pub numbers: PerSide<TripNumbers>,
    /// Since when its evidence has grown, if it is known how legacy fared before: then legacy has
    /// changed since.
    pub legacy_changed_since: Option<Mono>,
}

/// The counts of one side that forced a trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TripNumbers {
    /// Requests that count.
    pub requests: u64,
    /// Failures among them.
    pub failed: u64,
    /// 4xx answers among them.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// p95 latency in microseconds.
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
