//! The settings of a rollout from the file.

use crate::guard::GuardSettings;
use crate::percent::Percent;
use crate::routing::split::{Anonymous, Failover, Key, Match, UserList};
use crate::side::PerSide;
use std::sync::Arc;
use std::time::Duration;

/// The settings of one rollout, as the file defines them.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutSettings {
    /// The id, which is unique among the rollouts.
    pub id: Arc<str>,
    /// The requests that the rollout applies to.
    pub matches: Match,
    /// The salt of the rollout's hash, without `:`.
    pub salt: Box<str>,
    /// The sources of the user key, in order.
    pub keys: Vec<Key>,
    /// The handling of a request without a key.
    pub anonymous: Anonymous,
    /// The users who are on new regardless of their hash bucket.
    pub always_new: UserList,
    /// The users who are on legacy regardless of their hash bucket.
    pub always_legacy: UserList,
    /// The names of the backends.
    pub backends: PerSide<Arc<str>>,
    /// The requested share of users.
    pub percent: Percent,
    /// The generation, which an operator raises to re-arm after a rollback.
    pub generation: u64,
    /// The share of users who are kept on legacy even at 100 %, as a control group.
    pub holdback: Percent,
    /// Whether legacy answers a request that fails on new.
    pub failover: Failover,
    /// The path prefixes below which a file that is missing on one side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
    /// How long connections that outlive a request (WebSockets, streams) may stay on new after a
    /// rollback.
    pub drain_on_rollback: Duration,
    /// The settings that define when new counts as worse.
    pub guard: GuardSettings,
}

impl RolloutSettings {
    /// Returns a rollout for tests and benchmarks: every request, no failover, the default guard,
    /// and `legacy` and `new` as the names of its backends.
    pub fn for_tests(id: &str, percent: Percent) -> Self {
        Self {
            id: id.into(),
            matches: Match::default(),
            salt: id.into(),
            keys: Vec::new(),
            anonymous: Anonymous::Legacy,
            always_new: UserList::default(),
            always_legacy: UserList::default(),
            backends: PerSide {
                legacy: "legacy".into(),
                new: "new".into(),
            },
            percent,
            generation: 1,
            holdback: Percent::ZERO,
            failover: Failover::Off,
            fallback_on_404: Vec::new(),
            drain_on_rollback: Duration::from_secs(60),
            guard: GuardSettings::default(),
        }
    }
}
