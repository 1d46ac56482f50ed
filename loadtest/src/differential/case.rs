//! One case: what a client sends, byte by byte, and what the backend answers to each request.
//!
//! A case is data. Every random decision is taken when the case is made. It can therefore be played
//! on two engines, replayed, printed, and shrunk.

use std::time::Duration;

/// The name of the header line that tells the backend which request this is.
pub const CODE: &str = "x-script";
/// The name of the header line that tells which request an answer is for.
pub const ANSWERED: &str = "x-case";

/// A conversation on one client connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The number of the case. The number and the seed suffice to make the case again.
    pub number: u64,
    /// The requests, in order.
    pub requests: Vec<Request>,
    /// Whether all requests are written at once, before the first answer is read.
    pub is_pipelined: bool,
}

/// A request as it is sent on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request line with its line end, and any bytes before it.
    pub start: Vec<u8>,
    /// The header lines with their line ends. The line with the code of the request is never
    /// dropped.
    pub lines: Vec<Vec<u8>>,
    /// The bytes that end the head.
    pub end: Vec<u8>,
    /// All bytes after the head.
    pub body: Vec<u8>,
    /// How the request is split into writes.
    pub writes: Writes,
    /// Whether the answer to the method has no body.
    pub is_head: bool,
    /// Whether the client waits for an interim answer before it sends the body.
    pub awaits_continue: bool,
    /// Whether the client half-closes the connection after this request, so that missing bytes
    /// never arrive.
    pub is_last_word: bool,
    /// The script of the backend for this request.
    pub script: Script,
}

/// How the writes of a case are split when it is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The split given by the case.
    AsItIs,
    /// Each request in one write.
    Whole,
    /// The beginning of each request byte by byte.
    Bytes,
    /// Writes of the size that an engine reads at once. The engine has answered every complete
    /// request before it sees more.
    Looks,
}

/// How many bytes an engine reads at once while it reads a head, and how many reads it makes at
/// most.
pub const LOOK: usize = 4 << 10;
const LOOKS: usize = 40;

/// How bytes are split into writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// The offsets at which writes end, in ascending order. All bytes after the last offset form
    /// one write.
    pub cuts: Vec<usize>,
    /// The pause between two writes.
    pub pause: Pause,
}

/// The pause between two writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pause {
    /// No pause: the kernel may merge the writes.
    #[default]
    Nothing,
    /// A yield that lets other tasks run.
    Yield,
    /// A pause of one millisecond.
    Tiny,
}

/// What the backend does with one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The bytes sent before the body of the request is read: interim answers that a client may
    /// wait for.
    pub before: Vec<u8>,
    /// Whether the answer is sent before the body of the request is read.
    pub is_early: bool,
    /// Whether the backend closes a connection that has already served a request, instead of
    /// answering.
    pub closes_kept: bool,
    /// The answer, byte by byte.
    pub answer: Vec<u8>,
    /// Whether the backend sends more bytes than the answer has, which makes the connection
    /// unusable for the next request.
    pub says_more: bool,
    /// How the answer is split into writes.
    pub writes: Writes,
    /// What happens to the connection afterwards.
    pub after: After,
}

/// What happens to a connection to the backend after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// The connection is kept open.
    #[default]
    Keep,
    /// The connection is closed.
    Close,
    /// The connection is reset.
    Reset,
    /// The connection stays open, and nothing more is sent on it.
    Hang,
}

impl Script {
    /// Whether an answer that is sent before the body of the request refuses that body, either by
    /// its status or because the connection is not kept.
    pub fn refuses(&self) -> bool {
        !matches!(self.answer.get(9), Some(b'2' | b'3')) || self.after != After::Keep
    }
}

impl Case {
    /// Whether the case does not depend on the connections to the backend that an engine has kept,
    /// and leaves none that could disturb another case.
    pub fn is_calm(&self) -> bool {
        let is_calm = |request: &Request| {
            let script = &request.script;
            // A request that may arrive without a code must belong to no other case.
            script.after == After::Keep
                && !script.closes_kept
                && !script.says_more
                && !request.lines.is_empty()
                && !request.holds_another()
        };
        self.requests.iter().all(is_calm)
    }

    /// Returns the case with the same bytes split into other writes.
    pub fn cut(&self, cut: Cut) -> Self {
        let mut case = self.clone();
        for request in &mut case.requests {
            let head = request.head().len();
            let cuts = match cut {
                Cut::AsItIs => continue,
                Cut::Whole => vec![head],
                Cut::Bytes => (1..head.min(400)).chain([head]).collect(),
                Cut::Looks => (1..=LOOKS).map(|look| look * LOOK).collect(),
            };
            let pause = match cut {
                Cut::Bytes => Pause::Yield,
                Cut::Looks => Pause::Tiny,
                Cut::AsItIs | Cut::Whole => Pause::Nothing,
            };
            // A write has to end where a client waits for 100.
            let cuts = if cut == Cut::Whole && !request.awaits_continue {
                Vec::new()
            } else {
                cuts
            };
            request.writes = Writes { cuts, pause };
        }
        case
    }
}

