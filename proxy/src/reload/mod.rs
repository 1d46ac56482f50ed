//! The watched file. What operators edit becomes settings, or a clear rejection.
//!
//! Polling is authoritative and notify only wakes it up. Once a second, and after each event in a
//! relevant directory, the same function compares contents. This works on network file systems, in
//! containers and when the kernel's queue overflows. It also follows atomic saves, renames and the
//! `..data` swap of a configuration map, because directories are watched and not files.
//!
//! A change is accepted when its files have settled, since a file written in place may be read
//! half-way (`settling` says how long). A list has no syntax that shows a cut, so it must settle
//! for longer, and longest if it would take users away. Until it has settled, the last accepted
//! list replaces it, so that an edit of the main file need not wait for the writer of a list. A
//! file that does not parse gets a longer second check before it is called broken. A broken file
//! changes nothing: the last good one stays in force.
//!
//! This thread is the only reader and writer of the file. Reading may block (network file systems),
//! and must not delay the control loop.

mod requests;
mod settle;
pub mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use cutover_config::{Listen, Settings, Traces};
use cutover_core::{Actor, Mono, Rate};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::clock;
use crate::process::systemd;
use crate::reload::source::{ConfigSource, Fingerprints, SourceError};
use crate::shared::control_handle::{Applied, ControlHandle, Gone};
use crate::shared::published::Common;
use crate::shared::reload_handle::{FileRequest, ReloadError, ReloadHandle, ReloadRequest};
use crate::shared::settling::{self, Fingerprint, Settling};
use crate::state::writer::StateWriter;
use requests::{Pending, pause};
use settle::LOOK_SHARE;

/// How often contents are compared without an event.
const POLL: Duration = Duration::from_secs(1);

/// The pause after a check that found no change, because something else in the directory is busy.
const BREATHER: Duration = Duration::from_millis(5);

/// How long a file must stay broken before it is reported as broken.
const SETTLE_BROKEN: Duration = Duration::from_millis(200);

/// How many times in a row files that change during the reading are read.
const TAKES: usize = 5;

/// Starts the watching thread for a source whose settings are in force as `common`.
/// `state_is_given` means that the state directory is not taken from the file.
///
/// # Errors
/// Fails when the thread cannot be started.
pub fn start(
    source: ConfigSource,
    common: Arc<Common>,
    state_is_given: bool,
    control: ControlHandle,
    disk: StateWriter,
) -> std::io::Result<(ReloadHandle, std::thread::JoinHandle<()>)> {
    let (sender, wishes) = channel();
    let wake = sender.clone();
    let look_wanted = Arc::new(AtomicBool::new(false));
    let wanted = Arc::clone(&look_wanted);
    // Without notify, polling alone finds the change a little later.
    let on_event = move |event: notify::Result<notify::Event>| {
        // One check handles any number of events, because a busy log beside the file must not fill
        // the queue.
        if !event.is_ok_and(|event| is_a_reading(&event)) && !wanted.swap(true, Ordering::AcqRel) {
            drop(wake.send(FileRequest::Look));
        }
    };
    let watcher = notify::recommended_watcher(on_event).map_err(|error| tracing::warn!(%error, "file events are not available; the file is compared every second")).ok();
    let running = common.settings.clone();
    // The last reading is in force. If that was the last good file, this file is read once more.
    let done = source.is_accepted().then(|| source.accepted_fingerprint());
    let watch = Watch {
        source,
        look_wanted,
        running,
        common,
        state_is_given,
        control,
        disk,
        watcher,
        watched: BTreeSet::new(),
        resting: BTreeMap::new(),
        done,
        asked: None,
        next_look: None,
        waits_for_text: false,
        is_resting: false,
        waited_for: BTreeSet::new(),
        told: Vec::new(),
        reloads: VecDeque::new(),
    };
    let thread = std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || watch.run(&wishes))?;
    Ok((ReloadHandle::new(sender), thread))
}

