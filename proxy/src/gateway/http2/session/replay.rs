//! The first bytes of a body, kept for another attempt.

use bytes::BytesMut;

/// The number of bytes of a request body that are kept for another attempt. The engine itself keeps
/// as many.
pub(super) const REPLAY: usize = 64 << 10;

/// The beginning of a body, for another attempt.
#[derive(Debug, Default)]
pub(super) enum Replay {
    /// Nothing is kept.
    #[default]
    Off,
    /// All bytes received so far.
    Kept(BytesMut),
    /// More bytes were received than are kept.
    Truncated,
}
