//! Open-loop generator: requests start when the schedule says, not when the target is ready.
//!
//! Real users do not wait for each other. A closed loop does: it stops asking while the target is
//! stalled and so hides the stall ("coordinated omission"). Here every request has an *intended*
//! start and everything is measured from it, including the wait for a free connection and the
//! opening of one.
//!
//! Three instants of each request are kept beside the intended one: *released* (the pacer handed it
//! over), *sent* (a connection took it) and *finished*. Released minus intended is the generator's
//! own lateness; sent minus intended adds the wait for a connection.
//!
//! The pacer is a thread of its own because the timers of the runtime tick in milliseconds, which
//! is coarser than the latencies measured here. Each connection is owned by one task, and the tasks
//! take requests from one queue in order. One record is kept for every request (48 bytes), because
//! the order in which one user's requests were sent is known only afterwards; that is why a run is
//! limited to [`MOST_REQUESTS`].
//!
//! A request is sent again only if the connection proves that no byte of it was written (an idle
//! connection that the target closed); anything else is counted as the failure a user would see.
//!
//! Deliberately absent: HTTP/2, TLS, request bodies, redirects, retries, and a warm-up that is left
//! out of the numbers.

use crate::units::UsageError;
use crate::users::{Oracle, Side, UserDraws, user_name};
use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// Most requests one run may make.
pub const MOST_REQUESTS: f64 = 20_000_000.0;

/// Longest single sleep of the pacer, so that it soon sees that it is to stop.
const PACER_SLICE: Duration = Duration::from_millis(50);
/// Makes the gaps between requests independent of the draws of users under the same seed.
const ARRIVAL_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where the requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    host: HeaderValue,
    authority: Authority,
    addresses: Vec<SocketAddr>,
}

impl Target {
    /// Reads and resolves `http://host:port`. Anything but loopback needs `allow_remote`.
    pub async fn resolve(text: &str, allow_remote: bool) -> Result<Self, UsageError> {
        let wrong = || UsageError::new(format!("expected a target such as http://127.0.0.1:8080, without a path, found {text:?}"));
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        if uri.scheme() != Some(&Scheme::HTTP) || uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(wrong());
        }
        let authority = uri.authority().ok_or_else(wrong)?.clone();
        if authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => 80,
            // A port that is none, such as 99999, must not become the default one.
            None => return Err(wrong()),
        };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(|error| UsageError::new(format!("expected a target that resolves, found {text:?}: {error}")))?.collect();
        let remote = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
        match remote {
            Some(address) if !allow_remote => {
                Err(UsageError::new(format!("expected a loopback target, found {text:?} ({address}); pass --allow-remote if you may load that machine")))
            }
            _ if addresses.is_empty() => Err(wrong()),
            _ => Ok(Self { host: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?, authority, addresses }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.authority)
    }
}

/// Where a request carries its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserKey {
    /// In a header of this name.
    Header(HeaderName),
    /// In a cookie of this name.
    Cookie(String),
}

impl FromStr for UserKey {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let wrong = || UsageError::new(format!("expected header:<name> or cookie:<name>, such as \"header:x-user-id\", found {text:?}"));
        match text.split_once(':').ok_or_else(wrong)? {
            ("header", name) => Ok(Self::Header(name.parse().map_err(|_| wrong())?)),
            // A cookie name is a token (RFC 6265, section 4.1.1), as a header name is; only the
            // latter is case-insensitive, so the name is kept as it was written.
            ("cookie", name) if HeaderName::from_str(name).is_ok() => Ok(Self::Cookie(name.to_owned())),
            _ => Err(wrong()),
        }
    }
}

/// How the intended starts are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponential gaps, as of many independent users.
    Poisson,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Where the requests go.
    pub target: Target,
    /// Path and query of every request.
    pub path: PathAndQuery,
    /// Where a request carries its user.
    pub key: UserKey,
    /// Response header that names the side.
    pub side_header: HeaderName,
    /// Requests per second.
    pub rate: f64,
    /// How the intended starts are spread.
    pub arrivals: Arrivals,
    /// Time during which requests start.
    pub duration: Duration,
    /// Size of the population.
    pub users: u32,
    /// Keep-alive connections, and so the most requests in flight.
    pub connections: usize,
    /// Seed of the users drawn and of the Poisson gaps.
    pub seed: u64,
    /// Longest time from the intended start to the end of the answer.
    pub timeout: Duration,
    /// Knows the right side of every user, if salt and percentage are known.
    pub oracle: Option<Oracle>,
}

