//! What the whole proxy costs, as CPU time per request, beside a pingora proxy that does nothing.
//!
//! CPU per request and not requests per second, because the latter moves with every neighbour on the machine. The rows are driven one after the other within each round, and the ratio is
//! taken within the round, so that what disturbs a round disturbs both numbers. The order turns from round to round.
//!
//! The load saturates the proxy from one core while the proxy has the other: CPU per request depends on how often a core must be woken, so a proxy that waits is dearer than one that works.
//! The column `busy` says whether it was saturated, and a second do-nothing proxy beside the first says how far from 1 a ratio is by chance: without it a ratio of 1.08 looks like a fact.
//! Deliberately absent: latencies (the load kit has an open loop for them) and a verdict; the figures are for people.
//!
//! All processes started here end with this program on every path but its own SIGKILL.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{ArgAction, Parser};
use cutover_benches::figures::Spread;
use cutover_benches::load::{self, Load};
use cutover_benches::process::{self, Process};
use cutover_benches::{fixture, stub};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// The share of the time from which on a proxy counts as having had its core to itself.
const CALM: f64 = 0.95;

/// Compares the CPU time per request of cutover and of a do-nothing proxy.
#[derive(Debug, Parser)]
struct Arguments {
    /// The cutover program, built for release.
    #[arg(long)]
    cutover: PathBuf,
    /// The do-nothing proxy of this crate, built for release.
    #[arg(long)]
    minipingora: PathBuf,
    /// Rounds; each drives every proxy once.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Measured seconds of each drive.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Unmeasured seconds before them.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Kept connections of the load.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=fixture::USERS as u64))]
    connections: u64,
    /// Keep the proxies to core 0, load and backend to core 1. Default: where there are two cores and `taskset`.
    #[arg(long, action = ArgAction::Set)]
    pin: Option<bool>,
    /// Where the access log of the logging variant goes.
    #[arg(long, default_value = "/dev/null")]
    access_log: PathBuf,
}

/// A proxy to be measured.
struct Row {
    name: &'static str,
    process: Process,
    address: SocketAddr,
    /// Files with what it said at its start.
    said: Vec<PathBuf>,
    drives: Vec<Drive>,
}

/// What one drive of one proxy showed.
#[derive(Clone, Copy, Debug)]
struct Drive {
    cpu_us_per_request: f64,
    requests_per_second: f64,
    /// CPU time of the proxy and of load and backend, over the time that passed.
    busy: f64,
    load_busy: f64,
    /// CPU per request over that of the first row in the same round.
    ratio: f64,
    failed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("proxy_cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let cores = std::thread::available_parallelism()?.get();
    let pinned = arguments.pin.unwrap_or_else(|| cores >= 2 && process::can_pin());
    if pinned {
        // Before any other thread: they inherit it.
        process::pin_self(LOAD_CORE)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // Dropping the comparison ends its processes, so every way out of here does.
        tokio::select! {
            compared = compare(arguments, pinned, cores) => compared,
            _ = terminate.recv() => Err(io::Error::other("ended by SIGTERM")),
            _ = interrupt.recv() => Err(io::Error::other("ended by SIGINT")),
        }
    })
}

