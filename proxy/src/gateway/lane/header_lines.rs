//! The fields of a head as positions in the received bytes, and a new head built from them. Kept
//! lines are copied in runs, and our own lines are added.
//!
//! A line is copied unchanged only if it has the one form that all programs read alike (`name:
//! value` and both bytes of a line end). Any other line is rewritten in that form. Therefore no
//! backend and no client sees a fold, a space before a colon or a bare line feed.

use std::cell::RefCell;

use http::HeaderName;

use crate::gateway::message::head::{Edits, Value};

/// The largest number of fields in a head.
pub(super) const MAX_LINES: usize = 256;

type Span = (u32, u32);

#[derive(Clone, Copy, Debug)]
struct Line {
    name: Span,
    value: Span,
    /// The position of the name in lower case.
    lower: u32,
    /// Whether the line already has the form in which it is written.
    is_canonical: bool,
}

/// The fields of one head. The thread lends the memory for them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    all: Vec<Line>,
    lower: Vec<u8>,
    /// A bit for each length of a name in the head. Most names that are looked up are absent, and
    /// no present name has their length.
    lengths: u64,
}

/// Returns the bit for names of this length.
fn length_bit(name: usize) -> u64 {
    1 << name.min(63)
}

/// The number of these buffers that a thread keeps.
const KEPT: usize = 64;
/// The size in bytes above which a buffer of names goes back to the allocator.
const LARGEST: usize = 16 << 10;

thread_local! {
    static FREE: RefCell<Vec<Lines>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Lines {
    fn drop(&mut self) {
        if self.all.capacity() == 0 || self.lower.capacity() > LARGEST {
            return;
        }
        let (mut all, mut lower) = (
            std::mem::take(&mut self.all),
            std::mem::take(&mut self.lower),
        );
        all.clear();
        lower.clear();
        // While a thread ends, there is no pool to return the buffer to.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(Self {
                    all,
                    lower,
                    lengths: 0,
                });
            }
        });
    }
}

fn of(bytes: &[u8], span: Span) -> &[u8] {
    bytes
        .get(span.0 as usize..span.1 as usize)
        .unwrap_or_default()
}

impl Lines {
    /// Reads the fields of a head that was parsed from `bytes`. `may_fold` says whether a value may
    /// continue on the next line.
    pub(super) fn read(bytes: &[u8], headers: &[httparse::Header<'_>], may_fold: bool) -> Self {
        let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        lines.all.reserve(headers.len());
        let start = bytes.as_ptr() as usize;
        for header in headers {
            let lower = lines.lower.len() as u32;
            lines.lower.extend_from_slice(header.name.as_bytes());
            let at = (header.name.as_ptr() as usize - start) as u32;
            let name = (at, at + header.name.len() as u32);
            // An empty value has no position of its own.
            let at = if header.value.is_empty() {
                name.1
            } else {
                (header.value.as_ptr() as usize - start) as u32
            };
            let value = (at, at + header.value.len() as u32);
            let is_canonical = value.0 == name.1 + 2
                && of(bytes, (name.1, value.0)) == b": "
                && of(bytes, (value.1, value.1 + 2)) == b"\r\n"
                && !(may_fold && memchr::memchr(b'\n', header.value).is_some());
            lines.lengths |= length_bit(header.name.len());
            lines.all.push(Line {
                name,
                value,
                lower,
                is_canonical,
            });
        }
        lines.lower.make_ascii_lowercase();
        lines
    }

    fn name(&self, line: &Line) -> &[u8] {
        of(
            &self.lower,
            (line.lower, line.lower + line.name.1 - line.name.0),
        )
    }

    /// Returns whether a field has this name, which is in lower case.
    fn is(&self, line: &Line, name: &[u8]) -> bool {
        (line.name.1 - line.name.0) as usize == name.len() && self.name(line) == name
    }

    /// Returns every field with this name, which is in lower case, and its position.
    fn named<'a, 'n>(
        &'a self,
        name: &'n [u8],
    ) -> impl Iterator<Item = (usize, &'a Line)> + use<'a, 'n> {
        let lines = if self.lengths & length_bit(name.len()) == 0 {
            &[][..]
        } else {
            &self.all
        };
        lines
            .iter()
            .enumerate()
            .filter(move |(_, line)| self.is(line, name))
    }

    /// Returns every field with its name in lower case.
    pub(super) fn each<'a>(
        &'a self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.all
            .iter()
            .map(move |line| (self.name(line), of(bytes, line.value)))
    }

    /// Returns every value of a name, which is in lower case.
    pub(super) fn values<'a, 'n>(
        &'a self,
        bytes: &'a [u8],
        name: &'n str,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.named(name.as_bytes())
            .map(move |(_, line)| of(bytes, line.value))
    }
}

/// A head that is being built.
pub(super) struct Splice<'a> {
    bytes: &'a [u8],
    lines: &'a Lines,
    dropped: [u64; MAX_LINES / 64],
    added: &'a mut Vec<u8>,
}

impl<'a> Splice<'a> {
    /// Creates a head from these fields. `added` collects the added lines.
    pub(super) fn new(bytes: &'a [u8], lines: &'a Lines, added: &'a mut Vec<u8>) -> Self {
        added.clear();
        Self {
            bytes,
            lines,
            dropped: [0; MAX_LINES / 64],
            added,
        }
    }

