//! The oddities of the head of an answer.

use crate::differential::case::After;
use crate::differential::generate::Chance;
use crate::differential::generate::answer::Answer;
use crate::differential::generate::request::{Draft, spelled};

/// Makes a head that no client may receive.
pub fn bad_head(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.script.after = After::Close;
    let bad = chance.below(24);
    let starts = [
        "garbage",
        "HTTP/1.1",
        "HTTP/1.1 ",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 000 OK",
        "HTTP/2 200 OK",
        "HTTP/1.2 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 099 X",
        "HTTP/1.1 600 X",
        "\r\nHTTP/1.1 200 OK",
        " HTTP/1.1 200 OK",
    ];
    if let Some(start) = starts.get(bad as usize) {
        answer.start = start.as_bytes().to_vec();
        return;
    }
    match bad {
        15 => answer.line_end = b"\n",
        16 => answer.script.answer = b"HTTP/1.1 200 OK\r\ncontent-len".to_vec(),
        17 => answer.script.answer = b"\x16\x03\x01\x00\xff\xfe".to_vec(),
        _ => {
            let line = chance
                .pick::<&[u8]>(&[
                    b"no colon",
                    b"x-a : 1",
                    b": 1",
                    b"x-a: a\0b",
                    b"x-a: a\rb: c",
                    b"x-a: 1\r\n 2",
                    b"x\xc3\xa9: 1",
                    b"x-a: \x01",
                    b"x a: 1",
                    b"x-a: 1\nx-b: 2",
                    b"x-a: \x7f",
                    b" x-a: 1",
                ])
                .unwrap_or_default();
            let at = chance.size(answer.lines.len() + 1);
            answer.lines.insert(at, line.to_vec());
        }
    }
}

/// Makes a head with many lines, or with long ones.
pub fn large_head(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    if chance.one_in(2) {
        let length = chance.size(20 * 1024);
        answer.line("X-Long", "a".repeat(length));
    } else {
        for at in 0..60 + chance.below(70) {
            answer.line(&format!("X-F{at}"), "1");
        }
    }
}

/// Adds ordinary header lines to an answer.
pub fn fields(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    for _ in 0..=chance.below(4) {
        let (name, value) = chance
            .pick::<(&str, &[u8])>(&[
                ("Set-Cookie", b"a=1; Path=/"),
                ("Set-Cookie", b"b=2"),
                ("set-cookie", b"a=1; Path=/"),
                ("Server", b"backend/1"),
                ("Date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
                ("Date", b"garbage"),
                ("Via", b"1.1 x"),
                ("Cache-Control", b"max-age=60"),
                ("ETag", b"\"abc\""),
                ("Vary", b"Accept-Encoding"),
                ("Content-Type", b"text/html; charset=utf-8"),
                ("Content-Type", b"text/event-stream"),
                ("Content-Encoding", b"gzip"),
                ("X-Cutover-Backend", b"forged"),
                ("x-cutover-rollout", b"forged"),
                ("X-Request-Id", b"theirs"),
                (
                    "traceparent",
                    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                ),
                ("X-Empty", b""),
                ("X-Text", b"  a  "),
                ("X-Text", b"\xe9\xff"),
                ("X-Text", b"a\tb"),
                ("x!#$%&'*+.^_`|~", b"1"),
                ("Alt-Svc", b"h3=\":443\""),
                ("Accept-Ranges", b"bytes"),
                ("Strict-Transport-Security", b"max-age=1"),
            ])
            .unwrap_or_default();
        answer.line(&spelled(chance, name), value);
    }
}

/// Adds what an answer says about the connection.
pub fn connection(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let value = chance.text(&[
        "close",
        "close",
        "Close",
        "keep-alive",
        "Keep-Alive",
        "x-a",
        "keep-alive, x-a",
        "close, x-b",
        "upgrade",
        "",
        "content-length",
        "x-case",
        "set-cookie",
        "transfer-encoding",
        "cache-control, etag",
    ]);
    answer.line(&spelled(chance, "Connection"), value);
    answer.line("X-A", "1");
    if value.to_ascii_lowercase().starts_with("close") && !chance.one_in(3) {
        answer.script.after = After::Close;
    }
    if chance.one_in(4) {
        answer.line("Connection", chance.text(&["x-b", "keep-alive", "close"]));
        answer.line("x-b", "2");
    }
    if chance.one_in(3) {
        let (name, value) = chance
            .pick(&[
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Connection", "close"),
                ("Proxy-Authenticate", "x"),
                ("TE", "trailers"),
                ("Upgrade", "h2c"),
                ("Trailer", "x-t"),
            ])
            .unwrap_or_default();
        answer.line(name, value);
    }
}

/// Makes an HTTP/1.0 answer.
pub fn http10(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.start = b"HTTP/1.0 200 OK".to_vec();
    match chance.below(4) {
        0 => answer.line("Connection", "keep-alive"),
        1 => {
            answer.framing = None;
            answer.script.after = After::Close;
        }
        _ => answer.script.after = After::Close,
    }
}
