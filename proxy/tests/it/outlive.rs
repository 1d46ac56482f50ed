//! WebSockets and streams, which outlive a request, follow a rollback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::json;

use crate::harness::{PATIENCE, Proxy, rollout, until};

/// Starts a backend that echoes the bytes of a WebSocket one by one, without their mask. It sends
/// an event each time it is requested on another connection.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    address
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if !head.to_ascii_lowercase().contains("\r\nupgrade: websocket") {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata:0\r\n")?;
        // The connection is silent from here on, until it is ended.
        let _ = reader.read(&mut [0; 64]);
        return Ok(());
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    loop {
        let mut header = [0; 6];
        reader.read_exact(&mut header)?;
        let mut payload = vec![0; usize::from(header[1] & 0x7f)];
        reader.read_exact(&mut payload)?;
        payload
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte ^= header[2 + at % 4]);
        stream.write_all(&[&[header[0], payload.len() as u8], payload.as_slice()].concat())?;
    }
}

struct WebSocket(TcpStream);

impl WebSocket {
    fn open(proxy: &Proxy, headers: &str) -> Self {
        let mut stream = TcpStream::connect(proxy.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let handshake = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: \
                         13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        stream
            .write_all(
                format!("GET /socket HTTP/1.1\r\nhost: h\r\n{headers}{handshake}\r\n").as_bytes(),
            )
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        Self(stream)
    }

    /// Sends a text and reads it back.
    fn echoes(&mut self, text: &str) {
        self.0
            .write_all(
                &[
                    &[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0],
                    text.as_bytes(),
                ]
                .concat(),
            )
            .unwrap();
        let mut frame = vec![0; 2 + text.len()];
        self.0.read_exact(&mut frame).unwrap();
        assert_eq!(&frame[2..], text.as_bytes());
    }

    /// Returns everything received until the end.
    fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest);
        rest
    }
}

/// The SHA-256 of `sesame`.
const ROUTING: &str = "[routing]\noverride_token_sha256 = \
                       \"d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272\"\n";
const USER: &str = "x-user-id: u\r\n";
const TESTER: &str = "x-user-id: t\r\nx-cutover-override: new sesame\r\n";

fn start(drain: &str) -> Proxy {
    let both = backend();
    let tables = format!(
        "{ROUTING}[backend.legacy]\nservers = [\"{both}\"]\n[backend.new]\nservers = \
         [\"{both}\"]\n"
    );
    Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            &format!("drain_on_rollback = \"{drain}\"\n[rollout.guard]\nmode = \"off\"\n"),
        ),
    )
}

fn roll_back(proxy: &Proxy) {
    assert_eq!(
        proxy
            .post(
                "/api/v1/rollouts/checkout/rollback",
                &json!({"reason": "a test"})
            )
            .status(),
        200
    );
}

fn open_on(proxy: &Proxy, side: &str) -> Option<f64> {
    proxy.metric(&format!(
        "cutover_websockets{{rollout=\"checkout\",backend=\"{side}\"}}"
    ))
}

#[test]
fn only_websockets_on_new_are_closed_with_1012_after_a_rollback() {
    let proxy = start("300ms");
    let (mut user, mut idle, mut tester) = (
        WebSocket::open(&proxy, USER),
        WebSocket::open(&proxy, USER),
        WebSocket::open(&proxy, TESTER),
    );
    user.echoes("before");
    tester.echoes("before");
    until("three WebSockets", || {
        (open_on(&proxy, "new") == Some(3.0)).then_some(())
    });
    roll_back(&proxy);
    idle.echoes("a rollback alone closes nothing");
    let mut later = WebSocket::open(&proxy, USER);
    later.echoes("on legacy by now");
    assert_eq!(open_on(&proxy, "legacy"), Some(1.0));
    for drained in [user, idle] {
        assert_eq!(
            drained.rest(),
            [0x88, 2, 0x03, 0xf4],
            "a close frame with 1012, and nothing else"
        );
    }
    tester.echoes("still on new");
    later.echoes("still on legacy");
    until("the counts", || {
        (proxy.metric("cutover_drained_total{kind=\"websocket\"}") == Some(2.0)
            && open_on(&proxy, "new") == Some(1.0))
        .then_some(())
    });
    assert_eq!(
        proxy.metric(
            "cutover_failures_total{rollout=\"checkout\",backend=\"new\",kind=\"truncated\"}"
        ),
        Some(0.0)
    );
}

#[test]
fn a_websocket_rearmed_before_the_deadline_stays_open() {
    let proxy = start("400ms");
    let mut user = WebSocket::open(&proxy, USER);
    user.echoes("before");
    roll_back(&proxy);
    assert_eq!(
        proxy
            .post(
                "/api/v1/rollouts/checkout/rearm",
                &json!({"reason": "a test"})
            )
            .status(),
        200
    );
    let began = std::time::Instant::now();
    until("the time to be up", || {
        (began.elapsed() > std::time::Duration::from_millis(1_200)).then_some(())
    });
    user.echoes("after");
    assert_eq!(
        proxy.metric("cutover_drained_total{kind=\"websocket\"}"),
        Some(0.0)
    );
}

#[test]
fn an_event_stream_may_be_idle_and_ends_after_a_rollback_unfailed() {
    let both = backend();
    // Answers must arrive within 200 ms, and the stream is silent for longer than that.
    let tables = format!("[backend.new]\nservers = [\"{both}\"]\nresponse_timeout = \"200ms\"\n");
    let proxy = Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "drain_on_rollback = \"0s\"\n[rollout.guard]\nmode = \"off\"\n",
        ),
    );
    let mut stream = TcpStream::connect(proxy.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(
            b"GET /events HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\naccept: text/event-stream\r\n\r\n",
        )
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data:0") {
        line.clear();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "the stream ended before its first event"
        );
    }
    let began = std::time::Instant::now();
    until("more than the response timeout to pass", || {
        (began.elapsed() > std::time::Duration::from_millis(600)).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["in_flight"], 1, "it rests");
    roll_back(&proxy);
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(
        !String::from_utf8_lossy(&rest).contains("0\r\n\r\n"),
        "what was cut must not look whole"
    );
    until("it to be counted", || {
        (proxy.metric("cutover_drained_total{kind=\"stream\"}") == Some(1.0)).then_some(())
    });
    until("nothing to be in flight", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(proxy.rollout()["new"]["failed"], 0);
}

#[test]
fn a_websocket_may_be_quiet_for_long_and_carry_much_in_all() {
    let both = backend();
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nmax_body = \"1KiB\"\nbody_idle_timeout = \
         \"300ms\"\n[backend.new]\nservers = [\"{both}\"]\n"
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", ""));
    let (mut quiet, mut busy) = (WebSocket::open(&proxy, USER), WebSocket::open(&proxy, USER));
    for _ in 0..100 {
        busy.echoes(
            "a hundred bytes, all told, are sent with each of these; more in the end than a body \
             of a request may have",
        );
    }
    // This is longer than the time over which the speed of a body is measured.
    let began = std::time::Instant::now();
    let mut said = 0;
    until("twelve seconds", || {
        if began.elapsed() >= std::time::Duration::from_millis(1_000) * said {
            quiet.echoes("still here");
            said += 1;
        }
        (said > 12).then_some(())
    });
}
