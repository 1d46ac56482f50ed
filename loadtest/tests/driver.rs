//! Tests of whole runs of the generator against servers in this process that behave well or badly.
//!
//! No test waits for the clock. The length of a run is given by its number of requests. A test that
//! has to intervene follows the progress of the run.

mod support;

use cutover_loadtest::backend::{Backend, BackendConfig, Dial};
use cutover_loadtest::driver::{Arrivals, Driver, Protocol, RunPlan, Target, Trust, UserKey};
use cutover_loadtest::report::Report;
use cutover_loadtest::units::Percent;
use cutover_loadtest::users::{Oracle, Side};
use http::Method;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{finish, plan, run, start_server, user_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

fn oracle(percent: &str) -> Oracle {
    Oracle::new("checkout", Percent::parse(percent).expect("a percentage"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_splits_by_the_hash_has_no_wrong_side() {
    let splitter = oracle("25");
    let address = start_server(true, move |request, _| splitter.side(&user_of(request))).await;
    let mut plan = plan(address).await;
    plan.oracle = Some(oracle("25"));
    let report = run(&plan).await;

    assert_eq!(report.requests.finished, 400);
    assert_eq!(report.requests.sent, 400);
    assert_eq!(report.statuses["2xx"], 400);
    assert_eq!(report.latency.count, 400);
    let check = report.hash.as_ref().expect("a check");
    assert_eq!((check.checked, check.wrong_answers), (400, 0));
    assert_eq!(report.stickiness.users_on_both_sides, 0);
    assert!(report.sides.new > 0 && report.sides.legacy > 0);
    assert_eq!(report.shares.requests.expected_in_interval, Some(true));
    assert_eq!(report.blast_radius, None);
    assert_eq!(report.violations, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sticky_backend_with_another_percentage_is_detected() {
    let splitter = oracle("60");
    let address = start_server(true, move |request, _| splitter.side(&user_of(request))).await;
    let mut plan = plan(address).await;
    plan.oracle = Some(oracle("25"));
    let report = run(&plan).await;

    assert_eq!(report.stickiness.users_on_both_sides, 0);
    let check = report.hash.as_ref().expect("a check");
    assert!(check.wrong_users > 0);
    assert!(check.examples.iter().all(|wrong| wrong.found == Side::New));
    assert_eq!(report.violations.len(), 1, "{:?}", report.violations);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_without_stickiness_shows_users_on_both_sides() {
    let address = start_server(true, |_, before| {
        if before % 2 == 0 {
            Side::Legacy
        } else {
            Side::New
        }
    })
    .await;
    let plan = plan(address).await;
    let report = run(&plan).await;

    let found = &report.stickiness;
    assert!(found.users_on_both_sides > 0);
    assert!(found.switches >= found.users_on_both_sides);
    assert_eq!(
        found.legacy_to_new + found.new_to_legacy + found.overlapping,
        found.switches
    );
    assert!(
        report.violations[0].contains("changed sides where no step moved them"),
        "{:?}",
        report.violations
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cutover_during_a_run_moves_users_only_from_legacy_to_new() {
    let address = start_server(true, |_, before| {
        if before < 200 {
            Side::Legacy
        } else {
            Side::New
        }
    })
    .await;
    let mut plan = plan(address).await;
    // One connection has one request in flight, so every direction is certain.
    plan.connections = 1;
    let report = run(&plan).await;

    let found = &report.stickiness;
    assert!(found.legacy_to_new > 0);
    assert_eq!((found.new_to_legacy, found.overlapping), (0, 0));
    assert_eq!(found.users_first_to_new, found.users_on_both_sides);
    assert_eq!((report.sides.legacy, report.sides.new), (200, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_set_to_500_during_a_run_shows_as_affected_users() {
    let backend = Backend::start(BackendConfig::named("new"))
        .await
        .expect("a backend");
    let mut plan = plan(backend.address()).await;
    // The duration is long enough that the test ends the run, not the clock.
    plan.duration = Duration::from_secs(600);
    let driver = Driver::start(plan.clone()).expect("a run");
    let mut progress = driver.progress();
    progress
        .wait_for(|progress| progress.finished >= 100)
        .await
        .expect("progress");
    let before = *progress.borrow();
    backend
        .dial()
        .set(Dial {
            status: Some(500),
            ..Dial::default()
        })
        .expect("a dial");
    progress
        .wait_for(|progress| progress.failed >= 50)
        .await
        .expect("failures");
    let report = Report::new(&plan, finish(driver.stop_handle(), driver).await);

    assert_eq!(before.failed, 0);
    assert!(report.requests.stopped_early);
    assert!(report.statuses["2xx"] >= 100);
    assert!(report.statuses["5xx"] >= 50);
    assert_eq!(report.failures.server_errors, report.statuses["5xx"]);
    assert!((1..=40).contains(&report.failures.users_hurt));
    assert!(report.blast_radius.is_some());
    assert!(
        report.violations[0].contains("requests failed (5xx"),
        "{:?}",
        report.violations
    );
    backend.stop().await;
}

async fn run_against_dial(dial: Dial, change: impl Fn(&mut RunPlan)) -> Report {
    let backend = Backend::start(BackendConfig::named("new"))
        .await
        .expect("a backend");
    backend.dial().set(dial).expect("a dial");
    let mut plan = plan(backend.address()).await;
    change(&mut plan);
    let report = run(&plan).await;
    backend.stop().await;
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_closed_without_an_answer_are_resets() {
    let dial = Dial {
        reset: true,
        ..Dial::default()
    };
    let report = run_against_dial(dial, |_| {}).await;
    assert_eq!(report.failures.transport["reset"], 400);
    assert_eq!(report.latency.count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_requests_and_those_waiting_behind_them_time_out() {
    let dial = Dial {
        hang: true,
        ..Dial::default()
    };
    let report = run_against_dial(dial, |plan| plan.timeout = Duration::from_secs(1)).await;
    let transport = &report.failures.transport;
    assert!(transport["timeout"] > 0);
    assert_eq!(transport["timeout"] + transport["waiting"], 400);
    assert_eq!(report.latency.count, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_a_listener_is_a_connect_failure() {
    // The socket is bound but does not listen, so no other test can take the port.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((Ipv4Addr::LOCALHOST, 0).into())
        .expect("a free port");
    let plan = plan(socket.local_addr().expect("an address")).await;
    let report = run(&plan).await;
    assert_eq!(report.failures.transport["connect"], 400);
    assert_eq!(report.requests.sent, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_http_is_a_protocol_failure() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"not http at all\r\n\r\n").await;
                // The connection is held until the client closes it, so that a reset does not
                // overtake the answer.
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    let report = run(&plan(address).await).await;
    assert_eq!(report.failures.transport["protocol"], 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_closes_after_every_answer_causes_no_failure() {
    let address = start_server(false, |_, _| Side::Legacy).await;
    let report = run(&plan(address).await).await;
    assert_eq!(report.sides.legacy, 400);
    assert_eq!(report.violations, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_can_carry_the_user_and_the_path_is_kept() {
    let address = start_server(true, |request, _| {
        let cookie = request.headers()["cookie"].to_str().expect("text");
        assert!(cookie.starts_with("uid=user-"), "{cookie}");
        assert!(!request.headers().contains_key("x-user-id"));
        assert_eq!(request.uri(), "/checkout?step=1");
        assert!(
            request.headers()["host"]
                .to_str()
                .is_ok_and(|host| host.starts_with("127.0.0.1:"))
        );
        Side::Legacy
    })
    .await;
    let mut plan = plan(address).await;
    plan.key = UserKey::Cookie("uid".to_owned());
    plan.arrivals = Arrivals::Poisson;
    let report = run(&plan).await;
    assert!(report.requests.finished > 0);
    assert_eq!(report.failures.requests, 0);
    assert_eq!(report.sides.legacy, report.requests.finished);
}

#[tokio::test]
async fn a_plan_with_too_many_requests_is_refused() {
    let mut plan = plan(([127, 0, 0, 1], 1).into()).await;
    plan.duration = Duration::from_secs(1_000_000);
    let message = Driver::start(plan).expect_err("too long").to_string();
    assert!(
        message.contains("expected rate times duration"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_shares_connections_and_counts_like_http1() {
    let report = run_against_dial(Dial::default(), |plan| {
        plan.protocol = Protocol::H2;
        plan.connections = 2;
        plan.streams = 8;
        plan.method = Method::POST;
        plan.body_bytes = 10_000;
        plan.requests_per_connection = 50;
    })
    .await;
    assert_eq!(report.requests.finished, 400);
    assert_eq!(report.sides.new, 400);
    assert_eq!(report.failures.requests, 0, "{:?}", report.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_statuses_and_resets_are_counted() {
    let broken = run_against_dial(
        Dial {
            status: Some(503),
            ..Dial::default()
        },
        |plan| plan.protocol = Protocol::H2,
    )
    .await;
    assert_eq!(
        (broken.failures.server_errors, broken.sides.new),
        (400, 400)
    );
    let reset = run_against_dial(
        Dial {
            reset: true,
            ..Dial::default()
        },
        |plan| plan.protocol = Protocol::H2,
    )
    .await;
    assert_eq!(reset.failures.transport["reset"], 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_connections_after_some_requests_causes_no_failure() {
    let connections = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    if stream
                        .write_all(
                            b"HTTP/1.1 200 OK\r\nx-served-by: new\r\ncontent-length: 0\r\n\r\n",
                        )
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    let mut plan = plan(address).await;
    plan.requests_per_connection = 10;
    plan.connections = 1;
    let report = run(&plan).await;
    assert_eq!(report.failures.requests, 0, "{:?}", report.failures);
    assert_eq!(connections.load(Ordering::SeqCst), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_target_is_trusted_only_through_its_authority() {
    let signed =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![signed.cert.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der())
                .expect("a key"),
        )
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    if stream
                        .write_all(
                            b"HTTP/1.1 200 OK\r\nx-served-by: new\r\ncontent-length: 0\r\n\r\n",
                        )
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, signed.cert.pem()).expect("written");
    let target = Target::resolve(&format!("https://{address}"), false)
        .await
        .expect("a target");
    for (trust, answered) in [(Trust::Authority(authority), true), (Trust::Anybody, true)] {
        let report = run(&RunPlan {
            target: target.clone(),
            trust,
            ..plan(address).await
        })
        .await;
        assert_eq!(report.sides.new == 400, answered, "{:?}", report.failures);
    }
    let other =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let stranger = folder.path().join("stranger.pem");
    std::fs::write(&stranger, other.cert.pem()).expect("written");
    let report = run(&RunPlan {
        target: target.clone(),
        trust: Trust::Authority(stranger),
        ..plan(address).await
    })
    .await;
    assert_eq!(report.failures.requests, 400);
    let message = Driver::start(RunPlan {
        target,
        ..plan(address).await
    })
    .expect_err("nobody is trusted")
    .to_string();
    assert!(message.contains("--ca FILE or --insecure"), "{message}");
}
