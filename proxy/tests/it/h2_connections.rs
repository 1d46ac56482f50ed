//! How an HTTP/2 connection begins, what it may leave unfinished, and how it ends.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::h2_peers::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2Client, HEADERS, PING,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};
use crate::harness::{Behaviour, Proxy, rollout, until};
use crate::raw::{AtAccept, RawBackend};
use crate::tls::{self, Authority};

const OFF: &str = "failover = \"off\"\n[rollout.guard]\nmode = \"off\"";
const ENHANCE_YOUR_CALM: u32 = 11;

fn start(listen: &str) -> Proxy {
    let tables = format!("[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n{listen}\n");
    Proxy::start_with(&tables, &rollout("checkout", "100", OFF))
}

/// Returns the last stream and the code of a GOAWAY.
fn goaway(frame: &Frame) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
    (word(0) & 0x7fff_ffff, word(4))
}

fn goaways(frames: &[Frame]) -> Vec<(u32, u32)> {
    frames
        .iter()
        .filter(|frame| frame.kind == GOAWAY)
        .map(goaway)
        .collect()
}

fn status_of(frame: &Frame) -> u16 {
    // The status is indexed for 200, 400 and 404 of the static table. Otherwise it is a literal
    // with the name of index 8.
    match frame.payload[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        0x08 | 0x48 => {
            let length = usize::from(frame.payload[1] & 0x7f);
            let text = &frame.payload[2..2 + length];
            if frame.payload[1] & 0x80 == 0 {
                String::from_utf8_lossy(text).parse().unwrap()
            } else {
                huffman_status(text)
            }
        }
        other => panic!("a header block that begins with {other:#x}"),
    }
}

/// Decodes digits in the Huffman code of HPACK: 0 to 2 have five bits, the others six (RFC 7541,
/// appendix B).
fn huffman_status(bytes: &[u8]) -> u16 {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let (mut number, mut at) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| {
            bits[at..at + count]
                .iter()
                .fold(0u16, |value, bit| value << 1 | u16::from(*bit))
        };
        let five = take(5);
        let (digit, used) = if five <= 2 {
            (five, 5)
        } else {
            (take(6) - 0x19 + 3, 6)
        };
        (number, at) = (number * 10 + digit, at + used);
    }
    number
}

#[test]
fn an_upload_may_be_a_mebibyte_ahead_of_its_backend() {
    let proxy = start("");
    let mut client = H2Client::connect(proxy.http);
    let settings = client.next_of(SETTINGS).unwrap();
    let window = settings
        .payload
        .chunks(6)
        .find(|setting| setting[..2] == [0, 4])
        .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()));
    assert_eq!(window, Some(1 << 20), "for one stream");
    let update = client.next_of(WINDOW_UPDATE).unwrap();
    assert_eq!(
        u32::from_be_bytes(update.payload[..].try_into().unwrap()) + 65_535,
        4 << 20,
        "for the connection"
    );
}

#[test]
fn an_idle_connection_gets_a_goaway_before_it_is_closed() {
    let proxy = start("keepalive_timeout = \"300ms\"");
    for answers in [true, false] {
        let mut client = H2Client::connect(proxy.http);
        client.ask(1, END_HEADERS | END_STREAM, "/", &[]);
        let frames = client.rest(answers);
        let said = goaways(&frames);
        assert_eq!(
            said.last(),
            Some(&(1, 0)),
            "the last stream that was taken, pings answered: {answers}"
        );
        assert_eq!(said.first(), Some(&(0x7fff_ffff, 0)), "first a warning");
    }
}

#[test]
fn a_request_that_crosses_the_goaway_of_an_idle_connection_is_served() {
    let proxy = start("keepalive_timeout = \"300ms\"");
    let mut client = H2Client::connect(proxy.http);
    let warning = client.next_of(GOAWAY).unwrap();
    assert_eq!(goaway(&warning), (0x7fff_ffff, 0));
    let ping = client.next_of(PING).unwrap();
    client.ask(1, END_HEADERS | END_STREAM, "/", &[]);
    client.acknowledge(&ping);
    let frames = client.rest(true);
    let answer = frames
        .iter()
        .find(|frame| frame.kind == HEADERS)
        .expect("an answer");
    assert_eq!((answer.stream, status_of(answer)), (1, 200));
    assert_eq!(goaways(&frames), [(1, 0)]);
}

