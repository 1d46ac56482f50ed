//! Tests of the sample backend from a client's point of view, on raw sockets so that the bytes are
//! beyond doubt.

use cutover_loadtest::backend::{Backend, BackendConfig, Dial};
use cutover_loadtest::units::Percent;
use std::io::ErrorKind;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start(change: impl Fn(&mut BackendConfig)) -> Backend {
    let mut config = BackendConfig::named("new");
    change(&mut config);
    Backend::start(config).await.expect("a backend")
}

/// Sends one request on a new connection and reads until the end of the connection.
async fn exchange(
    address: SocketAddr,
    head: &str,
    body: &str,
) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "{head} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-user-id: \
         user-7\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

async fn ask(backend: &Backend, head: &str, body: &str) -> (String, String) {
    exchange(backend.address(), head, body)
        .await
        .expect("an answer")
}

#[tokio::test]
async fn every_answer_names_the_backend_the_path_and_the_user() {
    let backend = start(|_| {}).await;
    for head in ["GET /a?b=c", "POST /a?b=c", "DELETE /a?b=c"] {
        let (head, body) = ask(&backend, head, "some body").await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains("x-served-by: new"), "{head}");
        assert_eq!(body, r#"{"backend":"new","path":"/a?b=c","user":"user-7"}"#);
    }
    let stats = backend.stats();
    assert_eq!((stats.requests, stats.statuses[&200]), (3, 3));
    backend.stop().await;
}

#[tokio::test]
async fn the_body_is_padded_to_the_requested_size_and_stays_json() {
    let backend = start(|config| config.body_bytes = 1_000).await;
    let (_, body) = ask(&backend, "GET /", "").await;
    assert_eq!(body.len(), 1_000);
    let value: serde_json::Value = serde_json::from_str(&body).expect("json");
    assert_eq!(value["backend"], "new");
    backend.stop().await;
}

#[tokio::test]
async fn a_full_error_rate_fails_everything_despite_a_healthy_dial() {
    let backend =
        start(|config| config.error_rate = Percent::parse("100%").expect("percent")).await;
    let (head, _) = ask(&backend, "GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 500"), "{head}");
    assert!(head.contains("x-served-by: new"), "{head}");
    backend.stop().await;
}

#[tokio::test]
async fn the_dial_is_set_shown_and_reset_through_its_control_path() {
    let backend = start(|_| {}).await;
    let dial = r#"{"status":503,"share":1.0}"#;
    let (head, shown) = ask(&backend, "PUT /__dial", dial).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(shown, dial);
    assert_eq!(ask(&backend, "GET /__dial", "").await.1, dial);
    assert!(
        ask(&backend, "GET /", "")
            .await
            .0
            .starts_with("HTTP/1.1 503")
    );

    ask(&backend, "PUT /__dial", "{}").await;
    assert!(
        ask(&backend, "GET /", "")
            .await
            .0
            .starts_with("HTTP/1.1 200")
    );
    let stats: serde_json::Value =
        serde_json::from_str(&ask(&backend, "GET /__stats", "").await.1).expect("json");
    assert_eq!(stats["statuses"], serde_json::json!({"200": 1, "503": 1}));
    assert_eq!(
        (&stats["requests"], &stats["hung"], &stats["reset"]),
        (&2.into(), &0.into(), &0.into())
    );
    backend.stop().await;
}

