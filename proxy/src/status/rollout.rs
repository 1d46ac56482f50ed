//! The status of one rollout, as the API reports it.

use std::collections::BTreeMap;
use std::time::Duration;

use cutover_core::control::maintenance::{MaintenanceWindow, lasting};
use cutover_core::control::rollout::RECENT;
use cutover_core::guard::{millis, share};
use cutover_core::{Maintenance, Percent, Span};
use serde::{Deserialize, Serialize};

use super::{LatchStatus, TickStatus};
use crate::clock;

/// The status of one rollout.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// The ID of the rollout.
    pub id: String,
    /// The whole status in one sentence.
    pub sentence: String,
    /// The share that the file requests, in percent.
    pub desired_percent: f64,
    /// The share in force, in percent.
    pub effective_percent: f64,
    /// `holding` or `rolled_back`.
    pub phase: String,
    /// Whether both sides are bad at once, so that raises are frozen.
    #[serde(default)]
    pub shared_cause: bool,
    /// Whether new is worse and legacy does not answer, so that no user is moved and raises are
    /// frozen.
    #[serde(default)]
    pub no_refuge: bool,
    /// Whether users are on new although the rollout is rolled back, because legacy does not
    /// answer.
    #[serde(default)]
    pub spilled: bool,
    /// The maintenance in force for the rollout: its own or that of all traffic, whichever is
    /// stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// The number of held requests of the rollout.
    #[serde(default)]
    pub held_requests: u64,
    /// The generation of the rollout in the file.
    pub generation: u64,
    /// The reason why the rollout is latched at 0 %; `None` if it is not latched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latch: Option<LatchStatus>,
    /// The totals since the start. `cutover simulate --replay` uses the differences between the
    /// totals that `cutover status --watch --json` wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<TickStatus>,
    /// The outcome of requests that failed on new and could be answered by legacy, since the
    /// start.
    #[serde(default)]
    pub failovers: FailoverStatus,
    /// The last minute of legacy.
    pub legacy: SideStatus,
    /// The last minute of new.
    pub new: SideStatus,
    /// The number of requests since the start that were not compared, by the reason of their
    /// decision. All other requests are from users that were placed by the hash or by chance.
    #[serde(default)]
    pub not_compared: BTreeMap<String, u64>,
    /// The status of the guard.
    pub guard: GuardStatus,
}

/// The outcome of requests that failed on new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverStatus {
    /// The number of requests that legacy answered.
    pub saved: u64,
    /// The number of requests that legacy also failed.
    pub failed: u64,
    /// The number of requests without a failover because the budget of the last ten seconds was
    /// used up.
    pub denied: u64,
}

/// A maintenance window: its mode, start, author and reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// `read-only`, `hold` or `full`.
    pub mode: String,
    /// `rollout`, or `all` for all traffic.
    pub scope: String,
    /// The start of the window, in RFC 3339.
    pub since: String,
    /// The time at which the window ends automatically, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// The number of seconds until the window ends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remaining_seconds: Option<u64>,
    /// Who started the window.
    pub actor: String,
    /// The reason for the window.
    pub reason: String,
}

impl MaintenanceStatus {
    /// Builds the status of a maintenance window. `remaining` is the time until it expires.
    pub fn new(
        window: &MaintenanceWindow,
        of_everything: bool,
        remaining: Option<Duration>,
    ) -> Self {
        Self {
            mode: window.mode.name().to_owned(),
            scope: if of_everything { "all" } else { "rollout" }.to_owned(),
            since: clock::rfc3339(window.since),
            until: window.until.map(clock::rfc3339),
            remaining_seconds: remaining
                .map(|remaining| remaining.as_millis().div_ceil(1_000) as u64),
            actor: window.actor.name.clone(),
            reason: window.reason.clone(),
        }
    }

