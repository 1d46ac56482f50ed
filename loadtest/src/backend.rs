//! Sample backend: answers anything, says who it is, and can be made to misbehave while it runs.
//!
//! A cutover is judged by what happens when the new system fails, so the backend carries a *fault
//! dial* that is turned over its own control path (`PUT /__dial`) or, in-process, through
//! [`DialHandle`]. Faults strike after the request was read in full, as those of an application do.
//! A reset is a real one (the socket is closed with a zero linger time, the client sees `RST`).
//!
//! Two layers of trouble are kept apart: what the backend was *started* with (latency, error rate)
//! stays for its lifetime; the dial comes on top, and `{}` takes only the dial away.
//!
//! Deliberately absent: TLS, HTTP/2, trickled bodies, and any protection of the control path. It is
//! a stand-in for tests and demonstrations, never a service.

use crate::units::{Percent, UsageError};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// Path that shows (`GET`) and turns (`PUT`) the dial.
pub const DIAL_PATH: &str = "/__dial";
/// Path that shows what was counted.
pub const STATS_PATH: &str = "/__stats";
/// Header that names the backend in every answer.
pub const SERVED_BY: &str = "x-served-by";

/// Longest latency the dial accepts, in milliseconds: ten minutes.
const MOST_LATENCY_MS: u64 = 600_000;
const MOST_DIAL_BYTES: usize = 64 * 1024;
/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a backend is started with.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Name in the `x-served-by` header and in the body.
    pub name: String,
    /// Time every answer takes.
    pub latency: Duration,
    /// Share of answers that are 500.
    pub error_rate: Percent,
    /// Size of the body. The JSON is followed by spaces up to this size; it is never cut.
    pub body_bytes: usize,
    /// Seed of the draws that decide which requests a share strikes.
    pub seed: u64,
}

impl BackendConfig {
    /// A healthy backend of this name on a free loopback port.
    pub fn named(name: impl Into<String>) -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), name: name.into(), latency: Duration::ZERO, error_rate: Percent::ZERO, body_bytes: 0, seed: 1 }
    }
}

/// A setting of the fault dial. The default, `{}`, is healthy.
///
/// At most one of `status`, `hang` and `reset`; `latency_ms` goes with `status` and `reset`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// Answer with this status, 200 to 599.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Wait this many milliseconds before anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Never answer, and keep the connection open.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hang: bool,
    /// Close the socket without answering.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reset: bool,
    /// Share of requests that the fault strikes, 0.0 to 1.0; all of them when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

// The shape is serde's: skip_serializing_if passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

impl Dial {
    /// Reads and checks a dial written as JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, UsageError> {
        let dial: Self = serde_json::from_slice(json).map_err(|error| {
            UsageError::new(format!("expected a dial such as {{\"status\":500,\"share\":0.5}}, {{\"latency_ms\":50}}, {{\"hang\":true}}, {{\"reset\":true}} or {{}}: {error}"))
        })?;
        dial.check()?;
        Ok(dial)
    }

    /// Whether the combination of faults means something.
    pub fn check(&self) -> Result<(), UsageError> {
        if let Some(status) = self.status
            && !(200..=599).contains(&status)
        {
            return Err(UsageError::new(format!("expected a status from 200 to 599, found {status}")));
        }
        if let Some(latency_ms) = self.latency_ms
            && latency_ms > MOST_LATENCY_MS
        {
            return Err(UsageError::new(format!("expected latency_ms of at most {MOST_LATENCY_MS}, found {latency_ms}")));
        }
        let endings: Vec<&str> =
            [(self.status.is_some(), "status"), (self.hang, "hang"), (self.reset, "reset")].into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        if endings.len() > 1 {
            return Err(UsageError::new(format!("expected at most one of status, hang and reset, found {}", endings.join(" and "))));
        }
        if self.hang && self.latency_ms.is_some() {
            return Err(UsageError::new("expected hang alone, found latency_ms beside it"));
        }
        if let Some(share) = self.share {
            if !(0.0..=1.0).contains(&share) {
                return Err(UsageError::new(format!("expected a share from 0.0 to 1.0, found {share}")));
            }
            if endings.is_empty() && self.latency_ms.is_none() {
                return Err(UsageError::new("expected a fault beside share (status, latency_ms, hang or reset), found none"));
            }
        }
        Ok(())
    }
}

