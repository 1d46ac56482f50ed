//! The differences that are allowed.
//!
//! Each rule is as narrow as possible: which engine does what, in which line, with which value. A
//! difference that no rule names ends the run with a failure. A new rule is a variant with its
//! sentence, and a place in `compare` that applies it.
//!
//! The reference is the proxy engine, and the candidate is compared with it. Some rules hold in
//! this direction only.

pub mod allowed;

use crate::differential::case::{Request, Script};
use crate::differential::wire::{Body, Ending};

/// An allowed difference, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Random request IDs.
    RequestId,
    /// Random trace contexts.
    TraceContext,
    /// The time of an answer.
    Date,
    /// `connection: keep-alive` where it has no meaning.
    KeepAliveLine,
    /// The order of header lines with different names.
    LineOrder,
    /// The boundaries of chunks.
    ChunkBoundaries,
    /// How much of a broken request arrived.
    CutRequest,
    /// How much of a refused request arrived, and what happened to the connection of a request that
    /// was answered early.
    EarlyAnswer,
    /// How much of a broken answer arrived.
    CutAnswer,
    /// Chance in the reference itself.
    EitherWay,
    /// The date that a backend sent.
    BackendDate,
    /// Redundant framing lines of an answer.
    Framing,
    /// A transfer coding other than chunked.
    Coding,
    /// Capitals in common header names.
    Capitals,
    /// Whether a kept connection existed that could be closed.
    KeptOrNew,
    /// A second attempt after half a head.
    AskedAgain,
    /// Bytes behind a request that are not a request.
    LooseBytes,
    /// An empty line in place of a chunk size in an answer.
    EmptySize,
    /// A malformed chunk of a request, noticed before or after a backend received the request.
    BadChunk,
    /// The address of a server as `Host`.
    HostOfServer,
    /// A pause of the whole machine.
    Stall,
}

impl Rule {
    /// All rules, in the order of the report.
    pub const ALL: [Self; 21] = [
        Self::RequestId,
        Self::TraceContext,
        Self::Date,
        Self::KeepAliveLine,
        Self::LineOrder,
        Self::ChunkBoundaries,
        Self::CutRequest,
        Self::EarlyAnswer,
        Self::CutAnswer,
        Self::EitherWay,
        Self::BackendDate,
        Self::Framing,
        Self::Coding,
        Self::Capitals,
        Self::KeptOrNew,
        Self::AskedAgain,
        Self::LooseBytes,
        Self::EmptySize,
        Self::BadChunk,
        Self::HostOfServer,
        Self::Stall,
    ];

