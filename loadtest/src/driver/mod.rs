//! The open-loop generator: requests start when the schedule says, not when the target is ready.
//!
//! Real users do not wait for each other. A closed loop does: it stops sending while the target is
//! stalled and so hides the stall ("coordinated omission"). Here every request has an *intended*
//! start, and everything is measured from it, including the wait for a free connection and the
//! opening of one.
//!
//! Three instants of each request are kept in addition to the intended one: *released* (the pacer
//! handed it over), *sent* (a connection took it) and *finished*. Released minus intended is the
//! generator's own lateness. Sent minus intended adds the wait for a connection.
//!
//! A task takes requests from one queue in order and makes one at a time. With HTTP/1.1 each task
//! has its own connection. With HTTP/2 as many tasks as there are streams share one. One record is
//! kept for every request, because the order in which a user's requests were sent is known only
//! afterwards. A run is therefore limited to [`MOST_REQUESTS`].
//!
//! Deliberately absent: redirects, retries, and a warm-up that is left out of the numbers.

mod connection;
mod identity;
mod record;
mod schedule;
mod target;

pub use crate::driver::connection::{Connector, Protocol, Wire};
pub use crate::driver::identity::{TOKEN_KEY, UserKey};
pub use crate::driver::record::{Measurement, Outcome, Record, TransportFailure};
pub use crate::driver::schedule::{Arrivals, Schedule};
pub use crate::driver::target::{Target, Trust};

use crate::backend::SERVED_BY;
use crate::driver::connection::Line;
use crate::driver::schedule::{Paced, pace};
use crate::units::UsageError;
use crate::users::{Oracle, Side, UserDraws};
use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

/// The most requests that one run may make.
pub const MOST_REQUESTS: f64 = 20_000_000.0;
/// The largest request body, in bytes.
pub const MOST_BODY_BYTES: usize = 64 * 1024 * 1024;
/// The default number of concurrent requests on an HTTP/2 connection. Servers commonly allow this
/// number.
const STREAMS: usize = 32;
/// The most requests that may be in flight.
const MOST_IN_FLIGHT: usize = 100_000;

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// The target that receives the requests.
    pub target: Target,
    /// Which certificates to trust at the target.
    pub trust: Trust,
    /// The protocol of the requests.
    pub protocol: Protocol,
    /// The method of every request.
    pub method: Method,
    /// The path and query of every request.
    pub path: PathAndQuery,
    /// The size of the body of every request, in bytes.
    pub body_bytes: usize,
    /// Where a request carries its user.
    pub key: UserKey,
    /// The response header that names the side.
    pub side_header: HeaderName,
    /// The rate, in requests per second.
    pub rate: f64,
    /// The distribution of the intended starts.
    pub arrivals: Arrivals,
    /// The time during which requests start.
    pub duration: Duration,
    /// The size of the population.
    pub users: u32,
    /// The number of keep-alive connections. With HTTP/1.1 it is also the limit of requests in
    /// flight.
    pub connections: usize,
    /// The limit of concurrent requests on an HTTP/2 connection.
    pub streams: usize,
    /// The number of requests after which a connection is closed and replaced.
    pub requests_per_connection: u32,
    /// The seed of the users drawn and of the Poisson gaps.
    pub seed: u64,
    /// The longest time from the intended start to the end of the answer.
    pub timeout: Duration,
    /// The oracle that knows the right side of every user. `None` if salt and percentage are not
    /// known.
    pub oracle: Option<Oracle>,
}

impl RunPlan {
    /// Creates a plan of a thousand GET requests per second to this target. Callers change the
    /// fields they care about.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            trust: Trust::Nobody,
            protocol: Protocol::H1,
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            body_bytes: 0,
            key: UserKey::Header(HeaderName::from_static("x-user-id")),
            side_header: HeaderName::from_static(SERVED_BY),
            rate: 1_000.0,
            arrivals: Arrivals::Constant,
            duration: Duration::from_secs(1),
            users: 10_000,
            connections: 32,
            streams: STREAMS,
            requests_per_connection: u32::MAX,
            seed: 1,
            timeout: Duration::from_secs(10),
            oracle: None,
        }
    }

    /// Checks that the plan can be run.
    pub fn check(&self) -> Result<(), UsageError> {
        UserDraws::new(self.users, self.seed)?;
        if self.connections == 0 {
            return Err(UsageError::new("expected at least 1 connection, found 0"));
        }
        if self.streams == 0 || self.requests_per_connection == 0 {
            return Err(UsageError::new(
                "expected at least 1 stream and 1 request for each connection, found 0",
            ));
        }
        if self.in_flight() > MOST_IN_FLIGHT {
            return Err(UsageError::new(format!(
                "expected at most {MOST_IN_FLIGHT} requests in flight, found {}",
                self.in_flight()
            )));
        }
        if self.body_bytes > MOST_BODY_BYTES {
            return Err(UsageError::new(format!(
                "expected a body of at most {MOST_BODY_BYTES} bytes, found {}",
                self.body_bytes
            )));
        }
        let requests = self.rate * self.duration.as_secs_f64();
        if !(requests > 0.0 && requests <= MOST_REQUESTS) {
            return Err(UsageError::new(format!(
                "expected rate times duration above 0 and at most {MOST_REQUESTS} requests (each \
                 is remembered), found {requests}"
            )));
        }
        Ok(())
    }

    /// Returns the most requests that can be in flight.
    pub fn in_flight(&self) -> usize {
        match self.protocol {
            Protocol::H1 => self.connections,
            Protocol::H2 => self.connections.saturating_mul(self.streams),
        }
    }

    /// Returns what all requests have in common.
    fn template(&self) -> Result<Template, UsageError> {
        let wrong = || {
            UsageError::new(format!(
                "expected a path that can be asked for, found {:?}",
                self.path.as_str()
            ))
        };
        let (uri, host) = match self.protocol {
            Protocol::H1 => (Uri::from(self.path.clone()), Some(self.target.host.clone())),
            Protocol::H2 => {
                let uri = Uri::builder()
                    .scheme(self.target.scheme.clone())
                    .authority(self.target.authority.clone())
                    .path_and_query(self.path.clone())
                    .build();
                (uri.map_err(|_| wrong())?, None)
            }
        };
        Ok(Template {
            method: self.method.clone(),
            uri,
            host,
            body: Bytes::from(vec![b'x'; self.body_bytes]),
            key: self.key.clone(),
        })
    }
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of requests that ended, in whatever way.
    pub finished: u64,
    /// The number of finished requests that failed for their user.
    pub failed: u64,
    /// The number of finished requests that new answered.
    pub on_new: u64,
}

