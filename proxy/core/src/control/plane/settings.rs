//! The handling of a new configuration file.

use super::actor::Actor;
use super::effect::{Announcement, Change, Effect};
use super::{ControlPlane, announce, rearmed};
use crate::control::rollout::{Cause, Latch, Phase, Rollout, RolloutSettings, Trip};
use crate::routing::routes::Routes;
use crate::time::{Mono, Now};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Describes what a file changed in a rollout that already existed. Returns nothing when the
/// settings are equal.
pub(super) fn changed(
    was: &RolloutSettings,
    was_latched: bool,
    rollout: &Rollout,
    actor: &Actor,
    reason: &str,
    now: Now,
) -> Option<Box<Announcement>> {
    let is = rollout.settings();
    let latched = rollout.latch().is_some();
    if was_latched && !latched {
        let generation = format!(
            "generation {} is above the one that was rolled back",
            is.generation
        );
        let reason = if reason.is_empty() {
            &generation
        } else {
            reason
        };
        return Some(rearmed(rollout, actor, reason, now));
    }
    if was.percent != is.percent {
        let held = if latched {
            ", but it is rolled back: 0 % of users stay on new"
        } else {
            ""
        };
        let why = if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        };
        let sentence = format!(
            "{}: {} % -> {} % by {}{held}{why}",
            rollout.id(),
            was.percent,
            is.percent,
            actor.name
        );
        return Some(announce(
            rollout,
            Change::Percent {
                from: was.percent,
                to: is.percent,
            },
            actor,
            reason,
            sentence,
            now,
        ));
    }
    (was != is).then(|| {
        announce(
            rollout,
            Change::Settings,
            actor,
            reason,
            format!("{}: settings changed", rollout.id()),
            now,
        )
    })
}

pub(super) fn arrived(
    rollout: &Rollout,
    running: bool,
    actor: &Actor,
    reason: &str,
    now: Now,
) -> Option<Box<Announcement>> {
    let change = if running {
        Change::Added
    } else {
        Change::Started
    };
    let sentence = format!("{}: {}", rollout.id(), rollout.sentence());
    Some(announce(rollout, change, actor, reason, sentence, now))
}

impl ControlPlane {
    pub(super) fn on_settings(
        &mut self,
        settings: Vec<RolloutSettings>,
        actor: &Actor,
        reason: &str,
        now: Now,
    ) -> Vec<Effect> {
        let before = self.split();
        let mut announcements = Vec::new();
        if !self.started {
            let over = self.maintenance.resume(now);
            announcements.extend(
                self.tell_of_ends(over, "its time was over before the start", now)
                    .into_iter()
                    .map(Box::new),
            );
        }
        let mut previous: BTreeMap<Arc<str>, Rollout> = self
            .rollouts
            .drain(..)
            .map(|rollout| (Arc::clone(rollout.id()), rollout))
            .collect();
        for settings in settings {
            let id = Arc::clone(&settings.id);
            let next_slot = self.slots.len();
            let slot = *self.slots.entry(Arc::clone(&id)).or_insert(next_slot);
            let new_since = (slot == next_slot).then_some(now.mono);
            let rollout = match previous.remove(&id) {
                Some(mut rollout) => {
                    let was = (rollout.settings().clone(), rollout.latch().is_some());
                    rollout.apply(settings, now.mono);
                    announcements.extend(changed(&was.0, was.1, &rollout, actor, reason, now));
                    rollout
                }
                None => {
                    let rollout = self.arrive(settings, slot, new_since, now);
                    announcements.extend(arrived(&rollout, self.started, actor, reason, now));
                    rollout
                }
            };
            self.rollouts.push(rollout);
        }
        for (id, gone) in previous {
            announcements.push(announce(
                &gone,
                Change::Removed,
                actor,
                reason,
                format!("{id}: left the file; its requests go to the next match"),
                now,
            ));
            if let Some(latch) = gone.latch() {
                self.absent.insert(id, latch.clone());
            }
        }
        self.routes = Arc::new(Routes::of(
            self.rollouts
                .iter()
                .map(|rollout| Arc::clone(rollout.rule())),
        ));
        self.started = true;
        self.unreadable = None;
        self.handover.clear();
        self.revision += 1;
        let mut effects = self.change_effects(&before);
        effects.extend(announcements.into_iter().map(Effect::Announce));
        effects
    }

    /// Adds a rollout that did not exist before, with the latch it left behind, if any.
    pub(super) fn arrive(
        &mut self,
        settings: RolloutSettings,
        slot: usize,
        new_since: Option<Mono>,
        now: Now,
    ) -> Rollout {
        let phase = match (self.absent.remove(&settings.id), &self.unreadable) {
            (Some(latch), _) if settings.generation <= latch.generation => Phase::RolledBack(latch),
            (None, Some(why)) => {
                let sentence = format!(
                    "the saved state could not be read ({why}), so it is unknown whether it was \
                     rolled back"
                );
                let trip = Trip {
                    at: now.wall,
                    cause: Cause::State,
                    from: settings.percent,
                    sentence,
                    history: Vec::new(),
                };
                Phase::RolledBack(Latch {
                    generation: settings.generation,
                    trip,
                })
            }
            (Some(_) | None, _) => Phase::Holding,
        };
        let handover = self.handover.remove(&settings.id);
        let mut rollout = Rollout::new(settings, slot, phase, new_since);
        if let Some(handover) = handover {
            rollout.inherit(handover, now.mono);
        }
        rollout
    }
}
