//! The record that is kept of every request. It has 48 bytes, because a run keeps millions of them.

use crate::users::Side;
use http::StatusCode;
use serde::Serialize;
use std::time::Duration;

/// The reason why a request got no complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportFailure {
    /// No connection could be opened.
    Connect,
    /// The connection ended before the whole answer had arrived.
    Reset,
    /// The answer did not arrive in time.
    Timeout,
    /// The request was never sent, because no connection became free in time.
    Waiting,
    /// The received bytes were not HTTP.
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

    /// Returns the kind in one word.
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
    /// A complete answer arrived.
    Answered {
        /// The status of the answer.
        status: StatusCode,
        /// The side that the answer named. `None` if it named neither of the two.
        side: Option<Side>,
    },
    /// No complete answer arrived.
    Failed(TransportFailure),
}

impl Outcome {
    /// Whether the request failed for its user: no answer, or a server error.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Answered { status, .. } => status.is_server_error(),
            Self::Failed(_) => true,
        }
    }

    /// Returns the side that the answer named.
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Answered { side, .. } => side,
            Self::Failed(_) => None,
        }
    }
}

/// One request of a run. Instants are nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The number of the user.
    pub user: u32,
    /// How the request ended.
    pub outcome: Outcome,
    /// The intended start.
    pub intended: u64,
    /// The time at which the pacer handed the request over.
    pub released: u64,
    /// The time at which a connection took the request. `None` if no connection did.
    pub sent: Option<u64>,
    /// The time at which the answer was complete or the request was abandoned.
    pub finished: u64,
}

impl Record {
    /// Returns the latency in nanoseconds, if it counts. Answers of every status count. Requests
    /// that timed out count with the time they had taken by then.
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
    /// The time during which requests started: the planned duration, or less if the run was
    /// stopped.
    pub paced: Duration,
    /// Whether the run was stopped before the planned duration.
    pub stopped: bool,
}

impl Measurement {
    /// Sorts the records into the order in which they are judged: by user, and each user's requests
    /// in the order of sending. Unsent requests give no evidence about sides.
    pub fn sort(&mut self) {
        self.records
            .sort_unstable_by_key(|record| (record.user, record.sent, record.intended));
    }
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn a_record_has_the_documented_size() {
        assert_eq!(size_of::<Record>(), 48);
    }
}
