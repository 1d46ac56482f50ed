//! HTTP/1 heads that the proxy engine is to serve. They are read completely, checked by our own
//! rules, and passed to the engine in a form that it accepts.
//!
//! The engine answers what it cannot parse with an empty 400, without a reason, a count or a line
//! in the access log. So nothing that it cannot parse may reach it. The rules are also stricter
//! than the engine's: it ends lines at a bare line feed, escapes spaces and control characters of a
//! target, and accepts lines that other programs read differently.
//!
//! A target may hold printable characters that have to be escaped according to RFC 3986, and raw
//! UTF-8. Browsers and scripts send them, and nginx and HAProxy forward them. The few characters
//! that the engine's type for targets cannot hold are escaped, as browsers escape them.
//!
//! Deliberately absent: the checks that the router makes for every request on both engines, which
//! are in `validate`. The lane's own grammar is narrower than these rules, so the requests it takes
//! need no screening.

use std::borrow::Cow;

use bytes::BufMut;
use http::Method;

use crate::gateway::lane::body_decoder::Body;
use crate::gateway::message::reply::Reply;
use crate::gateway::message::validate::{BAD_FRAMING, BAD_HOST, BARE_FEED, NO_TARGET, name_of};
use crate::gateway::router::Sketch;
use crate::shared::refusals::Refusal;

/// The largest number of header lines that the engine reads.
const MAX_LINES: u32 = 256;
/// The largest number of names in `Connection` that the engine reads.
const MAX_NOMINATIONS: usize = 9;
/// The headers that `Connection` may not name. The engine would have to drop what a request needs,
/// or what we add.
const PROTECTED: [(&[u8], Reply); 4] = [
    (
        b"host",
        Reply::refused(Refusal::Connection, "`Connection` may not name `host`"),
    ),
    (
        b"x-forwarded-for",
        Reply::refused(
            Refusal::Connection,
            "`Connection` may not name `x-forwarded-for`",
        ),
    ),
    (
        b"x-forwarded-host",
        Reply::refused(
            Refusal::Connection,
            "`Connection` may not name `x-forwarded-host`",
        ),
    ),
    (
        b"x-forwarded-proto",
        Reply::refused(
            Refusal::Connection,
            "`Connection` may not name `x-forwarded-proto`",
        ),
    ),
];
/// The longest target in bytes that the engine's type for targets holds.
const MAX_TARGET: usize = 65_534;
/// The longest path in bytes that the access log contains for a request that is refused here.
const MAX_SKETCH: usize = 1_024;

const BAD_LINE: Reply = Reply::refused(
    Refusal::RequestLine,
    "the request line is not `METHOD TARGET HTTP/1.1`, with one space between the words",
);
const BAD_VERSION: Reply = Reply::refused(
    Refusal::Version,
    "only HTTP/1.1 and HTTP/1.0 are understood in this form",
);
const CONNECT: Reply = Reply::refused_with(
    http::StatusCode::METHOD_NOT_ALLOWED,
    Refusal::Method,
    "CONNECT is not allowed here: this is no proxy to other hosts",
);

/// The result of screening the bytes at the start of a connection.
#[derive(Debug)]
pub enum Screened {
    /// The head is incomplete.
    Partial,
    /// The request is refused with this answer.
    Refused(Reply),
    /// The engine may serve the request.
    Passed(Passed),
}

/// A request that the engine may serve.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// The start of the head. Empty lines, which a client may send first, are skipped.
    pub from: usize,
    /// The end of the head.
    pub to: usize,
    /// The framing of the body.
    pub(in crate::gateway) body: Body,
    /// Whether the request asks for another protocol on this connection.
    pub upgrades: bool,
    /// The target in a form that the engine accepts, and the position of the received one. `None`
    /// if both are the same.
    pub target: Option<(std::ops::Range<usize>, Vec<u8>)>,
}

