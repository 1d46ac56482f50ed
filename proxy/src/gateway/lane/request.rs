//! Which requests the lane takes, and their heads as the gate sees them.
//!
//! The grammar is narrow on purpose: what is not the plainest HTTP/1.1 goes to the proxy engine with every byte that came, and that engine knows what to make of it. So nothing here is lenient, and nothing has to be.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use http::{HeaderName, Method};

use super::lines::Lines;
use super::{Declined, LARGEST_HEAD};
use crate::gateway::fields::Fields;
use crate::gateway::head::Head;

/// Fields that a request of the lane may have.
const MAX_FIELDS: usize = 64;

/// The head of a request as the bytes that came.
#[derive(Debug)]
pub(super) struct RequestHead<'a> {
    /// The head, with its empty line.
    bytes: &'a [u8],
    pub(super) lines: &'a Lines,
    method: &'static Method,
    target: &'a str,
    /// Where the query begins, with its question mark.
    path_end: usize,
}

/// What became of some bytes.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// A head.
    Whole(T),
    /// The beginning of one.
    Partial,
    /// Not what the lane takes.
    Declined(Declined),
}

/// What has to be known of a request after its head has been looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Bytes of the head.
    pub(super) head: usize,
    /// Bytes of the body.
    pub(super) body: u64,
    /// Whether the client would have the connection kept.
    pub(super) keeps: bool,
    /// Where the path stands.
    pub(super) path: (usize, usize),
}

thread_local! {
    static LINES: RefCell<Lines> = RefCell::default();
}

/// Has somebody look at the head that these bytes begin with.
pub(super) fn with_head<T>(bytes: &[u8], look: impl FnOnce(Parsed<RequestHead<'_>>) -> T) -> T {
    LINES.with_borrow_mut(|lines| look(parse(bytes, lines)))
}

fn parse<'a>(bytes: &'a [u8], lines: &'a mut Lines) -> Parsed<RequestHead<'a>> {
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
    let Some(method) = request.method.and_then(known) else { return Parsed::Declined(Declined::Method) };
    let Some(target) = request.path.filter(|target| is_plain(target.as_bytes())) else { return Parsed::Declined(Declined::Target) };
    lines.read(bytes, request.headers);
    let path_end = memchr::memchr(b'?', target.as_bytes()).unwrap_or(target.len());
    Parsed::Whole(RequestHead { bytes: &bytes[..head], lines, method, target, path_end })
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

/// Bytes of a target that every program on the way reads alike.
const IN_TARGET: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
        byte += 1;
    }
    table
};

fn is_plain(target: &[u8]) -> bool {
    target.first() == Some(&b'/') && target.iter().fold(true, |plain, &byte| plain & IN_TARGET[usize::from(byte)])
}

