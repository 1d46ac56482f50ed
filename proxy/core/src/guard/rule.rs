//! The rules of the guard.

use super::wording::{millis, millis_or_none, share};
use crate::percent::{Rate, Ratio};
use crate::side::PerSide;
use crate::stats::window::Span;

/// A point of the latency distribution that a limit may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyPoint {
    /// The median: half of the requests are slower.
    P50,
    /// The 95th percentile.
    P95,
    /// The 99th percentile.
    P99,
    /// The arithmetic mean.
    Mean,
}

impl LatencyPoint {
    /// Returns the name used in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::Mean => "mean",
        }
    }

    /// Returns the share of requests that may be slower, in parts per million; `None` for the mean.
    pub(super) const fn slower_ppm(self) -> Option<u64> {
        match self {
            Self::P50 => Some(500_000),
            Self::P95 => Some(50_000),
            Self::P99 => Some(10_000),
            Self::Mean => None,
        }
    }

    /// Returns the share of requests that may be slower, as a fraction. It is a half for the mean,
    /// which has no such share.
    pub fn slower_share(self) -> f64 {
        self.slower_ppm().map_or(0.5, |ppm| ppm as f64 / 1e6)
    }

    /// Returns the value of this point in a span, in microseconds.
    pub fn of(self, span: &Span) -> Option<u64> {
        match self.slower_ppm() {
            None => span.mean_us(),
            Some(slower_ppm) => span.latencies.quantile(1.0 - slower_ppm as f64 / 1e6),
        }
    }
}

/// The point at which the sides' latencies are compared. It is high enough to show a slow tail, and
/// low enough to have samples.
pub const COMPARED_POINT: LatencyPoint = LatencyPoint::P95;

/// The minimum number of events on new for a comparison of counts. With fewer, a single deliberate
/// request would decide while legacy happens to have none.
pub const MIN_COMPARED_EVENTS: u64 = 10;

/// One condition under which new counts as worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// More than this share of requests failed.
    ErrorsMax(Rate),
    /// The failure rate is more than this many times legacy's.
    ErrorsVsLegacy(Ratio),
    /// A point of the latency is above this many microseconds.
    Latency(LatencyPoint, u64),
    /// The p95 latency is more than this many times legacy's.
    LatencyVsLegacy(Ratio),
    /// The rate of 4xx answers is more than this many times legacy's.
    ClientErrorsVsLegacy(Ratio),
    /// The rate of requests that the client aborted is more than this many times legacy's.
    AbortsVsLegacy(Ratio),
    /// The rate of users who receive only redirects is more than this many times legacy's.
    RedirectsVsLegacy(Ratio),
    /// Too many requests have waited longer than this many microseconds for an answer, and are
    /// still waiting.
    Hang(u64),
    /// No server has been available for this many microseconds.
    Health(u64),
    /// This many requests failed in a row, without a success in between.
    Dead(u32),
}

/// The reaction when both sides are bad at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SharedCause {
    /// Raises are frozen and people are notified. Users are not moved, unless the percentage was
    /// raised in the last ten minutes.
    #[default]
    Hold,
    /// New is rolled back nevertheless.
    Rollback,
}

impl SharedCause {
    /// Returns the name used in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Rollback => "rollback",
        }
    }
}

impl Rule {
    /// All names that a rule can have, except `manual` and `state`.
    pub const NAMES: [&'static str; 13] = [
        "errors_max",
        "errors_vs_legacy",
        "latency_p50",
        "latency_p95",
        "latency_p99",
        "latency_mean",
        "latency_vs_legacy",
        "client_errors_vs_legacy",
        "aborts_vs_legacy",
        "redirects_vs_legacy",
        "hang",
        "health",
        "dead",
    ];

