//! `cutover run`: the proxy in the foreground, and the signals that control it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cutover_config::LogFormat;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::assemble::{Origin, Running, Start, StartError};
use crate::cli::{FILE, Failed, note};
use crate::process::sockets::Given;
use crate::process::systemd;
use crate::process::upgrade::{Outcome, Program, Successor, Upgrade};
use crate::reload::source::ConfigSource;
use crate::shared::connections::MOST_LINGERING;
use crate::shared::reload_handle::ReloadHandle;
use crate::telemetry::event_log::EventLog;

/// Arguments of `cutover run`
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The configuration file to follow
    #[arg(long, short = 'c', default_value = FILE, value_name = "FILE")]
    config: PathBuf,
    /// The state directory, instead of the one that the file names; needed to use the last good
    /// file when the file cannot be read
    #[arg(long, env = "CUTOVER_STATE", value_name = "DIRECTORY")]
    state: Option<PathBuf>,
    /// The number of request threads; one for each core by default
    #[arg(long)]
    threads: Option<usize>,
    /// When stopping, how long to continue after readiness has fallen, so that load balancers and
    /// clients see it; skipped without clients or readiness probes, and on SIGINT
    #[arg(long, default_value = "5s", value_parser = cutover_config::parse_duration, value_name = "DURATION")]
    lead: Duration,
    /// How long requests in flight may take to finish after the lead time
    #[arg(long, default_value = "30s", value_parser = cutover_config::parse_duration, value_name = "DURATION")]
    grace: Duration,
    /// Take over from the process that starts this one; used by SIGUSR2, not by people
    #[arg(long, hide = true)]
    take_over: bool,
}

enum Signal {
    /// Not a signal: the start is complete.
    Started(Box<Result<Started, Failed>>),
    /// SIGTERM, from a supervisor.
    Stop,
    /// SIGINT, from a keyboard.
    Interrupt,
    /// SIGHUP, which reloads the file.
    Reload,
    /// SIGUSR1, which reopens the access log.
    Reopen,
    /// SIGUSR2, which starts an upgrade.
    Upgrade,
    /// The outcome of an upgrade.
    Upgraded(Outcome),
}

/// The reason why the service of this process ends.
enum End {
    /// The proxy stops without a successor.
    Stop { lead: Duration },
    /// A successor process has taken over.
    Succeeded,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        // This is done before any thread is started, because it clears the environment.
        let given = Given::by_systemd()
            .map_err(|error| Failed::new(format!("cannot use what systemd passes: {error}")))?;
        let program = Program::of_this_process();
        let successor = if self.take_over {
            Some(Successor::from_stdin()?)
        } else {
            None
        };
        // Signals are handled before the first file is read. An unhandled signal ends the process,
        // and a long list takes seconds to read.
        let (sender, signals) = signals()?;
        let origin = match &successor {
            Some(successor) => Origin::Process(successor.again()?),
            None => Origin::Sockets(given),
        };
        let start = Start {
            file: self.config.clone(),
            threads: self.threads,
            access_out: Box::new(std::io::stdout()),
            origin,
        };
        let (state, started) = (self.state.clone(), sender.clone());
        let begin = move || {
            // The receiver is gone when the process is ending.
            let _ = started.send(Signal::Started(Box::new(begin(start, state.as_deref()))));
        };
        std::thread::Builder::new()
            .name("start".to_owned())
            .stack_size(START_STACK)
            .spawn(begin)?;
        let mut early = Vec::new();
        let started = loop {
            match signals.recv() {
                Ok(Signal::Started(started)) => break *started,
                Ok(Signal::Stop | Signal::Interrupt) => {
                    systemd::stopping();
                    note("stopped during the start: no request was accepted");
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(signal) => early.push(signal),
                Err(_) => return Err(Failed::new("cannot start: no signal can be received")),
            }
        };
        let Started { running, event_log } = started.inspect_err(|failed| {
            if let Some(successor) = &successor {
                let hint = failed
                    .hint
                    .as_ref()
                    .map_or_else(String::new, |hint| format!("\nhint: {hint}"));
                successor.fail(&format!("{}{hint}", failed.message));
            }
        })?;
        drop(successor);
        // Signals that were received during the start are handled now.
        for signal in early {
            let _ = sender.send(signal);
        }
        let http: Vec<String> = running
            .http
            .iter()
            .map(|address| format!("http://{address}"))
            .chain(
                running
                    .https
                    .iter()
                    .map(|address| format!("https://{address}")),
            )
            .collect();
        tracing::info!(
            http = http.join(", "),
            admin = format!("http://{}", running.admin),
            engine = running.engine.name(),
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            "cutover is ready"
        );
        systemd::ready();
        systemd::keep_telling(running.control.clone())?;
        let end = serve(&running, &signals, &sender, &program, self.lead);
        let access_log = running.access_log.clone();
        let hurry = || match signals.try_recv() {
            Ok(Signal::Reopen) => {
                access_log.reopen();
                false
            }
            Ok(Signal::Stop | Signal::Interrupt) => true,
            Ok(Signal::Upgrade) => {
                tracing::warn!("upgrade refused: this process is ending");
                false
            }
            Ok(Signal::Reload) => {
                tracing::warn!("reload refused: this process is ending");
                false
            }
            Ok(Signal::Started(_) | Signal::Upgraded(_)) | Err(_) => false,
        };
        let cut = match end {
            End::Stop { lead } => {
                systemd::stopping();
                tracing::info!("stopping: no longer ready; requests in flight may finish");
                running.stop(lead, self.grace, hurry)
            }
            End::Succeeded => running.retire(self.lead, self.grace, hurry),
        };
        if cut > 0 {
            tracing::warn!(connections = cut, "stopped with connections still open");
        }
        tracing::info!("this process has ended");
        drop(event_log);
        Ok(ExitCode::SUCCESS)
    }
}

