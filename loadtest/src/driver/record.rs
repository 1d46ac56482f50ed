//! What is kept of every request. 48 bytes each, because a run keeps millions of them.

use crate::users::Side;
use http::StatusCode;
use serde::Serialize;
use std::time::Duration;

/// Why a request got no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportFailure {
    /// No connection could be opened.
    Connect,
    /// The connection ended before the whole answer had arrived.
    Reset,
    /// The answer did not arrive in time.
    Timeout,
    /// Never sent: no connection became free in time.
    Waiting,
    /// What arrived was not HTTP.
    Protocol,
}

impl TransportFailure {
    /// Every kind, in the order of a request's life.
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::Protocol,
    ];

    /// The kind in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Waiting => "waiting",
            Self::Protocol => "protocol",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer arrived.
    Answered {
        /// Its status.
        status: StatusCode,
        /// The side it named, if it named one of the two.
        side: Option<Side>,
    },
    /// No whole answer arrived.
    Failed(TransportFailure),
}

impl Outcome {
    /// Whether the user was hurt: no answer, or a server error.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Answered { status, .. } => status.is_server_error(),
            Self::Failed(_) => true,
        }
    }

    /// The side that an answer named.
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Answered { side, .. } => side,
            Self::Failed(_) => None,
        }
    }
}

/// One request of a run; instants are nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Number of the user.
    pub user: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was to start.
    pub intended: u64,
    /// When the pacer handed it over.
    pub released: u64,
    /// When a connection took it; none if none did.
    pub sent: Option<u64>,
    /// When the answer was whole, or given up.
    pub finished: u64,
}

impl Record {
    /// The latency in nanoseconds, if it counts: answers of every status, and what was given up for
    /// time (at what it had cost by then).
    pub fn latency(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Answered { .. }
            | Outcome::Failed(TransportFailure::Timeout | TransportFailure::Waiting) => {
                Some(self.finished.saturating_sub(self.intended))
            }
            Outcome::Failed(
                TransportFailure::Connect | TransportFailure::Reset | TransportFailure::Protocol,
            ) => None,
        }
    }
}

/// Everything that happened in a run.
#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// The requests, in no particular order.
    pub records: Vec<Record>,
    /// Time during which requests started: the planned duration, or less if it was stopped.
    pub paced: Duration,
    /// Whether it was stopped before the planned duration.
    pub stopped: bool,
}

impl Measurement {
    /// Puts the records in the order in which they are judged: by user, each user's requests in the
    /// order of sending; unsent ones say nothing of sides.
    pub fn sort(&mut self) {
        self.records
            .sort_unstable_by_key(|record| (record.user, record.sent, record.intended));
    }
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn a_record_is_as_small_as_the_module_says() {
        assert_eq!(size_of::<Record>(), 48);
    }
}
