//! Command line of the load kit: arguments, progress, and exit codes.
//!
//! Exit codes: 0 done; 1 the run failed or, with `--assert`, found a violation; 2 bad usage. The
//! result goes to stdout and everything said on the way to stderr, so that `--json` can be piped.

use clap::{Args, Parser, Subcommand};
use cutover_loadtest::backend::{Backend, BackendConfig, SERVED_BY};
use cutover_loadtest::driver::{Arrivals, Driver, Progress, RunPlan, StopHandle, Target, UserKey};
use cutover_loadtest::report::Report;
use cutover_loadtest::units::{Percent, UsageError, parse_duration, parse_positive_duration, parse_rate};
use cutover_loadtest::users::Oracle;
use http::HeaderName;
use http::uri::PathAndQuery;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Load kit of Cutover: sample backends and an open-loop generator that checks stickiness.
#[derive(Debug, Parser)]
#[command(name = "cutover-loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as a sample backend with a fault dial (GET and PUT /__dial, GET /__stats).
    Backend(BackendArguments),
    /// Send requests of stable users and check that each stays on its side.
    Run(RunArguments),
}

#[derive(Debug, Args)]
struct BackendArguments {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Name in the x-served-by header, such as legacy or new.
    #[arg(long)]
    name: String,
    /// Time every answer takes.
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,
    /// Percentage of answers that are 500, such as 0.1%.
    #[arg(long, default_value = "0", value_parser = Percent::parse)]
    error_rate: Percent,
    /// Size of the body in bytes; a smaller size than that of its JSON changes nothing.
    #[arg(long, default_value_t = 0, value_parser = body_bytes)]
    body_bytes: usize,
    /// Seed of the draws that decide which requests an error rate or a share strikes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Where the requests go, such as http://127.0.0.1:8080.
    #[arg(long)]
    target: String,
    /// Requests per second.
    #[arg(long, default_value = "1000", value_parser = parse_rate)]
    rps: f64,
    /// Number of stable users, user-0 and up.
    #[arg(long, default_value_t = 10_000)]
    users: u32,
    /// Time during which requests start.
    #[arg(long, default_value = "10s", value_parser = parse_positive_duration)]
    duration: Duration,
    /// Path and query of every request.
    #[arg(long, default_value = "/", value_parser = path)]
    path: PathAndQuery,
    /// Where a request carries its user: header:<name> or cookie:<name>.
    #[arg(long, default_value = "header:x-user-id")]
    key: UserKey,
    /// Response header that names the side, legacy or new.
    #[arg(long, default_value = SERVED_BY)]
    side_header: HeaderName,
    /// Keep-alive connections, and so the most requests in flight.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Longest time from the intended start of a request to the end of its answer.
    #[arg(long, default_value = "10s", value_parser = parse_positive_duration)]
    timeout: Duration,
    /// Start requests at random (Poisson) instead of at equal gaps.
    #[arg(long)]
    poisson: bool,
    /// Seed of the users drawn and of the Poisson gaps.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Salt of the hash; with --percent, the side of every answer is checked.
    #[arg(long, requires = "percent")]
    salt: Option<String>,
    /// Percentage of users on new, with at most three decimal places.
    #[arg(long, requires = "salt", value_parser = Percent::parse)]
    percent: Option<Percent>,
    /// Exit with 1 if a user was on a wrong side or a request failed.
    #[arg(long)]
    assert: bool,
    /// Write JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Allow a target that is not loopback. Load only machines that are yours to load.
    #[arg(long)]
    allow_remote: bool,
}

fn body_bytes(text: &str) -> Result<usize, UsageError> {
    const MOST_BODY_BYTES: usize = 64 * 1024 * 1024;
    text.parse().ok().filter(|bytes| *bytes <= MOST_BODY_BYTES).ok_or_else(|| UsageError::new(format!("expected a number of bytes of at most {MOST_BODY_BYTES}, found {text:?}")))
}

fn path(text: &str) -> Result<PathAndQuery, UsageError> {
    text.parse().ok().filter(|_| text.starts_with('/')).ok_or_else(|| UsageError::new(format!("expected a path such as \"/\", found {text:?}")))
}

/// Why the program ends without a result.
enum Failure {
    Usage(UsageError),
    Running(io::Error),
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Running(error)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Backend(arguments) => serve(arguments).await,
        Command::Run(arguments) => run(arguments).await,
    };
    match result {
        Ok(code) => code,
        Err(Failure::Usage(error)) => {
            say(&format!("error: {error}"));
            ExitCode::from(2)
        }
        Err(Failure::Running(error)) => {
            say(&format!("error: {error}"));
            ExitCode::from(1)
        }
    }
}

async fn serve(arguments: BackendArguments) -> Result<ExitCode, Failure> {
    let listen = arguments.listen;
    let backend = Backend::start(BackendConfig {
        listen,
        name: arguments.name,
        latency: arguments.latency,
        error_rate: arguments.error_rate,
        body_bytes: arguments.body_bytes,
        seed: arguments.seed,
        ..BackendConfig::named("")
    })
    .await
    .map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Failure::Usage(UsageError::new(error.to_string())),
        _ => Failure::Running(io::Error::other(format!("cannot listen on {listen}: {error}"))),
    })?;
    write_out(&format!("listening on http://{}\n", backend.address()))?;
    interrupted().await?;
    backend.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn run(arguments: RunArguments) -> Result<ExitCode, Failure> {
    let plan = RunPlan {
        path: arguments.path,
        key: arguments.key,
        side_header: arguments.side_header,
        rate: arguments.rps,
        arrivals: if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant },
        duration: arguments.duration,
        users: arguments.users,
        connections: arguments.connections,
        seed: arguments.seed,
        timeout: arguments.timeout,
        oracle: arguments.salt.zip(arguments.percent).map(|(salt, percent)| Oracle::new(salt, percent)),
        ..RunPlan::to(Target::resolve(&arguments.target, arguments.allow_remote).await?)
    };
    plan.check()?;
    let driver = Driver::start(plan.clone())?;
    tokio::spawn(stop_when_interrupted(driver.stop_handle()));
    let watching = io::stderr().is_terminal().then(|| tokio::spawn(show_progress(driver.progress())));
    let measurement = driver.finish().await?;
    if let Some(watching) = watching {
        watching.abort();
    }

    let report = Report::new(&plan, measurement);
    if arguments.json {
        let json = serde_json::to_string_pretty(&report).map_err(io::Error::other)?;
        write_out(&format!("{json}\n"))?;
    } else {
        write_out(&report.to_string())?;
    }
    if !arguments.assert || report.violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for violation in &report.violations {
        say(&format!("violation: {violation}"));
    }
    Ok(ExitCode::from(1))
}

/// Shows once per second how far the run is.
async fn show_progress(progress: watch::Receiver<Progress>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut elapsed = 0_u64;
    loop {
        seconds.tick().await;
        elapsed += 1;
        let now = *progress.borrow();
        say(&format!("{elapsed}s: {} finished, {} failed", now.finished, now.failed));
    }
}

async fn stop_when_interrupted(stop: StopHandle) {
    // Without the signal the run ends at its planned duration.
    if interrupted().await.is_ok() {
        say("interrupted: finishing what was released");
        stop.stop();
    }
}

#[cfg(unix)]
async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(not(unix))]
async fn interrupted() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Writes to stdout. A reader that went away has read all it wanted.
fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to stderr. There is nowhere left to say that stderr is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
