//! The run: two processes, many conversations at once, and a tally.
//!
//! Each worker has a group of backends in front of each engine and plays one case after the other; it takes the next number, so a slow case holds up nobody else. Memory does not grow with the
//! number of cases: what agrees is counted and forgotten.

use super::backend::Backends;
use super::case::{Case, Cut};
use super::client::converse;
use super::compare::{Difference, Observation, compare};
use super::engine::{Counted, Engine};
use super::generate;
use super::lookup::{self, Again, Verdict, unexplained};
use super::report::{Example, Report, Tally, record, wants_example};
use super::rules::Rule;
use super::show::conversations;
use super::shrink::shrink;
use crate::peers::memory::allow_open_files;
use crate::peers::peer::on_path;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// The engine that every other one has to be like.
const REFERENCE: &str = "proxy";
/// How often a progress line is written.
const PROGRESS: Duration = Duration::from_secs(3);
/// How often is looked whether both processes live.
const PULSE: Duration = Duration::from_millis(100);
/// A worker that plays no case.
const IDLE: u64 = u64::MAX;

/// Arguments of `differential`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The program that is started twice.
    #[arg(long, value_name = "PROGRAM", env = "CUTOVER", default_value = "target/release/cutover")]
    cutover: PathBuf,
    /// What [listen] engine is in the second process; it is "proxy" in the first.
    #[arg(long, default_value = "auto")]
    engine: String,
    /// How many cases to play.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..u64::MAX))]
    cases: u64,
    /// What chance begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Play this case only, and print both conversations.
    #[arg(long, conflicts_with = "cases")]
    case: Option<u64>,
    /// The first case, to go on where another run ended.
    #[arg(long, default_value_t = 0, conflicts_with = "case")]
    from: u64,
    /// How many conversations go on at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Request threads of each process; one for each core by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Fail for a difference that did not show again, too.
    #[arg(long)]
    strict: bool,
    /// Write the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Compares the engines. The exit code is 1 if something is different and no rule says why.
///
/// # Errors
/// When a process does not start, or ends.
pub async fn run(arguments: Arguments) -> io::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let program =
        on_path(&arguments.cutover).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no {}; build it or say where it is", arguments.cutover.display())))?;
    let groups = if arguments.case.is_some() { 1 } else { usize::from(arguments.connections) };
    allow_open_files(groups * 20)?;
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let (first, second) = (Backends::start(groups + 1).await?, Backends::start(groups + 1).await?);
    let reference = Engine::start(&program, REFERENCE, &first, threads).await?;
    let candidate = Engine::start(&program, &arguments.engine, &second, threads).await?;
    let addresses = [reference.address, candidate.address];
    let mut engines = [reference, candidate];
    let names = [REFERENCE.to_owned(), if arguments.engine == REFERENCE { format!("{REFERENCE} again") } else { arguments.engine.clone() }];
    let bench = Arc::new(Bench {
        backends: [first, second],
        addresses,
        names,
        seed: arguments.seed,
        spare: groups.into(),
        is_self: arguments.engine == REFERENCE,
        full: arguments.case.is_some(),
    });
    let numbers = match arguments.case {
        Some(case) => case..case + 1,
        None => arguments.from..arguments.from.saturating_add(arguments.cases),
    };
    let course = Arc::new(Course { next: AtomicU64::new(numbers.start), end: numbers.end, tally: Mutex::default(), playing: (0..groups).map(|_| AtomicU64::new(IDLE)).collect() });
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for group in 0..groups {
        workers.spawn(work(Arc::clone(&bench), Arc::clone(&course), group));
    }
    let (mut pulse, mut progress, is_followed) = (tokio::time::interval(PULSE), tokio::time::interval(PROGRESS), io::stderr().is_terminal());
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                None => break,
                Some(ended) => ended.map_err(io::Error::other)?,
            },
            _ = pulse.tick() => pulse_of(&mut engines, &course)?,
            _ = progress.tick() => if is_followed { say(&course.progress(begun.elapsed())) },
            // What is being played is played to its end, and reported.
            _ = interrupt.recv() => course.stop(),
            _ = terminate.recv() => return Err(io::Error::other("ended by SIGTERM")),
        }
    }
    let took = begun.elapsed();
    pulse_of(&mut engines, &course)?;
    let counted: [Counted; 2] = [engines[0].counted().await, engines[1].counted().await];
    let tally = course.tally().clone();
    let report = Report::new(arguments.seed, bench.names.clone(), tally, counted, took);
    let text = if arguments.json { serde_json::to_string_pretty(&report).map_err(io::Error::other)? + "\n" } else { report.to_string() };
    io::stdout().lock().write_all(text.as_bytes())?;
    let failures = report.unexplained() + if arguments.strict { report.unrepeated() } else { 0 };
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fails if a process has ended.
fn pulse_of(engines: &mut [Engine; 2], course: &Course) -> io::Result<()> {
    for (engine, which) in engines.iter_mut().zip(["first", "second"]) {
        if let Some(words) = engine.last_words()? {
            let playing: Vec<String> = course.playing.iter().map(|case| case.load(Ordering::Relaxed)).filter(|&case| case != IDLE).map(|case| case.to_string()).collect();
            return Err(io::Error::other(format!(
                "the {which} process (engine {:?}) has ended while these cases were played: {}. It said last:\n{words}",
                engine.name,
                playing.join(", ")
            )));
        }
    }
    Ok(())
}