/// Whether an event reports only a read access. Cutover's own comparisons would otherwise wake it
/// up forever. Everything else is a reason to check, including errors and overflows.
fn is_a_reading(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(
        event.kind,
        EventKind::Access(
            AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read)
        )
    ) && !event.need_rescan()
}

/// The identity of a reading: the fingerprint of all files, with the content that replaces held
/// files.
type Key = [u8; 32];

/// The result of a check.
enum Looked {
    /// Nothing has changed, or only what was reported before.
    Nothing,
    /// Something has changed and must settle.
    Waits,
    /// A reading was put in force, or was refused.
    Took(Result<Applied, String>),
}

struct Watch {
    source: ConfigSource,
    /// Whether an event has requested a check that has not begun.
    look_wanted: Arc<AtomicBool>,
    /// The settings with which the process was started. Settings that need a restart keep these
    /// values.
    running: Settings,
    common: Arc<Common>,
    state_is_given: bool,
    control: ControlHandle,
    disk: StateWriter,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// The files that differ from what is in force, by path.
    resting: BTreeMap<String, Settling>,
    /// The reading that was put in force or refused last.
    done: Option<Key>,
    /// How long a reading has to settle because of its content.
    asked: Option<(Key, Duration)>,
    /// The time of the next check while something settles.
    next_look: Option<Mono>,
    /// Whether the main file or an include is settling.
    waits_for_text: bool,
    /// Whether any changed file has not settled yet.
    is_resting: bool,
    /// The paths that the watch waits for, longer than operators would notice.
    waited_for: BTreeSet<String>,
    /// The files that operators were notified about because they are being written.
    told: Vec<String>,
    reloads: VecDeque<Pending>,
}

