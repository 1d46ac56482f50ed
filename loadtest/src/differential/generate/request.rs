//! The generation of a request as a browser or a program would send it, before oddities are added.

use crate::differential::case::{CODE, Request, Script, code};
use crate::differential::engine::group_name;
use crate::differential::generate::{Chance, Place, answer, framing, length, oddity, tagged};

/// The longest body of a request, in bytes.
const MOST_BODY_BYTES: usize = 100 * 1024;

/// A request under construction.
#[derive(Debug)]
pub struct Draft {
    /// The bytes before the request line.
    pub before: Vec<u8>,
    /// The method.
    pub method: Vec<u8>,
    /// The request target.
    pub target: Vec<u8>,
    /// The HTTP version.
    pub version: Vec<u8>,
    /// The whole request line, if it is odd as a whole.
    pub start: Option<Vec<u8>>,
    /// The header lines without their line ends.
    pub lines: Vec<Vec<u8>>,
    /// The bytes that end every line, except for a line with an odd end.
    pub line_end: &'static [u8],
    /// The index of the line with an odd end, and that end.
    pub odd_end: Option<(usize, &'static [u8])>,
    /// All bytes after the head.
    pub body: Vec<u8>,
    /// The body without framing.
    pub content: Vec<u8>,
    /// Whether the client half-closes the connection after the request, because something is
    /// missing.
    pub is_last_word: bool,
    /// Whether the client waits for 100.
    pub awaits_continue: bool,
    /// Whether the host no longer belongs to the group, while the path still does.
    pub is_host_odd: bool,
    /// Whether the path no longer belongs to the group.
    pub is_target_odd: bool,
    /// Whether the request may need a timeout.
    pub is_slow: bool,
    /// The position of the request.
    pub place: Place,
}

impl Draft {
    /// Adds a header line.
    pub fn line(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.lines
            .push([name.as_bytes(), b": ", value.as_ref()].concat());
    }

    /// Removes the header lines with this name.
    pub fn without(&mut self, name: &str) {
        self.lines.retain(|line| {
            !line
                .get(..=name.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(format!("{name}:").as_bytes()))
        });
    }

    /// Whether the request has header lines with this name.
    pub fn has(&self, name: &str) -> bool {
        self.lines.iter().any(|line| {
            line.get(..=name.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(format!("{name}:").as_bytes()))
        })
    }

    /// Removes the framing, so that another one can be added.
    pub fn unframed(&mut self) {
        self.without("content-length");
        self.without("transfer-encoding");
        self.body.clear();
        // The complete body is framed again, so nothing is missing.
        self.is_last_word = false;
    }

    /// Frames the content by its length.
    pub fn by_length(&mut self) {
        self.unframed();
        self.line("Content-Length", self.content.len().to_string());
        self.body = self.content.clone();
    }

    /// Frames the content in chunks.
    pub fn in_chunks(&mut self, chance: &mut Chance) {
        self.unframed();
        self.line("Transfer-Encoding", "chunked");
        self.body = chunked(chance, &self.content, b"");
    }

