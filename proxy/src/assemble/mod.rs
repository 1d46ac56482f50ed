//! The only file that knows all rooms: it starts them in the right order, and stops them in the
//! reverse.
//!
//! Start: read the file (or the last good one) -> read the saved state -> bind both ports ->
//! publish -> control, watch, admin -> accept. A port that is in use is an error here, at once:
//! pingora would retry for half a minute and then panic inside a task while the process lives on.
//! So the sockets are ours and are handed over.
//!
//! A start may get its sockets from systemd, or sockets, clock and evidence from the process before
//! it (`succession`); then it reads the file first, and the state only when that process has let go
//! of it.
//!
//! Stop: readiness falls, clients are told to come on another connection -> the listeners close,
//! idle connections with them -> requests in flight finish, as long as the bound allows -> state
//! and log are written -> done. A process without work ends at once.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use cutover_config::{Engine, Settings};
use cutover_core::control::plane::Restored;
use cutover_core::{Actor, ControlPlane, Event};
use pingora::listeners::tls::Acceptor as TlsAcceptor;
use pingora::server::configuration::ServerConf;
use tokio::sync::{Semaphore, watch};

use crate::admin::auth::Auth;
use crate::admin::{self, Admin};
use crate::clock;
use crate::control::Control;
use crate::gateway::adapter::{Adapter, MAX_ATTEMPTS};
use crate::gateway::lane::Lane;
use crate::gateway::listener::accept::Acceptor;
use crate::gateway::listener::deadlines::Watchdog;
use crate::gateway::listener::{self, Door, Ending, Entrance};
use crate::gateway::prewarm::Stoker;
use crate::gateway::router::hold_queue::{Parking, ParkingLimits};
use crate::gateway::router::{Gate, Limits};
use crate::process::sockets::{Given, Purpose, Socket};
use crate::process::systemd;
use crate::process::upgrade::{Heir, Holdings, Inheritance, Predecessor};
use crate::reload;
use crate::reload::source::{Source, SourceError};
use crate::shared::certificates::{Certificates, Unusable};
use crate::shared::connections::{Connections, lingering};
use crate::shared::control_handle::ControlHandle;
use crate::shared::drain::Drains;
use crate::shared::prewarm::WarmUp;
use crate::shared::published::{Common, Published, Snapshot};
use crate::shared::readiness::Readiness;
use crate::shared::recorder::recorder;
use crate::shared::reload_handle::ReloadHandle;
use crate::shared::settling;
use crate::state::journal;
use crate::state::last_good;
use crate::state::writer::{self, Disk, Ownership};
use crate::status::ConfigStatus;
use crate::telemetry::access_log::{AccessLog, Out, Reopener};
use crate::telemetry::traces::Traces;

/// Kept connections to backends for each thread. A pool smaller than the concurrency doubles the
/// cost of a request.
const POOL_PER_THREAD: usize = 1_024;
/// How long WebSockets may take to end when the process does.
const FAREWELL: Duration = Duration::from_millis(1_500);
/// How often a stopping process looks whether it is idle.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How often a start looks whether a list has rested.
const START_LOOK: Duration = Duration::from_millis(50);
/// The state directory of a file that names none.
const DEFAULT_STATE: &str = "/var/lib/cutover";
/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no usable configuration, and none that was kept: the exit code is 2.
    #[error("{error}\n{why}\nhint: {hint}")]
    NoLastGood {
        /// What is wrong with the file.
        error: SourceError,
        /// Why nothing stands in for it.
        why: String,
        /// What to type.
        hint: String,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {address} ({key}): {error}{}", hint(.error))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Where the file says it.
        key: &'static str,
        /// Why.
        error: io::Error,
    },
    /// systemd has passed sockets that the file does not ask for.
    #[error("systemd passes sockets that listen on {}, and the file asks for none of them\nhint: `ListenStream=` of the socket unit and `[listen]` or `[admin]` of the file must say the same addresses", addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "))]
    Unused {
        /// Their addresses.
        addresses: Vec<SocketAddr>,
    },
    /// The process before this one does not let it take over.
    #[error("cannot take over: {0}")]
    Succession(io::Error),
    /// A certificate cannot be used.
    #[error("{0}")]
    Certificate(#[from] Unusable),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {} ([state] directory): {error}\nhint: {}", directory.display(), state_hint(.error))]
    State {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file of the access log cannot be opened.
    #[error("cannot write the access log {} ([log] file): {error}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The operating system refused a thread or a runtime.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "\nhint: another process listens there; `ss -ltnp` shows which",
        io::ErrorKind::PermissionDenied => "\nhint: ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "\nhint: this machine has no such address",
        _ => "",
    }
}

