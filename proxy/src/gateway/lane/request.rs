//! The requests that the lane takes, and their heads as the router sees them.
//!
//! The grammar is narrow on purpose. Any request that is not the plainest HTTP/1.1 goes to the
//! proxy engine with every byte that was received, and that engine can handle it. So nothing here
//! is lenient, and nothing has to be.

use std::mem::MaybeUninit;

use http::{HeaderName, Method};

use crate::gateway::lane::LARGEST_HEAD;
use crate::gateway::lane::header_lines::{Lines, Splice};
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::message::fields::Fields;
use crate::gateway::message::head::Head;
use crate::shared::connections::Declined;

/// The largest number of fields in a request that the lane takes.
const MAX_FIELDS: usize = 64;

/// A request that the lane takes, judged by its first line and the form of its fields. It holds the
/// positions of all parts in the received bytes.
#[derive(Debug)]
pub(super) struct Request {
    lines: Lines,
    method: &'static Method,
    /// The length of the head in bytes, including its empty line.
    pub(super) head: usize,
    target: (usize, usize),
    path_end: usize,
}

/// A request together with the bytes that it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHead<'a> {
    request: &'a Request,
    bytes: &'a [u8],
}

/// The result of parsing some bytes.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// A complete head.
    Whole(T),
    /// The beginning of a head.
    Partial,
    /// A request that the lane does not take.
    Declined(Declined),
}

/// What the transaction has to know about a request besides its head.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestFacts {
    /// The length of the body in bytes.
    pub(super) body: u64,
    /// Whether the client wants the connection kept open.
    pub(super) keeps: bool,
}

/// Parses the head at the start of these bytes.
pub(super) fn parse(bytes: &[u8]) -> Parsed<Request> {
    if !bytes.first().is_some_and(u8::is_ascii_uppercase) {
        return Parsed::Declined(Declined::Head);
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(head)) if head <= LARGEST_HEAD => head,
        Ok(httparse::Status::Partial) if bytes.len() < LARGEST_HEAD => return Parsed::Partial,
        Ok(_) | Err(_) => return Parsed::Declined(Declined::Head),
    };
    if request.version != Some(1) {
        return Parsed::Declined(Declined::Version);
    }
    let Some(method) = request.method.and_then(known) else {
        return Parsed::Declined(Declined::Method);
    };
    let Some(target) = request.path.filter(|target| is_plain(target.as_bytes())) else {
        return Parsed::Declined(Declined::Target);
    };
    let at = target.as_ptr() as usize - bytes.as_ptr() as usize;
    let path_end = at + memchr::memchr(b'?', target.as_bytes()).unwrap_or(target.len());
    Parsed::Whole(Request {
        lines: Lines::read(bytes, request.headers, false),
        method,
        head,
        target: (at, at + target.len()),
        path_end,
    })
}

impl Request {
    /// Combines the request with the bytes that it was read from.
    pub(super) fn of<'a>(&'a self, bytes: &'a [u8]) -> RequestHead<'a> {
        RequestHead {
            request: self,
            bytes: bytes.get(..self.head).unwrap_or_default(),
        }
    }
}

fn known(method: &str) -> Option<&'static Method> {
    Some(match method {
        "GET" => &Method::GET,
        "HEAD" => &Method::HEAD,
        "POST" => &Method::POST,
        "PUT" => &Method::PUT,
        "DELETE" => &Method::DELETE,
        "PATCH" => &Method::PATCH,
        "OPTIONS" => &Method::OPTIONS,
        _ => return None,
    })
}

/// The bytes that every program on the way reads alike in a target.
const IN_TARGET: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = !matches!(
            byte,
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        );
        byte += 1;
    }
    table
};

fn is_plain(target: &[u8]) -> bool {
    target.first() == Some(&b'/')
        && target
            .iter()
            .fold(true, |plain, &byte| plain & IN_TARGET[usize::from(byte)])
}

