//! The control loop, the only one that moves users. Its inputs are ticks, files and commands; its
//! outputs are published splits, durable state and announcements.
//!
//! The loop owns the [`ControlPlane`] and is the only writer of what is [`Published`]. Every
//! decision is made by the plane; this module carries out its effects in the order given. It never
//! reads or writes a file and never resolves a name itself. A slow disk or DNS server must not
//! delay the judgement of the next tick.
//!
//! A failure on new is checked as soon as it happens, at most every 2 ms, because a dead backend
//! must not continue to get users until the next tick.
//!
//! While another process takes over (see `upgrade`) this loop follows. It judges its remaining
//! requests and reports each rollback. The other process decides what is in force, and nothing is
//! written here.
//!
//! A raise waits for its persistence, at most two seconds. If the disk cannot take it, the smaller
//! exposure stays in force and the raise is published as soon as the state is durable.

mod effects;
mod messages;
mod observe;
pub mod report;
mod takeover;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::simulation::WAKE_PAUSE;
use cutover_core::{Actor, Command, ControlPlane, Effect, Mono, Split, TICK};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::shared::control_handle::{Applied, IfRevision, Message, Refusal};
use crate::shared::drain::DrainSignal;
use crate::shared::prewarm::Prewarm;
use crate::shared::published::{Common, Published};
use crate::shared::recorder::Reader;
use crate::state::writer::StateWriter;
use crate::status::ConfigStatus;
use crate::upstream::probe::Probes;
use observe::Standstill;
use takeover::Role;

/// The shortest time between two checks.
const LOOK_PAUSE: Duration = WAKE_PAUSE;

/// How long an ending process waits for its successor to acknowledge its last rollback.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The number of probes to legacy before an operator's rollback is refused.
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
    disk: StateWriter,
    config: ConfigStatus,
    rollbacks: BTreeMap<(Arc<str>, String), u64>,
    /// A split that waits until it is persisted.
    awaiting_persist: Option<Split>,
    /// The tick up to which the age of waiting requests has been read, by control-plane slot.
    waited_until: Vec<u64>,
    /// The time of the last tick, and the last standstill of the process.
    ticked: Mono,
    standstill: Option<Standstill>,
    drains: DrainSignal,
    prewarm: Prewarm,
    /// The requests and connections still on new after a rollback, which are sent away at a given
    /// time. Each entry has the time, the rollout, and the revision before which they began.
    leaving: Vec<(Mono, Arc<str>, u64)>,
    role: Role,
    /// Whether a caller that named the present revision is changing the file.
    is_reserved: bool,
    questions: Probes,
    /// Commands that wait until legacy has answered whether it can take users.
    waiting: Vec<Waiting>,
}

/// A command that waits for an answer from legacy.
#[derive(Debug)]
struct Waiting {
    rollout: String,
    command: Command,
    actor: Actor,
    reason: String,
    if_revision: IfRevision,
    /// The number of times legacy has been probed for this command.
    asked: u32,
    reply: oneshot::Sender<Result<Applied, Refusal>>,
}

impl Control {
    /// Creates the loop for a plane whose first settings are already published as `common`.
    pub fn new(
        plane: ControlPlane,
        reader: Reader,
        published: Arc<Published>,
        common: Arc<Common>,
        disk: StateWriter,
        config: ConfigStatus,
        (drains, prewarm): (DrainSignal, Prewarm),
    ) -> Self {
        Self {
            drains,
            prewarm,
            leaving: Vec::new(),
            plane,
            reader,
            published,
            common,
            disk,
            config,
            rollbacks: BTreeMap::new(),
            awaiting_persist: None,
            waited_until: Vec::new(),
            ticked: clock::mono(),
            standstill: None,
            role: Role::Leads,
            is_reserved: false,
            questions: Probes::new(),
            waiting: Vec::new(),
        }
    }

    /// Announces the first settings. They were persisted and published before the ports opened.
    pub async fn begin(&mut self, effects: Vec<Effect>) {
        let announcements = effects
            .into_iter()
            .filter(|effect| matches!(effect, Effect::Announce(_)))
            .collect();
        self.carry_out(announcements).await;
    }

    /// Runs until `stopped` becomes true or every handle is gone.
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
        // The results of the last requests count like all before. A rollback is saved, or reported
        // to the process that has taken over.
        self.tick().await;
        let hear = async {
            while self.has_unreported_rollbacks()
                && let Some(message) = inbox.recv().await
            {
                self.take(message).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, hear).await;
    }
}
