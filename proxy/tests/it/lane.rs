//! Which engine serves which request, and the properties of the lane that other tests do not cover.
//! The other tests run on both engines.

use std::fs;
use std::io::{Read, Write};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Proxy, rollout, until};
use crate::raw::{Ending, RawBackend, RawClient};

/// Starts a proxy with all users on new, with a log and these keys below `[listen]`.
fn start(engine: &str, listen: &str, backend: &RawBackend, more: &str) -> Proxy {
    let tables = format!(
        "[listen]\nengine = \"{engine}\"\nhttp = [\"127.0.0.1:0\"]\n{listen}\n[log]\nfile = \
         \"access.log\"\n[backend.new]\nservers = [\"{}\"]\nresponse_timeout = \"2s\"\n{more}\n",
        backend.address
    );
    Proxy::start_with(
        &tables,
        &rollout("checkout", "100", "[rollout.guard]\nmode = \"off\""),
    )
}

/// Returns the engine that served a path.
fn engine_of(proxy: &Proxy, path: &str) -> String {
    until("its line", || {
        let text =
            fs::read_to_string(proxy.directory.path().join("access.log")).unwrap_or_default();
        let mut lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .find(|line| line["url.path"] == path)
            .map(|line| line["cutover.engine"].as_str().unwrap_or("none").to_owned())
    })
}

fn declined(proxy: &Proxy, reason: &str) -> f64 {
    proxy
        .metric(&format!(
            "cutover_lane_declined_total{{reason=\"{reason}\"}}"
        ))
        .unwrap()
}

fn resting(proxy: &Proxy) -> f64 {
    proxy
        .metric("cutover_upstream_connections{backend=\"new\",state=\"idle\"}")
        .unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n")
}

#[test]
fn plain_requests_use_the_lane_and_others_the_proxy_engine() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    let mut client = RawClient::connect(proxy.http);
    let post = |path: &str, fields: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n{fields}\r\n{body}")
    };
    for (path, request, engine) in [
        ("/a", get("/a"), "lane"),
        ("/b", post("/b", "content-length: 4\r\n", "once"), "lane"),
        (
            "/c",
            post(
                "/c",
                "transfer-encoding: chunked\r\n",
                "4\r\nonce\r\n0\r\n\r\n",
            ),
            "proxy",
        ),
        ("/d", get("/d"), "lane"),
        (
            "/e",
            get("/e").replace("\r\n\r\n", "\r\nte: trailers\r\n\r\n"),
            "proxy",
        ),
        (
            "/f",
            get("/f").replace("\r\n\r\n", "\r\naccept: text/event-stream\r\n\r\n"),
            "proxy",
        ),
        (
            "/g",
            get("/g").replace("host: h", "host: h\r\nx-odd: \u{e9}"),
            "lane",
        ),
    ] {
        client.send(request.as_bytes());
        let answer = client
            .answer(false)
            .unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(
            (answer.status, &answer.ending),
            (200, &Ending::Whole),
            "{path}"
        );
        assert!(answer.text().contains(path), "{path}: {}", answer.text());
        assert_eq!(engine_of(&proxy, path), engine, "{path}");
    }
    for (reason, count) in [
        ("framing", 1.0),
        ("hop_by_hop", 1.0),
        ("lasts", 1.0),
        ("head", 0.0),
        ("backend", 0.0),
    ] {
        assert_eq!(declined(&proxy, reason), count, "{reason}");
    }
}

#[test]
fn with_the_proxy_engine_no_request_uses_the_lane() {
    let backend = RawBackend::start();
    let proxy = start("proxy", "", &backend, "");
    let mut client = RawClient::connect(proxy.http);
    client.send(get("/a").as_bytes());
    assert_eq!(client.answer(false).map(|answer| answer.status), Some(200));
    assert_eq!(
        (engine_of(&proxy, "/a").as_str(), resting(&proxy)),
        ("proxy", 0.0)
    );
}

