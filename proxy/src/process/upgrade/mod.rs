//! Upgrade to a new process without a gap. This module defines who does what and when; the messages
//! are in `protocol`.
//!
//! The old process starts the program found at its own path, so a replaced binary is used. It
//! pauses its file, saves everything, releases the state directory and passes on its sockets and
//! its evidence. Until the new process reports that it is ready nothing is lost. If it fails, dies
//! or is silent for a minute, the old process takes everything back and continues.
//!
//! From then on both processes serve and obey one latch. What the new process has in force also
//! holds in the old one. A failure that the old process detects in its remaining requests rolls
//! back both. If the new process dies after that, the old one continues its drain, because it no
//! longer owns the state.
//!
//! Deliberately absent: a rendezvous socket in the file system. Any process that binds it first
//! would be given the listeners.

pub mod protocol;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cutover_core::Lead;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::process::sockets::{Given, Socket};
use crate::process::upgrade::protocol::{Message, Offer, PROTOCOL};
use crate::shared::control_handle::{ControlHandle, Handovers, Tripped};
use crate::shared::published::Published;
use crate::shared::reload_handle::ReloadHandle;

/// The argument that makes a process take over from the one that starts it.
pub const ARGUMENT: &str = "--take-over";
/// How long the other process may be silent before it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program of this process, as it was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Returns the program of this process. It must be called at the start, before the working
    /// directory changes. The name is kept and not its target, so that a symbolic link to another
    /// version is followed.
    pub fn of_this_process() -> Self {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // A name without a slash is looked up in PATH, now and at each later upgrade.
        let path = if name.components().count() > 1 {
            std::path::absolute(&name).unwrap_or(name)
        } else {
            name
        };
        Self {
            path,
            arguments: arguments.filter(|argument| argument != ARGUMENT).collect(),
        }
    }

    fn start(&self, theirs: UnixStream) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .arg(ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        // Variables that systemd sets for one process ID are not meant for another process.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        })
    }
}

/// Everything that a process passes to its successor.
#[derive(Debug)]
pub struct Holdings {
    /// The handle to the control loop.
    pub control: ControlHandle,
    /// The handle to the watched file.
    pub watch: ReloadHandle,
    /// Whether the admin port accepts no connection. A client waits for the process that will own
    /// the state, so that it is not given a command that is then lost.
    pub close_admin: watch::Sender<bool>,
    /// The listening sockets.
    pub sockets: Vec<Socket>,
}

/// The outcome of a handover.
#[derive(Debug)]
pub enum Outcome {
    /// The new process serves requests.
    TookOver {
        /// The process ID of the new process.
        pid: u32,
    },
    /// The new process does not serve, and this process continues as before.
    Failed {
        /// The reason of the failure.
        why: String,
    },
}

/// A new process that is about to take over.
#[derive(Debug)]
pub struct Upgrade(Arc<Mutex<Child>>);

impl Upgrade {
    /// Starts the program. `report` receives the outcome from a separate thread.
    ///
    /// # Errors
    /// Fails when the program or a thread cannot be started; nothing has changed then.
    pub fn begin(
        program: &Program,
        mut holdings: Holdings,
        report: impl FnOnce(Outcome) + Send + 'static,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        let child = program.start(theirs)?;
        let pid = child.id();
        tracing::info!(pid, program = %program.path.display(), "upgrade: a new process was started and will take over");
        let child = Arc::new(Mutex::new(child));
        let watched = Arc::clone(&child);
        std::thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(move || match negotiate(&ours, &mut holdings) {
                Ok(()) => {
                    report(Outcome::TookOver { pid });
                    follow(&ours, &holdings.control);
                }
                Err(failure) => report(Outcome::Failed {
                    why: undo(failure, &watched, &holdings),
                }),
            })?;
        Ok(Self(child))
    }

    /// Ends the new process, because this one is to stop and no process must be left behind.
    pub fn abandon(&self) {
        let _ = self.0.lock().kill();
    }
}

/// Why the new process does not serve.
struct Failure {
    why: String,
    is_handed_over: bool,
}