fn state_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "give each process a directory of its own, or stop the other one"
        }
        _ => "a rollback must survive a restart, so this directory must exist and be writable",
    }
}

/// How to start.
pub struct Start {
    /// The file.
    pub file: PathBuf,
    /// Request threads; `None` is one for each core.
    pub threads: Option<usize>,
    /// Where the access log goes.
    pub access_out: Box<dyn Write + Send>,
    /// What was there before.
    pub origin: Origin,
}

/// What is there before a process starts.
#[derive(Debug)]
pub enum Origin {
    /// Nothing but, perhaps, sockets.
    Sockets(Given),
    /// A process that is to be taken over from.
    Process(Heir),
}

impl Default for Origin {
    fn default() -> Self {
        Self::Sockets(Given::Nothing)
    }
}

/// A running proxy. Dropping it without [`Running::stop`] leaves its threads behind.
#[derive(Debug)]
pub struct Running {
    /// The addresses that requests come to without TLS; real ports where the file says 0.
    pub http: Vec<SocketAddr>,
    /// The same with TLS.
    pub https: Vec<SocketAddr>,
    /// The address of the admin port.
    pub admin: SocketAddr,
    /// `listen.engine` as it is until a restart.
    pub engine: Engine,
    /// To the control loop.
    pub control: ControlHandle,
    /// To the watched file.
    pub watch: ReloadHandle,
    /// To the file of the access log.
    pub access_log: Reopener,
    traces: Traces,
    ready: Arc<Readiness>,
    connections: Arc<Connections>,
    stop_accepting: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    drains: Drains,
    close_admin: watch::Sender<bool>,
    ending: Arc<Ending>,
    doors: usize,
    stop_certificates: mpsc::Sender<()>,
    runtime: tokio::runtime::Runtime,
    threads: Vec<JoinHandle<()>>,
    /// For the process after this one.
    sockets: Vec<Socket>,
    predecessor: Option<Predecessor>,
}

/// A configuration, and where it came from.
struct Loaded {
    settings: Settings,
    /// The state directory that it names, or in which it was found.
    directory: PathBuf,
    text: String,
    source: Source,
    /// Why the file itself was not used.
    problems: Option<String>,
}