impl Passed {
    /// Writes the head in the form that the engine accepts. `came` are the bytes that were
    /// screened.
    pub fn write(&self, came: &[u8], out: &mut impl BufMut) {
        match &self.target {
            None => out.put_slice(&came[self.from..self.to]),
            Some((at, target)) => [&came[self.from..at.start], target, &came[at.end..self.to]]
                .into_iter()
                .for_each(|part| out.put_slice(part)),
        }
    }
}

/// Screens heads that are received in parts.
#[derive(Debug, Default)]
pub struct Screen {
    /// The position up to which the head does not end.
    looked: usize,
    is_line_checked: bool,
}

impl Screen {
    /// Screens the bytes received so far. Each call gets all of them.
    pub fn look(&mut self, bytes: &[u8], max_head: usize) -> Screened {
        let from = bytes
            .iter()
            .position(|byte| !matches!(byte, b'\r' | b'\n'))
            .unwrap_or(bytes.len());
        if !bytes[..from]
            .chunks(2)
            .all(|pair| pair == b"\r\n" || (pair == b"\r" && from == bytes.len()))
        {
            return Screened::Refused(BARE_FEED.at_line(1));
        }
        let head = &bytes[from..];
        // Bytes that are not HTTP at all, such as TLS on this port, are refused at once.
        if head.first().is_some_and(|first| !is_token(*first)) {
            return Screened::Refused(BAD_LINE.at_line(1));
        }
        if !self.is_line_checked
            && let Some(end) = memchr::memchr(b'\n', head)
        {
            self.is_line_checked = true;
            if end >= max_head {
                return Screened::Refused(Reply::HEAD_TOO_LARGE);
            }
            if let Err(reply) = request_line(&head[..=end]) {
                return Screened::Refused(reply);
            }
        }
        let looked = self.looked.saturating_sub(from);
        let end = memchr::memchr_iter(b'\n', &head[looked..])
            .map(|at| looked + at)
            .find_map(|at| match &head[at + 1..] {
                [b'\n', ..] => Some(at + 2),
                [b'\r', b'\n', ..] => Some(at + 3),
                _ => None,
            });
        let Some(size) = end else {
            // The end may begin with the last three bytes.
            self.looked = bytes.len().saturating_sub(3);
            return if bytes.len() > max_head {
                Screened::Refused(Reply::HEAD_TOO_LARGE)
            } else {
                Screened::Partial
            };
        };
        if size > max_head {
            return Screened::Refused(Reply::HEAD_TOO_LARGE);
        }
        match passed(&head[..size]) {
            Err(reply) => Screened::Refused(reply),
            Ok(passed) => {
                let target = passed
                    .target
                    .map(|(at, target)| (at.start + from..at.end + from, target));
                Screened::Passed(Passed {
                    from,
                    to: from + size,
                    target,
                    ..passed
                })
            }
        }
    }
}

/// Returns whether a byte is allowed in a method or a header name (RFC 9110, section 5.6.2).
pub(in crate::gateway) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns a line without its line end.
fn content(line: &[u8], number: u32) -> Result<&[u8], Reply> {
    let content = line
        .strip_suffix(b"\r\n")
        .ok_or(BARE_FEED.at_line(number))?;
    if content.contains(&b'\r') {
        return Err(Reply::refused(
            Refusal::LineEnd,
            "the line holds a carriage return that does not end it",
        )
        .at_line(number));
    }
    Ok(content)
}

