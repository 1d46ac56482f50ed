//! Requests that an HTTP/2 backend has not processed may be sent again, and a client that does not
//! read delays no other client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::h2_peers::{DATA, END_HEADERS, END_STREAM, Fate, H2Backend, H2Client};
use crate::harness::{Client, Proxy, rollout, until};

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn start(address: SocketAddr, more: &str) -> Proxy {
    let tables = format!("[backend.new]\nservers = [\"{address}\"]\nhttp2 = true\n{more}\n");
    Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "failover = \"off\"\n[rollout.guard]\nmode = \"off\"",
        ),
    )
}

fn post(proxy: &Proxy, body: &[u8]) -> (u16, String) {
    let answer = Client::connect(proxy.http)
        .ask("POST", "/", &[("x-user-id", "u")], body)
        .expect("an answer");
    (answer.status(), answer.text())
}

#[test]
fn a_post_refused_before_it_is_processed_is_sent_again() {
    for fate in [
        Fate::Reset(REFUSED_STREAM),
        Fate::GoAway(NO_ERROR),
        Fate::GoAway(ENHANCE_YOUR_CALM),
    ] {
        let backend = H2Backend::start(move |number| {
            if number % 3 == 2 {
                fate
            } else {
                Fate::Answered
            }
        });
        let proxy = start(backend.address, "");
        for round in 0..6 {
            assert_eq!(
                post(&proxy, b"once"),
                (200, "h2 4".to_owned()),
                "{fate:?} round {round}"
            );
        }
        assert_eq!(
            (backend.answered(), backend.bodies().concat()),
            (6, b"once".repeat(6)),
            "each exactly once: {fate:?}"
        );
        assert_eq!(proxy.rollout()["new"]["failed"], 0, "{fate:?}");
    }
}

#[test]
fn a_backend_that_refuses_every_stream_fails_after_a_few_attempts() {
    let backend = H2Backend::start(|_| Fate::Reset(REFUSED_STREAM));
    let proxy = start(backend.address, "");
    assert_eq!(post(&proxy, b"once").0, 502);
    assert!(
        (2..=8).contains(&backend.requests()),
        "{} attempts",
        backend.requests()
    );
    until("the failure to count", || {
        (proxy.rollout()["new"]["failed"] == 1).then_some(())
    });
}

#[test]
fn a_stream_reset_after_it_was_processed_is_not_sent_again() {
    let backend = H2Backend::start(|number| {
        if number == 1 {
            Fate::Reset(2)
        } else {
            Fate::Answered
        }
    });
    let proxy = start(backend.address, "");
    assert_eq!(post(&proxy, b"once").0, 502);
    assert_eq!(
        backend.requests(),
        1,
        "INTERNAL_ERROR says nothing about what was done"
    );
}

