//! The oddities of a request. Each line of the table is one oddity with its weight.
//!
//! A head always has an end, and after a short body the client half-closes the connection. Nothing
//! here therefore waits for a timeout.

use crate::differential::engine::group_name;
use crate::differential::generate::Chance;
use crate::differential::generate::framing::{
    bad_chunks, coding_lines, length_lines, short_body, smuggled,
};
use crate::differential::generate::request::{Draft, spelled};

type Oddity = fn(&mut Chance, &mut Draft);

const TABLE: &[(u32, Oddity)] = &[
    (6, method),
    (10, target),
    (8, version),
    (8, host),
    (3, request_line),
    (8, names),
    (8, values),
    (5, bad_line),
    (4, line_ends),
    (3, long),
    (8, user),
    (5, cookies),
    (8, forged),
    (4, lookalike),
    (12, connection),
    (8, hop_by_hop),
    (4, upgrade),
    (5, expect),
    (10, length_lines),
    (10, coding_lines),
    (10, bad_chunks),
    (4, short_body),
    (4, accept),
    (3, smuggled),
    (4, twice),
];

/// Adds one oddity to a request.
pub fn add(chance: &mut Chance, draft: &mut Draft) {
    if let Some(oddity) = chance.weighted(TABLE) {
        oddity(chance, draft);
    }
}

fn method(chance: &mut Chance, draft: &mut Draft) {
    draft.method = chance
        .text(&[
            "get",
            "Post",
            "TRACE",
            "CONNECT",
            "PROPFIND",
            "A",
            "!#$%&'*+.^_`|~",
            "G[T",
            "",
            "PRI",
            "G\u{e9}T",
            "HEADS",
            "head",
        ])
        .into();
}

fn target(chance: &mut Chance, draft: &mut Draft) {
    let (name, old) = (
        group_name(draft.place.group),
        String::from_utf8_lossy(&draft.target).into_owned(),
    );
    if chance.below(3) < 2 {
        let tail = chance.text(&[
            "/%41%2e%2e",
            "//x",
            "/../x",
            "/./x",
            "/%2e%2e/",
            "/a b",
            "/a\tb",
            "/\u{e9}",
            "/a\\b",
            "/a%00b",
            "/a%0ab",
            "/a%0Db",
            "#frag",
            "?a#b",
            "/%zz",
            "/%",
            "?x=%00",
            "?\"<>",
            "/{}|^`",
            ";a=b",
            "/~a!$&'()*+,=:@",
            "?a=\x01",
            "/\x1b",
            "/\x7f",
            "?b\0",
            "??",
            "/<a>",
            "/a?b?c#d#e",
            "/%C3%A9",
            "/a//b///",
        ]);
        draft.target.extend_from_slice(tail.as_bytes());
        draft.is_target_odd = true;
        return;
    }
    draft.is_target_odd = true;
    draft.target = match chance.below(16) {
        0..=2 => format!("http://{name}.test{old}"),
        3 => format!("HTTP://{}.TEST{old}", name.to_uppercase()),
        4 => format!("http://other.test{old}"),
        5 => format!("http://u@{name}.test{old}"),
        6 => format!("https://{name}.test:443{old}"),
        7 => format!("http://{name}.test"),
        8 => "*".to_owned(),
        9 => format!("{name}.test:80"),
        10 => "ftp://h/x".to_owned(),
        11 => format!("/x/..{old}"),
        12 => format!("/%77{}/x", &name[1..]),
        13 => String::new(),
        14 => format!("/{}", "a".repeat(chance.size(9_000))),
        _ => format!("/{}/X", name.to_uppercase()),
    }
    .into_bytes();
}

fn version(chance: &mut Chance, draft: &mut Draft) {
    draft.version = chance
        .text(&[
            "HTTP/1.0",
            "HTTP/1.0",
            "HTTP/1.0",
            "HTTP/1.0",
            "HTTP/2.0",
            "HTTP/1.2",
            "http/1.1",
            "HTTP/1.10",
            "HTTP/0.9",
            "HTTP/1.1 ",
            "HTTP/1",
            "",
            "HTTP/+1.1",
            "XTTP/1.1",
        ])
        .into();
    if draft.version == b"HTTP/1.0" && chance.one_in(2) {
        draft.line("Connection", "keep-alive");
    }
}

fn host(chance: &mut Chance, draft: &mut Draft) {
    let name = format!("{}.test", group_name(draft.place.group));
    draft.is_host_odd = true;
    match chance.below(20) {
        0 | 1 => draft.without("host"),
        2 => draft.line("Host", &name),
        3 => draft.line("hOST", "other.test"),
        at => {
            draft.without("host");
            let value = match at {
                4..=7 => format!(
                    "{name}:{}",
                    chance.text(&["80", "", "65535", "65536", "http", "0", "+80", "080"])
                ),
                8 => format!("u@{name}"),
                9 => format!("{name}, {name}"),
                10 => name.to_uppercase(),
                11 => "[::1]:80".to_owned(),
                12 => chance
                    .text(&[
                        "",
                        " ",
                        "a b",
                        "a/b",
                        "a?b",
                        "a\\b",
                        "\u{e9}",
                        "[::1",
                        "a%20b",
                        "<h>",
                        "a:80:80",
                        "::1",
                        ":80",
                        "-",
                        "a_b",
                        "*",
                        "127.0.0.1",
                    ])
                    .to_owned(),
                13 => format!("{name}."),
                14 => format!(" {name} \t"),
                _ => "shop.example".to_owned(),
            };
            draft.line(chance.text(&["Host", "host", "HOST"]), value);
        }
    }
}

