//! Forms that no request may have, regardless of its sender, because two programs on the way may
//! read them
//! differently.
//!
//! The engine's parser is lenient where old clients were sloppy: it ends lines at a bare line feed,
//! accepts any target and any host, and passes on lists of equal lengths. Each of these is harmless
//! alone. Behind a backend that reads it differently, it becomes another client's request. So these
//! forms are refused here, before any decision is based on them.
//!
//! Deliberately absent: bodies, whose framing `request_stream` reads, and the form of the head's
//! lines, which
//! `screen` reads.

use http::Method;

use crate::gateway::message::fields::Fields;
use crate::gateway::message::head::Head;
use crate::gateway::message::reply::Reply;
use crate::shared::refusals::Refusal;

/// The answer to a target of no known form.
pub(in crate::gateway) const NO_TARGET: Reply = Reply::refused(
    Refusal::Target,
    "the request target is neither a path that begins with `/`, nor an address of http or https, \
     nor the `*` of OPTIONS",
);
/// The answer to an invalid host.
pub(in crate::gateway) const BAD_HOST: Reply = Reply::refused(
    Refusal::Host,
    "the host is not a name or an address with an optional port",
);
/// The answer to a body whose length is not given in exactly one way.
pub(in crate::gateway) const BAD_FRAMING: Reply = Reply::refused(
    Refusal::Framing,
    "the length of the body is ambiguous: send one `Content-Length` in digits, or \
     `Transfer-Encoding: chunked`",
);

/// The answer to a line that ends in a bare line feed.
pub(in crate::gateway) const BARE_FEED: Reply = Reply::refused(
    Refusal::LineEnd,
    "the line ends in a bare line feed, and not in CR LF",
);

/// Returns the name or address of the requested host, without its port. It is empty if there is
/// none.
///
/// # Errors
/// The answer to an invalid request.
pub fn host_of<'a>(head: &'a impl Head, fields: &Fields<'a>) -> Result<&'a str, Reply> {
    if has_bare_line_feed(head.raw()) {
        return Err(BARE_FEED.at_line(line_of_the_first_bare_feed(head.raw())));
    }
    if matches!(*head.method(), Method::TRACE | Method::CONNECT) {
        return Err(Reply::METHOD_NOT_ALLOWED);
    }
    if !is_target(head.target(), head.method()) {
        return Err(NO_TARGET);
    }
    if has_split_path(head.path()) {
        return Err(Reply::refused(
            Refusal::Target,
            "the path holds an escaped NUL, CR or LF (%00, %0D, %0A)",
        ));
    }
    if fields.hosts > 1 {
        return Err(Reply::refused(
            Refusal::Host,
            "the request has more than one Host header",
        ));
    }
    if let (Some(authority), Some(host)) = (head.authority(), fields.host)
        && !host.eq_ignore_ascii_case(authority.as_bytes())
    {
        return Err(Reply::refused(
            Refusal::Host,
            "the Host header and the host in the request target differ",
        ));
    }
    let asked = head.authority().map(str::as_bytes).or(fields.host);
    let host = match asked {
        None if !head.requires_host() => "",
        None | Some(b"") => {
            return Err(Reply::refused(
                Refusal::MissingHost,
                "the request has no Host header",
            ));
        }
        Some(asked) => name_of(asked).ok_or(BAD_HOST)?,
    };
    if fields.is_badly_framed {
        return Err(BAD_FRAMING);
    }
    if fields.has_lookalike {
        return Err(Reply::refused(
            Refusal::Lookalike,
            "a header name differs from one with a meaning here by an underscore only",
        ));
    }
    Ok(host)
}

/// Returns whether a line ends without a carriage return. No other part of a head may contain a
/// line feed.
///
/// There is no early exit, so that the compiler can check many bytes at once. Good heads, which is
/// nearly all of them, give no reason to exit early.
fn has_bare_line_feed(raw: &[u8]) -> bool {
    let Some((&first, rest)) = raw.split_first() else {
        return false;
    };
    let is_bare =
        |(&before, &byte): (&u8, &u8)| u8::from(byte == b'\n') & u8::from(before != b'\r');
    first == b'\n'
        || raw
            .iter()
            .zip(rest)
            .map(is_bare)
            .fold(0, |any, bare| any | bare)
            != 0
}

