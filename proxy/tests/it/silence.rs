//! How long a backend may be silent before and after its header, on both engines.

use std::io::{Read, Write};
use std::time::Duration;

use crate::harness::{Proxy, rollout, until};
use crate::raw::{AtAccept, Ending, RawBackend, RawClient};

/// Starts a proxy whose backend has little time for its header, with these limits after it.
fn start(engine: &str, backend: &RawBackend, limits: &str) -> Proxy {
    let tables = format!(
        "[listen]\nengine = \"{engine}\"\nhttp = [\"127.0.0.1:0\"]\nbody_idle_timeout = \
         \"5s\"\n[backend.new]\nservers = [\"{}\"]\nresponse_timeout = \"200ms\"\n{limits}\n",
        backend.address
    );
    Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "failover = \"off\"\n[rollout.guard]\nmode = \"off\"",
        ),
    )
}

const ENGINES: [&str; 2] = ["auto", "proxy"];

fn ask(proxy: &Proxy, fields: &str) -> (u16, Ending, String) {
    let mut client = RawClient::connect(proxy.http);
    client
        .send(format!("GET /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n{fields}\r\n").as_bytes());
    let answer = client.answer(false).expect("an answer");
    (answer.status, answer.ending, answer.text())
}

fn failed(proxy: &Proxy) -> u64 {
    until("nothing to be in flight", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    proxy.rollout()["new"]["failed"].as_u64().unwrap()
}

#[test]
fn a_body_that_pauses_longer_than_response_timeout_arrives_whole() {
    for engine in ENGINES {
        let backend = RawBackend::start();
        let proxy = start(
            engine,
            &backend,
            "body_pause_timeout = \"10s\"\nstream_idle_timeout = \"100ms\"",
        );
        for head in [
            "content-length: 10\r\n",
            "transfer-encoding: chunked\r\n",
            "connection: close\r\n",
        ] {
            backend.behave(
                AtAccept::Read,
                match head {
                    "content-length: 10\r\n" => |talk, _| {
                        talk.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nbegun")?;
                        talk.rest(Duration::from_millis(700));
                        talk.say(b"ended")?;
                        Ok(true)
                    },
                    "transfer-encoding: chunked\r\n" => |talk, _| {
                        talk.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n")?;
                        talk.rest(Duration::from_millis(700));
                        talk.say(b"5\r\nended\r\n0\r\n\r\n")?;
                        Ok(true)
                    },
                    _ => |talk, _| {
                        talk.say(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nbegun")?;
                        talk.rest(Duration::from_millis(700));
                        talk.say(b"ended")?;
                        Ok(false)
                    },
                },
            );
            assert_eq!(
                ask(&proxy, ""),
                (200, Ending::Whole, "begunended".to_owned()),
                "{engine}, {head}"
            );
        }
        assert_eq!(failed(&proxy), 0, "{engine}");
    }
}

#[test]
fn an_event_stream_is_detected_by_its_answer_not_by_the_request() {
    for engine in ENGINES {
        let backend = RawBackend::start();
        let proxy = start(
            engine,
            &backend,
            "body_pause_timeout = \"100ms\"\nstream_idle_timeout = \"10s\"",
        );
        backend.behave(AtAccept::Read, |talk, _| {
            talk.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")?;
            talk.rest(Duration::from_millis(700));
            talk.say(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")?;
            Ok(true)
        });
        for accept in [
            "",
            "accept: text/event-stream\r\n",
            "accept: application/json, text/event-stream\r\n",
            "accept: */*\r\n",
        ] {
            assert_eq!(
                ask(&proxy, accept),
                (200, Ending::Whole, "data: 1\n\ndata: 2\n\n".to_owned()),
                "{engine}, {accept}"
            );
        }
        assert_eq!(failed(&proxy), 0, "{engine}");
    }
}

#[test]
fn a_body_that_pauses_longer_than_its_limit_is_cut_off_and_counted() {
    for engine in ENGINES {
        let backend = RawBackend::start();
        let proxy = start(
            engine,
            &backend,
            "body_pause_timeout = \"500ms\"\nstream_idle_timeout = \"60s\"",
        );
        backend.behave(AtAccept::Read, |talk, _| {
            talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegun")?;
            talk.outlast()
        });
        let began = std::time::Instant::now();
        assert_eq!(
            ask(&proxy, ""),
            (200, Ending::Cut, "begun".to_owned()),
            "{engine}"
        );
        assert!(
            began.elapsed() >= Duration::from_millis(400),
            "{engine}: not after {:?}",
            began.elapsed()
        );
        until("the failure to count", || {
            (failed(&proxy) == 1).then_some(())
        });
    }
}

#[test]
fn an_upload_longer_than_response_timeout_is_no_late_answer() {
    for engine in ENGINES {
        let backend = RawBackend::start();
        let proxy = start(engine, &backend, "");
        for chunked in [false, true] {
            let mut client = RawClient::connect(proxy.http);
            let framing = if chunked {
                "transfer-encoding: chunked"
            } else {
                "content-length: 25"
            };
            client.send(
                format!("POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n{framing}\r\n\r\n")
                    .as_bytes(),
            );
            for _ in 0..5 {
                client.send(if chunked { b"5\r\nparts\r\n" } else { b"parts" });
                std::thread::sleep(Duration::from_millis(150));
            }
            if chunked {
                client.send(b"0\r\n\r\n");
            }
            let answer = client.answer(false).expect("an answer");
            assert_eq!(
                (answer.status, answer.text().ends_with("body=25")),
                (200, true),
                "{engine}, chunked {chunked}: {}",
                answer.text()
            );
        }
        assert_eq!(failed(&proxy), 0, "{engine}");
    }
}

/// Starts a server that accepts, sends this greeting, and never reads.
fn deaf(greeting: &'static [u8]) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(greeting);
            kept.push(stream);
        }
    });
    address
}

