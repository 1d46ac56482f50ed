//! The handling of a tick, and of failures between two ticks.

use super::actor::Actor;
use super::effect::{Announcement, Change, Effect};
use super::{ControlPlane, announce};
use crate::control::rollout::{Judgement, Rollout, Spilled, Trip};
use crate::guard::Rule;
use crate::guard::judge::Observed;
use crate::side::PerSide;
use crate::stats::window::Totals;
use crate::time::Now;
use std::sync::Arc;

pub(super) fn would_trip(rollout: &Rollout, rule: Rule, why: &str, now: Now) -> Box<Announcement> {
    let sentence = format!(
        "{}: would roll back, but dry_run is on: {why}",
        rollout.id()
    );
    announce(
        rollout,
        Change::DryRunBreach,
        &Actor::guard(),
        rule.name(),
        sentence,
        now,
    )
}

pub(super) fn rolled_back(
    rollout: &Rollout,
    trip: Trip,
    actor: Actor,
    reason: String,
    now: Now,
) -> Box<Announcement> {
    let sentence = format!(
        "{}: rolled back from {} % to 0 %: {}",
        rollout.id(),
        trip.from,
        trip.sentence
    );
    announce(
        rollout,
        Change::RolledBack(trip),
        &actor,
        &reason,
        sentence,
        now,
    )
}

impl ControlPlane {
    pub(super) fn on_look(
        &mut self,
        observed: &[Observed<'_>],
        now: Now,
        look: impl Fn(&mut Rollout, &Observed<'_>) -> Vec<Judgement>,
    ) -> Vec<Effect> {
        let before = self.split();
        let none = PerSide::<Totals>::default();
        let mut changed: Vec<_> = self.over(now).into_iter().map(Box::new).collect();

        let mut said = Vec::new();
        let mut asked = Vec::new();
        let mut thawed = false;
        for at in 0..self.rollouts.len() {
            let rollout = &mut self.rollouts[at];
            let judgements = look(
                rollout,
                &observed
                    .get(rollout.slot())
                    .copied()
                    .unwrap_or_else(|| Observed::of(&none)),
            );
            for judgement in judgements {
                let rollout = &mut self.rollouts[at];
                match judgement {
                    Judgement::Trip { cause, sentence } => {
                        let trip = rollout.trip(now, cause, sentence);
                        changed.push(rolled_back(
                            rollout,
                            trip,
                            Actor::guard(),
                            "the guard's rule was breached".to_owned(),
                            now,
                        ));
                    }
                    Judgement::WouldTrip(case) => {
                        said.push(would_trip(rollout, case.rule, &case.sentence, now));
                    }
                    Judgement::SharedCause(sentence) => {
                        let sentence = format!(
                            "{}: both sides are bad at once, raises are frozen at {} %: {sentence}",
                            rollout.id(),
                            rollout.effective()
                        );
                        said.push(announce(
                            rollout,
                            Change::SharedCause,
                            &Actor::guard(),
                            "shared cause",
                            sentence,
                            now,
                        ));
                    }
                    Judgement::SharedCauseEnded => {
                        let sentence = format!(
                            "{}: both sides are no longer bad at once, {} % of users are on new",
                            rollout.id(),
                            rollout.effective()
                        );
                        said.push(announce(
                            rollout,
                            Change::SharedCauseEnded,
                            &Actor::guard(),
                            "shared cause",
                            sentence,
                            now,
                        ));
                        thawed = true;
                    }
                    Judgement::NoRefuge(sentence) => {
                        let sentence = format!(
                            "{}: new is worse, but legacy does not answer: no user was moved, \
                             raises are frozen at {} %: {sentence}",
                            rollout.id(),
                            rollout.effective()
                        );
                        said.push(announce(
                            rollout,
                            Change::NoRefuge,
                            &Actor::guard(),
                            "legacy does not answer",
                            sentence,
                            now,
                        ));
                    }
                    Judgement::NoRefugeEnded => {
                        let sentence = format!(
                            "{}: new has not been worse for a minute, raises go through again: {} \
                             % of users are on new",
                            rollout.id(),
                            rollout.effective()
                        );
                        said.push(announce(
                            rollout,
                            Change::NoRefugeEnded,
                            &Actor::guard(),
                            "legacy did not answer",
                            sentence,
                            now,
                        ));
                        thawed = true;
                    }
                    Judgement::Ask(side) => asked.push(Effect::Ask {
                        rollout: Arc::clone(rollout.id()),
                        side,
                    }),
                    Judgement::Spill(spilled) => {
                        let (change, what) = match spilled {
                            Spilled::ToNew => (
                                Change::Spilled,
                                "legacy does not serve users since the rollback, and new answers: \
                                 users are on new until legacy is back",
                            ),
                            Spilled::Back => (
                                Change::SpillEnded,
                                "legacy answers again: its users are back",
                            ),
                            Spilled::Failed => (
                                Change::SpillEnded,
                                "new fails users as legacy does: they are back on legacy",
                            ),
                        };
                        let sentence =
                            format!("{}: {what}, and the rollback stays latched", rollout.id());
                        said.push(announce(
                            rollout,
                            change,
                            &Actor::guard(),
                            "legacy after the rollback",
                            sentence,
                            now,
                        ));
                        thawed = true;
                    }
                    Judgement::Overloaded(sentence) => {
                        let sentence = format!(
                            "{}: legacy fares worse since the rollback: {sentence}",
                            rollout.id()
                        );
                        said.push(announce(
                            rollout,
                            Change::LegacyOverloaded,
                            &Actor::guard(),
                            "legacy after the rollback",
                            sentence,
                            now,
                        ));
                    }
                    Judgement::TooFewUsers(sentence) => {
                        said.push(announce(
                            rollout,
                            Change::Held,
                            &Actor::guard(),
                            "too few are hurt",
                            format!("{}: {sentence}", rollout.id()),
                            now,
                        ));
                    }
                }
            }
        }
        let mut effects = Vec::new();
        if thawed || !changed.is_empty() {
            self.revision += 1;
            // A raise that was frozen is now allowed. Like every raise, it is made durable first.
            effects = self.change_effects(&before);
        }
        effects.extend(changed.into_iter().chain(said).map(Effect::Announce));
        effects.extend(asked);
        effects
    }

    pub(super) fn on_tripped(
        &mut self,
        id: &str,
        trip: Trip,
        actor: Actor,
        reason: String,
        now: Now,
    ) -> Vec<Effect> {
        let Some(rollout) = self
            .rollouts
            .iter_mut()
            .find(|rollout| &**rollout.id() == id && rollout.latch().is_none())
        else {
            return Vec::new();
        };
        rollout.adopt(trip.clone(), now.mono);
        let announcement = rolled_back(rollout, trip, actor, reason, now);
        self.drop_effects([announcement])
    }
}