impl Start {
    /// Starts everything and returns when requests are accepted.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(self) -> Result<Running, StartError> {
        self.start_in(None)
    }

    /// Starts everything with this state directory; `None` is the one that the file names.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start_in(self, state: Option<&Path>) -> Result<Running, StartError> {
        let source = load_rested(&self.file);
        let loaded = match source {
            (source, Ok((settings, text))) => Loaded {
                directory: source.base().join(&settings.state.directory),
                settings,
                text,
                source,
                problems: None,
            },
            (source, Err(error)) => last_good(source, error, state)?,
        };
        let Loaded {
            mut settings,
            directory: by_file,
            text,
            mut source,
            problems,
        } = loaded;
        let directory = match state {
            None => by_file,
            Some(given) => {
                if std::path::absolute(&by_file).ok() != std::path::absolute(given).ok() {
                    tracing::warn!(given = %given.display(), file = %by_file.display(), "the state directory that was given is used, and not the one in the file");
                }
                // What is compared at a reload, and shown.
                settings.state.directory = given.display().to_string();
                given.to_owned()
            }
        };
        source.keep_in(&directory);
        for file in source.mounted_alone() {
            tracing::warn!(file = %file.display(), "this file is a mount point of its own: a file that is renamed into its place outside is never seen here; mount its folder instead");
        }
        // Nothing of this process has read the clock before this, since it goes on from the other
        // one's.
        let (
            heir,
            Inheritance {
                sockets: mut given,
                estate,
            },
        ) = match self.origin {
            Origin::Sockets(given) => (
                None,
                Inheritance {
                    sockets: given,
                    estate: BTreeMap::new(),
                },
            ),
            Origin::Process(heir) => {
                let inheritance = heir.ask().map_err(StartError::Succession)?;
                (Some(heir), inheritance)
            }
        };
        let (ownership, restored) = open_state(&directory).map_err(|error| StartError::State {
            directory: directory.clone(),
            error,
        })?;

        let admin_socket = socket(&mut given, Purpose::Admin, settings.admin.address)?;
        let http_sockets = settings
            .listen
            .http
            .iter()
            .map(|address| socket(&mut given, Purpose::Http, *address))
            .collect::<Result<Vec<_>, _>>()?;
        let https_sockets = settings
            .listen
            .https
            .iter()
            .map(|address| socket(&mut given, Purpose::Https, *address))
            .collect::<Result<Vec<_>, _>>()?;
        let unused = given.unused();
        if !unused.is_empty() {
            return Err(StartError::Unused { addresses: unused });
        }
        drop(given);
        let certificates = Certificates::load(&source.base(), &settings.listen.certificates)?;
        let addresses = |sockets: &[Socket]| {
            sockets
                .iter()
                .map(|socket| socket.listener.local_addr())
                .collect::<Result<Vec<_>, _>>()
        };
        let admin_address = admin_socket.listener.local_addr()?;
        let (http, https) = (addresses(&http_sockets)?, addresses(&https_sockets)?);
        let base = source.base();

        let mut plane = ControlPlane::new(restored);
        plane.inherit(estate);
        let actor = Actor {
            name: if heir.is_some() { "upgrade" } else { "start" }.to_owned(),
            source: cutover_core::Source::Start,
        };
        // Settings are never refused.
        let effects = plane
            .on(
                Event::Settings {
                    rollouts: settings.rollouts.clone(),
                    actor,
                    reason: String::new(),
                },
                clock::now(),
            )
            .unwrap_or_default();
        // A state directory that cannot be written must show now, not at the first rollback.
        crate::state::status_file::save(&directory, &plane.standings()).map_err(|error| {
            StartError::State {
                directory: directory.clone(),
                error,
            }
        })?;
        let common = Arc::new(Common::new(settings, None));
        let settings = &common.settings;
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        let published = Arc::new(Published::new(Snapshot::new(
            plane.split(),
            Arc::clone(&common),
            None,
        )));
        let (recorder, reader) = recorder();
        let (disk, disk_thread) = Disk::start(directory.clone(), ownership)?;
        let accepted = source.accept(&text);
        if let Some(problems) = &problems {
            systemd::rejected(problems);
        } else {
            accepted
                .save(&directory)
                .map_err(|error| StartError::State {
                    directory: directory.clone(),
                    error,
                })?;
        }
        drop(accepted);
        let out = match &settings.log.file {
            None => Out::to(self.access_out),
            Some(file) => {
                let path = base.join(file);
                Out::file(path.clone()).map_err(|error| StartError::Log { path, error })?
            }
        };
        let secret =
            crate::state::status_file::secret(&directory).map_err(|error| StartError::State {
                directory: directory.clone(),
                error,
            })?;
        let (access_log, log_thread) = AccessLog::start(settings.log.format, out, secret)?;
        let (traces, traces_thread) = Traces::start(settings.traces.as_ref())?;

        let (control, inbox) = ControlHandle::new();
        let (stop, stopped) = watch::channel(false);
        let config = ConfigStatus {
            file: source.path().display().to_string(),
            digest: settings.digest.clone(),
            last_reload_successful: problems.is_none(),
            last_success_at: clock::rfc3339(clock::wall()),
            problems,
            restart_needed: Vec::new(),
            waiting_for: Vec::new(),
        };
        let drains = Drains::default();
        let (warm_up, wishes) = WarmUp::new();
        let mut control_loop = Control::new(
            plane,
            reader,
            Arc::clone(&published),
            Arc::clone(&common),
            disk.clone(),
            config,
            (drains.clone(), warm_up.clone()),
        );
        let control_runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let control_stopped = stopped.clone();
        let control_thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                control_runtime.block_on(async {
                    control_loop.begin(effects).await;
                    control_loop.run(inbox, control_stopped).await;
                });
            })?;
        let (watch_handle, watch_thread) = reload::start(
            source,
            Arc::clone(&common),
            state.is_some(),
            control.clone(),
            disk,
        )?;
        let (stop_certificates, certificates_stopped) = mpsc::channel();
        let certificates_thread =
            certificates.follow(base, Arc::clone(&published), certificates_stopped)?;
        let health_thread = {
            let published = Arc::clone(&published);
            let backends = move || published.load().common.backends.values().cloned().collect();
            crate::upstream::health::start(backends, stopped.clone())?
        };

        let limits = Limits {
            max_header_bytes: settings.listen.max_header_bytes,
            max_body: settings.listen.max_body,
        };
        let gate = Arc::new(Gate::new(
            Arc::clone(&published),
            recorder,
            access_log.clone(),
            traces.clone(),
            limits,
        ));
        let connections: Arc<Connections> = Arc::default();
        let threads = self
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let (stop_accepting, accepting) = watch::channel(false);
        let (parking, attendant) = Parking::new(Arc::clone(&published), ParkingLimits::default());
        runtime.spawn(attendant.work());
        let ending: Arc<Ending> = Arc::default();
        let conf = ServerConf {
            threads,
            max_retries: MAX_ATTEMPTS,
            upstream_keepalive_pool_size: POOL_PER_THREAD,
            ..ServerConf::default()
        };
        let watchdog = Arc::new(Watchdog::new(&published.load()));
        let proxy = Arc::new(pingora::proxy::http_proxy(
            &Arc::new(conf),
            Adapter::new(
                Arc::clone(&gate),
                parking,
                Arc::clone(&watchdog),
                &settings.listen,
            ),
        ));
        let lane = (settings.listen.engine == Engine::Auto).then(|| {
            Arc::new(Lane::new(
                Arc::clone(&gate),
                drains.clone(),
                Arc::clone(&connections),
                ending.closing.subscribe(),
                &settings.listen,
            ))
        });
        runtime.spawn(Stoker::new(wishes).work(Arc::clone(&proxy), lane.is_some()));
        let in_use = published.load().new_in_use();
        runtime.spawn(async move { warm_up.warm(in_use).await });
        runtime.spawn(Arc::clone(&watchdog).work(
            Arc::clone(&published),
            drains.clone(),
            ending.dismissed.subscribe(),
        ));
        let refusals = Arc::clone(gate.refusals());
        let shared = listener::Shared {
            proxy,
            gate,
            lane,
            connections: Arc::clone(&connections),
            ending: Arc::clone(&ending),
            drains: drains.clone(),
            watchdog,
        };
        let mut doors = 0;
        let mut open = |entrance, sockets: &[Socket]| -> io::Result<()> {
            let door = Arc::new(Door::new(&shared, entrance, &settings.listen));
            let _inside = runtime.enter();
            for socket in sockets {
                runtime.spawn(
                    Acceptor::new(socket.again()?.listener)?
                        .work(Arc::clone(&door), accepting.clone()),
                );
                doors += 1;
            }
            Ok(())
        };
        open(
            Entrance::Plain {
                h2c: settings.listen.h2c,
            },
            &http_sockets,
        )?;
        if !https.is_empty() {
            open(
                Entrance::Tls(TlsAcceptor::from_server_config(Arc::new(
                    certificates.server_config()?,
                ))),
                &https_sockets,
            )?;
        }

        let ready: Arc<Readiness> = Arc::default();
        let admin_state = Admin {
            control: control.clone(),
            watch: watch_handle.clone(),
            published: Arc::clone(&published),
            connections: Arc::clone(&connections),
            refusals,
            certificates,
            access_log: access_log.clone(),
            traces: traces.clone(),
            drains: drains.clone(),
            ready: Arc::clone(&ready),
            state_directory: directory,
            histories: Arc::new(Semaphore::new(admin::HISTORIES)),
            auth: Arc::new(Auth::new(settings.admin.tokens.clone())),
        };
        let close_admin = watch::Sender::new(false);
        let admin_thread = admin::start(
            admin_socket.again()?.listener,
            admin_state,
            close_admin.subscribe(),
            stopped,
        )?;
        let predecessor = heir
            .map(|heir| heir.ready(control.clone(), published))
            .transpose()?;
        let threads = [
            control_thread,
            watch_thread,
            certificates_thread,
            health_thread,
            admin_thread,
            disk_thread,
            log_thread,
        ]
        .into_iter()
        .chain(traces_thread)
        .collect();
        Ok(Running {
            http,
            https,
            admin: admin_address,
            engine: settings.listen.engine,
            control,
            watch: watch_handle,
            access_log: access_log.reopener(),
            traces,
            ready,
            connections,
            stop_accepting,
            stop,
            drains,
            close_admin,
            ending,
            doors,
            stop_certificates,
            runtime,
            threads,
            sockets: std::iter::once(admin_socket)
                .chain(http_sockets)
                .chain(https_sockets)
                .collect(),
            predecessor,
        })
    }
}