impl<'a> RequestHead<'a> {
    /// Returns what the transaction has to know, or why the lane does not take the request.
    pub(super) fn facts(self, fields: &Fields<'_>) -> Result<RequestFacts, Declined> {
        if fields.hosts != 1 || fields.host.is_none_or(|host| host.contains(&b'@')) {
            return Err(Declined::Host);
        }
        if fields.is_coded || fields.is_badly_framed {
            return Err(Declined::Framing);
        }
        let body = match fields.length {
            None => 0,
            Some(length) => std::str::from_utf8(length)
                .ok()
                .and_then(|length| length.parse().ok())
                .ok_or(Declined::Framing)?,
        };
        if fields.may_last {
            return Err(Declined::Lasts);
        }
        let keeps = match fields.connection {
            None => true,
            Some(connection) if connection.eq_ignore_ascii_case(b"keep-alive") => true,
            Some(connection) if connection.eq_ignore_ascii_case(b"close") => false,
            Some(_) => return Err(Declined::HopByHop),
        };
        if fields.has_hop_by_hop {
            return Err(Declined::HopByHop);
        }
        if body > 0
            && matches!(
                *self.request.method,
                Method::GET | Method::HEAD | Method::OPTIONS
            )
        {
            return Err(Declined::Body);
        }
        Ok(RequestFacts { body, keeps })
    }

