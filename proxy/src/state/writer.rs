//! The thread that writes state and journal, so that a slow disk never delays a judgement or a
//! rollback.
//!
//! It also owns the state directory. It releases the lock and the journal when another process
//! takes over, and takes them back if that process fails. Nothing is written in between.
//!
//! A failed write is tried again every second with the newest state, and `latch_durable` is zero
//! until it succeeds. Journal lines wait, up to a bound; then the oldest are dropped with an error
//! message.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cutover_core::control::plane::Standings;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::state::journal::{Journal, Opened, Record};
use crate::state::last_good::LastGood;
use crate::state::regular_file;
use crate::state::status_file;

const RETRY: Duration = Duration::from_secs(1);
const WAITING_LINES: usize = 1_000;
/// The name of the file that is locked while a process uses a state directory.
const LOCK: &str = "lock";

/// The locks and files that a process needs to write to a state directory.
#[derive(Debug)]
pub struct Ownership {
    /// The lock of the directory. No other process writes while it is held.
    lock: File,
    journal: Journal,
    /// A note about the journal for operators.
    note: Option<String>,
}

/// The number of attempts of a start to lock the directory, and the time between them.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Locks a state directory for as long as the returned file is open. No other process reads or
/// writes it in this time.
///
/// # Errors
/// Fails on any error of the file system; `ResourceBusy` when another process has the lock.
pub fn lock(directory: &Path) -> io::Result<File> {
    let lock = regular_file::open(
        OpenOptions::new().create(true).write(true).truncate(true),
        &directory.join(LOCK),
    )?;
    lock.try_lock().map_err(|_| {
        io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another cutover process is using it",
        )
    })?;
    Ok(lock)
}

/// Locks a state directory, with several attempts. A process that is just ending may still have the
/// lock. So may a child it has started, until that child has become another program.
///
/// # Errors
/// Fails like [`lock`], after half a second.
pub fn lock_soon(directory: &Path) -> io::Result<File> {
    let mut tries = 0;
    loop {
        tries += 1;
        match lock(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < LOCK_TRIES => {
                std::thread::sleep(LOCK_PAUSE);
            }
            done => return done,
        }
    }
}

impl Ownership {
    /// Opens the journal of a directory that has been locked.
    ///
    /// # Errors
    /// Fails on any error of the file system.
    pub fn open(directory: &Path, lock: File) -> io::Result<(Self, Opened)> {
        let (journal, opened) = Journal::open(directory)?;
        Ok((
            Self {
                lock,
                journal,
                note: None,
            },
            opened,
        ))
    }

    /// Adds a note about the journal for operators, which the status shows.
    #[must_use]
    pub fn with_note(self, note: Option<String>) -> Self {
        Self { note, ..self }
    }
}

/// The sender of work to the disk thread.
#[derive(Clone, Debug)]
pub struct StateWriter {
    sender: Sender<Job>,
    durable: Arc<AtomicBool>,
    journal_note: Arc<Mutex<Option<String>>>,
}

#[derive(Debug)]
enum Job {
    Save(Standings, oneshot::Sender<bool>),
    Append(Box<Record>),
    LastGood(Box<LastGood>),
    Flush(oneshot::Sender<()>),
    LetGo(oneshot::Sender<bool>),
    TakeBack,
}

impl StateWriter {
    /// Starts the thread. It ends when the last clone is gone and everything has been written or
    /// dropped.
    ///
    /// # Errors
    /// Fails when the thread cannot be started.
    pub fn start(
        directory: PathBuf,
        ownership: Ownership,
    ) -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, jobs) = channel();
        let durable = Arc::new(AtomicBool::new(true));
        let journal_note = Arc::new(Mutex::new(ownership.note.clone()));
        let writer = Writer {
            directory,
            ownership: Some(ownership),
            lent: false,
            durable: Arc::clone(&durable),
            journal_note: Arc::clone(&journal_note),
            unsaved: None,
            lines: VecDeque::new(),
            last_good: None,
            complained: false,
        };
        let thread = std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || writer.run(&jobs))?;
        Ok((
            Self {
                sender,
                durable,
                journal_note,
            },
            thread,
        ))
    }

    /// Makes the standings durable. The answer is whether they are. If the write fails it is tried
    /// again.
    pub fn save(&self, standings: Standings) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        // If the thread is gone it drops `done`, which means "not durable".
        let _ = self.sender.send(Job::Save(standings, done));
        answer
    }

    /// Appends a record to the journal.
    pub fn append(&self, record: Record) {
        let _ = self.sender.send(Job::Append(Box::new(record)));
    }

    /// Keeps the accepted file for a start with a broken one.
    pub fn keep_last_good(&self, last_good: LastGood) {
        let _ = self.sender.send(Job::LastGood(Box::new(last_good)));
    }

    /// Answers when everything requested before has been written or has failed once.
    pub fn flush(&self) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        let _ = self.sender.send(Job::Flush(done));
        answer
    }

    /// Releases the state directory, so that another process can take it. The answer is whether
    /// everything requested before is on disk; otherwise the directory is kept.
    pub fn let_go(&self) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        let _ = self.sender.send(Job::LetGo(done));
        answer
    }

    /// Takes the state directory back. Pending writes wait for it.
    pub fn take_back(&self) {
        let _ = self.sender.send(Job::TakeBack);
    }

    /// Whether everything requested so far is on disk.
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    /// Returns the note about the journal for operators, which says that the file is not the
    /// previous one.
    pub fn journal_note(&self) -> Option<String> {
        self.journal_note.lock().clone()
    }
}

