//! `cutover run`: the proxy in the foreground, and the signals that steer it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cutover_config::LogFormat;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::{FILE, Failed};
use crate::assemble::{Start, StartError};
use crate::source::Source;

/// `cutover run`
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The file to follow
    #[arg(long, short = 'c', default_value = FILE, value_name = "FILE")]
    config: PathBuf,
    /// Request threads; one for each core by default
    #[arg(long)]
    threads: Option<usize>,
    /// When stopping, how long to go on after readiness has fallen, so that load balancers and clients see it; not at all where nobody is there to see it, nor on SIGINT
    #[arg(long, default_value = "5s", value_parser = cutover_config::parse_duration, value_name = "DURATION")]
    lead: Duration,
    /// How long requests in flight may take to finish after that
    #[arg(long, default_value = "30s", value_parser = cutover_config::parse_duration, value_name = "DURATION")]
    grace: Duration,
}

enum Signal {
    /// SIGTERM: from a supervisor.
    Stop,
    /// SIGINT: from a keyboard.
    Interrupt,
    Reload,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        // The format stands in the file; a file that cannot be read is told in the end anyway.
        let settings = Source::new(&self.config).load().ok().map(|(settings, _)| settings);
        let event_log = crate::event_log::to_stdout(settings.as_ref().map_or(LogFormat::Json, |settings| settings.log.format))?;
        raise_file_limit(settings.map_or(0, |settings| settings.listen.max_connections));
        let signals = signals()?;
        let start = Start { file: self.config, threads: self.threads, access_out: Box::new(std::io::stdout()) };
        let running = start.start().map_err(|error| match error {
            StartError::Config(error) => Failed::usage(error.render(std::io::IsTerminal::is_terminal(&std::io::stderr()))),
            other => Failed::new(other.to_string()),
        })?;
        let http: Vec<String> = running.http.iter().map(|address| format!("http://{address}")).chain(running.https.iter().map(|address| format!("https://{address}"))).collect();
        tracing::info!(http = http.join(", "), admin = format!("http://{}", running.admin), version = env!("CARGO_PKG_VERSION"), "cutover is ready");
        let lead = loop {
            match signals.recv() {
                Ok(Signal::Reload) => running.watch.reload_soon(),
                Ok(Signal::Interrupt) => break Duration::ZERO,
                Ok(Signal::Stop) | Err(_) => break self.lead,
            }
        };
        tracing::info!("stopping: not ready any more; requests in flight may finish");
        let cut = running.stop(lead, self.grace, || matches!(signals.try_recv(), Ok(Signal::Stop | Signal::Interrupt)));
        if cut > 0 {
            tracing::warn!(connections = cut, "stopped with connections still open");
        }
        drop(event_log);
        Ok(ExitCode::SUCCESS)
    }
}

/// As many open files as the system lets us have: a connection is one, and so is each to a backend. Says when that is too few.
fn raise_file_limit(max_connections: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let have = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let wanted = max_connections as u64 * 2 + OTHER_FILES;
    if have < wanted {
        tracing::warn!(
            have,
            wanted,
            max_connections,
            "the limit on open files is below twice listen.max_connections: connections will be refused before that many are open (LimitNOFILE, ulimit -n)"
        );
    }
}

/// Files that are no connections, and some room.
const OTHER_FILES: u64 = 256;

/// Signals as a channel, from a thread of their own.
fn signals() -> Result<Receiver<Signal>, Failed> {
    let (sender, receiver) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    let (mut terminate, mut interrupt, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    drop(_guard);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            loop {
                let signal = tokio::select! {
                    _ = terminate.recv() => Signal::Stop,
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = hangup.recv() => Signal::Reload,
                };
                if sender.send(signal).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(receiver)
}