impl Running {
    /// Stops, and says how many connections had to be cut. `hurry` ends all waiting.
    ///
    /// For `lead` all goes on, while load balancers see that readiness has fallen and clients are
    /// told with every answer to come on another connection; without clients, and without anybody
    /// who asks for readiness, there is nothing to wait for. Then the listeners close, idle
    /// connections with them, and what is in flight finishes, at most for `grace`.
    pub fn stop(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        let hurried = wait(lead, &hurry, || {
            self.connections.open() == 0 && self.ready.is_fall_known()
        });
        self.stop_listening();
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(grace, &hurry, || self.has_nobody());
        }
        self.end()
    }

    /// Whether no client is there and none will be. In this order: who has been accepted is counted
    /// before its door is closed.
    fn has_nobody(&self) -> bool {
        self.ending.closed_doors.load(Ordering::Acquire) == self.doors
            && self.connections.open() == 0
    }

    /// Stops after another process has taken over, and says how many connections had to be cut.
    /// `hurry` ends all waiting.
    ///
    /// The listeners close at once, since the other process has them, too; the admin port accepts
    /// nobody since the handover. Clients are told with every answer to come on another connection,
    /// and go there; who sends nothing may stay for `grace`, so that no request meets a
    /// connection that is being closed. What is in flight then may take `lead` to finish.
    pub fn retire(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        self.stop_listening();
        let hurried = wait(grace, &hurry, || self.has_nobody());
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(lead, &hurry, || self.connections.open() == 0);
        }
        self.end()
    }

    /// What a process needs that takes over.
    ///
    /// # Errors
    /// When this process has too many open files.
    pub fn holdings(&self) -> io::Result<Holdings> {
        let sockets = self
            .sockets
            .iter()
            .map(Socket::again)
            .collect::<io::Result<_>>()?;
        Ok(Holdings {
            control: self.control.clone(),
            watch: self.watch.clone(),
            close_admin: self.close_admin.clone(),
            sockets,
        })
    }

    /// Whether the process that this one has taken over from is still serving.
    pub fn has_predecessor(&self) -> bool {
        self.predecessor.as_ref().is_some_and(Predecessor::is_alive)
    }

    fn stop_listening(&mut self) {
        self.stop_accepting.send_replace(true);
        self.sockets.clear();
    }

    fn end(self) -> usize {
        let cut = self.connections.open();
        if cut > 0 {
            // Whoever can be told that this is the end is told.
            self.drains.order_all();
            wait(FAREWELL, &|| false, || self.connections.open() == 0);
        }
        // Whoever still sends would lose an answer that is under way.
        wait(FAREWELL, &|| false, || lingering() == 0);
        self.runtime.shutdown_timeout(Duration::from_millis(100));
        self.watch.stop();
        // The admin answered until here: whoever waits for readiness to fall has seen it fall.
        self.stop.send_replace(true);
        self.traces.end();
        drop((self.control, self.watch, self.stop_certificates));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread ended in a panic");
            }
        }
        cut
    }
}

