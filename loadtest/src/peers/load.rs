//! The load: requests over kept connections as fast as the answers allow, or at a fixed rate, or
//! each over a new connection.
//!
//! *Closed*: each connection sends its next request when the previous one is answered. It saturates
//! the proxy, which is the condition for measuring CPU per request. It has no latencies, because a
//! closed loop hides stalls. *Open*: requests have an intended start, and latencies are measured
//! from it, whatever the proxy was doing then. *Reconnecting* is a closed loop with new
//! connections.
//!
//! The load lives on one thread next to the backends, so it must be cheap. It uses sockets and
//! prepared bytes instead of the HTTP client of the other generator, and a histogram instead of a
//! record for each request. The pacer itself writes to an idle connection, and the task of that
//! connection only reads. The timers of the runtime tick in milliseconds, so the pacer is a thread
//! that sleeps, without the slack that the kernel usually allows itself. Consecutive requests
//! belong to different users, so a connection alternates between the sides as behind a load
//! balancer.
//!
//! Deliberately absent: bodies, pipelining, and sending anything twice.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::set_current_timer_slack;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::peers::answer::{ask_on, most_answer_bytes, read_answer};
use crate::peers::population::{Requests, Sightings};
use crate::users::Side;

const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);
/// How long the last answers may take after [`Load::stop`].
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// The longest single sleep of the pacer.
const PACER_SLICE: Duration = Duration::from_millis(50);
/// The highest recorded latency, in nanoseconds. Higher latencies count as this one.
const MOST_LATENCY_NS: u64 = 60_000_000_000;

/// The rule for when a request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// A request is sent when the previous one on its connection is answered.
    Closed,
    /// Requests are sent at a fixed rate with equal gaps, whatever the proxy does.
    Open {
        /// The rate, in requests per second.
        rate: f64,
    },
    /// A request is sent on a new connection when the previous one is answered.
    Reconnecting,
}

/// The plan of a load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The address of the proxy.
    pub address: SocketAddr,
    /// The number of connections, which is also the limit of requests in flight.
    pub connections: usize,
    /// The rule for when a request is sent.
    pub pace: Pace,
    /// The range of intended starts, relative to the start of the load, whose latencies count.
    pub measured: Range<Duration>,
    /// The requests that are sent in this order, repeated from the beginning.
    pub requests: Requests,
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// The result of a load from its start to its end.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The nanoseconds from the intended start to the end of the answer. Empty except for an open
    /// loop.
    pub latency_ns: Histogram<u64>,
    /// The nanoseconds from the intended start to the moment the pacer got to it. This delay is
    /// the load's own fault.
    pub lateness_ns: Histogram<u64>,
    /// The sides on which the users were seen, including the sightings given to [`Load::start`].
    pub sightings: Sightings,
    /// The number of requests with the expected answer.
    pub answered: u64,
    /// The number of requests without an answer, or with an answer that is not a backend's.
    pub failed: u64,
    /// The error of the first failed request.
    pub first_failure: Option<String>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    start: Instant,
    stopping: Notify,
    answered: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lines: Vec<Line>,
    /// The idle connections, the one that has waited longest first. All of them are therefore used
    /// equally.
    idle: VecDeque<usize>,
    /// The intended starts that wait for a connection.
    due: VecDeque<Duration>,
    in_flight: usize,
    next_user: usize,
    stopped: bool,
    seen: Seen,
}

/// A connection from the pacer's point of view.
#[derive(Debug, Default)]
struct Line {
    writer: Option<OwnedWriteHalf>,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    user: usize,
    intended: Duration,
}

