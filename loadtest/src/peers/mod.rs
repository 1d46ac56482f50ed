//! The comparison with well-known proxies: the cost of each for the same job, in one run.
//!
//! The rows are driven one after another within each round, and ratios are taken within the round.
//! A disturbance of a round therefore affects both numbers. The order rotates from round to round.
//! The proxies run on core 0, and load and backends on core 1. CPU per request depends on how often
//! a core must be woken, and two programs on one core would take turns. A second do-nothing proxy
//! next to the first shows how far from 1 a ratio can be by chance. Without it a ratio of 1.08
//! looks like a fact.
//!
//! [`mod@drive`] measures, [`load`] sends requests, [`stub`] answers, [`configs`] has the
//! configuration of the other proxies, and [`report`] has the readable result. Deliberately absent:
//! TLS, HTTP/2, bodies, and a verdict on times.
//!
//! All processes started here end with this program on every path except its own SIGKILL. Linux
//! only.

pub mod answer;
pub mod configs;
pub mod drive;
pub mod figures;
pub mod load;
pub mod memory;
pub mod peer;
pub mod population;
pub mod process;
pub mod report;
pub mod stub;
pub mod summary;
pub mod syscalls;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::peers::drive::{Conditions, drive, turned};
use crate::peers::load::Pace;
use crate::peers::peer::{Peer, Programs, Running, TestBed};
use crate::peers::population::{PERCENT, Sightings, USERS};
use crate::peers::report::{DrivenRow, Phase, Report, Said, Setting};
use crate::peers::stub::Stubs;

const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// The measurement of one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Question {
    /// RSS at rest and KiB per idle connection, of fresh proxies
    Memory,
    /// CPU per request at the highest rate of the proxy
    Saturation,
    /// CPU per request and latencies at --rate
    Rate,
    /// CPU per request and latencies at --latency-rate, where no request waits for the proxy
    Latency,
    /// CPU per request if each request uses a new connection
    Connections,
    /// System calls per request, counted by strace
    Syscalls,
}

/// Arguments of `cutover-loadtest peers`
#[derive(Debug, Args)]
pub struct Arguments {
    /// Cutover program, built for release
    #[arg(long, default_value = "target/release/cutover")]
    cutover: PathBuf,
    /// Do-nothing proxy of benches, built for release
    #[arg(long, default_value = "target/release/minipingora")]
    minipingora: PathBuf,
    /// HAProxy program
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// nginx program
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Measure only these proxies; by default all whose program is found
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Peer>,
    /// Run only these phases
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Question::value_variants().to_vec())]
    phases: Vec<Question>,
    /// Number of rounds; each one measures every proxy once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measured seconds of each drive
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Unmeasured seconds before each drive
    #[arg(long, default_value_t = 1)]
    warm_up: u32,
    /// Number of kept connections of the load
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Requests per second of the phase `rate`
    #[arg(long, default_value = "20000", value_parser = crate::units::parse_rate)]
    rate: f64,
    /// Requests per second of the phase `latency`
    #[arg(long, default_value = "5000", value_parser = crate::units::parse_rate)]
    latency_rate: f64,
    /// Size of the body of each answer in bytes, at most 16 MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    answer_bytes: u32,
    /// Numbers of idle connections in the phase `memory`
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000], value_parser = clap::value_parser!(u32).range(1..=5_500))]
    idle: Vec<u32>,
    /// Pin the proxies to core 0, and load and backends to core 1; by default if there are two
    /// cores
    #[arg(long, action = ArgAction::Set)]
    pin: Option<bool>,
    /// Niceness of everything that runs; below 0, which needs privileges, other processes on a
    /// shared machine disturb less
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: i32,
    /// File that receives the access logs
    #[arg(long, default_value = "/dev/null")]
    access_log: PathBuf,
    /// Write every figure of every drive to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only check that the comparison runs: one round of a second at low rates; times are printed
    /// but meaningless, and a missed rate is not a failure
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "warm_up", "rate", "latency_rate", "idle"])]
    short: bool,
}

/// Compares the proxies. The exit code is 1 if requests failed, a rate was not reached, or users
/// were not on the side that the split assigns.
///
/// # Errors
/// Fails if a requested program is missing, or a proxy does not work.
pub async fn run(arguments: Arguments) -> io::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    // Dropping the comparison ends its processes, so every exit path from here ends them.
    tokio::select! {
        compared = compare(arguments.or_short()) => compared,
        _ = terminate.recv() => Err(io::Error::other("ended by SIGTERM")),
        _ = interrupt.recv() => Err(io::Error::other("ended by SIGINT")),
    }
}

impl Arguments {
    fn or_short(self) -> Self {
        match self.short {
            true => Self {
                rounds: 1,
                seconds: 1,
                warm_up: 0,
                rate: 2_000.0,
                latency_rate: 500.0,
                idle: vec![100, 300],
                ..self
            },
            false => self,
        }
    }

