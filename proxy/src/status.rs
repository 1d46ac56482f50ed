//! What is, as data for people and programs: the shape of `GET /api/v1/rollouts` and of `cutover
//! status --json`. The edge's mirror of the core's types.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::control::maintenance::{Window, lasting};
use cutover_core::control::rollout::{Cause, RECENT, SideNumbers, TickNumbers, TripNumbers};
use cutover_core::guard::{Mode, millis, share};
use cutover_core::{
    Anonymous, ControlPlane, Maintenance, PerSide, Percent, Reason, Rollout, Span, Split, Trip,
    Wall,
};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::shared::published::Common;
use crate::shared::recorder::SlotTotals;

/// What the control loop hands out: the status, and the counts behind it for the metrics.
#[derive(Debug)]
pub struct Report {
    /// For people and programs.
    pub status: Status,
    /// Counts and latencies of each rollout, in the order of the status, and of requests that
    /// match none.
    pub measured: Vec<Measured>,
    /// Counts of requests that match no rollout.
    pub unmatched: SlotTotals,
    /// The file in force.
    pub common: Arc<Common>,
    /// Rollbacks since the start by rollout and label.
    pub rollbacks: Vec<(Arc<str>, String, u64)>,
}

/// The counts of one rollout.
#[derive(Debug)]
pub struct Measured {
    /// Since the start of the process.
    pub totals: SlotTotals,
    /// p50, p95 and p99 of the last minute in seconds.
    pub recent_quantiles: PerSide<Option<[f64; 3]>>,
}

/// How the whole process stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the split in force.
    pub revision: u64,
    /// The file.
    pub config: ConfigStatus,
    /// Whether the latches are on disk.
    pub latch_durable: bool,
    /// What people have to know about the journal: that it is not the file it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// The maintenance of everything, requests that match no rollout included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceStatus>,
    /// Parked requests of all rollouts, and of none.
    #[serde(default)]
    pub held_requests: u64,
    /// All rollouts in file order.
    pub rollouts: Vec<RolloutStatus>,
}

/// How the file stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its path.
    pub file: String,
    /// SHA-256 over everything that was read for the file in force.
    pub digest: String,
    /// Whether the file as it is now is the one in force.
    pub last_reload_successful: bool,
    /// When the file in force was read.
    pub last_success_at: String,
    /// What is wrong with the file as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<String>,
    /// Keys that changed in the file but need a restart.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub restart_needed: Vec<String>,
    /// Files that have changed and may still be being written: what was read before is in force.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waiting_for: Vec<String>,
}

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
    /// Whether new is worse and legacy does not answer, so that nobody is moved and raises are
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
    fn new(window: &Window, of_everything: bool, remaining: Option<Duration>) -> Self {
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

/// A latch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatchStatus {
    /// The generation that tripped.
    pub generation: u64,
    /// What happened.
    #[serde(flatten)]
    pub trip: TripStatus,
}

/// A trip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripStatus {
    /// When, RFC 3339.
    pub at: String,
    /// A rule's name, `manual` or `state`.
    pub cause: String,
    /// The share in force before, in percent.
    pub from_percent: f64,
    /// What happened, with its numbers.
    pub sentence: String,
    /// Who rolled back, if a person did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// Why, if a person did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The counts that forced it, if a rule did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub numbers: Option<NumbersBySide>,
    /// The minute before it, tick by tick, if a rule did. The status leaves it out; the journal
    /// and the saved state have it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<TickStatus>,
}

/// What both sides did in one tick of a quarter of a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TickStatus {
    /// When it ended, in milliseconds since 1970.
    pub at_ms: i64,
    /// Of legacy.
    pub legacy: TickSide,
    /// Of new.
    pub new: TickSide,
}

/// Requests, failures, failures as far as they counted, 4xx answers, clients that gave up, and the
/// sum of the latencies in microseconds.
pub type TickSide = [u64; 6];