/// What cases are played on.
#[derive(Debug)]
struct Bench {
    backends: [Backends; 2],
    addresses: [std::net::SocketAddr; 2],
    names: [String; 2],
    seed: u64,
    /// The group that no worker has, for a second opinion.
    spare: tokio::sync::Mutex<usize>,
    /// Whether an engine is compared with itself.
    is_self: bool,
    /// Whether conversations are printed also where nothing is different.
    full: bool,
}

/// How far the run is.
#[derive(Debug)]
struct Course {
    next: AtomicU64,
    end: u64,
    tally: Mutex<Tally>,
    playing: Vec<AtomicU64>,
}

impl Course {
    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.end).then_some(number)
    }

    fn stop(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, took: Duration) -> String {
        let tally = self.tally();
        let count = |kinds: &std::collections::BTreeMap<_, super::report::Kind>| kinds.values().map(|kind| kind.cases).sum::<u64>();
        let rate = tally.cases as f64 / took.as_secs_f64().max(0.001);
        format!("{} cases, {rate:.0} per second, {} unexplained, {} unrepeated", tally.cases, count(&tally.unexplained), count(&tally.unrepeated))
    }
}

async fn work(bench: Arc<Bench>, course: Arc<Course>, group: usize) {
    while let Some(number) = course.take() {
        if let Some(playing) = course.playing.get(group) {
            playing.store(number, Ordering::Relaxed);
        }
        bench.play_and_judge(&course, group, number).await;
        if let Some(playing) = course.playing.get(group) {
            playing.store(IDLE, Ordering::Relaxed);
        }
    }
}

/// A case as each engine plays it: the same, save where the reference is asked one request after the other.
struct Versions {
    reference: Case,
    candidate: Case,
}

impl Bench {
    async fn play(&self, engine: usize, group: usize, case: &Case) -> Observation {
        let (Some(backends), Some(&address)) = (self.backends.get(engine), self.addresses.get(engine)) else { return Observation::default() };
        let play = backends.begin(group, case);
        let client = converse(address, case).await;
        let is_under_way = client.has_answer_of_the_engine();
        Observation { client, arrivals: backends.end(group, case, &play, is_under_way).await }
    }

    async fn both(&self, group: usize, versions: &Versions) -> (Observation, Observation) {
        tokio::join!(self.play(0, group, &versions.reference), self.play(1, group, &versions.candidate))
    }

