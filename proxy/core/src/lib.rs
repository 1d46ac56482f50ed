//! Every decision Cutover takes: who goes where, whether the new backend is worse, what a trip
//! does. No IO, no clock, no random.
//!
//! The shell (crate `cutover`) asks, the core answers. Time comes in as [`Now`], chance as an
//! argument, the world as [`Event`]s; what must happen goes out as [`Effect`]s in a tested order.
//! So every behaviour can be replayed on virtual time, and no wire format freezes a domain type:
//! nothing here can be serialised, the edges own mirror types for that.
//!
//! Deliberately absent: anything that knows HTTP, TOML, JSON, files, sockets or threads.
//! `clippy.toml` and `Cargo.toml` of this crate enforce it.

mod aftermath;
pub mod bucket;
pub mod evidence;
pub mod forecast;
pub mod guard;
pub mod histogram;
pub mod judge;
pub mod maintenance;
pub mod outcome;
pub mod percent;
pub mod plane;
pub mod refuge;
pub mod rollout;
pub mod routes;
pub mod side;
pub mod simulate;
pub mod split;
pub mod time;
pub mod window;
pub mod witness;

pub use bucket::{BUCKETS, Bucket, Salt};
pub use guard::{Guard, GuardSettings, Mode, Rule, SharedCause, Verdict};
pub use histogram::Latencies;
pub use judge::{Judge, Observed, Waited};
pub use maintenance::{Maintenance, Restriction, Treatment};
pub use outcome::{Ending, Evidence, FailureKind, Outcome};
pub use percent::{Percent, Rate, Ratio};
pub use plane::{Actor, Announcement, Command, CommandError, ControlPlane, Effect, Event, Source};
pub use rollout::{Cause, Latch, Phase, Rollout, RolloutSettings, Trip};
pub use side::{PerSide, Side};
pub use split::{
    Anonymous, Ask, Decision, Failover, Key, KeySource, KeyStep, Lead, LedRollout, Match, Reason,
    RolloutRule, RolloutSplit, Split, UserKey, UserList,
};
pub use time::{Mono, Now, Wall};
pub use window::{Span, Totals, Window};
pub use witness::{Aims, Class, Counted, Crowd, TICK, Watch, Who, Witness};
