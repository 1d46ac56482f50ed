//! Assembly of the proxy. This is the only module that knows all others: it starts them in the
//! right order and stops them in reverse.
//!
//! Start: read the file (or the last good one) -> read the saved state -> bind both ports ->
//! publish -> control, watch, admin -> accept. A port that is in use is an error here, at once.
//! Pingora would retry for half a minute and then panic inside a task while the process stays
//! alive. The proxy therefore binds the sockets itself and hands them over.
//!
//! A start may receive its sockets from systemd. It may also receive sockets, clock and evidence
//! from its predecessor (`upgrade`). It then reads the file first, and reads the state only when
//! the predecessor has released it.
//!
//! Stop: readiness falls and clients are asked to reconnect -> the listeners and idle connections
//! close -> requests in flight finish, within the limit -> state and log are written -> done. An
//! idle process ends at once.

mod data_path;
mod error;
mod restore;
mod running;
mod sockets;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use cutover_config::Settings;
use cutover_core::{Actor, ControlPlane, Effect, Event, Via};
use tokio::sync::{Semaphore, watch};

use crate::admin::auth::Auth;
use crate::admin::{self, Admin};
use crate::clock;
use crate::control::Control;
use crate::process::sockets::Given;
use crate::process::systemd;
use crate::process::upgrade::{Inherited, Successor};
use crate::reload;
use crate::shared::certificates::Certificates;
use crate::shared::control_handle::{ControlHandle, Message};
use crate::shared::drain::DrainSignal;
use crate::shared::prewarm::Prewarm;
use crate::shared::published::{Common, Published, Snapshot};
use crate::shared::readiness::Readiness;
use crate::shared::recorder::recorder;
use crate::state::writer::StateWriter;
use crate::status::ConfigStatus;
use crate::telemetry::access_log::{AccessLog, Out};
use crate::telemetry::traces::Traces;
use data_path::{DataPath, Parts};
pub use error::StartError;
use restore::{Loaded, load, open_state};
pub use running::Running;
use sockets::Sockets;

/// The parameters of a start.
pub struct Start {
    /// The path of the configuration file.
    pub file: PathBuf,
    /// The number of request threads; `None` means one for each core.
    pub threads: Option<usize>,
    /// The destination of the access log.
    pub access_out: Box<dyn Write + Send>,
    /// What the process receives at its start.
    pub origin: Origin,
}

/// What a process receives at its start.
#[derive(Debug)]
pub enum Origin {
    /// Nothing except possibly sockets.
    Sockets(Given),
    /// A predecessor process to take over from.
    Process(Successor),
}

impl Default for Origin {
    fn default() -> Self {
        Self::Sockets(Given::Nothing)
    }
}

impl Origin {
    /// Asks the predecessor, if there is one, for its sockets and its evidence.
    fn inherit(self) -> Result<(Option<Successor>, Inherited), StartError> {
        match self {
            Self::Sockets(sockets) => Ok((
                None,
                Inherited {
                    sockets,
                    handover: BTreeMap::new(),
                },
            )),
            Self::Process(successor) => {
                let inherited = successor.ask().map_err(StartError::Upgrade)?;
                Ok((Some(successor), inherited))
            }
        }
    }
}

impl Start {
    /// Starts everything and returns when requests are accepted.
    ///
    /// # Errors
    /// Returns a [`StartError`], with nothing left running.
    pub fn start(self) -> Result<Running, StartError> {
        self.start_in(None)
    }

