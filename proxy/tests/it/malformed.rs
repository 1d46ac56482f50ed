//! Malformed and ambiguous requests. Each is refused, or forwarded in exactly one form. The bytes
//! that the backend received are compared, and after each case another user must get the right
//! answer.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cutover::assemble::Start;
use serde_json::Value;

use crate::harness::{Proxy, rollout, until};
use crate::raw::{Answer, BOUND, Ending, RawBackend, RawClient, without_ours};

/// The expected result of a request.
enum Expected {
    /// The proxy answers with this status and closes the connection; the backend received nothing
    /// of the request.
    Refused(u16),
    /// The proxy closes the connection without an answer; the backend received nothing of the
    /// request.
    Closed,
    /// The backend receives exactly these bytes in addition to Cutover's headers, and the client
    /// its answer.
    Forwarded(String),
    /// The backend receives exactly these bytes in addition to Cutover's headers, and the
    /// connection is closed after the answer.
    ForwardedOnce(String),
    /// The backend receives these bytes and no more, or nothing, so that the request is visibly
    /// broken. The client gets this status, and the connection is closed.
    Cut(u16, String),
}

use Expected::{Closed, Cut, Forwarded, ForwardedOnce, Refused};

struct Case {
    name: &'static str,
    request: Vec<u8>,
    expected: Expected,
    /// The rollout that must have decided.
    rollout: &'static str,
}

fn case(name: &'static str, request: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case {
        name,
        request: request.into(),
        expected,
        rollout: "none",
    }
}

/// Creates a case that is refused with 400.
fn bad(name: &'static str, request: impl Into<Vec<u8>>) -> Case {
    case(name, request, Refused(400))
}

/// Creates a case that is forwarded unchanged.
fn same(name: &'static str, request: &str) -> Case {
    case(name, request, Forwarded(request.to_owned()))
}

/// Creates a case that is forwarded in this form.
fn becomes(name: &'static str, request: &str, form: &str) -> Case {
    case(name, request, Forwarded(form.to_owned()))
}

/// Creates a case that is forwarded unchanged, decided by the rollout on `/checkout`.
fn matched(name: &'static str, request: &str) -> Case {
    Case {
        rollout: "checkout",
        ..same(name, request)
    }
}

/// Returns a POST with these header lines and this body.
fn post(headers: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nHost: h\r\n{headers}\r\n{body}")
}

/// Returns a GET with these header lines.
fn get(headers: &str) -> String {
    format!("GET /g HTTP/1.1\r\nHost: h\r\n{headers}\r\n")
}

