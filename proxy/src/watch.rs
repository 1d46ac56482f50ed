//! The watched file: what operators edit becomes settings, or a clear "no".
//!
//! The poll is the truth, notify is the wake-up: once a second, and whenever anything happens in a directory that matters, the same function compares contents. So it works on network
//! file systems, in containers and when the kernel's queue overflows; and it follows atomic saves, renames and the `..data` swap of a configuration map, because directories
//! are watched and not files.
//!
//! A change is taken when two readings in a row agree, since a file written in place may be caught half-way. A file that does not parse gets a longer second look before it is called broken.
//! A broken file changes nothing: the last good one stays in force.
//!
//! This thread is the only reader and writer of the file; reading may block (network file systems), and must not hold up the control loop.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cutover_config::{Settings, Traces};
use cutover_core::{Actor, Percent, Rate};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::oneshot;

use crate::control_handle::{Applied, ControlHandle, Gone};
use crate::disk::Disk;
use crate::published::Common;
use crate::source::{SetError, Source, SourceError};

/// How often contents are compared without being told.
const POLL: Duration = Duration::from_secs(1);
/// How long a change must stand before it is read.
const SETTLE: Duration = Duration::from_millis(20);
/// How long to rest after a look that found nothing: something else in the directory is busy.
const BREATHER: Duration = Duration::from_millis(5);
/// How long a broken file must stand before it is called broken.
const SETTLE_BROKEN: Duration = Duration::from_millis(200);
/// How often a file that keeps changing is looked at in a row before it is left to the next poll.
const LOOKS: usize = 25;

/// Sends wishes to the watching thread. It ends when the last clone is gone and the process stops.
#[derive(Clone, Debug)]
pub struct WatchHandle(Sender<Wish>);

#[derive(Debug)]
enum Wish {
    /// Something may have changed.
    Look,
    /// Somebody wants the file read now.
    Reload { actor: Actor, reason: String, reply: Option<oneshot::Sender<Result<Applied, String>>> },
    /// Somebody wants a percentage in the file.
    Set(Set),
    /// Another process follows the file for the time being.
    Pause(std::sync::mpsc::Sender<()>),
    /// Not any more.
    Resume,
    /// The process goes down.
    Stop,
}

#[derive(Debug)]
struct Set {
    rollout: String,
    percent: Percent,
    dry_run: bool,
    actor: Actor,
    reason: String,
    reply: oneshot::Sender<Result<Applied, SetError>>,
}

impl WatchHandle {
    /// Reads the file now, changed or not.
    ///
    /// # Errors
    /// The problems of the file as text; or that the process is going down.
    pub async fn reload(&self, actor: Actor, reason: String) -> Result<Result<Applied, String>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Wish::Reload { actor, reason, reply: Some(reply) }).map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Reads the file now and returns when that is done, from a thread outside any runtime: for signals.
    pub fn reload_blocking(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.0.send(Wish::Reload { actor: Actor::file(), reason: String::new(), reply: Some(reply) });
        let _ = answer.blocking_recv();
    }

    /// Leaves the file alone until [`WatchHandle::resume`], and returns when what had begun is done. From a thread outside any runtime.
    pub fn pause_blocking(&self) {
        let (done, is_done) = channel();
        let _ = self.0.send(Wish::Pause(done));
        let _ = is_done.recv();
    }

    /// Follows the file again.
    pub fn resume(&self) {
        let _ = self.0.send(Wish::Resume);
    }

    /// Writes a percentage into the file and puts it in force.
    ///
    /// # Errors
    /// Why the file was not changed; or that the process is going down.
    pub async fn set_percent(&self, rollout: String, percent: Percent, dry_run: bool, actor: Actor, reason: String) -> Result<Result<Applied, SetError>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Wish::Set(Set { rollout, percent, dry_run, actor, reason, reply })).map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Ends the thread.
    pub fn stop(&self) {
        let _ = self.0.send(Wish::Stop);
    }
}

/// Starts the watching thread for a source whose settings are in force as `common`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(source: Source, common: Arc<Common>, control: ControlHandle, disk: Disk) -> std::io::Result<(WatchHandle, std::thread::JoinHandle<()>)> {
    let (sender, wishes) = channel();
    let wake = sender.clone();
    let look_wanted = Arc::new(AtomicBool::new(false));
    let wanted = Arc::clone(&look_wanted);
    // Without notify the poll alone does the work, a little later.
    let on_event = move |event: notify::Result<notify::Event>| {
        // One look answers any number of events: a busy log beside the file must not fill the queue.
        if !event.is_ok_and(|event| is_a_reading(&event)) && !wanted.swap(true, Ordering::AcqRel) {
            drop(wake.send(Wish::Look));
        }
    };
    let watcher = notify::recommended_watcher(on_event).map_err(|error| tracing::warn!(%error, "file events are not available; the file is compared every second")).ok();
    let running = common.settings.clone();
    let watch = Watch { source, look_wanted, running, common, control, disk, watcher, watched: BTreeSet::new() };
    let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || watch.run(&wishes))?;
    Ok((WatchHandle(sender), thread))
}

/// Whether an event tells only that somebody read: our own comparisons would wake us for ever. Everything else is a reason to look, errors and overflows included.
fn is_a_reading(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read))) && !event.need_rescan()
}