/// Waits until it is done, at most so long, and says whether somebody is in a hurry.
fn wait(longest: Duration, hurry: &impl Fn() -> bool, is_done: impl Fn() -> bool) -> bool {
    let started = clock::mono();
    while !is_done() && clock::mono().since(started) < longest {
        if hurry() {
            return true;
        }
        std::thread::sleep(DRAIN_LOOK);
    }
    false
}

/// Reads the file once no list in it is being written: at the start there is nothing that could
/// stand for half a list. It is read after [`rest::MOST`] in any case.
fn load_rested(file: &Path) -> (Source, Result<(Settings, String), SourceError>) {
    // Counted and not timed: a process that takes over must not have read the clock yet.
    let mut looks = settling::MOST.as_millis() / START_LOOK.as_millis();
    let mut told = false;
    loop {
        let mut source = Source::new(file);
        let loaded = source.load();
        let now = clock::wall();
        let fresh = source.sights().iter().find(|(path, sight)| {
            !source.has_syntax(path) && sight.was_written_within(settling::LONG, now)
        });
        match (&loaded, fresh) {
            (Ok(_), Some((list, _))) if looks > 0 => {
                looks -= 1;
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        file = list,
                        "a file was written just now and may still be being written; the start \
                         waits until it has rested"
                    );
                }
                std::thread::sleep(START_LOOK);
            }
            _ => return (source, loaded),
        }
    }
}