    fn finish(mut self, chance: &mut Chance) -> Request {
        let at = chance.size(self.lines.len() + 1);
        if let Some((odd, _)) = &mut self.odd_end
            && *odd >= at
        {
            *odd += 1;
        }
        self.lines.insert(
            at,
            format!("{CODE}: {}", code(self.place.case, self.place.request)).into_bytes(),
        );
        let line = [&self.method[..], b" ", &self.target, b" ", &self.version].concat();
        let start = [&self.before[..], &self.start.unwrap_or(line), self.line_end].concat();
        let (odd_end, line_end) = (self.odd_end, self.line_end);
        let end_of = |at: usize| {
            odd_end
                .filter(|(odd, _)| *odd == at)
                .map_or(line_end, |(_, end)| end)
        };
        let lines = self
            .lines
            .iter()
            .enumerate()
            .map(|(at, line)| [line, end_of(at)].concat())
            .collect();
        let mut request = Request {
            start,
            lines,
            // If line ends are odd, the last of them could swallow the end of the head, and only a
            // timeout would reveal that.
            end: if odd_end.is_some() || line_end != b"\r\n" {
                b"\r\n\r\n".to_vec()
            } else {
                b"\r\n".to_vec()
            },
            body: self.body,
            writes: Default::default(),
            is_head: self.method == b"HEAD",
            awaits_continue: self.awaits_continue,
            is_last_word: self.is_last_word,
            script: Script::default(),
        };
        let head = request.head().len();
        request.writes = chance.writes(head + request.body.len());
        if request.awaits_continue {
            // A write has to end where the client starts to wait.
            request.writes.cuts.push(head);
            request.writes.cuts.sort_unstable();
        }
        request
    }
}

/// Returns the bytes in chunks of random lengths, with this extension after each size.
pub fn chunked(chance: &mut Chance, content: &[u8], extension: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let most = if chance.one_in(4) { 16 } else { rest.len() };
        let (chunk, behind) = rest.split_at(1 + chance.size(most.min(rest.len())));
        out.extend_from_slice(
            if chance.one_in(2) {
                format!("{:x}", chunk.len())
            } else {
                format!("{:X}", chunk.len())
            }
            .as_bytes(),
        );
        out.extend_from_slice(extension);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = behind;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

const METHODS: &[(u32, &str)] = &[
    (50, "GET"),
    (22, "POST"),
    (10, "HEAD"),
    (5, "PUT"),
    (4, "DELETE"),
    (3, "OPTIONS"),
    (3, "PATCH"),
    (1, "BREW"),
    (1, "M-SEARCH"),
];

const QUERIES: &[&str] = &[
    "",
    "",
    "",
    "?a=1",
    "?q=a%20b&x=%2F",
    "?",
    "?a=1&a=2",
    "?x=/../y",
    "?u=http://h/",
];

const USUAL: &[(&str, &str)] = &[
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/144.0",
    ),
    ("Accept", "*/*"),
    ("Accept", "text/html,application/xhtml+xml"),
    ("Accept-Encoding", "gzip, deflate, br"),
    ("Accept-Language", "de-CH,de;q=0.5"),
    ("Cookie", "session=abc; uid=u-1"),
    ("Referer", "http://shop.example/a?b=c"),
    ("Authorization", "Bearer abc.def.ghi"),
    ("Cache-Control", "no-cache"),
    ("Origin", "http://shop.example"),
    ("If-None-Match", "\"abc\""),
    ("Range", "bytes=0-9"),
    ("Content-Type", "application/json"),
    ("X-Requested-With", "XMLHttpRequest"),
    ("DNT", "1"),
    ("Connection", "keep-alive"),
    ("x-a", "1"),
    ("X-B", "two words"),
];

/// Makes a plain request without a body, with a plain answer. It checks whether a connection is
/// still in step.
pub fn plain(chance: &mut Chance, place: Place) -> Request {
    let mut draft = draft(place, false);
    draft.line("Host", format!("{}.test", group_name(place.group)));
    let script = answer::plain(chance, &draft);
    Request {
        script,
        writes: Default::default(),
        ..draft.finish(chance)
    }
}

/// Makes a random request with its script.
pub fn make(chance: &mut Chance, place: Place, is_slow: bool, is_pipelined: bool) -> Request {
    let mut draft = draft(place, is_slow);
    draft.method = chance.weighted(METHODS).unwrap_or("GET").into();
    draft
        .target
        .extend_from_slice(chance.text(QUERIES).as_bytes());
    draft.line("Host", format!("{}.test", group_name(place.group)));
    if !chance.one_in(7) {
        let user = format!("user-{}", chance.below(50));
        draft.line(chance.text(&["x-user-id", "X-User-Id", "X-USER-ID"]), user);
    }
    for _ in 0..chance.below(6) {
        if let Some((name, value)) = chance.pick(USUAL)
            && !draft.has(name)
        {
            draft.line(&spelled(chance, name), value);
        }
    }
    let usually = matches!(&draft.method[..], b"POST" | b"PUT" | b"PATCH");
    if usually && !chance.one_in(8) || !usually && chance.one_in(9) {
        let length = length(chance, MOST_BODY_BYTES);
        draft.content = tagged(place, 'q', length);
        if chance.below(5) < 3 {
            draft.by_length();
        } else {
            draft.in_chunks(chance);
        }
    }
    for _ in 0..chance
        .weighted(&[(45, 0), (30, 1), (15, 2), (10, 3)])
        .unwrap_or(0)
    {
        oddity::add(chance, &mut draft);
    }
    if is_slow {
        framing::missing(chance, &mut draft);
    }
    if is_pipelined {
        // Half-closing after one pipelined request would end all of them, and a client that writes
        // everything at once waits for nothing.
        draft.is_last_word = false;
        draft.awaits_continue = false;
    }
    let script = answer::make(chance, &draft);
    Request {
        script,
        ..draft.finish(chance)
    }
}

fn draft(place: Place, is_slow: bool) -> Draft {
    Draft {
        before: Vec::new(),
        method: b"GET".to_vec(),
        target: format!("/{}/p{}", group_name(place.group), place.request).into_bytes(),
        version: b"HTTP/1.1".to_vec(),
        start: None,
        lines: Vec::new(),
        line_end: b"\r\n",
        odd_end: None,
        body: Vec::new(),
        content: Vec::new(),
        is_last_word: false,
        awaits_continue: false,
        is_host_odd: false,
        is_target_odd: false,
        is_slow,
        place,
    }
}

/// Returns a header name in a random spelling.
pub fn spelled(chance: &mut Chance, name: &str) -> String {
    match chance.below(6) {
        0 => name.to_ascii_lowercase(),
        1 => name.to_ascii_uppercase(),
        2 => name
            .chars()
            .map(|letter| {
                if chance.one_in(2) {
                    letter.to_ascii_uppercase()
                } else {
                    letter.to_ascii_lowercase()
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}