    /// Returns the name of the rule in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestId => "request id",
            Self::TraceContext => "trace context",
            Self::Date => "date",
            Self::KeepAliveLine => "keep-alive line",
            Self::LineOrder => "line order",
            Self::ChunkBoundaries => "chunk boundaries",
            Self::CutRequest => "cut request",
            Self::EarlyAnswer => "early answer",
            Self::CutAnswer => "cut answer",
            Self::EitherWay => "either way",
            Self::BackendDate => "backend's date",
            Self::Framing => "framing lines",
            Self::Coding => "coding",
            Self::Capitals => "capitals",
            Self::KeptOrNew => "kept or new",
            Self::AskedAgain => "asked again",
            Self::LooseBytes => "loose bytes",
            Self::EmptySize => "empty size",
            Self::BadChunk => "bad chunk",
            Self::HostOfServer => "host of the server",
            Self::Stall => "stall",
        }
    }

    /// Returns what may differ, and why.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::RequestId => "x-request-id to the backend is a random id of ours in both engines",
            Self::TraceContext => {
                "traceparent to the backend is a random one of ours in both engines, where the \
                 client sent none that counts"
            }
            Self::Date => "both engines write a date of their own",
            Self::KeepAliveLine => {
                "the proxy engine says connection: keep-alive in an answer of HTTP/1.1, where it \
                 goes without saying"
            }
            Self::LineOrder => "lines of different names stand in another order",
            Self::ChunkBoundaries => "the same bytes are cut into other chunks",
            Self::CutRequest => {
                "of a request that never came whole, one engine passed on more than the other \
                 before it noticed"
            }
            Self::EarlyAnswer => {
                "of a request that was refused before it was read, one engine passed on more than \
                 the other; and of any that was answered before, one closed the connection and the \
                 other kept it"
            }
            Self::CutAnswer => {
                "of an answer that broke off, one engine passed on more than the other before it \
                 noticed"
            }
            Self::EitherWay => {
                "the proxy engine alone gives both outcomes when the case is played again, with \
                 its bytes cut into the same or other writes, and the candidate gives none that it \
                 does not"
            }
            Self::BackendDate => {
                "the proxy engine replaces the date that a backend sent, the lane keeps it"
            }
            Self::Framing => {
                "the lane passes on one length where a backend sent several, and none where an \
                 answer may have none"
            }
            Self::Coding => {
                "the lane refuses an answer whose Transfer-Encoding is not chunked, once; the \
                 proxy engine passes it on"
            }
            Self::Capitals => {
                "the proxy engine writes a dozen common names with capitals where the client wrote \
                 none, the lane as the client did"
            }
            Self::KeptOrNew => {
                "the engines have pools of their own, so one may meet a kept connection that \
                 closes, or says no more, where the other opens a new one"
            }
            Self::AskedAgain => {
                "when a kept connection ends before an answer, the proxy engine asks again, the \
                 lane only where not a byte of one has come; and each has kept connections of its \
                 own"
            }
            Self::LooseBytes => {
                "what stands behind a request and is none is refused sooner or later, with the \
                 request before it or by itself"
            }
            Self::EmptySize => {
                "the proxy engine takes an empty line where the size of a chunk should be for the \
                 end of the answer, the lane breaks the answer off and closes"
            }
            Self::BadChunk => {
                "a request with a malformed chunk is refused before a backend is asked if the \
                 chunk comes with the head, and after if it comes later"
            }
            Self::HostOfServer => {
                "a request of HTTP/1.0 without a host gets the address of the server as Host, and \
                 each engine has servers of its own"
            }
            Self::Stall => {
                "the machine stood still for nearly as long as an engine waits, and the difference \
                 did not show again"
            }
        }
    }

    /// Returns the rule for a header line at the backend that only one engine sent, or that both
    /// sent with different values.
    pub fn of_request_line(
        request: &Request,
        name: &[u8],
        reference: &[&[u8]],
        candidate: &[&[u8]],
    ) -> Option<Self> {
        let (&[reference], &[candidate]) = (reference, candidate) else {
            return None;
        };
        let is_sent = |value: &[u8]| {
            request.lines.iter().any(|line| {
                line.windows(value.len().max(1))
                    .any(|window| window == value)
            })
        };
        if is_sent(reference) || is_sent(candidate) {
            return None;
        }
        match name {
            b"x-request-id" if is_id(reference) && is_id(candidate) => Some(Self::RequestId),
            b"traceparent" if is_context(reference) && is_context(candidate) => {
                Some(Self::TraceContext)
            }
            b"host"
                if is_address(reference) && is_address(candidate) && !request.names("host:") =>
            {
                Some(Self::HostOfServer)
            }
            _ => None,
        }
    }

    /// Returns the rule for a header line at the client that only one engine sent, or that both
    /// sent with different values.
    pub fn of_answer_line(
        script: &Script,
        start: &[u8],
        name: &[u8],
        reference: &[&[u8]],
        candidate: &[&[u8]],
    ) -> Option<Self> {
        match (name, reference, candidate) {
            (b"date", &[reference], &[candidate]) => {
                let is_own = |value: &[u8]| is_date(value) && !contains(&script.answer, value);
                (is_own(reference) && is_own(candidate)).then_some(Self::Date)
            }
            (b"connection", &[b"keep-alive"], &[]) if start.starts_with(b"HTTP/1.1 ") => {
                Some(Self::KeepAliveLine)
            }
            _ => None,
        }
    }

    /// Returns the rule for request bodies that differ at the backend.
    pub fn of_request_body(request: &Request, reference: &Body, candidate: &Body) -> Option<Self> {
        if !is_begin_of_the_other(reference, candidate) {
            return None;
        }
        let is_broken = reference.ending != Ending::Whole && candidate.ending != Ending::Whole;
        match () {
            () if is_broken => Some(Self::CutRequest),
            () if request.script.is_early && request.script.refuses() => Some(Self::EarlyAnswer),
            () => None,
        }
    }

    /// Returns the rule for answer bodies that differ at the client.
    pub fn of_answer_body(reference: &Body, candidate: &Body) -> Option<Self> {
        let is_broken = reference.ending != Ending::Whole && candidate.ending == reference.ending;
        (is_broken && is_begin_of_the_other(reference, candidate)).then_some(Self::CutAnswer)
    }
}

fn is_begin_of_the_other(one: &Body, other: &Body) -> bool {
    one.bytes.starts_with(&other.bytes) || other.bytes.starts_with(&one.bytes)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// Whether the value is a request ID made by Cutover: letters and digits of a random number.
fn is_id(value: &[u8]) -> bool {
    value.len() == 32
        && value
            .iter()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
}

/// Whether the value is a trace context made by Cutover: version 00, and not sampled.
fn is_context(value: &[u8]) -> bool {
    let parts: Vec<&[u8]> = value.split(|&byte| byte == b'-').collect();
    matches!(&parts[..], [b"00", trace, span, b"00"] if is_id(trace) && span.len() == 16 && span.iter().all(u8::is_ascii_hexdigit))
}

/// Whether the value is the address of one of the tester's backends.
fn is_address(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|value| value.parse::<std::net::SocketAddr>().is_ok())
}

fn is_date(value: &[u8]) -> bool {
    value.len() == 29 && value.ends_with(b" GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_listed_once() {
        let mut sorted = Rule::ALL.to_vec();
        sorted.dedup();
        assert!(sorted.is_sorted() && sorted.len() == Rule::ALL.len());
    }

    #[test]
    fn generated_ids_have_one_shape() {
        assert!(
            is_id(b"4bf92f3577b34da6a3ce929d0e0e4736")
                && is_context(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
        );
        for other in [
            &b""[..],
            b"forged-id",
            b"4BF92F3577B34DA6A3CE929D0E0E4736",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_id(other) && !is_context(other));
        }
    }
}