#[test]
fn a_large_upload_during_a_graceful_goaway_counts_as_no_failure() {
    let backend = H2Backend::start(|number| {
        if number == 1 {
            Fate::GoAway(NO_ERROR)
        } else {
            Fate::Answered
        }
    });
    let proxy = start(backend.address, "");
    // The body is larger than what is kept for another attempt.
    let (status, text) = post(&proxy, &vec![b'#'; 300 << 10]);
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("not_processed"), "{text}");
    assert_eq!(post(&proxy, b"once"), (200, "h2 4".to_owned()));
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn clients_that_stop_reading_do_not_starve_others_on_a_backend_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let sent: Arc<AtomicUsize> = Arc::default();
    let sending = Arc::clone(&sent);
    // The HTTP/2 backend has answers of 8 MiB below /big.
    let address = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let sent = Arc::clone(&sending);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let sent = Arc::clone(&sent);
                        tokio::spawn(async move {
                            let size = if request.uri().path() == "/big" {
                                8 << 20
                            } else {
                                10
                            };
                            let mut send = respond
                                .send_response(http::Response::new(()), false)
                                .unwrap();
                            let mut left = Bytes::from(vec![b'#'; size]);
                            while !left.is_empty() {
                                send.reserve_capacity(left.len());
                                let Some(Ok(room)) =
                                    std::future::poll_fn(|cx| send.poll_capacity(cx)).await
                                else {
                                    return;
                                };
                                let part = left.split_to(room.min(left.len()));
                                sent.fetch_add(part.len(), Ordering::SeqCst);
                                if send.send_data(part, left.is_empty()).is_err() {
                                    return;
                                }
                            }
                        });
                    }
                });
            }
        });
        address
    });
    let proxy = start(address, "response_timeout = \"3s\"");
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.http);
        client.send(b"GET /big HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
        stalled.push(client);
    }
    until("the large answers to be under way", || {
        (proxy.rollout()["new"]["in_flight"] == 4).then_some(())
    });
    // When no byte moves, every window between the backend and the clients is full.
    let (mut before, mut looks) = (0, 0);
    until("the windows to be full", || {
        let now = sent.load(Ordering::SeqCst);
        looks = if now == before && now > 0 {
            looks + 1
        } else {
            0
        };
        before = now;
        (looks > 60).then_some(())
    });
    for _ in 0..20 {
        let answer = Client::connect(proxy.http)
            .ask("GET", "/small", &[("x-user-id", "u")], b"")
            .expect("an answer");
        assert_eq!((answer.status(), answer.body.len()), (200, 10));
    }
    drop(stalled);
    until("nothing to be in flight", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_late_http2_answer_is_504_and_the_next_request_opens_a_connection() {
    let backend = H2Backend::start(|number| {
        if number == 1 {
            Fate::Silent
        } else {
            Fate::Answered
        }
    });
    let proxy = start(backend.address, "response_timeout = \"300ms\"");
    assert_eq!(post(&proxy, b"once").0, 504);
    assert_eq!(post(&proxy, b"once"), (200, "h2 4".to_owned()));
    assert_eq!(backend.connections(), 2, "the first connection may be dead");
}

#[test]
fn a_paused_answer_is_cut_by_the_body_limit_not_by_the_header_limit() {
    let backend = H2Backend::start(|_| Fate::Stalled);
    let proxy = start(
        backend.address,
        "response_timeout = \"100ms\"\nbody_pause_timeout = \"600ms\"",
    );
    let began = std::time::Instant::now();
    let answer = Client::connect(proxy.http).ask("GET", "/", &[("x-user-id", "u")], b"");
    assert!(
        answer.is_none_or(|answer| !answer.whole),
        "it cannot be whole"
    );
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "cut after {:?}",
        began.elapsed()
    );
}

#[test]
fn an_early_http2_answer_to_an_upload_announces_the_close() {
    let backend = H2Backend::start(|_| Fate::Early);
    let proxy = start(backend.address, "");
    let mut client = Client::connect(proxy.http);
    client.send(b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 10\r\n\r\nbegun");
    let answer = client.answer(false).expect("an answer");
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    client.drip(b"ended");
    assert_eq!(post(&proxy, b"").0, 200);
}

#[test]
fn a_connection_continues_after_an_early_answer_to_a_read_upload() {
    let backend = H2Backend::start(|_| Fate::Early);
    let proxy = start(backend.address, "");
    let mut client = Client::connect(proxy.http);
    let mut kept = 0;
    for round in 0..200 {
        let Some(answer) = client.ask("POST", "/", &[("x-user-id", "u")], &[b'#'; 1024]) else {
            panic!("no answer in round {round}, after a promise to keep the connection")
        };
        assert_eq!((answer.status(), answer.text().as_str()), (200, "early"));
        if answer.header("connection") == Some("close") {
            client = Client::connect(proxy.http);
        } else {
            kept += 1;
        }
    }
    assert!(
        kept > 0,
        "what was read as a whole leaves the connection open"
    );
}

#[test]
fn an_upload_sent_again_gets_the_answer_received_before_it() {
    let backend = H2Backend::start(|number| {
        if number % 2 == 1 {
            Fate::GoAway(NO_ERROR)
        } else {
            Fate::Early
        }
    });
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n[backend.new]\nservers = [\"{}\"]\nhttp2 \
         = true\n",
        backend.address
    );
    let proxy = Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "failover = \"off\"\n[rollout.guard]\nmode = \"off\"",
        ),
    );
    let mut client = H2Client::connect(proxy.http);
    for round in 0..40 {
        let stream = 1 + 2 * round;
        client.ask(stream, END_HEADERS, "/", &[(":method", "POST")]);
        client.data(stream, END_STREAM, &[b'#'; 1024]);
        let answer = loop {
            let frame = client.next().expect("an answer");
            if frame.kind == DATA && !frame.payload.is_empty() {
                break frame;
            }
        };
        assert_eq!(
            (answer.stream, answer.payload.as_slice()),
            (stream, &b"early"[..]),
            "{}",
            String::from_utf8_lossy(&answer.payload)
        );
    }
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}