    fn is_dropped(&self, at: usize) -> bool {
        self.dropped[at / 64] & 1 << (at % 64) != 0
    }

    /// Removes every field with this name.
    pub(super) fn drop_named(&mut self, name: &[u8]) {
        for (at, _) in self.lines.named(name) {
            self.dropped[at / 64] |= 1 << (at % 64);
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, name: &str, value: &[u8]) {
        self.added.extend_from_slice(name.as_bytes());
        self.added.extend_from_slice(b": ");
        self.added.extend_from_slice(value);
        self.added.extend_from_slice(b"\r\n");
    }

    /// Writes all lines and the empty line. The first line of the head must already be there.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut run: Span = (0, 0);
        for (_, line) in self
            .lines
            .all
            .iter()
            .enumerate()
            .filter(|(at, _)| !self.is_dropped(*at))
        {
            if line.is_canonical && line.name.0 == run.1 {
                run.1 = line.value.1 + 2;
                continue;
            }
            out.extend_from_slice(of(self.bytes, run));
            run = (0, 0);
            if line.is_canonical {
                run = (line.name.0, line.value.1 + 2);
                continue;
            }
            out.extend_from_slice(of(self.bytes, line.name));
            out.extend_from_slice(b": ");
            unfold(of(self.bytes, line.value), out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(of(self.bytes, run));
        out.extend_from_slice(self.added);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes a value. If it continues on another line, one space replaces the line end and the white
/// space around it.
fn unfold(value: &[u8], out: &mut Vec<u8>) {
    let mut parts = value
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .map(<[u8]>::trim_ascii)
        .filter(|part| !part.is_empty());
    if let Some(first) = parts.next() {
        out.extend_from_slice(first);
    }
    for part in parts {
        out.push(b' ');
        out.extend_from_slice(part);
    }
}

impl Edits for Splice<'_> {
    fn set(&mut self, name: &'static HeaderName, value: Value<'_>) {
        self.remove(name);
        self.append(name, value);
    }

    fn append(&mut self, name: &'static HeaderName, value: Value<'_>) {
        self.add(name.as_str(), value.as_bytes());
    }

    fn remove(&mut self, name: &HeaderName) {
        self.drop_named(name.as_str().as_bytes());
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.lines
            .named(name.as_str().as_bytes())
            .any(|(at, _)| !self.is_dropped(at))
    }

    fn remove_all(&mut self, prefix: &str) {
        for (at, line) in self.lines.all.iter().enumerate() {
            if self.lines.name(line).starts_with(prefix.as_bytes()) {
                self.dropped[at / 64] |= 1 << (at % 64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(fields: &str, edit: impl FnOnce(&mut Splice<'_>)) -> String {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let mut config = httparse::ParserConfig::default();
        config
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true);
        assert!(
            config
                .parse_response(&mut response, &bytes)
                .is_ok_and(|status| status.is_complete()),
            "{fields:?}"
        );
        let lines = Lines::read(&bytes, response.headers, true);
        let (mut added, mut out) = (Vec::new(), Vec::new());
        let mut splice = Splice::new(&bytes, &lines, &mut added);
        edit(&mut splice);
        splice.write(&mut out);
        String::from_utf8(out).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn canonical_lines_are_copied_unchanged() {
        let fields = "Host: h\r\nX-Odd_Name: a b  c\r\ncookie: a=1; b=2\r\n";
        assert_eq!(spliced(fields, |_| ()), format!("{fields}\r\n"));
        assert_eq!(spliced("", |_| ()), "\r\n");
    }

    #[test]
    fn ambiguous_lines_are_rewritten_in_canonical_form() {
        for (odd, one) in [
            ("a:1\r\n", "a: 1\r\n"),
            ("a:   1  \r\n", "a: 1\r\n"),
            ("a:\t1\r\n", "a: 1\r\n"),
            ("a:\r\n", "a: \r\n"),
            ("a : 1\r\n", "a: 1\r\n"),
            ("a: 1\nb: 2\r\n", "a: 1\r\nb: 2\r\n"),
            ("a: 1\r\n  2\r\n\t3\r\nb: 3\r\n", "a: 1 2 3\r\nb: 3\r\n"),
        ] {
            assert_eq!(spliced(odd, |_| ()), format!("{one}\r\n"), "{odd:?}");
        }
    }

    #[test]
    fn edits_match_names_in_any_case() {
        static A: HeaderName = HeaderName::from_static("a");
        static B: HeaderName = HeaderName::from_static("b");
        let fields = "A: 1\r\nB: 2\r\na: 3\r\nC: 4\r\n";
        assert_eq!(
            spliced(fields, |splice| splice.set(&A, Value::Word("new"))),
            "B: 2\r\nC: 4\r\na: new\r\n\r\n"
        );
        assert_eq!(
            spliced(fields, |splice| splice.append(&B, Value::Text(b"5"))),
            format!("{fields}b: 5\r\n\r\n")
        );
        assert_eq!(spliced(fields, |splice| splice.remove_all("")), "\r\n");
        spliced(fields, |splice| {
            assert!(splice.contains(&A));
            splice.remove(&A);
            assert!(!splice.contains(&A) && splice.contains(&B));
        });
    }
}