    fn text(self, from: usize, to: usize) -> &'a str {
        // Every byte of a target was checked: it is ASCII.
        self.bytes
            .get(from..to)
            .and_then(|text| std::str::from_utf8(text).ok())
            .unwrap_or("/")
    }

    /// Returns the path as it was sent.
    pub(super) fn path_sent(self) -> &'a str {
        self.text(self.request.target.0, self.request.path_end)
    }

    /// Writes the head with edits.
    pub(super) fn write(self, out: &mut Vec<u8>, edit: impl FnOnce(&mut Splice<'_>)) {
        let (from, to) = self.request.target;
        out.extend_from_slice(self.request.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(&self.bytes[from..to]);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let mut added = Scratch::new();
        let mut splice = Splice::new(self.bytes, &self.request.lines, &mut added);
        edit(&mut splice);
        splice.write(out);
    }
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &Method {
        self.request.method
    }

    fn path(&self) -> &str {
        self.path_sent()
    }

    fn query(&self) -> Option<&str> {
        let (from, to) = (self.request.path_end + 1, self.request.target.1);
        (from <= to).then(|| self.text(from, to))
    }

    fn requires_host(&self) -> bool {
        true
    }

    fn target(&self) -> &[u8] {
        &self.bytes[self.request.target.0..self.request.target.1]
    }

    fn raw(&self) -> &[u8] {
        self.bytes
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.request.lines.values(self.bytes, name.as_str()).next()
    }

    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
        self.request
            .lines
            .values(self.bytes, name.as_str())
            .for_each(found);
    }

    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a [u8], &'a [u8])) {
        self.request
            .lines
            .each(self.bytes)
            .for_each(|(name, value)| found(name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns why a request is declined. `None` if it is taken.
    fn declined(request: &str) -> Option<Declined> {
        match parse(request.as_bytes()) {
            Parsed::Whole(read) => {
                let head = read.of(request.as_bytes());
                head.facts(&Fields::of(&head, &[])).err()
            }
            Parsed::Declined(why) => Some(why),
            Parsed::Partial => panic!("half a head: {request:?}"),
        }
    }

    fn get(fields: &str) -> String {
        format!("GET /a?b=c HTTP/1.1\r\nhost: h\r\n{fields}\r\n")
    }

    #[test]
    fn plain_requests_are_taken() {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(
                declined(&format!(
                    "{method} / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n"
                )),
                None
            );
        }
        for fields in [
            "connection: keep-alive\r\n",
            "Connection: Close\r\n",
            "content-length: 0\r\n",
            "cookie: a=1\r\naccept: */*\r\nx-user-id: u\r\n",
        ] {
            assert_eq!(declined(&get(fields)), None, "{fields}");
        }
        assert_eq!(
            declined("POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 12\r\n\r\n"),
            None
        );
    }

    #[test]
    fn all_other_requests_are_declined() {
        for (why, request) in [
            (
                Declined::Head,
                "\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Head,
                "get / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (Declined::Head, get("x : 1\r\n")),
            (Declined::Head, get("x: 1\r\n 2\r\n")),
            (Declined::Head, get("x: \u{1}\r\n")),
            (Declined::Head, get(&"x: 1\r\n".repeat(64))),
            (
                Declined::Head,
                get(&format!("x: {}\r\n", "x".repeat(LARGEST_HEAD))),
            ),
            (
                Declined::Version,
                "GET / HTTP/1.0\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Method,
                "TRACE / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Method,
                "PROPFIND / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Target,
                "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Target,
                "GET http://h/ HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Target,
                "GET /#a HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Target,
                "GET /{a} HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (
                Declined::Target,
                "GET /\u{e9} HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
            ),
            (Declined::Host, "GET / HTTP/1.1\r\n\r\n".to_owned()),
            (Declined::Host, get("host: h\r\n")),
            (
                Declined::Host,
                "GET / HTTP/1.1\r\nhost: u@h\r\n\r\n".to_owned(),
            ),
            (Declined::Framing, get("transfer-encoding: chunked\r\n")),
            (Declined::Framing, get("content-length: 1, 1\r\n")),
            (
                Declined::Framing,
                get("content-length: 0\r\ncontent-length: 0\r\n"),
            ),
            (
                Declined::Framing,
                get("content-length: 99999999999999999999\r\n"),
            ),
            (Declined::HopByHop, get("connection: upgrade\r\n")),
            (
                Declined::HopByHop,
                get("connection: close\r\nconnection: close\r\n"),
            ),
            (Declined::HopByHop, get("te: trailers\r\n")),
            (Declined::HopByHop, get("Expect: 100-continue\r\n")),
            (Declined::HopByHop, get("keep-alive: 5\r\n")),
            (Declined::HopByHop, get("proxy-connection: close\r\n")),
            (Declined::HopByHop, get("http2-settings: AA\r\n")),
            (Declined::Lasts, get("upgrade: websocket\r\n")),
            (Declined::Lasts, get("accept: text/event-stream\r\n")),
            (Declined::Lasts, get("content-type: application/grpc\r\n")),
            (Declined::Body, get("content-length: 5\r\n")),
        ] {
            assert_eq!(declined(&request), Some(why), "{request:?}");
        }
    }

    #[test]
    fn a_head_is_parsed_into_its_parts() {
        let bytes =
            b"GET /a%20b?c=d&e HTTP/1.1\r\nHost: h\r\nX-User-Id: u\r\nx-user-id: v\r\n\r\nnext";
        let Parsed::Whole(read) = parse(bytes) else {
            panic!("not taken")
        };
        let head = read.of(bytes);
        assert_eq!(
            (head.path(), head.query(), head.target(), head.size()),
            (
                "/a%20b",
                Some("c=d&e"),
                &b"/a%20b?c=d&e"[..],
                bytes.len() - 4
            )
        );
        let name = HeaderName::from_static("x-user-id");
        let mut all = Vec::new();
        head.each(&name, &mut |value| all.push(value));
        assert_eq!(
            (head.first(&name), all),
            (Some(&b"u"[..]), vec![&b"u"[..], b"v"])
        );
        assert!(matches!(
            parse(b"GET / HTTP/1.1\r\nhost: h\r\n"),
            Parsed::Partial
        ));
        for (target, query) in [("/", None), ("/?", Some(""))] {
            let bytes = format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n");
            let Parsed::Whole(read) = parse(bytes.as_bytes()) else {
                panic!("not taken")
            };
            assert_eq!(
                (
                    read.of(bytes.as_bytes()).path(),
                    read.of(bytes.as_bytes()).query()
                ),
                ("/", query)
            );
        }
    }
}
