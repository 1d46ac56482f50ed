//! The handle to the control plane, which sends a message and awaits the answer. Cheap to clone.
//! Everything that changes a rollout uses this handle or the configuration file.
//!
//! Written by: the admin port, `reload`, an upgrade and systemd's pulse. Read by: the control loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::control::rollout::Handover;
use cutover_core::{Actor, Command, CommandError, Lead, Maintenance, Trip};
use tokio::sync::{mpsc, oneshot};

use crate::shared::published::Common;
use crate::shared::report::Report;

/// The number of messages that may wait. Senders wait for room, and the data path never sends.
const QUEUE: usize = 64;

/// Sends messages to the control loop.
#[derive(Clone, Debug)]
pub struct ControlHandle(mpsc::Sender<Message>);

/// The revisions at which a caller wants a change to be made. `None` is any revision, and otherwise
/// it has to be one of these.
pub type IfRevision = Option<Vec<u64>>;

/// A message to the control loop.
#[derive(Debug)]
pub enum Message {
    /// A valid configuration file.
    Settings {
        /// The prepared configuration.
        common: Arc<Common>,
        /// The changed keys that need a restart and were therefore not applied.
        restart_needed: Vec<&'static str>,
        /// Who changed the file.
        actor: Actor,
        /// The reason for the change.
        reason: String,
        /// Receives the result when the file is in force.
        reply: oneshot::Sender<Applied>,
    },
    /// An unusable configuration file. The configuration in force is kept.
    Rejected {
        /// The problems as text.
        problems: String,
    },
    /// These files have changed and have not been read yet, because they may still be being
    /// written.
    Waiting {
        /// The files, as the configuration names them.
        files: Vec<String>,
    },
    /// A caller is about to change the file. Until the release, changes by others at the same
    /// revision are refused.
    Reserve {
        /// The change is made only at one of these revisions.
        if_revision: Vec<u64>,
        /// Receives whether the file may be changed.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The file has been changed, or will not be.
    Release,
    /// A command for a rollout.
    Command {
        /// The name of the rollout.
        rollout: String,
        /// The command.
        command: Command,
        /// Who sent the command.
        actor: Actor,
        /// The reason for the command.
        reason: String,
        /// The command is carried out only at one of these revisions.
        if_revision: IfRevision,
        /// Receives the answer.
        reply: oneshot::Sender<Result<Applied, Refusal>>,
    },
    /// A change of maintenance: requests are to be kept out, or admitted again.
    Maintenance {
        /// The requested change.
        wish: MaintenanceWish,
        /// Who requested the change.
        actor: Actor,
        /// The reason for the change.
        reason: String,
        /// The change is made only at one of these revisions.
        if_revision: IfRevision,
        /// Receives the answer.
        reply: oneshot::Sender<Result<Applied, Refusal>>,
    },
    /// A request for the current status.
    Report(oneshot::Sender<Report>),
    /// A request for proof that the loop runs.
    Pulse(oneshot::Sender<()>),
    /// Another process takes over. From now on nothing is written here, and the configuration that
    /// process has in force applies here.
    HandOver {
        /// Receives every rollback that is decided here.
        trips: mpsc::UnboundedSender<Tripped>,
        /// Receives what the other process needs besides the saved state, or why a handover is not
        /// possible now.
        reply: oneshot::Sender<Result<Handovers, String>>,
    },
    /// The other process has failed, and this process returns to its earlier state.
    TakeBack,
    /// The state that the successor process has in force.
    Lead {
        /// The shares, latches and maintenance.
        lead: Lead,
        /// The number of rollbacks decided here that this state includes.
        acknowledged: u64,
    },
    /// The predecessor process has rolled back.
    Tripped {
        /// The rollback.
        tripped: Tripped,
        /// Notified when the rollback is in force.
        reply: oneshot::Sender<()>,
    },
}

/// The state of each rollout besides its saved state.
pub type Handovers = BTreeMap<Arc<str>, Handover>;

/// A rollback that one process reports to another.
#[derive(Clone, Debug)]
pub struct Tripped {
    /// The name of the rollout.
    pub rollout: String,
    /// The cause of the rollback.
    pub trip: Trip,
    /// Who caused the rollback.
    pub actor: Actor,
    /// The reason for the rollback.
    pub reason: String,
}

/// A requested change of maintenance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceWish {
    /// The name of the rollout, or `None` for everything.
    pub rollout: Option<String>,
    /// The mode from now on.
    pub mode: Maintenance,
    /// The duration of the mode. `None` means until the next change.
    pub lasts: Option<Duration>,
}

/// The result of a change that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision from which on the change is in force.
    pub revision: u64,
    /// Whether the change is also durable.
    pub durable: bool,
}

/// The reason why a change was not made. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The command is not valid in the current state.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Another process is about to take over, and must not start with an outdated state.
    #[error("a new process is taking over")]
    HandingOver,
    /// Another caller was faster.
    #[error("expected revision {}, found {found}: another caller changed it first", revisions(.expected))]
    Revision {
        /// The revisions that the caller had seen. Empty if the caller named no valid revision.
        expected: Vec<u64>,
        /// The revision in force.
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

/// The control loop has ended because the process is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the proxy is shutting down")]
pub struct Gone;

impl ControlHandle {
    /// Creates a handle and the inbox of its control loop.
    pub fn new() -> (Self, mpsc::Receiver<Message>) {
        let (sender, inbox) = mpsc::channel(QUEUE);
        (Self(sender), inbox)
    }

    /// Puts a valid file in force. To be called from a thread outside any runtime.
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

    /// Reports an unusable file. To be called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn rejected_blocking(&self, problems: String) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Rejected { problems })
            .map_err(|_| Gone)
    }

    /// Reports which files are still awaited. To be called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn waiting_blocking(&self, files: Vec<String>) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Waiting { files })
            .map_err(|_| Gone)
    }

    /// Compares revisions, and prevents changes by other callers that name a revision until
    /// [`ControlHandle::release_blocking`]. To be called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended. The inner result is an error when the revision is another one.
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

    /// Allows changes by other callers again. To be called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn release_blocking(&self) -> Result<(), Gone> {
        self.0.blocking_send(Message::Release).map_err(|_| Gone)
    }

    /// Rolls back or re-arms.
    ///
    /// # Errors
    /// When the loop has ended. The inner result is an error when the command is refused.
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
    /// When the loop has ended. The inner result is an error when the change is refused.
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

    /// Returns the current status.
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

    /// Returns when the loop has responded. To be called from a thread outside any runtime.
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

    /// Saves everything, releases the state directory and follows the successor from now on. To be
    /// called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended. The inner error says why a handover is not possible now, and then
    /// nothing has changed.
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

    /// Leads again. To be called from a thread outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn take_back_blocking(&self) -> Result<(), Gone> {
        self.0.blocking_send(Message::TakeBack).map_err(|_| Gone)
    }

    /// Follows the state that the successor process has in force. To be called from a thread
    /// outside any runtime.
    ///
    /// # Errors
    /// When the loop has ended.
    pub fn follow_blocking(&self, lead: Lead, acknowledged: u64) -> Result<(), Gone> {
        self.0
            .blocking_send(Message::Lead { lead, acknowledged })
            .map_err(|_| Gone)
    }

    /// Rolls back because the predecessor process has, and returns when the rollback is in force.
    /// To be called from a thread outside any runtime.
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
