//! The generation of scripts: what the backend answers, good and bad.
//!
//! Bytes behind the end of an answer are in one write with that end. In two writes, chance would
//! decide whether an engine has already returned the connection to its pool. An answer that is too
//! short ends with the connection, except where a timeout is allowed.

use crate::differential::case::{ANSWERED, After, Script, code};
use crate::differential::generate::answer_head::{
    bad_head, connection, fields, http10, large_head,
};
use crate::differential::generate::request::{Draft, chunked, spelled};
use crate::differential::generate::{Chance, length, tagged};

/// The longest body of an answer, in bytes.
const MOST_BODY_BYTES: usize = 300 * 1024;

/// An answer under construction.
#[derive(Debug)]
pub struct Answer {
    /// The status line. Empty if there is no answer.
    pub start: Vec<u8>,
    /// The header lines without their line ends.
    pub lines: Vec<Vec<u8>>,
    /// The bytes that end every line.
    pub line_end: &'static [u8],
    /// The body without framing.
    pub content: Vec<u8>,
    /// The `Content-Length` or `Transfer-Encoding` line.
    pub framing: Option<Vec<u8>>,
    /// The body as it is sent.
    pub body: Vec<u8>,
    /// Whether the answer is sent without a body.
    pub is_bare: bool,
    /// Whether all bytes have to be sent in one write.
    pub is_one: bool,
    /// What else the backend does.
    pub script: Script,
}

type Oddity = fn(&mut Chance, &Draft, &mut Answer);

/// The oddities that are allowed even if connections to the backend are shared.
const TABLE: &[(u32, Oddity)] = &[
    (14, statuses),
    (10, coded),
    (6, until_close),
    (8, interim),
    (3, switching),
    (5, too_long),
    (8, lengths),
    (7, bad_chunks),
    (6, http10),
    (12, connection),
    (9, bad_head),
    (4, large_head),
    (8, early),
    (3, gone),
    (10, fields),
    (6, for_head),
];

/// The oddities that the next user of the connection could notice.
const ALONE: &[(u32, Oddity)] = &[
    (4, surplus),
    (2, poison),
    (4, silently_closes),
    (4, closes_kept),
    (1, resets),
];

/// Makes a plain answer.
pub fn plain(chance: &mut Chance, draft: &Draft) -> Script {
    let content = tagged(draft.place, 'a', 2);
    good(content, draft).finish(chance, draft)
}

/// Makes a random answer.
pub fn make(chance: &mut Chance, draft: &Draft) -> Script {
    let length = length(chance, MOST_BODY_BYTES);
    let mut answer = good(tagged(draft.place, 'a', length), draft);
    if draft.is_slow && chance.one_in(2) {
        slow(chance, &mut answer);
        return answer.finish(chance, draft);
    }
    let is_alone = !(draft.is_host_odd && draft.is_target_odd);
    for _ in 0..chance.weighted(&[(40, 0), (45, 1), (15, 2)]).unwrap_or(0) {
        let table = if is_alone && chance.one_in(7) {
            ALONE
        } else {
            TABLE
        };
        if let Some(oddity) = chance.weighted(table) {
            oddity(chance, draft, &mut answer);
        }
    }
    if draft.awaits_continue && answer.script.before.is_empty() && !chance.one_in(10) {
        answer.script.before = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    }
    answer.finish(chance, draft)
}

fn good(content: Vec<u8>, draft: &Draft) -> Answer {
    let mut answer = Answer {
        start: b"HTTP/1.1 200 OK".to_vec(),
        lines: Vec::new(),
        line_end: b"\r\n",
        content,
        framing: None,
        body: Vec::new(),
        is_bare: draft.method == b"HEAD",
        is_one: false,
        script: Script::default(),
    };
    answer.by_length(answer.content.len());
    answer
}

impl Answer {
    /// Adds a header line.
    pub fn line(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.lines
            .push([name.as_bytes(), b": ", value.as_ref()].concat());
    }

    fn by_length(&mut self, length: usize) {
        self.framing = Some(format!("Content-Length: {length}").into_bytes());
        self.body = self.content.clone();
    }

