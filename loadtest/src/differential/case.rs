//! One case: what a client says, byte by byte, and what the backend answers to each request.
//!
//! A case is data. Everything that chance decides is decided when it is made, so that it can be
//! played on two engines, played again, printed, and made smaller.

use std::time::Duration;

/// The name of the line that tells the backend which request this is.
pub const CODE: &str = "x-script";
/// The line of an answer that says which request it is for.
pub const ANSWERED: &str = "x-case";

/// A conversation on one client connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its number; with the seed it is all that is needed to make it again.
    pub number: u64,
    /// What is asked, in order.
    pub requests: Vec<Request>,
    /// Whether all is written at once, before the first answer is read.
    pub is_pipelined: bool,
}

/// A request as it goes on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request line with its end, and what stands before it.
    pub start: Vec<u8>,
    /// The lines after it with their ends. The one that holds the code of the request is never
    /// dropped.
    pub lines: Vec<Vec<u8>>,
    /// What ends the head.
    pub end: Vec<u8>,
    /// Everything behind the head.
    pub body: Vec<u8>,
    /// How it is cut into writes.
    pub writes: Writes,
    /// Whether its method is one whose answer has no body.
    pub is_head: bool,
    /// Whether the client waits for an interim answer before it sends the body.
    pub awaits_continue: bool,
    /// Whether the client says that it will send nothing more: what is missing will not come.
    pub is_last_word: bool,
    /// What the backend does.
    pub script: Script,
}

/// How the writes of a case are cut when it is played again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As the case says.
    AsItIs,
    /// Each request is one write.
    Whole,
    /// The beginning of each request comes byte by byte.
    Bytes,
    /// As much at once as an engine reads at once: it has answered what is whole before it sees
    /// more.
    Looks,
}

/// How many bytes an engine reads at once while it reads a head; and how many times at most.
pub const LOOK: usize = 4 << 10;
const LOOKS: usize = 40;

/// How bytes are cut into writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Where a write ends, ascending. Behind the last one all the rest is one write.
    pub cuts: Vec<usize>,
    /// What happens between two writes.
    pub pause: Pause,
}

/// What happens between two writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pause {
    /// Nothing: the kernel may join them.
    #[default]
    Nothing,
    /// Others may run.
    Yield,
    /// A millisecond.
    Tiny,
}

/// What the backend does with one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// What goes out before the body of the request is read: interim answers that a client may
    /// wait for.
    pub before: Vec<u8>,
    /// Whether the answer goes out before the body of the request is read.
    pub is_early: bool,
    /// Whether a connection that has served before is closed instead.
    pub closes_kept: bool,
    /// The answer, byte by byte.
    pub answer: Vec<u8>,
    /// Whether it says more than its answer is, so that the connection is of no use to the next
    /// one.
    pub says_more: bool,
    /// How it is cut into writes.
    pub writes: Writes,
    /// What becomes of the connection.
    pub after: After,
}

/// What becomes of a connection to the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// It is kept.
    #[default]
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
    /// It stays open, and nothing more is said on it.
    Hang,
}

impl Script {
    /// Whether an answer that comes before the body of the request says that nobody wants that: by
    /// its status, or since the connection does not stay.
    pub fn refuses(&self) -> bool {
        !matches!(self.answer.get(9), Some(b'2' | b'3')) || self.after != After::Keep
    }
}

impl Case {
    /// Whether nothing in it depends on which connections to the backend an engine has kept, and it
    /// leaves none that another case could stumble over.
    pub fn is_calm(&self) -> bool {
        let is_calm = |request: &Request| {
            let script = &request.script;
            // What may arrive without a code has to belong to nobody else.
            script.after == After::Keep
                && !script.closes_kept
                && !script.says_more
                && !request.lines.is_empty()
                && !request.holds_another()
        };
        self.requests.iter().all(is_calm)
    }

    /// The same bytes in other writes.
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
            // Where a client waits for 100 a write has to end.
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
    /// Waits as long as it says.
    pub async fn rest(self) {
        match self {
            Self::Nothing => {}
            Self::Yield => tokio::task::yield_now().await,
            Self::Tiny => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

impl Writes {
    /// The pieces of these bytes.
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
    /// Bytes that may be a request or not.
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

    /// Whether what stands behind its head is no body of it.
    pub fn has_loose_bytes(&self) -> bool {
        !self.body.is_empty() && !self.names("content-length:") && !self.names("transfer-encoding:")
    }

    /// Whether what stands behind its head could be taken for a request.
    pub fn holds_another(&self) -> bool {
        const LONGEST: usize = 1_000;
        self.body.len() < LONGEST && self.body.windows(5).any(|window| window == b"HTTP/")
    }

    /// The bytes of the head.
    pub fn head(&self) -> Vec<u8> {
        [&self.start[..], &self.lines.concat(), &self.end].concat()
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.head()[..], &self.body].concat()
    }

    /// Whether a line has to stay for the backend to know the request.
    pub fn is_code(line: &[u8]) -> bool {
        line.get(..CODE.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(CODE.as_bytes()))
    }

    /// Whether some line of the head has this name, given in lower case, however it goes on.
    pub fn names(&self, name: &str) -> bool {
        self.lines.iter().any(|line| {
            line.get(..name.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(name.as_bytes()))
        })
    }
}

/// The code of a request, as it stands in its line.
pub fn code(case: u64, request: usize) -> String {
    format!("{case}.{request}")
}

/// The case and the request that a code names.
pub fn decode(code: &[u8]) -> Option<(u64, usize)> {
    let (case, request) = std::str::from_utf8(code).ok()?.split_once('.')?;
    Some((case.parse().ok()?, request.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_in_order() {
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
    fn a_conversation_can_come_as_an_engine_reads_it() {
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
    fn a_case_is_calm_if_nothing_of_it_is_left_for_the_next() {
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
    fn a_code_is_read_as_it_is_written() {
        assert_eq!(decode(code(17, 3).as_bytes()), Some((17, 3)));
        for other in ["", "17", "a.1", "1.b", "1.2.3"] {
            assert_eq!(decode(other.as_bytes()), None, "{other}");
        }
    }
}
