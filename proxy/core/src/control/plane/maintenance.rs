//! The beginning, end and expiry of maintenance windows.

use super::ControlPlane;
use super::actor::Actor;
use super::effect::{Announcement, Change, Effect};
use super::error::CommandError;
use crate::control::maintenance::{self as windows, MaintenanceWindow, Scope};
use crate::control::rollout::Rollout;
use crate::routing::restriction::Maintenance;
use crate::time::Now;
use std::sync::Arc;
use std::time::Duration;

impl ControlPlane {
    pub(super) fn on_maintenance(
        &mut self,
        rollout: Option<&str>,
        mode: Maintenance,
        lasts: Option<Duration>,
        actor: Actor,
        reason: String,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        let scope: Scope = rollout.map(Arc::from);
        if let Some(id) = rollout
            && self.rollout(id).is_none()
            && !self.maintenance.has(id)
        {
            return Err(self.unknown(id));
        }
        let announcement = if mode == Maintenance::Off {
            if self.maintenance.end(&scope).is_none() {
                return Ok(Vec::new());
            }
            let sentence = format!(
                "maintenance is off by {}{}: {reason}",
                actor.name,
                self.maintenance.what_stays(&scope)
            );
            self.maintained(
                &scope,
                Change::Maintenance { mode, until: None },
                actor,
                reason,
                &sentence,
                now,
            )
        } else {
            let until = lasts.map(|lasts| windows::after(now.wall, lasts));
            let window = MaintenanceWindow {
                mode,
                since: now.wall,
                until,
                actor: actor.clone(),
                reason: reason.clone(),
            };
            let sentence = window.sentence();
            self.maintenance.begin(
                scope.clone(),
                window,
                lasts.map(|lasts| now.mono.forward(lasts)),
            );
            self.maintained(
                &scope,
                Change::Maintenance { mode, until },
                actor,
                reason,
                &sentence,
                now,
            )
        };
        Ok(self.drop_effects([Box::new(announcement)]))
    }

    /// Ends the maintenance windows that have expired.
    pub(super) fn over(&mut self, now: Now) -> Vec<Announcement> {
        let over = self.maintenance.expire(now.mono);
        self.tell_of_ends(over, "its time is over", now)
    }

    pub(super) fn tell_of_ends(
        &self,
        over: Vec<(Scope, MaintenanceWindow)>,
        why: &str,
        now: Now,
    ) -> Vec<Announcement> {
        let tell = |(scope, window): (Scope, MaintenanceWindow)| {
            let lasted = window.until.map_or_else(String::new, |until| {
                format!(
                    " after {}",
                    windows::lasting(windows::length(window.since, until))
                )
            });
            let sentence = format!(
                "maintenance is off{lasted}, it was {}{}: {why}",
                window.mode.name(),
                self.maintenance.what_stays(&scope)
            );
            let change = Change::Maintenance {
                mode: Maintenance::Off,
                until: None,
            };
            self.maintained(
                &scope,
                change,
                Actor::timer(),
                why.to_owned(),
                &sentence,
                now,
            )
        };
        over.into_iter().map(tell).collect()
    }

    pub(super) fn maintained(
        &self,
        scope: &Scope,
        change: Change,
        actor: Actor,
        reason: String,
        sentence: &str,
        now: Now,
    ) -> Announcement {
        let effective = scope
            .as_deref()
            .and_then(|id| self.rollout(id))
            .map(Rollout::effective);
        let sentence = format!("{}: {sentence}", windows::subject(scope));
        Announcement {
            at: now.wall,
            rollout: windows::scope_name(scope),
            change,
            actor,
            reason,
            sentence,
            effective,
        }
    }

    /// Returns the window in force for a rollout, or for requests that match none, and whether it
    /// applies to everything.
    pub fn maintenance(&self, rollout: Option<&str>) -> Option<(&MaintenanceWindow, bool)> {
        self.maintenance.governing(rollout)
    }
}