/// Turns the dial of a running backend. Clones turn the same dial.
#[derive(Debug, Clone, Default)]
pub struct DialHandle(Arc<Mutex<Dial>>);

impl DialHandle {
    /// Turns the dial; requests that arrive from now on meet it. A wrong dial changes nothing.
    pub fn set(&self, dial: Dial) -> Result<(), UsageError> {
        dial.check()?;
        *lock(&self.0) = dial;
        Ok(())
    }

    /// The present setting.
    pub fn get(&self) -> Dial {
        lock(&self.0).clone()
    }
}

/// What a backend counted since its start. Requests on the control paths do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests read in full.
    pub requests: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests left without an answer on an open connection.
    pub hung: u64,
    /// Requests whose connection was closed instead of an answer.
    pub reset: u64,
}

/// A running backend. It stops when it is dropped.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Binds and serves.
    pub async fn start(config: BackendConfig) -> io::Result<Self> {
        let served_by = HeaderValue::from_str(&config.name)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("expected a name that can stand in a header, found {:?}", config.name)))?;
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { random: Mutex::new(StdRng::seed_from_u64(config.seed)), config, served_by, dial: DialHandle::default(), stats: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, Arc::clone(&shared), stopped));
        Ok(Self { address, shared, stop, task })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The fault dial.
    pub fn dial(&self) -> DialHandle {
        self.shared.dial.clone()
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        lock(&self.shared.stats).clone()
    }

    /// Closes the listener and every connection, and returns when they are closed.
    pub async fn stop(self) {
        drop(self.stop);
        // The task only fails by panicking, which has been reported by then.
        let _ = self.task.await;
    }
}

#[derive(Debug)]
struct Shared {
    config: BackendConfig,
    served_by: HeaderValue,
    dial: DialHandle,
    stats: Mutex<Stats>,
    random: Mutex<StdRng>,
}

/// How a request ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Answer(StatusCode),
    Hang,
    Reset,
}

impl Shared {
    /// Draws what happens to the next request: the time it takes and how it ends.
    fn draw(&self) -> (Duration, Ending) {
        let dial = self.dial.get();
        let (struck, broken) = {
            let mut random = lock(&self.random);
            (random.random::<f64>() < dial.share.unwrap_or(1.0), random.random::<f64>() < self.config.error_rate.as_share())
        };
        let mut latency = self.config.latency;
        let mut ending = Ending::Answer(if broken { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK });
        if struck {
            latency += Duration::from_millis(dial.latency_ms.unwrap_or(0));
            let status = dial.status.and_then(|status| StatusCode::from_u16(status).ok());
            if dial.hang {
                ending = Ending::Hang;
            } else if dial.reset {
                ending = Ending::Reset;
            } else if let Some(status) = status {
                ending = Ending::Answer(status);
            }
        }
        (latency, ending)
    }

    fn response(&self, status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(SERVED_BY, self.served_by.clone());
        response
    }

    fn json(&self, status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
        match serde_json::to_vec(value) {
            Ok(body) => self.response(status, body),
            Err(_) => self.response(StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
        }
    }
}

/// The reason a connection ends without an answer.
#[derive(Debug)]
struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("request left without an answer")
    }
}

impl std::error::Error for Unanswered {}

type Answer = Result<Response<Full<Bytes>>, Unanswered>;

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Both a message and a dropped handle mean stop.
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&shared)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Latency is a nicety here: a socket that refuses the option still serves.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        // Boxed because hyper hands the socket back only from connections whose future can move.
        Box::pin(async move { answer(&shared, request).await }) as Pin<Box<dyn Future<Output = Answer> + Send>>
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = (&mut connection).await
        && error.is_user()
    {
        let stream = connection.into_parts().io.into_inner();
        // Without the option the close is an orderly one; the client still gets no answer.
        let _ = stream.set_zero_linger();
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Answer {
    match request.uri().path() {
        DIAL_PATH => return Ok(dial(shared, request).await),
        STATS_PATH => return Ok(stats(shared, &request)),
        _ => {}
    }
    let (parts, body) = request.into_parts();
    drain(body).await?;
    lock(&shared.stats).requests += 1;

    let (latency, ending) = shared.draw();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let status = match ending {
        Ending::Answer(status) => status,
        Ending::Hang => {
            lock(&shared.stats).hung += 1;
            std::future::pending().await
        }
        Ending::Reset => {
            lock(&shared.stats).reset += 1;
            return Err(Unanswered);
        }
    };
    *lock(&shared.stats).statuses.entry(status.as_u16()).or_default() += 1;

    #[derive(Serialize)]
    struct Said<'request> {
        backend: &'request str,
        path: &'request str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<std::borrow::Cow<'request, str>>,
    }
    let said = Said {
        backend: &shared.config.name,
        path: parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        user: parts.headers.get("x-user-id").map(|user| String::from_utf8_lossy(user.as_bytes())),
    };
    let mut body = serde_json::to_vec(&said).unwrap_or_default();
    if body.len() < shared.config.body_bytes {
        body.resize(shared.config.body_bytes, b' ');
    }
    Ok(shared.response(status, body))
}

