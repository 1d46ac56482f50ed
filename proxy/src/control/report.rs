//! Builds the status and the numbers that the control loop reports.

use std::collections::BTreeMap;

use cutover_core::control::rollout::SideNumbers;
use cutover_core::guard::Mode;
use cutover_core::{Anonymous, ControlPlane, PerSide, Percent, Reason, Rollout, Split};

use crate::clock;
use crate::shared::recorder::SlotTotals;
use crate::status::{
    ConfigStatus, FailoverStatus, GuardStatus, LatchStatus, MaintenanceStatus, RolloutStatus,
    RuleStatus, SideStatus, Status, TickStatus, TripStatus, percent, tick_side,
};

/// Returns the status of a rollout. `in_force` is the share that requests see. It is smaller than
/// that of the plane while a raise waits for the disk.
fn rollout_status(
    rollout: &Rollout,
    totals: &SlotTotals,
    in_force: Percent,
    maintenance: Option<MaintenanceStatus>,
) -> RolloutStatus {
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
    RolloutStatus {
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

/// Returns the requests that are compared on neither side, by the reason of their decision.
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

/// Returns the recent quantiles of a rollout in seconds.
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

/// Returns the status of the control plane.
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
                rollout_status(
                    rollout,
                    totals(rollout.slot()),
                    share(rollout),
                    maintenance(Some(rollout.id())),
                )
            })
            .collect(),
    }
}
