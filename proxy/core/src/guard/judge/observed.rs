//! What the judge is told at a tick or a look.

use crate::side::PerSide;
use crate::stats::users::{BadEvent, Population};
use crate::stats::window::Totals;

/// Requests that reached the age at which an unanswered one hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// How many reached it, answered or not.
    pub started: u64,
    /// How many of them have no answer yet.
    pub hung: u64,
    /// From how many different places they come, at least: a place is one of sixteen groups of
    /// networks, or of users when there are few networks.
    pub places: u32,
    /// The part of the place with the most of them, `0..=1`.
    pub top_place: f64,
}

/// What the shell saw of one rollout since it looked last.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Everything counted since the start, by side.
    pub totals: &'a PerSide<Totals>,
    /// Of users whom the hash or chance placed: the sides are compared by them.
    pub compared: &'a PerSide<Totals>,
    /// Failures since the last success.
    pub streaks: PerSide<u32>,
    /// Whether the side has a server that requests are sent to.
    pub available: PerSide<bool>,
    /// Whether a health check of the side has passed within its last two intervals.
    pub passes_checks: PerSide<bool>,
    /// Requests that reached the age of the hang rule since the last tick.
    pub waited: PerSide<Waited>,
    /// The same of users who are compared.
    pub waited_compared: PerSide<Waited>,
    /// Bad events on new that counted since the last look.
    pub bad_events: &'a [BadEvent],
    /// Whom new has served lately; `None` when nobody counted them for this look.
    pub population: Option<Population>,
}

impl<'a> Observed<'a> {
    /// Totals and nothing else: backends are there, nobody hangs, nobody was asked who they are,
    /// and all users are compared.
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
