//! The only file that knows all rooms: it starts them in the right order, and stops them in the
//! reverse.
//!
//! Start: read the file (or the last good one) -> read the saved state -> bind both ports ->
//! publish -> control, watch, admin -> accept. A port that is in use is an error here, at once:
//! pingora would retry for half a minute and then panic inside a task while the process lives on.
//! So the sockets are ours and are handed over.
//!
//! A start may get its sockets from systemd, or sockets, clock and evidence from the process before
//! it (`upgrade`); then it reads the file first, and the state only when that process has let go
//! of it.
//!
//! Stop: readiness falls, clients are told to come on another connection -> the listeners close,
//! idle connections with them -> requests in flight finish, as long as the bound allows -> state
//! and log are written -> done. A process without work ends at once.

mod error;
mod restore;
mod running;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use cutover_config::Engine;
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
use crate::gateway::listener::accept::AcceptLoop;
use crate::gateway::listener::deadlines::Deadlines;
use crate::gateway::listener::{self, Listener, Protocol, Shutdown};
use crate::gateway::prewarm::Prewarmer;
use crate::gateway::router::hold_queue::{HoldLimits, HoldQueue};
use crate::gateway::router::{Limits, Router};
use crate::process::sockets::{Given, Purpose, Socket};
use crate::process::systemd;
use crate::process::upgrade::{Inherited, Successor};
use crate::reload;
use crate::shared::certificates::Certificates;
use crate::shared::connections::Connections;
use crate::shared::control_handle::ControlHandle;
use crate::shared::drain::DrainSignal;
use crate::shared::prewarm::Prewarm;
use crate::shared::published::{Common, Published, Snapshot};
use crate::shared::readiness::Readiness;
use crate::shared::recorder::recorder;
use crate::state::writer::StateWriter;
use crate::status::ConfigStatus;
use crate::telemetry::access_log::{AccessLog, Out};
use crate::telemetry::traces::Traces;
pub use error::StartError;
use restore::{Loaded, last_good, load_rested, open_state};
pub use running::Running;

/// Kept connections to backends for each thread. A pool smaller than the concurrency doubles the
/// cost of a request.
const POOL_PER_THREAD: usize = 1_024;

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
    Process(Successor),
}

impl Default for Origin {
    fn default() -> Self {
        Self::Sockets(Given::Nothing)
    }
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
            successor,
            Inherited {
                sockets: mut given,
                handover,
            },
        ) = match self.origin {
            Origin::Sockets(given) => (
                None,
                Inherited {
                    sockets: given,
                    handover: BTreeMap::new(),
                },
            ),
            Origin::Process(successor) => {
                let inheritance = successor.ask().map_err(StartError::Upgrade)?;
                (Some(successor), inheritance)
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
        plane.inherit(handover);
        let actor = Actor {
            name: if successor.is_some() {
                "upgrade"
            } else {
                "start"
            }
            .to_owned(),
            source: cutover_core::Via::Start,
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
        let (disk, disk_thread) = StateWriter::start(directory.clone(), ownership)?;
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
        let drains = DrainSignal::default();
        let (prewarm, wishes) = Prewarm::new();
        let mut control_loop = Control::new(
            plane,
            reader,
            Arc::clone(&published),
            Arc::clone(&common),
            disk.clone(),
            config,
            (drains.clone(), prewarm.clone()),
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
        let router = Arc::new(Router::new(
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
        let (hold_queue, releaser) = HoldQueue::new(Arc::clone(&published), HoldLimits::default());
        runtime.spawn(releaser.work());
        let ending: Arc<Shutdown> = Arc::default();
        let conf = ServerConf {
            threads,
            max_retries: MAX_ATTEMPTS,
            upstream_keepalive_pool_size: POOL_PER_THREAD,
            ..ServerConf::default()
        };
        let deadlines = Arc::new(Deadlines::new(&published.load()));
        let proxy = Arc::new(pingora::proxy::http_proxy(
            &Arc::new(conf),
            Adapter::new(
                Arc::clone(&router),
                hold_queue,
                Arc::clone(&deadlines),
                &settings.listen,
            ),
        ));
        let lane = (settings.listen.engine == Engine::Auto).then(|| {
            Arc::new(Lane::new(
                Arc::clone(&router),
                drains.clone(),
                Arc::clone(&connections),
                ending.closing.subscribe(),
                &settings.listen,
            ))
        });
        runtime.spawn(Prewarmer::new(wishes).work(Arc::clone(&proxy), lane.is_some()));
        let in_use = published.load().new_in_use();
        runtime.spawn(async move { prewarm.warm(in_use).await });
        runtime.spawn(Arc::clone(&deadlines).work(
            Arc::clone(&published),
            drains.clone(),
            ending.dismissed.subscribe(),
        ));
        let refusals = Arc::clone(router.refusals());
        let shared = listener::Shared {
            proxy,
            router,
            lane,
            connections: Arc::clone(&connections),
            ending: Arc::clone(&ending),
            drains: drains.clone(),
            deadlines,
        };
        let mut listeners = 0;
        let mut open = |protocol, sockets: &[Socket]| -> io::Result<()> {
            let listener = Arc::new(Listener::new(&shared, protocol, &settings.listen));
            let _inside = runtime.enter();
            for socket in sockets {
                runtime.spawn(
                    AcceptLoop::new(socket.again()?.listener)?
                        .work(Arc::clone(&listener), accepting.clone()),
                );
                listeners += 1;
            }
            Ok(())
        };
        open(
            Protocol::Plain {
                h2c: settings.listen.h2c,
            },
            &http_sockets,
        )?;
        if !https.is_empty() {
            open(
                Protocol::Tls(TlsAcceptor::from_server_config(Arc::new(
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
        let predecessor = successor
            .map(|successor| successor.ready(control.clone(), published))
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
            listeners,
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
