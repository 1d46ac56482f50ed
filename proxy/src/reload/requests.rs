//! Reloads and percentages that somebody asked for.

use super::{TAKES, Watch};
use crate::clock;
use crate::shared::control_handle::{Applied, Gone};
use crate::shared::reload_handle::{FileRequest, ReloadRequest, SetError, SetRequest};
use crate::shared::settling::{self};
use cutover_core::{Actor, Mono, Percent};
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// How long a change of a percentage waits for somebody else who writes the file.
pub(super) const SET_PATIENCE: Duration = Duration::from_secs(3);

/// A reload that somebody waits for.
pub(super) struct Pending {
    pub(super) reload: ReloadRequest,
    pub(super) since: Mono,
    pub(super) has_begun: bool,
    /// What came of it, while lists still rest.
    pub(super) came_to: Option<Result<Applied, String>>,
}

/// Waits for the end of a pause; breaks when the process goes down. Whoever wants something
/// meanwhile is told that nobody is here.
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
    /// Reads the file and puts it in force, or tells what is wrong with it. A list that has changed
    /// is held.
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
            // A list may begin to change between the look and the reading: then it is held, too.
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
        // What somebody else saved meanwhile comes first and under its own name.
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
            // From the comparison until the change is in force nobody else with a revision gets
            // through.
            match self.control.reserve_blocking(if_revision)? {
                Ok(()) => self.edit(&rollout, percent, dry_run, &actor, &reason)?,
                Err(refusal) => Err(refusal.into()),
            }
        };
        self.control.release_blocking()?;
        let _ = reply.send(answer);
        Ok(())
    }

    /// Writes a percentage into the file and puts it in force.
    pub(super) fn edit(
        &mut self,
        rollout: &str,
        percent: Percent,
        dry_run: bool,
        actor: &Actor,
        reason: &str,
    ) -> Result<Result<Applied, SetError>, Gone> {
        // The edit is made beside the watched source, so that a change nobody has taken yet still
        // counts as one.
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
