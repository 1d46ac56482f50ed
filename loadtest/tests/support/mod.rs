//! The helpers for tests of whole runs: a server whose sides a test decides, and a plan for it.

use cutover_loadtest::driver::{Driver, Measurement, RunPlan, StopHandle, Target};
use cutover_loadtest::report::Report;
use cutover_loadtest::users::Side;
use http::uri::PathAndQuery;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// Starts a server that runs until the runtime of the test ends. `choose` receives each request and
/// the number of requests before it.
pub async fn start_server(
    keep_alive: bool,
    choose: impl Fn(&Request<Incoming>, u64) -> Side + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let choose = Arc::new(choose);
    let count = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let choose = Arc::clone(&choose);
            let count = Arc::clone(&count);
            let service = service_fn(move |request| {
                let side = choose(&request, count.fetch_add(1, Ordering::SeqCst));
                let response = Response::builder()
                    .header("x-served-by", side.name())
                    .body(Empty::<Bytes>::new())
                    .expect("a response");
                std::future::ready(Ok::<_, Infallible>(response))
            });
            tokio::spawn(
                http1::Builder::new()
                    .keep_alive(keep_alive)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// Returns the user that a request names in `x-user-id`.
pub fn user_of(request: &Request<Incoming>) -> String {
    request
        .headers()
        .get("x-user-id")
        .and_then(|user| user.to_str().ok())
        .expect("a user")
        .to_owned()
}

/// Returns a plan of 400 requests of 40 users over 4 connections, with a timeout that no test
/// reaches.
#[allow(dead_code)] // Each test binary compiles this module; not all of them use all of it.
pub async fn plan(address: SocketAddr) -> RunPlan {
    RunPlan {
        path: PathAndQuery::from_static("/checkout?step=1"),
        rate: 2_000.0,
        duration: Duration::from_millis(200),
        users: 40,
        connections: 4,
        seed: 7,
        timeout: Duration::from_secs(60),
        ..RunPlan::to(
            Target::resolve(&format!("http://{address}"), false)
                .await
                .expect("a loopback target"),
        )
    }
}

/// Runs a plan to its end.
#[allow(dead_code)] // As above.
pub async fn run(plan: &RunPlan) -> Report {
    let driver = Driver::start(plan.clone()).expect("a run");
    Report::new(plan, driver.finish().await.expect("a measurement"))
}

/// Stops a run and waits for its end.
#[allow(dead_code)] // Each test binary compiles this module; not all of them stop a run.
pub async fn finish(stop: StopHandle, driver: Driver) -> Measurement {
    stop.stop();
    driver.finish().await.expect("a measurement")
}
