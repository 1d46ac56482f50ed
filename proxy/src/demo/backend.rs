//! A sample backend that names itself, and breaks on request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

/// A sample backend on a free loopback port. It runs on the runtime that started it.
#[derive(Debug)]
pub struct SampleBackend {
    /// The address on which it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    name: &'static str,
    broken: AtomicBool,
    requests: AtomicU64,
}

impl SampleBackend {
    /// Starts a backend that names itself `name`.
    ///
    /// # Errors
    /// Fails when no port can be bound.
    pub async fn start(name: &'static str) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            name,
            broken: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    // A connection that ends in an error needs no handling here, because the client
                    // sees the error.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self {
            address,
            state,
            task,
        })
    }

    /// Sets whether every answer is a 500 from now on.
    pub fn set_broken(&self, broken: bool) {
        self.state.broken.store(broken, Ordering::Release);
    }

    /// Returns the number of answered requests.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Acquire)
    }
}

impl Drop for SampleBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    // The body is read to its end, so that the connection can be kept alive.
    let received = body.collect().await.map_or(0, |body| body.to_bytes().len());
    state.requests.fetch_add(1, Ordering::AcqRel);
    let broken = state.broken.load(Ordering::Acquire);
    let header = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let body = serde_json::json!({
        "backend": state.name,
        "path": head.uri.path(),
        "user": header("x-user-id"),
        "bucket": header("x-cutover-bucket"),
        "reason": header("x-cutover-reason"),
        "received": received,
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = if broken {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    response
        .headers_mut()
        .insert("x-served-by", http::HeaderValue::from_static(state.name));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    Ok(response)
}
