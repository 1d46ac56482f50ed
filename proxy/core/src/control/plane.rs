//! The control plane as one function: events in, effects out, in order.
//!
//! One task of the shell owns a [`ControlPlane`], feeds it ticks, settings and commands, and
//! carries out the effects it returns one after the other. The order of effects is part of the
//! behaviour: a drop is published before it is persisted and announced (stop the harm first), a
//! raise is persisted before it is published (a crash in between leaves the smaller exposure). A
//! change that lowers one rollout and raises another does both: first everything at the lower of
//! the two, then persist, then the whole.
//!
//! Latches of rollouts that left the file are kept: taking a block out and putting it back does not
//! lift its latch.
//!
//! Maintenance is in force first and saved next in both directions: neither closing for a migration
//! nor opening again may wait for a disk. A crash in between leaves the mode before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::control::maintenance::{self, Maintenance, Scope, Window, Windows};
use crate::control::rollout::{
    Cause, Heritage, Judgement, Latch, Phase, Rollout, RolloutSettings, Trip,
};
use crate::guard::Rule;
use crate::guard::availability::Word;
use crate::guard::judge::Observed;
use crate::percent::Percent;
use crate::routing::routes::Routes;
use crate::routing::split::{RolloutSplit, Split};
use crate::side::{PerSide, Side};
use crate::stats::window::Totals;
use crate::time::{Mono, Now, Wall};

/// Something the control plane must know.
#[derive(Debug)]
pub enum Event<'a> {
    /// Time passed: what was seen of every recorder slot, by slot. Slots beyond the end have no
    /// traffic yet.
    Tick(&'a [Observed<'a>]),
    /// A request to new has failed, between ticks: the same, but without latencies and hanging
    /// requests.
    Failure(&'a [Observed<'a>]),
    /// A valid file, the first one included.
    Settings {
        /// All rollouts in file order.
        rollouts: Vec<RolloutSettings>,
        /// Who changed the file, as far as known.
        actor: Actor,
        /// Why, as far as known.
        reason: String,
    },
    /// A backend was asked whether it can take users ([`Effect::Ask`]), and this came of it.
    Answered {
        /// The rollout it was asked for.
        rollout: &'a str,
        /// The side.
        side: Side,
        /// Whether it can.
        is_good: bool,
        /// The same as at a failure.
        observed: &'a [Observed<'a>],
    },
    /// Somebody wants something of one rollout.
    Command {
        /// Its id.
        rollout: &'a str,
        /// What.
        command: Command,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
    /// Another process that serves the same users has rolled back: the same latch holds here.
    Tripped {
        /// Its id. One that is not here, or is latched already, changes nothing.
        rollout: &'a str,
        /// What happened there.
        trip: Trip,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
    /// Somebody wants something kept out, or let in again.
    Maintenance {
        /// Of one rollout, or of everything.
        rollout: Option<&'a str>,
        /// What; [`Maintenance::Off`] lets in.
        mode: Maintenance,
        /// For how long; `None` until somebody says otherwise.
        lasts: Option<Duration>,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
    },
}

/// What somebody can want of a rollout. A changed percentage is not among them: it goes through the
/// file and arrives as settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everybody to legacy, latched.
    Rollback {
        /// Also if legacy does not answer.
        force: bool,
    },
    /// Lift the latch; the percentage of the file is in force again.
    Rearm,
}

/// Who did something, and through which door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The name of a token, a user, or of the part of Cutover that acted.
    pub name: String,
    /// The door.
    pub source: Source,
}

impl Actor {
    /// The guard itself.
    pub fn guard() -> Self {
        Self {
            name: "guard".to_owned(),
            source: Source::Guard,
        }
    }

    /// A time that was set beforehand and has come.
    pub fn timer() -> Self {
        Self {
            name: "timer".to_owned(),
            source: Source::Timer,
        }
    }

    /// Whoever edited the file.
    pub fn file() -> Self {
        Self {
            name: "file".to_owned(),
            source: Source::File,
        }
    }
}

