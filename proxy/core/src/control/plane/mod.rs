//! The control plane as one function: it takes events and returns effects, in order.
//!
//! One task of the shell owns a [`ControlPlane`]. It feeds the control plane ticks, settings and
//! commands, and carries out the returned effects one after the other. The order of effects is part
//! of the behaviour. A drop is published before it is persisted and announced, because it stops
//! harm. A raise is persisted before it is published, because a crash in between then leaves the
//! smaller exposure. A change that lowers one rollout and raises another does both: it first
//! publishes everything at the lower of the two shares, then persists, then publishes the whole
//! change.
//!
//! Latches of rollouts that left the file are kept: taking a block out and putting it back does not
//! lift its latch.
//!
//! Maintenance is put in force first and saved next in both directions: neither closing for a
//! migration nor opening again may wait for a disk. A crash in between leaves the earlier mode.

mod actor;
mod effect;
mod error;
mod event;
mod look;
mod maintenance;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::maintenance::Windows;
use crate::control::rollout::{Cause, Handover, Latch, Phase, Rollout};
use crate::guard::availability::Word;
use crate::routing::routes::Routes;
use crate::routing::split::{RolloutSplit, Split};
use crate::time::Now;
pub use actor::{Actor, Via};
pub use effect::{Announcement, Change, Effect, Restored, Standing, Standings};
pub use error::CommandError;
pub use event::{Command, Event};
use look::rolled_back;

/// All rollouts and their latches. This is the only writer of the split.
#[derive(Debug)]
pub struct ControlPlane {
    rollouts: Vec<Rollout>,
    /// The match rules of all rollouts.
    routes: Arc<Routes>,
    /// Latches of rollouts that are not in the file at present.
    absent: BTreeMap<Arc<str>, Latch>,
    /// Recorder slots by rollout id, kept for the lifetime of the process.
    slots: BTreeMap<Arc<str>, usize>,
    maintenance: Windows,
    revision: u64,
    unreadable: Option<String>,
    /// What the predecessor process knew about rollouts that have not arrived yet.
    handover: BTreeMap<Arc<str>, Handover>,
    started: bool,
}

impl ControlPlane {
    /// Creates a control plane that has the restored state but no settings yet.
    pub fn new(restored: Restored) -> Self {
        let mut absent = BTreeMap::new();
        let mut unreadable = None;
        let mut maintenance = Windows::default();
        match restored {
            Restored::Fresh => {}
            Restored::Known(standings) => {
                maintenance = Windows::restore(standings.maintenance);
                for standing in standings.rollouts {
                    if let Phase::RolledBack(latch) = standing.phase {
                        absent.insert(standing.id, latch);
                    }
                }
            }
            Restored::Unreadable(why) => unreadable = Some(why),
        }
        Self {
            rollouts: Vec::new(),
            absent,
            slots: BTreeMap::new(),
            maintenance,
            revision: 0,
            unreadable,
            handover: BTreeMap::new(),
            started: false,
            routes: Arc::default(),
        }
    }

    /// Adopts what the predecessor process knew beyond the standings. Must be called before the
    /// first settings arrive.
    pub fn inherit(&mut self, handover: BTreeMap<Arc<str>, Handover>) {
        self.handover = handover;
    }

    /// Returns what is known about each rollout beyond its standing, for the successor process.
    pub fn handover(&self) -> BTreeMap<Arc<str>, Handover> {
        self.rollouts
            .iter()
            .map(|rollout| (Arc::clone(rollout.id()), rollout.handover()))
            .collect()
    }

    /// Returns the rollouts in file order.
    pub fn rollouts(&self) -> &[Rollout] {
        &self.rollouts
    }

    /// Returns the rollout with this id.
    pub fn rollout(&self, id: &str) -> Option<&Rollout> {
        self.rollouts.iter().find(|rollout| &**rollout.id() == id)
    }

    /// Returns the revision of the split that was published last.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the state of all rollouts and maintenance windows, as it is made durable.
    pub fn standings(&self) -> Standings {
        let present = self.rollouts.iter().map(|rollout| Standing {
            id: Arc::clone(rollout.id()),
            percent: Some(rollout.desired()),
            phase: rollout.phase().clone(),
        });
        let absent = self.absent.iter().map(|(id, latch)| Standing {
            id: Arc::clone(id),
            percent: None,
            phase: Phase::RolledBack(latch.clone()),
        });
        Standings {
            rollouts: present.chain(absent).collect(),
            maintenance: self.maintenance.standings(),
        }
    }

    /// Handles one event and returns the required effects, in order.
    ///
    /// # Errors
    /// Only a command can be refused. A refused command has changed nothing.
    pub fn on(&mut self, event: Event<'_>, now: Now) -> Result<Vec<Effect>, CommandError> {
        match event {
            Event::Tick(observed) => Ok(self.on_look(observed, now, |rollout, observed| {
                rollout.tick(now, observed)
            })),
            Event::Failure(observed) => Ok(self.on_look(observed, now, |rollout, observed| {
                rollout.wake(now, observed)
            })),
            Event::Answered {
                rollout: id,
                side,
                is_good,
                observed,
            } => {
                let is_asked = |rollout: &&mut Rollout| &**rollout.id() == id;
                self.rollouts
                    .iter_mut()
                    .filter(is_asked)
                    .for_each(|rollout| rollout.answered(side, is_good, now.mono));
                Ok(self.on_look(observed, now, |rollout, observed| {
                    if &**rollout.id() == id {
                        rollout.wake(now, observed)
                    } else {
                        Vec::new()
                    }
                }))
            }
            Event::Settings {
                rollouts,
                actor,
                reason,
            } => Ok(self.on_settings(rollouts, &actor, &reason, now)),
            Event::Command {
                rollout,
                command,
                actor,
                reason,
            } => self.on_command(rollout, command, actor, reason, now),
            Event::Tripped {
                rollout,
                trip,
                actor,
                reason,
            } => Ok(self.on_tripped(rollout, trip, actor, reason, now)),
            Event::Maintenance {
                rollout,
                mode,
                lasts,
                actor,
                reason,
            } => self.on_maintenance(rollout, mode, lasts, actor, reason, now),
        }
    }