#[test]
fn an_endless_header_block_is_cut_off_within_the_header_timeout() {
    let proxy = start("header_timeout = \"400ms\"\nkeepalive_timeout = \"60s\"");
    proxy.new.behave(Behaviour::Hang);
    // The case runs alone, and beside a stream that is under way.
    for beside in [false, true] {
        let mut client = H2Client::connect(proxy.http);
        if beside {
            client.ask(1, END_HEADERS | END_STREAM, "/", &[]);
        }
        client.ask(3, 0, "/", &[]);
        let frames = client.rest(true);
        assert_eq!(
            goaways(&frames).last().map(|(_, code)| *code),
            Some(ENHANCE_YOUR_CALM),
            "beside another: {beside}"
        );
    }
}

#[test]
fn a_slow_header_block_has_one_timeout_for_all_of_it() {
    let proxy = start("header_timeout = \"500ms\"\nkeepalive_timeout = \"60s\"");
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, 0, "/", &[]);
    let mut writer = client.split();
    let dripping = std::thread::spawn(move || {
        let began = Instant::now();
        // The frames last much longer than the limit, but no pause is as long as the limit.
        while writer.send_if_open(&frame(CONTINUATION, 0, 1, b"")) {
            assert!(
                began.elapsed() < Duration::from_secs(15),
                "it was not cut off"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let frames = client.rest(true);
    assert!(!goaways(&frames).is_empty());
    dripping.join().unwrap();
}

#[test]
fn a_slow_data_frame_with_progress_is_not_an_idle_body() {
    let proxy = start("body_idle_timeout = \"500ms\"");
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS, "/", &[(":method", "POST")]);
    let bytes = frame(DATA, END_STREAM, 1, &[b'#'; 3_000]);
    // The frame takes three times the limit, but contains no pause of that length.
    for part in bytes.chunks(200) {
        client.send(part);
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = client.next_of(HEADERS).expect("an answer");
    assert_eq!(status_of(&answer), 200);
}

#[test]
fn a_body_that_stops_in_a_data_frame_is_answered_with_408() {
    let proxy = start("body_idle_timeout = \"300ms\"");
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS, "/", &[(":method", "POST")]);
    client.send(&frame(DATA, END_STREAM, 1, &[b'#'; 100])[..50]);
    let answer = client.next_of(HEADERS).expect("an answer");
    assert_eq!(status_of(&answer), 408);
    until("the request to end", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "the client is to blame"
    );
}

#[test]
fn a_client_of_malformed_requests_gets_goaway_and_its_stream_ends() {
    let proxy = start("");
    let backend = &proxy.new;
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS, "/good", &[(":method", "POST")]);
    for number in 0..40 {
        client.ask(
            3 + 2 * number,
            END_HEADERS | END_STREAM,
            "/",
            &[("connection", "close")],
        );
    }
    let mut before = Vec::new();
    let warning = loop {
        let frame = client.next().expect("an end");
        if frame.kind == GOAWAY {
            break frame;
        }
        before.push(frame);
    };
    assert!(
        before.iter().all(|frame| frame.stream != 1),
        "nothing of the good one: {:?}",
        before
            .iter()
            .filter(|frame| frame.stream == 1)
            .collect::<Vec<_>>()
    );
    assert_eq!(goaway(&warning).1, 0);
    client.data(1, END_STREAM, b"rest");
    let frames = client.rest(true);
    let answer = frames
        .iter()
        .find(|frame| frame.kind == HEADERS)
        .unwrap_or_else(|| panic!("an answer to the good one: {frames:?}"));
    assert_eq!((answer.stream, status_of(answer)), (1, 200));
    assert_eq!(backend.requests(), 1);
    let refused = proxy.metric("cutover_requests_refused_total{reason=\"bad_stream\"}");
    assert!(
        refused.is_some_and(|refused| refused >= 33.0),
        "{refused:?}"
    );
}

#[test]
fn interim_answers_reach_http2_clients() {
    let backend = RawBackend::start();
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n[backend.new]\nservers = [\"{}\"]\n",
        backend.address
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", OFF));
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(true)
    });
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS | END_STREAM, "/evil", &[]);
    let interim = client.next_of(HEADERS).expect("an interim answer");
    assert_eq!((status_of(&interim), interim.flags & END_STREAM), (103, 0));
    assert_eq!(
        status_of(&client.next_of(HEADERS).expect("the answer")),
        200
    );
}