/// Returns the number of the first line that ends in a bare line feed, counted from 1.
fn line_of_the_first_bare_feed(raw: &[u8]) -> u32 {
    raw.split_inclusive(|byte| *byte == b'\n')
        .zip(1..)
        .find_map(|(line, number)| (!line.ends_with(b"\r\n")).then_some(number))
        .unwrap_or(1)
}

/// Returns whether a target is in origin form, in the absolute form of a web address, or the
/// asterisk of OPTIONS. CONNECT is refused earlier.
fn is_target(target: &[u8], method: &Method) -> bool {
    let begins_with = |scheme: &[u8]| {
        target
            .get(..scheme.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    };
    match target {
        [b'/', ..] => true,
        b"*" => method == Method::OPTIONS,
        _ => begins_with(b"http://") || begins_with(b"https://"),
    }
}

/// Returns whether a path contains an escaped NUL or line end. The engine escapes raw ones, so both
/// are refused.
fn has_split_path(path: &str) -> bool {
    let path = path.as_bytes();
    memchr::memchr_iter(b'%', path).any(|at| {
        matches!(
            path.get(at + 1..at + 3),
            Some([b'0', b'0' | b'a' | b'A' | b'd' | b'D'])
        )
    })
}

/// The bytes allowed in a host's name. Names are opaque, except that bytes that end a name
/// elsewhere in an address are not allowed.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~%!$&'()*+;=";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// Returns the name or address of a host that may have a port, if it is valid. One dot may end a
/// name, which is then fully qualified.
pub(in crate::gateway) fn name_of(host: &[u8]) -> Option<&str> {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let (address, port) = rest.split_at(rest.iter().position(|&byte| byte == b']')?);
            let address = std::str::from_utf8(address).ok()?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, port.get(1..)?)
        }
        None => {
            let (name, port) = host.split_at(
                host.iter()
                    .position(|&byte| !IN_NAME[usize::from(byte)])
                    .unwrap_or(host.len()),
            );
            (
                std::str::from_utf8(name)
                    .ok()
                    .filter(|name| !name.is_empty() && *name != "." && !name.ends_with(".."))?,
                port,
            )
        }
    };
    let is_port = |port: &[u8]| {
        port.iter().all(u8::is_ascii_digit)
            && (port.is_empty()
                || std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok()))
    };
    match port {
        [] => Some(name),
        [b':', port @ ..] if is_port(port) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_carriage_return_and_line_feed() {
        assert!(!has_bare_line_feed(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"));
        assert!(!has_bare_line_feed(b""));
        for raw in [
            &b"\nGET / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/1.1\nhost: h\r\n\r\n",
            b"GET / HTTP/1.1\r\n\n",
        ] {
            assert!(has_bare_line_feed(raw));
        }
        assert_eq!(
            line_of_the_first_bare_feed(b"GET / HTTP/1.1\r\nhost: h\n\r\n"),
            2
        );
    }

    #[test]
    fn a_target_is_a_path_a_web_address_or_the_options_asterisk() {
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
        for (path, split) in [
            ("/a%00", true),
            ("/%0d", true),
            ("/%0A", true),
            ("/%09", false),
            ("/%000", true),
            ("/%2500", false),
            ("/%0", false),
            ("/%", false),
        ] {
            assert_eq!(has_split_path(path), split, "{path}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in [
            "shop.example",
            "h",
            "h:",
            "h:80",
            "h:0",
            "127.0.0.1:65535",
            "[::1]",
            "[::1]:80",
            "_sip.example",
            "a%20b",
        ] {
            assert!(name_of(host.as_bytes()).is_some(), "{host}");
        }
        for (host, name) in [
            ("shop.example", "shop.example"),
            ("shop.example:8080", "shop.example"),
            ("shop.example.:8080", "shop.example."),
            ("[::1]:8080", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(name_of(host.as_bytes()), Some(name));
        }
        for host in [
            "", ".", ".:80", "h..", "h..:80", ":80", "h i", "h,i", "h/i", "h?i", "h#i", "h\\i",
            "u@h", "h:http", "h:65536", "h:+80", "h:80:80", "[::1", "[::1]80", "[h]", "::1", "h\t",
            "<h>", "\u{e9}",
        ] {
            assert_eq!(name_of(host.as_bytes()), None, "{host}");
        }
    }
}
