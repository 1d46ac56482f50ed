//! The run: two processes, many concurrent conversations, and a tally.
//!
//! Each worker has a group of backends in front of each engine and plays one case after another. It
//! takes the next free number, so a slow case does not delay other workers. Memory does not grow
//! with the number of cases: cases that agree are counted and discarded.

use crate::differential::backend::Backends;
use crate::differential::bench::{Bench, say};
use crate::differential::course::Course;
use crate::differential::engine::{Counted, Engine};
use crate::differential::report::Report;
use crate::differential::threads::Threads;
use crate::peers::memory::allow_open_files;
use crate::peers::peer::on_path;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// The engine that every other engine has to match.
const REFERENCE: &str = "proxy";
/// The interval between progress lines.
const PROGRESS: Duration = Duration::from_secs(3);
/// The interval at which the liveness of both processes is checked.
const PULSE: Duration = Duration::from_millis(100);

/// Arguments of `differential`
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Program that is started twice
    #[arg(
        long,
        value_name = "PROGRAM",
        env = "CUTOVER",
        default_value = "target/release/cutover"
    )]
    cutover: PathBuf,
    /// Value of [listen] engine in the second process; it is "proxy" in the first
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Number of cases to play
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..u64::MAX))]
    cases: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Play this case only, and print both conversations
    #[arg(long, conflicts_with = "cases")]
    case: Option<u64>,
    /// Number of the first case, to continue where another run ended
    #[arg(long, default_value_t = 0, conflicts_with = "case")]
    from: u64,
    /// Number of concurrent conversations
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Request threads of each process; one for each core by default
    #[arg(long)]
    threads: Option<usize>,
    /// Also fail for a difference that did not recur
    #[arg(long)]
    strict: bool,
    /// Write the report as JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Compares the engines. The exit code is 1 if there is a difference that no rule explains.
