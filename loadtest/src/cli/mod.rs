//! The command line: the arguments of each command and what it does.

pub mod backend;
pub mod run;
pub mod scenario;

use cutover_loadtest::driver::Trust;
use cutover_loadtest::units::UsageError;
use std::io::{self, Write};
use std::path::PathBuf;

/// The reason why the program ends without a result.
pub enum Failure {
    /// A mistake of the caller.
    Usage(UsageError),
    /// Any other error.
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

/// Which certificates to trust at a target with TLS
#[derive(Debug, clap::Args)]
pub struct TrustArguments {
    /// Trust certificates signed by this authority (PEM), for targets with https://
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long)]
    insecure: bool,
}

impl TrustArguments {
    /// Returns the trust setting for the driver.
    pub fn trust(&self) -> Trust {
        match &self.ca {
            Some(file) => Trust::Authority(file.clone()),
            None if self.insecure => Trust::Anybody,
            None => Trust::Nobody,
        }
    }
}

/// Where results are written, and which targets may be loaded
#[derive(Debug, clap::Args)]
pub struct ReportArguments {
    /// Exit with 1 if anything is not as expected: a user on a wrong side, a failed request, or an
    /// unmet expectation of a scenario
    #[arg(long)]
    pub assert: bool,
    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write a report with charts to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the percentile distribution of latency (of the last run), for the HdrHistogram
    /// plotter
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Allow a target that is not loopback; load only machines that are yours to load
    #[arg(long)]
    pub allow_remote: bool,
}

/// Returns when the program is interrupted or terminated.
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

/// Returns when the program is interrupted.
#[cfg(not(unix))]
pub async fn interrupted() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Writes to stdout. A closed pipe is not an error: its reader has read all it wanted.
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

/// Writes a line to stderr. Errors are ignored because there is nowhere left to report a closed
/// stderr.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes one file of the report.
pub fn write_file(path: &std::path::Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)
        .map_err(|error| io::Error::other(format!("cannot write {}: {error}", path.display())))
}