    fn in_chunks(&mut self, body: Vec<u8>) {
        self.framing = Some(b"Transfer-Encoding: chunked".to_vec());
        self.body = body;
    }

    fn finish(mut self, chance: &mut Chance, draft: &Draft) -> Script {
        if !self.script.answer.is_empty() || self.start.is_empty() {
            return self.script;
        }
        self.lines.insert(
            0,
            format!(
                "{ANSWERED}: {}",
                code(draft.place.case, draft.place.request)
            )
            .into_bytes(),
        );
        if let Some(framing) = self.framing.take() {
            let at = chance.size(self.lines.len() + 1);
            self.lines.insert(at, framing);
        }
        let mut bytes = self.start;
        for line in &self.lines {
            bytes.extend_from_slice(self.line_end);
            bytes.extend_from_slice(line);
        }
        bytes.extend_from_slice(&self.line_end.repeat(2));
        if !self.is_bare {
            bytes.extend_from_slice(&self.body);
        }
        if !self.is_one {
            self.script.writes = chance.writes(bytes.len());
        }
        self.script.answer = bytes;
        self.script
    }
}

fn statuses(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let status = chance.text(&[
        "204 No Content",
        "204 No Content",
        "304 Not Modified",
        "304 Not Modified",
        "404 Not Found",
        "404 Not Found",
        "500 Internal Server Error",
        "500 Oops",
        "201 Created",
        "206 Partial Content",
        "302 Found",
        "401 Unauthorized",
        "413 X",
        "429 Too Many Requests",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 X",
        "299 Fine",
        "599 X",
        "205 Reset Content",
        "200",
        "200 ",
        "200 two words",
        "200 \u{e9}",
    ]);
    answer.start = format!("HTTP/1.1 {status}").into_bytes();
    let has_none = status.starts_with("204") || status.starts_with("304");
    if has_none {
        answer.is_bare = true;
        if chance.one_in(2) {
            answer.framing = None;
        }
    }
    if status.starts_with("302") {
        answer.line("Location", "http://shop.example/other");
    }
    if status.starts_with("401") {
        answer.line("WWW-Authenticate", "Basic realm=\"x\"");
    }
    if status.starts_with("503") {
        answer.line("Retry-After", "7");
    }
}

fn coded(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let extension = chance.text(&["", "", "", "", ";a=b", ";a", ";a=\"b\""]);
    let mut body = chunked(chance, &answer.content, extension.as_bytes());
    if chance.one_in(5) {
        body.truncate(body.len() - 2);
        body.extend_from_slice(
            chance
                .text(&[
                    "x-t: 1\r\n\r\n",
                    "X-T: 1\r\nx-u: 2\r\n\r\n",
                    "set-cookie: evil=1\r\n\r\n",
                    "content-length: 5\r\n\r\n",
                ])
                .as_bytes(),
        );
        if chance.one_in(2) {
            answer.line("Trailer", "x-t");
        }
    }
    answer.in_chunks(body);
}

fn until_close(_: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.framing = None;
    answer.body = answer.content.clone();
    answer.script.after = After::Close;
}

fn interim(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    for _ in 0..=chance.below(3) {
        let one = chance.text(&[
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
            "HTTP/1.1 102 Processing\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n",
            "HTTP/1.1 199 X\r\n\r\n",
            "HTTP/1.0 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
        ]);
        answer.script.before.extend_from_slice(one.as_bytes());
    }
    if chance.one_in(15) {
        answer.start.clear();
        answer.script.after = After::Close;
    }
}