///
/// # Errors
/// Fails if a process does not start, or ends.
pub async fn run(arguments: Arguments) -> io::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let program = on_path(&arguments.cutover).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "there is no {}; build it or say where it is",
                arguments.cutover.display()
            ),
        )
    })?;
    let groups = if arguments.case.is_some() {
        1
    } else {
        usize::from(arguments.connections)
    };
    allow_open_files(groups * 20)?;
    let processors = std::thread::available_parallelism()?.get();
    let threads = Threads::start(processors.min(groups))?;
    // The last groups, one for each thread, are reserved for second opinions.
    let all = groups + threads.number();
    let (first, second) = (
        Backends::start(all, &threads).await?,
        Backends::start(all, &threads).await?,
    );
    let reference = Engine::start(
        &program,
        REFERENCE,
        &first,
        arguments.threads.unwrap_or(processors),
    )
    .await?;
    let candidate = Engine::start(
        &program,
        &arguments.engine,
        &second,
        arguments.threads.unwrap_or(processors),
    )
    .await?;
    let addresses = [reference.address, candidate.address];
    let mut engines = [reference, candidate];
    let names = [
        REFERENCE.to_owned(),
        if arguments.engine == REFERENCE {
            format!("{REFERENCE} again")
        } else {
            arguments.engine.clone()
        },
    ];
    let bench = Arc::new(Bench {
        backends: [first, second],
        addresses,
        names,
        seed: arguments.seed,
        spares: spares(groups..all)
            .into_iter()
            .map(tokio::sync::Mutex::new)
            .collect(),
        full: arguments.case.is_some(),
    });
    let numbers = match arguments.case {
        Some(case) => case..case + 1,
        None => arguments.from..arguments.from.saturating_add(arguments.cases),
    };
    let course = Arc::new(Course::new(numbers, groups));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for group in 0..groups {
        workers.spawn(threads.spawn(group, work(Arc::clone(&bench), Arc::clone(&course), group)));
    }
    let (mut pulse, mut progress, is_followed) = (
        tokio::time::interval(PULSE),
        tokio::time::interval(PROGRESS),
        io::stderr().is_terminal(),
    );
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                None => break,
                Some(ended) => ended.map_err(io::Error::other)?.map_err(io::Error::other)?,
            },
            _ = pulse.tick() => pulse_of(&mut engines, &course)?,
            _ = progress.tick() => if is_followed { say(&course.progress(begun.elapsed())) },
            // Cases in progress are played to the end and reported.
            _ = interrupt.recv() => course.stop(),
            _ = terminate.recv() => return Err(io::Error::other("ended by SIGTERM")),
        }
    }
    let took = begun.elapsed();
    pulse_of(&mut engines, &course)?;
    let counted: [Counted; 2] = [engines[0].counted().await, engines[1].counted().await];
    let tally = course.tally().clone();
    let report = Report::new(arguments.seed, bench.names.clone(), tally, counted, took);
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).map_err(io::Error::other)? + "\n"
    } else {
        report.to_string()
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    let failures = report.unexplained()
        + if arguments.strict {
            report.unrepeated()
        } else {
            0
        };
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns one spare group for each thread, in the order of the threads.
fn spares(groups: Range<usize>) -> Vec<usize> {
    let number = groups.len();
    let mut spares: Vec<usize> = groups.collect();
    spares.sort_by_key(|group| group % number.max(1));
    spares
}

/// Fails if a process has ended.
fn pulse_of(engines: &mut [Engine; 2], course: &Course) -> io::Result<()> {
    for (engine, which) in engines.iter_mut().zip(["first", "second"]) {
        if let Some(words) = engine.last_words()? {
            let playing: Vec<String> = course.playing().iter().map(u64::to_string).collect();
            return Err(io::Error::other(format!(
                "the {which} process (engine {:?}) has ended while these cases were played: {}. \
                 It said last:\n{words}",
                engine.name,
                playing.join(", ")
            )));
        }
    }
    Ok(())
}

async fn work(bench: Arc<Bench>, course: Arc<Course>, group: usize) {
    while let Some(number) = course.take(group) {
        bench.play_and_judge(&course, group, number).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate;
    use crate::differential::report::Tally;
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Starts a minimal engine: each client connection becomes one connection to the backend, and
    /// bytes pass through. `mangle` may change the bytes of the client.
    async fn relay(backend: SocketAddr, mangle: fn(&mut [u8])) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let backend = TcpStream::connect(backend).await.expect("a backend");
                    let ((mut from_client, mut to_client), (mut from_backend, mut to_backend)) =
                        (client.into_split(), backend.into_split());
                    let back = tokio::spawn(async move {
                        tokio::io::copy(&mut from_backend, &mut to_client).await
                    });
                    let mut buffer = vec![0; 65_536];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        mangle(&mut buffer[..read]);
                        if to_backend.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                    back.abort();
                });
            }
        });
        address
    }

    async fn run_through(mangle: fn(&mut [u8]), cases: std::ops::Range<u64>) -> Tally {
        let threads = Threads::start(1).expect("a thread");
        let backends = [
            Backends::start(2, &threads).await.expect("ports"),
            Backends::start(2, &threads).await.expect("ports"),
        ];
        let mut addresses = Vec::new();
        for (backends, mangle) in backends.iter().zip([(|_| {}) as fn(&mut [u8]), mangle]) {
            let (legacy, _) = backends.groups().next().expect("a group");
            addresses.push(relay(legacy, mangle).await);
        }
        let bench = Arc::new(Bench {
            backends,
            addresses: [addresses[0], addresses[1]],
            names: ["one".to_owned(), "other".to_owned()],
            seed: 1,
            spares: vec![1.into()],
            full: false,
        });
        let course = Arc::new(Course::new(cases, 1));
        // Everything belongs to the first group.
        threads
            .spawn(0, work(bench, Arc::clone(&course), 0))
            .await
            .expect("its end");
        course.tally().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn identical_engines_agree_and_a_changed_byte_is_found() {
        let plain = |number: &u64| {
            let case = generate::case(1, *number, 0);
            let is_plain = |request: &crate::differential::case::Request| {
                !request.is_last_word
                    && request.script.after == Default::default()
                    && !request.script.is_early
                    && request.end == b"\r\n"
            };
            case.requests.len() == 1
                && case.requests.iter().all(is_plain)
                && case.requests[0].body.is_empty()
                && case.requests[0].start.starts_with(b"GET /w000/p0 ")
        };
        let number = (0..2_000)
            .find(|number| plain(number))
            .expect("a plain case");
        let same = run_through(|_| {}, number..number + 1).await;
        assert_eq!(
            (same.cases, same.unexplained.len()),
            (1, 0),
            "{:?}",
            same.unexplained
        );
        let mangled = run_through(
            |bytes| {
                if let Some(at) = bytes.windows(3).position(|window| window == b"/p0") {
                    bytes[at + 1] = b'q';
                }
            },
            number..number + 1,
        )
        .await;
        assert_eq!(
            mangled
                .unexplained
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>(),
            ["backend request line"]
        );
    }
}
