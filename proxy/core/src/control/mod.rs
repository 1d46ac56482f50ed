//! What becomes of a rollout: commands, files and counts in, published shares and effects out.

mod aftermath;
pub mod maintenance;
pub mod plane;
pub mod rollout;
