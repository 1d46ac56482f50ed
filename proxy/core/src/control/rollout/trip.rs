//! A rollback and the latch that it leaves.

use crate::guard::judge::TripNumbers;
use crate::percent::Percent;
use crate::side::PerSide;
use crate::stats::users::Class;
use crate::stats::window::Counts;
use crate::time::Wall;
use std::fmt;

/// A trip that still holds, and the generation it holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latch {
    /// The generation that tripped: effective is zero while the file's generation is at most this.
    pub generation: u64,
    /// What tripped it.
    pub trip: Trip,
}

/// Why a rollout went to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// When.
    pub at: Wall,
    /// By what or whom.
    pub cause: Cause,
    /// The percentage that was in force.
    pub from: Percent,
    /// What happened, with its numbers, as a person says it.
    pub sentence: String,
    /// The last minute, tick by tick, the newest last; of trips by the guard only.
    pub history: Vec<TickNumbers>,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} % before)", self.sentence, self.from)
    }
}

/// What both sides did in one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickNumbers {
    /// When the tick ended.
    pub at: Wall,
    /// Each side.
    pub sides: PerSide<SideNumbers>,
}

/// What one side did in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideNumbers {
    /// Requests that count.
    pub requests: u64,
    /// Failures among them.
    pub failed: u64,
    /// Failures as far as they counted: at most so many of each user.
    pub counted: u64,
    /// 4xx answers.
    pub client_errors: u64,
    /// Clients that gave up.
    pub aborts: u64,
    /// Sum of the latencies in microseconds.
    pub latency_sum_us: u64,
}

impl SideNumbers {
    /// The same of whole counts.
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

/// What sent a rollout to 0 %.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A rule of the guard.
    Guard {
        /// [`crate::guard::Rule::name`].
        rule: String,
        /// The requests and failures of both sides over the rule's window.
        numbers: PerSide<TripNumbers>,
    },
    /// A person or a program said so.
    Manual {
        /// Who.
        actor: String,
        /// Why.
        reason: String,
    },
    /// The saved state could not be read, so nobody knows whether it was rolled back.
    State,
}

impl Cause {
    /// The label of `rollbacks_total`: the rule, `manual` or `state`.
    pub fn label(&self) -> &str {
        match self {
            Self::Guard { rule, .. } => rule,
            Self::Manual { .. } => "manual",
            Self::State => "state",
        }
    }
}