/// Returns a GET of this target.
fn target(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn lengths_and_encodings() -> Vec<Case> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let hello = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        same("a body by length", &post("Content-Length: 5\r\n", "hello")),
        same("a body in chunks", &post(chunked, hello)),
        case(
            "length and encoding, CL.TE",
            post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", hello),
            ForwardedOnce(post(chunked, hello)),
        ),
        case(
            "encoding and length, TE.CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", hello),
            ForwardedOnce(post(chunked, hello)),
        ),
        case(
            "no length and encoding, CL:0 and TE",
            post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", hello),
            ForwardedOnce(post(chunked, hello)),
        ),
        bad(
            "two lengths that differ",
            post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        ),
        bad(
            "two lengths that agree",
            post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ),
        bad(
            "a list of lengths that differ",
            post("Content-Length: 5, 6\r\n", "hello!"),
        ),
        bad(
            "a list of lengths that agree",
            post("Content-Length: 5, 5\r\n", "hello"),
        ),
        bad(
            "a length with a plus",
            post("Content-Length: +5\r\n", "hello"),
        ),
        bad(
            "a length below zero",
            post("Content-Length: -5\r\n", "hello"),
        ),
        bad(
            "a length in hexadecimal",
            post("Content-Length: 0x5\r\n", "hello"),
        ),
        bad(
            "a length with an underscore",
            post("Content-Length: 1_0\r\n", "helloworld"),
        ),
        bad(
            "a length with a space inside",
            post("Content-Length: 1 0\r\n", "helloworld"),
        ),
        bad(
            "a length without digits",
            post("Content-Length: \r\n", "hello"),
        ),
        bad(
            "a length with a fraction",
            post("Content-Length: 5.0\r\n", "hello"),
        ),
        bad(
            "a length of more than 64 bits",
            post("Content-Length: 18446744073709551621\r\n", "hello"),
        ),
        case(
            "a length of just below 64 bits",
            post("Content-Length: 18446744073709551615\r\n", "hello"),
            Refused(413),
        ),
        bad(
            "a length in full-width digits",
            post("Content-Length: \u{ff15}\r\n", "hello"),
        ),
        bad(
            "an encoding in HTTP/1.0",
            format!("POST /p HTTP/1.0\r\nHost: h\r\n{chunked}\r\n{hello}"),
        ),
        bad(
            "an unknown encoding",
            post("Transfer-Encoding: xchunked\r\n", hello),
        ),
        bad(
            "an encoding that is not chunked",
            post("Transfer-Encoding: identity\r\n", "hello"),
        ),
        bad(
            "an encoding in quotes",
            post("Transfer-Encoding: \"chunked\"\r\n", hello),
        ),
        bad(
            "an encoding with a parameter",
            post("Transfer-Encoding: chunked;x=1\r\n", hello),
        ),
        bad(
            "chunked, and then something else",
            post("Transfer-Encoding: chunked, identity\r\n", hello),
        ),
        bad(
            "chunked twice",
            post("Transfer-Encoding: chunked, chunked\r\n", hello),
        ),
        bad(
            "something else, then chunked",
            post("Transfer-Encoding: gzip, chunked\r\n", hello),
        ),
        bad(
            "two encodings",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                hello,
            ),
        ),
        bad(
            "two encodings, chunked last",
            post(
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
                hello,
            ),
        ),
        bad("an empty encoding", post("Transfer-Encoding:\r\n", hello)),
        bad(
            "an encoding with a vertical tab",
            post("Transfer-Encoding: \x0bchunked\r\n", hello),
        ),
        bad(
            "an encoding with a form feed",
            post("Transfer-Encoding: chunked\x0c\r\n", hello),
        ),
        bad(
            "an encoding with a no-break space",
            [
                b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \xa0chunked\r\n\r\n",
                hello.as_bytes(),
            ]
            .concat(),
        ),
        bad(
            "a space before the colon",
            post("Transfer-Encoding : chunked\r\n", hello),
        ),
        bad(
            "a tab before the colon",
            post("Transfer-Encoding\t: chunked\r\n", hello),
        ),
        bad(
            "an encoding on a folded line",
            post("Transfer-Encoding:\r\n chunked\r\n", hello),
        ),
        becomes(
            "an encoding in capitals",
            &post("Transfer-Encoding: CHUNKED\r\n", hello),
            &post(chunked, hello),
        ),
        same(
            "a GET with a body",
            "GET /g HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        ),
        same(
            "a DELETE with a body",
            "DELETE /g HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        ),
        same(
            "a POST without a length",
            "POST /p HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let head = post("Transfer-Encoding: chunked\r\n", "");
    let cut = |name, body: &str| case(name, format!("{head}{body}"), Cut(400, head.clone()));
    vec![
        becomes(
            "a chunk with an extension",
            &format!("{head}5;ext=\"1\"\r\nhello\r\n0\r\n\r\n"),
            &format!("{head}5\r\nhello\r\n0\r\n\r\n"),
        ),
        becomes(
            "a chunk size in capitals with zeros",
            &format!("{head}00A\r\nhelloworld\r\n0\r\n\r\n"),
            &format!("{head}A\r\nhelloworld\r\n0\r\n\r\n"),
        ),
        becomes(
            "trailers that would be framing, a host and a user",
            &format!(
                "{head}5\r\nhello\r\n0\r\nContent-Length: 3\r\nTransfer-Encoding: \
                 identity\r\nHost: evil\r\nX-User-Id: evil\r\n\r\n"
            ),
            &format!("{head}5\r\nhello\r\n0\r\n\r\n"),
        ),
        cut("a chunk size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        cut("a chunk size with a plus", "+5\r\nhello\r\n0\r\n\r\n"),
        cut("a chunk size below zero", "-5\r\nhello\r\n0\r\n\r\n"),
        cut(
            "a chunk size with an underscore",
            "0_5\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size with a space before",
            " 5\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size of more than 64 bits",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size of 64 bits",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        cut("a chunk without a size", "\r\nhello\r\n0\r\n\r\n"),
        cut("an extension without a size", ";x\r\nhello\r\n0\r\n\r\n"),
        cut("no chunk but the end of the trailers", "\r\n\r\n"),
        cut(
            "a second chunk without a size",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size with a tab before",
            "\t5\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size with a vertical tab behind",
            "5\x0b\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size with a NUL behind",
            "5\0\r\nhello\r\n0\r\n\r\n",
        ),
        cut("a chunk size of two words", "5 5\r\nhello\r\n0\r\n\r\n"),
        cut(
            "an extension with a NUL inside",
            "5;x=\0\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a trailer with a bare line feed",
            "5\r\nhello\r\n0\r\nX-A: 1\n\r\n",
        ),
        cut(
            "a trailer with a NUL inside",
            "5\r\nhello\r\n0\r\nX-A: \0\r\n\r\n",
        ),
        cut(
            "a last chunk that ends in a bare line feed",
            "5\r\nhello\r\n0\n\r\n",
        ),
        becomes(
            "a chunk size with spaces behind",
            &format!("{head}5  \r\nhello\r\n0\r\n\r\n"),
            &format!("{head}5\r\nhello\r\n0\r\n\r\n"),
        ),
        cut("a chunk size that is a word", "five\r\nhello\r\n0\r\n\r\n"),
        cut(
            "a chunk size that ends in a bare line feed",
            "5\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk size that ends in a bare carriage return",
            "5\rhello\r\n0\r\n\r\n",
        ),
        cut(
            "an extension that ends in a bare line feed",
            "5;x\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "an extension with a carriage return inside",
            "5;x\ry\r\nhello\r\n0\r\n\r\n",
        ),
        cut(
            "an extension of 64 KiB",
            &format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(65_536)),
        ),
        cut(
            "a chunk that is longer than its size",
            "5\r\nhelloworld\r\n0\r\n\r\n",
        ),
        cut(
            "a chunk that ends in a bare line feed",
            "5\r\nhello\n0\r\n\r\n",
        ),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        bad("only bare line feeds", "GET /g HTTP/1.1\nHost: h\n\n"),
        bad(
            "a bare line feed after the request line",
            "GET /g HTTP/1.1\nHost: h\r\n\r\n",
        ),
        bad(
            "a bare line feed after a header",
            "GET /g HTTP/1.1\r\nHost: h\nX-A: 1\r\n\r\n",
        ),
        bad(
            "a bare line feed at the end",
            "GET /g HTTP/1.1\r\nHost: h\r\n\n",
        ),
        bad(
            "a bare carriage return in a value",
            get("X-A: 1\rX-B: 2\r\n"),
        ),
        bad("a bare carriage return in a name", get("X-\rA: 1\r\n")),
        bad(
            "a bare carriage return after the request line",
            "GET /g HTTP/1.1\rHost: h\r\n\r\n",
        ),
        bad("a NUL in a value", get("X-A: a\0b\r\n")),
        bad("a NUL in a name", get("X-\0A: b\r\n")),
        bad("a vertical tab in a value", get("X-A: a\x0bb\r\n")),
        bad("an escape in a value", get("X-A: \x1b[31m\r\n")),
        bad("a delete in a value", get("X-A: \x7f\r\n")),
        bad("a form feed in a name", get("X\x0c-A: b\r\n")),
        bad("a folded header", get("X-A: a\r\n b\r\n")),
        bad("a folded header by tab", get("X-A: a\r\n\tb\r\n")),
        bad(
            "a first header that is folded",
            "GET /g HTTP/1.1\r\n Host: h\r\n\r\n",
        ),
        bad("a space before the colon", get("X-A : 1\r\n")),
        bad("a name of nothing", get(": 1\r\n")),
        bad("a header without a colon", get("X-A\r\n")),
        bad("a name with a space inside", get("X A: 1\r\n")),
        bad("a name in UTF-8", get("X-\u{e9}: 1\r\n")),
        bad("a name with brackets", get("X[A]: 1\r\n")),
        same("an empty value", &get("X-A: \r\n")),
        same("a value with a tab inside", &get("X-A: a\tb\r\n")),
        becomes(
            "a value with space around it",
            &get("X-A:   a  \t \r\n"),
            &get("X-A: a\r\n"),
        ),
        becomes(
            "an empty line before the request line",
            &format!("\r\n{}", get("")),
            &get(""),
        ),
        bad("a space before the request line", format!(" {}", get(""))),
        bad(
            "a line feed before the request line",
            format!("\n{}", get("")),
        ),
        bad(
            "a request line of rubbish",
            "\x16\x03\x01\x02\0\x01\0\r\n\r\n",
        ),
        bad(
            "a request line without a target",
            "GET HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a request line without a version",
            "GET /g\r\nHost: h\r\n\r\n",
        ),
        bad("a request of HTTP/0.9", "GET /g\r\n\r\n"),
        bad(
            "a request of HTTP/2.0 in one line",
            "GET /g HTTP/2.0\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a request of HTTP/1.10",
            "GET /g HTTP/1.10\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a request of HTTP/1.2",
            "GET /g HTTP/1.2\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a request of http/1.1",
            "GET /g http/1.1\r\nHost: h\r\n\r\n",
        ),
        bad("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        bad(
            "two spaces after the method",
            "GET  /g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a tab after the method",
            "GET\t/g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "a space after the version",
            "GET /g HTTP/1.1 \r\nHost: h\r\n\r\n",
        ),
        bad(
            "a method with a bracket",
            "G[T /g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        case(
            "a header of 70 KiB",
            get(&format!("X-A: {}\r\n", "a".repeat(70 * 1024))),
            Refused(431),
        ),
        case(
            "a target of 70 KiB",
            target(&format!("/{}", "a".repeat(70 * 1024))),
            Refused(431),
        ),
        case(
            "a head of 2 MiB",
            get(&format!("X-A: {}\r\n", "a".repeat(2 * 1024 * 1024))),
            Refused(431),
        ),
        case("300 headers", get(&"X-A: 1\r\n".repeat(300)), Refused(431)),
        bad(
            "a bare carriage return before the request line",
            format!("\r{}", get("")),
        ),
        bad(
            "a carriage return and no line feed at the end",
            "GET /g HTTP/1.1\r\nHost: h\r\n\r\rX\r\n\r\n",
        ),
        bad("a TLS hello", "\x16\x03\x01\x02\0"),
        bad("a request line of rubbish without an end", "\0\x01\x02"),
        case("half a head", "GET /g HTTP/1.1\r\nHost: h\r\n", Closed),
        case("half a request line", "GET /g HT", Closed),
    ]
}

fn targets_and_hosts() -> Vec<Case> {
    let host = |host: &str| format!("GET /g HTTP/1.1\r\n{host}\r\n");
    vec![
        bad("no host", host("")),
        bad("an empty host", host("Host:\r\n")),
        bad("two hosts", host("Host: h\r\nHost: i\r\n")),
        bad("two hosts that agree", host("Host: h\r\nHost: h\r\n")),
        bad("a host with a comma", host("Host: h, i\r\n")),
        bad("a host with a user", host("Host: u@h\r\n")),
        bad("a host with a space", host("Host: h i\r\n")),
        bad("a host with a path", host("Host: h/i\r\n")),
        bad("a host with a question mark", host("Host: h?i\r\n")),
        bad("a host with a backslash", host("Host: h\\i\r\n")),
        bad("a host in UTF-8", host("Host: \u{e9}\r\n")),
        bad("a host with a port in words", host("Host: h:http\r\n")),
        bad("a host with a port too large", host("Host: h:65536\r\n")),
        bad("a host of half an address", host("Host: [::1\r\n")),
        same(
            "a host with an address and a port",
            &host("Host: [::1]:80\r\n"),
        ),
        case(
            "no host in HTTP/1.0",
            "GET /g HTTP/1.0\r\n\r\n",
            ForwardedOnce("GET /g HTTP/1.1\r\nHost: BACKEND\r\n\r\n".to_owned()),
        ),
        case(
            "a health check of HTTP/1.0",
            "OPTIONS / HTTP/1.0\r\n\r\n",
            ForwardedOnce("OPTIONS / HTTP/1.1\r\nHost: BACKEND\r\n\r\n".to_owned()),
        ),
        case(
            "a star of HTTP/1.0",
            "OPTIONS * HTTP/1.0\r\n\r\n",
            ForwardedOnce("OPTIONS * HTTP/1.1\r\nHost: BACKEND\r\n\r\n".to_owned()),
        ),
        case(
            "a host in HTTP/1.0",
            "GET /g HTTP/1.0\r\nHost: h\r\n\r\n",
            ForwardedOnce("GET /g HTTP/1.1\r\nHost: h\r\n\r\n".to_owned()),
        ),
        case(
            "the absolute form in HTTP/1.0",
            "GET http://h/g HTTP/1.0\r\n\r\n",
            ForwardedOnce("GET http://h/g HTTP/1.1\r\nHost: h\r\n\r\n".to_owned()),
        ),
        same(
            "the absolute form",
            "GET http://h/g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "the absolute form with another host",
            "GET http://evil/g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "the absolute form with a user",
            "GET http://u@h/g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad(
            "the absolute form of another scheme",
            "GET ftp://h/g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad("a target without a slash", target("g")),
        bad("a target of an authority", target("h:80")),
        bad("a star for GET", target("*")),
        same(
            "a star for OPTIONS",
            "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        case(
            "CONNECT",
            "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n",
            Refused(405),
        ),
        case(
            "CONNECT with a path",
            "CONNECT /g HTTP/1.1\r\nHost: h\r\n\r\n",
            Refused(405),
        ),
        case(
            "TRACE",
            "TRACE /g HTTP/1.1\r\nHost: h\r\n\r\n",
            Refused(405),
        ),
        same("an unknown method", "BREW /g HTTP/1.1\r\nHost: h\r\n\r\n"),
        same(
            "a method in lower case",
            "get /g HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        bad("a NUL in the path", target("/a\0b")),
        bad("a carriage return in the path", target("/a\rb")),
        bad("an escaped NUL in the path", target("/a%00b")),
        bad("an escaped line feed in the path", target("/a%0ab")),
        bad("an escaped carriage return in the path", target("/a%0Db")),
        bad("a space in the path", target("/a b")),
        bad("a space in the query", target("/a?b c")),
        bad("a tab in the path", target("/a\tb")),
        bad("a vertical tab in the path", target("/a\x0bb")),
        bad("a vertical tab in the query", target("/a?\x0b")),
        bad("a form feed in the path", target("/a\x0cb")),
        bad("an escape character in the path", target("/a\x1bb")),
        bad("a delete in the path", target("/a\x7fb")),
        bad("a line feed in the path", target("/a\nb")),
        bad("a version in the path", target("/a HTTP/1.1")),
        bad("a NUL in the query", target("/a?b\0")),
        // Browsers and scripts send these characters, and nginx and HAProxy forward them.
        // Characters that the engine's type for targets cannot hold are escaped.
        same("printable characters in the path", &target("/\"{|}^[]\\")),
        same("printable characters in the query", &target("/a?`{|}^[]\\")),
        becomes(
            "characters in the path that the engine cannot hold",
            &target("/<a>`"),
            &target("/%3Ca%3E%60"),
        ),
        becomes(
            "characters in the query that the engine cannot hold",
            &target("/a?<\">"),
            &target("/a?%3C%22%3E"),
        ),
        case(
            "a path in Latin 1",
            &b"GET /caf\xe9?\xff HTTP/1.1\r\nHost: h\r\n\r\n"[..],
            Forwarded(target("/caf%E9?%FF")),
        ),
        same("a path in UTF-8", &target("/\u{e9}")),
        same("a query in UTF-8", &target("/a?\u{20ac}")),
        becomes("a fragment", &target("/a#b"), &target("/a")),
        becomes(
            "a fragment in the query",
            &target("/a?b#c"),
            &target("/a?b"),
        ),
        same("a target in UTF-8 as escapes", &target("/%C3%A9?%zz")),
        same("a backslash in the target", &target("/a\\b")),
        matched("a path below the rollout", &target("/checkout/1?x=/../..")),
        matched("a traversal into the rollout", &target("/x/../checkout")),
        matched(
            "an escaped traversal into the rollout",
            &target("/x/%2e%2E/checkout"),
        ),
        matched("escaped letters of the rollout", &target("/%63heckout")),
        matched("two slashes before the rollout", &target("//checkout")),
        matched(
            "escaped slashes around the rollout",
            &target("/x%2f..%2fcheckout"),
        ),
        same("a traversal out of the rollout", &target("/checkout/../g")),
        same(
            "an escaped traversal out of the rollout",
            &target("/checkout/%2e%2e/g"),
        ),
        same("a doubly escaped rollout", &target("/%2563heckout")),
        same("the rollout in capitals", &target("/CHECKOUT")),
    ]
}

fn identities() -> Vec<Case> {
    let user = "X-User-Id: u\r\n";
    let checkout = |headers: &str| format!("GET /checkout HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
    vec![
        matched("one user", &checkout(user)),
        bad("two users", checkout("X-User-Id: a\r\nX-User-Id: b\r\n")),
        bad(
            "the same user twice",
            checkout("X-User-Id: a\r\nx-user-id: a\r\n"),
        ),
        bad(
            "a user with an underscore beside the true one",
            checkout("X-User-Id: a\r\nX_User_Id: forged\r\n"),
        ),
        bad(
            "a user with an underscore",
            checkout("X-User_Id: forged\r\n"),
        ),
        bad(
            "our headers with underscores",
            get("X_Cutover_Backend: forged\r\n"),
        ),
        bad(
            "forwarding headers with underscores",
            get("X_Forwarded_For: forged\r\n"),
        ),
        same("other headers with underscores", &get("some_header: 1\r\n")),
        matched(
            "a key of 2 KiB",
            &checkout(&format!("X-User-Id: {}\r\n", "k".repeat(2048))),
        ),
        matched(
            "a key of 40 KiB",
            &checkout(&format!("Cookie: uid={}\r\n", "k".repeat(40 << 10))),
        ),
        bad(
            "a nominated key",
            checkout("X-User-Id: a\r\nConnection: close, x-user-id\r\n"),
        ),
        bad("a nominated host", get("Connection: Host\r\n")),
        bad(
            "a nominated forwarding header",
            get("Connection: x-forwarded-for\r\n"),
        ),
        matched("a key without a value", &checkout("X-User-Id: \r\n")),
        becomes(
            "nominated headers of ours",
            &get("Connection: x-cutover-backend, x-request-id\r\nX-Cutover-Backend: forged\r\n"),
            &get(""),
        ),
        becomes(
            "a nominated length",
            &post(
                "Connection: content-length\r\nContent-Length: 5\r\n",
                "hello",
            ),
            &post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        bad(
            "500 nominations",
            get(&format!("Connection: {}\r\n", vec!["a"; 500].join(","))),
        ),
        becomes(
            "forged headers of ours",
            &get(
                "X-Cutover-Backend: forged\r\nX-Cutover-Rollout: forged\r\nX-Cutover-Bucket: \
                 forged\r\nX-Cutover-Reason: forged\r\nX-Cutover-Override: new forged\r\n",
            ),
            &get(""),
        ),
        becomes(
            "forged forwarding headers",
            &get(
                "X-Forwarded-For: forged\r\nX-Forwarded-Proto: forged\r\nX-Forwarded-Host: \
                 forged\r\nX-Request-Id: forged\r\n",
            ),
            &get(""),
        ),
        becomes(
            "an unknown header of ours",
            &get("X-Cutover-Anything: forged\r\n"),
            &get(""),
        ),
        matched(
            "cookies of odd forms",
            &checkout("Cookie: ;;=;uid;uid=;uid==x; uid=\"\r\nCookie: uid=\"a\r\n"),
        ),
        becomes(
            "hop-by-hop headers",
            &get("Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n"),
            &get(""),
        ),
        same(
            "an unknown expectation",
            &post("Expect: 200-ok\r\nContent-Length: 0\r\n", ""),
        ),
        same(
            "an expectation with the body at once",
            &post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        ),
        becomes(
            "an upgrade to HTTP/2",
            &get(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \
                 AAMAAABkAAQAAP__\r\n",
            ),
            &get(""),
        ),
    ]
}

/// Returns the whole table of cases.
fn cases() -> Vec<Case> {
    [
        lengths_and_encodings(),
        chunks(),
        lines(),
        targets_and_hosts(),
        identities(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Starts a proxy with the same backend on both sides, so that the record is complete; `/checkout`
/// is a rollout.
fn proxy(backend: &RawBackend) -> Proxy {
    let tables = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nheader_timeout = \"600ms\"\nbody_idle_timeout = \
         \"600ms\"\nmax_body = \"1GiB\"\n[backend.legacy]\nservers = \
         [\"{0}\"]\n[backend.new]\nservers = [\"{0}\"]\n",
        backend.address
    );
    Proxy::start_with(
        &tables,
        &rollout(
            "checkout",
            "100",
            "match = { path = \"/checkout\" }\n[rollout.guard]\nmode = \"off\"",
        ),
    )
}

/// Sends a request as another user, and returns what is wrong with the answer, if anything.
fn ask_as_another(proxy: &Proxy, target: &str) -> Result<(), String> {
    let mut client = RawClient::connect(proxy.http);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n").as_bytes());
    let answer = client.answer(false);
    match &answer {
        Some(Answer {
            status: 200,
            ending: Ending::Whole,
            ..
        }) if answer
            .as_ref()
            .is_some_and(|answer| answer.text() == format!("GET {target} rollout=none body=0")) =>
        {
            Ok(())
        }
        other => Err(format!("another client got {other:?}")),
    }
}

/// Runs a case and returns everything that is wrong with it.
fn play(proxy: &Proxy, backend: &RawBackend, case: &Case, number: usize) -> Vec<String> {
    let mark = backend.mark();
    let started = Instant::now();
    let mut client = RawClient::connect(proxy.http);
    client.send(&case.request);
    let is_head = case.request.starts_with(b"HEAD");
    let backends = backend.address.to_string();
    let answer = client.answer(is_head);
    let mut wrong = Vec::new();
    let (form, status, closes) = match &case.expected {
        Refused(status) => ("", Some(*status), true),
        Closed => ("", None, true),
        Forwarded(form) => (form.as_str(), Some(200), false),
        ForwardedOnce(form) => (form.as_str(), Some(200), true),
        Cut(status, form) => (form.as_str(), Some(*status), true),
    };
    if answer.as_ref().map(|answer| answer.status) != status
        || answer
            .as_ref()
            .is_some_and(|answer| answer.ending != Ending::Whole)
    {
        wrong.push(format!("the client got {answer:?}, expected {status:?}"));
    }
    if let (Forwarded(_) | ForwardedOnce(_), Some(answer)) = (&case.expected, &answer) {
        let words: Vec<&str> = form.splitn(3, ' ').collect();
        if !answer.text().starts_with(&format!(
            "{} {} rollout={} ",
            words[0], words[1], case.rollout
        )) {
            wrong.push(format!("the client got the answer {:?}", answer.text()));
        }
    }
    if closes && wrong.is_empty() && !client.is_closed() {
        wrong.push("the connection stays open".to_owned());
    }
    let form: String = form
        .replace("BACKEND", &backends)
        .bytes()
        .map(|byte| {
            if byte.is_ascii() {
                char::from(byte)
            } else {
                '\u{fffd}'
            }
        })
        .collect();
    let follow = format!("/after/{number}");
    wrong.extend(ask_as_another(proxy, &follow).err());
    // Both requests may have used one connection or two; no other byte may have been received.
    let other = format!("GET {follow} HTTP/1.1\r\nHost: other\r\n\r\n");
    let seen = || -> Vec<String> {
        backend
            .since(&mark)
            .iter()
            .map(|bytes| without_ours(bytes))
            .collect()
    };
    let deadline = Instant::now() + std::time::Duration::from_secs(1);
    loop {
        let seen = seen();
        let is_as_expected = matches!(case.expected, Cut(..)) && seen.concat() == other
            || seen.concat() == format!("{form}{other}")
            || seen.iter().rev().map(String::as_str).collect::<String>()
                == format!("{form}{other}");
        if is_as_expected {
            break;
        }
        if Instant::now() > deadline || !wrong.is_empty() {
            wrong.push(format!(
                "the backend got\n    {seen:?}, expected\n    {:?}",
                [&form, &other]
            ));
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    let raw = backend.since(&mark).concat();
    if String::from_utf8_lossy(&raw).contains("forged") {
        wrong.push("a forged value arrived".to_owned());
    }
    if started.elapsed() > BOUND {
        wrong.push(format!("took {:?}", started.elapsed()));
    }
    wrong
}

#[test]
fn malformed_and_ambiguous_requests_are_refused_or_forwarded_in_one_form() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend);
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let found = play(&proxy, &backend, case, number);
        if !found.is_empty() {
            wrong.push(format!("{}: {}", case.name, found.join("\n  ")));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    let status = proxy.rollout();
    assert_eq!(
        (&status["legacy"]["failed"], &status["new"]["failed"]),
        (&0.into(), &0.into()),
        "a client's mistake is no backend's failure"
    );
}

#[test]
fn bytes_after_a_request_never_reach_a_backend_as_part_of_it() {
    let backend = RawBackend::start();
    let proxy = proxy(&backend);
    let second = get("X-Smuggled: 1\r\n");
    let upgrade = "GET /g HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: \
                   websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let cases = [
        ("a second request", format!("{}{second}", get("")), get("")),
        (
            "a second request after a body",
            format!("{}{second}", post("Content-Length: 5\r\n", "hello")),
            post("Content-Length: 5\r\n", "hello"),
        ),
        (
            "a second request after chunks",
            format!(
                "{}{second}",
                post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n")
            ),
            post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        (
            "a body after CL.TE",
            format!(
                "{}{second}",
                post(
                    "Content-Length: 300\r\nTransfer-Encoding: chunked\r\n",
                    "0\r\n\r\n"
                )
            ),
            post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        (
            "bytes after a body",
            post("Content-Length: 5\r\n", "hello world"),
            post("Content-Length: 5\r\n", "hello"),
        ),
        (
            "bytes after a HEAD",
            "HEAD /g HTTP/1.1\r\nHost: h\r\n\r\nworld\r\n\r\n".to_owned(),
            "HEAD /g HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        ),
        (
            "a request after an upgrade that is refused",
            format!("{upgrade}{second}"),
            String::new(),
        ),
    ];
    for (number, (name, request, form)) in cases.iter().enumerate() {
        let mark = backend.mark();
        let mut client = RawClient::connect(proxy.http);
        client.send(request.as_bytes());
        let answer = client.answer(request.starts_with("HEAD"));
        assert!(
            answer
                .as_ref()
                .is_none_or(|answer| answer.ending == Ending::Whole),
            "{name}: {answer:?}"
        );
        // Requests are answered one after the other, and an invalid one is answered by the proxy,
        // unless the answer before announced that the connection closes.
        let goes_on = !(request.contains("chunked") && request.contains("Content-Length"));
        let says_close = answer.as_ref().is_some_and(|answer| {
            answer
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        });
        assert_eq!(says_close, !goes_on, "{name}: {answer:?}");
        let next = client.answer(false);
        if goes_on {
            let status = if request.contains("Smuggled") {
                200
            } else {
                400
            };
            assert_eq!(
                next.map(|answer| (answer.status, answer.ending)),
                Some((status, Ending::Whole)),
                "{name}"
            );
        } else {
            assert!(
                next.is_none() && client.is_closed(),
                "{name}: one answer, and the connection is closed; after {answer:?}"
            );
        }
        let follow = format!("/after/{number}");
        assert_eq!(ask_as_another(&proxy, &follow), Ok(()), "{name}");
        let seen: String = backend
            .since(&mark)
            .iter()
            .map(|bytes| without_ours(bytes))
            .collect();
        let seen = if goes_on {
            seen.replacen(&second, "", 1)
        } else {
            seen
        };
        assert!(
            !seen.contains("Smuggled") && !seen.contains("world"),
            "{name}: {seen}"
        );
        let other = format!("GET {follow} HTTP/1.1\r\nHost: other\r\n\r\n");
        let first = seen.replace(&other, "");
        assert!(
            first.is_empty()
                || form.starts_with(&first)
                || (form.is_empty() && first.matches("HTTP/1.1\r\n").count() == 1),
            "{name}: {seen:?}"
        );
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn clients_cannot_forge_a_line_of_the_access_log() {
    let backend = RawBackend::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cutover.toml");
    let text = format!(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\n[admin]\naddress = \
         \"127.0.0.1:0\"\n[state]\ndirectory = \"{}\"\n[log]\naccess = \"all\"\nformat = \
         \"json\"\n[backend.legacy]\nservers = [\"{1}\"]\n[backend.new]\nservers = [\"{1}\"]\n{2}",
        directory.path().join("state").display(),
        backend.address,
        rollout("checkout", "100", "")
    );
    std::fs::write(&file, text).unwrap();
    let log = Log::default();
    let running = Start {
        file,
        threads: Some(1),
        access_out: Box::new(log.clone()),
        origin: cutover::assemble::Origin::default(),
    }
    .start()
    .unwrap();
    let targets = [
        "/%0d%0a{\"forged\":1}",
        "/%00%1b[31m",
        "/\\n\\\"forged",
        "/'forged'",
        "/\u{202e}forged",
        "/%22,%22forged%22:%22",
    ];
    for target in targets {
        let mut client = RawClient::connect(running.http[0]);
        client.send(
            format!(
                "GET {target} HTTP/1.1\r\nHost: h\r\nX-User-Id: forged-user\r\nX-Request-Id: \
                 forged\"\r\nUser-Agent: forged\r\n\r\n"
            )
            .as_bytes(),
        );
        assert!(client.answer(false).is_some(), "{target}");
    }
    let lines = until("a line for each request", || {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        (text.lines().count() >= targets.len()).then_some(text)
    });
    assert_eq!(lines.lines().count(), targets.len(), "{lines}");
    for line in lines.lines() {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line.get("forged").is_none() && !line.to_string().contains("forged-user"),
            "{line}"
        );
        assert_ne!(line["http.request.id"], "forged\"");
    }
    assert!(
        !lines
            .bytes()
            .any(|byte| byte.is_ascii_control() && byte != b'\n'),
        "{lines:?}"
    );
    running.stop(
        std::time::Duration::ZERO,
        std::time::Duration::from_secs(1),
        || false,
    );
}