fn request_line(chance: &mut Chance, draft: &mut Draft) {
    let (method, target, version) = (&draft.method[..], &draft.target[..], &draft.version[..]);
    match chance.below(9) {
        0 => draft.start = Some([method, b"  ", target, b" ", version].concat()),
        1 => draft.start = Some([method, b"\t", target, b" ", version].concat()),
        2 => draft.start = Some([b" ", method, b" ", target, b" ", version].concat()),
        3 => draft.start = Some([method, b" ", target].concat()),
        4 => draft.start = Some([method, b" ", target, b" ", version, b" x"].concat()),
        5 => draft.start = Some(b"\x16\x03\x01\x02\0\x01".to_vec()),
        6 => draft.before = b"\r\n".repeat(1 + chance.size(4)),
        7 => draft.before = b"\n".to_vec(),
        _ => draft.start = Some([method, b" ", target, b"  ", version].concat()),
    }
}

fn names(chance: &mut Chance, draft: &mut Draft) {
    for _ in 0..=chance.below(3) {
        let name = chance.text(&[
            "x-odd",
            "X-oDd",
            "x!#$%&'*+.^`|~y",
            "1",
            "_a",
            "some_header",
            "a",
            "X-A",
            "x-a",
            "Set-Cookie",
            "Server",
            "Via",
            "Date",
            "Location",
            "x--",
            "-",
            "Priority",
            "Early-Data",
            "Forwarded",
            "X-Real-IP",
        ]);
        let value = chance.text(&["1", "a, b", "", "\"q\"", "x=y; z"]);
        draft.line(&spelled(chance, name), value);
    }
}

fn values(chance: &mut Chance, draft: &mut Draft) {
    let value: &[u8] = chance
        .pick::<&[u8]>(&[
            b"",
            b"  a",
            b"a  ",
            b"\ta\t",
            b"a\tb",
            b"\xe9",
            b"\xff\xfe",
            b"\x80",
            b"a  b",
            b" \t ",
            b"\"",
            b"\\",
            b"a,,b",
            b"\x01",
            b"a\x00b",
            b"\x7f",
            b"\x1b[31m",
            b"a\rb",
            b"a\x0bb",
        ])
        .unwrap_or_default();
    let glue = chance.text(&[": ", ":", ":  ", ":\t"]);
    draft
        .lines
        .push([b"X-Value", glue.as_bytes(), value].concat());
}

fn bad_line(chance: &mut Chance, draft: &mut Draft) {
    let line = chance
        .pick::<&[u8]>(&[
            b"X-A: a\r\n b",
            b"X-A: a\r\n\tb",
            b"X-A:\r\n b",
            b"X-A : 1",
            b"X-A\t: 1",
            b": 1",
            b"no colon",
            b"X A: 1",
            b"X-\xc3\xa9: 1",
            b"X[A]: 1",
            b"X\x0c: 1",
            b"X-\0A: b",
            b" X-A: 1",
            b"X-\rA: 1",
            b"@: 1",
        ])
        .unwrap_or_default();
    let at = chance.size(draft.lines.len() + 1);
    draft.lines.insert(at, line.to_vec());
}

fn line_ends(chance: &mut Chance, draft: &mut Draft) {
    let at = chance.size(draft.lines.len().max(1));
    match chance.below(6) {
        0 => draft.line_end = b"\n",
        1..=3 => draft.odd_end = Some((at, b"\n")),
        4 => draft.odd_end = Some((at, b"\r")),
        _ => draft.odd_end = Some((at, b"\r\r\n")),
    }
}

fn long(chance: &mut Chance, draft: &mut Draft) {
    if chance.one_in(2) {
        let length = chance.size(20 * 1024);
        draft.line("X-Long", "a".repeat(length));
    } else {
        let limit = chance
            .pick(&[60, 64, 65, 70, 70, 99, 128, 130])
            .unwrap_or(64);
        while draft.lines.len() < limit {
            let name = format!("X-F{}", draft.lines.len());
            draft.line(&name, "1");
        }
    }
}

fn user(chance: &mut Chance, draft: &mut Draft) {
    match chance.below(10) {
        0 => draft.without("x-user-id"),
        1 | 2 => draft.line("X-User-Id", "user-7"),
        at => {
            draft.without("x-user-id");
            let value = match at {
                3 => String::new(),
                4 => "u".repeat(600 + chance.size(1_500)),
                5 => "\u{e9}\u{1f600}".to_owned(),
                6 => "a, b".to_owned(),
                7 => "  user-1  ".to_owned(),
                8 => "\"user\"".to_owned(),
                _ => format!("user-{}", chance.below(1_000_000)),
            };
            draft.line(&spelled(chance, "X-User-Id"), value);
        }
    }
}