    /// Returns the available proxies with their programs and versions, and the unavailable ones
    /// with the reason.
    fn peers(&self) -> io::Result<(Vec<Candidate>, Vec<Said>)> {
        let programs = Programs {
            cutover: self.cutover.clone(),
            minipingora: self.minipingora.clone(),
            haproxy: self.haproxy.clone(),
            nginx: self.nginx.clone(),
        };
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for peer in Peer::ALL
            .into_iter()
            .filter(|peer| self.only.is_empty() || self.only.contains(peer))
        {
            match programs.find(peer.program()) {
                Ok((program, version)) => found.push(Candidate {
                    peer,
                    program,
                    version,
                    sightings: Sightings::default(),
                }),
                Err(why) if self.only.is_empty() => missing.push((peer, why)),
                Err(why) => return Err(io::Error::new(io::ErrorKind::NotFound, why)),
            }
        }
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "none of the proxies is there",
            ));
        }
        Ok((found, missing))
    }
}

/// A proxy that can be started.
#[derive(Debug)]
struct Candidate {
    peer: Peer,
    program: PathBuf,
    version: String,
    /// The sides on which its users were seen in the phases so far.
    sightings: Sightings,
}

async fn compare(arguments: Arguments) -> io::Result<ExitCode> {
    let cores = std::thread::available_parallelism()?.get();
    let is_pinned = arguments.pin.unwrap_or(cores >= 2);
    if is_pinned {
        process::pin_self(LOAD_CORE)?;
    }
    if arguments.nice != 0 {
        process::renice_self(arguments.nice)?;
    }
    let most_idle = arguments.idle.iter().copied().max().unwrap_or_default();
    memory::allow_open_files(most_idle.max(arguments.connections) as usize)?;
    let (candidates, skipped) = arguments.peers()?;
    let core = is_pinned.then_some(PROXY_CORE);
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let conditions = Conditions::new(
        seconds(arguments.warm_up),
        seconds(arguments.seconds),
        arguments.connections as usize,
        core,
    );
    let bed = TestBed {
        core,
        threads: if is_pinned { 1 } else { cores },
        stubs: {
            stub::set_answer_bytes(arguments.answer_bytes as usize);
            Stubs::start()?
        },
        folder: TempDir::with_prefix("peers-")?,
        access_log: std::path::absolute(&arguments.access_log)?,
        requests: conditions.kept.clone(),
    };
    let setting = Setting {
        machine: machine(cores),
        versions: candidates
            .iter()
            .map(|candidate| (candidate.peer, candidate.version.clone()))
            .collect(),
        skipped,
        method: method(&arguments, is_pinned),
    };
    write_out(&setting.text())?;
    let mut report = Report {
        setting,
        phases: Vec::new(),
        problems: Vec::new(),
    };
    let mut comparison = Comparison {
        arguments: &arguments,
        bed,
        conditions,
        candidates,
    };
    for question in Question::value_variants()
        .iter()
        .copied()
        .filter(|question| arguments.phases.contains(question))
    {
        let phase = comparison.ask(question).await?;
        write_out(&phase.text())?;
        report.problems.extend(phase.problems());
        if !arguments.short {
            report.problems.extend(phase.missed_rates());
        }
        report.phases.push(phase);
    }
    write_out(&summary::text(&report))?;
    if let Some(file) = &arguments.json {
        fs::write(
            file,
            serde_json::to_string_pretty(&report).map_err(io::Error::other)? + "\n",
        )?;
    }
    report
        .problems
        .iter()
        .for_each(|problem| say(&format!("problem: {problem}")));
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Comparison<'a> {
    arguments: &'a Arguments,
    bed: TestBed,
    conditions: Conditions,
    candidates: Vec<Candidate>,
}