fn tick_side(numbers: &SideNumbers) -> TickSide {
    let SideNumbers {
        requests,
        failed,
        counted,
        client_errors,
        aborts,
        latency_sum_us,
    } = *numbers;
    [
        requests,
        failed,
        counted,
        client_errors,
        aborts,
        latency_sum_us,
    ]
}

impl TickStatus {
    fn new(tick: &TickNumbers) -> Self {
        Self {
            at_ms: tick.at.as_millis(),
            legacy: tick_side(&tick.sides.legacy),
            new: tick_side(&tick.sides.new),
        }
    }

    /// Back to the core's type.
    pub fn restore(&self) -> TickNumbers {
        let side = |[
            requests,
            failed,
            counted,
            client_errors,
            aborts,
            latency_sum_us,
        ]: TickSide| SideNumbers {
            requests,
            failed,
            counted,
            client_errors,
            aborts,
            latency_sum_us,
        };
        TickNumbers {
            at: Wall::from_millis(self.at_ms),
            sides: PerSide {
                legacy: side(self.legacy),
                new: side(self.new),
            },
        }
    }
}

/// The counts of both sides over a rule's window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumbersBySide {
    /// Of legacy.
    pub legacy: Numbers,
    /// Of new.
    pub new: Numbers,
}

/// The counts of one side over a rule's window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
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

impl Numbers {
    fn new(numbers: &TripNumbers) -> Self {
        let TripNumbers {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        } = *numbers;
        Self {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        }
    }

    /// Back to the core's type.
    pub fn restore(&self) -> TripNumbers {
        let Self {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        } = *self;
        TripNumbers {
            requests,
            failed,
            client_errors,
            aborts,
            p95_us,
        }
    }
}