async fn compare(arguments: &Arguments, pinned: bool, cores: usize) -> io::Result<ExitCode> {
    let backend = stub::start()?;
    let requests = load::requests(&fixture::users(fixture::REQUESTING));
    let bed = TestBed { core: pinned.then_some(PROXY_CORE), threads: if pinned { 1 } else { cores }, backend, folder: TempDir::with_prefix("proxy-cost-")? };
    let log = bed.folder.path().join("off.stdout");
    let mut rows = vec![
        bed.start_minipingora("minipingora", &arguments.minipingora)?,
        bed.start_minipingora("minipingora again", &arguments.minipingora)?,
        bed.start_cutover("cutover", "off", &arguments.cutover, &log)?,
        bed.start_cutover("cutover, access log", "all", &arguments.cutover, &arguments.access_log)?,
    ];
    for row in &mut rows {
        wait_until_it_answers(row, &requests[0]).await?;
    }
    say(&format!(
        "{} rounds of {} s, {} connections, {} users, {}\n",
        arguments.rounds,
        arguments.seconds,
        arguments.connections,
        fixture::USERS,
        if pinned { format!("proxies on core {PROXY_CORE}, load and backend on core {LOAD_CORE}") } else { format!("not pinned, {cores} cores") }
    ))?;
    say(&format!("{:>5}  {:<20} {:>14} {:>12} {:>7} {:>8} {:>11} {:>7}", "round", "proxy", "CPU us/request", "requests/s", "ratio", "busy %", "load busy %", "failed"))?;
    for round in 0..arguments.rounds as usize {
        drive_all(&mut rows, round, arguments, &requests).await?;
        for row in &rows {
            let drive = row.drives[round];
            say(&format!(
                "{:>5}  {:<20} {:>14.2} {:>12.0} {:>7.3} {:>8.0} {:>11.0} {:>7}",
                round + 1,
                row.name,
                drive.cpu_us_per_request,
                drive.requests_per_second,
                drive.ratio,
                drive.busy * 100.0,
                drive.load_busy * 100.0,
                drive.failed
            ))?;
        }
    }
    say(&summary(&rows))?;
    let failed: u64 = rows.iter().flat_map(|row| &row.drives).map(|drive| drive.failed).sum();
    if failed > 0 {
        say(&format!("{failed} requests failed: the figures are of something else than proxying"))?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Drives every row once and sets the ratios. Another row is first in each round.
async fn drive_all(rows: &mut [Row], round: usize, arguments: &Arguments, requests: &Arc<[Box<[u8]>]>) -> io::Result<()> {
    let count = rows.len();
    for at in (0..count).map(|turn| (round + turn) % count) {
        let driven = drive(&mut rows[at], arguments, requests).await?;
        rows[at].drives.push(driven);
    }
    let base = rows[0].drives[round].cpu_us_per_request;
    for row in rows {
        row.drives[round].ratio = row.drives[round].cpu_us_per_request / base;
    }
    Ok(())
}

async fn drive(row: &mut Row, arguments: &Arguments, requests: &Arc<[Box<[u8]>]>) -> io::Result<Drive> {
    let mut load = Load::start(row.address, arguments.connections as usize, 1, Arc::clone(requests))?;
    tokio::time::sleep(Duration::from_secs(arguments.warm_up)).await;
    let begun = Instant::now();
    let before = (row.process.cpu_time()?, process::own_cpu_time()?, load.answered());
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let after = (row.process.cpu_time()?, process::own_cpu_time()?, load.answered());
    let seconds = begun.elapsed().as_secs_f64();
    load.stop();
    if !row.process.is_running()? {
        return Err(io::Error::other(format!("{} ended under load", row.name)));
    }
    let requests = (after.2 - before.2) as f64;
    if requests == 0.0 {
        return Err(io::Error::other(format!("{} answered nothing for {seconds:.0} s", row.name)));
    }
    let cpu = (after.0.saturating_sub(before.0)).as_secs_f64();
    let load_cpu = (after.1.saturating_sub(before.1)).as_secs_f64();
    Ok(Drive {
        cpu_us_per_request: cpu * 1e6 / requests,
        requests_per_second: requests / seconds,
        busy: cpu / seconds,
        load_busy: load_cpu / seconds,
        ratio: 1.0,
        failed: load.failed(),
    })
}

/// The medians of all rounds, and of the calm ones when neighbours disturbed the others.
fn summary(rows: &[Row]) -> String {
    let rounds = rows.iter().map(|row| row.drives.len()).min().unwrap_or_default();
    let all: Vec<usize> = (0..rounds).collect();
    let calm: Vec<usize> = all.iter().copied().filter(|&round| rows.iter().all(|row| row.drives[round].busy >= CALM)).collect();
    let mut text = table(&format!("all {rounds} rounds"), rows, &all);
    let percent = CALM * 100.0;
    if calm.is_empty() {
        text += &format!("\n\nin no round was every proxy busy for {percent:.0} % of the time: other work took their core, or the load is too small");
    } else if calm.len() < rounds {
        text.push('\n');
        text += &table(&format!("the {} rounds in which every proxy was busy for at least {percent:.0} % of the time", calm.len()), rows, &calm);
    }
    text
}

fn table(title: &str, rows: &[Row], rounds: &[usize]) -> String {
    let mut text = format!("\n{title}: median (min..max)\n{:<20} {:>24} {:>28} {:>24}", "proxy", "CPU us/request", "requests/s", "ratio to minipingora");
    for row in rows {
        let spread = |figure: fn(&Drive) -> f64| Spread::of(rounds.iter().map(|&round| figure(&row.drives[round])));
        if let (Some(cpu), Some(rate), Some(ratio)) = (spread(|drive| drive.cpu_us_per_request), spread(|drive| drive.requests_per_second), spread(|drive| drive.ratio)) {
            // Writing to a string does not fail.
            let _ = write!(text, "\n{:<20} {:>24} {:>28} {:>24}", row.name, cpu.text(2), rate.text(0), ratio.text(3));
        }
    }
    text
}

/// What all proxies are started on.
struct TestBed {
    core: Option<usize>,
    threads: usize,
    backend: SocketAddr,
    folder: TempDir,
}

impl TestBed {
    fn start_minipingora(&self, name: &'static str, program: &Path) -> io::Result<Row> {
        let mut command = process::command_on(self.core, program);
        command.args(["--listen", "127.0.0.1:0", "--backend", &self.backend.to_string(), "--threads", &self.threads.to_string()]);
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let mut line = String::new();
        if let Some(output) = process.take_output() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("minipingora did not say where it listens, but {line:?}")))?;
        Ok(Row { name, process, address, said: Vec::new(), drives: Vec::new() })
    }

    /// Starts cutover with its log, which is its standard output, in the file `output`.
    fn start_cutover(&self, name: &'static str, access: &str, program: &Path, output: &Path) -> io::Result<Row> {
        let address = free_address()?;
        let in_folder = |name: String| self.folder.path().join(name);
        let (file, state, errors) = (in_folder(format!("{access}.toml")), in_folder(format!("{access}-state")), in_folder(format!("{access}.stderr")));
        std::fs::create_dir_all(&state)?;
        std::fs::write(&file, settings(address, self.backend, &state, access))?;
        let mut command = process::command_on(self.core, program);
        command.arg("run").arg("-c").arg(&file).args(["--threads", &self.threads.to_string()]);
        let process = Process::start(command.stdin(Stdio::null()).stdout(File::create(output)?).stderr(File::create(&errors)?))?;
        Ok(Row { name, process, address, said: vec![output.to_owned(), errors], drives: Vec::new() })
    }
}

