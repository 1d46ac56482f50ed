//! Detection of changed files that have been left alone for long enough.

use super::{SETTLE_BROKEN, Watch};
use crate::shared::control_handle::Gone;
use crate::shared::settling::{self, Settling};
use crate::state::last_good::Kept;
use cutover_config::Settings;
use cutover_core::Mono;
use std::time::Duration;

/// The ratio of the pause between two checks of settling files to the duration of a check. A long
/// list must not keep a core busy.
pub(super) const LOOK_SHARE: u32 = 4;

impl Watch {
    /// Makes the reading wait until everything that has changed has settled for that long.
    pub(super) fn wait_for_all(&mut self, least: Duration, now: Mono) {
        (self.waits_for_text, self.is_resting) = (true, true);
        if least > SETTLE_BROKEN {
            let unrested = self
                .resting
                .iter()
                .filter(|(_, resting)| !resting.has_rested(least, now));
            self.waited_for
                .extend(unrested.map(|(path, _)| path.clone()));
        }
    }

    /// Returns the least time a file must settle, by the way it was replaced.
    pub(super) fn least(&self, path: &str, resting: &Settling) -> Duration {
        let (before, sight) = (self.source.accepted().get(path), resting.sight());
        if !self.source.has_syntax(path) {
            return sight.rest_after(before);
        }
        // Texts end with a line break, unless people leave it out; a cut text rarely does.
        let is_cut = !sight.ends_with_line && before.is_none_or(|before| before.ends_with_line);
        if is_cut && sight.size > 0 && !sight.came_whole(before) {
            settling::LONG
        } else {
            settling::SHORT
        }
    }

    /// Returns the least time a reading must settle, by what it would take away: users of a list,
    /// and rollouts.
    pub(super) fn least_of(&self, settings: &Settings) -> Duration {
        let running = &self.common.settings;
        let mut least = settling::SHORT;
        for before in &running.rollouts {
            match settings
                .rollouts
                .iter()
                .find(|rollout| rollout.id == before.id)
            {
                None => least = least.max(settling::LONG),
                Some(now)
                    if now.always_legacy.len() < before.always_legacy.len()
                        || now.always_new.len() < before.always_new.len() =>
                {
                    least = settling::SHORTER;
                }
                Some(_) => {}
            }
        }
        least
    }

    /// Whether everything that has changed and is not held has settled for that long. Rollouts that
    /// a renamed file omits were removed on purpose.
    pub(super) fn has_rested(&self, least: Duration, held: &Kept, now: Mono) -> bool {
        let accepted = self.source.accepted();
        let least_of = |path: &String, resting: &Settling| {
            if least == settling::LONG && resting.sight().came_whole(accepted.get(path)) {
                settling::SHORT
            } else {
                least
            }
        };
        self.resting
            .iter()
            .filter(|(path, _)| !held.contains_key(*path))
            .all(|(path, resting)| resting.has_rested(least_of(path, resting), now))
    }

    /// Reports which files the watch waits for, when that has changed. The short settling time is
    /// not reported.
    pub(super) fn tell_of_waiting(&mut self) -> Result<(), Gone> {
        let waited: Vec<String> = self
            .waited_for
            .iter()
            .map(|path| self.name_of(path))
            .collect();
        if waited == self.told {
            return Ok(());
        }
        for file in waited.iter().filter(|file| !self.told.contains(file)) {
            tracing::info!(
                file,
                "a file has changed and may still be being written; what was read before stays in \
                 force until it has rested"
            );
        }
        for file in self.told.iter().filter(|file| !waited.contains(file)) {
            tracing::info!(file, "a changed file is complete");
        }
        self.told.clone_from(&waited);
        self.control.waiting_blocking(waited)
    }

    pub(super) fn name_of(&self, path: &str) -> String {
        if path.is_empty() {
            self.source.path().display().to_string()
        } else {
            path.to_owned()
        }
    }
}
