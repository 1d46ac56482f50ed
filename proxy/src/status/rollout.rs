//! How one rollout stands, as the API tells of it.

use std::collections::BTreeMap;
use std::time::Duration;

use cutover_core::control::maintenance::{MaintenanceWindow, lasting};
use cutover_core::control::rollout::RECENT;
use cutover_core::guard::{millis, share};
use cutover_core::{Maintenance, Percent, Span};
use serde::{Deserialize, Serialize};

use super::{LatchStatus, TickStatus};
use crate::clock;

/// How one rollout stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// Its id.
    pub id: String,
    /// All of it in one sentence.
    pub sentence: String,
    /// The share the file asks for, in percent.
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
    /// Whether users are on new although it is rolled back, because legacy does not answer.
    #[serde(default)]
    pub spilled: bool,
    /// The maintenance in force for it: its own or that of everything, the stricter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// Its parked requests.
    #[serde(default)]
    pub held_requests: u64,
    /// Of the file.
    pub generation: u64,
    /// Why it is latched at 0 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latch: Option<LatchStatus>,
    /// Everything since the start: for `cutover simulate --replay`, which takes the differences of
    /// what `cutover status --watch --json` wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<TickStatus>,
    /// What became of requests that failed on new and that legacy could answer, since the start.
    #[serde(default)]
    pub failovers: FailoverStatus,
    /// The last minute of both sides.
    pub legacy: SideStatus,
    /// The last minute of both sides.
    pub new: SideStatus,
    /// Requests that were not compared since the start, by the reason of their decision: the
    /// others are users whom the hash or chance placed.
    #[serde(default)]
    pub not_compared: BTreeMap<String, u64>,
    /// The guard.
    pub guard: GuardStatus,
}

/// Requests that failed on new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverStatus {
    /// Legacy answered them.
    pub saved: u64,
    /// Legacy failed, too.
    pub failed: u64,
    /// Too many others were saved in the ten seconds before.
    pub denied: u64,
}

/// What is kept out, since when, by whom and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// `read-only`, `hold` or `full`.
    pub mode: String,
    /// `rollout`, or `all` for everything.
    pub scope: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// When it ends by itself, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// The time until then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remaining_seconds: Option<u64>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl MaintenanceStatus {
    /// Mirrors a maintenance window. `remaining` is the time until it expires.
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

    /// All of it in one sentence; `held` requests are parked.
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
            // Of another window that is still a hold, or of one just gone.
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
    /// Requests that count as evidence.
    pub requests: u64,
    /// Those of them by which the sides are compared: of users whom the hash or chance placed.
    #[serde(default)]
    pub compared: u64,
    /// Requests per second.
    pub rps: f64,
    /// Failures.
    pub failed: u64,
    /// Failures per request, `0..=1`; `null` without requests.
    pub error_rate: Option<f64>,
    /// 4xx answers.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// Latency to the response header in milliseconds.
    pub p50_ms: Option<f64>,
    /// Latency to the response header in milliseconds.
    pub p95_ms: Option<f64>,
    /// Latency to the response header in milliseconds.
    pub p99_ms: Option<f64>,
    /// Requests that have started and not finished.
    pub in_flight: u64,
}

impl SideStatus {
    /// Mirrors the last minute of one side: all counted requests, and the compared ones.
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

    /// Failures as people write them.
    pub fn errors(&self) -> String {
        share(self.failed, self.requests)
    }

    /// A latency as people write it.
    pub fn latency(value_ms: Option<f64>) -> String {
        value_ms.map_or_else(|| "-".to_owned(), |ms| millis((ms * 1e3).round() as u64))
    }
}

/// What the guard says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// `sequential`, `threshold` or `off`.
    pub mode: String,
    /// Whether it only reports.
    pub dry_run: bool,
    /// Each rule.
    pub rules: Vec<RuleStatus>,
}

/// What one rule says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its name.
    pub rule: String,
    /// `pass`, `breach`, `inconclusive`, `shared_cause`, `held` or `no_refuge`.
    pub verdict: String,
    /// The numbers behind it.
    pub sentence: String,
    /// The decimal logarithm of the evidence that new is worse, of rules that gather evidence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence_log10: Option<f64>,
    /// The part of the evidence that a rollback needs, `0..=1` on the scale of logarithms; 0 while
    /// nothing is wrong, and after a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence_ratio: Option<f64>,
    /// The same of users as trials, of rules that need enough different users.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub users_ratio: Option<f64>,
}

/// A percentage as a number: at most three decimals, so the shortest form of the float is exact.
pub fn percent(percent: Percent) -> f64 {
    f64::from(percent.thousandths()) / 1e3
}