impl RunPlan {
    /// Whether the plan can be run.
    pub fn check(&self) -> Result<(), UsageError> {
        UserDraws::new(self.users, self.seed)?;
        if self.connections == 0 {
            return Err(UsageError::new("expected at least 1 connection, found 0"));
        }
        let requests = self.rate * self.duration.as_secs_f64();
        if !(requests > 0.0 && requests <= MOST_REQUESTS) {
            return Err(UsageError::new(format!("expected rate times duration above 0 and at most {MOST_REQUESTS} requests (each is remembered), found {requests}")));
        }
        Ok(())
    }
}

/// The intended starts of a run, as time since its start.
#[derive(Debug, Clone)]
pub struct Schedule {
    rate: f64,
    duration: Duration,
    gaps: Gaps,
}

#[derive(Debug, Clone)]
enum Gaps {
    Equal { issued: u64 },
    Exponential { seconds: f64, random: Box<StdRng> },
}

impl Schedule {
    /// The starts from zero up to `duration`; the first of a constant schedule is at zero.
    pub fn new(arrivals: Arrivals, rate: f64, duration: Duration, seed: u64) -> Self {
        let gaps = match arrivals {
            Arrivals::Constant => Gaps::Equal { issued: 0 },
            Arrivals::Poisson => Gaps::Exponential { seconds: 0.0, random: Box::new(StdRng::seed_from_u64(seed ^ ARRIVAL_STREAM)) },
        };
        Self { rate, duration, gaps }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match &mut self.gaps {
            Gaps::Equal { issued } => {
                // From the count, not by adding gaps up: rounding must not drift.
                let seconds = *issued as f64 / self.rate;
                *issued += 1;
                seconds
            }
            Gaps::Exponential { seconds, random } => {
                // 1 - u is in (0, 1], whose logarithm is finite.
                *seconds -= (1.0 - random.random::<f64>()).ln() / self.rate;
                *seconds
            }
        };
        (seconds < self.duration.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
    }
}

/// Why a request got no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportFailure {
    /// No connection could be opened.
    Connect,
    /// The connection ended before the whole answer had arrived.
    Reset,
    /// The answer did not arrive in time.
    Timeout,
    /// Never sent: no connection became free in time.
    Waiting,
    /// What arrived was not HTTP/1.1.
    Protocol,
}

impl TransportFailure {
    /// Every kind, in the order of a request's life.
    pub const ALL: [Self; 5] = [Self::Waiting, Self::Connect, Self::Reset, Self::Timeout, Self::Protocol];

    /// The kind in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Waiting => "waiting",
            Self::Protocol => "protocol",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer arrived.
    Answered {
        /// Its status.
        status: StatusCode,
        /// The side it named, if it named one of the two.
        side: Option<Side>,
    },
    /// No whole answer arrived.
    Failed(TransportFailure),
}

impl Outcome {
    /// Whether the user was hurt: no answer, or a server error.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Answered { status, .. } => status.is_server_error(),
            Self::Failed(_) => true,
        }
    }
}

/// One request of a run; instants are nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Number of the user.
    pub user: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was to start.
    pub intended: u64,
    /// When the pacer handed it over.
    pub released: u64,
    /// When a connection took it; none if none did.
    pub sent: Option<u64>,
    /// When the answer was whole, or given up.
    pub finished: u64,
}

/// Everything that happened in a run.
#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// The requests, in no particular order.
    pub records: Vec<Record>,
    /// Time during which requests started: the planned duration, or less if it was stopped.
    pub paced: Duration,
    /// Whether it was stopped before the planned duration.
    pub stopped: bool,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that ended, in whatever way.
    pub finished: u64,
    /// Those of them that hurt their user.
    pub failed: u64,
}

/// Ends a run early; what was released until then is still finished.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// Releases no further request.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A run in progress. Dropping it abandons the run.
#[derive(Debug)]
pub struct Driver {
    progress: watch::Receiver<Progress>,
    stop: StopHandle,
    connections: JoinSet<Vec<Record>>,
    pacer: thread::JoinHandle<Paced>,
}

#[derive(Debug)]
struct Paced {
    time: Duration,
    stopped: bool,
}

