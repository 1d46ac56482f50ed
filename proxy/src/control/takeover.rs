//! Handover to another process, and following it.

use super::{Control, PERSIST_TIMEOUT};
use crate::clock;
use crate::shared::control_handle::{Handovers, Tripped};
use cutover_core::control::plane::Change;
use cutover_core::{Actor, Announcement, Command, Event, Lead, Via};
use tokio::sync::mpsc;

/// The role of this process: whether it decides what is in force.
#[derive(Debug)]
pub(super) enum Role {
    /// This process decides.
    Leads,
    /// Another process decides, or will soon.
    Follows {
        /// The channel for rollbacks to the other process.
        trips: mpsc::UnboundedSender<Tripped>,
        /// The number of rollbacks sent to the other process.
        told: u64,
        /// The number of rollbacks the other process has acknowledged.
        heard: u64,
        /// What the other process has in force; `None` until it is ready.
        lead: Option<Lead>,
    },
}

impl Control {
    /// Saves everything and releases the state directory for another process.
    pub(super) async fn hand_over(
        &mut self,
        trips: mpsc::UnboundedSender<Tripped>,
    ) -> Result<Handovers, String> {
        if self.awaiting_persist.is_some() || !self.disk.is_durable() {
            return Err(
                "the state cannot be written, and the new process would begin with an older one"
                    .to_owned(),
            );
        }
        if !matches!(
            tokio::time::timeout(PERSIST_TIMEOUT, self.disk.let_go()).await,
            Ok(Ok(true))
        ) {
            self.disk.take_back();
            return Err("the state cannot be written in time".to_owned());
        }
        self.role = Role::Follows {
            trips,
            told: 0,
            heard: 0,
            lead: None,
        };
        Ok(self.plane.handover())
    }

    /// Puts in force what the process that has taken over has in force.
    pub(super) fn follow(&mut self, new_lead: Lead, acknowledged: u64) {
        let Role::Follows {
            told, heard, lead, ..
        } = &mut self.role
        else {
            return;
        };
        *heard = acknowledged;
        let knows_all = acknowledged >= *told;
        *lead = Some(new_lead.clone());
        let now = clock::now();
        let actor = || Actor {
            name: "the new process".to_owned(),
            source: Via::Start,
        };
        for led in &new_lead.rollouts {
            let Some(is_latched) = self
                .plane
                .rollout(&led.id)
                .map(|rollout| rollout.latch().is_some())
            else {
                continue;
            };
            let command = match (led.latched, is_latched) {
                (true, false) => Command::Rollback { force: true },
                // A latch that the other process does not know of yet is not lifted by its earlier
                // message.
                (false, true) if knows_all => Command::Rearm,
                (true, true) | (false, _) => continue,
            };
            tracing::info!(rollout = %led.id, latched = led.latched, "the latch of the new process also applies here");
            // The other process announces and saves the effects of these commands.
            let _ = self.plane.on(
                Event::Command {
                    rollout: &led.id,
                    command,
                    actor: actor(),
                    reason: "it leads".to_owned(),
                },
                now,
            );
        }
        self.set_tracker_limits();
        self.publish(self.plane.split());
    }

    /// Reports a rollback that was decided here to the process that takes over.
    pub(super) fn pass_on(&mut self, announcement: &Announcement) {
        if let (Role::Follows { trips, told, .. }, Change::RolledBack(trip)) =
            (&mut self.role, &announcement.change)
        {
            let (rollout, actor, reason) = (
                announcement.rollout.to_string(),
                announcement.actor.clone(),
                announcement.reason.clone(),
            );
            *told += 1;
            let _ = trips.send(Tripped {
                rollout,
                trip: trip.clone(),
                actor,
                reason,
            });
        }
    }

    /// Whether a message to another process is outstanding. Either the successor has not
    /// acknowledged all rollbacks, or a failed successor has not yet returned what it was to own.
    pub(super) fn has_unreported_rollbacks(&self) -> bool {
        matches!(&self.role, Role::Follows { told, heard, lead, .. } if lead.is_none() || heard < told)
    }
}