    /// Returns the name used in metrics, records and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ErrorsMax(_) => "errors_max",
            Self::ErrorsVsLegacy(_) => "errors_vs_legacy",
            Self::Latency(LatencyPoint::P50, _) => "latency_p50",
            Self::Latency(LatencyPoint::P95, _) => "latency_p95",
            Self::Latency(LatencyPoint::P99, _) => "latency_p99",
            Self::Latency(LatencyPoint::Mean, _) => "latency_mean",
            Self::LatencyVsLegacy(_) => "latency_vs_legacy",
            Self::ClientErrorsVsLegacy(_) => "client_errors_vs_legacy",
            Self::AbortsVsLegacy(_) => "aborts_vs_legacy",
            Self::RedirectsVsLegacy(_) => "redirects_vs_legacy",
            Self::Hang(_) => "hang",
            Self::Health(_) => "health",
            Self::Dead(_) => "dead",
        }
    }

    /// Whether the rule evaluates the present state, or events that no window counts. Such a rule
    /// works alike in all modes except `off`.
    pub const fn is_immediate(self) -> bool {
        matches!(
            self,
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_)
        )
    }

    pub(super) const fn needs_legacy(self) -> bool {
        match self {
            Self::ErrorsMax(_)
            | Self::Latency(..)
            | Self::Hang(_)
            | Self::Health(_)
            | Self::Dead(_) => false,
            Self::ErrorsVsLegacy(_)
            | Self::LatencyVsLegacy(_)
            | Self::ClientErrorsVsLegacy(_)
            | Self::AbortsVsLegacy(_)
            | Self::RedirectsVsLegacy(_) => true,
        }
    }

    /// Returns how many times legacy's value is tolerated, for a rule that compares; otherwise 1.
    pub fn ratio(self) -> f64 {
        match self {
            Self::ErrorsVsLegacy(ratio)
            | Self::LatencyVsLegacy(ratio)
            | Self::ClientErrorsVsLegacy(ratio)
            | Self::AbortsVsLegacy(ratio)
            | Self::RedirectsVsLegacy(ratio) => ratio.factor(),
            Self::ErrorsMax(_)
            | Self::Latency(..)
            | Self::Hang(_)
            | Self::Health(_)
            | Self::Dead(_) => 1.0,
        }
    }

    /// Whether the rule compares new with legacy, rather than with a limit.
    pub const fn compares(self) -> bool {
        self.needs_legacy()
    }

    pub(super) fn is_breached_by(self, spans: PerSide<&Span>) -> bool {
        let (new, legacy) = (spans.new, spans.legacy);
        let (n, m) = (&new.counts, &legacy.counts);
        match self {
            Self::ErrorsMax(max) => max.is_exceeded_by(n.failed(), n.requests),
            Self::ErrorsVsLegacy(ratio) => {
                is_exceeded(ratio, (n.failed(), n.requests), (m.failed(), m.requests))
            }
            Self::ClientErrorsVsLegacy(ratio) => is_exceeded(
                ratio,
                (n.client_errors, n.requests),
                (m.client_errors, m.requests),
            ),
            // Aborted requests are not among `requests`, so the base is both together.
            Self::AbortsVsLegacy(ratio) => is_exceeded(
                ratio,
                (n.aborts, n.requests + n.aborts),
                (m.aborts, m.requests + m.aborts),
            ),
            Self::Latency(point, limit_us) => point_is_above(point, new, limit_us),
            Self::LatencyVsLegacy(ratio) => match COMPARED_POINT.of(legacy) {
                None => false,
                Some(legacy_us) => point_is_above(COMPARED_POINT, new, scaled(legacy_us, ratio)),
            },
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_) => false,
        }
    }

    /// Returns the numbers behind the verdict, as a text for people.
    pub(super) fn describe(self, spans: PerSide<&Span>) -> String {
        let (n, m) = (&spans.new.counts, &spans.legacy.counts);
        let rates =
            |what: &str, new_events, new_total, legacy_events, legacy_total, limit: String| {
                format!(
                    "new {what} {new_events} of {new_total} requests ({}){limit}; legacy \
                     {legacy_events} of {legacy_total} ({})",
                    share(new_events, new_total),
                    share(legacy_events, legacy_total)
                )
            };
        match self {
            Self::ErrorsMax(max) => rates(
                "failed",
                n.failed(),
                n.requests,
                m.failed(),
                m.requests,
                format!(", limit {max}"),
            ),
            Self::ErrorsVsLegacy(ratio) => rates(
                "failed",
                n.failed(),
                n.requests,
                m.failed(),
                m.requests,
                format!(", limit {ratio} times legacy"),
            ),
            Self::ClientErrorsVsLegacy(ratio) => rates(
                "answered 4xx to",
                n.client_errors,
                n.requests,
                m.client_errors,
                m.requests,
                format!(", limit {ratio} times legacy"),
            ),
            Self::AbortsVsLegacy(ratio) => rates(
                "was given up by the client in",
                n.aborts,
                n.requests + n.aborts,
                m.aborts,
                m.requests + m.aborts,
                format!(", limit {ratio} times legacy"),
            ),
            Self::Latency(point, limit_us) => format!(
                "new's {} is {} over {} requests, limit {}; legacy's {} is {}",
                point.name(),
                millis_or_none(point.of(spans.new)),
                spans.new.latencies.total(),
                millis(limit_us),
                point.name(),
                millis_or_none(point.of(spans.legacy))
            ),
            Self::LatencyVsLegacy(ratio) => format!(
                "new's {} is {} over {} requests, limit {ratio} times legacy's {} over {}",
                COMPARED_POINT.name(),
                millis_or_none(COMPARED_POINT.of(spans.new)),
                spans.new.latencies.total(),
                millis_or_none(COMPARED_POINT.of(spans.legacy)),
                spans.legacy.latencies.total()
            ),
            Self::Hang(_) | Self::Health(_) | Self::Dead(_) | Self::RedirectsVsLegacy(_) => {
                String::new()
            }
        }
    }
}

/// Whether new's events per request are more than `ratio` times legacy's. Legacy without an event
/// counts as if it had one, because its sample cannot show a smaller rate.
pub(super) fn is_exceeded(
    ratio: Ratio,
    (new_events, new_total): (u64, u64),
    (legacy_events, legacy_total): (u64, u64),
) -> bool {
    new_events >= MIN_COMPARED_EVENTS
        && ratio.is_exceeded_by(new_events, new_total, legacy_events.max(1), legacy_total)
}

pub(super) fn point_is_above(point: LatencyPoint, span: &Span, limit_us: u64) -> bool {
    match point.slower_ppm() {
        Some(slower_ppm) => {
            u128::from(span.latencies.above(limit_us)) * 1_000_000
                > u128::from(span.latencies.total()) * u128::from(slower_ppm)
        }
        // This is sum / n > limit, without the division.
        None => {
            u128::from(span.counts.latency_sum_us)
                > u128::from(limit_us) * u128::from(span.latencies.total())
        }
    }
}

pub(super) fn scaled(us: u64, ratio: Ratio) -> u64 {
    u64::try_from(u128::from(us) * u128::from(ratio.thousandths()) / 1000).unwrap_or(u64::MAX)
}
