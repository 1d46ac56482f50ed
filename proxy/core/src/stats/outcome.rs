//! What one request tells about the backend that got it. Outcomes are the only thing evidence is
//! made of.
//!
//! Blame is narrow on purpose: what a client caused (aborts, requests we refuse) and what the proxy
//! caused is [`Outcome::Aborted`] or [`Outcome::Ignored`], never a failure.

/// How an attempt on a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// No connection could be made, or no server of the backend could be asked.
    Connect,
    /// No answer in time: connecting, sending, or waiting for the response header or body.
    Timeout,
    /// The connection was closed or reset before the response header.
    Reset,
    /// A status of 500 or above.
    Status,
    /// The response body ended before its announced end.
    Truncated,
    /// The answer is not HTTP.
    Protocol,
}

impl FailureKind {
    /// How many kinds there are.
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

    /// The name used as a metric label and in sentences.
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

    /// The place of this kind in [`FailureKind::ALL`] and in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What a request says about the side it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer below 400.
    Success,
    /// A 4xx answer of the backend: no failure, but counted, since broken routes and sessions show
    /// here.
    ClientError,
    /// The backend's fault.
    Failure(FailureKind),
    /// The client gave up first. Nobody's failure; the rate of it has a rule of its own.
    Aborted,
    /// Says nothing about the backend: refused or failed inside the proxy.
    Ignored,
}

/// The end of one request, as the recorder takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What it says about the backend.
    pub outcome: Outcome,
    /// The status the client got; `None` when it got none.
    pub status: Option<u16>,
    /// Microseconds from the start of the request to the response header, or to the timeout.
    /// `None` when there was no such moment.
    pub latency_us: Option<u64>,
    /// What it is evidence of.
    pub evidence: Evidence,
}

/// What the end of a request is evidence of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// Nothing: the request of a tester, the second answer to a request that had failed, or a
    /// request that failed on both sides.
    #[default]
    None,
    /// How its side stands against a fixed limit. The user was placed by a list, by the lack of
    /// a key or by the lack of a server, so this user says nothing about the other side.
    Limits,
    /// The same, and how the sides compare: the hash or chance placed the user.
    Compared,
}

impl Evidence {
    /// Whether it is evidence of anything.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether it is evidence of how the sides compare.
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Compared)
    }
}

/// The label of a status class: index 0 for "none", 1 for 1xx and so on.
pub const CODE_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The place of a status in [`CODE_CLASSES`].
pub const fn code_class(status: Option<u16>) -> usize {
    match status {
        Some(status @ 100..=599) => (status / 100) as usize,
        Some(_) | None => 0,
    }
}