fn switching(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.start = b"HTTP/1.1 101 Switching Protocols".to_vec();
    answer.framing = None;
    if !chance.one_in(4) {
        answer.line("Upgrade", "websocket");
        answer.line("Connection", "Upgrade");
    }
    if chance.one_in(2) {
        answer.line("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
    answer.body = b"\x81\x02hi\x88\x02\x03\xe8".to_vec();
    answer.is_bare = false;
    answer.script.after = After::Close;
}

fn too_long(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let missing = 1 + chance.size(5_000);
    answer.by_length(answer.content.len() + missing);
    answer.script.after = After::Close;
}

fn lengths(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let own = answer.content.len().to_string();
    let name = spelled(chance, "Content-Length");
    answer.by_length(answer.content.len());
    let value = match chance.below(14) {
        0 => own,
        1 => "7".to_owned(),
        2 => {
            answer.body = chunked(chance, &answer.content, b"");
            answer.line("Transfer-Encoding", "chunked");
            answer.script.after = After::Close;
            return;
        }
        at => {
            answer.framing = None;
            match at {
                3 => format!("+{own}"),
                4 => format!("{own}, {own}"),
                5 => format!("{own}, 7"),
                6 => format!("-{own}"),
                7 => "abc".to_owned(),
                8 => String::new(),
                9 => "99999999999999999999".to_owned(),
                10 => format!("000{own}"),
                11 => format!(" {own} "),
                12 => format!("{own}.0"),
                _ => "9223372036854775807".to_owned(),
            }
        }
    };
    // An unreadable length may count as none: then the body ends with the connection.
    answer.script.after = After::Close;
    answer.line(&name, value);
}

fn bad_chunks(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let bad = chance.text(&[
        "x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "3\r\nab",
        "3\r\nabc\r\n",
        "3\r\nabc\r\n0\r\n",
        "",
        "3",
        "ffffffffffffffffff\r\nabc\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "0\r\nbad trailer\r\n\r\n",
        "0\r\n\n",
    ]);
    let mut body = chunked(chance, &answer.content, b"");
    body.truncate(body.len() - 5);
    body.extend_from_slice(bad.as_bytes());
    answer.in_chunks(body);
    if chance.one_in(6) {
        let value = chance.text(&[
            "gzip, chunked",
            "Chunked",
            "chunked, chunked",
            "identity",
            "gzip",
            "chunked, gzip",
            "xchunked",
            "",
        ]);
        answer.framing = Some(format!("Transfer-Encoding: {value}").into_bytes());
        answer.body = chunked(chance, &answer.content, b"");
    }
    answer.script.after = After::Close;
}

fn early(_: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.script.is_early = true;
}

/// Sends no answer at all.
fn gone(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.start.clear();
    answer.script.after = if chance.one_in(3) {
        After::Reset
    } else {
        After::Close
    };
}

/// Makes the headers that an answer to HEAD may carry. An answer to another method gets a body that
/// is empty in one of three ways.
fn for_head(chance: &mut Chance, draft: &Draft, answer: &mut Answer) {
    if draft.method != b"HEAD" {
        answer.content.clear();
    }
    match chance.below(3) {
        0 => answer.by_length(answer.content.len()),
        1 => answer.in_chunks(b"0\r\n\r\n".to_vec()),
        _ => {
            answer.framing = None;
            answer.body.clear();
            answer.script.after = After::Close;
        }
    }
}

/// Adds bytes behind the end.
fn surplus(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    let behind = chance.text(&[
        "extra",
        "\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
        "0",
    ]);
    if answer.framing.is_none() {
        answer.by_length(answer.content.len());
    }
    answer.body.extend_from_slice(behind.as_bytes());
    answer.is_one = true;
    answer.script.says_more = true;
}

/// Adds a body where there can be none.
fn poison(chance: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.start = chance
        .text(&[
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 304 Not Modified",
            "HTTP/1.1 200 OK",
        ])
        .into();
    answer.is_bare = false;
    answer.is_one = true;
    answer.script.says_more = true;
}

fn silently_closes(_: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.script.after = After::Close;
}

fn closes_kept(_: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.script.closes_kept = true;
}

fn resets(_: &mut Chance, _: &Draft, answer: &mut Answer) {
    answer.script.after = After::Reset;
}

/// Makes an answer that only a timeout ends.
fn slow(chance: &mut Chance, answer: &mut Answer) {
    answer.script.after = After::Hang;
    match chance.below(4) {
        0 => answer.start.clear(),
        1 => answer.by_length(answer.content.len() + 10),
        2 => {
            let mut body = chunked(chance, &answer.content, b"");
            body.truncate(body.len() - 5);
            answer.in_chunks(body);
        }
        _ => answer.script.answer = b"HTTP/1.1 200 OK\r\nx-a: 1\r\n".to_vec(),
    }
}