/// The words of a request line: method, target, version.
type Words<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits a request line and checks its words byte by byte.
fn request_line(line: &[u8]) -> Result<Words<'_>, Reply> {
    let line = content(line, 1)?;
    let bad = BAD_LINE.at_line(1);
    let (method, rest) = line.split_at(memchr::memchr(b' ', line).ok_or(bad)?);
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(bad);
    }
    let (target, version) = rest[1..].split_at(memchr::memrchr(b' ', &rest[1..]).ok_or(bad)?);
    let version = &version[1..];
    if target.is_empty() || target.starts_with(b" ") {
        return Err(bad);
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        let is_version = version
            .get(..5)
            .is_some_and(|begin| begin.eq_ignore_ascii_case(b"HTTP/"))
            && !version.ends_with(b" ");
        return Err(if is_version {
            BAD_VERSION.at_line(1)
        } else {
            bad
        });
    }
    if target.contains(&b' ') {
        return Err(Reply::refused(
            Refusal::Target,
            "the request target holds a space: it is to be written as %20",
        ));
    }
    if target.iter().any(u8::is_ascii_control) {
        return Err(Reply::refused(
            Refusal::Target,
            "the request target holds a control character",
        ));
    }
    if target.len() > MAX_TARGET {
        return Err(Reply::refused(
            Refusal::Target,
            "the request target is longer than 65534 bytes",
        ));
    }
    Ok((method, target, version))
}

/// Checks a complete head.
fn passed(head: &[u8]) -> Result<Passed, Reply> {
    let first = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
    let (method, target, version) = request_line(&head[..first])?;
    let mut fields = Fields::default();
    let mut rest = &head[first..];
    let mut number = 1;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(end + 1);
        (rest, number) = (after, number + 1);
        let line = content(line, number)?;
        if line.is_empty() {
            break;
        }
        if number > MAX_LINES + 1 {
            return Err(Reply::TOO_MANY_LINES);
        }
        let (name, value) = field(line).map_err(|reply| reply.at_line(number))?;
        fields
            .take(name, value)
            .map_err(|reply| reply.at_line(number))?;
    }
    if method == b"CONNECT" {
        return Err(CONNECT);
    }
    check_host(target, fields.host)?;
    let body = fields.body(version)?;
    let at = target.as_ptr() as usize - head.as_ptr() as usize;
    let target = match escaped(target) {
        Cow::Borrowed(_) => None,
        Cow::Owned(escaped) => Some((at..at + target.len(), escaped)),
    };
    Ok(Passed {
        from: 0,
        to: head.len(),
        body,
        upgrades: fields.upgrades,
        target,
    })
}

/// Splits a header line into its name and value.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Reply> {
    let bad = |message| Reply::refused(Refusal::Header, message);
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(bad(
            "the line begins with a space: header values may not go on in the next line",
        ));
    }
    let colon = memchr::memchr(b':', line).ok_or(bad("the line has no colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    match name {
        [] => return Err(bad("there is no header name before the colon")),
        [.., b' ' | b'\t'] => return Err(bad("there is a space before the colon")),
        name if !name.iter().copied().all(is_token) => {
            return Err(bad(
                "the header name holds a character that no name may have",
            ));
        }
        _ => {}
    }
    if value
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(bad("the header value holds a control character"));
    }
    Ok((name, value.trim_ascii()))
}

