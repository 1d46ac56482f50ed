//! The one loop that moves users: ticks, files and commands in; published splits, durable state and
//! announcements out.
//!
//! It owns the [`ControlPlane`] and is the only writer of what is [`Published`]. Every decision is
//! the plane's; this file carries out its effects in the order given. It never reads or writes a
//! file and never resolves a name itself: a slow disk or DNS server must not hold up the judging of
//! the next tick.
//!
//! A failure on new is looked at as soon as it happens, at most every 2 ms: a dead backend must not
//! go on until the next tick.
//!
//! While another process takes over (see `succession`) this loop follows: it judges what is left of
//! its requests and tells of each rollback, but what is in force is what the other one says, and
//! nothing is written here.
//!
//! A raise waits for its persistence, at most two seconds. If the disk cannot take it, the smaller
//! exposure stays in force and the raise is published as soon as the state is durable.

pub mod report;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::control::plane::Change;
use cutover_core::simulation::WAKE_PAUSE;
use cutover_core::stats::users::tick_of;
use cutover_core::{
    Actor, Announcement, Command, CommandError, ControlPlane, Effect, Event, Lead, Maintenance,
    Mono, Observed, PerSide, Rollout, Rule, Side, Source, Split, TICK, Totals,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::shared::control_handle::{Applied, Estate, IfRevision, Message, Refusal, Tripped};
use crate::shared::drain::Drains;
use crate::shared::prewarm::WarmUp;
use crate::shared::published::{Common, Published, Snapshot};
use crate::shared::recorder::{self, Reader, SlotTotals, UNMATCHED, WAIT_TICKS, slot_of};
use crate::shared::report::{Measured, Report};
use crate::state::journal::Record;
use crate::state::writer::Disk;
use crate::status::{ConfigStatus, Status};
use crate::upstream::Backend;
use crate::upstream::probe::{Answer, Questions};
use report::{recent_quantiles, status_of};

/// The shortest time between two looks.
const LOOK_PAUSE: Duration = WAKE_PAUSE;
/// How long a process that ends waits until the one that has taken over has heard of its last
/// rollback.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often legacy is asked before a person's rollback is refused.
const ASKED_BEFORE_A_ROLLBACK: u32 = 2;
/// How long a raise waits for the disk.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(2);

/// The control loop and everything it owns.
#[derive(Debug)]
pub struct Control {
    plane: ControlPlane,
    reader: Reader,
    published: Arc<Published>,
    common: Arc<Common>,
    disk: Disk,
    config: ConfigStatus,
    rollbacks: BTreeMap<(Arc<str>, String), u64>,
    /// A split that waits for its persistence.
    held: Option<Split>,
    /// By control-plane slot: up to which tick the age of waiting requests has been read.
    waited_until: Vec<u64>,
    /// When the last tick was, and the last standstill of the process.
    ticked: Mono,
    standstill: Option<Standstill>,
    drains: Drains,
    warm_up: WarmUp,
    /// What is still on new of rolled back rollouts leaves then: when, which, and what began
    /// before which revision.
    leaving: Vec<(Mono, Arc<str>, u64)>,
    role: Role,
    /// Somebody who has named the present revision is changing the file.
    is_reserved: bool,
    questions: Questions,
    /// Commands that wait until legacy has said whether it can take users.
    waiting: Vec<Waiting>,
}

/// A command that waits for an answer of legacy.
#[derive(Debug)]
struct Waiting {
    rollout: String,
    command: Command,
    actor: Actor,
    reason: String,
    if_revision: IfRevision,
    /// How often legacy has been asked for it.
    asked: u32,
    reply: oneshot::Sender<Result<Applied, Refusal>>,
}

/// Why the plane is shown what was seen.
#[derive(Clone, Copy, Debug)]
enum Look<'a> {
    /// A tick is over.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A backend has said whether it can take users.
    Answer(&'a Answer),
}

/// What was seen of one rollout, beside its totals.
#[derive(Debug)]
struct Seen {
    look: recorder::Look,
    available: PerSide<bool>,
    passes_checks: PerSide<bool>,
}

/// Which process decides what is in force.
#[derive(Debug)]
enum Role {
    /// This one.
    Leads,
    /// Another one, or soon.
    Follows {
        /// To the other one.
        trips: mpsc::UnboundedSender<Tripped>,
        /// How many rollbacks it has been told of.
        told: u64,
        /// How many of them it has heard of.
        heard: u64,
        /// What it has in force; `None` as long as it is not ready.
        lead: Option<Lead>,
    },
}

/// Ticks after which one was held up by more than the work of the loop.
const HELD_UP: u32 = 6;

/// Between which ticks the process stood still.
#[derive(Clone, Copy, Debug)]
struct Standstill {
    begun: u64,
    ended: u64,
}

impl Standstill {
    /// Whether requests from before it may still be waiting at this tick.
    fn is_recent(self, tick: u64) -> bool {
        tick < self.ended + WAIT_TICKS as u64
    }
}

/// The tick up to which all requests have waited for `older` ticks, of which a standstill counts
/// none.
fn reached(now: u64, older: u64, standstill: Option<Standstill>) -> u64 {
    let until = now.saturating_sub(older);
    match standstill {
        Some(Standstill { begun, ended }) if until < ended => {
            until.saturating_sub(ended - begun).min(begun)
        }
        Some(_) | None => until,
    }
}

impl Control {
    /// The loop for a plane whose first settings are already published as `common`.
    pub fn new(
        plane: ControlPlane,
        reader: Reader,
        published: Arc<Published>,
        common: Arc<Common>,
        disk: Disk,
        config: ConfigStatus,
        (drains, warm_up): (Drains, WarmUp),
    ) -> Self {
        Self {
            drains,
            warm_up,
            leaving: Vec::new(),
            plane,
            reader,
            published,
            common,
            disk,
            config,
            rollbacks: BTreeMap::new(),
            held: None,
            waited_until: Vec::new(),
            ticked: clock::mono(),
            standstill: None,
            role: Role::Leads,
            is_reserved: false,
            questions: Questions::new(),
            waiting: Vec::new(),
        }
    }

    /// Tells of the first settings. Persisted and published they are already: before the ports
    /// opened.
    pub async fn begin(&mut self, effects: Vec<Effect>) {
        let announcements = effects
            .into_iter()
            .filter(|effect| matches!(effect, Effect::Announce(_)))
            .collect();
        self.carry_out(announcements).await;
    }

    /// Runs until `stopped` turns true or every handle is gone.
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let failed = self.reader.failed();
        let mut has_failed = false;
        let mut looks = tokio::time::interval(LOOK_PAUSE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => break,
                _ = ticks.tick() => self.tick().await,
                () = failed.notified(), if !has_failed => has_failed = true,
                _ = looks.tick(), if has_failed => {
                    has_failed = false;
                    self.look_at_failures().await;
                }
                Some(answer) = self.questions.next() => self.hear(answer).await,
                message = inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return,
                },
            }
        }
        // What the last requests came to counts like everything before: a rollback is saved, or
        // told to the process that has taken over.
        self.tick().await;
        let hear = async {
            while self.has_somebody_to_hear()
                && let Some(message) = inbox.recv().await
            {
                self.take(message).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, hear).await;
    }

    /// Whether the process that has taken over has not heard yet of all it was told, or one that
    /// was to take over has not given back yet what it is not to have.
    fn has_somebody_to_hear(&self) -> bool {
        matches!(&self.role, Role::Follows { told, heard, lead, .. } if lead.is_none() || heard < told)
    }

    async fn tick(&mut self) {
        self.note_standstill(clock::mono());
        self.reader.read();
        self.reader.hand_out_permits(clock::mono());
        let effects = self.judge(Look::Tick);
        self.carry_out(effects).await;
        self.send_away(clock::mono());
        if self.disk.is_durable()
            && let Some(split) = self.held.take()
        {
            let in_force = self.published.load();
            let raises = split.rollouts.iter().any(|rollout| {
                in_force
                    .split
                    .rollouts
                    .iter()
                    .any(|now| now.rule.id == rollout.rule.id && now.percent < rollout.percent)
            });
            if raises {
                tracing::info!(
                    "the state is durable again: the raise that was held back is now in force"
                );
            }
            self.publish_warm(split).await;
        }
    }

    /// Sends away what has outlived a rollback for long enough. Who is re-armed meanwhile is on new
    /// again, and stays.
    fn send_away(&mut self, now: Mono) {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        self.leaving = later;
        for (_, id, before) in due {
            if let Some(rollout) = self
                .plane
                .rollouts()
                .iter()
                .find(|rollout| *rollout.id() == id && rollout.latch().is_some())
            {
                self.drains.order(slot_of(rollout.slot()), before);
            }
        }
    }

    async fn look_at_failures(&mut self) {
        self.reader.read_counts();
        let effects = self.judge(Look::Failure);
        self.carry_out(effects).await;
    }

    /// A tick that comes much too late was held up: the process stood still, and no request has
    /// waited for its backend meanwhile.
    fn note_standstill(&mut self, now: Mono) {
        let gap = now.since(self.ticked);
        if gap > TICK * HELD_UP {
            let begun = tick_of(self.ticked);
            // One that follows before the last is forgotten goes on with it.
            let begun = self
                .standstill
                .filter(|last| last.is_recent(begun))
                .map_or(begun, |last| last.begun);
            self.standstill = Some(Standstill {
                begun,
                ended: tick_of(now),
            });
        }
        self.ticked = now;
    }

    /// A backend has said whether it can take users.
    async fn hear(&mut self, answer: Answer) {
        self.reader.read_counts();
        let effects = self.judge(Look::Answer(&answer));
        self.carry_out(effects).await;
        if answer.side != Side::Legacy {
            return;
        }
        let (heard, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| *waiting.rollout == *answer.rollout);
        self.waiting = waiting;
        for waiting in heard {
            let Waiting {
                rollout,
                command,
                actor,
                reason,
                if_revision,
                ..
            } = &waiting;
            let event = Event::Command {
                rollout,
                command: *command,
                actor: actor.clone(),
                reason: reason.clone(),
            };
            let done = match self.obey(event, if_revision.clone()).await {
                // One answer may be late by accident.
                Err(Refusal::Command(CommandError::MustAsk { id }))
                    if waiting.asked < ASKED_BEFORE_A_ROLLBACK =>
                {
                    self.ask(&id, Side::Legacy);
                    self.waiting.push(Waiting {
                        asked: waiting.asked + 1,
                        ..waiting
                    });
                    continue;
                }
                Err(Refusal::Command(CommandError::MustAsk { id })) => {
                    Err(CommandError::LegacyDown { id: id.to_string() }.into())
                }
                done => done,
            };
            let _ = waiting.reply.send(done);
        }
    }

    /// Shows the plane what has been counted, and hands what it aims at to the request path.
    fn judge(&mut self, look: Look<'_>) -> Vec<Effect> {
        let now = clock::now();
        let seen = self.see(now.mono, matches!(look, Look::Tick));
        let nothing = PerSide::<Totals>::default();
        let totals: Vec<(&PerSide<Totals>, &PerSide<Totals>)> = self.reader.rollouts().collect();
        let observed: Vec<Observed<'_>> = seen
            .iter()
            .enumerate()
            .map(|(slot, seen)| {
                let (totals, compared) = totals.get(slot).copied().unwrap_or((&nothing, &nothing));
                seen.look
                    .observed(totals, compared, seen.available, seen.passes_checks)
            })
            .collect();
        let event = match look {
            Look::Tick => Event::Tick(&observed),
            Look::Failure => Event::Failure(&observed),
            Look::Answer(Answer {
                rollout,
                side,
                is_good,
            }) => Event::Answered {
                rollout,
                side: *side,
                is_good: *is_good,
                observed: &observed,
            },
        };
        // Looks are never refused.
        let effects = self.plane.on(event, now).unwrap_or_default();
        self.aim();
        effects
    }

    /// By control-plane slot: what was seen beside the totals.
    fn see(&mut self, now: Mono, is_tick: bool) -> Vec<Seen> {
        let slots = self
            .plane
            .rollouts()
            .iter()
            .map(|rollout| rollout.slot() + 1)
            .max()
            .unwrap_or_default();
        self.waited_until
            .resize(slots.max(self.waited_until.len()), tick_of(now));
        let snapshot = self.published.load();
        (0..slots)
            .map(|slot| {
                let rollout = self
                    .plane
                    .rollouts()
                    .iter()
                    .find(|rollout| rollout.slot() == slot);
                let at = rollout.and_then(|rollout| {
                    snapshot
                        .split
                        .rollouts
                        .iter()
                        .position(|split| split.rule.id == *rollout.id())
                });
                let available = at.map_or(
                    PerSide {
                        legacy: true,
                        new: true,
                    },
                    |at| snapshot.available(at),
                );
                let passes_checks = at.map_or(
                    PerSide {
                        legacy: false,
                        new: false,
                    },
                    |at| snapshot.pass_checks(at, now),
                );
                let hang = rollout.and_then(|rollout| rollout.settings().guard.rule("hang"));
                let aged = is_tick.then(|| match hang {
                    Some(Rule::Hang(older_than_us)) => self.aged(slot, now, older_than_us),
                    _ => 0..0,
                });
                Seen {
                    look: self.reader.look(slot_of(slot), now, aged),
                    available,
                    passes_checks,
                }
            })
            .collect()
    }

    /// The ticks all of whose requests have reached this age since the last call.
    fn aged(&mut self, slot: usize, now: Mono, older_than_us: u64) -> Range<u64> {
        let until = reached(
            tick_of(now),
            older_than_us.div_ceil(TICK.as_micros() as u64),
            self.standstill,
        );
        let from = self.waited_until[slot].max(until.saturating_sub(WAIT_TICKS as u64 / 2));
        self.waited_until[slot] = until.max(self.waited_until[slot]);
        from..until
    }

    /// Before anything is published: a re-armed rollout is to be judged by its first request.
    fn aim(&self) {
        for rollout in self.plane.rollouts() {
            self.reader
                .watch(slot_of(rollout.slot()))
                .aim(rollout.aims());
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Settings {
                common,
                restart_needed,
                actor,
                reason,
                reply,
            } => {
                let rollouts = common.settings.rollouts.clone();
                self.common = common;
                let event = Event::Settings {
                    rollouts,
                    actor,
                    reason,
                };
                let effects = self.plane.on(event, clock::now()).unwrap_or_default();
                self.aim();
                let durable = self.carry_out(effects).await;
                self.accepted(restart_needed);
                self.journal_written().await;
                let _ = reply.send(Applied {
                    revision: self.plane.revision(),
                    durable,
                });
            }
            Message::Rejected { problems } => {
                // Said once for each different set of problems.
                if self.config.problems.as_ref() != Some(&problems) {
                    tracing::error!(file = %self.config.file, problems, "the file cannot be used; the last good one stays in force");
                }
                self.config.last_reload_successful = false;
                self.config.problems = Some(problems);
            }
            Message::Waiting { files } => self.config.waiting_for = files,
            Message::Reserve { if_revision, reply } => {
                let answer = self.expect(Some(&if_revision));
                self.is_reserved = answer.is_ok();
                let _ = reply.send(answer);
            }
            Message::Release => self.is_reserved = false,
            Message::Command {
                rollout,
                command,
                actor,
                reason,
                if_revision,
                reply,
            } => {
                let event = Event::Command {
                    rollout: &rollout,
                    command,
                    actor: actor.clone(),
                    reason: reason.clone(),
                };
                match self.obey(event, if_revision.clone()).await {
                    Err(Refusal::Command(CommandError::MustAsk { id })) => {
                        self.ask(&id, Side::Legacy);
                        self.waiting.push(Waiting {
                            rollout,
                            command,
                            actor,
                            reason,
                            if_revision,
                            asked: 1,
                            reply,
                        });
                    }
                    done => {
                        let _ = reply.send(done);
                    }
                }
            }
            Message::Maintenance {
                wish,
                actor,
                reason,
                if_revision,
                reply,
            } => {
                let event = Event::Maintenance {
                    rollout: wish.rollout.as_deref(),
                    mode: wish.mode,
                    lasts: wish.lasts,
                    actor,
                    reason,
                };
                let _ = reply.send(self.obey(event, if_revision).await);
            }
            Message::Report(reply) => {
                self.reader.read();
                let _ = reply.send(self.report());
            }
            Message::Pulse(reply) => drop(reply.send(())),
            Message::HandOver { trips, reply } => {
                let _ = reply.send(self.hand_over(trips).await);
            }
            Message::TakeBack => {
                self.role = Role::Leads;
                self.disk.take_back();
                // What was decided meanwhile is saved, too.
                let split = self.plane.split();
                self.carry_out(vec![
                    Effect::Persist(self.plane.standings()),
                    Effect::Publish(split),
                ])
                .await;
            }
            Message::Lead { lead, acknowledged } => self.follow(lead, acknowledged),
            Message::Tripped {
                tripped:
                    Tripped {
                        rollout,
                        trip,
                        actor,
                        reason,
                    },
                reply,
            } => {
                // Never refused.
                let effects = self
                    .plane
                    .on(
                        Event::Tripped {
                            rollout: &rollout,
                            trip,
                            actor,
                            reason,
                        },
                        clock::now(),
                    )
                    .unwrap_or_default();
                self.carry_out(effects).await;
                let _ = reply.send(());
            }
        }
    }

    /// Saves everything and lets another process have the state directory.
    async fn hand_over(&mut self, trips: mpsc::UnboundedSender<Tripped>) -> Result<Estate, String> {
        if self.held.is_some() || !self.disk.is_durable() {
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
        Ok(self.plane.heritage())
    }

    /// Puts in force what the process that has taken over has in force.
    fn follow(&mut self, new_lead: Lead, acknowledged: u64) {
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
            source: Source::Start,
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
                // A latch that the other one does not know of yet is not lifted by what it said
                // before.
                (false, true) if knows_all => Command::Rearm,
                (true, true) | (false, _) => continue,
            };
            tracing::info!(rollout = %led.id, latched = led.latched, "the latch of the new process holds here, too");
            // What it asks for is told and saved by the other process.
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
        self.aim();
        self.publish(self.plane.split());
    }

    /// Tells the process that takes over of a rollback that was decided here.
    fn pass_on(&mut self, announcement: &Announcement) {
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

    /// Refuses whoever has seen another revision, and whoever names the one that is being changed.
    fn expect(&self, if_revision: Option<&[u64]>) -> Result<(), Refusal> {
        let found = self.plane.revision();
        match if_revision {
            Some(expected) if self.is_reserved || !expected.contains(&found) => {
                Err(Refusal::Revision {
                    expected: expected.to_vec(),
                    found,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Does what somebody wants, if nothing has changed since they looked.
    async fn obey(
        &mut self,
        event: Event<'_>,
        if_revision: IfRevision,
    ) -> Result<Applied, Refusal> {
        self.expect(if_revision.as_deref())?;
        // Stopping harm never waits; everything else is for the process that takes over.
        let stops_harm = matches!(
            event,
            Event::Command {
                command: Command::Rollback { .. },
                ..
            }
        );
        if matches!(self.role, Role::Follows { .. }) && !stops_harm {
            return Err(Refusal::HandingOver);
        }
        let effects = self.plane.on(event, clock::now())?;
        self.aim();
        let durable = self.carry_out(effects).await;
        self.journal_written().await;
        Ok(Applied {
            revision: self.plane.revision(),
            durable,
        })
    }

    /// Carries out effects in order, and says whether the state is durable.
    async fn carry_out(&mut self, effects: Vec<Effect>) -> bool {
        let mut durable = true;
        for effect in effects {
            match effect {
                // A raise is for the process that takes over.
                Effect::Publish(_) if !durable && matches!(self.role, Role::Follows { .. }) => {}
                // Only what was to be persisted first is held back; a drop is published before.
                Effect::Publish(split) if !durable => self.held = Some(split),
                // A drop while a raise is held back: the drop at once, the raise still only when it
                // is durable.
                Effect::Publish(split) if self.held.is_some() && !self.disk.is_durable() => {
                    self.publish(split.clone().capped_by(&self.published.load().split));
                    self.held = Some(split);
                }
                Effect::Publish(split) => {
                    self.held = None;
                    self.publish_warm(split).await;
                }
                // The directory belongs to another process.
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
                        tracing::error!(rollout = %announcement.rollout, change = "rollback", rule = trip.cause.label(), "{}", announcement.sentence);
                    } else if is_degraded(&announcement.change) {
                        tracing::warn!(rollout = %announcement.rollout, change = announcement.change.name(), "{}", announcement.sentence);
                    } else {
                        tracing::info!(rollout = %announcement.rollout, change = announcement.change.name(), actor = announcement.actor.name, "{}", announcement.sentence);
                    }
                    self.pass_on(&announcement);
                    // The other process writes its own; until it is ready, lines wait for the case
                    // that it fails.
                    if !matches!(self.role, Role::Follows { lead: Some(_), .. }) {
                        self.disk.append(Record::new(&announcement));
                    }
                }
            }
        }
        durable
    }

    /// Asks a backend whether it can take users.
    fn ask(&self, rollout: &Arc<str>, side: Side) {
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

    /// Publishes, after connections have been made to backends that get their first users. What
    /// falls in the same split does not wait for that.
    async fn publish_warm(&mut self, split: Split) {
        let cold = self.cold(&split);
        if !cold.is_empty() {
            self.publish(split.clone().capped_by(&self.published.load().split));
            self.warm_up.warm(cold).await;
        }
        self.publish(split);
    }

    /// The new backends that are about to get their first users.
    fn cold(&self, split: &Split) -> Vec<Arc<Backend>> {
        let before = self.published.load();
        let warm = before.new_in_use();
        let after = Snapshot::new(split.clone(), Arc::clone(&self.common), Some(&before));
        after
            .new_in_use()
            .into_iter()
            .filter(|backend| !warm.iter().any(|warm| warm.is_like(backend)))
            .collect()
    }

    /// Waits until the journal has what was announced, so that an answered command is never missing
    /// from it.
    async fn journal_written(&self) {
        // A disk that is slower than this is told of by `latch_durable`.
        let _ = tokio::time::timeout(PERSIST_TIMEOUT, self.disk.flush()).await;
    }

    fn publish(&self, split: Split) {
        let before = self.published.load();
        let split = match &self.role {
            Role::Follows {
                lead: Some(lead), ..
            } => split.led_by(lead),
            // Until the other one is ready nothing is raised here that it might not know of.
            Role::Follows { lead: None, .. } => split.capped_by(&before.split),
            Role::Leads => split,
        };
        self.published.swap(Snapshot::new(
            split,
            Arc::clone(&self.common),
            Some(&before),
        ));
    }

    fn accepted(&mut self, restart_needed: Vec<&'static str>) {
        let digest = self.common.settings.digest.clone();
        if !restart_needed.is_empty() {
            tracing::warn!(
                keys = restart_needed.join(", "),
                "these keys changed in the file but need a restart; the running values stay"
            );
        }
        for warning in &self.common.settings.warnings {
            tracing::warn!(file = %self.config.file, "{warning}");
        }
        tracing::info!(file = %self.config.file, digest, rollouts = self.common.settings.rollouts.len(), revision = self.plane.revision(), "the file is in force");
        let (file, waiting_for) = (
            std::mem::take(&mut self.config.file),
            std::mem::take(&mut self.config.waiting_for),
        );
        self.config = ConfigStatus {
            file,
            digest,
            last_reload_successful: true,
            last_success_at: clock::rfc3339(clock::wall()),
            problems: None,
            restart_needed: restart_needed.into_iter().map(str::to_owned).collect(),
            waiting_for,
        };
    }

    fn report(&self) -> Report {
        let nothing = SlotTotals::default();
        let totals = |slot: usize| self.reader.slot(slot_of(slot)).unwrap_or(&nothing);
        let unmatched = self
            .reader
            .slot(UNMATCHED)
            .cloned()
            .unwrap_or_else(SlotTotals::default);
        Report {
            status: Status {
                journal: self.disk.journal_note(),
                ..status_of(
                    &self.plane,
                    &self.published.load().split,
                    self.config.clone(),
                    self.disk.is_durable(),
                    &unmatched,
                    totals,
                )
            },
            measured: self
                .plane
                .rollouts()
                .iter()
                .map(|rollout| Measured {
                    totals: totals(rollout.slot()).clone(),
                    recent_quantiles: recent_quantiles(rollout),
                })
                .collect(),
            unmatched,
            common: Arc::clone(&self.common),
            rollbacks: self
                .rollbacks
                .iter()
                .map(|((rollout, label), count)| (Arc::clone(rollout), label.clone(), *count))
                .collect(),
        }
    }
}

/// Whether a change means that users get less than they should, short of a rollback.
fn is_degraded(change: &Change) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_grows_older_while_the_process_stands_still() {
        let standstill = Some(Standstill {
            begun: 100,
            ended: 148,
        });
        for (now, without, with) in [
            (148, 108, 60),
            (150, 110, 62),
            (186, 146, 98),
            (187, 147, 99),
            (188, 148, 148),
            (200, 160, 160),
        ] {
            assert_eq!(
                (reached(now, 40, None), reached(now, 40, standstill)),
                (without, with),
                "{now}"
            );
        }
    }
}