impl RequestHead<'_> {
    /// What the transaction has to know, or why it is not the lane's.
    pub(super) fn asked(&self, fields: &Fields<'_>) -> Result<Asked, Declined> {
        if fields.hosts != 1 || fields.host.is_none_or(|host| host.contains(&b'@')) {
            return Err(Declined::Host);
        }
        if fields.is_coded || fields.is_badly_framed {
            return Err(Declined::Framing);
        }
        let body = match fields.length {
            None => 0,
            Some(length) => std::str::from_utf8(length).ok().and_then(|length| length.parse().ok()).ok_or(Declined::Framing)?,
        };
        let keeps = match fields.connection {
            None => true,
            Some(connection) if connection.eq_ignore_ascii_case(b"keep-alive") => true,
            Some(connection) if connection.eq_ignore_ascii_case(b"close") => false,
            Some(_) => return Err(Declined::HopByHop),
        };
        if fields.has_hop_by_hop {
            return Err(Declined::HopByHop);
        }
        if fields.may_last {
            return Err(Declined::Lasts);
        }
        if body > 0 && matches!(*self.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Err(Declined::Body);
        }
        let path = self.target.as_ptr() as usize - self.bytes.as_ptr() as usize;
        Ok(Asked { head: self.bytes.len(), body, keeps, path: (path, path + self.path_end) })
    }

    /// Writes the first line.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &Method {
        self.method
    }

    fn path(&self) -> &str {
        &self.target[..self.path_end]
    }

    fn query(&self) -> Option<&str> {
        self.target.get(self.path_end + 1..)
    }

    fn requires_host(&self) -> bool {
        true
    }

    fn target(&self) -> &[u8] {
        self.target.as_bytes()
    }

    fn raw(&self) -> &[u8] {
        self.bytes
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.lines.values(self.bytes, name.as_str()).next()
    }

    fn each<'a>(&'a self, name: &HeaderName, found: &mut dyn FnMut(&'a [u8])) {
        self.lines.values(self.bytes, name.as_str()).for_each(found);
    }

    fn fields<'a>(&'a self, found: &mut impl FnMut(&'a str, &'a [u8])) {
        self.lines.each(self.bytes).for_each(|(name, value)| found(name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Why it is declined; nothing where it is taken.
    fn declined(request: &str) -> Option<Declined> {
        with_head(request.as_bytes(), |parsed| match parsed {
            Parsed::Whole(head) => head.asked(&Fields::of(&head, &[])).err(),
            Parsed::Declined(why) => Some(why),
            Parsed::Partial => panic!("half a head: {request:?}"),
        })
    }

    fn get(fields: &str) -> String {
        format!("GET /a?b=c HTTP/1.1\r\nhost: h\r\n{fields}\r\n")
    }

    #[test]
    fn the_plainest_requests_are_taken() {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(declined(&format!("{method} / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n")), None);
        }
        for fields in ["connection: keep-alive\r\n", "Connection: Close\r\n", "content-length: 0\r\n", "cookie: a=1\r\naccept: */*\r\nx-user-id: u\r\n"] {
            assert_eq!(declined(&get(fields)), None, "{fields}");
        }
        assert_eq!(declined("POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 12\r\n\r\n"), None);
    }

    #[test]
    fn everything_else_is_declined() {
        for (why, request) in [
            (Declined::Head, "\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Head, "get / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Head, get("x : 1\r\n")),
            (Declined::Head, get("x: 1\r\n 2\r\n")),
            (Declined::Head, get("x: \u{1}\r\n")),
            (Declined::Head, get(&"x: 1\r\n".repeat(64))),
            (Declined::Head, get(&format!("x: {}\r\n", "x".repeat(LARGEST_HEAD)))),
            (Declined::Version, "GET / HTTP/1.0\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Method, "TRACE / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Method, "PROPFIND / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Target, "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Target, "GET http://h/ HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Target, "GET /#a HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Target, "GET /{a} HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Target, "GET /\u{e9} HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
            (Declined::Host, "GET / HTTP/1.1\r\n\r\n".to_owned()),
            (Declined::Host, get("host: h\r\n")),
            (Declined::Host, "GET / HTTP/1.1\r\nhost: u@h\r\n\r\n".to_owned()),
            (Declined::Framing, get("transfer-encoding: chunked\r\n")),
            (Declined::Framing, get("content-length: 1, 1\r\n")),
            (Declined::Framing, get("content-length: 0\r\ncontent-length: 0\r\n")),
            (Declined::Framing, get("content-length: 99999999999999999999\r\n")),
            (Declined::HopByHop, get("connection: upgrade\r\n")),
            (Declined::HopByHop, get("connection: close\r\nconnection: close\r\n")),
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
    fn a_head_is_read_as_it_stands() {
        let bytes = b"GET /a%20b?c=d&e HTTP/1.1\r\nHost: h\r\nX-User-Id: u\r\nx-user-id: v\r\n\r\nnext";
        with_head(bytes, |parsed| {
            let Parsed::Whole(head) = parsed else { panic!("{parsed:?}") };
            assert_eq!((head.path(), head.query(), head.target(), head.size()), ("/a%20b", Some("c=d&e"), &b"/a%20b?c=d&e"[..], bytes.len() - 4));
            let name = HeaderName::from_static("x-user-id");
            let mut all = Vec::new();
            head.each(&name, &mut |value| all.push(value));
            assert_eq!((head.first(&name), all), (Some(&b"u"[..]), vec![&b"u"[..], b"v"]));
            let asked = head.asked(&Fields::of(&head, &[])).unwrap_or_else(|why| panic!("{why:?}"));
            assert_eq!(&bytes[asked.path.0..asked.path.1], b"/a%20b");
        });
        assert!(with_head(b"GET / HTTP/1.1\r\nhost: h\r\n", |parsed| matches!(parsed, Parsed::Partial)));
        with_head(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", |parsed| {
            let Parsed::Whole(head) = parsed else { panic!("{parsed:?}") };
            assert_eq!((head.path(), head.query()), ("/", None));
        });
    }
}
