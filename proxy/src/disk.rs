//! The thread that writes state and journal, so that a slow disk never holds up the judging of a tick or the stopping of harm.
//!
//! What fails is tried again every second with the newest state, and `latch_durable` is zero meanwhile. Journal lines wait, up to a bound; then the oldest are given up with a loud line.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cutover_core::plane::Standings;
use tokio::sync::oneshot;

use crate::journal::{Journal, Record};
use crate::state_file;

const RETRY: Duration = Duration::from_secs(1);
const WAITING_LINES: usize = 1_000;

/// Sends work to the disk thread.
#[derive(Clone, Debug)]
pub struct Disk {
    sender: Sender<Job>,
    durable: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Job {
    Save(Standings, oneshot::Sender<bool>),
    Append(Box<Record>),
    LastGood(String),
    Flush(oneshot::Sender<()>),
}

impl Disk {
    /// Starts the thread. It ends, everything written or given up, when the last clone is gone.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(directory: PathBuf, journal: Journal) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, jobs) = channel();
        let durable = Arc::new(AtomicBool::new(true));
        let writer = Writer { directory, journal, durable: Arc::clone(&durable), unsaved: None, lines: VecDeque::new(), last_good: None, complained: false };
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || writer.run(&jobs))?;
        Ok((Self { sender, durable }, thread))
    }

    /// Makes the standings durable; the answer is whether they are. The state stays wanted: if it fails it is tried again.
    pub fn save(&self, standings: Standings) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        // A thread that is gone drops `done`, which reads as "not durable".
        let _ = self.sender.send(Job::Save(standings, done));
        answer
    }

    /// Writes a line into the journal.
    pub fn append(&self, record: Record) {
        let _ = self.sender.send(Job::Append(Box::new(record)));
    }

    /// Keeps the accepted file for a start with a broken one.
    pub fn keep_last_good(&self, text: String) {
        let _ = self.sender.send(Job::LastGood(text));
    }

    /// Answers when everything asked for before has been written or has failed once.
    pub fn flush(&self) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        let _ = self.sender.send(Job::Flush(done));
        answer
    }

    /// Whether everything asked for so far is on disk.
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }
}

struct Writer {
    directory: PathBuf,
    journal: Journal,
    durable: Arc<AtomicBool>,
    unsaved: Option<Standings>,
    lines: VecDeque<Record>,
    last_good: Option<String>,
    complained: bool,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = if self.is_clean() { jobs.recv().map_err(|_| RecvTimeoutError::Disconnected) } else { jobs.recv_timeout(RETRY) };
            match job {
                Ok(Job::Save(standings, done)) => {
                    self.unsaved = Some(standings);
                    self.work();
                    let _ = done.send(self.unsaved.is_none());
                }
                Ok(Job::Append(record)) => {
                    self.lines.push_back(*record);
                    if self.lines.len() > WAITING_LINES {
                        let lost = self.lines.pop_front();
                        tracing::error!(lost = lost.map(|record| record.sentence), "the journal cannot be written; its oldest waiting line is given up");
                    }
                    self.work();
                }
                Ok(Job::LastGood(text)) => {
                    self.last_good = Some(text);
                    self.work();
                }
                Ok(Job::Flush(done)) => drop(done.send(())),
                Err(RecvTimeoutError::Timeout) => self.work(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.work();
                    return;
                }
            }
        }
    }

    fn is_clean(&self) -> bool {
        self.unsaved.is_none() && self.lines.is_empty() && self.last_good.is_none()
    }

    fn work(&mut self) {
        let mut failed = None;
        if let Some(standings) = &self.unsaved {
            match state_file::save(&self.directory, standings) {
                Ok(()) => self.unsaved = None,
                Err(error) => failed = Some((state_file::NAME, error)),
            }
        }
        while let Some(record) = self.lines.front() {
            match self.journal.append(record) {
                Ok(()) => drop(self.lines.pop_front()),
                Err(error) => {
                    failed = failed.or(Some((crate::journal::NAME, error)));
                    break;
                }
            }
        }
        if let Some(text) = &self.last_good {
            match state_file::replace(&self.directory.join(crate::source::LAST_GOOD), text.as_bytes()) {
                Ok(()) => self.last_good = None,
                Err(error) => failed = failed.or(Some((crate::source::LAST_GOOD, error))),
            }
        }
        self.durable.store(self.unsaved.is_none(), Ordering::Release);
        match failed {
            Some((file, error)) if !self.complained => {
                self.complained = true;
                tracing::error!(directory = %self.directory.display(), file, %error, "the state cannot be written: a rollback is in force, but would not survive a restart; trying again every second");
            }
            None if self.complained => {
                self.complained = false;
                tracing::info!(directory = %self.directory.display(), "the state can be written again");
            }
            Some(_) | None => {}
        }
    }
}
