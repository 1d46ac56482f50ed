//! A rollback and the latch that it leaves.

use crate::guard::judge::TripNumbers;
use crate::percent::Percent;
use crate::side::PerSide;
use crate::stats::users::Class;
use crate::stats::window::Counts;
use crate::time::Wall;
use std::fmt;

/// A trip that is still in force, and the generation that it applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latch {
    /// The generation that tripped. The effective share is zero while the file's generation is at
    /// most this.
    pub generation: u64,
    /// The trip that caused the latch.
    pub trip: Trip,
}

/// The record of why a rollout went to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// The time of the trip.
    pub at: Wall,
    /// The rule, person or event that caused the trip.
    pub cause: Cause,
    /// The percentage that was in force before the trip.
    pub from: Percent,
    /// A sentence for people that describes what happened, with its numbers.
    pub sentence: String,
    /// The last minute, tick by tick, with the newest tick last. Recorded only for trips by the
    /// guard.
    pub history: Vec<TickNumbers>,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} % before)", self.sentence, self.from)
    }
}

/// The counts of both sides in one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickNumbers {
    /// The time at which the tick ended.
    pub at: Wall,
    /// The counts of each side.
    pub sides: PerSide<SideNumbers>,
}

/// The counts of one side in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideNumbers {
    /// The number of requests that count.
    pub requests: u64,
    /// The number of failures among the requests.
    pub failed: u64,
    /// The number of failures as far as they counted: at most a fixed number of each user.
    pub counted: u64,
    /// The number of 4xx answers.
    pub client_errors: u64,
    /// The number of requests that the client aborted.
    pub aborts: u64,
    /// The sum of the latencies in microseconds.
    pub latency_sum_us: u64,
}

impl SideNumbers {
    /// Creates the numbers from full counts.
    pub fn of(counts: &Counts) -> Self {
        Self {
            requests: counts.requests,
            failed: counts.failed(),
            counted: counts.counted[Class::Failure.index()],
            client_errors: counts.client_errors,
            aborts: counts.aborts,
            latency_sum_us: counts.latency_sum_us,
        }
    }
}

/// The cause that sent a rollout to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A rule of the guard was breached.
    Guard {
        /// The name of the rule, as returned by [`crate::guard::Rule::name`].
        rule: String,
        /// The requests and failures of both sides over the rule's window.
        numbers: PerSide<TripNumbers>,
    },
    /// A person or a program requested the rollback.
    Manual {
        /// Who requested the rollback.
        actor: String,
        /// The reason that was given.
        reason: String,
    },
    /// The saved state could not be read, so it is unknown whether the rollout was rolled back.
    State,
}

impl Cause {
    /// Returns the label for `rollbacks_total`: the rule, `manual` or `state`.
    pub fn label(&self) -> &str {
        match self {
            Self::Guard { rule, .. } => rule,
            Self::Manual { .. } => "manual",
            Self::State => "state",
        }
    }
}
