//! Carries out the effects of the control plane, in order.

use super::takeover::Role;
use super::{Control, PERSIST_TIMEOUT};
use crate::clock;
use crate::shared::published::Snapshot;
use crate::state::journal::Record;
use crate::upstream::Backend;
use cutover_core::control::plane::Change;
use cutover_core::{Effect, Maintenance, Rollout, Side, Split};
use std::sync::Arc;
use std::time::Duration;

/// Whether a change means that users are served worse than they should be, without a rollback.
pub(super) fn is_degraded(change: &Change) -> bool {
    match change {
        Change::SharedCause
        | Change::Held
        | Change::DryRunBreach
        | Change::NoRefuge
        | Change::Spilled
        | Change::LegacyOverloaded => true,
        Change::Maintenance { mode, .. } => *mode != Maintenance::Off,
        Change::Started
        | Change::Added
        | Change::Removed
        | Change::Percent { .. }
        | Change::Settings
        | Change::RolledBack(_)
        | Change::Rearmed => false,
        Change::SharedCauseEnded | Change::NoRefugeEnded | Change::SpillEnded => false,
    }
}

impl Control {
    /// Carries out effects in order, and returns whether the state is durable.
    pub(super) async fn carry_out(&mut self, effects: Vec<Effect>) -> bool {
        let mut durable = true;
        for effect in effects {
            match effect {
                // A raise is left to the process that takes over.
                Effect::Publish(_) if !durable && matches!(self.role, Role::Follows { .. }) => {}
                // Only a split that must be persisted first is held back; a drop is published
                // before.
                Effect::Publish(split) if !durable => self.awaiting_persist = Some(split),
                // This is a drop while a raise is held back. The drop takes effect at once, and the
                // raise still waits until it is durable.
                Effect::Publish(split)
                    if self.awaiting_persist.is_some() && !self.disk.is_durable() =>
                {
                    self.publish(split.clone().capped_by(&self.published.load().split));
                    self.awaiting_persist = Some(split);
                }
                Effect::Publish(split) => {
                    self.awaiting_persist = None;
                    self.publish_warm(split).await;
                }
                // The state directory belongs to another process.
                Effect::Persist(_) if matches!(self.role, Role::Follows { .. }) => durable = false,
                Effect::Ask { rollout, side } => self.ask(&rollout, side),
                Effect::Persist(standings) => {
                    durable = matches!(
                        tokio::time::timeout(PERSIST_TIMEOUT, self.disk.save(standings)).await,
                        Ok(Ok(true))
                    );
                }
                Effect::Announce(announcement) => {
                    if let Change::RolledBack(trip) = &announcement.change {
                        *self
                            .rollbacks
                            .entry((
                                Arc::clone(&announcement.rollout),
                                trip.cause.label().to_owned(),
                            ))
                            .or_default() += 1;
                        let settings = self
                            .plane
                            .rollouts()
                            .iter()
                            .find(|rollout| *rollout.id() == announcement.rollout)
                            .map(Rollout::settings);
                        let due = clock::mono().forward(
                            settings.map_or(Duration::ZERO, |settings| settings.drain_on_rollback),
                        );
                        self.leaving.push((
                            due,
                            Arc::clone(&announcement.rollout),
                            self.plane.revision(),
                        ));
                        tracing::error!(
                            rollout = %announcement.rollout,
                            change = "rollback",
                            rule = trip.cause.label(),
                            sentence = announcement.sentence,
                            "rolled back"
                        );
                    } else if is_degraded(&announcement.change) {
                        tracing::warn!(
                            rollout = %announcement.rollout,
                            change = announcement.change.name(),
                            sentence = announcement.sentence,
                            "a rollout needs attention"
                        );
                    } else {
                        tracing::info!(
                            rollout = %announcement.rollout,
                            change = announcement.change.name(),
                            actor = announcement.actor.name,
                            sentence = announcement.sentence,
                            "a rollout changed"
                        );
                    }
                    self.pass_on(&announcement);
                    // The other process writes its own lines. Until it is ready, lines are kept
                    // here in case it fails.
                    if !matches!(self.role, Role::Follows { lead: Some(_), .. }) {
                        self.disk.append(Record::new(&announcement));
                    }
                }
            }
        }
        durable
    }

    /// Probes a backend for whether it can take users.
    pub(super) fn ask(&self, rollout: &Arc<str>, side: Side) {
        let snapshot = self.published.load();
        let Some(at) = snapshot
            .split
            .rollouts
            .iter()
            .position(|split| split.rule.id == *rollout)
        else {
            return;
        };
        self.questions.ask(
            Arc::clone(rollout),
            side,
            Arc::clone(&snapshot.prepared[at].backends[side]),
        );
    }

    /// Publishes a split after connecting to the backends that get their first users. Drops in the
    /// same split do not wait for that.
    pub(super) async fn publish_warm(&mut self, split: Split) {
        let cold = self.cold(&split);
        if !cold.is_empty() {
            self.publish(split.clone().capped_by(&self.published.load().split));
            self.prewarm.warm(cold).await;
        }
        self.publish(split);
    }

    /// Returns the new backends that are about to get their first users.
    pub(super) fn cold(&self, split: &Split) -> Vec<Arc<Backend>> {
        let before = self.published.load();
        let warm = before.new_in_use();
        let after = Snapshot::new(split.clone(), Arc::clone(&self.common), Some(&before));
        after
            .new_in_use()
            .into_iter()
            .filter(|backend| !warm.iter().any(|warm| warm.is_like(backend)))
            .collect()
    }

    /// Waits until the journal contains what was announced, so that an answered command is never
    /// missing from it.
    pub(super) async fn journal_written(&self) {
        // A disk that is slower than this is reported by `latch_durable`.
        let _ = tokio::time::timeout(PERSIST_TIMEOUT, self.disk.flush()).await;
    }

    pub(super) fn publish(&self, split: Split) {
        let before = self.published.load();
        let split = match &self.role {
            Role::Follows {
                lead: Some(lead), ..
            } => split.led_by(lead),
            // Until the successor is ready nothing is raised here, because it might not know of the
            // raise.
            Role::Follows { lead: None, .. } => split.capped_by(&before.split),
            Role::Leads => split,
        };
        self.published.swap(Snapshot::new(
            split,
            Arc::clone(&self.common),
            Some(&before),
        ));
    }
}
