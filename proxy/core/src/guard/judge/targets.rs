//! The limits that the request path must watch, derived from what is known now. Also keeps legacy's
//! last minute for later comparisons.

use std::time::Duration;

use crate::guard::judge::ladder::LADDER;
use crate::guard::judge::rules::{Counter, slow_index};
use crate::guard::judge::{Judge, Recent, SLOWER_BY_US, affected};
use crate::guard::{LatencyPoint, Rule};
use crate::side::{PerSide, Side};
use crate::stats::users::{Class, NETWORK_USERS, NO_CAP, fair_share};
use crate::stats::window::Span;
use crate::time::Mono;

/// With fewer requests of legacy than this in a minute, that minute is not kept as a baseline.
const MIN_BASELINE: u64 = 1_000;
/// How often limits and shares are computed.
const AIM_EVERY: Duration = Duration::from_secs(1);

/// The last good minute of legacy.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    /// The counts of users who are compared.
    pub(super) span: Span,
    /// The steps of the ladder.
    pub(super) limits: [Option<u64>; LADDER.len()],
}

impl Baseline {
    /// Returns the rate of counted bad events per appearance that new may have by this baseline:
    /// legacy's rate, three standard errors up, multiplied by what the rule tolerates.
    pub(super) fn limit(&self, rule: Rule, source: Counter) -> f64 {
        let (Counter::Bad(class) | Counter::Values(class)) = source else {
            return 0.5;
        };
        let counts = &self.span.counts;
        let events = counts.counted[class.index()] as f64;
        let upper =
            (events + 2.0 + 3.0 * (events + 1.0).sqrt()) / (counts.appearances as f64).max(1.0);
        let tolerated = match rule {
            Rule::ErrorsVsLegacy(ratio)
            | Rule::ClientErrorsVsLegacy(ratio)
            | Rule::AbortsVsLegacy(ratio)
            | Rule::RedirectsVsLegacy(ratio) => ratio.factor(),
            _ => 1.0,
        };
        (tolerated * upper).min(0.9)
    }
}

impl Judge {
    /// Computes the limits and shares for the request path from what is known now.
    pub(super) fn set_tracker_limits(&mut self, recent: &Recent<'_>, now: Mono) {
        self.tracker_limits.blocks = self.blocks.begun();
        if self.aimed_at.is_some_and(|at| now.since(at) < AIM_EVERY) {
            return;
        }
        self.aimed_at = Some(now);
        self.mean_bound = self.ladder.mean_bound();
        let legacy = recent.compared.legacy;
        if legacy.counts.requests >= MIN_BASELINE && !self.alone {
            self.baseline = Some(Baseline {
                span: legacy.clone(),
                limits: self.ladder.limits(&legacy.latencies),
            });
        }
        let limits = match &self.baseline {
            Some(baseline) if self.alone => baseline.limits,
            _ => self.ladder.limits(&legacy.latencies),
        };
        self.tracker_limits.slow = PerSide::from_fn(|_| [u64::MAX; crate::stats::users::LIMITS]);
        for rule in &self.settings.rules {
            match *rule {
                Rule::LatencyVsLegacy(ratio) => {
                    for (step, limit_us) in limits
                        .into_iter()
                        .enumerate()
                        .filter_map(|(step, limit)| Some((step, limit?)))
                    {
                        self.tracker_limits.slow.legacy[step] = limit_us;
                        self.tracker_limits.slow.new[step] = ((limit_us as f64 * ratio.factor())
                            as u64)
                            .max(limit_us + SLOWER_BY_US);
                    }
                }
                Rule::Latency(point, limit_us) => {
                    for side in Side::BOTH {
                        self.tracker_limits.slow[side][usize::from(slow_index(point))] = limit_us;
                    }
                }
                _ => {}
            }
        }
        let requests = self
            .requests
            .back()
            .map_or(0, |(_, last)| last - self.requests[0].1) as f64;
        let (counts, base) = (&legacy.counts, (legacy.counts.requests as f64).max(1.0));
        let many_networks = affected::are_many(self.population.networks_60s);
        let share = |rate: f64| {
            let of_network = if many_networks {
                fair_share(rate, requests, self.population.networks_10s, NETWORK_USERS)
            } else {
                NO_CAP
            };
            (
                fair_share(rate, requests, self.population.users_10s, 1),
                of_network,
            )
        };
        let shares = &mut self.tracker_limits.shares;
        shares[Class::Failure.index()] = share(
            self.settings
                .hang_limit()
                .max(counts.failed() as f64 / base),
        );
        shares[Class::ClientError.index()] = share((counts.client_errors as f64 / base).max(0.01));
        shares[Class::Abort.index()] = share((counts.aborts as f64 / base).max(0.01));
        shares[Class::Redirects.index()] = share(0.01);
        for (step, slower) in LADDER.into_iter().enumerate() {
            shares[Class::Slow(step as u8).index()] = share(slower);
        }
        for point in [
            LatencyPoint::P50,
            LatencyPoint::P95,
            LatencyPoint::P99,
            LatencyPoint::Mean,
        ] {
            shares[Class::Slow(slow_index(point)).index()] = share(point.slower_share());
        }
    }
}
