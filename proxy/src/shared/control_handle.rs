//! The door to the control plane: send it something, await the answer. Cheap to clone; everything
//! that changes a rollout goes through here or through the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::control::rollout::Handover;
use cutover_core::{Actor, Command, CommandError, Lead, Maintenance, Trip};
use tokio::sync::{mpsc, oneshot};

use crate::shared::published::Common;
use crate::shared::report::Report;

/// How many messages may wait. Senders wait for room; the data path never sends.
const QUEUE: usize = 64;

/// Sends messages to the control loop.
#[derive(Clone, Debug)]
pub struct ControlHandle(mpsc::Sender<Message>);

/// The revisions at which somebody wants a change to be made: any for `None`, one of these else.
pub type IfRevision = Option<Vec<u64>>;

/// What can be told to the control loop.
#[derive(Debug)]
pub enum Message {
    /// A valid file.
    Settings {
        /// The file, prepared.
        common: Arc<Common>,
        /// Changed keys that need a restart and so were not taken.
        restart_needed: Vec<&'static str>,
        /// Who changed it.
        actor: Actor,
        /// Why.
        reason: String,
        /// Told when it is in force.
        reply: oneshot::Sender<Applied>,
    },
    /// A file that cannot be used. What is in force stays.
    Rejected {
        /// The problems as text.
        problems: String,
    },
    /// These files have changed and are not read yet: they may still be being written.
    Waiting {
        /// As the file names them.
        files: Vec<String>,
    },
    /// Somebody is about to change the file. Until the release, who wants a change at the same
    /// revision is refused.
    Reserve {
        /// Only at one of these revisions.
        if_revision: Vec<u64>,
        /// Whether the file may be changed.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The file has been changed, or will not be.
    Release,
    /// Somebody wants something of a rollout.
    Command {
        /// Which rollout.
        rollout: String,
        /// What.
        command: Command,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
        /// Only at one of these revisions.
        if_revision: IfRevision,
        /// The answer.
        reply: oneshot::Sender<Result<Applied, Refusal>>,
    },
    /// Somebody wants something kept out, or let in again.
    Maintenance {
        /// What.
        wish: MaintenanceWish,
        /// Who.
        actor: Actor,
        /// Why.
        reason: String,
        /// Only at one of these revisions.
        if_revision: IfRevision,
        /// The answer.
        reply: oneshot::Sender<Result<Applied, Refusal>>,
    },
    /// Somebody wants to know how things stand.
    Report(oneshot::Sender<Report>),
    /// Somebody wants to know that the loop turns.
    Pulse(oneshot::Sender<()>),
    /// Another process takes over: from now on nothing is written here, and what it has in force
    /// holds here.
    HandOver {
        /// Told of every rollback that is decided here.
        trips: mpsc::UnboundedSender<Tripped>,
        /// What the other process needs to know beside the saved state; or why this is no time for
        /// it.
        reply: oneshot::Sender<Result<Handovers, String>>,
    },
    /// The other process has failed: all is as before.
    TakeBack,
    /// What the process that has taken over has in force.
    Lead {
        /// The shares, latches and maintenance.
        lead: Lead,
        /// How many of the rollbacks that were decided here are in it.
        acknowledged: u64,
    },
    /// The process before this one has rolled back.
    Tripped {
        /// What happened there.
        tripped: Tripped,
        /// Told when it is in force.
        reply: oneshot::Sender<()>,
    },
}

/// What each rollout knows beside its saved standing.
pub type Handovers = BTreeMap<Arc<str>, Handover>;

/// A rollback that one process tells another of.
#[derive(Clone, Debug)]
pub struct Tripped {
    /// Which rollout.
    pub rollout: String,
    /// What happened.
    pub trip: Trip,
    /// Who.
    pub actor: Actor,
    /// Why.
    pub reason: String,
}

/// What is to be kept out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceWish {
    /// Of one rollout, or of everything.
    pub rollout: Option<String>,
    /// The mode from now on.
    pub mode: Maintenance,
    /// For how long; `None` until somebody says otherwise.
    pub lasts: Option<Duration>,
}

/// Something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision from which on it is in force.
    pub revision: u64,
    /// Whether it is durable, too.
    pub durable: bool,
}

/// Something was not done; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The command makes no sense now.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Another process is about to take over, and must not begin with a state that is already old.
    #[error("a new process is taking over")]
    HandingOver,
    /// Somebody else was faster.
    #[error("expected revision {}, found {found}: somebody changed it meanwhile", revisions(.expected))]
    Revision {
        /// What the caller had seen; empty if it was no revision.
        expected: Vec<u64>,
        /// What is in force.
        found: u64,
    },
}