    async fn play_and_judge(&self, course: &Course, group: usize, number: u64) {
        let case = generate::case(self.seed, number, group);
        let begun = Instant::now();
        let mut versions = Versions { reference: case.clone(), candidate: case };
        let (mut reference, candidate) = self.both(group, &versions).await;
        let took = begun.elapsed();
        let mut differences = compare(&versions.candidate, &reference, &candidate);
        if versions.reference.is_pipelined && !unexplained(&differences).is_empty() {
            course.tally().explain(Rule::Pipelined);
            if self.is_self {
                // Both do by chance what the rule says of one.
                differences.clear();
            } else {
                versions.reference.is_pipelined = false;
                reference = self.play(0, group, &versions.reference).await;
                differences = compare(&versions.candidate, &reference, &candidate);
            }
        }
        {
            let mut tally = course.tally();
            tally.count(&versions.candidate, &reference, took);
            if unexplained(&differences).is_empty() {
                differences.iter().filter_map(|difference| difference.rule).for_each(|rule| tally.explain(rule));
            }
        }
        if self.full {
            say(&self.text(&versions.candidate, &reference, &candidate, &differences));
        }
        if let Some(foreign) = [&reference, &candidate].iter().find_map(|observation| observation.crossed(&versions.candidate)) {
            let text = self.text(&versions.candidate, &reference, &candidate, &differences);
            say(&format!("crossed: case {number} of seed {} got the answer of {foreign}\n{text}", self.seed));
            record(&mut course.tally().unexplained, "crossed: an answer of another case".to_owned(), Some(Example { case: number, text }));
        }
        if !unexplained(&differences).is_empty() {
            self.look_again(course, group, &versions, (reference, candidate), &differences).await;
        }
    }

    async fn look_again(&self, course: &Course, group: usize, versions: &Versions, first: (Observation, Observation), differences: &[Difference]) {
        let number = versions.candidate.number;
        let kind = unexplained(differences).first().map(|difference| kind_of(difference)).unwrap_or_default();
        let mut verdict = self.judge(group, versions, (&first.0, &first.1)).await;
        if matches!(verdict, Verdict::Differs) && wants_example(&course.tally().unexplained, &kind) {
            verdict = self.second_opinion(versions).await;
        }
        match verdict {
            Verdict::Chance => course.tally().explain(Rule::EitherWay),
            Verdict::Unrepeated => {
                let is_wanted = wants_example(&course.tally().unrepeated, &kind);
                let example = is_wanted.then(|| Example { case: number, text: self.text(&versions.candidate, &first.0, &first.1, differences) });
                if let Some(example) = &example {
                    say(&format!("unrepeated: case {number} of seed {}: {kind}\n{}", self.seed, example.text));
                }
                record(&mut course.tally().unrepeated, kind, example);
            }
            Verdict::Differs => {
                if !wants_example(&course.tally().unexplained, &kind) {
                    return record(&mut course.tally().unexplained, kind, None);
                }
                let mut text = self.text(&versions.candidate, &first.0, &first.1, differences);
                if !self.full {
                    text.push_str(&self.shrunk(group, versions, &kind).await);
                }
                say(&format!("unexplained: case {number} of seed {}: {kind}\n{text}", self.seed));
                record(&mut course.tally().unexplained, kind, Some(Example { case: number, text }));
            }
        }
    }

    async fn judge(&self, group: usize, versions: &Versions, first: (&Observation, &Observation)) -> Verdict {
        let again = |again: Again| async move {
            match again {
                // Several at once, if they were: the candidate may hand some of its requests to the reference.
                Again::Reference(Cut::AsItIs) => self.play(0, group, &versions.candidate).await,
                Again::Reference(cut) => self.play(0, group, &versions.reference.cut(cut)).await,
                Again::Candidate => self.play(1, group, &versions.candidate).await,
            }
        };
        lookup::judge(&versions.reference, first, again).await
    }

    /// Whether a difference shows among other backends, too. What does not is of one place and one time, and not of an engine.
    async fn second_opinion(&self, versions: &Versions) -> Verdict {
        let spare = self.spare.lock().await;
        let case = generate::case(self.seed, versions.candidate.number, *spare);
        let versions = Versions { reference: Case { is_pipelined: versions.reference.is_pipelined, ..case.clone() }, candidate: case };
        let (reference, candidate) = self.both(*spare, &versions).await;
        match self.judge(*spare, &versions, (&reference, &candidate)).await {
            Verdict::Differs => Verdict::Differs,
            Verdict::Chance | Verdict::Unrepeated => Verdict::Unrepeated,
        }
    }

