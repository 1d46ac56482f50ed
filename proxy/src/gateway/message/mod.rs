//! The gateway's view of a message, independent of the engine that moves its bytes.

pub mod fields;
pub mod forward;
pub mod head;
pub mod identity;
pub mod reply;
pub mod screen;
pub mod trace;
pub mod validate;