impl Pause {
    /// Waits for the length of the pause.
    pub async fn rest(self) {
        match self {
            Self::Nothing => {}
            Self::Yield => tokio::task::yield_now().await,
            Self::Tiny => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

impl Writes {
    /// Returns the pieces into which these bytes are split.
    pub fn pieces<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let ends = self
            .cuts
            .iter()
            .copied()
            .filter(|&cut| cut < bytes.len())
            .chain([bytes.len()]);
        let mut begin = 0;
        ends.filter_map(move |end| {
            let piece = bytes.get(begin..end)?;
            begin = end;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

impl Request {
    /// Returns a request made of raw bytes, which need not be a valid request.
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self {
            start: bytes,
            lines: Vec::new(),
            end: Vec::new(),
            body: Vec::new(),
            writes: Writes::default(),
            is_head: false,
            awaits_continue: false,
            is_last_word: false,
            script: Script::default(),
        }
    }

    /// Whether the bytes after the head are not a body of the request.
    pub fn has_loose_bytes(&self) -> bool {
        !self.body.is_empty() && !self.names("content-length:") && !self.names("transfer-encoding:")
    }

    /// Whether the bytes after the head could be read as another request.
    pub fn holds_another(&self) -> bool {
        const LONGEST: usize = 1_000;
        self.body.len() < LONGEST && self.body.windows(5).any(|window| window == b"HTTP/")
    }

    /// Returns the bytes of the head.
    pub fn head(&self) -> Vec<u8> {
        [&self.start[..], &self.lines.concat(), &self.end].concat()
    }

    /// Returns all bytes of the request.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.head()[..], &self.body].concat()
    }

    /// Whether a line has to stay so that the backend can identify the request.
    pub fn is_code(line: &[u8]) -> bool {
        line.get(..CODE.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(CODE.as_bytes()))
    }

    /// Whether some line of the head starts with this name, given in lower case.
    pub fn names(&self, name: &str) -> bool {
        self.lines.iter().any(|line| {
            line.get(..name.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(name.as_bytes()))
        })
    }
}

/// Returns the code of a request as it is written in its header line.
pub fn code(case: u64, request: usize) -> String {
    format!("{case}.{request}")
}

/// Returns the case and the request that a code names.
pub fn decode(code: &[u8]) -> Option<(u64, usize)> {
    let (case, request) = std::str::from_utf8(code).ok()?.split_once('.')?;
    Some((case.parse().ok()?, request.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_whole_in_order() {
        let writes = Writes {
            cuts: vec![1, 3, 9],
            pause: Pause::Nothing,
        };
        assert_eq!(
            writes.pieces(b"abcde").collect::<Vec<_>>(),
            [&b"a"[..], b"bc", b"de"]
        );
        assert_eq!(
            Writes::default().pieces(b"abc").collect::<Vec<_>>(),
            [b"abc"]
        );
        assert_eq!(
            Writes {
                cuts: vec![0, 0],
                ..Writes::default()
            }
            .pieces(b"")
            .count(),
            0
        );
    }

    #[test]
    fn a_conversation_can_be_split_the_way_an_engine_reads_it() {
        let long = Request {
            lines: vec![[b"x-long: ", &[b'a'; 5_000][..], b"\r\n"].concat()],
            body: b"body".to_vec(),
            ..Request::raw(b"GET / HTTP/1.1\r\n".to_vec())
        };
        let case = Case {
            number: 1,
            requests: vec![long.clone(), long],
            is_pipelined: true,
        }
        .cut(Cut::Looks);
        let bytes: Vec<u8> = case.requests.iter().flat_map(Request::bytes).collect();
        let pieces: Vec<&[u8]> = case.requests[0].writes.pieces(&bytes).collect();
        assert!(
            pieces.len() == 3
                && pieces[..2].iter().all(|piece| piece.len() == LOOK)
                && pieces.concat() == bytes
        );
        assert_eq!(case.requests[0].writes.pause, Pause::Tiny);
    }

    #[test]
    fn a_case_is_calm_if_it_leaves_nothing_for_the_next_case() {
        let is_calm = |change: fn(&mut Request)| {
            let mut request = Request {
                lines: vec![b"Host: h\r\n".to_vec()],
                ..Request::raw(b"GET / HTTP/1.1\r\n".to_vec())
            };
            change(&mut request);
            Case {
                number: 1,
                requests: vec![request],
                is_pipelined: false,
            }
            .is_calm()
        };
        assert!(is_calm(|_| {}) && is_calm(|request| request.body = b"body".to_vec()));
        assert!(
            !is_calm(|request| request.script.after = After::Close)
                && !is_calm(|request| request.script.closes_kept = true)
        );
        assert!(
            !is_calm(|request| request.script.says_more = true)
                && !is_calm(|request| request.lines.clear())
        );
        assert!(!is_calm(
            |request| request.body = b"GET / HTTP/1.1\r\n\r\n".to_vec()
        ));
    }

    #[test]
    fn a_code_round_trips() {
        assert_eq!(decode(code(17, 3).as_bytes()), Some((17, 3)));
        for other in ["", "17", "a.1", "1.b", "1.2.3"] {
            assert_eq!(decode(other.as_bytes()), None, "{other}");
        }
    }
}
