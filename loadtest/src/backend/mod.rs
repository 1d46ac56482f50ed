//! A sample backend that answers any request, names itself, and can be made to misbehave while it
//! runs.
//!
//! A cutover is judged by what happens when the new system fails, so the backend carries a *fault
//! dial*. The dial is set through the backend's own control path (`PUT /__dial`), through a
//! separate control port, or, in-process, through [`DialHandle`]. Faults strike after the request
//! was read in full, as the faults of an application do. A reset is a real one: the socket is
//! closed with a zero linger time, and the client sees `RST`. A backend that refuses no longer has
//! a listener. Its dial is then out of reach on its own port, so such a dial needs a control port
//! or a handle.
//!
//! Two layers of faults are kept apart. The settings that the backend was *started* with (latency,
//! error rate, limits) stay for its lifetime. The dial is applied on top, and `{}` removes only the
//! dial.
//!
//! The backend speaks HTTP/1.1 and HTTP/2 by prior knowledge, and echoes on WebSockets.
//! Deliberately absent: TLS, and any protection of the control path. It is a stand-in for tests and
//! demonstrations, never a service.

mod answer;
mod dial;
mod stats;
mod websocket;

pub use crate::backend::answer::{DIAL_PATH, SERVED_BY, STATS_PATH};
pub use crate::backend::dial::{Dial, DialHandle};
pub use crate::backend::stats::Stats;

use crate::backend::answer::{Answer, answer, control};
use crate::backend::stats::Counters;
use crate::units::Percent;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// The pause after a failed accept (out of file descriptors) or a failed bind, so that the loop
/// does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The number of connections that may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// The first bytes of an HTTP/2 connection. No HTTP/1.1 method starts with them.
const PREFACE: &[u8] = b"PRI";

/// The configuration that a backend is started with.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// The address to listen on. Port 0 picks a free port.
    pub listen: SocketAddr,
    /// A separate address that serves only the control paths. It stays reachable while connections
    /// are refused.
    pub control: Option<SocketAddr>,
    /// The name in the `x-served-by` header and in the body.
    pub name: String,
    /// The time that every answer takes.
    pub latency: Duration,
    /// The processor time that every answer takes.
    pub work: Duration,
    /// The percentage of answers with status 500.
    pub error_rate: Percent,
    /// The size of the body in bytes. The JSON is padded with spaces up to this size and is never
    /// truncated.
    pub body_bytes: usize,
    /// The number of requests that are worked on at once. Further requests wait.
    pub concurrency: Option<usize>,
    /// The number of connections that are served at once. Further connections are closed.
    pub connections: Option<usize>,
    /// The seed of the random draws that decide which requests a fault strikes.
    pub seed: u64,
}

impl BackendConfig {
    /// Returns the configuration of a healthy backend with this name on a free loopback port.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            control: None,
            name: name.into(),
            latency: Duration::ZERO,
            work: Duration::ZERO,
            error_rate: Percent::ZERO,
            body_bytes: 0,
            concurrency: None,
            connections: None,
            seed: 1,
        }
    }
}

/// A running backend. It stops when it is dropped.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    control: Option<SocketAddr>,
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Binds the addresses and starts serving.
    pub async fn start(config: BackendConfig) -> io::Result<Self> {
        let served_by = HeaderValue::from_str(&config.name).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "expected a name that can stand in a header, found {:?}",
                    config.name
                ),
            )
        })?;
        let listener = reserve(config.listen)?.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let control = match config.control {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let control_address = control.as_ref().map(TcpListener::local_addr).transpose()?;
        let shared = Arc::new(Shared {
            random: Mutex::new(StdRng::seed_from_u64(config.seed)),
            permits: config.concurrency.map(Semaphore::new),
            has_control: control.is_some(),
            config,
            served_by,
            dial: DialHandle::default(),
            counters: Counters::default(),
            closing: watch::Sender::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve_until(
            address,
            listener,
            control,
            Arc::clone(&shared),
            stopped,
        ));
        Ok(Self {
            address,
            control: control_address,
            shared,
            stop,
            task,
        })
    }

    /// Returns the address that the backend listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the control port, if the backend has one.
    pub fn control(&self) -> Option<SocketAddr> {
        self.control
    }

    /// Returns a handle to the fault dial.
    pub fn dial(&self) -> DialHandle {
        self.shared.dial.clone()
    }

    /// Returns the counters so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Closes the listener and every connection, and returns once they are closed.
    pub async fn stop(self) {
        drop(self.stop);
        // The task fails only by panicking, and a panic has been reported by then.
        let _ = self.task.await;
    }
}