/// Negotiates with the new process from its start until it serves.
fn negotiate(stream: &UnixStream, holdings: &mut Holdings) -> Result<(), Failure> {
    let before = |why: String| Failure {
        why,
        is_handed_over: false,
    };
    match hear(stream).map_err(before)? {
        Message::Hello {
            protocol: PROTOCOL,
            version,
        } => tracing::info!(version, "upgrade: the new process has read its file"),
        Message::Hello { protocol, version } => {
            return Err(before(format!(
                "version {version} speaks protocol {protocol} for this, and this process \
                 {PROTOCOL}: stop and start it instead"
            )));
        }
        other => return Err(before(unexpected(&other))),
    }
    holdings.close_admin.send_replace(true);
    holdings.watch.pause_blocking();
    let (trips, told) = mpsc::unbounded_channel();
    let handover = match holdings.control.hand_over_blocking(trips) {
        Ok(Ok(handover)) => handover,
        Ok(Err(why)) => return Err(before(why)),
        Err(gone) => return Err(before(gone.to_string())),
    };
    offer(stream, holdings, &handover, told).map_err(|why| Failure {
        why,
        is_handed_over: true,
    })
}

fn offer(
    stream: &UnixStream,
    holdings: &mut Holdings,
    handover: &Handovers,
    told: mpsc::UnboundedReceiver<Tripped>,
) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let sockets = holdings
        .sockets
        .iter()
        .map(|socket| (socket.purpose, socket.configured))
        .collect();
    let offer = Offer {
        clock_us: clock::mono().as_micros(),
        sockets,
        handover: protocol::estate_of(handover),
    };
    protocol::say(stream, &Message::Offer(offer)).map_err(text)?;
    protocol::pass(stream, &holdings.sockets).map_err(text)?;
    // A copy that stays open would let clients connect to a port that no process serves.
    holdings.sockets.clear();
    let speaking = stream.try_clone().map_err(text)?;
    std::thread::Builder::new()
        .name("upgrade-out".to_owned())
        .spawn(move || tell(&speaking, told))
        .map_err(text)?;
    match hear(stream)? {
        Message::Ready => {}
        other => return Err(unexpected(&other)),
    }
    match hear(stream)? {
        Message::Lead {
            acknowledged,
            rollouts,
            maintenance,
        } => {
            let lead = protocol::restore_lead(rollouts, &maintenance).map_err(text)?;
            holdings
                .control
                .follow_blocking(lead, acknowledged)
                .map_err(|gone| gone.to_string())?;
        }
        other => return Err(unexpected(&other)),
    }
    stream.set_read_timeout(None).map_err(text)
}

fn hear(stream: &UnixStream) -> Result<Message, String> {
    protocol::hear(stream).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it was silent for {PATIENCE:?}")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => String::new(),
        _ => error.to_string(),
    })
}

fn unexpected(word: &Message) -> String {
    match word {
        Message::Failed { why } => why.clone(),
        other => format!("it said something unexpected: {other:?}"),
    }
}

/// Takes back what was handed over, after the end of the new process, and returns why it failed.
fn undo(failure: Failure, child: &Mutex<Child>, holdings: &Holdings) -> String {
    let ended = {
        let mut child = child.lock();
        let _ = child.kill();
        child.wait()
    };
    if failure.is_handed_over {
        // This fails only when this process itself is ending.
        let _ = holdings.control.take_back_blocking();
    }
    holdings.watch.resume();
    holdings.close_admin.send_replace(false);
    match ended {
        Ok(status) if failure.why.is_empty() => format!("it ended before it was ready: {status}"),
        Ok(_) | Err(_) => failure.why,
    }
}

/// Reports rollbacks to the new process.
fn tell(stream: &UnixStream, mut trips: mpsc::UnboundedReceiver<Tripped>) {
    while let Some(tripped) = trips.blocking_recv() {
        tracing::info!(
            rollout = tripped.rollout,
            "upgrade: the new process is told of this rollback"
        );
        if protocol::say(stream, &Message::of_trip(&tripped)).is_err() {
            return;
        }
    }
}

/// Follows the new process as long as both are alive.
fn follow(stream: &UnixStream, control: &ControlHandle) {
    while let Ok(Message::Lead {
        acknowledged,
        rollouts,
        maintenance,
    }) = protocol::hear(stream)
    {
        let Ok(lead) = protocol::restore_lead(rollouts, &maintenance) else {
            break;
        };
        if control.follow_blocking(lead, acknowledged).is_err() {
            return;
        }
    }
    tracing::error!(
        "upgrade: the new process no longer answers; this one continues its drain, and \
         leaves the state to the next process"
    );
}

/// The successor's end of the connection between both processes.
#[derive(Debug)]
pub struct Successor(UnixStream);