#[test]
fn a_backend_that_is_not_plain_uses_the_proxy_engine() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "http2 = true\n");
    let mut client = RawClient::connect(proxy.http);
    client.send(get("/a").as_bytes());
    // How the backend reads HTTP/2 does not matter here; only the engine that sent the request
    // does.
    assert!(client.answer(false).is_some());
    assert_eq!(
        (
            engine_of(&proxy, "/a").as_str(),
            declined(&proxy, "backend")
        ),
        ("proxy", 1.0)
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    let mut client = RawClient::connect(proxy.http);
    // The requests are larger than a buffer, and one of them has a body.
    let mut all = String::new();
    for number in 0..300 {
        all.push_str(&get(&format!("/{number}")));
        if number == 150 {
            all.push_str(
                "POST /post HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 5\r\n\r\nGET /",
            );
        }
    }
    let mut writing = client.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || writing.write_all(all.as_bytes()).unwrap());
    for number in 0..300 {
        let answer = client
            .answer(false)
            .unwrap_or_else(|| panic!("no answer to {number}"));
        assert!(
            answer.text().starts_with(&format!("GET /{number} ")),
            "{number}: {}",
            answer.text()
        );
        if number == 150 {
            assert_eq!(
                client.answer(false).map(|answer| answer.text()),
                Some("POST /post rollout=checkout body=5".to_owned())
            );
        }
    }
    writer.join().unwrap();
}

#[test]
fn an_answer_arrives_whole_before_a_refused_pipelined_request() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    backend.behave(crate::raw::AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n")?;
        talk.say(&large(300_000))?;
        Ok(true)
    });
    let head = get("/evil");
    let refused = [b"\x16\x03\x01", &[b'x'; 40_000][..]].concat();
    for round in 1..=5 {
        let mut client = RawClient::connect(proxy.http);
        client.send(&[head.as_bytes(), &refused].concat());
        // Both answers are under way at this point, and not read yet.
        until("the proxy to close", || {
            (declined(&proxy, "head") == f64::from(round)
                && proxy.metric("cutover_connections{state=\"open\"}") == Some(0.0))
            .then_some(())
        });
        let answer = client.answer(false).unwrap();
        assert_eq!(
            (answer.status, &answer.ending, answer.body.len()),
            (200, &Ending::Whole, 300_000),
            "round {round}"
        );
        assert_eq!(
            client.answer(false).map(|answer| answer.status),
            Some(400),
            "round {round}"
        );
        assert!(client.answer(false).is_none(), "round {round}");
    }
}

#[test]
fn a_large_upload_arrives_whole_in_any_fragments() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    for fragment in [100_000, 7_919, 1 << 20] {
        let mut client = RawClient::connect(proxy.http);
        client.send(
            b"PUT /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 1048576\r\n\r\n",
        );
        vec![b'x'; 1 << 20]
            .chunks(fragment)
            .for_each(|part| client.send(part));
        assert_eq!(
            client.answer(false).map(|answer| answer.text()),
            Some("PUT /upload rollout=checkout body=1048576".to_owned())
        );
        client.send(get("/next").as_bytes());
        assert_eq!(
            client.answer(false).map(|answer| answer.status),
            Some(200),
            "the connection goes on"
        );
    }
}

/// Returns the body of a large answer, no two parts of which are alike.
fn large(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect()
}

/// The size exceeds the buffers of all sockets on the way.
const LARGE: usize = 24 << 20;

fn very_large() -> &'static [u8] {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    BODY.get_or_init(|| large(LARGE))
}

#[test]
fn a_large_answer_in_any_framing_arrives_whole_at_a_slow_reader() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    // The body is made before any client waits for it.
    let expected = very_large();
    let by_length: crate::raw::Script = |talk, _| {
        talk.say(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n").as_bytes())?;
        talk.say(very_large())?;
        Ok(true)
    };
    let in_chunks: crate::raw::Script = |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for part in very_large().chunks(700_001) {
            talk.say(
                &[
                    format!("{:X};x=y\r\n", part.len()).as_bytes(),
                    part,
                    b"\r\n",
                ]
                .concat(),
            )?;
        }
        talk.say(b"0\r\ntrailer: x\r\n\r\n")?;
        Ok(true)
    };
    let by_the_end: crate::raw::Script = |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\n\r\n")?;
        talk.say(very_large())?;
        Ok(false)
    };
    for (name, script) in [
        ("by length", by_length),
        ("in chunks", in_chunks),
        ("by the end", by_the_end),
    ] {
        backend.behave(crate::raw::AtAccept::Read, script);
        let mut client = RawClient::connect(proxy.http);
        client.send(get("/evil").as_bytes());
        // The client reads slowly at first, so that every buffer on the way fills up.
        let mut begin = vec![0; 1000];
        client.stream.read_exact(&mut begin).unwrap();
        until("the answer to be under way", || {
            (proxy.rollout()["new"]["in_flight"] == 1).then_some(())
        });
        client.put_back(begin);
        let answer = client.answer(false).unwrap();
        assert_eq!(
            (&answer.ending, answer.body.len()),
            (&Ending::Whole, LARGE),
            "{name}"
        );
        assert!(answer.body == *expected, "{name}: other bytes");
        client.send(get("/next").as_bytes());
        assert_eq!(
            client.answer(false).map(|answer| answer.status),
            Some(200),
            "{name}: the connection goes on"
        );
    }
}