/// The last accepted file, for a start with a broken one.
fn last_good(
    source: Source,
    error: SourceError,
    state: Option<&Path>,
) -> Result<Loaded, StartError> {
    let directory = match state {
        Some(directory) => directory.to_owned(),
        // Otherwise it stands in the broken file, as far as that can be read.
        None => {
            let text = std::fs::read_to_string(source.path()).unwrap_or_default();
            source
                .base()
                .join(state_directory_of(&text).unwrap_or_else(|| DEFAULT_STATE.to_owned()))
        }
    };
    let kept = directory.join(last_good::NAME);
    let nothing = |why: String| {
        let (file, directory) = (
            source.path().display().to_string(),
            directory.display().to_string(),
        );
        let hint = match state {
            Some(_) => format!("mend the file; `cutover check {file}` shows its problems"),
            None => format!(
                "mend the file, or name the state directory of the last run: cutover run -c \
                 {file} --state DIRECTORY"
            ),
        };
        StartError::NoLastGood {
            error: error.clone(),
            why: format!(
                "no last good file stands in for it: {directory}/{}: {why}",
                last_good::NAME
            ),
            hint,
        }
    };
    let (text, files) = match last_good::read(&directory) {
        Ok(read) => read,
        Err(why) => return Err(nothing(why.to_string())),
    };
    let mut reader = source.beside();
    reader.keep_in(&directory);
    // What cannot be read from there is read where it is.
    reader.hold(
        files
            .into_iter()
            .filter(|(_, digest)| last_good::content(&directory, digest).is_some())
            .collect(),
    );
    let settings = match reader.parse(&kept.display().to_string(), &text) {
        Ok(settings) => settings,
        Err(problems) => {
            return Err(nothing(format!(
                "it cannot be used either:\n{}",
                problems.render(false)
            )));
        }
    };
    let problems = error.render(false);
    tracing::error!(file = %source.path().display(), last_good = %kept.display(), problems, "the file cannot be used; starting with the last good one");
    let directory = match state {
        // What was kept names the one that the file named then.
        Some(_) => source.base().join(&settings.state.directory),
        None => directory,
    };
    Ok(Loaded {
        settings,
        directory,
        text,
        source: reader,
        problems: Some(problems),
    })
}