/// A proxy that accepts requests.
struct Started {
    running: Running,
    /// The event log, which writes lines until it is dropped.
    event_log: EventLog,
}

/// Reads the file, opens the log, and starts everything.
fn begin(start: Start, state: Option<&Path>) -> Result<Started, Failed> {
    // The file defines the log format. A file that cannot be read is reported later in any case.
    let settings = ConfigSource::new(&start.file)
        .load()
        .ok()
        .map(|(settings, _)| settings);
    let event_log = crate::telemetry::event_log::to_stdout(
        settings
            .as_ref()
            .map_or(LogFormat::Json, |settings| settings.log.format),
    )?;
    raise_file_limit(settings.map_or(0, |settings| settings.listen.max_connections));
    let running = start.start_in(state).map_err(|error| match error {
        StartError::NoLastGood { error, why, hint } => {
            let problems = error.render(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            Failed::usage(format!("{}\n\n{why}", problems.trim_end())).hint(hint)
        }
        other => Failed::new(other.to_string()).hint(other.hint().unwrap_or_default()),
    })?;
    Ok(Started { running, event_log })
}

/// The stack size of the thread that starts everything. It equals that of the main thread, since
/// files nest.
const START_STACK: usize = 8 * 1024 * 1024;

/// Raises the limit of open files as far as the system allows, and warns when that is too few. Each
/// client connection, each backend connection and each connection that is closing needs one.
fn raise_file_limit(max_connections: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let have = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    let wanted = max_connections as u64 * 2 + MOST_LINGERING as u64 + OTHER_FILES;
    if have < wanted {
        tracing::warn!(
            have,
            wanted,
            max_connections,
            "the limit on open files is lower than what listen.max_connections may need, two for \
             each, those that are ending and some others: clients will wait or get 500 before \
             that many are open (LimitNOFILE, ulimit -n)"
        );
    }
}

/// The number of files that are not connections, with some reserve.
const OTHER_FILES: u64 = 256;

/// Handles signals until one of them ends the service of this process.
fn serve(
    running: &Running,
    signals: &Receiver<Signal>,
    sender: &Sender<Signal>,
    program: &Program,
    lead: Duration,
) -> End {
    let mut upgrade: Option<Upgrade> = None;
    loop {
        match signals.recv() {
            Ok(Signal::Started(_)) => {}
            Ok(Signal::Reload) => reload(running.watch.clone()),
            Ok(Signal::Reopen) => running.access_log.reopen(),
            Ok(Signal::Upgrade) if upgrade.is_some() => {
                tracing::warn!("upgrade refused: one is under way");
            }
            Ok(Signal::Upgrade) if running.has_predecessor() => tracing::warn!(
                "upgrade refused: the process before this one still serves its last requests"
            ),
            Ok(Signal::Upgrade) => {
                let sender = sender.clone();
                // The receiver is gone when the process is ending.
                let report = move |outcome| drop(sender.send(Signal::Upgraded(outcome)));
                match running
                    .holdings()
                    .and_then(|holdings| Upgrade::begin(program, holdings, report))
                {
                    Ok(begun) => upgrade = Some(begun),
                    Err(error) => {
                        tracing::error!(%error, "upgrade failed: the new process cannot be started; this one goes on");
                    }
                }
            }
            Ok(Signal::Upgraded(Outcome::Failed { why })) => {
                upgrade = None;
                tracing::error!(why, "upgrade failed: this process goes on as before");
            }
            Ok(Signal::Upgraded(Outcome::TookOver { pid })) => {
                systemd::succeeded_by(pid);
                tracing::info!(
                    pid,
                    "upgrade: the new process has taken over; requests in flight may finish here"
                );
                return End::Succeeded;
            }
            Ok(signal @ (Signal::Stop | Signal::Interrupt)) => {
                if let Some(upgrade) = &upgrade {
                    tracing::warn!("upgrade given up: this process is to stop");
                    upgrade.abandon();
                }
                return End::Stop {
                    lead: if matches!(signal, Signal::Stop) {
                        lead
                    } else {
                        Duration::ZERO
                    },
                };
            }
            Err(_) => return End::Stop { lead },
        }
    }
}

/// Reloads the file on a separate thread, so that a slow reload delays no other signal.
fn reload(watch: ReloadHandle) {
    systemd::reloading();
    let reload = move || {
        watch.reload_blocking();
        systemd::ready();
    };
    if let Err(error) = std::thread::Builder::new()
        .name("reload".to_owned())
        .spawn(reload)
    {
        tracing::error!(%error, "the file was not read again: no thread could be started; ask once more (SIGHUP), or wait until it changes");
    }
}

/// Returns the channel of signals, which a separate thread fills, and its sender.
fn signals() -> Result<(Sender<Signal>, Receiver<Signal>), Failed> {
    let (sender, receiver) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _guard = runtime.enter();
    let (mut terminate, mut interrupt, mut hangup) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    );
    let (mut reopen, mut upgrade) = (
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
    );
    drop(_guard);
    let signals = sender.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                loop {
                    let signal = tokio::select! {
                        _ = terminate.recv() => Signal::Stop,
                        _ = interrupt.recv() => Signal::Interrupt,
                        _ = hangup.recv() => Signal::Reload,
                        _ = reopen.recv() => Signal::Reopen,
                        _ = upgrade.recv() => Signal::Upgrade,
                    };
                    if signals.send(signal).is_err() {
                        return;
                    }
                }
            });
        })?;
    Ok((sender, receiver))
}
