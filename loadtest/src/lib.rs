//! Load kit of Cutover: sample backends with a fault dial, and an open-loop generator that checks
//! stickiness while it measures.
//!
//! The kit is a black box beside the proxy. It imports none of the proxy's crates, so that its
//! opinion of who belongs on which side ([`users::Oracle`]) is a second, independent one: a mistake
//! in the proxy's hash cannot repeat itself here unnoticed.
//!
//! Deliberately absent: scenarios, HTTP/2 and TLS, and any control of the proxy itself.

pub mod backend;
pub mod driver;
#[cfg(target_os = "linux")]
pub mod peers;
pub mod report;
pub mod units;
pub mod users;
