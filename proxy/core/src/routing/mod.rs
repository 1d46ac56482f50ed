//! The choice of the side for a request: the matching rollout, the bucket of its user, and the
//! share.

pub mod bucket;
pub mod restriction;
pub mod routes;
pub mod split;