#[test]
fn a_late_answer_is_504_for_http2_clients() {
    let proxy = start("");
    proxy.new.behave(Behaviour::Hang);
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS | END_STREAM, "/", &[]);
    assert_eq!(status_of(&client.next_of(HEADERS).expect("an answer")), 504);
    until("the failure to count", || {
        (proxy.rollout()["new"]["failed"] == 1).then_some(())
    });
    // Only the stream has ended, not the connection.
    proxy.new.behave(Behaviour::Answer(200));
    client.ask(3, END_HEADERS | END_STREAM, "/", &[]);
    assert_eq!(status_of(&client.next_of(HEADERS).expect("an answer")), 200);
}

#[test]
fn requests_only_possible_in_http2_are_refused_with_a_reason() {
    let proxy = start("");
    let before = proxy.new.requests();
    for (more, status, code) in [
        (
            &[(":method", "CONNECT"), (":scheme", "-"), (":path", "-")][..],
            405,
            "method_not_allowed",
        ),
        (&[("host", "other.example")], 400, "bad_host"),
        (
            &[("host", "shop.example"), ("host", "shop.example")],
            400,
            "bad_host",
        ),
        (&[(":authority", "-")], 400, "missing_host"),
        (&[(":authority", "u@shop.example")], 400, "bad_host"),
    ] {
        let mut client = H2Client::connect(proxy.http);
        client.ask(1, END_HEADERS | END_STREAM, "/", more);
        let answer = client
            .next_of(HEADERS)
            .unwrap_or_else(|| panic!("an answer to {more:?}"));
        let body = client
            .next_of(DATA)
            .unwrap_or_else(|| panic!("a body for {more:?}"));
        assert_eq!(
            (
                status_of(&answer),
                String::from_utf8_lossy(&body.payload).contains(code)
            ),
            (status, true),
            "{more:?}: {}",
            String::from_utf8_lossy(&body.payload)
        );
    }
    assert_eq!(proxy.new.requests(), before);
}

#[test]
fn http2_cookie_fields_reach_http1_backends_as_one() {
    let proxy = start("");
    let mut client = H2Client::connect(proxy.http);
    client.ask(
        1,
        END_HEADERS | END_STREAM,
        "/",
        &[
            ("cookie", "sessionid=abc"),
            ("cookie", "csrftoken=xyz"),
            ("cookie", "a=1; b=2"),
        ],
    );
    assert_eq!(status_of(&client.next_of(HEADERS).expect("an answer")), 200);
    let head = proxy.new.last_head().to_ascii_lowercase();
    let cookies: Vec<&str> = head
        .lines()
        .filter(|line| line.starts_with("cookie:"))
        .collect();
    assert_eq!(cookies, ["cookie: sessionid=abc; csrftoken=xyz; a=1; b=2"]);
}