/// A handle that ends a run early. Requests released until then are still finished.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// Stops the release of further requests.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the run was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A run in progress. Dropping it abandons the run.
#[derive(Debug)]
pub struct Driver {
    start: Instant,
    progress: watch::Receiver<Progress>,
    stop: StopHandle,
    connections: JoinSet<Vec<Record>>,
    pacer: thread::JoinHandle<Paced>,
}

impl Driver {
    /// Starts a run on the current runtime.
    pub fn start(plan: RunPlan) -> io::Result<Self> {
        let unusable = |error: UsageError| io::Error::new(io::ErrorKind::InvalidInput, error);
        plan.check().map_err(unusable)?;
        let users = UserDraws::new(plan.users, plan.seed).map_err(unusable)?;
        let template = plan.template().map_err(unusable)?;
        let connector =
            Arc::new(Connector::new(&plan.target, plan.protocol, &plan.trust).map_err(unusable)?);
        let schedule = Schedule::new(plan.arrivals, plan.rate, plan.duration, plan.seed);
        let (release, queue) = mpsc::unbounded_channel();
        let (report_progress, progress) = watch::channel(Progress::default());
        let stop = StopHandle::default();
        let start = Instant::now();
        let tasks_of_line = plan.in_flight() / plan.connections;
        let shared = Arc::new(Shared {
            timeout: plan.timeout,
            template,
            start,
            queue: Mutex::new(queue),
            progress: report_progress,
        });
        let mut connections = JoinSet::new();
        for _ in 0..plan.connections {
            let line = Line::new(
                Arc::clone(&connector),
                plan.requests_per_connection,
                plan.side_header.clone(),
            );
            for _ in 0..tasks_of_line {
                connections.spawn(serve_queue(Arc::clone(&shared), line.clone()));
            }
        }
        let pacer = thread::Builder::new().name("pacer".to_owned()).spawn({
            let stop = stop.clone();
            move || pace(schedule, users, start, &release, &stop)
        })?;
        Ok(Self {
            start,
            progress,
            stop,
            connections,
            pacer,
        })
    }

    /// Returns the instant from which all times of the run count.
    pub fn epoch(&self) -> Instant {
        self.start
    }

    /// Returns a receiver for the progress of the run.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Returns a handle that ends the run early.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Waits until every request has ended. This takes at most the duration and one timeout.
    pub async fn finish(mut self) -> io::Result<Measurement> {
        let mut records = Vec::new();
        while let Some(joined) = self.connections.join_next().await {
            records.append(&mut joined.map_err(io::Error::other)?);
        }
        // The connections end only after the pacer has released the queue, so this does not block.
        let paced = self
            .pacer
            .join()
            .map_err(|_| io::Error::other("the pacer ended by a panic"))?;
        Ok(Measurement {
            records,
            paced: paced.time,
            stopped: paced.stopped,
        })
    }
}

struct Shared {
    timeout: Duration,
    template: Template,
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

async fn serve_queue(shared: Arc<Shared>, line: Line) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let release = shared.queue.lock().await.recv().await;
        let Some(release) = release else {
            return records;
        };
        let record = shared.request(&line, &release).await;
        records.push(record);
        shared.progress.send_modify(|progress| {
            progress.finished += 1;
            progress.failed += u64::from(record.outcome.is_failure());
            progress.on_new += u64::from(record.outcome.side() == Some(Side::New));
        });
    }
}

impl Shared {
    /// Makes one request and returns how it ended.
    async fn request(&self, line: &Line, release: &Release) -> Record {
        let mut sent = None;
        let deadline = self.start + release.intended + self.timeout;
        let outcome = if Instant::now() >= deadline {
            Outcome::Failed(TransportFailure::Waiting)
        } else {
            let exchange = async {
                let request = self
                    .template
                    .request(release.user)
                    .ok_or(TransportFailure::Protocol)?;
                line.exchange(request, self.start, &mut sent).await
            };
            match tokio::time::timeout_at(deadline.into(), exchange).await {
                Ok(Ok(outcome)) => outcome,
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
}

/// What all requests have in common.
#[derive(Debug)]
struct Template {
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    body: Bytes,
    key: UserKey,
}

impl Template {
    fn request(&self, user: u32) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        if let Some(host) = &self.host {
            request.headers_mut().insert(HOST, host.clone());
        }
        let (name, value) = self.key.header(user)?;
        request.headers_mut().insert(name, value);
        Some(request)
    }
}

/// Converts a duration to nanoseconds, as records store it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
