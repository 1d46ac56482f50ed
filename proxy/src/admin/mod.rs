//! The admin port. It has its own listener, thread and runtime, so neither a scrape nor a slow
//! caller
//! costs a request anything. The routes are in `routes`.

pub mod api;
pub mod auth;
pub mod error;
pub mod routes;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, watch};

use crate::admin::auth::Auth;
use crate::admin::error::ApiError;
use crate::shared::certificates::Certificates;
use crate::shared::connections::Connections;
use crate::shared::control_handle::ControlHandle;
use crate::shared::drain::DrainSignal;
use crate::shared::published::Published;
use crate::shared::readiness::Readiness;
use crate::shared::refusals::Refusals;
use crate::shared::reload_handle::ReloadHandle;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::traces::Traces;

/// The number of histories that are read at the same time. Each one takes memory and a thread.
pub const HISTORIES: usize = 2;
/// How long a history request waits for a permit.
const HISTORY_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that the admin port has access to.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The handle to the control loop.
    pub control: ControlHandle,
    /// The handle to the watched file.
    pub watch: ReloadHandle,
    /// The published configuration, for `explain`.
    pub published: Arc<Published>,
    /// The connections of clients.
    pub connections: Arc<Connections>,
    /// The number of refused requests.
    pub refusals: Arc<Refusals>,
    /// The certificates that clients are shown.
    pub certificates: Certificates,
    /// The drain signal, for the metrics about closed connections.
    pub drains: DrainSignal,
    /// The access log, for its count of dropped lines.
    pub access_log: AccessLog,
    /// The spans, for their counts.
    pub traces: Traces,
    /// Whether requests may be sent here.
    pub ready: Arc<Readiness>,
    /// The state directory, which contains the journal.
    pub state_directory: PathBuf,
    /// The permits for histories that are read at the same time.
    pub histories: Arc<Semaphore>,
    /// The check of who may do what.
    pub auth: Arc<Auth>,
}

/// Serves the admin port on its own thread until `stop` becomes true. While `closed` is true no
/// connection is accepted: a client waits for this process, or for its successor.
///
/// # Errors
/// Fails when the thread or its runtime cannot be started.
pub fn start(
    listener: TcpListener,
    admin: Admin,
    closed: watch::Receiver<bool>,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "the admin port cannot be served"),
                };
                let stopped = async move {
                    let _ = stop.wait_for(|stopped| *stopped).await;
                };
                tokio::select! {
                    served = axum::serve(Gated { listener, closed }, router(admin)) => {
                        if let Err(error) = served {
                            tracing::error!(%error, "the admin port is no longer served");
                        }
                    }
                    () = stopped => {}
                }
            });
        })
}

/// A listener that can stop accepting connections for a while.
struct Gated {
    listener: tokio::net::TcpListener,
    closed: watch::Receiver<bool>,
}

impl axum::serve::Listener for Gated {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // If the sender is gone, the process is ending.
            let _ = self.closed.wait_for(|closed| !*closed).await;
            tokio::select! {
                biased;
                _ = self.closed.wait_for(|closed| *closed) => {}
                accepted = axum::serve::Listener::accept(&mut self.listener) => return accepted,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Closes the connection after each answer once a stop has begun, because the next request may be
/// meant for another process.
async fn say_goodbye(
    State(admin): State<Admin>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let mut response = next.run(request).await;
    if admin.ready.has_fallen() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Forbids caches and browsers to store answers below `/api`, because these answers describe the
/// current state.
async fn forbid_storing(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let path = request.uri().path();
    let is_api = path == "/api" || path.starts_with("/api/");
    let mut response = next.run(request).await;
    if is_api {
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

fn router(admin: Admin) -> Router {
    routes::router()
        .fallback(async || ApiError::not_found("no such route; `GET /` lists them"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route does not take this method",
                "`GET /` lists the routes",
            )
        })
        .layer(axum::middleware::from_fn_with_state(
            admin.clone(),
            auth::check_origin,
        ))
        .layer(axum::middleware::from_fn(forbid_storing))
        .layer(axum::middleware::from_fn_with_state(
            admin.clone(),
            say_goodbye,
        ))
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Result<Response, ApiError> {
    let report = admin.control.report().await?;
    let text = crate::telemetry::metrics::render(
        &report,
        &admin.connections,
        &admin.refusals,
        &admin.certificates,
        &admin.drains,
        &admin.access_log,
        &admin.traces,
    )
    .map_err(|error| ApiError::internal(&error))?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response())
}