#[derive(Debug)]
struct Shared {
    config: BackendConfig,
    served_by: HeaderValue,
    has_control: bool,
    dial: DialHandle,
    counters: Counters,
    random: Mutex<StdRng>,
    permits: Option<Semaphore>,
    /// A counter that changes when connections are to be closed.
    closing: watch::Sender<u64>,
}

/// Returns a socket that is bound to the address but does not listen, so connections to it are
/// refused.
fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn serve_until(
    address: SocketAddr,
    listener: TcpListener,
    control: Option<TcpListener>,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) {
    let controlled = async {
        match control {
            Some(listener) => serve_control(listener, &shared).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // A message and a dropped handle both mean stop.
        _ = stopped => {}
        () = serve_requests(address, listener, &shared) => {}
        () = controlled => {}
    }
    shared.closing.send_modify(|closing| *closing += 1);
}

/// Serves connections, and closes the listener while the dial requires it. Dropping the future
/// closes everything.
async fn serve_requests(address: SocketAddr, mut listener: TcpListener, shared: &Arc<Shared>) {
    let mut refuse = shared.dial.refusals();
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = told(&mut refuse, true) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if shared.config.connections.is_some_and(|most| connections.len() >= most) => {
                        shared.counters.turned_away();
                        drop(stream);
                    }
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, Arc::clone(shared)));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        shared.closing.send_modify(|closing| *closing += 1);
        connections.shutdown().await;
        // The address stays bound so that no other process takes it in the meantime. Connections
        // are still refused.
        let mut reserved = reserve(address);
        shared.dial.refused(true);
        told(&mut refuse, false).await;
        listener = loop {
            match reserved.and_then(|socket| socket.listen(BACKLOG)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
            reserved = reserve(address);
        };
        shared.dial.refused(false);
    }
}

/// Waits until connections are to be refused, or are to be accepted again.
async fn told(refuse: &mut watch::Receiver<bool>, wanted: bool) {
    // The sender is owned by the handle that every caller holds. The value is dropped at once
    // because it holds a lock.
    let _ = refuse.wait_for(|refuse| *refuse == wanted).await.is_ok();
}

async fn serve_control(listener: TcpListener, shared: &Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let shared = Arc::clone(shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, answer::Unanswered>(control(&shared, request).await) }
        });
        connections.spawn(async move {
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Low latency is optional here: a socket that refuses the option still serves.
    let _ = stream.set_nodelay(true);
    let _open = shared.counters.open();
    let service = service_fn({
        let shared = Arc::clone(&shared);
        move |request: Request<Incoming>| {
            let shared = Arc::clone(&shared);
            // The future is boxed because hyper returns the socket only from connections whose
            // future can move.
            Box::pin(async move { answer(&shared, request).await })
                as Pin<Box<dyn Future<Output = Answer> + Send>>
        }
    });
    if speaks_http2(&stream).await {
        // Errors on a connection are counted by the client.
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
        return;
    }
    let mut connection = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = (&mut connection).await
        && error.is_user()
        && let Some(parts) = connection.into_parts()
    {
        // Without the option the close is an orderly one. The client still gets no answer.
        let _ = parts.io.into_inner().set_zero_linger();
    }
}

/// Peeks at the first bytes of a connection to tell whether it speaks HTTP/2.
async fn speaks_http2(stream: &TcpStream) -> bool {
    let mut first = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut first).await {
            Ok(seen) if seen == PREFACE.len() => return first == PREFACE,
            Ok(seen) if seen > 0 && PREFACE.starts_with(&first[..seen]) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(_) | Err(_) => return false,
        }
    }
}

/// Locks a mutex even if it is poisoned. A panic elsewhere leaves none of these values
/// half-written, so the value is still valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