/// The door through which a change came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The watched file.
    File,
    /// The command line.
    Cli,
    /// The admin page.
    Ui,
    /// The admin API.
    Api,
    /// The guard.
    Guard,
    /// Start-up and what was found there.
    Start,
    /// A time that was set beforehand.
    Timer,
}

impl Source {
    /// All doors.
    pub const ALL: [Self; 7] = [
        Self::File,
        Self::Cli,
        Self::Ui,
        Self::Api,
        Self::Guard,
        Self::Start,
        Self::Timer,
    ];

    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cli => "cli",
            Self::Ui => "ui",
            Self::Api => "api",
            Self::Guard => "guard",
            Self::Start => "start",
            Self::Timer => "timer",
        }
    }

    /// The door of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// Something the shell must do, in the order given.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Put this split before the data path.
    Publish(Split),
    /// Make this durable.
    Persist(Standings),
    /// Write it into the journal, the log and tell people.
    Announce(Box<Announcement>),
    /// Ask a backend whether it can take users, by a health check or a connection, and tell with
    /// [`Event::Answered`] what came of it within a quarter of a second.
    Ask {
        /// For which rollout.
        rollout: Arc<str>,
        /// Which of its sides.
        side: Side,
    },
}

/// Where everything stands, as it is made durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Each rollout, those with a latch that left the file included.
    pub rollouts: Vec<Standing>,
    /// What is kept out, by whom it concerns.
    pub maintenance: Vec<(Scope, Window)>,
}

/// Where one rollout stands, as it is made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The rollout.
    pub id: Arc<str>,
    /// The share asked for; `None` when the rollout is no longer in the file.
    pub percent: Option<Percent>,
    /// Holding, or latched and why.
    pub phase: Phase,
}

/// One change, for the journal and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// When.
    pub at: Wall,
    /// Which rollout; [`maintenance::EVERYTHING`] for a change that is not of one.
    pub rollout: Arc<str>,
    /// What changed.
    pub change: Change,
    /// Who changed it.
    pub actor: Actor,
    /// Why.
    pub reason: String,
    /// All of it in one sentence.
    pub sentence: String,
    /// The share of users on new from now on; `None` for a change that is not of one rollout.
    pub effective: Option<Percent>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The process started with this rollout.
    Started,
    /// A rollout came into the file.
    Added,
    /// A rollout left the file.
    Removed,
    /// The share asked for changed.
    Percent {
        /// Before.
        from: Percent,
        /// From now on.
        to: Percent,
    },
    /// Other settings changed.
    Settings,
    /// Latched at 0 %.
    RolledBack(Trip),
    /// The latch was lifted.
    Rearmed,
    /// The guard would have rolled back, were it not a dry run.
    DryRunBreach,
    /// Both sides are bad at once: raises are frozen.
    SharedCause,
    /// Both sides are not bad at once any more: raises go through.
    SharedCauseEnded,
    /// The evidence is there, but too few are hurt to roll back.
    Held,
    /// New is worse, but legacy does not answer: nobody is moved, and raises are frozen.
    NoRefuge,
    /// New is not worse any more, or legacy answers again: raises go through.
    NoRefugeEnded,
    /// After a rollback of the guard legacy does not answer: users are on new meanwhile.
    Spilled,
    /// Legacy answers again: its users are back.
    SpillEnded,
    /// After a rollback of the guard legacy does not carry the load.
    LegacyOverloaded,
    /// Something is kept out from now on, or let in again.
    Maintenance {
        /// The mode from now on.
        mode: Maintenance,
        /// When it ends by itself.
        until: Option<Wall>,
    },
}