#[tokio::test]
async fn an_invalid_dial_is_a_400_with_a_reason_and_changes_nothing() {
    let backend = start(|_| {}).await;
    ask(&backend, "PUT /__dial", r#"{"latency_ms":1}"#).await;
    let (head, body) = ask(&backend, "PUT /__dial", r#"{"status":9}"#).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert_eq!(
        body,
        r#"{"error":"expected a status from 200 to 599, found 9"}"#
    );
    let (head, _) = ask(&backend, "PUT /__dial", &" ".repeat(100_000)).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert_eq!(
        ask(&backend, "GET /__dial", "").await.1,
        r#"{"latency_ms":1}"#
    );
    let (head, _) = ask(&backend, "POST /__dial", "{}").await;
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
    assert!(head.contains("allow: GET, PUT"), "{head}");
    backend.stop().await;
}

#[tokio::test]
async fn a_reset_is_seen_as_a_reset_by_the_client() {
    let backend = start(|_| {}).await;
    let dial = Dial {
        reset: true,
        ..Dial::default()
    };
    backend.dial().set(dial).expect("a dial");
    let error = exchange(backend.address(), "GET /", "")
        .await
        .expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(backend.stats().reset, 1);
    backend.stop().await;
}

#[tokio::test]
async fn a_share_strikes_some_requests_and_not_others() {
    let backend = start(|_| {}).await;
    let dial = Dial {
        status: Some(500),
        share: Some(0.5),
        ..Dial::default()
    };
    backend.dial().set(dial).expect("a dial");
    for _ in 0..40 {
        ask(&backend, "GET /", "").await;
    }
    // The draws are seeded, so they are the same in every run.
    let statuses = backend.stats().statuses;
    assert!(statuses[&200] >= 10 && statuses[&500] >= 10, "{statuses:?}");
    backend.stop().await;
}

#[tokio::test]
async fn stopping_ends_requests_that_hang() {
    let backend = start(|_| {}).await;
    let dial = Dial {
        hang: true,
        ..Dial::default()
    };
    backend.dial().set(dial).expect("a dial");
    let mut stream = TcpStream::connect(backend.address())
        .await
        .expect("a connection");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .expect("a request");
    while backend.stats().hung == 0 {
        tokio::task::yield_now().await;
    }
    backend.stop().await;
    let mut answer = Vec::new();
    // The connection may end orderly or not, but without an answer.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_name_that_is_no_valid_header_value_is_refused() {
    let error = Backend::start(BackendConfig::named("new\n"))
        .await
        .expect_err("a wrong name");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_refusing_backend_is_unreachable_and_returns_on_its_port() {
    let backend = start(|config| config.control = Some(([127, 0, 0, 1], 0).into())).await;
    let control = backend.control().expect("a control port");
    // This kept connection shows whether the backend ends it.
    let mut kept = TcpStream::connect(backend.address())
        .await
        .expect("a connection");
    kept.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .expect("a request");
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.expect("an answer");

    let (head, shown) = exchange(control, "PUT /__dial", r#"{"refuse":true}"#)
        .await
        .expect("control");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(shown, r#"{"refuse":true}"#);
    assert_eq!(
        TcpStream::connect(backend.address())
            .await
            .expect_err("refused")
            .kind(),
        ErrorKind::ConnectionRefused
    );
    let mut rest = Vec::new();
    // The connection may end orderly or not.
    let _ = kept.read_to_end(&mut rest).await;
    assert_eq!(
        exchange(control, "GET /__dial", "")
            .await
            .expect("control")
            .1,
        r#"{"refuse":true}"#
    );

    exchange(control, "PUT /__dial", "{}")
        .await
        .expect("control");
    assert!(
        ask(&backend, "GET /", "")
            .await
            .0
            .starts_with("HTTP/1.1 200")
    );
    let (head, _) = exchange(control, "GET /", "").await.expect("control");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    backend.stop().await;
}

#[tokio::test]
async fn refusing_needs_a_control_port_or_a_handle() {
    let backend = start(|_| {}).await;
    let (head, body) = ask(&backend, "PUT /__dial", r#"{"refuse":true}"#).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert!(body.contains("--control"), "{body}");
    assert!(
        ask(&backend, "GET /", "")
            .await
            .0
            .starts_with("HTTP/1.1 200")
    );
    backend
        .dial()
        .turn(Dial {
            refuse: true,
            ..Dial::default()
        })
        .await
        .expect("by its handle");
    assert!(TcpStream::connect(backend.address()).await.is_err());
    backend.stop().await;
}

#[tokio::test]
async fn a_dripped_body_arrives_whole_with_the_requested_size() {
    let backend = start(|_| {}).await;
    backend
        .dial()
        .set(Dial {
            drip_ms: Some(0),
            ..Dial::default()
        })
        .expect("a dial");
    let (head, body) = ask(&backend, "GET /?bytes=300", "").await;
    assert!(head.contains("content-length: 300"), "{head}");
    assert_eq!(body.len(), 300);
    backend.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let backend = start(|config| config.connections = Some(1)).await;
    let mut held = TcpStream::connect(backend.address())
        .await
        .expect("a connection");
    held.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .expect("a request");
    held.read_exact(&mut [0; 12]).await.expect("an answer");
    let answer = exchange(backend.address(), "GET /", "").await;
    assert!(answer.is_err() || answer.is_ok_and(|(head, _)| head.is_empty()));
    assert_eq!(backend.stats().turned_away, 1);
    backend.stop().await;
}

#[tokio::test]
async fn requests_wait_if_only_one_is_worked_on_at_a_time() {
    let backend = start(|config| {
        config.concurrency = Some(1);
        config.latency = std::time::Duration::from_millis(5);
    })
    .await;
    let address = backend.address();
    let asked: Vec<_> = (0..4)
        .map(|_| tokio::spawn(exchange(address, "GET /", "")))
        .collect();
    for one in asked {
        assert!(
            one.await
                .expect("no panic")
                .expect("an answer")
                .0
                .starts_with("HTTP/1.1 200")
        );
    }
    let stats = backend.stats();
    assert_eq!(stats.requests, 4);
    assert!(stats.busy_us >= 4 * 5_000, "{stats:?}");
    backend.stop().await;
}
