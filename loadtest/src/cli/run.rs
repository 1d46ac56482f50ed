//! The command `cutover-loadtest run`: generates load and checks that each user stays on one side.

use crate::cli::backend::body_bytes;
use crate::cli::{
    Failure, ReportArguments, TrustArguments, interrupted, say, write_file, write_out,
};
use cutover_loadtest::backend::SERVED_BY;
use cutover_loadtest::driver::{
    Arrivals, Driver, Progress, Protocol, Record, RunPlan, StopHandle, Target, UserKey,
};
use cutover_loadtest::html;
use cutover_loadtest::report::{History, Report, Times};
use cutover_loadtest::units::{Percent, parse_duration, parse_positive_duration, parse_rate};
use cutover_loadtest::users::Oracle;
use cutover_loadtest::values::{parse_method, parse_path};
use cutover_loadtest::websockets::{WebSocketSection, hold};
use http::uri::PathAndQuery;
use http::{HeaderName, Method};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Arguments of `run`
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// URL that receives the requests, such as http://127.0.0.1:8080 or https://localhost:8443
    #[arg(long)]
    target: String,
    /// Requests per second
    #[arg(long, default_value = "1000", value_parser = parse_rate)]
    rps: f64,
    /// Number of stable users, user-0 and up
    #[arg(long, default_value_t = 10_000)]
    users: u32,
    /// Time during which requests start
    #[arg(long, default_value = "10s", value_parser = parse_positive_duration)]
    duration: Duration,
    /// Protocol: h1 or h2 (without TLS by prior knowledge)
    #[arg(long, default_value = "h1")]
    protocol: Protocol,
    /// Method of every request
    #[arg(long, default_value = "GET", value_parser = parse_method)]
    method: Method,
    /// Path and query of every request
    #[arg(long, default_value = "/", value_parser = parse_path)]
    path: PathAndQuery,
    /// Size of the body of every request
    #[arg(long, default_value_t = 0, value_parser = body_bytes)]
    body_bytes: usize,
    /// Where a request carries its user: header:<name>, cookie:<name> or jwt:<claim>
    #[arg(long, default_value = "header:x-user-id")]
    key: UserKey,
    /// Response header that names the side, legacy or new
    #[arg(long, default_value = SERVED_BY)]
    side_header: HeaderName,
    /// Number of keep-alive connections; with h1 also the limit of requests in flight
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Limit of concurrent requests on an h2 connection
    #[arg(long, default_value_t = 32)]
    streams: usize,
    /// Number of requests after which a connection is closed and replaced
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true)]
    requests_per_connection: u32,
    /// Longest time from the intended start of a request to the end of its answer
    #[arg(long, default_value = "10s", value_parser = parse_positive_duration)]
    timeout: Duration,
    /// Number of WebSockets held open during the run, one for each of the first users
    #[arg(long, default_value_t = 0)]
    websockets: u32,
    /// Path of the WebSocket handshake
    #[arg(long, default_value = "/", value_parser = parse_path)]
    websocket_path: PathAndQuery,
    /// Time between two messages on a WebSocket
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    websocket_interval: Duration,
    /// Start requests at random (Poisson) instead of at equal intervals
    #[arg(long)]
    poisson: bool,
    /// Seed of the users drawn and of the Poisson intervals
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Salt of the hash; with --percent, the side of every answer is checked
    #[arg(long, requires = "percent")]
    salt: Option<String>,
    /// Percentage of users on new, with at most three decimal places
    #[arg(long, requires = "salt", value_parser = Percent::parse)]
    percent: Option<Percent>,
    #[command(flatten)]
    trust: TrustArguments,
    #[command(flatten)]
    report: ReportArguments,
}

/// Runs a load and prints its report.
pub async fn run(arguments: RunArguments) -> Result<ExitCode, Failure> {
    let plan = RunPlan {
        trust: arguments.trust.trust(),
        protocol: arguments.protocol,
        method: arguments.method,
        path: arguments.path,
        body_bytes: arguments.body_bytes,
        key: arguments.key,
        side_header: arguments.side_header,
        rate: arguments.rps,
        arrivals: if arguments.poisson {
            Arrivals::Poisson
        } else {
            Arrivals::Constant
        },
        duration: arguments.duration,
        users: arguments.users,
        connections: arguments.connections,
        streams: arguments.streams,
        requests_per_connection: arguments.requests_per_connection,
        seed: arguments.seed,
        timeout: arguments.timeout,
        oracle: arguments
            .salt
            .zip(arguments.percent)
            .map(|(salt, percent)| Oracle::new(salt, percent)),
        ..RunPlan::to(Target::resolve(&arguments.target, arguments.report.allow_remote).await?)
    };
    plan.check()?;
    let driver = Driver::start(plan.clone())?;
    tokio::spawn(stop_when_interrupted(driver.stop_handle()));
    let watching = io::stderr()
        .is_terminal()
        .then(|| tokio::spawn(show_progress(driver.progress())));
    let (end, ended) = watch::channel(false);
    let section = WebSocketSection {
        count: arguments.websockets,
        path: arguments.websocket_path,
        interval: arguments.websocket_interval,
    };
    let load = async {
        let measurement = driver.finish().await;
        end.send_replace(true);
        measurement
    };
    let (measurement, websockets) = tokio::join!(load, hold(&section, &plan, ended));
    let (mut measurement, websockets) = (measurement?, websockets?);
    if let Some(watching) = watching {
        watching.abort();
    }

    measurement.sort();
    let report = Report::of(&plan, &measurement, &History::default());
    let websockets = (section.count > 0).then_some(websockets);
    if arguments.report.json {
        let mut json = serde_json::to_value(&report).map_err(io::Error::other)?;
        if let Some(websockets) = &websockets {
            json["websockets"] = serde_json::to_value(websockets).map_err(io::Error::other)?;
        }
        write_out(&format!(
            "{}\n",
            serde_json::to_string_pretty(&json).map_err(io::Error::other)?
        ))?;
    } else {
        write_out(&report.to_string())?;
        if let Some(websockets) = &websockets {
            write_out(&format!("{:<15}{websockets}\n", "websockets"))?;
        }
    }
    if let Some(path) = &arguments.report.hgrm {
        write_file(
            path,
            &Times::of(measurement.records.iter().filter_map(Record::latency)).hgrm(),
        )?;
    }
    let mut violations = report.violations.clone();
    if let Some(websockets) = websockets
        .as_ref()
        .filter(|websockets| websockets.lost() > 0 || !websockets.refused.is_empty())
    {
        violations.push(format!("not every WebSocket lived: {websockets}"));
    }
    if let Some(path) = &arguments.report.html {
        write_file(path, &html::of_run(&plan, &measurement, report, websockets))?;
    }
    if !arguments.report.assert || violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for violation in &violations {
        say(&format!("violation: {violation}"));
    }
    Ok(ExitCode::from(1))
}

/// Shows the progress of the run once per second.
async fn show_progress(progress: watch::Receiver<Progress>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut elapsed = 0_u64;
    loop {
        seconds.tick().await;
        elapsed += 1;
        let now = *progress.borrow();
        say(&format!(
            "{elapsed}s: {} finished, {} on new, {} failed",
            now.finished, now.on_new, now.failed
        ));
    }
}

async fn stop_when_interrupted(stop: StopHandle) {
    // Without the signal handler the run ends at its planned duration.
    if interrupted().await.is_ok() {
        say("interrupted: finishing what was released");
        stop.stop();
    }
}