impl TripStatus {
    /// Mirrors a trip.
    pub fn new(trip: &Trip) -> Self {
        let (actor, reason, numbers) = match &trip.cause {
            Cause::Guard { numbers, .. } => (
                None,
                None,
                Some(NumbersBySide {
                    legacy: Numbers::new(&numbers.legacy),
                    new: Numbers::new(&numbers.new),
                }),
            ),
            Cause::Manual { actor, reason } => (Some(actor.clone()), Some(reason.clone()), None),
            Cause::State => (None, None, None),
        };
        Self {
            at: clock::rfc3339(trip.at),
            cause: trip.cause.label().to_owned(),
            from_percent: percent(trip.from),
            sentence: trip.sentence.clone(),
            actor,
            reason,
            numbers,
            history: trip.history.iter().map(TickStatus::new).collect(),
        }
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
    fn new(span: &Span, compared: &Span, in_flight: u64) -> Self {
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

impl RolloutStatus {
    /// Mirrors a rollout. `in_force` is the share that requests see, which is smaller than the
    /// plane's while a raise waits for the disk.
    pub fn new(
        rollout: &Rollout,
        totals: &SlotTotals,
        in_force: Percent,
        maintenance: Option<MaintenanceStatus>,
    ) -> Self {
        let (recent, compared) = (rollout.recent(), rollout.recent_compared());
        let sentence = if in_force < rollout.effective() {
            format!(
                "{} % asked, held at {in_force} % until the state can be written to disk",
                rollout.desired()
            )
        } else {
            rollout.sentence()
        };
        let guard = &rollout.settings().guard;
        Self {
            id: rollout.id().to_string(),
            sentence,
            desired_percent: percent(rollout.desired()),
            effective_percent: percent(in_force),
            phase: rollout.phase().name().to_owned(),
            shared_cause: rollout.has_shared_cause(),
            no_refuge: rollout.has_no_refuge(),
            spilled: rollout.is_spilled(),
            maintenance,
            held_requests: totals.parked(),
            failovers: {
                let [saved, failed, denied] = totals.savings;
                FailoverStatus {
                    saved,
                    failed,
                    denied,
                }
            },
            generation: rollout.settings().generation,
            latch: rollout.latch().map(|latch| LatchStatus {
                generation: latch.generation,
                trip: TripStatus {
                    history: Vec::new(),
                    ..TripStatus::new(&latch.trip)
                },
            }),
            totals: Some(TickStatus {
                at_ms: clock::wall().as_millis(),
                legacy: tick_side(&SideNumbers::of(&totals.totals.legacy.counts)),
                new: tick_side(&SideNumbers::of(&totals.totals.new.counts)),
            }),
            legacy: SideStatus::new(recent.legacy, compared.legacy, totals.in_flight.legacy),
            new: SideStatus::new(recent.new, compared.new, totals.in_flight.new),
            not_compared: not_compared(rollout, totals),
            guard: GuardStatus {
                mode: guard.mode.name().to_owned(),
                dry_run: guard.dry_run && guard.mode != Mode::Off,
                rules: rollout
                    .verdicts()
                    .into_iter()
                    .map(|verdict| RuleStatus {
                        rule: verdict.rule.name().to_owned(),
                        verdict: verdict.answer.name().to_owned(),
                        sentence: verdict.sentence,
                        evidence_log10: verdict.evidence_log10.map(|log| (log * 1e3).round() / 1e3),
                        evidence_ratio: verdict.progress.map(|part| (part * 1e3).round() / 1e3),
                        users_ratio: verdict
                            .users_progress
                            .map(|part| (part * 1e3).round() / 1e3),
                    })
                    .collect(),
            },
        }
    }
}

/// Requests that are compared on neither side, by the reason of their decision.
fn not_compared(rollout: &Rollout, totals: &SlotTotals) -> BTreeMap<String, u64> {
    let is_compared = |reason: Reason| match reason {
        Reason::Bucket => true,
        Reason::Anonymous => rollout.settings().anonymous != Anonymous::Legacy,
        Reason::Override
        | Reason::AlwaysLegacy
        | Reason::RolledBack
        | Reason::AlwaysNew
        | Reason::Health => false,
    };
    Reason::ALL
        .into_iter()
        .filter(|reason| !is_compared(*reason))
        .map(|reason| (reason.name().to_owned(), totals.reasons[reason.index()]))
        .collect()
}

/// The recent quantiles of a rollout in seconds.
pub fn recent_quantiles(rollout: &Rollout) -> PerSide<Option<[f64; 3]>> {
    rollout.recent().map(|span| {
        let values = span.latencies.quantiles(&[0.5, 0.95, 0.99])?;
        Some([
            values[0] as f64 / 1e6,
            values[1] as f64 / 1e6,
            values[2] as f64 / 1e6,
        ])
    })
}

/// Mirrors the control plane.
pub fn status_of<'a>(
    plane: &ControlPlane,
    in_force: &Split,
    config: ConfigStatus,
    latch_durable: bool,
    unmatched: &SlotTotals,
    totals: impl Fn(usize) -> &'a SlotTotals,
) -> Status {
    let now = clock::mono();
    let maintenance = |rollout: Option<&str>| {
        let at = rollout.and_then(|id| {
            in_force
                .rollouts
                .iter()
                .position(|split| *split.rule.id == *id)
        });
        let (window, of_everything) = plane.maintenance(rollout)?;
        Some(MaintenanceStatus::new(
            window,
            of_everything,
            in_force.restriction(at).remaining(now),
        ))
    };
    let share = |rollout: &Rollout| {
        in_force
            .rollouts
            .iter()
            .find(|split| split.rule.id == *rollout.id())
            .map_or(Percent::ZERO, |split| split.percent)
    };
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: plane.revision(),
        config,
        latch_durable,
        journal: None,
        maintenance: maintenance(None),
        held_requests: unmatched.parked()
            + plane
                .rollouts()
                .iter()
                .map(|rollout| totals(rollout.slot()).parked())
                .sum::<u64>(),
        rollouts: plane
            .rollouts()
            .iter()
            .map(|rollout| {
                RolloutStatus::new(
                    rollout,
                    totals(rollout.slot()),
                    share(rollout),
                    maintenance(Some(rollout.id())),
                )
            })
            .collect(),
    }
}
