//! The input of the judge at a tick or at an evaluation between ticks.

use crate::side::PerSide;
use crate::stats::users::{BadEvent, Population};
use crate::stats::window::Totals;

/// Requests that reached the age at which an unanswered one counts as hanging.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// The number of requests that reached that age, answered or not.
    pub started: u64,
    /// The number of these requests without an answer yet.
    pub hung: u64,
    /// The minimum number of different places from which the requests were sent. A place is one of
    /// sixteen groups of networks, or of users when there are few networks.
    pub places: u32,
    /// The share of the place with the most requests, `0..=1`.
    pub top_place: f64,
}

/// The shell's observations of one rollout since the previous evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// All counts since the start, by side.
    pub totals: &'a PerSide<Totals>,
    /// The counts of users whom the hash or chance placed: the sides are compared by them.
    pub compared: &'a PerSide<Totals>,
    /// The number of failures since the last success.
    pub streaks: PerSide<u32>,
    /// Whether the side has a server that receives requests.
    pub available: PerSide<bool>,
    /// Whether a health check of the side has passed within its last two intervals.
    pub passes_checks: PerSide<bool>,
    /// The requests that reached the age of the hang rule since the last tick.
    pub waited: PerSide<Waited>,
    /// The waiting requests of users who are compared.
    pub waited_compared: PerSide<Waited>,
    /// The bad events on new that counted since the previous evaluation.
    pub bad_events: &'a [BadEvent],
    /// The users that new has served lately. `None` when they were not counted for this
    /// evaluation.
    pub population: Option<Population>,
}

impl<'a> Observed<'a> {
    /// Creates an observation from totals alone: the backends are available, no request hangs, the
    /// users are not identified, and all users are compared.
    pub fn of(totals: &'a PerSide<Totals>) -> Self {
        Self {
            totals,
            compared: totals,
            streaks: PerSide { legacy: 0, new: 0 },
            available: PerSide {
                legacy: true,
                new: true,
            },
            passes_checks: PerSide {
                legacy: false,
                new: false,
            },
            waited: PerSide::default(),
            waited_compared: PerSide::default(),
            bad_events: &[],
            population: None,
        }
    }
}
