//! All decisions of Cutover: which side serves a user, whether the new backend is worse, and what a
//! trip does. No IO, no clock, no random.
//!
//! The shell (crate `cutover`) calls the core, and the core returns decisions. Time is passed in as
//! [`Now`], chance as an argument, and the world as [`Event`]s. Required actions are returned as
//! [`Effect`]s in a tested order. Every behaviour can therefore be replayed on virtual time. No
//! wire format freezes a domain type: nothing here can be serialised, and the edges own mirror
//! types for that.
//!
//! Deliberately absent: anything that knows HTTP, TOML, JSON, files, sockets or threads.
//! `clippy.toml` and `Cargo.toml` of this crate enforce it.

pub mod control;
pub mod guard;
pub mod percent;
pub mod routing;
pub mod side;
pub mod simulation;
pub mod stats;
pub mod time;

pub use control::plane::{
    Actor, Announcement, Command, CommandError, ControlPlane, Effect, Event, Via,
};
pub use control::rollout::{Cause, Latch, Phase, Rollout, RolloutSettings, Trip};
pub use guard::judge::{Judge, Observed, Waited};
pub use guard::{Guard, GuardSettings, Mode, Rule, SharedCause, Verdict};
pub use percent::{Percent, Rate, Ratio};
pub use routing::bucket::{BUCKETS, Bucket, Salt};
pub use routing::restriction::{Maintenance, Restriction, Treatment};
pub use routing::split::{
    Anonymous, Ask, Decision, Failover, Key, KeySource, KeyStep, Lead, LedRollout, Match, Reason,
    RolloutRule, RolloutSplit, Split, UserKey, UserList,
};
pub use side::{PerSide, Side};
pub use stats::histogram::Latencies;
pub use stats::outcome::{Ending, Evidence, FailureKind, Outcome};
pub use stats::users::{
    BadEvent, Class, Counted, Population, Requester, TICK, TrackerLimits, UserTracker,
};
pub use stats::window::{Span, Totals, Window};
pub use time::{Mono, Now, Wall};