#[test]
fn answers_larger_than_a_buffer_leave_the_connection_usable() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    backend.behave(crate::raw::AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")?;
        talk.say(&[b'x'; 100_000])?;
        Ok(true)
    });
    let mark = backend.mark();
    let mut client = RawClient::connect(proxy.http);
    for _ in 0..10 {
        client.send(get("/evil").as_bytes());
        assert_eq!(
            client.answer(false).map(|answer| answer.body.len()),
            Some(100_000)
        );
        // The connection is pooled a moment after the last byte was written.
        until("the connection to rest", || {
            (resting(&proxy) == 1.0).then_some(())
        });
    }
    assert_eq!(backend.since(&mark).len(), 1, "one connection for all");
}

#[test]
fn a_client_that_stops_its_upload_during_an_answer_is_no_failure() {
    let backend = RawBackend::start();
    let proxy = start("auto", "body_idle_timeout = \"300ms\"\n", &backend, "");
    backend.behave(
        crate::raw::AtAccept::AnswerTheHead(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun"),
        crate::raw::good,
    );
    let mut client = RawClient::connect(proxy.http);
    client.send(
        b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 1000\r\n\r\nsome",
    );
    assert_eq!(
        client
            .answer(false)
            .map(|answer| (answer.status, answer.ending)),
        Some((200, Ending::Cut))
    );
    until("the end", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        (
            &proxy.rollout()["new"]["failed"],
            engine_of(&proxy, "/upload").as_str()
        ),
        (&0.into(), "lane")
    );
}

#[test]
fn an_upload_continues_after_an_early_answer() {
    for engine in ["auto", "proxy"] {
        let backend = RawBackend::start();
        let proxy = start(engine, "", &backend, "");
        backend.behave(
            crate::raw::AtAccept::AnswerTheHead(
                b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok",
            ),
            crate::raw::good,
        );
        let mut client = RawClient::connect(proxy.http);
        client.send(
            b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 300000\r\n\r\n",
        );
        client.send(&[b'#'; 100_000]);
        assert_eq!(
            client
                .answer(false)
                .map(|answer| (answer.status, answer.ending)),
            Some((202, Ending::Whole)),
            "{engine}"
        );
        client.send(&[b'#'; 200_000]);
        let came = || {
            backend
                .since(&[])
                .concat()
                .iter()
                .filter(|&&byte| byte == b'#')
                .count()
        };
        until("all of the upload", || (came() == 300_000).then_some(()));
        until("the end", || {
            (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
        });
        assert_eq!(
            (
                &proxy.rollout()["new"]["failed"],
                engine_of(&proxy, "/upload")
            ),
            (
                &0.into(),
                if engine == "auto" { "lane" } else { "proxy" }.to_owned()
            )
        );
    }
}

#[test]
fn an_upload_that_a_backend_refused_is_no_longer_sent() {
    let backend = RawBackend::start();
    let proxy = start("auto", "body_idle_timeout = \"300ms\"\n", &backend, "");
    backend.behave(
        crate::raw::AtAccept::AnswerTheHead(
            b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n",
        ),
        crate::raw::good,
    );
    let mut client = RawClient::connect(proxy.http);
    client.send(
        b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 300000\r\n\r\nsome",
    );
    assert_eq!(
        client
            .answer(false)
            .map(|answer| (answer.status, answer.ending)),
        Some((413, Ending::Whole))
    );
    assert!(
        client.is_closed(),
        "the client is told that the rest is not wanted"
    );
    until("the end", || (backend.ended() == 1).then_some(()));
}

#[test]
fn an_upload_with_progress_during_an_answer_has_only_its_own_limit() {
    let backend = RawBackend::start();
    let tables = format!(
        "[listen]\nengine = \"auto\"\nhttp = [\"127.0.0.1:0\"]\n[backend.new]\nservers = \
         [\"{}\"]\nresponse_timeout = \"400ms\"\nbody_pause_timeout = \"400ms\"\n",
        backend.address
    );
    let proxy = Proxy::start_with(
        &tables,
        &rollout("checkout", "100", "[rollout.guard]\nmode = \"off\""),
    );
    backend.behave(
        crate::raw::AtAccept::AnswerTheHead(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun"),
        crate::raw::good,
    );
    let mut client = RawClient::connect(proxy.http);
    client
        .send(b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 1200\r\n\r\n");
    // The upload takes three times the limit, but contains no pause of that length.
    for part in 1..=12 {
        client.send(&[b'#'; 100]);
        let came = || {
            backend
                .since(&[])
                .concat()
                .iter()
                .filter(|&&byte| byte == b'#')
                .count()
        };
        until("this part", || (came() == 100 * part).then_some(()));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        client
            .answer(false)
            .map(|answer| (answer.status, answer.ending)),
        Some((200, Ending::Cut))
    );
}

#[test]
fn one_limit_applies_to_the_whole_head_of_an_answer() {
    let backend = RawBackend::start();
    let tables = format!(
        "[listen]\nengine = \"auto\"\nhttp = [\"127.0.0.1:0\"]\n[backend.new]\nservers = \
         [\"{}\"]\nresponse_timeout = \"500ms\"\n",
        backend.address
    );
    let proxy = Proxy::start_with(
        &tables,
        &rollout("checkout", "100", "[rollout.guard]\nmode = \"off\""),
    );
    backend.behave(crate::raw::AtAccept::Read, |talk, _| {
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" {
            talk.say(&[*byte])?;
            talk.rest(Duration::from_millis(100));
        }
        Ok(true)
    });
    let mut client = RawClient::connect(proxy.http);
    client.send(b"POST /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.answer(false).map(|answer| answer.status), Some(504));
    until("the failure to count", || {
        (proxy.rollout()["new"]["failed"] == 1).then_some(())
    });
}

#[test]
fn an_early_answer_arrives_while_the_process_is_about_to_end() {
    let backend = RawBackend::start();
    let mut proxy = start("auto", "", &backend, "");
    backend.behave(
        crate::raw::AtAccept::AnswerTheHead(
            b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 7\r\n\r\ntoo big",
        ),
        crate::raw::good,
    );
    let mut client = RawClient::connect(proxy.http);
    client.send(
        b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 1000000\r\n\r\nsome",
    );
    until("the answer to be written", || {
        (backend.ended() == 1).then_some(())
    });
    let address = proxy.http;
    let stopping = std::thread::spawn(move || proxy.stop());
    until("it to accept no client", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
    // The upload continues, so that a reset would arrive before the answer is read.
    for _ in 0..10 {
        client.send(&[b'#'; 1_000]);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        client
            .answer(false)
            .map(|answer| (answer.status, answer.ending)),
        Some((413, Ending::Whole))
    );
    drop(client);
    stopping.join().unwrap();
}

#[test]
fn a_client_gone_after_its_upload_is_noticed_before_a_late_answer() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "");
    backend.behave(crate::raw::AtAccept::Read, |talk, _| talk.outlast());
    let mut client = RawClient::connect(proxy.http);
    client.send(b"POST /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 20000\r\n\r\n");
    client.send(&[b'x'; 20_000]);
    until("the upload to be there", || {
        (!backend.take_evil().is_empty()).then_some(())
    });
    drop(client);
    until("the request to be over", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_client_that_does_not_read_is_cut_off_without_a_failure() {
    let backend = RawBackend::start();
    let proxy = start("auto", "write_timeout = \"300ms\"\n", &backend, "");
    backend.behave(crate::raw::AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")?;
        // The backend writes until the proxy gives up.
        while talk.say(&[b'x'; 65_536]).is_ok() {}
        Ok(false)
    });
    let mut client = RawClient::connect(proxy.http);
    client.send(get("/evil").as_bytes());
    until("the request to be there", || {
        (proxy.rollout()["new"]["in_flight"] == 1).then_some(())
    });
    until("the proxy to give up", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        (
            &proxy.rollout()["new"]["failed"],
            engine_of(&proxy, "/evil").as_str()
        ),
        (&0.into(), "lane")
    );
}

#[test]
fn an_idle_connection_is_reused_until_it_is_closed_or_expires() {
    let backend = RawBackend::start();
    let proxy = start("auto", "", &backend, "idle_timeout = \"1500ms\"\n");
    let ask = |path: &str| {
        let mut client = RawClient::connect(proxy.http);
        client.send(get(path).as_bytes());
        assert_eq!(client.answer(false).map(|answer| answer.status), Some(200));
    };
    let mark = backend.mark();
    (0..20).for_each(|number| ask(&format!("/{number}")));
    assert_eq!(
        (backend.since(&mark).len(), resting(&proxy)),
        (1, 1.0),
        "one connection for all"
    );
    until("its time to be up", || {
        (resting(&proxy) == 0.0).then_some(())
    });
    until("its end", || (backend.ended() > 0).then_some(()));
    backend.behave(crate::raw::AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        talk.rest(Duration::from_millis(100));
        Ok(false)
    });
    ask("/evil");
    until("it to be thrown away before its time", || {
        (resting(&proxy) == 0.0).then_some(())
    });
}

#[test]
fn a_get_is_answered_even_if_every_kept_connection_has_ended() {
    let proxy = Proxy::start(&rollout("checkout", "100", ""));
    let unfinished = b"POST / HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 5\r\n\r\nhel";
    let mut clients: Vec<RawClient> = (0..3).map(|_| RawClient::connect(proxy.http)).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(unfinished);
        until("a connection of its own", || {
            (proxy.new.connections() == at + 1).then_some(())
        });
    }
    for client in &mut clients {
        client.send(b"lo");
        assert_eq!(client.answer(false).map(|answer| answer.status), Some(200));
    }
    // Each connection closes at its next request, without a byte.
    proxy.new.behave(crate::harness::Behaviour::CloseKept);
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 200);
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_silent_connection_is_closed_and_a_later_head_has_its_own_limit() {
    let backend = RawBackend::start();
    let proxy = start(
        "auto",
        "keepalive_timeout = \"400ms\"\nheader_timeout = \"600ms\"\n",
        &backend,
        "",
    );
    let mut silent = RawClient::connect(proxy.http);
    silent.send(get("/a").as_bytes());
    assert_eq!(silent.answer(false).map(|answer| answer.status), Some(200));
    assert!(silent.is_closed(), "keepalive_timeout");
    let mut slow = RawClient::connect(proxy.http);
    slow.send(get("/b").as_bytes());
    assert_eq!(slow.answer(false).map(|answer| answer.status), Some(200));
    slow.send(b"GET /c HTTP/1.1\r\nhost: ");
    assert!(slow.is_closed(), "header_timeout");
}

#[test]
fn a_backend_is_warmed_up_for_both_engines() {
    let proxy = Proxy::start_with(
        "[listen]\nengine = \"auto\"\nhttp = [\"127.0.0.1:0\"]\n",
        &rollout("checkout", "0", ""),
    );
    assert_eq!(
        resting(&proxy),
        0.0,
        "a backend without health is left alone"
    );
    let new = format!(
        "[listen]\nengine = \"auto\"\nhttp = [\"127.0.0.1:0\"]\n[backend.new]\nservers = \
         [\"{}\"]\nhealth = {{ path = \"/healthz\" }}\n",
        proxy.new.address
    );
    fs::write(
        proxy.file(),
        proxy.text_with(&new, &rollout("checkout", "10", "")),
    )
    .unwrap();
    proxy.reload();
    until("the lane's connections", || {
        (resting(&proxy) == 4.0).then_some(())
    });
    until("those of the other engine", || {
        (proxy.new.connections() >= 8).then_some(())
    });
}