impl Watch {
    fn run(mut self, wishes: &Receiver<FileRequest>) {
        self.follow_directories();
        // A change that was saved before the directories were watched caused no event.
        if self.look_around().is_err() {
            return;
        }
        loop {
            let patience = self
                .next_look
                .map_or(POLL, |next| next.since(clock::mono()));
            let wish = match wishes.recv_timeout(patience) {
                Ok(wish) => wish,
                Err(RecvTimeoutError::Timeout) => FileRequest::Look,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let done = match wish {
                // A process that writes a long list causes an event with every block; one check
                // handles many.
                FileRequest::Look if self.next_look.is_some_and(|next| clock::mono() < next) => {
                    self.look_wanted.store(false, Ordering::Release);
                    continue;
                }
                FileRequest::Look => self.look_around(),
                FileRequest::Reload(reload) => {
                    self.reloads.push_back(Pending {
                        reload,
                        since: clock::mono(),
                        has_begun: false,
                        came_to: None,
                    });
                    self.look_around()
                }
                FileRequest::Set(set) => self.set(set),
                FileRequest::Pause(done) => {
                    let _ = done.send(());
                    if pause(wishes).is_break() {
                        return;
                    }
                    self.look_around()
                }
                FileRequest::Resume => Ok(()),
                FileRequest::Stop => return,
            };
            if let Err(Gone) = done {
                return;
            }
            self.follow_directories();
        }
    }

    /// Checks the files, on behalf of the oldest pending reload if there is one, and answers that
    /// reload once it is complete.
    fn look_around(&mut self) -> Result<(), Gone> {
        loop {
            let Some(mut pending) = self.reloads.pop_front() else {
                return self.look(&Actor::file(), "").map(drop);
            };
            if let Err(refusal) = self
                .control
                .reserve_blocking(pending.reload.if_revision.clone())?
            {
                let _ = pending.reload.reply.send(Err(refusal.into()));
                continue;
            }
            // A reload puts even unchanged files in force again.
            if !std::mem::replace(&mut pending.has_begun, true) {
                self.done = None;
            }
            let looked = self.look(&pending.reload.actor, &pending.reload.reason)?;
            self.control.release_blocking()?;
            let is_late = clock::mono().since(pending.since) > settling::MOST;
            let came_to = match (looked, pending.came_to.take()) {
                (Looked::Took(came_to), _) | (_, Some(came_to)) => Some(came_to),
                (Looked::Nothing, None) => {
                    Some(self.take(&pending.reload.actor, &pending.reload.reason)?)
                }
                (Looked::Waits, None) if is_late => Some(Err(format!(
                    "error: {}: it does not stop changing\n",
                    self.source.path().display()
                ))),
                (Looked::Waits, None) => None,
            };
            match came_to {
                Some(came_to) if !self.is_resting || is_late || came_to.is_err() => {
                    let _ = pending
                        .reload
                        .reply
                        .send(came_to.map_err(ReloadError::Rejected));
                }
                came_to => {
                    // From here on this reload overwrites no change by another caller.
                    let if_revision = if came_to.is_some() {
                        None
                    } else {
                        pending.reload.if_revision
                    };
                    self.reloads.push_front(Pending {
                        came_to,
                        reload: ReloadRequest {
                            if_revision,
                            ..pending.reload
                        },
                        ..pending
                    });
                    return Ok(());
                }
            }
        }
    }

    /// Reads the file if its content has changed and has settled.
    fn look(&mut self, actor: &Actor, reason: &str) -> Result<Looked, Gone> {
        self.look_wanted.store(false, Ordering::Release);
        let began = clock::mono();
        let sights = self.source.look();
        let looked = self.decide(sights, actor, reason)?;
        let now = clock::mono();
        let is_waiting = self.is_resting || matches!(looked, Looked::Waits);
        self.next_look = is_waiting
            .then(|| now.forward(settling::SHORT.max(now.since(began) * LOOK_SHARE).min(POLL)));
        if !is_waiting && matches!(looked, Looked::Nothing) {
            std::thread::sleep(BREATHER);
        }
        self.tell_of_waiting()?;
        Ok(looked)
    }

    fn decide(
        &mut self,
        sights: Fingerprints,
        actor: &Actor,
        reason: &str,
    ) -> Result<Looked, Gone> {
        let now = clock::mono();
        let accepted = self.source.accepted();
        let differs = |path: &String, sight: &Fingerprint| {
            accepted
                .get(path)
                .is_none_or(|accepted| accepted.content != sight.content)
        };
        self.resting
            .retain(|path, _| sights.get(path).is_some_and(|sight| differs(path, sight)));
        for (path, sight) in sights.iter().filter(|(path, sight)| differs(path, sight)) {
            match self.resting.get_mut(path) {
                Some(resting) => resting.look(sight.clone(), now),
                None => drop(
                    self.resting
                        .insert(path.clone(), Settling::new(sight.clone(), now)),
                ),
            }
        }
        let unrested: Vec<String> = self
            .resting
            .iter()
            .filter(|(path, resting)| !resting.has_rested(self.least(path, resting), now))
            .map(|(path, _)| path.clone())
            .collect();
        let held = self
            .source
            .holdable(unrested.iter().filter(|path| !self.source.has_syntax(path)));
        self.waits_for_text = unrested.iter().any(|path| self.source.has_syntax(path));
        self.waited_for = unrested
            .iter()
            .filter(|path| {
                self.resting.get(*path).is_some_and(|resting| {
                    resting.needed(self.least(path, resting)) > SETTLE_BROKEN
                })
            })
            .cloned()
            .collect();
        self.is_resting = !unrested.is_empty();
        let key = self.source.fingerprint_of(&sights, &held);
        if self.done.as_ref() == Some(&key) {
            return Ok(Looked::Nothing);
        }
        // A list that was never in force has no replacement, so the reload must wait for it.
        if unrested.iter().any(|path| !held.contains_key(path)) {
            self.waits_for_text = true;
            return Ok(Looked::Waits);
        }
        if let Some(least) = self
            .asked
            .as_ref()
            .filter(|(asked, _)| *asked == key)
            .map(|(_, least)| *least)
            && !self.has_rested(least, &held, now)
        {
            self.wait_for_all(least, now);
            return Ok(Looked::Waits);
        }
        self.source.hold(held.clone());
        let (least, loaded) = match self.source.load() {
            Ok((settings, text)) => (self.least_of(&settings), Ok((settings, text))),
            Err(error) => (SETTLE_BROKEN, Err(error)),
        };
        if loaded
            .as_ref()
            .is_ok_and(|(_, text)| !self.source.has_read(&sights, text))
        {
            self.wait_for_all(settling::SHORT, now);
            return Ok(Looked::Waits);
        }
        // Files that the text names only now start to settle now.
        let drawn_in: Vec<(String, Fingerprint)> = self
            .source
            .sights()
            .iter()
            .map(|(path, sight)| (path.clone(), sight.clone()))
            .collect();
        let mut is_new = false;
        for (path, sight) in drawn_in {
            let is_known = self
                .source
                .accepted()
                .get(&path)
                .is_some_and(|accepted| accepted.content == sight.content)
                || self.resting.contains_key(&path);
            if !is_known && loaded.is_ok() {
                is_new = true;
                self.resting.insert(path, Settling::new(sight, now));
            }
        }
        let key = self.source.fingerprint_read();
        if is_new || !self.has_rested(least, &held, now) {
            self.wait_for_all(least, now);
            self.asked = Some((key, least));
            return Ok(Looked::Waits);
        }
        self.done = Some(key);
        let took = match loaded {
            Ok((settings, text)) => Ok(self.put_in_force(settings, &text, actor, reason)?),
            Err(error) => Err(self.reject(&error)?),
        };
        let accepted = self.source.accepted();
        self.resting.retain(|path, resting| {
            accepted
                .get(path)
                .is_none_or(|accepted| accepted.content != resting.sight().content)
        });
        Ok(Looked::Took(took))
    }

    fn put_in_force(
        &mut self,
        mut settings: Settings,
        text: &str,
        actor: &Actor,
        reason: &str,
    ) -> Result<Applied, Gone> {
        if self.state_is_given {
            settings.state = self.running.state.clone();
        }
        let restart_needed = settings.restart_needed(&self.running);
        // Certificates may be added and removed while the ports stay: `certificates` follows what
        // is published.
        let certificates = std::mem::take(&mut settings.listen.certificates);
        settings.listen = Listen {
            certificates,
            ..self.running.listen.clone()
        };
        settings.admin = self.running.admin.clone();
        settings.state = self.running.state.clone();
        settings.log.format = self.running.log.format;
        settings.log.file = self.running.log.file.clone();
        // Only the sampling rate may change. Without the table no traces are sampled.
        settings.traces = self.running.traces.clone().map(|running| Traces {
            sample: settings.traces.map_or(Rate::NONE, |traces| traces.sample),
            ..running
        });
        let common = Arc::new(Common::new(settings, Some(&self.common)));
        let applied = self.control.settings_blocking(
            Arc::clone(&common),
            restart_needed,
            actor.clone(),
            reason.to_owned(),
        )?;
        self.common = common;
        self.disk.keep_last_good(self.source.accept(text));
        systemd::accepted();
        Ok(applied)
    }

    /// Reports a reading that cannot be used, and returns its problem.
    fn reject(&self, error: &SourceError) -> Result<String, Gone> {
        let problems = error.render(false);
        systemd::rejected(&problems);
        self.control.rejected_blocking(problems.clone())?;
        Ok(problems)
    }

    /// Watches the directories that are relevant now. A directory that cannot be watched is left to
    /// polling.
    fn follow_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = self.source.directories();
        for gone in self.watched.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        let mut watched = BTreeSet::new();
        for directory in wanted {
            if self.watched.contains(&directory)
                || watcher
                    .watch(&directory, RecursiveMode::NonRecursive)
                    .is_ok()
            {
                watched.insert(directory);
            }
        }
        self.watched = watched;
    }
}
