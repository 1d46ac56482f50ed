//! What no request may look like, whoever sent it: shapes that two programs on the way may read differently.
//!
//! The engine's parser is lenient where old clients were sloppy: it ends lines at a bare line feed, takes any target and any host, and passes on lists of equal lengths. Each of these is
//! harmless alone and a request of somebody else behind a backend that reads it otherwise. So they are refused here, before anything is decided on them.
//!
//! Deliberately absent: bodies. Chunks are parsed and written anew by the engine, so a backend never sees the client's framing.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, Method};

use super::forward;
use super::head::Head;
use super::reply::Reply;

/// What is wrong with this request, if anything.
pub fn flaw(head: &impl Head, host: Option<&str>, key_headers: &[HeaderName]) -> Option<Reply> {
    if has_bare_line_feed(head.raw()) {
        return Some(Reply::bad_request("bad_line_end", "a line of the request head ends in a bare line feed"));
    }
    if head.method() == Method::TRACE {
        return Some(Reply::METHOD_NOT_ALLOWED);
    }
    if !is_target(head.target(), head.method()) || has_split_path(head.path()) {
        return Some(Reply::bad_request("bad_target", "the request target is not valid"));
    }
    match host {
        Some(host) if is_host(host) => {}
        None if !head.requires_host() => {}
        None | Some("") => return Some(Reply::bad_request("missing_host", "the request has no Host header")),
        Some(_) => return Some(Reply::bad_request("bad_host", "the Host header is not a host")),
    }
    if !is_framed_once(head) {
        return Some(Reply::bad_request("bad_framing", "the length of the request body is ambiguous"));
    }
    if head.any_name(&mut |name| is_lookalike(name.as_str(), key_headers)) {
        return Some(Reply::bad_request("lookalike_header", "a header name differs from one with a meaning here by an underscore only"));
    }
    None
}

/// Whether a line ends without a carriage return. Nothing else in a head may be a line feed.
fn has_bare_line_feed(raw: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', raw).any(|at| at.checked_sub(1).and_then(|before| raw.get(before)) != Some(&b'\r'))
}

/// Origin form, the absolute form of a web address, or the star of OPTIONS. CONNECT never comes this far.
fn is_target(target: &[u8], method: &Method) -> bool {
    let begins_with = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    match target {
        [b'/', ..] => true,
        b"*" => method == Method::OPTIONS,
        _ => begins_with(b"http://") || begins_with(b"https://"),
    }
}

/// Whether a path holds an escaped NUL or end of line. The engine escapes raw ones, so these are refused with them.
fn has_split_path(path: &str) -> bool {
    let path = path.as_bytes();
    memchr::memchr_iter(b'%', path).any(|at| matches!(path.get(at + 1..at + 3), Some([b'0', b'0' | b'a' | b'A' | b'd' | b'D'])))
}

/// A name or an address, and maybe a port. Names are opaque but for the bytes that end one somewhere else in an address.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("address", rest),
            Some(_) | None => return false,
        },
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()));
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte));
    is_name && is_port
}

/// Whether there is at most one length, in digits, and at most one coding, `chunked`. Every other coding would be dropped by the engine while the body stays coded.
fn is_framed_once(head: &impl Head) -> bool {
    let (mut fields, mut good) = (0, true);
    head.each(&CONTENT_LENGTH, &mut |length| {
        fields += 1;
        good &= !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    });
    good &= fields <= 1;
    let mut codings = 0;
    head.each(&TRANSFER_ENCODING, &mut |coding| {
        codings += 1;
        good &= coding.eq_ignore_ascii_case(b"chunked");
    });
    good && codings <= 1
}

/// Whether a name becomes one of ours, or one that carries a key, in a backend that takes underscores for hyphens. CGI, WSGI and their kin do.
fn is_lookalike(name: &str, key_headers: &[HeaderName]) -> bool {
    if memchr::memchr(b'_', name.as_bytes()).is_none() {
        return false;
    }
    let same = |known: &HeaderName| {
        let known = known.as_str().as_bytes();
        known != name.as_bytes()
            && known.len() == name.len()
            && known.iter().zip(name.bytes()).all(|(&known, byte)| known == byte || (matches!(known, b'-' | b'_') && matches!(byte, b'-' | b'_')))
    };
    forward::OURS.into_iter().chain([&CONTENT_LENGTH, &TRANSFER_ENCODING]).chain(key_headers).any(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::gate::tests::TestHead;

    #[test]
    fn a_line_ends_in_both_bytes() {
        assert!(!has_bare_line_feed(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"));
        assert!(!has_bare_line_feed(b""));
        for raw in [&b"\nGET / HTTP/1.1\r\n\r\n"[..], b"GET / HTTP/1.1\nhost: h\r\n\r\n", b"GET / HTTP/1.1\r\n\n"] {
            assert!(has_bare_line_feed(raw));
        }
    }

    #[test]
    fn a_target_is_a_path_a_web_address_or_the_star_of_options() {
        for (target, method, good) in [
            ("/", Method::GET, true),
            ("*", Method::OPTIONS, true),
            ("*", Method::GET, false),
            ("HTTP://h/", Method::GET, true),
            ("https://h", Method::GET, true),
            ("ftp://h/", Method::GET, false),
            ("h:80", Method::GET, false),
            ("%20/", Method::GET, false),
            ("", Method::GET, false),
        ] {
            assert_eq!(is_target(target.as_bytes(), &method), good, "{target}");
        }
        for (path, split) in [("/a%00", true), ("/%0d", true), ("/%0A", true), ("/%09", false), ("/%000", true), ("/%2500", false), ("/%0", false), ("/%", false)] {
            assert_eq!(has_split_path(path), split, "{path}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_maybe_a_port() {
        for host in ["shop.example", "h", "h:", "h:80", "h:0", "127.0.0.1:65535", "[::1]", "[::1]:80", "_sip.example", "a%20b"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", ":80", "h i", "h,i", "h/i", "h?i", "h#i", "h\\i", "u@h", "h:http", "h:65536", "h:+80", "h:80:80", "[::1", "[::1]80", "[h]", "::1", "h\t", "<h>", "\u{e9}"]
        {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn a_body_is_framed_in_one_way() {
        let head = |headers: &[(&str, &str)]| headers.iter().fold(TestHead::get("/"), |head, (name, value)| head.with(name, value));
        for good in [&[][..], &[("content-length", "5")], &[("transfer-encoding", "Chunked")]] {
            assert!(is_framed_once(&head(good)), "{good:?}");
        }
        for bad in [
            &[("content-length", "5"), ("content-length", "5")][..],
            &[("content-length", "5, 5")],
            &[("content-length", "+5")],
            &[("content-length", "")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert!(!is_framed_once(&head(bad)), "{bad:?}");
        }
    }

    #[test]
    fn an_underscore_does_not_make_another_name() {
        let keys = [HeaderName::from_static("x-user-id"), HeaderName::from_static("tenant_id")];
        for name in ["x_user_id", "x-user_id", "tenant-id", "x_forwarded_for", "x_cutover_backend", "x_request-id", "content_length"] {
            assert_eq!(is_lookalike(name, &keys), name.contains('_'), "{name}");
        }
        for name in ["x-user-id", "tenant_id", "some_header", "x_user_idx", "_", "x-forwarded-for"] {
            assert!(!is_lookalike(name, &keys), "{name}");
        }
    }
}