fn cookies(chance: &mut Chance, draft: &mut Draft) {
    for _ in 0..=chance.below(3) {
        draft.line(
            &spelled(chance, "Cookie"),
            chance.text(&[
                "a=b",
                "uid=1; uid=2",
                ";;=;uid",
                "uid=\"a",
                "uid==x",
                "",
                "a=b;c=d",
                "cutover=1",
            ]),
        );
    }
}

fn forged(chance: &mut Chance, draft: &mut Draft) {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let all = &[
        ("X-Cutover-Backend", "new"),
        ("x-cutover-rollout", "forged"),
        ("X-Cutover-Bucket", "1"),
        ("X-Cutover-Reason", "x"),
        ("X-Cutover-Override", "new token"),
        ("X-Cutover-Anything", "x"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X-Forwarded-Port", "1"),
        ("X-Request-Id", "forged-id"),
        ("traceparent", PARENT),
        (
            "Traceparent",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ),
        ("traceparent", "garbage"),
        (
            "traceparent",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ),
        ("tracestate", "a=b,c=d"),
        ("TraceState", ""),
    ];
    for _ in 0..=chance.below(3) {
        if let Some((name, value)) = chance.pick(all) {
            draft.line(&spelled(chance, name), value);
        }
    }
}

fn lookalike(chance: &mut Chance, draft: &mut Draft) {
    draft.line(
        chance.text(&[
            "x_user_id",
            "X-User_Id",
            "x_cutover_backend",
            "X_Forwarded_For",
            "content_length",
            "transfer_encoding",
            "x_request_id",
            "x_other",
            "host_",
        ]),
        "1",
    );
}

fn connection(chance: &mut Chance, draft: &mut Draft) {
    for _ in 0..=chance.below(2) {
        let value = chance.text(&[
            "close",
            "close",
            "Close",
            "keep-alive",
            "keep-alive",
            "Keep-Alive",
            "close, keep-alive",
            "keep-alive, x-a",
            "x-a",
            "x-a, x-b",
            "X-Odd",
            "upgrade",
            "te",
            "",
            ",",
            "close,",
            " close ",
            "x-user-id",
            "host",
            "x-forwarded-for",
            "content-length",
            "transfer-encoding",
            "x-cutover-backend",
            "x-request-id",
            "cookie",
            "a b",
            "\"close\"",
            "closed",
            "connection",
            "close;x",
            "traceparent",
            "accept",
            "authorization",
            "expect",
        ]);
        draft.line(&spelled(chance, "Connection"), value);
    }
    if chance.one_in(3) {
        draft.line("x-a", "1");
    }
    if chance.one_in(60) {
        let many = vec!["a"; 20 + chance.size(500)].join(",");
        draft.line("Connection", many);
    }
}

fn hop_by_hop(chance: &mut Chance, draft: &mut Draft) {
    let all = &[
        ("Keep-Alive", "timeout=5, max=10"),
        ("Keep-Alive", ""),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Connection", "close"),
        ("TE", "trailers"),
        ("TE", "gzip"),
        ("Trailer", "x-t"),
        ("Proxy-Authorization", "Basic abc"),
        ("Proxy-Authenticate", "x"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("Max-Forwards", "0"),
    ];
    if let Some((name, value)) = chance.pick(all) {
        draft.line(&spelled(chance, name), value);
    }
}

fn upgrade(chance: &mut Chance, draft: &mut Draft) {
    draft.line(
        "Upgrade",
        chance.text(&[
            "websocket",
            "websocket",
            "WebSocket",
            "h2c",
            "h2c, websocket",
            "TLS/1.3",
            "",
        ]),
    );
    if !chance.one_in(4) {
        draft.line(
            "Connection",
            chance.text(&[
                "Upgrade",
                "upgrade",
                "keep-alive, Upgrade",
                "Upgrade, HTTP2-Settings",
            ]),
        );
    }
    if chance.one_in(2) {
        draft.line("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        draft.line("Sec-WebSocket-Version", "13");
    }
}

fn expect(chance: &mut Chance, draft: &mut Draft) {
    let value = chance.text(&[
        "100-continue",
        "100-continue",
        "100-continue",
        "100-Continue",
        "200-ok",
        "",
        "100-continue, x",
    ]);
    draft.line(&spelled(chance, "Expect"), value);
    draft.awaits_continue = value == "100-continue" && !draft.body.is_empty() && chance.one_in(2);
}

fn accept(chance: &mut Chance, draft: &mut Draft) {
    let (name, value) = chance
        .pick(&[
            ("Accept", "text/html"),
            ("Accept", "text/event-stream"),
            ("accept", "text/event-stream"),
            ("Content-Type", "application/grpc"),
            ("Accept", "TEXT/HTML"),
            ("Accept", "application/json"),
        ])
        .unwrap_or_default();
    draft.without("accept");
    draft.line(name, value);
}

fn twice(chance: &mut Chance, draft: &mut Draft) {
    if let Some(line) = draft.lines.get(chance.size(draft.lines.len())).cloned() {
        draft.lines.push(line);
    }
}