impl Driver {
    /// Starts a run on the present runtime.
    pub fn start(plan: RunPlan) -> io::Result<Self> {
        let unusable = |error: UsageError| io::Error::new(io::ErrorKind::InvalidInput, error);
        plan.check().map_err(unusable)?;
        let users = UserDraws::new(plan.users, plan.seed).map_err(unusable)?;
        let schedule = Schedule::new(plan.arrivals, plan.rate, plan.duration, plan.seed);
        let (release, queue) = mpsc::unbounded_channel();
        let (report_progress, progress) = watch::channel(Progress::default());
        let stop = StopHandle::default();
        let start = Instant::now();
        let count = plan.connections;
        let duration = plan.duration;
        let shared = Arc::new(Shared { plan, start, queue: Mutex::new(queue), progress: report_progress });
        let mut connections = JoinSet::new();
        for _ in 0..count {
            connections.spawn(serve_queue(Arc::clone(&shared)));
        }
        let pacer = thread::Builder::new().name("pacer".to_owned()).spawn({
            let stop = stop.clone();
            move || pace(schedule, duration, users, start, &release, &stop)
        })?;
        Ok(Self { progress, stop, connections, pacer })
    }

    /// Follows the run.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends the run early.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Waits until every request has ended: at most the duration and one timeout.
    pub async fn finish(mut self) -> io::Result<Measurement> {
        let mut records = Vec::new();
        while let Some(joined) = self.connections.join_next().await {
            records.append(&mut joined.map_err(io::Error::other)?);
        }
        // The connections end only after the pacer has let go of the queue, so this does not block.
        let paced = self.pacer.join().map_err(|_| io::Error::other("the pacer ended by a panic"))?;
        Ok(Measurement { records, paced: paced.time, stopped: paced.stopped })
    }
}

struct Shared {
    plan: RunPlan,
    start: Instant,
    queue: Mutex<mpsc::UnboundedReceiver<Release>>,
    progress: watch::Sender<Progress>,
}

/// A request on its way from the pacer to a connection.
#[derive(Debug)]
struct Release {
    user: u32,
    intended: Duration,
    released: Duration,
}

fn pace(schedule: Schedule, duration: Duration, mut users: UserDraws, start: Instant, release: &mpsc::UnboundedSender<Release>, stop: &StopHandle) -> Paced {
    for intended in schedule {
        let released = loop {
            let now = start.elapsed();
            if stop.is_stopped() || release.is_closed() {
                return Paced { time: now, stopped: true };
            }
            if now >= intended {
                break now;
            }
            thread::sleep((intended - now).min(PACER_SLICE));
        };
        // A closed queue is seen on the next turn.
        let _ = release.send(Release { user: users.draw(), intended, released });
    }
    Paced { time: duration, stopped: false }
}

async fn serve_queue(shared: Arc<Shared>) -> Vec<Record> {
    let mut records = Vec::new();
    let mut connection = None;
    loop {
        let release = shared.queue.lock().await.recv().await;
        let Some(release) = release else {
            return records;
        };
        let record = shared.request(&mut connection, &release).await;
        records.push(record);
        shared.progress.send_modify(|progress| {
            progress.finished += 1;
            progress.failed += u64::from(record.outcome.is_failure());
        });
    }
}

impl Shared {
    /// Makes one request and says how it ended. The connection is left only if it can be used again.
    async fn request(&self, connection: &mut Option<Connection>, release: &Release) -> Record {
        let mut sent = None;
        let deadline = self.start + release.intended + self.plan.timeout;
        let outcome = if Instant::now() >= deadline {
            Outcome::Failed(TransportFailure::Waiting)
        } else {
            let exchange = self.exchange(connection.take(), release.user, &mut sent);
            match tokio::time::timeout_at(deadline.into(), exchange).await {
                Ok(Ok((outcome, open))) => {
                    *connection = Some(open);
                    outcome
                }
                Ok(Err(failure)) => Outcome::Failed(failure),
                Err(_) => Outcome::Failed(TransportFailure::Timeout),
            }
        };
        Record {
            user: release.user,
            outcome,
            intended: nanoseconds(release.intended),
            released: nanoseconds(release.released),
            sent: sent.map(nanoseconds),
            finished: nanoseconds(self.start.elapsed()),
        }
    }

    async fn exchange(&self, kept: Option<Connection>, user: u32, sent: &mut Option<Duration>) -> Result<(Outcome, Connection), TransportFailure> {
        let mut request = self.compose(user)?;
        if let Some(mut open) = kept
            && open.sender.ready().await.is_ok()
        {
            *sent = Some(self.start.elapsed());
            match open.sender.try_send_request(request).await {
                Ok(response) => return Ok((self.read(response).await?, open)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(classify(error.error())),
                },
            }
        }
        let mut open = Connection::open(&self.plan.target.addresses).await?;
        *sent = Some(self.start.elapsed());
        match open.sender.try_send_request(request).await {
            Ok(response) => Ok((self.read(response).await?, open)),
            Err(error) => Err(classify(error.error())),
        }
    }

