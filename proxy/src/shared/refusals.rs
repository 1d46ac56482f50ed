//! The reasons for which a request is refused before the decision, and how often each occurred.
//!
//! The names are part of the interface: they are the `code` of the error body, the label of a
//! metric and a field of the access log.
//!
//! Written by: the router. Read by: the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reason for which a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request line does not have the form `METHOD TARGET HTTP/1.1`.
    RequestLine,
    /// The protocol version is not served.
    Version,
    /// A line of the head does not end with both bytes of a line end.
    LineEnd,
    /// A header line is malformed.
    Header,
    /// The head is larger than `max_header_bytes`, or has too many lines.
    HeadTooLarge,
    /// The method is not served.
    Method,
    /// The request target is malformed.
    Target,
    /// HTTP/1.1 requires a host, and the request has none.
    MissingHost,
    /// The host is malformed or ambiguous.
    Host,
    /// The length of the body is ambiguous.
    Framing,
    /// A chunk of the body is malformed.
    Chunk,
    /// The body is larger than `max_body`.
    BodyTooLarge,
    /// `Connection` names a header that it may not name.
    Connection,
    /// `Connection` names a header that carries the user key.
    KeyNominated,
    /// A name differs by an underscore from one that has a meaning here.
    Lookalike,
    /// The request carries more than one user key of one kind.
    AmbiguousUser,
    /// An HTTP/2 stream was refused before its request was known.
    Stream,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::RequestLine,
        Self::Version,
        Self::LineEnd,
        Self::Header,
        Self::HeadTooLarge,
        Self::Method,
        Self::Target,
        Self::MissingHost,
        Self::Host,
        Self::Framing,
        Self::Chunk,
        Self::BodyTooLarge,
        Self::Connection,
        Self::KeyNominated,
        Self::Lookalike,
        Self::AmbiguousUser,
        Self::Stream,
    ];

    /// The name used in error bodies, metrics and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestLine => "bad_request_line",
            Self::Version => "bad_version",
            Self::LineEnd => "bad_line_end",
            Self::Header => "bad_header",
            Self::HeadTooLarge => "headers_too_large",
            Self::Method => "method_not_allowed",
            Self::Target => "bad_target",
            Self::MissingHost => "missing_host",
            Self::Host => "bad_host",
            Self::Framing => "bad_framing",
            Self::Chunk => "bad_chunk",
            Self::BodyTooLarge => "body_too_large",
            Self::Connection => "bad_connection",
            Self::KeyNominated => "key_nominated",
            Self::Lookalike => "lookalike_header",
            Self::AmbiguousUser => "ambiguous_user",
            Self::Stream => "bad_stream",
        }
    }
}

/// The number of refused requests by reason. One counter serves all threads, because refusals are
/// rare.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    /// Counts one request as refused.
    pub fn add(&self, why: Refusal) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many requests were refused for a reason since the start of the process.
    pub fn count(&self, why: Refusal) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let refusals = Refusals::default();
        for (at, why) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
            refusals.add(why);
            assert_eq!(refusals.count(why), 1, "{}", why.name());
        }
        let names: std::collections::BTreeSet<&str> =
            Refusal::ALL.into_iter().map(Refusal::name).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
    }
}