impl Change {
    /// The name in records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Percent { .. } => "percent",
            Self::Settings => "settings",
            Self::RolledBack(_) => "rollback",
            Self::Rearmed => "rearm",
            Self::DryRunBreach => "dry_run_breach",
            Self::SharedCause => "shared_cause",
            Self::SharedCauseEnded => "shared_cause_ended",
            Self::Held => "held",
            Self::NoRefuge => "no_refuge",
            Self::NoRefugeEnded => "no_refuge_ended",
            Self::Spilled => "spilled",
            Self::SpillEnded => "spill_ended",
            Self::LegacyOverloaded => "legacy_overloaded",
            Self::Maintenance { .. } => "maintenance",
        }
    }
}

/// Why a command was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// No rollout has this id.
    UnknownRollout {
        /// The id asked for.
        id: String,
        /// The ids there are.
        known: Vec<Arc<str>>,
    },
    /// Legacy does not answer, so a rollback would give everybody errors.
    LegacyDown {
        /// The rollout.
        id: String,
    },
    /// Legacy has to be asked first whether it can take users. The shell asks, and says the command
    /// again.
    MustAsk {
        /// The rollout.
        id: Arc<str>,
    },
    /// Only a rolled-back rollout can be re-armed.
    NotRolledBack {
        /// The rollout.
        id: String,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownRollout { id, known } => write!(
                f,
                "no rollout has the id `{id}`; there are: {}",
                known.join(", ")
            ),
            Self::LegacyDown { id } => write!(
                f,
                "legacy of `{id}` does not answer, so a rollback would give errors to everybody; \
                 nobody was moved"
            ),
            Self::MustAsk { id } => write!(
                f,
                "legacy of `{id}` has not said yet whether it can take users"
            ),
            Self::NotRolledBack { id } => write!(
                f,
                "`{id}` is not rolled back, so there is nothing to re-arm"
            ),
        }
    }
}

impl std::error::Error for CommandError {}

/// What the saved state said at start.
#[derive(Clone, Debug)]
pub enum Restored {
    /// There was none: the first start.
    Fresh,
    /// Where everything stood.
    Known(Standings),
    /// It could not be read, for this reason: every rollout starts latched at 0 %.
    Unreadable(String),
}

/// All rollouts and their latches. The one writer of the split.
#[derive(Debug)]
pub struct ControlPlane {
    rollouts: Vec<Rollout>,
    /// Their matches.
    routes: Arc<Routes>,
    /// Latches of rollouts that are not in the file now.
    absent: BTreeMap<Arc<str>, Latch>,
    /// Recorder slots by id, for the life of the process.
    slots: BTreeMap<Arc<str>, usize>,
    maintenance: Windows,
    revision: u64,
    unreadable: Option<String>,
    /// What the process before this one knew of rollouts that have not arrived yet.
    heritage: BTreeMap<Arc<str>, Heritage>,
    started: bool,
}