/// The facts that this module needs from the lines of a head.
#[derive(Debug, Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    lengths: u32,
    coding: Option<&'a [u8]>,
    codings: u32,
    nominations: usize,
    upgrades: bool,
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), Reply> {
        if name.eq_ignore_ascii_case(b"host") {
            if self.host.is_some() {
                return Err(Reply::refused(
                    Refusal::Host,
                    "the request has more than one Host header",
                ));
            }
            self.host = Some(value);
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            self.length = self.length.or(Some(value));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            self.coding = self.coding.or(Some(value));
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrades = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            return self.nominate(value);
        }
        Ok(())
    }

    /// Records the names in `Connection`.
    fn nominate(&mut self, value: &[u8]) -> Result<(), Reply> {
        for token in value
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|token| !token.is_empty())
        {
            self.nominations += 1;
            if self.nominations > MAX_NOMINATIONS {
                return Err(Reply::refused(
                    Refusal::Connection,
                    "`Connection` names more than 9 headers",
                ));
            }
            if !token.iter().copied().all(is_token) {
                return Err(Reply::refused(
                    Refusal::Connection,
                    "`Connection` names something that is no header name",
                ));
            }
            if let Some((_, reply)) = PROTECTED
                .iter()
                .find(|(name, _)| token.eq_ignore_ascii_case(name))
            {
                return Err(*reply);
            }
        }
        Ok(())
    }

    /// Returns the framing of the body. A coding overrides a length (RFC 9112, section 6.3), which
    /// the engine then drops.
    fn body(&self, version: &[u8]) -> Result<Body, Reply> {
        if let Some(coding) = self.coding {
            if version == b"HTTP/1.0" {
                return Err(Reply::refused(
                    Refusal::Framing,
                    "HTTP/1.0 has no `Transfer-Encoding`",
                ));
            }
            return if self.codings == 1 && coding.eq_ignore_ascii_case(b"chunked") {
                Ok(Body::Chunked)
            } else {
                Err(BAD_FRAMING)
            };
        }
        let Some(length) = self.length else {
            return Ok(Body::Length(0));
        };
        if self.lengths > 1 || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
            return Err(BAD_FRAMING);
        }
        std::str::from_utf8(length)
            .ok()
            .and_then(|length| length.parse().ok())
            .map(Body::Length)
            .ok_or(BAD_FRAMING)
    }
}

/// Checks that target and `Host` agree, as far as the engine requires it. Whether there is a host
/// at all is checked by the router.
fn check_host(target: &[u8], host: Option<&[u8]>) -> Result<(), Reply> {
    if host.is_some_and(|host| host.contains(&b'@')) {
        return Err(Reply::refused(
            Refusal::Host,
            "the host holds the name of a user",
        ));
    }
    if target.starts_with(b"/") || target == b"*" {
        return Ok(());
    }
    let after = |scheme: &[u8]| {
        target
            .get(..scheme.len())
            .filter(|begin| begin.eq_ignore_ascii_case(scheme))
            .map(|_| &target[scheme.len()..])
    };
    let rest = after(b"http://")
        .or_else(|| after(b"https://"))
        .ok_or(NO_TARGET)?;
    let authority = &rest[..rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len())];
    name_of(authority).ok_or(BAD_HOST)?;
    if host.is_some_and(|host| host != authority) {
        return Err(Reply::refused(
            Refusal::Host,
            "the Host header and the host in the request target differ",
        ));
    }
    Ok(())
}

/// Escapes the characters of a target that the engine's type for targets cannot hold. These are
/// `<`, `>` and the backtick in a path, `"`, `<` and `>` in a query, and bytes that are neither
/// ASCII nor UTF-8.
fn escaped(target: &[u8]) -> Cow<'_, [u8]> {
    let query = memchr::memchr(b'?', target).unwrap_or(target.len());
    let is_text = std::str::from_utf8(target).is_ok();
    let is_held = |at: usize, byte: u8| match byte {
        b'<' | b'>' => false,
        b'`' => at > query,
        b'"' => at < query,
        0x80.. => is_text,
        _ => true,
    };
    if target
        .iter()
        .enumerate()
        .all(|(at, byte)| is_held(at, *byte))
    {
        return Cow::Borrowed(target);
    }
    let mut out = Vec::with_capacity(target.len() + 16);
    for (at, &byte) in target.iter().enumerate() {
        match is_held(at, byte) {
            true => out.push(byte),
            false => out.extend_from_slice(&[
                b'%',
                b"0123456789ABCDEF"[usize::from(byte >> 4)],
                b"0123456789ABCDEF"[usize::from(byte & 15)],
            ]),
        }
    }
    Cow::Owned(out)
}

/// Returns the entry of the access log for a request that is refused here: its first two words as
/// far as they are readable.
pub fn sketch(bytes: &[u8]) -> Sketch {
    let bytes = bytes.trim_ascii_start();
    let line = &bytes[..memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len())];
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let nothing = Sketch::default();
    let Some(method) = words
        .next()
        .filter(|word| word.len() <= 32)
        .and_then(|word| Method::from_bytes(word).ok())
    else {
        return nothing;
    };
    let Some(target) = words.next() else {
        return Sketch { method, ..nothing };
    };
    let path = target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    Sketch {
        method,
        path: String::from_utf8_lossy(&path[..path.len().min(MAX_SKETCH)]).into(),
    }
}