    fn on_command(
        &mut self,
        id: &str,
        command: Command,
        actor: Actor,
        reason: String,
        now: Now,
    ) -> Result<Vec<Effect>, CommandError> {
        let Some(at) = self
            .rollouts
            .iter()
            .position(|rollout| &**rollout.id() == id)
        else {
            return Err(self.unknown(id));
        };
        let rollout = &mut self.rollouts[at];
        match command {
            Command::Rollback { .. } if rollout.latch().is_some() => Ok(Vec::new()),
            Command::Rollback { force: false } if rollout.legacy_word(now.mono) != Word::Alive => {
                Err(CommandError::MustAsk {
                    id: Arc::clone(rollout.id()),
                })
            }
            Command::Rollback { .. } => {
                let sentence = format!("{} sent everyone to legacy: {reason}", actor.name);
                let trip = rollout.trip(
                    now,
                    Cause::Manual {
                        actor: actor.name.clone(),
                        reason: reason.clone(),
                    },
                    sentence,
                );
                let announcement = rolled_back(rollout, trip, actor, reason, now);
                Ok(self.drop_effects([announcement]))
            }
            Command::Rearm if rollout.latch().is_none() => {
                Err(CommandError::NotRolledBack { id: id.to_owned() })
            }
            Command::Rearm => {
                rollout.rearm(now.mono);
                let announcement = rearmed(rollout, &actor, &reason, now);
                self.revision += 1;
                Ok(vec![
                    Effect::Persist(self.standings()),
                    Effect::Publish(self.split()),
                    Effect::Announce(announcement),
                ])
            }
        }
    }

    fn unknown(&self, id: &str) -> CommandError {
        CommandError::UnknownRollout {
            id: id.to_owned(),
            known: self
                .rollouts
                .iter()
                .map(|rollout| Arc::clone(rollout.id()))
                .collect(),
        }
    }

    /// Returns the effects that persist and publish a change, in the order that the exposure
    /// demands.
    fn change_effects(&mut self, before: &Split) -> Vec<Effect> {
        let after = self.split();
        // Lists count as well as the share: a latch takes listed users off new even if the share
        // was already zero.
        let exposed = |rollout: &RolloutSplit| (!rollout.latched, rollout.percent);
        let was = |id: &str| {
            before
                .rollouts
                .iter()
                .find(|rollout| &*rollout.rule.id == id)
        };
        let raises = after
            .rollouts
            .iter()
            .any(|now| was(&now.rule.id).is_none_or(|was| exposed(was) < exposed(now)));
        let lowers = after
            .rollouts
            .iter()
            .any(|now| was(&now.rule.id).is_some_and(|was| exposed(was) > exposed(now)));
        let maintains = after.maintenance != before.maintenance
            || after
                .rollouts
                .iter()
                .any(|now| was(&now.rule.id).is_some_and(|was| was.maintenance != now.maintenance));
        let persist = Effect::Persist(self.standings());
        match (lowers || maintains, raises) {
            (true, false) => vec![Effect::Publish(after), persist],
            (false, _) => vec![persist, Effect::Publish(after)],
            (true, true) => {
                let lower = after.capped_by(before);
                self.revision += 1;
                vec![
                    Effect::Publish(lower),
                    persist,
                    Effect::Publish(self.split()),
                ]
            }
        }
    }

    fn drop_effects(
        &mut self,
        announcements: impl IntoIterator<Item = Box<Announcement>>,
    ) -> Vec<Effect> {
        self.revision += 1;
        let mut effects = vec![
            Effect::Publish(self.split()),
            Effect::Persist(self.standings()),
        ];
        effects.extend(announcements.into_iter().map(Effect::Announce));
        effects
    }

    /// Returns the split that the data path should use now.
    pub fn split(&self) -> Split {
        let rollouts = self
            .rollouts
            .iter()
            .map(|rollout| rollout.split(self.maintenance.restriction(Some(rollout.id()))))
            .collect();
        Split {
            revision: self.revision,
            rollouts,
            maintenance: self.maintenance.restriction(None),
            routes: Arc::clone(&self.routes),
        }
    }
}

fn announce(
    rollout: &Rollout,
    change: Change,
    actor: &Actor,
    reason: &str,
    sentence: String,
    now: Now,
) -> Box<Announcement> {
    Box::new(Announcement {
        at: now.wall,
        rollout: Arc::clone(rollout.id()),
        change,
        actor: actor.clone(),
        reason: reason.to_owned(),
        sentence,
        effective: Some(rollout.effective()),
    })
}

fn rearmed(rollout: &Rollout, actor: &Actor, reason: &str, now: Now) -> Box<Announcement> {
    let sentence = format!(
        "{}: re-armed by {}, {} % of users are on new: {reason}",
        rollout.id(),
        actor.name,
        rollout.effective()
    );
    announce(rollout, Change::Rearmed, actor, reason, sentence, now)
}
