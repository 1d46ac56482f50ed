//! The first bytes of a body, kept for another attempt.

use bytes::BytesMut;

/// Bytes of a request body that are kept for another attempt, as many as the engine keeps itself.
pub(super) const REPLAY: usize = 64 << 10;

/// The beginning of a body, for another attempt.
#[derive(Debug, Default)]
pub(super) enum Replay {
    /// Nothing is kept.
    #[default]
    Off,
    /// All that has come.
    Kept(BytesMut),
    /// More has come than is kept.
    Truncated,
}