    /// Starts everything with this state directory. `None` stands for the one that the file names.
    ///
    /// # Errors
    /// [`StartError`]. Nothing is left running then.
    pub fn start_in(self, state: Option<&Path>) -> Result<Running, StartError> {
        let Loaded {
            settings,
            directory,
            text,
            mut source,
            problems,
        } = load(&self.file, state)?;
        // A successor continues the clock of its predecessor. So nothing in this process may have
        // read the clock before this.
        let (successor, inherited) = self.origin.inherit()?;
        let (ownership, restored) =
            open_state(&directory).map_err(|error| StartError::state(&directory, error))?;
        let sockets = Sockets::open(inherited.sockets, &settings)?;
        let (http, https, admin_address) = sockets.addresses()?;
        let certificates = Certificates::load(&source.base(), &settings.listen.certificates)?;
        let base = source.base();

        let mut plane = ControlPlane::new(restored);
        plane.inherit(inherited.handover);
        let effects = begin(&mut plane, &settings, successor.is_some());
        // A state directory that is not writable must be found now, not at the first rollback.
        crate::state::status_file::save(&directory, &plane.standings())
            .map_err(|error| StartError::state(&directory, error))?;
        let common = Arc::new(Common::new(settings, None));
        let settings = &common.settings;
        for warning in &settings.warnings {
            tracing::warn!(%warning, "the file has a warning");
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
                .map_err(|error| StartError::state(&directory, error))?;
        }
        drop(accepted);
        let (access_log, log_thread) =
            start_access_log(settings, &base, &directory, self.access_out)?;
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
        let (prewarm, prewarm_requests) = Prewarm::new();
        let control_loop = Control::new(
            plane,
            reader,
            Arc::clone(&published),
            Arc::clone(&common),
            disk.clone(),
            config,
            (drains.clone(), prewarm.clone()),
        );
        let control_thread = start_control(control_loop, effects, inbox, stopped.clone())?;
        let (reload, reload_thread) = reload::start(
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

        let data_path = DataPath::start(
            settings,
            self.threads,
            &sockets,
            &certificates,
            Parts {
                published: Arc::clone(&published),
                recorder,
                access_log: access_log.clone(),
                traces: traces.clone(),
                drains: drains.clone(),
                prewarm,
                prewarm_requests,
            },
        )?;

        let ready: Arc<Readiness> = Arc::default();
        let admin_state = Admin {
            control: control.clone(),
            watch: reload.clone(),
            published: Arc::clone(&published),
            connections: Arc::clone(&data_path.connections),
            refusals: Arc::clone(&data_path.refusals),
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
            sockets.admin.again()?.listener,
            admin_state,
            close_admin.subscribe(),
            stopped,
        )?;
        let predecessor = successor
            .map(|successor| successor.ready(control.clone(), published))
            .transpose()?;
        let threads = [
            control_thread,
            reload_thread,
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
            watch: reload,
            access_log: access_log.reopener(),
            traces,
            ready,
            connections: data_path.connections,
            stop_accepting: data_path.stop_accepting,
            stop,
            drains,
            close_admin,
            ending: data_path.shutdown,
            listeners: data_path.listeners,
            stop_certificates,
            runtime: data_path.runtime,
            threads,
            sockets: sockets.into_all(),
            predecessor,
        })
    }
}

/// Gives the first settings to the plane and returns what it wants done. Settings are never
/// refused.
fn begin(plane: &mut ControlPlane, settings: &Settings, is_upgrade: bool) -> Vec<Effect> {
    let actor = Actor {
        name: if is_upgrade { "upgrade" } else { "start" }.to_owned(),
        source: Via::Start,
    };
    let event = Event::Settings {
        rollouts: settings.rollouts.clone(),
        actor,
        reason: String::new(),
    };
    plane.on(event, clock::now()).unwrap_or_default()
}

/// Starts the thread that writes the access log, to the file that the settings name or to `out`.
fn start_access_log(
    settings: &Settings,
    base: &Path,
    state: &Path,
    out: Box<dyn Write + Send>,
) -> Result<(AccessLog, JoinHandle<()>), StartError> {
    let out = match &settings.log.file {
        None => Out::to(out),
        Some(file) => {
            let path = base.join(file);
            Out::file(path.clone()).map_err(|error| StartError::Log { path, error })?
        }
    };
    let secret = crate::state::status_file::secret(state)
        .map_err(|error| StartError::state(state, error))?;
    Ok(AccessLog::start(settings.log.format, out, secret)?)
}

/// Starts the thread of the control loop, which first carries out `effects`.
fn start_control(
    mut control: Control,
    effects: Vec<Effect>,
    inbox: tokio::sync::mpsc::Receiver<Message>,
    stopped: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                control.begin(effects).await;
                control.run(inbox, stopped).await;
            });
        })
}