struct Writer {
    directory: PathBuf,
    ownership: Option<Ownership>,
    /// Whether another process has been given the directory.
    lent: bool,
    durable: Arc<AtomicBool>,
    journal_note: Arc<Mutex<Option<String>>>,
    unsaved: Option<Standings>,
    lines: VecDeque<Record>,
    last_good: Option<Box<LastGood>>,
    complained: bool,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = if self.is_clean() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(RETRY)
            };
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
                        tracing::error!(directory = %self.directory.display(), lost = lost.map(|record| record.sentence), "the journal cannot be written; its oldest waiting line is given up");
                    }
                    self.work();
                }
                Ok(Job::LastGood(mut last_good)) => {
                    // The content of an unwritten configuration is in no file that the next
                    // configuration could refer to.
                    for (path, content) in self
                        .last_good
                        .take()
                        .into_iter()
                        .flat_map(|unwritten| unwritten.files)
                    {
                        if last_good
                            .unchanged
                            .get(&path)
                            .is_some_and(|digest| Sha256::digest(&content)[..] == *digest)
                        {
                            last_good.files.insert(path, content);
                        }
                    }
                    self.last_good = Some(last_good);
                    self.work();
                }
                Ok(Job::Flush(done)) => drop(done.send(())),
                Ok(Job::LetGo(done)) => {
                    self.work();
                    let is_clean = self.is_clean();
                    if is_clean {
                        self.ownership = None;
                        self.lent = true;
                    }
                    let _ = done.send(is_clean);
                }
                Ok(Job::TakeBack) => {
                    self.lent = false;
                    self.work();
                }
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
        if self.lent {
            return;
        }
        if self.ownership.is_none() {
            match lock(&self.directory).and_then(|lock| Ownership::open(&self.directory, lock)) {
                Ok((ownership, _)) => self.ownership = Some(ownership),
                Err(error) => {
                    self.durable
                        .store(self.unsaved.is_none(), Ordering::Release);
                    self.complain(Some((LOCK, error)));
                    return;
                }
            }
        }
        let Some(Ownership {
            journal,
            lock: _lock,
            note: _,
        }) = &mut self.ownership
        else {
            return;
        };
        let mut failed = None;
        if let Some(standings) = &self.unsaved {
            match status_file::save(&self.directory, standings) {
                Ok(()) => self.unsaved = None,
                Err(error) => failed = Some((status_file::NAME, error)),
            }
        }
        while let Some(record) = self.lines.front() {
            match journal.append(record) {
                Ok(lost) => {
                    self.lines.pop_front();
                    if let Some(lost) = lost {
                        tracing::warn!(directory = %self.directory.display(), what = lost, "the journal is not the file that was written last");
                        *self.journal_note.lock() = Some(lost.to_owned());
                    }
                }
                Err(error) => {
                    failed = failed.or(Some((crate::state::journal::NAME, error)));
                    break;
                }
            }
        }
        if let Some(last_good) = &self.last_good {
            match last_good.save(&self.directory) {
                Ok(()) => self.last_good = None,
                Err(error) => failed = failed.or(Some((crate::state::last_good::NAME, error))),
            }
        }
        self.durable
            .store(self.unsaved.is_none(), Ordering::Release);
        self.complain(failed);
    }

    /// Reports a failed write once, and reports its recovery once.
    fn complain(&mut self, failed: Option<(&str, io::Error)>) {
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