/// Returns whether a refused head is that of a browser that requests a page.
pub fn wants_html(bytes: &[u8]) -> bool {
    // Bytes after an empty line belong to another request.
    let lines = bytes
        .trim_ascii_start()
        .split(|byte| *byte == b'\n')
        .take_while(|line| !matches!(*line, b"" | b"\r"));
    lines.skip(1).any(|line| {
        line.get(..7)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"accept:"))
            && line
                .windows(9)
                .any(|part| part.eq_ignore_ascii_case(b"text/html"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(head: &[u8]) -> Result<Passed, (&'static str, String)> {
        match Screen::default().look(head, 64 << 10) {
            Screened::Passed(passed) => Ok(passed),
            Screened::Refused(reply) => Err((reply.code, reply.sentence().into_owned())),
            Screened::Partial => panic!("half a head: {:?}", String::from_utf8_lossy(head)),
        }
    }

    fn with(fields: &str) -> Vec<u8> {
        format!("POST /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn a_well_formed_head_passes_with_its_framing() {
        let head = b"\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-A: a\tb \r\n\r\nnext";
        assert_eq!(
            look(head),
            Ok(Passed {
                from: 2,
                to: head.len() - 4,
                body: Body::Length(0),
                upgrades: false,
                target: None
            })
        );
        assert_eq!(
            look(&with("Content-Length: 5\r\n")).map(|passed| passed.body),
            Ok(Body::Length(5))
        );
        assert_eq!(
            look(&with("Content-Length: 5\r\nTransfer-Encoding: Chunked\r\n"))
                .map(|passed| passed.body),
            Ok(Body::Chunked)
        );
        assert!(
            look(&with("Connection: upgrade\r\nUpgrade: websocket\r\n"))
                .is_ok_and(|passed| passed.upgrades)
        );
        assert!(look(b"OPTIONS / HTTP/1.0\r\n\r\n").is_ok());
        assert!(
            look("GET /\u{e9}{|}^\\[]\"?`'{} HTTP/1.1\r\nHost: h\r\n\r\n".as_bytes())
                .is_ok_and(|passed| passed.target.is_none())
        );
    }

    #[test]
    fn a_malformed_head_is_refused_with_its_line_and_reason() {
        let line = |line: &str| format!("{line}\r\nHost: h\r\n\r\n").into_bytes();
        for (head, code, says) in [
            (line("GET"), "bad_request_line", "line 1 "),
            (line("GET  / HTTP/1.1"), "bad_request_line", "one space"),
            (line("GET /"), "bad_request_line", "METHOD TARGET"),
            (line("GET / HTTP/1.1 "), "bad_request_line", "one space"),
            (line("G[T / HTTP/1.1"), "bad_request_line", "METHOD"),
            (line("\u{16}\u{3}\u{1}"), "bad_request_line", "METHOD"),
            (line("GET / HTTP/2.0"), "bad_version", "HTTP/1.1"),
            (line("GET / http/1.1"), "bad_version", "HTTP/1.1"),
            (line("GET /a b HTTP/1.1"), "bad_target", "%20"),
            (line("GET /a\u{b}b HTTP/1.1"), "bad_target", "control"),
            (line("GET /a?\u{7f} HTTP/1.1"), "bad_target", "control"),
            (line("GET h:80 HTTP/1.1"), "bad_target", "neither"),
            (line("GET http:/\\h HTTP/1.1"), "bad_target", "neither"),
            (
                line("GET http:///a HTTP/1.1"),
                "bad_host",
                "name or an address",
            ),
            (line("GET http://i/ HTTP/1.1"), "bad_host", "differ"),
            (
                line("CONNECT h:80 HTTP/1.1"),
                "method_not_allowed",
                "CONNECT",
            ),
            (
                b"GET / HTTP/1.1\nHost: h\r\n\r\n".to_vec(),
                "bad_line_end",
                "line 1 ",
            ),
            (
                b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
                "bad_line_end",
                "bare",
            ),
            (
                b"GET / HTTP/1.1\r\nHost: h\r\n\n".to_vec(),
                "bad_line_end",
                "line 3 ",
            ),
            (
                with("X-A: a\rb\r\n"),
                "bad_line_end",
                "line 3 of the request head: the line holds a carriage return",
            ),
            (with("X-A: a\r\n b\r\n"), "bad_header", "line 4 "),
            (with("X-A : a\r\n"), "bad_header", "space before the colon"),
            (with("X-A\r\n"), "bad_header", "no colon"),
            (with(": a\r\n"), "bad_header", "no header name"),
            (with("X\u{e9}: a\r\n"), "bad_header", "character"),
            (with("X-A: a\0b\r\n"), "bad_header", "control"),
            (with("Host: h\r\n"), "bad_host", "more than one"),
            (with("Content-Length: 5, 5\r\n"), "bad_framing", "ambiguous"),
            (
                with("Content-Length: 99999999999999999999\r\n"),
                "bad_framing",
                "ambiguous",
            ),
            (
                with("Transfer-Encoding: gzip, chunked\r\n"),
                "bad_framing",
                "ambiguous",
            ),
            (
                b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                "bad_framing",
                "HTTP/1.0",
            ),
            (
                with("Connection: close, X-Forwarded-For\r\n"),
                "bad_connection",
                "`Connection` may not name `x-forwarded-for`",
            ),
            (
                with("Connection: \"a\"\r\n"),
                "bad_connection",
                "no header name",
            ),
            (
                with("Connection: :authority\r\n"),
                "bad_connection",
                "no header name",
            ),
            (
                with(&format!("Connection: {}\r\n", ["a"; 10].join(","))),
                "bad_connection",
                "more than 9",
            ),
            (with(&"X-A: 1\r\n".repeat(256)), "headers_too_large", "256"),
            (
                with(&format!("X-A: {}\r\n", "a".repeat(64 << 10))),
                "headers_too_large",
                "larger",
            ),
        ] {
            let found = look(&head).expect_err(&String::from_utf8_lossy(&head));
            assert!(
                found.0 == code && found.1.contains(says),
                "{:?}: {found:?}",
                String::from_utf8_lossy(&head)
            );
        }
    }

    #[test]
    fn a_character_that_the_engine_cannot_hold_is_escaped() {
        for (target, becomes) in [
            ("/<a>`\"?`\"<", "/%3Ca%3E%60\"?`%22%3C"),
            ("/a?b=<", "/a?b=%3C"),
            ("/\u{e9}\u{ff}", "/%E9%FF"),
        ] {
            // The last one is in Latin 1, as old clients write it.
            let target: Vec<u8> = target.chars().map(|letter| letter as u8).collect();
            let head = [b"GET ", &target[..], b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
            let (at, escaped) = look(&head).expect("passes").target.expect("it is another");
            assert_eq!(
                (&head[at], String::from_utf8_lossy(&escaped).as_ref()),
                (&target[..], becomes)
            );
        }
    }

    /// Returns whether pingora accepts a head, and does not answer it with a bare 400.
    fn is_taken_by_the_engine(head: &[u8]) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (_client, ours) = tokio::io::duplex(64);
            let mut session = pingora::protocols::http::ServerSession::new_http1(Box::new(ours));
            session.set_pipelined_prefix(bytes::BytesMut::from(head));
            let read =
                tokio::time::timeout(std::time::Duration::from_secs(5), session.read_request())
                    .await;
            matches!(read, Ok(Ok(true))) && session.req_header().method != http::Method::CONNECT
        })
    }

    const PIECES: [&str; 41] = [
        "GET",
        "POST",
        "OPTIONS",
        "CONNECT",
        "get",
        "*",
        "/",
        "/a?b",
        "http://h/a",
        "http://i",
        "HTTP://H/",
        "https://[::1]:80/x",
        "http://h:99999/",
        "http:",
        "//",
        "?x",
        " ",
        "\t",
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\x0b",
        "\x7f",
        "\"",
        "<",
        "`",
        "#",
        "\\",
        "%00",
        "\u{e9}",
        ":",
        "@",
        ",",
        "HTTP/1.1",
        "HTTP/1.0",
        "Host: h\r\n",
        "Host: [::1]:80\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close, x-a\r\n",
    ];

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn a_head_that_passes_is_never_refused_by_the_engine(
            base in proptest::sample::select(&["GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n", "POST /a?b=c HTTP/1.0\r\nContent-Length: 5\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h:80\r\nConnection: close\r\n\r\n"][..]),
            edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0usize..4, proptest::sample::select(&PIECES[..]), proptest::prelude::any::<u8>()), 0..4),
        ) {
            let mut head = base.as_bytes().to_vec();
            for (at, cut, piece, byte) in edits {
                let at = at.index(head.len());
                let until = (at + cut).min(head.len());
                // Occasionally any byte may occur.
                let piece = if byte < 32 { vec![byte.wrapping_mul(8).wrapping_add(7)] } else { piece.as_bytes().to_vec() };
                head.splice(at..until, piece);
            }
            if let Screened::Passed(passed) = Screen::default().look(&head, 64 << 10) {
                let mut out = Vec::new();
                passed.write(&head, &mut out);
                proptest::prop_assert!(is_taken_by_the_engine(&out), "{:?}", String::from_utf8_lossy(&head));
            }
        }
    }

    #[test]
    fn a_head_is_screened_alike_for_any_split_of_bytes() {
        for head in [
            &b"\r\nGET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: h\n\n",
        ] {
            for step in 1..head.len() {
                let (mut screen, mut until) = (Screen::default(), 0);
                let end = loop {
                    until = (until + step).min(head.len());
                    match screen.look(&head[..until], 1_000) {
                        Screened::Partial => assert!(until < head.len(), "steps of {step}"),
                        Screened::Passed(passed) => break Ok((passed.from, passed.to)),
                        Screened::Refused(reply) => break Err(reply.code),
                    }
                };
                let expected = if head.starts_with(b"\r") {
                    Ok((2, head.len()))
                } else {
                    Err("bad_line_end")
                };
                assert_eq!(end, expected, "steps of {step}");
            }
        }
    }

    #[test]
    fn a_refused_request_is_logged_as_far_as_it_is_readable() {
        let sketched = |bytes: &[u8]| {
            let Sketch { method, path } = sketch(bytes);
            (method.to_string(), path.to_string())
        };
        for (bytes, method, path) in [
            (&b"GET /a?secret=1 HTTP/1.1\r\n"[..], "GET", "/a"),
            (b"GET /a b HTTP/1.1\r\n", "GET", "/a"),
            (b"\x16\x03\x01", "-", "-"),
            (b"GET", "GET", "-"),
            (b"", "-", "-"),
        ] {
            assert_eq!(sketched(bytes), (method.to_owned(), path.to_owned()));
        }
        assert!(
            wants_html(b"GET / HTTP/1.1\r\nAccept: text/html,*/*\r\n")
                && !wants_html(b"GET /text/html HTTP/1.1\r\nAccept: */*\r\n")
        );
        for end in ["\r\n", "\n"] {
            let two = format!(
                "GET / HTTP/1.1\nHost: h\n{end}GET / HTTP/1.1\r\nAccept: text/html\r\n\r\n"
            );
            assert!(
                !wants_html(two.as_bytes()),
                "it is the next request that asks for a page"
            );
        }
    }
}
