//! Spans as a collector receives them, sent by the real exporter and read with a separate decoder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::harness::{PATIENCE, Proxy, rollout, until};

/// A span as it was received.
#[derive(Clone, Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: Vec<(String, String)>,
    status: u64,
    service: String,
}

impl Span {
    fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// The content of a field of a protobuf message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Parses the fields of a protobuf message: <https://protobuf.dev/programming-guides/encoding/>.
fn fields(mut message: &[u8]) -> Vec<(u64, Value<'_>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut number = 0;
        for at in 0..10 {
            let byte = message[0];
            *message = &message[1..];
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return number;
            }
        }
        panic!("a number without an end")
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)),
            1 => {
                let (number, rest) = message.split_at(8);
                message = rest;
                Value::Number(u64::from_le_bytes(number.try_into().unwrap()))
            }
            2 => {
                let length = varint(&mut message) as usize;
                let (bytes, rest) = message.split_at(length);
                message = rest;
                Value::Bytes(bytes)
            }
            5 => {
                let (number, rest) = message.split_at(4);
                message = rest;
                Value::Number(u64::from(u32::from_le_bytes(number.try_into().unwrap())))
            }
            wire => panic!("wire type {wire}"),
        };
        found.push((tag >> 3, value));
    }
    found
}

fn parts(message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(message)
        .into_iter()
        .filter_map(move |(field, value)| match value {
            Value::Bytes(bytes) if field == number => Some(bytes),
            _ => None,
        })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_value(message: &[u8]) -> (String, String) {
    let (mut key, mut text) = (String::new(), String::new());
    for (field, value) in fields(message) {
        match (field, value) {
            (1, Value::Bytes(bytes)) => key = String::from_utf8(bytes.to_vec()).unwrap(),
            (2, Value::Bytes(any)) => match fields(any).pop() {
                Some((1, Value::Bytes(bytes))) => text = String::from_utf8(bytes.to_vec()).unwrap(),
                Some((3, Value::Number(number))) => text = number.to_string(),
                _ => panic!("another kind of attribute"),
            },
            _ => {}
        }
    }
    (key, text)
}

/// Returns the code of a status; 2 is an error.
fn code(status: &[u8]) -> u64 {
    let codes = fields(status).into_iter().filter_map(|(field, value)| {
        if let (3, Value::Number(code)) = (field, value) {
            Some(code)
        } else {
            None
        }
    });
    codes.max().unwrap_or(0)
}

/// Returns the spans of an `ExportTraceServiceRequest`.
fn spans(request: &[u8]) -> Vec<Span> {
    let mut found = Vec::new();
    for of_resource in parts(request, 1) {
        let resource: Vec<_> = parts(of_resource, 1)
            .flat_map(|resource| parts(resource, 1).map(key_value).collect::<Vec<_>>())
            .collect();
        let service = resource
            .iter()
            .find(|(key, _)| key == "service.name")
            .map(|(_, value)| value.clone())
            .unwrap_or_default();
        for span in
            parts(of_resource, 2).flat_map(|of_scope| parts(of_scope, 2).collect::<Vec<_>>())
        {
            let mut read = Span {
                service: service.clone(),
                ..Span::default()
            };
            for (field, value) in fields(span) {
                match (field, value) {
                    (1, Value::Bytes(bytes)) => read.trace = hex(bytes),
                    (2, Value::Bytes(bytes)) => read.id = hex(bytes),
                    (4, Value::Bytes(bytes)) => read.parent = hex(bytes),
                    (5, Value::Bytes(bytes)) => {
                        read.name = String::from_utf8(bytes.to_vec()).unwrap();
                    }
                    (6, Value::Number(kind)) => read.kind = kind,
                    (7, Value::Number(start)) => read.start = start,
                    (8, Value::Number(end)) => read.end = end,
                    (9, Value::Bytes(pair)) => read.attributes.push(key_value(pair)),
                    (15, Value::Bytes(status)) => read.status = code(status),
                    _ => {}
                }
            }
            found.push(read);
        }
    }
    found
}

/// A collector that keeps what it receives.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            spans: Arc::default(),
        };
        let keeping = Arc::clone(&collector.spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keeping = Arc::clone(&keeping);
                std::thread::spawn(move || drop(serve(stream, status, &keeping)));
            }
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    fn table(&self, sample: &str) -> String {
        format!(
            "[traces]\nendpoint = \"http://{}\"\nsample = \"{sample}\"\nservice = \"edge\"\n",
            self.address
        )
    }
}

fn serve(mut stream: TcpStream, status: &str, keeping: &Mutex<Vec<Span>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(
            head.starts_with("post /v1/traces http/1.1\r\n")
                && head.contains("content-type: application/x-protobuf\r\n"),
            "{head}"
        );
        let length = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next())
            .unwrap()
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        keeping.lock().unwrap().extend(spans(&body));
        stream.write_all(
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: \
                 0\r\n\r\n"
            )
            .as_bytes(),
        )?;
    }
}

const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

