//! Arguments of the commands, and what each does.

pub mod backend;
pub mod run;
pub mod scenario;

use cutover_loadtest::driver::Trust;
use cutover_loadtest::units::UsageError;
use std::io::{self, Write};
use std::path::PathBuf;

/// Why the program ends without a result.
pub enum Failure {
    /// The caller's mistake.
    Usage(UsageError),
    /// Anything else.
    Running(io::Error),
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidInput => Self::Usage(UsageError::new(error.to_string())),
            _ => Self::Running(error),
        }
    }
}

/// Whom to believe at a target with TLS.
#[derive(Debug, clap::Args)]
pub struct TrustArguments {
    /// Believe certificates signed by this authority (PEM), for targets with https://.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Believe any certificate.
    #[arg(long)]
    insecure: bool,
}

impl TrustArguments {
    /// As the driver wants it.
    pub fn trust(&self) -> Trust {
        match &self.ca {
            Some(file) => Trust::Authority(file.clone()),
            None if self.insecure => Trust::Anybody,
            None => Trust::Nobody,
        }
    }
}

/// What becomes of a result, and who may be loaded.
#[derive(Debug, clap::Args)]
pub struct ReportArguments {
    /// Exit with 1 if anything is not as expected: a user on a wrong side, a failed request, or
    /// what a scenario expects.
    #[arg(long)]
    pub assert: bool,
    /// Write JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Write a report with charts, in one file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the percentile distribution of latency (of the last run), for the plotter of
    /// HdrHistogram.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Allow a target that is not loopback. Load only machines that are yours to load.
    #[arg(long)]
    pub allow_remote: bool,
}

/// Returns when somebody interrupts the program, or ends it.
#[cfg(unix)]
pub async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Returns when somebody interrupts the program.
#[cfg(not(unix))]
pub async fn interrupted() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Writes to stdout. A reader that went away has read all it wanted.
pub fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to stderr. There is nowhere left to say that stderr is closed.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes a file of the report.
pub fn write_file(path: &std::path::Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)
        .map_err(|error| io::Error::other(format!("cannot write {}: {error}", path.display())))
}