#[test]
fn an_upload_that_a_backend_does_not_read_ends_as_a_late_answer() {
    // A SETTINGS frame makes it look like an HTTP/2 server.
    for (greeting, http2) in [(&b""[..], false), (&[0, 0, 0, 4, 0, 0, 0, 0, 0], true)] {
        for engine in ENGINES {
            let address = deaf(greeting);
            let tables = format!(
                "[listen]\nengine = \"{engine}\"\nhttp = [\"127.0.0.1:0\"]\nh2c = \
                 true\n[backend.new]\nservers = [\"{address}\"]\nhttp2 = \
                 {http2}\nresponse_timeout = \"500ms\"\n"
            );
            let proxy = Proxy::start_with(
                &tables,
                &rollout(
                    "checkout",
                    "100",
                    "failover = \"off\"\n[rollout.guard]\nmode = \"off\"",
                ),
            );
            let mut client = std::net::TcpStream::connect(proxy.http).unwrap();
            client
                .set_read_timeout(Some(crate::harness::PATIENCE))
                .unwrap();
            let mut writer = client.try_clone().unwrap();
            let uploading = std::thread::spawn(move || {
                let _ = writer.write_all(b"POST /a HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ntransfer-encoding: chunked\r\n\r\n");
                let chunk = [b"10000\r\n".to_vec(), vec![b'#'; 0x10000], b"\r\n".to_vec()].concat();
                // The client writes until no bytes are read.
                while writer.write_all(&chunk).is_ok() {}
            });
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1.1 504"),
                "{engine}: {}",
                String::from_utf8_lossy(&answer)
            );
            assert!(
                !answer.is_empty() || http2,
                "{engine}: a socket of its own tells the client why"
            );
            drop(client);
            uploading.join().unwrap();
            until("the failure to count", || {
                (failed(&proxy) == 1).then_some(())
            });
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_not_counted_as_a_late_backend() {
    for engine in ENGINES {
        let backend = RawBackend::start();
        let tables = format!(
            "[listen]\nengine = \"{engine}\"\nhttp = [\"127.0.0.1:0\"]\nwrite_timeout = \
             \"1500ms\"\n[backend.new]\nservers = [\"{}\"]\nbody_pause_timeout = \"300ms\"\n",
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
        backend.behave(AtAccept::Read, |talk, _| {
            talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")?;
            talk.say(&vec![b'#'; 50_000_000])?;
            Ok(true)
        });
        let mut client = RawClient::connect(proxy.http);
        client.send(b"GET /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n");
        until("the answer to be under way", || {
            (proxy.rollout()["new"]["in_flight"] == 1).then_some(())
        });
        assert_eq!(failed(&proxy), 0, "{engine}: the client is to blame");
    }
}