    /// A smaller case with a difference of this kind.
    async fn shrunk(&self, group: usize, versions: &Versions, kind: &str) -> String {
        let is_pipelined = versions.reference.is_pipelined;
        let version = |case: &Case| Versions { reference: Case { is_pipelined, ..case.clone() }, candidate: case.clone() };
        let differs = |case: Case| async move {
            let versions = version(&case);
            let (reference, candidate) = self.both(group, &versions).await;
            let differences = compare(&versions.candidate, &reference, &candidate);
            unexplained(&differences).iter().any(|difference| kind_of(difference) == kind)
        };
        let small = shrink(versions.candidate.clone(), differs).await;
        let versions = version(&small);
        let (reference, candidate) = self.both(group, &versions).await;
        let differences = compare(&versions.candidate, &reference, &candidate);
        format!("  --- smaller\n{}", self.text(&small, &reference, &candidate, &differences))
    }

    fn text(&self, case: &Case, reference: &Observation, candidate: &Observation, differences: &[Difference]) -> String {
        conversations(case, [&self.names[0], &self.names[1]], [reference, candidate], differences)
    }
}

/// What differences are grouped by: what they are about, and both values where these are words and not data.
fn kind_of(difference: &Difference) -> String {
    let Difference { what, reference, candidate, .. } = difference;
    let short = |value: &str| value.len() <= 40 && !value.bytes().any(|byte| byte.is_ascii_digit());
    let is_status = what == "client status line";
    if is_status || short(reference) && short(candidate) { format!("{what}: {reference} | {candidate}") } else { what.clone() }
}

/// Writes a line to stderr. There is nowhere left to say that stderr is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// The least that may be called an engine: each client connection is one to the backend, and bytes pass. `mangle` may do something to those of the client.
    async fn relay(backend: SocketAddr, mangle: fn(&mut [u8])) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let backend = TcpStream::connect(backend).await.expect("a backend");
                    let ((mut from_client, mut to_client), (mut from_backend, mut to_backend)) = (client.into_split(), backend.into_split());
                    let back = tokio::spawn(async move { tokio::io::copy(&mut from_backend, &mut to_client).await });
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
        let backends = [Backends::start(4).await.expect("ports"), Backends::start(4).await.expect("ports")];
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
            spare: 0.into(),
            is_self: false,
            full: false,
        });
        let course = Arc::new(Course { next: AtomicU64::new(cases.start), end: cases.end, tally: Mutex::default(), playing: vec![AtomicU64::new(IDLE)] });
        // All of it is the first group's.
        work(bench, Arc::clone(&course), 0).await;
        course.tally().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_engines_that_do_the_same_are_the_same_and_a_changed_byte_is_found() {
        let plain = |number: &u64| {
            let case = generate::case(1, *number, 0);
            let is_plain =
                |request: &super::super::case::Request| !request.is_last_word && request.script.after == Default::default() && !request.script.is_early && request.end == b"\r\n";
            case.requests.len() == 1 && case.requests.iter().all(is_plain) && case.requests[0].body.is_empty() && case.requests[0].start.starts_with(b"GET /w000/p0 ")
        };
        let number = (0..2_000).find(|number| plain(number)).expect("a plain case");
        let same = run_through(|_| {}, number..number + 1).await;
        assert_eq!((same.cases, same.unexplained.len()), (1, 0), "{:?}", same.unexplained);
        let mangled = run_through(
            |bytes| {
                if let Some(at) = bytes.windows(3).position(|window| window == b"/p0") {
                    bytes[at + 1] = b'q';
                }
            },
            number..number + 1,
        )
        .await;
        assert_eq!(mangled.unexplained.keys().map(String::as_str).collect::<Vec<_>>(), ["backend request line"]);
    }
}