/// One rollout at 50 % with the default guard. Both backends are the same server, so both sides cost the same.
fn settings(address: SocketAddr, backend: SocketAddr, state: &Path, access: &str) -> String {
    format!(
        r#"[listen]
http = ["{address}"]
[admin]
address = "127.0.0.1:0"
[state]
directory = '{}'
[log]
access = "{access}"
[backend.legacy]
servers = ["{backend}"]
[backend.new]
servers = ["{backend}"]
[[rollout]]
id = "checkout"
percent = 50
key = ["header:x-user-id"]
"#,
        state.display()
    )
}

/// An address that was free just now. Somebody may take it before cutover does; then it does not start and says so.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

async fn wait_until_it_answers(row: &mut Row, request: &[u8]) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        let Err(error) = load::ask_once(row.address, request).await else { return Ok(()) };
        let running = row.process.is_running()?;
        if !running || begun.elapsed() > START_TIMEOUT {
            let state = if running { format!("does not answer ({error})") } else { "ended at its start".to_owned() };
            let said: String = row.said.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
            return Err(io::Error::other(format!("{} {state}. It said:\n{said}", row.name)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_given_to_cutover_is_valid_and_means_what_is_compared() {
        let address: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
        let backend: SocketAddr = "127.0.0.1:3000".parse().expect("an address");
        for access in ["off", "all"] {
            let settings = fixture::settings(&settings(address, backend, Path::new("/var/lib/cutover"), access));
            assert_eq!(settings.listen.http, [address]);
            assert_eq!(settings.rollouts.len(), 1);
            assert_eq!(settings.rollouts[0].guard, cutover_core::GuardSettings::default());
        }
    }
}