impl ControlPlane {
    /// A control plane that knows what was restored but has no settings yet.
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
            heritage: BTreeMap::new(),
            started: false,
            routes: Arc::default(),
        }
    }

    /// Goes on with what the process before this one knew, beside the standings. Before the first
    /// settings.
    pub fn inherit(&mut self, heritage: BTreeMap<Arc<str>, Heritage>) {
        self.heritage = heritage;
    }

    /// What is known of each rollout beside its standing, for the process after this one.
    pub fn heritage(&self) -> BTreeMap<Arc<str>, Heritage> {
        self.rollouts
            .iter()
            .map(|rollout| (Arc::clone(rollout.id()), rollout.heritage()))
            .collect()
    }

    /// The rollouts in file order.
    pub fn rollouts(&self) -> &[Rollout] {
        &self.rollouts
    }

    /// The rollout with this id.
    pub fn rollout(&self, id: &str) -> Option<&Rollout> {
        self.rollouts.iter().find(|rollout| &**rollout.id() == id)
    }

    /// The revision of the split published last.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The window that is in force for a rollout, or for requests that match none, and whether it
    /// concerns everything.
    pub fn maintenance(&self, rollout: Option<&str>) -> Option<(&Window, bool)> {
        self.maintenance.governing(rollout)
    }

    /// Where everything stands, as it is made durable.
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

    /// Takes one event and returns what must be done, in order.
    ///
    /// # Errors
    /// Only a command can be refused; nothing has changed then.
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

    fn on_look(
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
                            "{}: both sides are not bad at once any more, {} % of users are on new",
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
                            "{}: new is worse, but legacy does not answer: nobody was moved, \
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
                    Judgement::Spilled(is_spilled) => {
                        let (change, what) = match is_spilled {
                            true => (
                                Change::Spilled,
                                "legacy does not serve users since the rollback, and new answers: \
                                 users are on new until legacy is back, and the rollback stays \
                                 latched",
                            ),
                            false => (
                                Change::SpillEnded,
                                "legacy answers again: its users are back, and the rollback stays \
                                 latched",
                            ),
                        };
                        said.push(announce(
                            rollout,
                            change,
                            &Actor::guard(),
                            "legacy after the rollback",
                            format!("{}: {what}", rollout.id()),
                            now,
                        ));
                        thawed = true;
                    }
                    Judgement::SpillFailed => {
                        let sentence = format!(
                            "{}: new fails users as legacy does: they are back on legacy, and the \
                             rollback stays latched",
                            rollout.id()
                        );
                        said.push(announce(
                            rollout,
                            Change::SpillEnded,
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
                    Judgement::Held(sentence) => {
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
            // A raise that was frozen goes through now, and is durable first, as every raise.
            effects = self.change_effects(&before);
        }
        effects.extend(changed.into_iter().chain(said).map(Effect::Announce));
        effects.extend(asked);
        effects
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

    fn on_tripped(
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

    fn on_maintenance(
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
            let until = lasts.map(|lasts| maintenance::after(now.wall, lasts));
            let window = Window {
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

    /// Ends the maintenance whose time has come.
    fn over(&mut self, now: Now) -> Vec<Announcement> {
        let over = self.maintenance.expire(now.mono);
        self.tell_of_ends(over, "its time is over", now)
    }

    fn tell_of_ends(&self, over: Vec<(Scope, Window)>, why: &str, now: Now) -> Vec<Announcement> {
        let tell = |(scope, window): (Scope, Window)| {
            let lasted = window.until.map_or_else(String::new, |until| {
                format!(
                    " after {}",
                    maintenance::lasting(maintenance::length(window.since, until))
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

    fn maintained(
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
        let sentence = format!("{}: {sentence}", maintenance::subject(scope));
        Announcement {
            at: now.wall,
            rollout: maintenance::scope_name(scope),
            change,
            actor,
            reason,
            sentence,
            effective,
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

    fn on_settings(
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
        self.heritage.clear();
        self.revision += 1;
        let mut effects = self.change_effects(&before);
        effects.extend(announcements.into_iter().map(Effect::Announce));
        effects
    }

    /// A rollout that was not there before, with the latch it left behind, if any.
    fn arrive(
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
                    "the saved state could not be read ({why}), so nobody knows whether it was \
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
        let heritage = self.heritage.remove(&settings.id);
        let mut rollout = Rollout::new(settings, slot, phase, new_since);
        if let Some(heritage) = heritage {
            rollout.inherit(heritage, now.mono);
        }
        rollout
    }

    /// Persist and publish in the order that the exposure demands.
    fn change_effects(&mut self, before: &Split) -> Vec<Effect> {
        let after = self.split();
        // Lists count as well as the share: who is latched is off new though the share was zero
        // before.
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

    /// What the data path should see now.
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

fn rolled_back(
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

fn rearmed(rollout: &Rollout, actor: &Actor, reason: &str, now: Now) -> Box<Announcement> {
    let sentence = format!(
        "{}: re-armed by {}, {} % of users are on new: {reason}",
        rollout.id(),
        actor.name,
        rollout.effective()
    );
    announce(rollout, Change::Rearmed, actor, reason, sentence, now)
}

fn would_trip(rollout: &Rollout, rule: Rule, why: &str, now: Now) -> Box<Announcement> {
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

fn arrived(
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

/// What a file did to a rollout that was there before; nothing when it says the same.
fn changed(
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
