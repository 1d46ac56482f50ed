//! What a process that has taken over has in force, for the process before it.

use super::Split;
use crate::percent::Percent;
use crate::routing::restriction::Restriction;
use std::sync::Arc;

/// What another process has in force that serves the same users and leads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lead {
    /// Each of its rollouts.
    pub rollouts: Vec<LedRollout>,
    /// What is kept out of requests that match no rollout.
    pub maintenance: Restriction,
}

/// What another process has in force for one rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct LedRollout {
    /// Its id.
    pub id: Arc<str>,
    /// The effective share of users on new.
    pub percent: Percent,
    /// Whether it is rolled back.
    pub latched: bool,
    /// What is kept out of its requests.
    pub maintenance: Restriction,
}

impl Lead {
    /// What this split means for a process that follows.
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