fn revisions(expected: &[u64]) -> String {
    if expected.is_empty() {
        "none that there ever was".to_owned()
    } else {
        expected
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(" or ")
    }
}

/// The control loop has ended: the process is going down.
#[derive(Debug, thiserror::Error)]
#[error("the proxy is shutting down")]
pub struct Gone;

impl ControlHandle {
    /// A handle and the inbox of the loop it leads to.
    pub fn new() -> (Self, mpsc::Receiver<Message>) {
        let (sender, inbox) = mpsc::channel(QUEUE);
        (Self(sender), inbox)
    }

    /// Puts a valid file in force, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn settings_blocking(
        &self,
        common: Arc<Common>,
        restart_needed: Vec<&'static str>,
        actor: Actor,
        reason: String,
    ) -> Result<Applied, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Message::Settings {
                common,
                restart_needed,
                actor,
                reason,
                reply,
            })
            .map_err(|_| Gone)?;
        answer.blocking_recv().map_err(|_| Gone)
    }

    /// Tells of a file that cannot be used, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn rejected_blocking(&self, problems: String) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Rejected { problems })
            .map_err(|_| Gone)
    }

    /// Tells which files are waited for, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn waiting_blocking(&self, files: Vec<String>) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Waiting { files })
            .map_err(|_| Gone)
    }

    /// Compares revisions, and keeps others who name one from changing anything until
    /// [`ControlHandle::release_blocking`]. From a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended; inside, when the revision is another one.
    pub fn reserve_blocking(&self, if_revision: IfRevision) -> Result<Result<(), Refusal>, Gone> {
        let Some(if_revision) = if_revision else {
            return Ok(Ok(()));
        };
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Message::Reserve { if_revision, reply })
            .map_err(|_| Gone)?;
        answer.blocking_recv().map_err(|_| Gone)
    }

    /// Lets others change things again, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn release_blocking(&self) -> Result<(), Gone> {
        self.0.blocking_send(Message::Release).map_err(|_| Gone)
    }

    /// Rolls back or re-arms.
    ///
    /// # Errors
    /// When the loop has ended; inside, when the command is refused.
    pub async fn command(
        &self,
        rollout: String,
        command: Command,
        actor: Actor,
        reason: String,
        if_revision: IfRevision,
    ) -> Result<Result<Applied, Refusal>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Message::Command {
                rollout,
                command,
                actor,
                reason,
                if_revision,
                reply,
            })
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Begins or ends maintenance.
    ///
    /// # Errors
    /// When the loop has ended; inside, when it is refused.
    pub async fn maintenance(
        &self,
        wish: MaintenanceWish,
        actor: Actor,
        reason: String,
        if_revision: IfRevision,
    ) -> Result<Result<Applied, Refusal>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Message::Maintenance {
                wish,
                actor,
                reason,
                if_revision,
                reply,
            })
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// How things stand now.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn report(&self) -> Result<Report, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Message::Report(reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Returns when the loop has turned, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn pulse_blocking(&self) -> Result<(), Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Message::Pulse(reply))
            .map_err(|_| Gone)?;
        answer.blocking_recv().map_err(|_| Gone)
    }

    /// Saves everything, lets go of the state directory and follows from now on, from a thread
    /// outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended; inside, why this is no time for it: all is as before then.
    pub fn hand_over_blocking(
        &self,
        trips: mpsc::UnboundedSender<Tripped>,
    ) -> Result<Result<Handovers, String>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Message::HandOver { trips, reply })
            .map_err(|_| Gone)?;
        answer.blocking_recv().map_err(|_| Gone)
    }

    /// Leads again, from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn take_back_blocking(&self) -> Result<(), Gone> {
        self.0.blocking_send(Message::TakeBack).map_err(|_| Gone)
    }

    /// Follows what the process that has taken over has in force, from a thread outside any
    /// runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn follow_blocking(&self, lead: Lead, acknowledged: u64) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Lead { lead, acknowledged })
            .map_err(|_| Gone)
    }

    /// Rolls back because the process before this one has, and returns when that is in force. From
    /// a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn adopt_blocking(&self, tripped: Tripped) -> Result<(), Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Message::Tripped { tripped, reply })
            .map_err(|_| Gone)?;
        answer.blocking_recv().map_err(|_| Gone)
    }
}
