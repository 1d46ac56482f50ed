//! Sends requests about the configuration file to the thread that follows it.
//!
//! Written by: the admin port, the signals and an upgrade. Read by: `reload`.

use std::sync::mpsc::{Sender, channel};

use cutover_core::{Actor, Percent};
use tokio::sync::oneshot;

use crate::shared::control_handle::{Applied, Gone, IfRevision, Refusal};

/// Sends requests to the thread that follows the configuration file. The thread ends after
/// [`ReloadHandle::stop`], or when the last clone of the handle is gone.
#[derive(Clone, Debug)]
pub struct ReloadHandle(Sender<FileRequest>);

/// A request to the thread that follows the configuration file.
#[derive(Debug)]
pub enum FileRequest {
    /// Compare the files with the configuration in force, because something in their directories
    /// changed.
    Look,
    /// Read the file now.
    Reload(ReloadRequest),
    /// Write a percentage into the file.
    Set(SetRequest),
    /// Leave the file alone, because another process follows it. The sender is told when the
    /// request in progress is done.
    Pause(Sender<()>),
    /// Follow the file again.
    Resume,
    /// End the thread, because the process stops.
    Stop,
}

/// A request to read the file now.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who requested the reload.
    pub actor: Actor,
    /// The reason for the reload.
    pub reason: String,
    /// The revisions at which the file may be read. `None` allows any.
    pub if_revision: IfRevision,
    /// Receives the result.
    pub reply: oneshot::Sender<Result<Applied, ReloadError>>,
}

/// A request to write a percentage into the file.
#[derive(Debug)]
pub struct SetRequest {
    /// The id of the rollout.
    pub rollout: String,
    /// The new percentage.
    pub percent: Percent,
    /// Whether to check only that the percentage could be set.
    pub dry_run: bool,
    /// Who requested the change.
    pub actor: Actor,
    /// The reason for the change.
    pub reason: String,
    /// The revisions at which the file may be changed. `None` allows any.
    pub if_revision: IfRevision,
    /// Receives the result.
    pub reply: oneshot::Sender<Result<Applied, SetError>>,
}

/// Why a requested reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file has problems, given as text.
    #[error("{0}")]
    Rejected(String),
    /// The control loop refused the change.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The reason why a percentage was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// The current file has problems, given as text. They take precedence.
    #[error("the file already has problems; fix these first:\n{0}")]
    Broken(String),
    /// No rollout in the file has this id.
    #[error("no rollout has the id `{id}`; there are: {known}")]
    Unknown {
        /// The requested id.
        id: String,
        /// The ids in the file.
        known: String,
    },
    /// The rollout's percentage cannot be edited.
    #[error("{0}")]
    Edit(cutover_config::EditError),
    /// The file would have problems with the new percentage, given as text.
    #[error("the file would not be valid with this percentage:\n{0}")]
    Rejected(String),
    /// Another program is writing the file.
    #[error("{path} is being written by another program; the percentage was not changed")]
    BeingWritten {
        /// The main file.
        path: String,
    },
    /// The control loop refused the change.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The file was saved with problems at the same moment. They are given as text.
    #[error("the percentage was written, but the file cannot be used now:\n{0}")]
    ChangedMeanwhile(String),
    /// The file cannot be written, for example because it is a mounted configuration map.
    #[error("{path} cannot be written ({error}): change it where it comes from")]
    Unwritable {
        /// The file that holds the rollout.
        path: String,
        /// The reason given by the system.
        error: std::io::Error,
    },
}

impl ReloadHandle {
    /// Creates a handle that sends its requests through `requests`.
    pub fn new(requests: Sender<FileRequest>) -> Self {
        Self(requests)
    }

    /// Reads the file now, whether it changed or not, and returns when it is in force. Waits at
    /// most [`MOST`](crate::shared::settling::MOST) for files that are being written.
    ///
    /// # Errors
    /// The outer error says that the process is stopping. The inner one says why the file was not
    /// put in force.
    pub async fn reload(
        &self,
        actor: Actor,
        reason: String,
        if_revision: IfRevision,
    ) -> Result<Result<Applied, ReloadError>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(FileRequest::Reload(ReloadRequest {
                actor,
                reason,
                if_revision,
                reply,
            }))
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Reads the file now and returns when that is done. Blocks, so it must be called outside any
    /// runtime. Signals use it.
    pub fn reload_blocking(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.0.send(FileRequest::Reload(ReloadRequest {
            actor: Actor::file(),
            reason: String::new(),
            if_revision: None,
            reply,
        }));
        let _ = answer.blocking_recv();
    }

    /// Stops following the file until [`ReloadHandle::resume`], and returns when the request in
    /// progress is done. Blocks, so it must be called outside any runtime.
    pub fn pause_blocking(&self) {
        let (done, is_done) = channel();
        let _ = self.0.send(FileRequest::Pause(done));
        let _ = is_done.recv();
    }

    /// Follows the file again.
    pub fn resume(&self) {
        let _ = self.0.send(FileRequest::Resume);
    }

    /// Writes a percentage into the file and puts it in force.
    ///
    /// # Errors
    /// The outer error says that the process is stopping. The inner one says why the file was not
    /// changed.
    pub async fn set_percent(
        &self,
        rollout: String,
        percent: Percent,
        dry_run: bool,
        (actor, reason): (Actor, String),
        if_revision: IfRevision,
    ) -> Result<Result<Applied, SetError>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(FileRequest::Set(SetRequest {
                rollout,
                percent,
                dry_run,
                actor,
                reason,
                if_revision,
                reply,
            }))
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Ends the thread that follows the file.
    pub fn stop(&self) {
        let _ = self.0.send(FileRequest::Stop);
    }
}