    /// Returns the whole status in one sentence; `held` is the number of held requests.
    pub fn sentence(&self, held: u64) -> String {
        let ends = self.remaining_seconds.map_or_else(String::new, |seconds| {
            format!(", {} left", lasting(Duration::from_secs(seconds)))
        });
        let of_everything = if self.scope == "all" {
            " for all rollouts"
        } else {
            ""
        };
        let parked = match held {
            // The held requests belong to another window that is still a hold, or to one that has
            // just ended.
            _ if self.mode != Maintenance::Hold.name() => String::new(),
            0 => String::new(),
            1 => "; 1 request is parked".to_owned(),
            held => format!("; {held} requests are parked"),
        };
        format!(
            "maintenance {}{of_everything} since {}{ends}, by {}: {}{parked}",
            self.mode, self.since, self.actor, self.reason
        )
    }
}

/// The last minute of one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SideStatus {
    /// The number of requests that count as evidence.
    pub requests: u64,
    /// The number of requests by which the sides are compared. Their users were placed by the hash
    /// or by chance.
    #[serde(default)]
    pub compared: u64,
    /// Requests per second.
    pub rps: f64,
    /// The number of failures.
    pub failed: u64,
    /// Failures per request, `0..=1`; `null` without requests.
    pub error_rate: Option<f64>,
    /// The number of 4xx answers.
    pub client_errors: u64,
    /// The number of requests whose client gave up.
    pub aborts: u64,
    /// The median latency to the response header, in milliseconds.
    pub p50_ms: Option<f64>,
    /// The p95 latency to the response header, in milliseconds.
    pub p95_ms: Option<f64>,
    /// The p99 latency to the response header, in milliseconds.
    pub p99_ms: Option<f64>,
    /// The number of requests in flight.
    pub in_flight: u64,
}

impl SideStatus {
    /// Builds the status of the last minute of one side, from all counted requests and from the
    /// compared ones.
    pub fn new(span: &Span, compared: &Span, in_flight: u64) -> Self {
        let counts = &span.counts;
        let seconds = span.covers.as_secs_f64().min(RECENT.as_secs_f64());
        let quantiles = span.latencies.quantiles(&[0.5, 0.95, 0.99]);
        let quantile = |at: usize| quantiles.as_ref().map(|values| values[at] as f64 / 1e3);
        Self {
            requests: counts.requests,
            compared: compared.counts.requests,
            rps: if seconds > 0.0 {
                (counts.requests as f64 / seconds * 10.0).round() / 10.0
            } else {
                0.0
            },
            failed: counts.failed(),
            error_rate: (counts.requests > 0)
                .then(|| counts.failed() as f64 / counts.requests as f64),
            client_errors: counts.client_errors,
            aborts: counts.aborts,
            p50_ms: quantile(0),
            p95_ms: quantile(1),
            p99_ms: quantile(2),
            in_flight,
        }
    }

    /// Formats failures for people.
    pub fn errors(&self) -> String {
        share(self.failed, self.requests)
    }

    /// Formats a latency for people.
    pub fn latency(value_ms: Option<f64>) -> String {
        value_ms.map_or_else(|| "-".to_owned(), |ms| millis((ms * 1e3).round() as u64))
    }
}

/// The status of the guard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// `sequential`, `threshold` or `off`.
    pub mode: String,
    /// Whether the guard only reports.
    pub dry_run: bool,
    /// The status of each rule.
    pub rules: Vec<RuleStatus>,
}

/// The status of one rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleStatus {
    /// The name of the rule.
    pub rule: String,
    /// `pass`, `breach`, `inconclusive`, `shared_cause`, `held` or `no_refuge`.
    pub verdict: String,
    /// The numbers behind the verdict, in a sentence.
    pub sentence: String,
    /// The decimal logarithm of the evidence that new is worse, for rules that gather evidence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence_log10: Option<f64>,
    /// The fraction of the evidence that a rollback needs, `0..=1` on the scale of logarithms. It
    /// is 0 while nothing is wrong, and after a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence_ratio: Option<f64>,
    /// The fraction of the evidence with users as trials, for rules that need enough different
    /// users.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub users_ratio: Option<f64>,
}

/// Converts a percentage to a number. It has at most three decimals, so the shortest form of the
/// float is exact.
pub fn percent(percent: Percent) -> f64 {
    f64::from(percent.thousandths()) / 1e3
}