impl Load {
    /// Starts a load on its own thread.
    ///
    /// # Errors
    /// Fails if no thread or no timer is available.
    pub fn start(plan: Plan, sightings: Sightings) -> io::Result<Self> {
        let histogram =
            || Histogram::new_with_bounds(1, MOST_LATENCY_NS, 3).map_err(io::Error::other);
        let seen = Seen {
            latency_ns: histogram()?,
            lateness_ns: histogram()?,
            sightings,
            answered: 0,
            failed: 0,
            first_failure: None,
        };
        let state = State {
            lines: (0..plan.connections).map(|_| Line::default()).collect(),
            idle: VecDeque::new(),
            due: VecDeque::new(),
            in_flight: 0,
            next_user: 0,
            stopped: false,
            seen,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            plan,
            start: Instant::now(),
            stopping: Notify::new(),
            answered: AtomicU64::new(0),
            state: Mutex::new(state),
        });
        let mut load = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        load.threads
            .push(thread::Builder::new().name("load".to_owned()).spawn({
                let shared = Arc::clone(&shared);
                move || runtime.block_on(work(shared))
            })?);
        match shared.plan.pace {
            Pace::Closed | Pace::Reconnecting => {}
            Pace::Open { rate } => load.threads.push(
                thread::Builder::new()
                    .name("pacer".to_owned())
                    .spawn(move || pace(&shared, rate))?,
            ),
        }
        Ok(load)
    }

    /// Returns the start of the load. [`Plan::measured`] is relative to it.
    pub fn started(&self) -> Instant {
        self.shared.start
    }

    /// Returns the number of requests with the expected answer so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for the last answers so that no client abandons its request, and
    /// returns the result.
    pub fn stop(mut self) -> Seen {
        self.join();
        Seen {
            answered: self.answered(),
            ..self.shared.lock().seen.clone()
        }
    }

    fn join(&mut self) {
        self.shared.stopping.notify_one();
        for thread in self.threads.drain(..) {
            // A load thread that panicked has already reported it on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

async fn work(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    for line in 0..shared.plan.connections {
        let shared = Arc::clone(&shared);
        match shared.plan.pace {
            Pace::Closed | Pace::Open { .. } => tasks.spawn(keep(shared, line)),
            Pace::Reconnecting => tasks.spawn(reconnect(shared)),
        };
    }
    shared.stopping.notified().await;
    shared.lock().stopped = true;
    let given_up = Instant::now() + LAST_ANSWERS;
    while shared.lock().in_flight > 0 && Instant::now() < given_up {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut state = shared.lock();
    for _ in 0..state.in_flight {
        state.fail(&io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer until the end",
        ));
    }
}

/// Releases requests at their intended starts until the load is stopped.
fn pace(shared: &Shared, rate: f64) {
    // If this is refused, it costs lateness, which is reported.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut released = 0_u64;
    loop {
        // The start is computed from the count, not by adding gaps, so that rounding does not
        // drift.
        let intended = Duration::from_secs_f64(released as f64 / rate);
        let now = shared.start.elapsed();
        if now < intended {
            // The pacer sleeps in slices, so that a slow load soon notices a stop.
            thread::sleep((intended - now).min(PACER_SLICE));
        }
        let now = shared.start.elapsed();
        let mut state = shared.lock();
        if state.stopped {
            return;
        }
        if now >= intended {
            if shared.plan.measured.contains(&intended) {
                state
                    .seen
                    .lateness_ns
                    .saturating_record(nanoseconds(now - intended));
            }
            state.release(intended, &shared.plan.requests);
            released += 1;
        }
    }
}

/// Runs one kept connection until the load ends, and reopens it whenever it breaks.
async fn keep(shared: Arc<Shared>, line: usize) {
    let mut buffer = vec![0; most_answer_bytes()];
    loop {
        let Err(error) = answers(&shared, line, &mut buffer).await;
        shared.lock().broken(line, &error);
        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
    }
}

async fn answers(
    shared: &Shared,
    line: usize,
    buffer: &mut [u8],
) -> io::Result<std::convert::Infallible> {
    let stream = TcpStream::connect(shared.plan.address).await?;
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    {
        let mut state = shared.lock();
        state.lines[line].writer = Some(writer);
        state.freed(line, &shared.plan, shared.start);
    }
    loop {
        let side = read_answer(&mut reader, buffer).await?;
        shared.answered.fetch_add(1, Ordering::Relaxed);
        let mut state = shared.lock();
        state.answered(line, side, &shared.plan, shared.start);
        state.freed(line, &shared.plan, shared.start);
    }
}

/// Sends requests one after another, each on a connection that the proxy closes. The side that
/// closes first keeps the port for a minute, and the load would run out of ports.
async fn reconnect(shared: Arc<Shared>) {
    let mut buffer = vec![0; most_answer_bytes()];
    loop {
        let user = {
            let mut state = shared.lock();
            if state.stopped {
                return;
            }
            state.in_flight += 1;
            state.user()
        };
        let asked = async {
            let mut stream = TcpStream::connect(shared.plan.address).await?;
            stream.set_nodelay(true)?;
            let side = ask_on(&mut stream, &shared.plan.requests[user], &mut buffer).await?;
            match stream.read(&mut buffer).await? {
                0 => Ok(side),
                more => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("expected the end of the connection, found {more} bytes"),
                )),
            }
        };
        let asked = asked.await;
        let failed = asked.is_err();
        shared.reconnected(user, asked);
        if failed {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reconnected(&self, user: usize, asked: io::Result<Side>) {
        let mut state = self.lock();
        state.in_flight -= 1;
        match asked {
            Ok(side) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                state.seen.sightings.note(user, side);
            }
            Err(error) => state.fail(&error),
        }
    }
}

impl State {
    /// Handles the intended start of a request.
    fn release(&mut self, intended: Duration, requests: &Requests) {
        while let Some(line) = self.idle.pop_front() {
            // A connection that broke and was reopened is in the queue twice.
            if self.lines[line].writer.is_some() && self.lines[line].asked.is_none() {
                return self.ask(line, intended, requests);
            }
        }
        self.due.push_back(intended);
    }

    /// Handles a connection that can take a request.
    fn freed(&mut self, line: usize, plan: &Plan, start: Instant) {
        let next = match plan.pace {
            _ if self.stopped => None,
            Pace::Closed => Some(start.elapsed()),
            Pace::Open { .. } => self.due.pop_front(),
            Pace::Reconnecting => None,
        };
        match next {
            Some(intended) => self.ask(line, intended, &plan.requests),
            None => self.idle.push_back(line),
        }
    }

    fn ask(&mut self, line: usize, intended: Duration, requests: &Requests) {
        let user = self.user();
        self.in_flight += 1;
        let line = &mut self.lines[line];
        line.asked = Some(Asked { user, intended });
        let written = line
            .writer
            .as_ref()
            .map(|writer| writer.try_write(&requests[user]));
        if !matches!(written, Some(Ok(count)) if count == requests[user].len()) {
            // Dropping the writer half-closes the connection. The reading task then also reaches
            // the end of the stream and counts a failure.
            line.writer = None;
        }
    }

    fn answered(&mut self, line: usize, side: Side, plan: &Plan, start: Instant) {
        let Some(asked) = self.lines[line].asked.take() else {
            return self.fail(&io::Error::new(
                io::ErrorKind::InvalidData,
                "an answer without a request",
            ));
        };
        self.in_flight -= 1;
        self.seen.sightings.note(asked.user, side);
        if matches!(plan.pace, Pace::Open { .. }) && plan.measured.contains(&asked.intended) {
            self.seen
                .latency_ns
                .saturating_record(nanoseconds(start.elapsed().saturating_sub(asked.intended)));
        }
    }

    /// Handles a broken connection, with or without a request on it.
    fn broken(&mut self, line: usize, error: &io::Error) {
        let line = &mut self.lines[line];
        let never_opened = line.writer.take().is_none();
        let asked = line.asked.take().is_some();
        if asked {
            self.in_flight -= 1;
        }
        if asked || never_opened {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.seen.failed += 1;
        self.seen
            .first_failure
            .get_or_insert_with(|| error.to_string());
    }

    fn user(&mut self) -> usize {
        let user = self.next_user;
        self.next_user = (user + 1) % self.seen.sightings.users();
        user
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::population::{After, requests};
    use crate::peers::stub::{BODY_BYTES, Stubs, mark};
    use std::net::Ipv4Addr;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn plan(address: SocketAddr, pace: Pace) -> Plan {
        let after = if pace == Pace::Reconnecting {
            After::Close
        } else {
            After::Keep
        };
        Plan {
            address,
            connections: 8,
            pace,
            measured: Duration::ZERO..PATIENCE,
            requests: requests(after),
        }
    }

    async fn run_until_answered(plan: Plan, wanted: u64) -> (Seen, Duration) {
        let load = Load::start(plan, Sightings::default()).expect("a thread");
        let deadline = Instant::now() + PATIENCE;
        while load.answered() < wanted {
            assert!(Instant::now() < deadline, "{} answered", load.answered());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = load.started().elapsed();
        (load.stop(), took)
    }

    /// Starts a server that answers as new, once for each connection. The first answer is sent once
    /// `from` has passed.
    async fn start_closing_server(from: Duration) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let from = tokio::time::Instant::now() + from;
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 1024]).await;
                    tokio::time::sleep_until(from).await;
                    let _ = stream
                        .write_all(
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n")
                                .as_bytes(),
                        )
                        .await;
                    let _ = stream.write_all(&[mark(Side::New); BODY_BYTES]).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn the_stubs_answer_the_load_without_failures() {
        let stubs = Stubs::start().expect("ports are free");
        for pace in [Pace::Closed, Pace::Open { rate: 2_000.0 }] {
            let (seen, _) = run_until_answered(plan(stubs.new, pace), 1_000).await;
            assert_eq!((seen.failed, seen.first_failure), (0, None), "{pace:?}");
            let split = seen.sightings.split();
            assert!(
                split.new >= 1_000 && split.legacy == 0 && split.moved == 0,
                "{pace:?}: {split:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_proxy_that_moves_a_user_to_the_other_side_is_detected() {
        let stubs = Stubs::start().expect("ports are free");
        let (seen, _) = run_until_answered(plan(stubs.new, Pace::Closed), 1_000).await;
        let load = Load::start(plan(stubs.legacy, Pace::Closed), seen.sightings).expect("a thread");
        let deadline = Instant::now() + PATIENCE;
        while load.answered() < 10 {
            assert!(Instant::now() < deadline, "{} answered", load.answered());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(load.stop().sightings.split().moved >= 10);
    }

    // The server runs on this runtime, and stopping a load blocks a thread.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_request_can_have_a_connection_of_its_own() {
        let address = start_closing_server(Duration::ZERO).await;
        let (seen, _) = run_until_answered(plan(address, Pace::Reconnecting), 100).await;
        assert_eq!((seen.failed, seen.first_failure), (0, None));
        assert!(seen.sightings.split().new >= 100);
    }

    #[tokio::test]
    async fn an_open_loop_does_not_exceed_its_rate() {
        let stubs = Stubs::start().expect("ports are free");
        let (seen, took) =
            run_until_answered(plan(stubs.legacy, Pace::Open { rate: 1_000.0 }), 300).await;
        assert!(took >= Duration::from_millis(299), "{took:?}");
        assert!(seen.latency_ns.len() >= 300 && seen.lateness_ns.len() >= seen.latency_ns.len());
    }

    // The server runs on this runtime, and stopping a load blocks a thread.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn latencies_count_from_the_intended_start_while_the_server_stalls() {
        // None of the 8 connections is free before 300 ms have passed, so every request intended
        // for the first 100 ms has waited for at least 200.
        let address = start_closing_server(Duration::from_millis(300)).await;
        let load = Load::start(
            plan(address, Pace::Open { rate: 1_000.0 }),
            Sightings::default(),
        )
        .expect("a thread");
        let deadline = Instant::now() + PATIENCE;
        while load.answered() < 150 {
            assert!(Instant::now() < deadline, "{} answered", load.answered());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seen = load.stop();
        let slow = seen
            .latency_ns
            .iter_recorded()
            .filter(|value| value.value_iterated_to() >= 199_000_000)
            .map(|value| value.count_at_value())
            .sum::<u64>();
        assert!(slow >= 90, "{slow} of {}", seen.latency_ns.len());
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_failure_with_its_reason() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let load =
            Load::start(plan(address, Pace::Closed), Sightings::default()).expect("a thread");
        let deadline = Instant::now() + PATIENCE;
        while load.shared.lock().seen.failed == 0 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(load.stop().first_failure.is_some());
    }
}