impl Comparison<'_> {
    async fn ask(&mut self, question: Question) -> io::Result<Phase> {
        match question {
            Question::Memory => self.memory().await,
            Question::Saturation => self.driven("saturation".to_owned(), Pace::Closed).await,
            Question::Rate => self.open(self.arguments.rate).await,
            Question::Latency => self.open(self.arguments.latency_rate).await,
            Question::Connections => {
                self.driven("new connections".to_owned(), Pace::Reconnecting)
                    .await
            }
            Question::Syscalls => self.syscalls().await,
        }
    }

    async fn start(&self, candidate: &Candidate) -> io::Result<Running> {
        self.bed.start(candidate.peer, &candidate.program).await
    }

    async fn open(&mut self, rate: f64) -> io::Result<Phase> {
        self.driven(format!("{rate}/s"), Pace::Open { rate }).await
    }

    async fn driven(&mut self, name: String, pace: Pace) -> io::Result<Phase> {
        let mut proxies = Vec::new();
        for candidate in &self.candidates {
            let mut proxy = self.start(candidate).await?;
            // A user must be on the same side as in earlier phases: a restart does not move users.
            proxy.sightings = candidate.sightings.clone();
            proxies.push((proxy, Vec::new()));
        }
        for round in 0..self.arguments.rounds as usize {
            for at in turned(proxies.len(), round) {
                let (proxy, drives) = &mut proxies[at];
                let drive = drive(proxy, pace, &self.conditions).await?;
                say(&progress(&name, round, proxy.peer, &drive));
                drives.push(drive);
            }
        }
        let mut rows = Vec::new();
        for (candidate, (proxy, drives)) in self.candidates.iter_mut().zip(proxies) {
            candidate.sightings = proxy.sightings;
            rows.push(DrivenRow {
                peer: candidate.peer,
                drives,
                split: candidate.sightings.split(),
            });
        }
        Ok(Phase::Driven { name, rows })
    }

    async fn memory(&self) -> io::Result<Phase> {
        let mut numbers: Vec<usize> = self
            .arguments
            .idle
            .iter()
            .map(|&number| number as usize)
            .collect();
        numbers.sort_unstable();
        let mut rows: Vec<(Peer, Vec<memory::Held>)> = self
            .candidates
            .iter()
            .map(|candidate| (candidate.peer, Vec::new()))
            .collect();
        for round in 0..self.arguments.rounds {
            for (candidate, (_, all)) in self.candidates.iter().zip(&mut rows) {
                let held = memory::hold(
                    &self.start(candidate).await?,
                    &numbers,
                    &self.conditions.kept,
                )
                .await?;
                let last = held.idle.last().map_or(0.0, |idle| idle.kib_per_connection);
                say(&format!(
                    "memory, round {}: {:<20} {:>8} KiB at rest, {last:.2} KiB per idle connection",
                    round + 1,
                    candidate.peer.name(),
                    held.rest.rss_kib
                ));
                all.push(held);
            }
        }
        Ok(Phase::Memory { rows })
    }

    async fn syscalls(&self) -> io::Result<Phase> {
        let strace = peer::on_path(Path::new("strace"));
        let mut rows = Vec::new();
        for candidate in &self.candidates {
            let counted = match &strace {
                None => Err("there is no strace".to_owned()),
                Some(strace) => {
                    let Conditions {
                        measured,
                        connections,
                        kept,
                        ..
                    } = &self.conditions;
                    let proxy = self.start(candidate).await?;
                    syscalls::count(
                        &proxy,
                        strace,
                        *connections,
                        *measured,
                        kept,
                        &self.bed.folder,
                    )
                    .await
                    .map_err(|error| error.to_string())
                }
            };
            let said = counted.as_ref().map_or_else(Clone::clone, |calls| {
                format!("{:.2} per request", calls.all)
            });
            say(&format!(
                "system calls: {:<20} {said}",
                candidate.peer.name()
            ));
            rows.push((candidate.peer, counted));
        }
        Ok(Phase::Syscalls { rows })
    }
}

fn progress(name: &str, round: usize, peer: Peer, drive: &drive::Drive) -> String {
    let latency = drive
        .open
        .as_ref()
        .and_then(|open| open.latency_us)
        .map(|latency| format!(", p50 {:.0} us, p99 {:.0} us", latency.p50, latency.p99));
    let (cpu, rate, busy) = (
        drive.cpu_us_per_request,
        drive.requests_per_second,
        drive.busy * 100.0,
    );
    let lost = drive
        .lost
        .map(|lost| format!(", lost {:.0} %", lost * 100.0))
        .unwrap_or_default();
    let mark = if drive.is_calm() { "" } else { " (disturbed)" };
    format!(
        "{name}, round {}: {:<20} {cpu:6.2} us/request, {rate:6.0} requests/s, busy {busy:.0} \
         %{lost}{}{mark}",
        round + 1,
        peer.name(),
        latency.unwrap_or_default()
    )
}

fn method(arguments: &Arguments, is_pinned: bool) -> String {
    let cores = if is_pinned {
        format!("proxies on core {PROXY_CORE}, load and backends on core {LOAD_CORE}")
    } else {
        "not pinned".to_owned()
    };
    let Arguments {
        rounds,
        seconds,
        warm_up,
        connections,
        nice,
        answer_bytes,
        ..
    } = arguments;
    let nice = if *nice == 0 {
        String::new()
    } else {
        format!("; niceness {nice}")
    };
    format!(
        "{rounds} × {seconds} s for each proxy and question, after {warm_up} s of warm-up, \
         {connections} kept connections, {USERS} users, another one on each request, {PERCENT} % \
         on new, answers of {answer_bytes} bytes; {cores}{nice}"
    )
}

fn machine(cores: usize) -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        Some(
            line.strip_prefix("model name")?
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
        )
    });
    format!(
        "Linux {}, {cores} cores, {}",
        read("/proc/sys/kernel/osrelease").trim(),
        model.as_deref().unwrap_or("unknown processor")
    )
}

fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a line to stderr. Errors are ignored because there is nowhere left to report a closed
/// stderr.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