    fn compose(&self, user: u32) -> Result<Request<Empty<Bytes>>, TransportFailure> {
        let user = user_name(user);
        let (name, value) = match &self.plan.key {
            UserKey::Header(name) => (name.clone(), user),
            UserKey::Cookie(name) => (COOKIE, format!("{name}={user}")),
        };
        Request::builder()
            .uri(Uri::from(self.plan.path.clone()))
            .header(HOST, &self.plan.target.host)
            .header(name, value)
            .body(Empty::new())
            .map_err(|_| TransportFailure::Protocol)
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Outcome, TransportFailure> {
        let status = response.status();
        let side = response.headers().get(&self.plan.side_header).and_then(|name| Side::from_name(name.as_bytes()));
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| classify(&error))?;
        }
        Ok(Outcome::Answered { status, side })
    }
}

/// A keep-alive connection and the task that moves its bytes.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    mover: AbortHandle,
}

impl Connection {
    async fn open(addresses: &[SocketAddr]) -> Result<Self, TransportFailure> {
        let stream = TcpStream::connect(addresses).await.map_err(|_| TransportFailure::Connect)?;
        // A refused option costs latency, which is then measured.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| classify(&error))?;
        // Errors of the connection reach the request that meets them.
        let mover = tokio::spawn(async move {
            let _ = connection.await;
        })
        .abort_handle();
        Ok(Self { sender, mover })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.mover.abort();
    }
}

fn classify(error: &hyper::Error) -> TransportFailure {
    let malformed = error.is_parse()
        || error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput));
    if malformed { TransportFailure::Protocol } else { TransportFailure::Reset }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, Record, Schedule, Target, UserKey};
    use std::time::Duration;

    #[test]
    fn a_record_is_as_small_as_the_module_says() {
        assert_eq!(size_of::<Record>(), 48);
    }

    #[test]
    fn a_constant_schedule_starts_at_zero_with_equal_gaps_and_ends_before_the_duration() {
        let starts: Vec<Duration> = Schedule::new(Arrivals::Constant, 4.0, Duration::from_secs(1), 1).collect();
        assert_eq!(starts, [0, 250, 500, 750].map(Duration::from_millis));
    }

    #[test]
    fn a_poisson_schedule_repeats_under_its_seed_and_keeps_the_rate() {
        let starts = |seed| Schedule::new(Arrivals::Poisson, 1_000.0, Duration::from_secs(10), seed).collect::<Vec<Duration>>();
        let one = starts(1);
        assert_eq!(one, starts(1));
        assert_ne!(one, starts(2));
        assert!(one.is_sorted());
        assert!(one.iter().all(|start| *start < Duration::from_secs(10)));
        // Ten standard deviations around 10000.
        assert!((9_000..=11_000).contains(&one.len()), "{}", one.len());
    }

    #[test]
    fn a_user_key_is_a_header_or_a_cookie() {
        assert_eq!("header:X-User-Id".parse(), Ok(UserKey::Header(http::HeaderName::from_static("x-user-id"))));
        assert_eq!("cookie:UID".parse(), Ok(UserKey::Cookie("UID".to_owned())));
        for text in ["", "x-user-id", "query:uid", "header:", "header:a b", "cookie:a;b"] {
            let message = text.parse::<UserKey>().expect_err(text).to_string();
            assert!(message.contains(&format!("found {text:?}")), "{message}");
        }
    }

    #[tokio::test]
    async fn loopback_targets_are_accepted_in_every_spelling() {
        for text in ["http://127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.9.9.9:1", "http://[::1]:8080", "http://[::ffff:127.0.0.1]:8080", "http://127.0.0.1"] {
            Target::resolve(text, false).await.expect(text);
        }
    }

    #[tokio::test]
    async fn a_remote_target_needs_to_be_allowed() {
        let message = Target::resolve("http://192.0.2.1:8080", false).await.expect_err("a remote address").to_string();
        assert!(message.contains("--allow-remote"), "{message}");
        Target::resolve("http://192.0.2.1:8080", true).await.expect("allowed");
    }

    #[tokio::test]
    async fn a_target_is_plain_http_without_a_path() {
        for text in ["127.0.0.1:8080", "https://127.0.0.1:8080", "http://127.0.0.1:8080/path", "http://127.0.0.1:8080/?q", "http://me@127.0.0.1:8080", "http://127.0.0.1:99999", ""]
        {
            let message = Target::resolve(text, true).await.expect_err(text).to_string();
            assert!(message.contains("such as http://127.0.0.1:8080"), "{message}");
        }
    }
}
