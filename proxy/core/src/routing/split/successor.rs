//! The state that a successor process has in force, for its predecessor.

use super::Split;
use crate::percent::Percent;
use crate::routing::restriction::Restriction;
use std::sync::Arc;

/// The state in force of another process that serves the same users and leads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lead {
    /// The state of each of its rollouts.
    pub rollouts: Vec<LedRollout>,
    /// The restriction for requests that match no rollout.
    pub maintenance: Restriction,
}

/// The state in force of one rollout in another process.
#[derive(Clone, Debug, PartialEq)]
pub struct LedRollout {
    /// The id of the rollout.
    pub id: Arc<str>,
    /// The effective share of users on new.
    pub percent: Percent,
    /// Whether it is rolled back.
    pub latched: bool,
    /// The restriction for the rollout's requests.
    pub maintenance: Restriction,
}

impl Lead {
    /// Returns the state of this split for a process that follows.
    pub fn of(split: &Split) -> Self {
        let rollouts = split.rollouts.iter().map(|rollout| LedRollout {
            id: Arc::clone(&rollout.rule.id),
            percent: rollout.percent,
            latched: rollout.latched,
            maintenance: rollout.maintenance,
        });
        Self {
            rollouts: rollouts.collect(),
            maintenance: split.maintenance,
        }
    }
}
