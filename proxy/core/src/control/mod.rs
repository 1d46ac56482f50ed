//! The control plane: takes commands, files and counts, and returns published shares and effects
//! for each rollout.

mod aftermath;
pub mod maintenance;
pub mod plane;
pub mod rollout;
