//! What the file says about a rollout.

use crate::guard::GuardSettings;
use crate::percent::Percent;
use crate::routing::split::{Anonymous, Failover, Key, Match, UserList};
use crate::side::PerSide;
use std::sync::Arc;
use std::time::Duration;

/// One rollout as the file means it.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutSettings {
    /// Unique among the rollouts.
    pub id: Arc<str>,
    /// Which requests it takes.
    pub matches: Match,
    /// The salt of its hash; without `:`.
    pub salt: Box<str>,
    /// Where the user key comes from, in order.
    pub keys: Vec<Key>,
    /// What happens to a request without a key.
    pub anonymous: Anonymous,
    /// Users on new whatever their bucket.
    pub always_new: UserList,
    /// Users on legacy whatever their bucket.
    pub always_legacy: UserList,
    /// Names of the backends.
    pub backends: PerSide<Arc<str>>,
    /// The share of users asked for.
    pub percent: Percent,
    /// Raised by an operator to re-arm after a rollback.
    pub generation: u64,
    /// The share of users kept on legacy even at 100 %, as a control group.
    pub holdback: Percent,
    /// Whether a request that fails on new is answered by legacy.
    pub failover: Failover,
    /// Path prefixes below which a file that is missing on one side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
    /// How long after a rollback what outlives a request (WebSockets, streams) may stay on new.
    pub drain_on_rollback: Duration,
    /// When new counts as worse.
    pub guard: GuardSettings,
}