#[test]
fn a_stream_that_the_client_resets_frees_its_backend_connection() {
    let proxy = start("");
    proxy.new.behave(Behaviour::Hang);
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS | END_STREAM, "/", &[]);
    until("the request to be under way", || {
        (proxy.rollout()["new"]["in_flight"] == 1).then_some(())
    });
    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    until("the request to end", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn an_idle_proxy_ends_after_its_lead_whatever_clients_keep_open() {
    let authority = Authority::new();
    let (mut proxy, https) = tls::start(&authority, "h2c = true");
    // There is a used and an unused connection, one of each protocol.
    let mut used = proxy.client();
    assert_eq!(
        used.ask("GET", "/", &[("x-user-id", "u")], b"")
            .map(|answer| answer.status()),
        Some(200)
    );
    let _unused = proxy.client();
    let mut streams = H2Client::connect(proxy.http);
    streams.ask(1, END_HEADERS | END_STREAM, "/", &[]);
    assert_eq!(
        status_of(&streams.next_of(HEADERS).expect("an answer")),
        200
    );
    let mut deaf = H2Client::connect(proxy.http);
    assert!(deaf.next_of(SETTINGS).is_some());
    let mut encrypted =
        tls::connect(https, "one.example", &authority.client(&[b"http/1.1"])).unwrap();
    encrypted
        .write_all(b"GET / HTTP/1.1\r\nhost: one.example\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    encrypted.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "and it is kept");
    let began = Instant::now();
    assert_eq!(
        proxy.stop_within(Duration::from_millis(100), Duration::from_secs(60)),
        0,
        "no stream was cut off"
    );
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "far from the grace: {:?}",
        began.elapsed()
    );
    assert_eq!(goaways(&streams.rest(false)).last(), Some(&(1, 0)));
    assert_eq!(goaways(&deaf.rest(false)).last(), Some(&(0, 0)));
}

#[test]
fn a_stream_under_way_is_finished_when_the_process_ends() {
    let backend = RawBackend::start();
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n[backend.new]\nservers = [\"{}\"]\n",
        backend.address
    );
    let mut proxy = Proxy::start_with(&tables, &rollout("checkout", "100", OFF));
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegun")?;
        // The pause is longer than the lead, so that the end falls in the middle of the body.
        talk.rest(Duration::from_millis(600));
        talk.say(b"ended")?;
        Ok(true)
    });
    let mut client = H2Client::connect(proxy.http);
    client.ask(1, END_HEADERS | END_STREAM, "/evil", &[]);
    assert_eq!(client.next_of(DATA).expect("a body").payload, b"begun");
    assert_eq!(
        proxy.stop_within(Duration::from_millis(50), Duration::from_secs(60)),
        0
    );
    let frames = client.rest(true);
    let body: Vec<u8> = frames
        .iter()
        .filter(|frame| frame.kind == DATA)
        .flat_map(|frame| frame.payload.clone())
        .collect();
    assert_eq!(body, b"ended");
    assert_eq!(goaways(&frames).last(), Some(&(1, 0)));
}

#[test]
fn streams_above_the_limit_are_refused_and_the_connection_continues() {
    let proxy = start("");
    proxy.new.behave(Behaviour::Hang);
    let mut client = H2Client::connect(proxy.http);
    for number in 0..160 {
        client.ask(1 + 2 * number, END_HEADERS | END_STREAM, "/", &[]);
    }
    let refused = (0..60)
        .map(|_| client.next_of(RST_STREAM).expect("a refusal"))
        .filter(|frame| frame.payload == 7_u32.to_be_bytes())
        .count();
    assert_eq!(refused, 60, "REFUSED_STREAM: none of them was processed");
    // A stream that is reset before it was processed counts as a sign of an attack.
    until("the others to be under way", || {
        (proxy.rollout()["new"]["in_flight"] == 100).then_some(())
    });
    for number in 0..100 {
        client.send(&frame(RST_STREAM, 0, 1 + 2 * number, &8_u32.to_be_bytes()));
    }
    proxy.new.behave(Behaviour::Answer(200));
    client.ask(1_001, END_HEADERS | END_STREAM, "/", &[]);
    let answer = loop {
        let frame = client.next().expect("the connection goes on");
        assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        if frame.kind == HEADERS && frame.stream == 1_001 {
            break frame;
        }
    };
    assert_eq!(status_of(&answer), 200);
}

#[test]
fn a_client_that_resets_its_upload_with_any_code_ends_it() {
    let proxy = start("");
    for code in [0_u32, 7, 8] {
        let before = proxy.new.connections();
        let mut client = H2Client::connect(proxy.http);
        client.ask(1, END_HEADERS, "/", &[(":method", "POST")]);
        client.data(1, 0, b"begun");
        until("the upload to be with the backend", || {
            (proxy.new.connections() == before + 1).then_some(())
        });
        client.send(&frame(RST_STREAM, 0, 1, &code.to_be_bytes()));
        until("the upload to end", || {
            (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
        });
        assert_eq!(
            proxy.new.connections(),
            before + 1,
            "code {code}: one attempt"
        );
    }
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn all_requests_of_a_closed_connection_are_counted() {
    let proxy = start("");
    proxy.new.behave(Behaviour::Hang);
    let mut client = H2Client::connect(proxy.http);
    for number in 0..10 {
        client.ask(1 + 2 * number, END_HEADERS | END_STREAM, "/", &[]);
    }
    until("all to be under way", || {
        (proxy.new.requests() == 10).then_some(())
    });
    drop(client);
    until("all to end", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    until("all to be counted", || {
        (proxy.rollout()["new"]["aborts"] == 10).then_some(())
    });
    assert_eq!(
        (
            &proxy.rollout()["new"]["failed"],
            &proxy.rollout()["new"]["aborts"]
        ),
        (&0.into(), &10.into())
    );
}
