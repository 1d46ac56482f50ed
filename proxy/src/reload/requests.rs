//! Requested reloads and requested percentages.

use super::{TAKES, Watch};
use crate::clock;
use crate::shared::control_handle::{Applied, Gone};
use crate::shared::reload_handle::{FileRequest, ReloadRequest, SetError, SetRequest};
use crate::shared::settling::{self};
use cutover_core::{Actor, Mono, Percent};
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// How long a change of a percentage waits for another writer of the file.
pub(super) const SET_PATIENCE: Duration = Duration::from_secs(3);

/// A reload that a caller waits for.
pub(super) struct Pending {
    pub(super) reload: ReloadRequest,
    pub(super) since: Mono,
    pub(super) has_begun: bool,
    /// The result of the reload, while lists are still settling.
    pub(super) came_to: Option<Result<Applied, String>>,
}

/// Waits for the end of a pause, and breaks when the process is ending. Requests in the meantime
/// are refused as unavailable.
pub(super) fn pause(wishes: &Receiver<FileRequest>) -> ControlFlow<()> {
    loop {
        match wishes.recv() {
            Ok(FileRequest::Resume) => return ControlFlow::Continue(()),
            Ok(FileRequest::Stop) | Err(_) => return ControlFlow::Break(()),
            Ok(
                FileRequest::Look
                | FileRequest::Reload(_)
                | FileRequest::Set(_)
                | FileRequest::Pause(_),
            ) => {}
        }
    }
}

impl Watch {
    /// Reads the file and puts it in force, or reports its problem. A list that has changed is
    /// held.
    pub(super) fn take(
        &mut self,
        actor: &Actor,
        reason: &str,
    ) -> Result<Result<Applied, String>, Gone> {
        let mut loaded;
        let mut tries = 0;
        loop {
            let (accepted, sights) = (self.source.accepted(), self.source.look());
            let changed = sights
                .iter()
                .filter(|(path, sight)| {
                    accepted
                        .get(*path)
                        .is_some_and(|accepted| accepted.content != sight.content)
                })
                .map(|(path, _)| path);
            let held = self
                .source
                .holdable(changed.filter(|path| !self.source.has_syntax(path)));
            self.source.hold(held);
            loaded = self.source.load();
            tries += 1;
            // A list may begin to change between the check and the reading. It is then held also.
            if loaded
                .as_ref()
                .map_or(true, |(_, text)| self.source.has_read(&sights, text))
                || tries >= TAKES
            {
                break;
            }
        }
        self.done = Some(self.source.fingerprint_read());
        match loaded {
            Ok((settings, text)) => self.put_in_force(settings, &text, actor, reason).map(Ok),
            Err(error) => self.reject(&error).map(Err),
        }
    }

    pub(super) fn set(&mut self, set: SetRequest) -> Result<(), Gone> {
        let SetRequest {
            rollout,
            percent,
            dry_run,
            actor,
            reason,
            if_revision,
            reply,
        } = set;
        // Changes that another writer saved in the meantime are applied first and under their own
        // name.
        let began = clock::mono();
        loop {
            self.look_around()?;
            if !self.waits_for_text || clock::mono().since(began) >= SET_PATIENCE {
                break;
            }
            std::thread::sleep(settling::SHORT);
        }
        let answer = if self.waits_for_text {
            Err(SetError::BeingWritten {
                path: self.source.path().display().to_string(),
            })
        } else {
            // From the comparison until the change is in force, no other caller with a revision is
            // admitted.
            match self.control.reserve_blocking(if_revision)? {
                Ok(()) => self.edit(&rollout, percent, dry_run, &actor, &reason)?,
                Err(refusal) => Err(refusal.into()),
            }
        };
        self.control.release_blocking()?;
        let _ = reply.send(answer);
        Ok(())
    }

    /// Writes a percentage to the file and puts it in force.
    pub(super) fn edit(
        &mut self,
        rollout: &str,
        percent: Percent,
        dry_run: bool,
        actor: &Actor,
        reason: &str,
    ) -> Result<Result<Applied, SetError>, Gone> {
        // The edit uses a second reader beside the watched source, so that a change that is not in
        // force yet still counts as one.
        match self.source.beside().set_percent(rollout, percent, dry_run) {
            Ok(_) if dry_run => Ok(Ok(Applied {
                revision: 0,
                durable: true,
            })),
            Ok(_) => Ok(self
                .take(actor, reason)?
                .map_err(SetError::ChangedMeanwhile)),
            Err(error) => Ok(Err(error)),
        }
    }
}