/// What a successor process takes over.
#[derive(Debug)]
pub struct Inherited {
    /// The listening sockets.
    pub sockets: Given,
    /// The state of each rollout that is handed over.
    pub handover: Handovers,
}

impl Successor {
    /// Returns the end of the socket pair that the predecessor passed as standard input.
    ///
    /// # Errors
    /// Fails when standard input is no such socket, because a user has typed an argument that is
    /// not for people.
    pub fn from_stdin() -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let refuse = |_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "no process to take over from is at standard input; for an upgrade send SIGUSR2 \
                 to the running process",
            )
        };
        stream.peer_addr().map_err(refuse)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Duplicates this end of the connection.
    ///
    /// # Errors
    /// Fails when the process has too many open files.
    pub fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Requests everything from the predecessor. From here on the state directory is free, and no
    /// other process writes to it.
    ///
    /// # Errors
    /// Fails when the other process is gone or sends an unexpected message.
    pub fn ask(&self) -> io::Result<Inherited> {
        protocol::say(
            &self.0,
            &Message::Hello {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        )?;
        let Offer {
            clock_us,
            sockets,
            handover,
        } = match protocol::hear(&self.0)? {
            Message::Offer(offer) => offer,
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    unexpected(&other),
                ));
            }
        };
        let sockets = protocol::receive(&self.0, &sockets)?;
        let handover = protocol::restore_handover(handover)?;
        let goes_on = clock::go_on_from(cutover_core::Mono::from_micros(clock_us));
        if !goes_on {
            tracing::warn!(
                "the clock of the process before this one cannot be continued: its evidence is \
                 left behind"
            );
        }
        Ok(Inherited {
            sockets: Given::ByProcess(sockets),
            handover: if goes_on { handover } else { Handovers::new() },
        })
    }

    /// Reports to the other process that the takeover failed and that it has to continue alone.
    pub fn fail(&self, why: &str) {
        let _ = protocol::say(
            &self.0,
            &Message::Failed {
                why: why.to_owned(),
            },
        );
    }

    /// Asks the other process to drain, and obeys one latch with it from now on.
    ///
    /// # Errors
    /// Fails when a thread cannot be started.
    pub fn ready(
        self,
        control: ControlHandle,
        published: Arc<Published>,
    ) -> io::Result<Predecessor> {
        let predecessor = Predecessor(Arc::new(AtomicBool::new(true)));
        let is_alive = Arc::clone(&predecessor.0);
        self.0.set_read_timeout(None)?;
        let speaking = self.0.try_clone()?;
        let (acknowledge, acknowledged) = watch::channel(0);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        std::thread::Builder::new()
            .name("upgrade-out".to_owned())
            .spawn(move || runtime.block_on(lead(&speaking, &published, acknowledged)))?;
        std::thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(move || {
                while let Ok(Message::Tripped {
                    rollout,
                    trip,
                    actor,
                    source,
                    reason,
                }) = protocol::hear(&self.0)
                {
                    let adopted = protocol::restore_trip(rollout, *trip, actor, &source, reason)
                        .map(|tripped| control.adopt_blocking(tripped));
                    if !matches!(adopted, Ok(Ok(()))) {
                        break;
                    }
                    acknowledge.send_modify(|count| *count += 1);
                }
                is_alive.store(false, Ordering::Release);
                tracing::info!("upgrade: the process before this one has ended");
            })?;
        Ok(predecessor)
    }
}

/// Sends the predecessor what is in force, at each change, until it is gone.
async fn lead(stream: &UnixStream, published: &Published, mut acknowledged: watch::Receiver<u64>) {
    let mut changes = published.changes();
    let mut said = protocol::say(stream, &Message::Ready);
    loop {
        // The count is read first, so that everything it counts is in the state that is loaded
        // after it.
        let count = *acknowledged.borrow_and_update();
        changes.borrow_and_update();
        said = said.and_then(|()| {
            protocol::say(
                stream,
                &Message::of_lead(&Lead::of(&published.load().split), count),
            )
        });
        if said.is_err() {
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = acknowledged.changed() => if changed.is_err() { return },
        }
    }
}

/// The predecessor process, which may still be serving.
#[derive(Clone, Debug)]
pub struct Predecessor(Arc<AtomicBool>);

impl Predecessor {
    /// Whether the predecessor is still alive.
    pub fn is_alive(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