/// Waits for the end of a pause; breaks when the process goes down. Whoever wants something meanwhile is told that nobody is here.
fn pause(wishes: &Receiver<Wish>) -> ControlFlow<()> {
    loop {
        match wishes.recv() {
            Ok(Wish::Resume) => return ControlFlow::Continue(()),
            Ok(Wish::Stop) | Err(_) => return ControlFlow::Break(()),
            Ok(Wish::Look | Wish::Reload { .. } | Wish::Set(_) | Wish::Pause(_)) => {}
        }
    }
}

struct Watch {
    source: Source,
    /// A look has been asked for by an event and has not begun.
    look_wanted: Arc<AtomicBool>,
    /// The settings the process was started with: what needs a restart keeps these values.
    running: Settings,
    common: Arc<Common>,
    control: ControlHandle,
    disk: Disk,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    fn run(mut self, wishes: &Receiver<Wish>) {
        self.follow_directories();
        // What was saved before the directories were watched told nobody.
        if self.look().is_err() {
            return;
        }
        loop {
            let wish = match wishes.recv_timeout(POLL) {
                Ok(wish) => wish,
                Err(RecvTimeoutError::Timeout) => Wish::Look,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let done = match wish {
                Wish::Look => self.look(),
                Wish::Reload { actor, reason, reply } => {
                    let answer = self.take(&actor, &reason);
                    if let (Some(reply), Ok(answer)) = (reply, &answer) {
                        let _ = reply.send(answer.clone());
                    }
                    answer.map(drop)
                }
                Wish::Set(set) => self.set(set),
                Wish::Pause(done) => {
                    let _ = done.send(());
                    if pause(wishes).is_break() {
                        return;
                    }
                    self.look()
                }
                Wish::Resume => Ok(()),
                Wish::Stop => return,
            };
            if let Err(Gone) = done {
                return;
            }
            self.follow_directories();
        }
    }

    /// Takes the file if its content changed and stands still.
    fn look(&mut self) -> Result<(), Gone> {
        self.look_wanted.store(false, Ordering::Release);
        if !self.source.has_changed() {
            std::thread::sleep(BREATHER);
            return Ok(());
        }
        let mut last = self.source.fingerprint();
        for _ in 0..LOOKS {
            std::thread::sleep(SETTLE);
            let now = self.source.fingerprint();
            if now != std::mem::replace(&mut last, now) {
                continue;
            }
            if !self.source.has_changed() {
                return Ok(());
            }
            // A look by another pair of eyes: only `take` may mark the file as read.
            if Source::new(self.source.path()).load().is_err() {
                std::thread::sleep(SETTLE_BROKEN);
                let later = self.source.fingerprint();
                if later != std::mem::replace(&mut last, later) {
                    continue;
                }
            }
            return self.take(&Actor::file(), "").map(drop);
        }
        Ok(())
    }

    /// Reads the file and puts it in force, or tells what is wrong with it.
    fn take(&mut self, actor: &Actor, reason: &str) -> Result<Result<Applied, String>, Gone> {
        match self.source.load() {
            Ok((settings, text)) => self.put_in_force(settings, &text, actor, reason).map(Ok),
            Err(error) => {
                self.reject(&error)?;
                Ok(Err(error.render(false)))
            }
        }
    }

    fn set(&mut self, set: Set) -> Result<(), Gone> {
        let Set { rollout, percent, dry_run, actor, reason, reply } = set;
        // What somebody else saved meanwhile comes first and under its own name.
        self.look()?;
        // The edit is made beside the watched source, so that a change nobody has taken yet still counts as one.
        let answer = match Source::new(self.source.path()).set_percent(&rollout, percent, dry_run) {
            Ok(_) if dry_run => Ok(Applied { revision: 0, durable: true }),
            Ok(_) => self.take(&actor, &reason)?.map_err(SetError::ChangedMeanwhile),
            Err(error) => Err(error),
        };
        let _ = reply.send(answer);
        Ok(())
    }

    fn put_in_force(&mut self, mut settings: Settings, text: &str, actor: &Actor, reason: &str) -> Result<Applied, Gone> {
        let restart_needed = settings.restart_needed(&self.running);
        settings.listen = self.running.listen.clone();
        settings.admin = self.running.admin.clone();
        settings.state = self.running.state.clone();
        settings.log.format = self.running.log.format;
        settings.log.file = self.running.log.file.clone();
        // Only how many are sampled may change; without the table none are.
        settings.traces = self.running.traces.clone().map(|running| Traces { sample: settings.traces.map_or(Rate::NONE, |traces| traces.sample), ..running });
        let common = Arc::new(Common::new(settings, Some(&self.common)));
        let applied = self.control.settings_blocking(Arc::clone(&common), restart_needed, actor.clone(), reason.to_owned())?;
        self.common = common;
        self.disk.keep_last_good(self.source.self_contained(text));
        Ok(applied)
    }

    fn reject(&self, error: &SourceError) -> Result<(), Gone> {
        self.control.rejected_blocking(error.render(false))
    }

    /// Watches the directories that matter now. A directory that cannot be watched is left to the poll.
    fn follow_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted = self.source.directories();
        for gone in self.watched.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        let mut watched = BTreeSet::new();
        for directory in wanted {
            if self.watched.contains(&directory) || watcher.watch(&directory, RecursiveMode::NonRecursive).is_ok() {
                watched.insert(directory);
            }
        }
        self.watched = watched;
    }
}
