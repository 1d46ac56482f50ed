//! The load kit of Cutover: sample backends with a fault dial, an open-loop generator that checks
//! stickiness while it measures, and scenarios that use both.
//!
//! The kit is a black box next to the proxy. It imports none of the proxy's crates, so its decision
//! of which side a user belongs to ([`users::Oracle`]) is a second, independent one. A mistake in
//! the proxy's hash cannot repeat itself here unnoticed. For the same reason the kit can be used
//! with any proxy.

pub mod backend;
pub mod calls;
pub mod capacity;
#[cfg(target_os = "linux")]
pub mod differential;
pub mod driver;
pub mod html;
#[cfg(target_os = "linux")]
pub mod peers;
pub mod probe;
pub mod report;
pub mod scenario;
pub mod slow;
pub mod stopping;
pub mod units;
pub mod users;
pub mod values;
pub mod websockets;
