//! The outcome of one request, as evidence about the backend that received it. Outcomes are the
//! only source of evidence.
//!
//! Blame is narrow on purpose. Anything caused by a client (aborts, refused requests) or by the
//! proxy is [`Outcome::Aborted`] or [`Outcome::Ignored`], and never a failure.

/// The way in which an attempt on a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// A connection could not be made, or no server of the backend was available.
    Connect,
    /// There was no answer in time while connecting, sending, or waiting for the response header or
    /// body.
    Timeout,
    /// The connection was closed or reset before the response header.
    Reset,
    /// The backend answered with a status of 500 or above.
    Status,
    /// The response body ended before its announced end.
    Truncated,
    /// The answer is not valid HTTP.
    Protocol,
}

impl FailureKind {
    /// The number of kinds.
    pub const COUNT: usize = 6;
    /// All kinds, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Connect,
        Self::Timeout,
        Self::Reset,
        Self::Status,
        Self::Truncated,
        Self::Protocol,
    ];

    /// Returns the name used as a metric label and in sentences.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Status => "status",
            Self::Truncated => "truncated",
            Self::Protocol => "protocol",
        }
    }

    /// Returns the index of this kind in [`FailureKind::ALL`] and in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What a request shows about the side that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer below 400.
    Success,
    /// A 4xx answer of the backend. It is not a failure, but it is counted, because broken routes
    /// and sessions appear here.
    ClientError,
    /// A failure caused by the backend.
    Failure(FailureKind),
    /// The client gave up first. It is not a failure of either side, and its rate has a rule of its
    /// own.
    Aborted,
    /// The request shows nothing about the backend: it was refused or failed inside the proxy.
    Ignored,
}

/// The end of one request, as the recorder counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What the request shows about the backend.
    pub outcome: Outcome,
    /// The status that the client received. `None` when it received none.
    pub status: Option<u16>,
    /// The microseconds from the start of the request to the response header, or to the timeout.
    /// `None` when neither occurred.
    pub latency_us: Option<u64>,
    /// What the request is evidence of.
    pub evidence: Evidence,
}

/// What the end of a request is evidence of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// No evidence: the request of a tester, the second answer to a request that had failed, or a
    /// request that failed on both sides.
    #[default]
    None,
    /// Evidence about how its side meets a fixed limit. The user was placed by a list, by the lack
    /// of a key or by the lack of a server, so this user shows nothing about the other side.
    Limits,
    /// Evidence about fixed limits and about the comparison of the sides: the hash or chance placed
    /// the user.
    Compared,
}

impl Evidence {
    /// Whether it is evidence of any kind.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether it is evidence for the comparison of the sides.
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Compared)
    }
}

/// The labels of the status classes: index 0 for "none", 1 for 1xx and so on.
pub const CODE_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Returns the index of a status in [`CODE_CLASSES`].
pub const fn code_class(status: Option<u16>) -> usize {
    match status {
        Some(status @ 100..=599) => (status / 100) as usize,
        Some(_) | None => 0,
    }
}
