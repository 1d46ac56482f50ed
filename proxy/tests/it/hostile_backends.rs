//! A backend that does everything wrong, one thing at a time. The client sees a failure or a
//! visible truncation, never a broken answer that looks whole. Nothing that must not be repeated is
//! sent twice. The next user gets the right answer over the connections left in the pool.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Proxy, rollout, until};
use crate::raw::{Answer, AtAccept, Ending, RawBackend, RawClient, Request, Script, Talk};

/// What a client may see.
#[derive(Clone, Copy, Debug)]
enum Sees {
    /// This status as a whole answer.
    Status(u16),
    /// The status of the backend, and an end that shows that the answer is incomplete.
    Cut(u16),
    /// This status and this body, whole.
    Body(u16, &'static str),
    /// A failure or a truncated answer, depending on timing.
    Broken,
}

use Sees::{Body, Broken, Cut, Status};

struct Case {
    name: &'static str,
    at_accept: AtAccept,
    script: Script,
    sees: Sees,
    /// The kinds of failure of which one is counted against the backend. `None` if no failure is
    /// counted, or if its kind depends on chance.
    kind: Option<&'static str>,
}

fn case(name: &'static str, script: Script, sees: Sees, kind: Option<&'static str>) -> Case {
    Case {
        name,
        at_accept: AtAccept::Read,
        script,
        sees,
        kind,
    }
}

/// Sends these bytes and keeps the connection.
macro_rules! says {
    ($($bytes:expr),+) => {
        |talk: &mut Talk, _: &Request| {
            // The proxy may already have closed the connection. Nothing more can be sent then.
            let kept = $(talk.say($bytes).is_ok())&&+;
            talk.done();
            Ok(kept)
        }
    };
}

/// Sends these bytes and closes.
macro_rules! ends {
    ($($bytes:expr),*) => {
        |_talk: &mut Talk, _: &Request| {
            $(_talk.say($bytes)?;)*
            _talk.done();
            Ok(false)
        }
    };
}

/// Sends these bytes and then nothing, until the proxy gives up.
macro_rules! stalls {
    ($($bytes:expr),*) => {
        |talk: &mut Talk, _: &Request| {
            $(talk.say($bytes)?;)*
            talk.outlast()
        }
    };
}

/// Sends these bytes and resets the connection once the proxy has received them.
macro_rules! resets {
    ($($bytes:expr),*) => {
        |talk: &mut Talk, _: &Request| {
            $(talk.say($bytes)?;)*
            talk.reset()
        }
    };
}

const PROTOCOL: Option<&str> = Some("protocol");
const RESET: Option<&str> = Some("reset");
const TIMEOUT: Option<&str> = Some("timeout");
const TRUNCATED: Option<&str> = Some("truncated");

fn broken_heads() -> Vec<Case> {
    vec![
        Case { at_accept: AtAccept::Close, ..case("closes at accept", ends!(), Status(502), RESET) },
        Case { at_accept: AtAccept::Reset, ..case("resets at accept", ends!(), Status(502), Some("reset or connect")) },
        case("closes after the request", ends!(), Status(502), RESET),
        case("resets after the request", resets!(), Status(502), RESET),
        case("closes in the status line", ends!(b"HTTP/1.1 20"), Status(502), RESET),
        case("closes in the head", ends!(b"HTTP/1.1 200 OK\r\ncontent-len"), Status(502), RESET),
        case("resets in the head", resets!(b"HTTP/1.1 200 OK\r\ncontent-len"), Status(502), RESET),
        case("speaks another protocol", stalls!(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), Status(502), PROTOCOL),
        case("sends bytes of no protocol", stalls!(b"\x16\x03\x01\x00\xff\xfe"), Status(502), PROTOCOL),
        case("answers in HTTP/0.9", ends!(b"<html>hello</html>"), Status(502), PROTOCOL),
        case("answers in HTTP/2", stalls!(b"HTTP/2 200\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("answers in HTTP/1.2", stalls!(b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a status of two digits", stalls!(b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a status in words", stalls!(b"HTTP/1.1 abc OK\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has the status 000", stalls!(b"HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a header without a colon", stalls!(b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a NUL in a header", stalls!(b"HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a bare carriage return in a header", stalls!(b"HTTP/1.1 200 OK\r\nx-a: a\rset-cookie: evil=1\r\ncontent-length: 2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has two lengths that differ", stalls!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!"), Status(502), PROTOCOL),
        case("has a list of lengths that differ", stalls!(b"HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok!"), Status(502), PROTOCOL),
        case("has a length below zero", stalls!(b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok"), Status(502), PROTOCOL),
        case("has a length of more than 64 bits", stalls!(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nok"), Status(502), PROTOCOL),
        case(
            "has 10,000 headers",
            |talk, _| {
                talk.say(format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-a: 1\r\n".repeat(10_000)).as_bytes())?;
                talk.outlast()
            },
            Status(502),
            PROTOCOL,
        ),
        case(
            "has a head of 2 MiB",
            |talk, _| {
                talk.say(format!("HTTP/1.1 200 OK\r\nx-a: {}\r\n\r\n", "a".repeat(2 << 20)).as_bytes())?;
                talk.outlast()
            },
            Status(502),
            PROTOCOL,
        ),
        case(
            "has a head without an end",
            |talk, _| {
                for _ in 0..10_000 {
                    talk.say(b"HTTP/1.1 200 OK\r\nx-a: 1\r\n")?;
                }
                talk.outlast()
            },
            Status(502),
            PROTOCOL,
        ),
        case("switches protocols unasked", stalls!(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nsecret"), Status(502), PROTOCOL),
        case(
            "sends 1xx without an end",
            |talk, _| {
                for _ in 0..100_000 {
                    talk.say(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                talk.outlast()
            },
            Status(502),
            PROTOCOL,
        ),
        case(
            "sends a thousand early hints",
            |talk, _| {
                for _ in 0..1_000 {
                    talk.say(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")?;
                }
                talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
                talk.outlast()
            },
            Status(502),
            PROTOCOL,
        ),
        case("answers with an early hint and closes", ends!(b"HTTP/1.1 103 Early Hints\r\n\r\n"), Status(502), RESET),
        case("never answers", stalls!(), Status(504), TIMEOUT),
        case("stalls in the status line", stalls!(b"HTTP/1.1 2"), Status(504), TIMEOUT),
        case("stalls in the head", stalls!(b"HTTP/1.1 200 OK\r\nx-a: 1\r\n"), Status(504), TIMEOUT),
    ]
}

fn broken_bodies() -> Vec<Case> {
    vec![
        case("closes in a body by length", ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789"), Cut(200), TRUNCATED),
        case("closes before a body by length", ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"), Cut(200), TRUNCATED),
        case("resets in a body by length", resets!(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789"), Broken, None),
        case("stalls in a body by length", stalls!(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789"), Cut(200), TRUNCATED),
        case("has a length that nothing can have", ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775807\r\n\r\n0123456789"), Cut(200), TRUNCATED),
        case("closes in a chunk", ends!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n01234"), Cut(200), TRUNCATED),
        case("closes before the last chunk", ends!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n"), Cut(200), TRUNCATED),
        case("closes in the last chunk", ends!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n"), Cut(200), TRUNCATED),
        case("stalls before the last chunk", stalls!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n"), Cut(200), TRUNCATED),
        case("has a chunk size that is a word", stalls!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nten\r\n0123456789\r\n0\r\n\r\n"), Cut(200), TRUNCATED),
        case(
            "has a chunk size of more than 64 bits",
            stalls!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1000000000000000a\r\n0123456789\r\n0\r\n\r\n"),
            Cut(200),
            TRUNCATED,
        ),
        case("has a chunk that is longer than its size", stalls!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n0123456789\r\n0\r\n\r\n"), Cut(200), TRUNCATED),
        case(
            "drips a head and stalls",
            |talk, _| {
                for byte in b"HTTP/1.1 200 OK\r\nx-a: ".iter().chain(std::iter::repeat_n(&b'a', 400)) {
                    talk.say(&[*byte])?;
                }
                talk.outlast()
            },
            Status(504),
            TIMEOUT,
        ),
    ]
}

fn odd_but_whole() -> Vec<Case> {
    vec![
        case("has no words after the status", says!(b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("has an unknown status", says!(b"HTTP/1.1 299 Fine\r\ncontent-length: 2\r\n\r\nok"), Body(299, "ok"), None),
        case("has length and coding", ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), Body(200, "ok"), None),
        case("has a header with a space before the colon", says!(b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok"), Body(200, "ok"), None),
        case("has a folded header", says!(b"HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("ends its lines in bare line feeds", says!(b"HTTP/1.1 200 OK\nx-a: 1\ncontent-length: 2\n\nok"), Body(200, "ok"), None),
        case("has two lengths that agree", says!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case(
            "has trailers",
            says!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-a\r\n\r\n2\r\nok\r\n0\r\nx-a: 1\r\nset-cookie: evil=1\r\n\r\n"),
            Body(200, "ok"),
            None,
        ),
        case("has chunk extensions", says!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n"), Body(200, "ok"), None),
        case("sends bytes after the answer", says!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEXTRA"), Body(200, "ok"), None),
        case("answers twice at once", says!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"), Body(200, "ok"), None),
        case(
            "answers twice, the second time late",
            says!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"),
            Body(200, "ok"),
            None,
        ),
        case(
            "answers twice after chunks",
            says!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"),
            Body(200, "ok"),
            None,
        ),
        case("has a body on 204", says!(b"HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison"), Body(204, ""), None),
        case("has a body on 304", says!(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison"), Body(304, ""), None),
        case("has chunks on 204", says!(b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n"), Body(204, ""), None),
        case("says close and closes", ends!(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("says close and does not close", says!(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("says nothing and closes", ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("has a body that ends with the connection", ends!(b"HTTP/1.1 200 OK\r\n\r\nok"), Body(200, "ok"), None),
        case("answers in HTTP/1.0 with a length", ends!(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        case("calls rubbish gzip", says!(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 7\r\n\r\nrubbish"), Body(200, "rubbish"), None),
        case(
            "drips an answer",
            |talk, _| {
                // Only a few bytes are sent at a time. On a busy machine each pause takes longer
                // than it should, and the head has half a second.
                for bytes in b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".chunks(5) {
                    talk.say(bytes)?;
                    talk.rest(Duration::from_millis(1));
                }
                talk.done();
                Ok(true)
            },
            Body(200, "ok"),
            None,
        ),
        case(
            "has a head of 100 KiB",
            |talk, _| {
                talk.say(format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 2\r\n\r\nok", "a".repeat(100 * 1024)).as_bytes())?;
                talk.done();
                Ok(true)
            },
            Body(200, "ok"),
            None,
        ),
        case(
            "sends early hints",
            says!(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
            Body(200, "ok"),
            None,
        ),
        case("nominates headers", says!(b"HTTP/1.1 200 OK\r\nconnection: x-a, keep-alive\r\nx-a: 1\r\ncontent-length: 2\r\n\r\nok"), Body(200, "ok"), None),
        // Bytes received first on a fresh connection are used as the answer. Bytes that the backend
        // sends after it has read the request must not become the next answer.
        Case {
            at_accept: AtAccept::Say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly"),
            ..case("answers before it was asked", says!(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"), Body(200, "early"), None)
        },
    ]
}

/// How long the backend may delay its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

fn start(backend: &RawBackend) -> Proxy {
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nbody_idle_timeout = \"1s\"\n[backend.new]\nservers = \
         [\"{}\"]\nresponse_timeout = \"{}ms\"\nbody_pause_timeout = \"{}ms\"\nconnect_timeout = \
         \"500ms\"\n",
        backend.address,
        RESPONSE_TIMEOUT.as_millis(),
        RESPONSE_TIMEOUT.as_millis()
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

fn ask(proxy: &Proxy, method: &str, target: &str) -> Option<Answer> {
    let body = if method == "POST" {
        "content-length: 4\r\n\r\nonce"
    } else {
        "\r\n"
    };
    let mut client = RawClient::connect(proxy.http);
    client.send(
        format!("{method} {target} HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\n{body}").as_bytes(),
    );
    client.answer(method == "HEAD")
}

/// Returns what is wrong with an answer to another user, if anything.
fn next_user(proxy: &Proxy, target: &str) -> Option<String> {
    let expected = format!("GET {target} rollout=checkout body=0");
    match ask(proxy, "GET", target) {
        Some(answer)
            if answer.status == 200
                && answer.ending == Ending::Whole
                && answer.text() == expected =>
        {
            None
        }
        other => Some(format!("the next user got {other:?}")),
    }
}

fn is_as(sees: Sees, method: &str, answer: Option<&Answer>) -> bool {
    let Some(answer) = answer else {
        return matches!(sees, Broken);
    };
    match sees {
        Status(status) => answer.status == status && answer.ending == Ending::Whole,
        Cut(status) if method == "HEAD" => answer.status == status,
        Cut(status) => answer.status == status && answer.ending == Ending::Cut,
        Body(status, body) => {
            answer.status == status
                && answer.ending == Ending::Whole
                && (method == "HEAD" || answer.text() == body)
        }
        Broken => answer.status == 502 || answer.ending == Ending::Cut,
    }
}

/// Runs a case with one method and returns everything that is wrong.
fn play(
    proxy: &Proxy,
    backend: &RawBackend,
    case: &Case,
    method: &str,
    number: usize,
) -> Vec<String> {
    let mut wrong = Vec::new();
    // A kept connection is opened first, so that there is one to poison.
    backend.behave(AtAccept::Read, crate::raw::good);
    wrong.extend(next_user(proxy, &format!("/warm/{number}")));
    if case.at_accept != AtAccept::Read {
        // Kept connections are of no use in this case, so they are used up.
        backend.behave(AtAccept::Read, ends!());
        for _ in 0..3 {
            let before = total(proxy);
            ask(proxy, "POST", "/evil");
            until("that failure to be counted", || {
                (total(proxy) > before).then_some(())
            });
        }
        backend.take_evil();
    }
    backend.behave(case.at_accept, case.script);
    let (before, done) = (failures(proxy), backend.done());
    let started = Instant::now();
    let answer = ask(proxy, method, &format!("/evil/{number}"));
    let took = started.elapsed();
    if !is_as(case.sees, method, answer.as_ref()) {
        wrong.push(format!(
            "the client got {:?}, expected {:?}",
            answer
                .as_ref()
                .map(|answer| (answer.status, answer.ending, answer.text())),
            case.sees
        ));
    }
    if answer
        .as_ref()
        .is_some_and(|answer| answer.head.contains("\r\n ") || answer.head.contains(" :"))
    {
        wrong.push(format!("the head is not put right: {answer:?}"));
    }
    if answer.as_ref().is_some_and(|answer| {
        answer.head.contains("evil=1")
            || answer.text().contains("poison")
            || answer.text().contains("secret")
    }) {
        wrong.push(format!("what the backend smuggled arrived: {answer:?}"));
    }
    let bound = 2 * RESPONSE_TIMEOUT + Duration::from_millis(1_500);
    if took > bound {
        wrong.push(format!("took {took:?}, bound {bound:?}"));
    }
    if matches!(case.sees, Body(..)) {
        until("the backend to have said all", || {
            (backend.done() > done).then_some(())
        });
    }
    backend.behave(AtAccept::Read, crate::raw::good);
    for more in 0..3 {
        wrong.extend(next_user(proxy, &format!("/next/{number}/{more}")));
    }
    let asked = backend.take_evil();
    let most = if method == "POST" { 1 } else { 2 };
    if asked.len() > most {
        wrong.push(format!("the backend was asked {asked:?}"));
    }
    if method != "HEAD"
        && let Some(kind) = case.kind
    {
        let counted = |name: &str| {
            format!(
                "cutover_failures_total{{rollout=\"checkout\",backend=\"new\",kind=\"{name}\"}}"
            )
        };
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let new: Vec<(String, f64)> = failures(proxy)
                .into_iter()
                .zip(&before)
                .filter(|(now, then)| now.1 > then.1)
                .map(|(now, then)| (now.0, now.1 - then.1))
                .collect();
            if matches!(&new[..], [(name, 1.0)] if kind.split(" or ").any(|kind| *name == counted(kind)))
            {
                break;
            }
            if Instant::now() > deadline {
                wrong.push(format!("counted {new:?}, expected one {kind}"));
                break;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    wrong
}

fn total(proxy: &Proxy) -> f64 {
    failures(proxy).iter().map(|(_, count)| count).sum()
}

/// Returns every count of failures, by kind and side.
fn failures(proxy: &Proxy) -> Vec<(String, f64)> {
    let text = proxy.admin_ask("GET", "/metrics", &[], b"").text();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("cutover_failures_total{"));
    lines
        .filter_map(|line| {
            line.rsplit_once(' ')
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        })
        .collect()
}

#[test]
fn no_broken_answer_looks_whole_or_reaches_the_next_user() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    let cases: Vec<Case> = [broken_heads(), broken_bodies(), odd_but_whole()]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        for method in ["GET", "POST", "HEAD"] {
            let skip = method == "HEAD" && matches!(case.sees, Cut(_) | Broken);
            if skip {
                continue;
            }
            let found = play(&proxy, &backend, case, method, number);
            if !found.is_empty() {
                wrong.push(format!("{} ({method}): {}", case.name, found.join("\n  ")));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(
        proxy.rollout()["legacy"]["failed"],
        0,
        "legacy was never asked"
    );
    assert_eq!(proxy.legacy.requests(), 0);
    until("nothing to be in flight", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
}

#[test]
fn an_answer_before_the_upload_is_read_reaches_the_client() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    backend.behave(
        AtAccept::AnswerTheHead(
            b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig",
        ),
        crate::raw::good,
    );
    let mut client = RawClient::connect(proxy.http);
    client.send(
        b"POST /upload HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\ncontent-length: 1000000\r\n\r\n",
    );
    client.send(&vec![b'x'; 64 * 1024]);
    let answer = client.answer(false).expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
    assert!(client.is_closed(), "the rest of the upload is no request");
    backend.behave(AtAccept::Read, crate::raw::good);
    assert_eq!(next_user(&proxy, "/next"), None);
}

#[test]
fn bytes_on_an_idle_pooled_connection_answer_no_request() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    for round in 0..10 {
        // The poison follows in a separate packet, and has arrived before the next user sends a
        // request.
        backend.behave(AtAccept::Read, |talk, _| {
            talk.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            let kept = talk
                .say(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
                .is_ok();
            talk.done();
            Ok(kept)
        });
        let done = backend.done();
        let answer = ask(&proxy, "GET", "/evil").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        until("the backend to have said all", || {
            (backend.done() > done).then_some(())
        });
        for next in 0..3 {
            assert_eq!(next_user(&proxy, &format!("/next/{round}/{next}")), None);
        }
    }
}

#[test]
fn a_connection_closed_on_reuse_costs_a_get_nothing_and_repeats_no_post() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    for round in 0..10 {
        for (method, status, most) in [("GET", 502, 2), ("POST", 502, 1)] {
            assert_eq!(next_user(&proxy, &format!("/warm/{round}")), None);
            backend.take_evil();
            backend.behave(AtAccept::Read, |_, _| Ok(false));
            let answer = ask(&proxy, method, "/evil").expect("an answer");
            assert_eq!(answer.status, status);
            assert!(backend.take_evil().len() <= most, "{method}");
        }
    }
}

#[test]
fn a_kept_connection_that_ended_while_idle_costs_a_post_nothing() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    let mut passed = 0;
    for round in 0..20 {
        backend.behave(
            AtAccept::Read,
            ends!(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        );
        let ended = backend.ended();
        assert_eq!(
            ask(&proxy, "GET", "/evil").map(|answer| answer.status),
            Some(200)
        );
        until("the connection to be closed", || {
            (backend.ended() > ended).then_some(())
        });
        backend.take_evil();
        backend.behave(AtAccept::Read, crate::raw::good);
        let answer = ask(&proxy, "POST", "/evil").expect("an answer");
        let asked = backend.take_evil().len();
        // On a busy machine the end may arrive after the check. The client is then notified, and
        // may try again since no request was sent.
        assert!(
            matches!((answer.status, asked), (200, 1) | (502, 0)),
            "round {round}: {} after {asked} requests",
            answer.status
        );
        passed += asked;
    }
    assert!(passed >= 18, "{passed} of 20");
}

#[test]
fn a_refused_upgrade_leaves_no_tunnel() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")?;
        Ok(true)
    });
    let mut client = RawClient::connect(proxy.http);
    client.send(b"GET /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n");
    let answer = client.answer(false).expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    let mark = backend.mark();
    client.send(b"GET /evil/tunnel HTTP/1.1\r\nsmuggled: 1\r\n\r\n");
    assert_eq!(
        client.answer(false).map_or(400, |answer| answer.status),
        400,
        "what follows is a request of its own, and has no host"
    );
    assert!(backend.since(&mark).is_empty());
    assert_eq!(next_user(&proxy, "/next"), None);
}

#[test]
fn an_upgrade_passes_bytes_both_ways_including_early_ones() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nglued")?;
        talk.echo()
    });
    // Several requests run at once, because the backend has to be faster than a busy proxy.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..60).for_each(|_| through_a_tunnel(&proxy)));
        }
    });
    backend.behave(AtAccept::Read, crate::raw::good);
    assert_eq!(next_user(&proxy, "/next"), None);
}

const UPGRADE: &[u8] = b"GET /evil HTTP/1.1\r\nhost: h\r\nx-user-id: u\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";

#[test]
fn a_tunnel_may_be_idle_for_longer_than_the_response_timeout() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
        talk.rest(3 * RESPONSE_TIMEOUT);
        talk.say(b"late")?;
        Ok(false)
    });
    let mut client = RawClient::connect(proxy.http);
    client.send(UPGRADE);
    assert_eq!(client.answer(false).map(|answer| answer.status), Some(101));
    assert_eq!(client.bytes(4), b"late");
    assert!(client.is_closed());
    until("the tunnel to be over", || {
        (proxy.rollout()["new"]["in_flight"] == 0).then_some(())
    });
    assert_eq!(
        proxy.rollout()["new"]["failed"],
        0,
        "{}",
        proxy.rollout()["new"]
    );
}

#[test]
fn an_unanswered_upgrade_is_a_timeout_and_a_reset_one_is_502() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    for (script, status) in [
        (stalls!() as Script, 504),
        (resets!() as Script, 502),
        (stalls!(b"HTTP/1.1 1") as Script, 504),
    ] {
        backend.behave(AtAccept::Read, script);
        let mut client = RawClient::connect(proxy.http);
        client.send(UPGRADE);
        let started = Instant::now();
        assert_eq!(
            client.answer(false).map(|answer| answer.status),
            Some(status)
        );
        assert!(
            started.elapsed() < 4 * RESPONSE_TIMEOUT,
            "took {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn a_broken_tunnel_ends_without_added_bytes() {
    let backend = RawBackend::start();
    let proxy = start(&backend);
    backend.behave(AtAccept::Read, |talk, _| {
        talk.say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
        // It breaks when it receives a request, so that the switch has arrived.
        talk.rest(PATIENCE);
        talk.reset()
    });
    let mut client = RawClient::connect(proxy.http);
    client.send(UPGRADE);
    assert_eq!(client.answer(false).map(|answer| answer.status), Some(101));
    client.send(b"hello");
    assert_eq!(
        String::from_utf8_lossy(&client.bytes(10)),
        "",
        "the tunnel's other end takes what comes for its own protocol"
    );
}

fn through_a_tunnel(proxy: &Proxy) {
    let mut client = RawClient::connect(proxy.http);
    client.send(UPGRADE);
    let answer = client.answer(false).expect("an answer");
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(client.bytes(5), b"glued", "what came with the answer");
    client.send(b"hello");
    assert_eq!(client.bytes(5), b"hello");
}