/// The state directory as far as a broken file still says it: by line, since the file may not
/// parse.
fn state_directory_of(text: &str) -> Option<String> {
    let in_state = text
        .lines()
        .skip_while(|line| line.trim() != "[state]")
        .skip(1)
        .take_while(|line| !line.trim_start().starts_with('['));
    let line = in_state.into_iter().find_map(|line| {
        line.trim()
            .strip_prefix("directory")?
            .trim_start()
            .strip_prefix('=')
    });
    match line {
        Some(value) => value
            .trim()
            .strip_prefix('"')?
            .split('"')
            .next()
            .map(str::to_owned),
        None => Some(DEFAULT_STATE.to_owned()),
    }
}

fn open_state(directory: &Path) -> io::Result<(Ownership, Restored)> {
    std::fs::create_dir_all(directory)?;
    let lock = writer::lock_soon(directory)?;
    let has_journal =
        std::fs::metadata(journal::path(directory)).is_ok_and(|journal| journal.len() > 0);
    let restored = crate::state::status_file::restore(
        directory,
        has_journal || journal::moved_away(directory).is_some(),
    );
    if let Restored::Unreadable(why) = &restored {
        tracing::error!(directory = %directory.display(), why, "the saved state cannot be read: EVERY rollout starts at 0 % until it is re-armed, and maintenance is off");
    }
    let (ownership, opened) = Ownership::open(directory, lock)?;
    if opened.torn > 0 {
        tracing::warn!(
            bytes = opened.torn,
            "the journal ended in the middle of a line; that line was cut off"
        );
    }
    let note = match (&opened.continues, &restored) {
        _ if !opened.is_new => None,
        (Some(moved), _) => Some(format!(
            "the journal was moved away while no proxy ran; a new file continues the chain of {}",
            moved.display()
        )),
        (None, Restored::Fresh) => None,
        (None, Restored::Known(_) | Restored::Unreadable(_)) => Some(
            "the journal is missing although there is a saved state; a new chain begins".to_owned(),
        ),
    };
    if let Some(note) = &note {
        tracing::warn!(directory = %directory.display(), what = note, "the journal is not the file that was written last");
    }
    Ok((ownership.with_note(note), restored))
}

/// The socket for an address of the file, given or bound.
fn socket(given: &mut Given, purpose: Purpose, address: SocketAddr) -> Result<Socket, StartError> {
    given
        .take(purpose, address)
        .map_err(|error| StartError::Bind {
            address,
            key: purpose.key(),
            error,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_is_found_in_a_file_that_does_not_parse() {
        let directory = |text: &str| state_directory_of(text);
        assert_eq!(
            directory("[state]\ndirectory = \"/srv/state\" # here\n[backend.legacy\n").as_deref(),
            Some("/srv/state")
        );
        assert_eq!(
            directory("[[rollout]\npercent = 5%").as_deref(),
            Some("/var/lib/cutover")
        );
        assert_eq!(
            directory("[state]\n[log]\ndirectory = \"/no\"").as_deref(),
            Some("/var/lib/cutover")
        );
    }
}