#[test]
fn a_failover_has_two_attempts_and_the_backend_is_child_of_the_second() {
    let collector = Collector::start("200 OK");
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tables = format!(
        "{}[backend.new]\nservers = [\"{dead}\"]\n",
        collector.table("100%")
    );
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", ""));
    let answer = proxy.get(
        "/cart?secret=1",
        &[
            ("x-user-id", "u"),
            ("traceparent", SENT),
            ("tracestate", "vendor=1"),
        ],
    );
    assert_eq!((answer.status(), answer.side()), (200, "legacy"));
    let found = until("the spans", || {
        Some(collector.spans()).filter(|spans| spans.len() >= 3)
    });
    let [own, first, second] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (own.trace.as_str(), own.parent.as_str(), own.kind),
        ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 2)
    );
    assert_eq!(
        (own.name.as_str(), own.service.as_str(), own.status),
        ("GET", "edge", 0)
    );
    for (key, value) in [
        ("url.path", "/cart"),
        ("cutover.rollout", "checkout"),
        ("cutover.backend", "new"),
        ("cutover.reason", "bucket"),
        ("cutover.moved", "failover"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(own.attribute(key), Some(value), "{own:?}");
    }
    assert_eq!(
        (
            first.name.as_str(),
            first.kind,
            first.status,
            first.attribute("error.type")
        ),
        ("GET new", 3, 2, Some("connect"))
    );
    assert_eq!(
        first.attribute("server.port"),
        Some(dead.port().to_string().as_str())
    );
    assert_eq!(
        (
            second.name.as_str(),
            second.status,
            second.attribute("http.response.status_code")
        ),
        ("GET legacy", 0, Some("200"))
    );
    for attempt in [first, second] {
        assert_eq!((&attempt.trace, &attempt.parent), (&own.trace, &own.id));
        assert!(
            own.start <= attempt.start && attempt.start <= attempt.end && attempt.end <= own.end,
            "{found:?}"
        );
    }
    assert!(first.end <= second.start);
    let head = proxy.legacy.last_head().to_lowercase();
    assert!(
        head.contains(&format!(
            "traceparent: 00-{}-{}-01\r\n",
            own.trace, second.id
        )) && head.contains("tracestate: vendor=1\r\n"),
        "{head}"
    );
    until("the count", || {
        (proxy.metric("cutover_spans_total{result=\"exported\"}") == Some(3.0)).then_some(())
    });
}

#[test]
fn a_failure_is_a_span_error_and_unsampled_requests_pass_unchanged() {
    let collector = Collector::start("200 OK");
    let proxy = Proxy::start_with(&collector.table("100%"), &rollout("checkout", "0", ""));
    assert_eq!(proxy.get("/bad", &[("x-user-id", "u")]).status(), 500);
    let found = until("the spans", || {
        Some(collector.spans()).filter(|spans| spans.len() == 2)
    });
    assert_eq!(
        (
            found[0].status,
            found[0].attribute("error.type"),
            found[0].parent.as_str()
        ),
        (2, Some("status"), "")
    );
    assert_eq!(
        (found[1].status, found[1].attribute("error.type")),
        (2, Some("status"))
    );
    // Fewer requests are sampled from the next reading of the file on.
    std::fs::write(
        proxy.file(),
        proxy.text_with(&collector.table("0%"), &rollout("checkout", "0", "")),
    )
    .unwrap();
    proxy.reload();
    assert_eq!(
        proxy
            .get("/after", &[("x-user-id", "u"), ("traceparent", SENT)])
            .status(),
        200
    );
    assert!(
        proxy
            .legacy
            .last_head()
            .to_lowercase()
            .contains(&format!("traceparent: {SENT}\r\n")),
        "{}",
        proxy.legacy.last_head()
    );
    // Spans are exported once more. Those of the request in between would have been received
    // before.
    std::fs::write(
        proxy.file(),
        proxy.text_with(&collector.table("100%"), &rollout("checkout", "0", "")),
    )
    .unwrap();
    proxy.reload();
    assert_eq!(proxy.get("/last", &[("x-user-id", "u")]).status(), 200);
    let found = until("the last spans", || {
        Some(collector.spans()).filter(|spans| spans.len() > 2)
    });
    let paths: Vec<_> = found
        .iter()
        .filter_map(|span| span.attribute("url.path"))
        .collect();
    assert_eq!(paths, ["/bad", "/last"]);
}

#[test]
fn a_collector_that_refuses_or_hangs_loses_spans_but_no_request() {
    let refusing = Collector::start("400 Bad Request");
    let proxy = Proxy::start_with(&refusing.table("100%"), &rollout("checkout", "0", ""));
    assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 200);
    until("the loss", || {
        (proxy.metric("cutover_spans_total{result=\"failed\"}") == Some(2.0)).then_some(())
    });
    drop(proxy);

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let table = format!(
        "[traces]\nendpoint = \"http://{}\"\nsample = \"100%\"\n",
        silent.local_addr().unwrap()
    );
    let mut proxy = Proxy::start_with(&table, &rollout("checkout", "0", ""));
    for _ in 0..50 {
        assert_eq!(proxy.get("/", &[("x-user-id", "u")]).status(), 200);
    }
    until("the loss", || {
        proxy
            .metric("cutover_spans_total{result=\"failed\"}")
            .filter(|lost| *lost > 0.0)
    });
    proxy.stop();
}

#[test]
fn a_request_aborted_by_the_client_is_no_error_of_the_backend() {
    let collector = Collector::start("200 OK");
    let endless = TcpListener::bind("127.0.0.1:0").unwrap();
    let tables = format!(
        "{}[backend.new]\nservers = [\"{}\"]\n",
        collector.table("100%"),
        endless.local_addr().unwrap()
    );
    std::thread::spawn(move || {
        let (mut stream, _) = endless.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while stream.write_all(&[b'x'; 65_536]).is_ok() {}
    });
    let proxy = Proxy::start_with(&tables, &rollout("checkout", "100", ""));
    let mut client = TcpStream::connect(proxy.http).unwrap();
    client
        .write_all(b"GET /long HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n\r\n")
        .unwrap();
    client.read_exact(&mut [0; 1_000]).unwrap();
    drop(client);
    let found = until("the spans", || {
        Some(collector.spans()).filter(|spans| spans.len() == 2)
    });
    for span in &found {
        assert_eq!(
            (
                span.status,
                span.attribute("error.type"),
                span.attribute("http.response.status_code")
            ),
            (0, None, Some("200")),
            "{found:?}"
        );
    }
}