/// Reads a body to its end without keeping it.
async fn drain(mut body: Incoming) -> Result<(), Unanswered> {
    while !body.is_end_stream() {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Err(Unanswered),
            None => break,
        }
    }
    Ok(())
}

async fn dial(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() == Method::GET {
        return shared.json(StatusCode::OK, &shared.dial.get());
    }
    if request.method() != Method::PUT {
        return method_not_allowed(shared, "GET, PUT");
    }
    let turned = match Limited::new(request.into_body(), MOST_DIAL_BYTES).collect().await {
        Ok(body) => Dial::from_json(&body.to_bytes()).and_then(|dial| shared.dial.set(dial.clone())),
        Err(error) => Err(UsageError::new(format!("expected a body of at most {MOST_DIAL_BYTES} bytes: {error}"))),
    };
    match turned {
        Ok(()) => shared.json(StatusCode::OK, &shared.dial.get()),
        Err(error) => refusal(shared, StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn stats(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return method_not_allowed(shared, "GET");
    }
    let stats = lock(&shared.stats).clone();
    shared.json(StatusCode::OK, &stats)
}

fn refusal(shared: &Shared, status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    shared.json(status, &serde_json::json!({ "error": message }))
}

fn method_not_allowed(shared: &Shared, allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = refusal(shared, StatusCode::METHOD_NOT_ALLOWED, &format!("expected one of the methods {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A panic elsewhere leaves none of these values half-written, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Dial, DialHandle};

    #[test]
    fn every_documented_dial_is_read_and_shown_as_written() {
        for json in [
            r#"{"status":500,"share":1.0}"#,
            r#"{"status":503,"latency_ms":50}"#,
            r#"{"latency_ms":50}"#,
            r#"{"latency_ms":50,"share":0.1}"#,
            r#"{"hang":true}"#,
            r#"{"reset":true}"#,
            "{}",
        ] {
            let dial = Dial::from_json(json.as_bytes()).expect(json);
            assert_eq!(serde_json::to_string(&dial).expect("json"), json);
        }
    }

    #[test]
    fn a_wrong_dial_is_refused_with_what_was_expected() {
        for (json, expected) in [
            ("", "expected a dial such as"),
            ("[1]", "expected a dial such as"),
            (r#"{"statsu":500}"#, "unknown field `statsu`"),
            (r#"{"status":"500"}"#, "invalid type"),
            (r#"{"status":99}"#, "expected a status from 200 to 599, found 99"),
            (r#"{"latency_ms":600001}"#, "at most 600000, found 600001"),
            (r#"{"latency_ms":-1}"#, "invalid value"),
            (r#"{"status":500,"share":1.5}"#, "from 0.0 to 1.0, found 1.5"),
            (r#"{"share":0.5}"#, "expected a fault beside share"),
            (r#"{"hang":true,"reset":true}"#, "found hang and reset"),
            (r#"{"hang":true,"latency_ms":1}"#, "expected hang alone"),
        ] {
            let message = Dial::from_json(json.as_bytes()).expect_err(json).to_string();
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn a_wrong_dial_leaves_the_dial_as_it_was() {
        let handle = DialHandle::default();
        let good = Dial { status: Some(503), ..Dial::default() };
        handle.set(good.clone()).expect("a good dial");
        let wrong = Dial { status: Some(1), ..Dial::default() };
        assert!(handle.set(wrong).is_err());
        assert_eq!(handle.get(), good);
    }
}
