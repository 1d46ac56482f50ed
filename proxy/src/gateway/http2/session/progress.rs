//! The progress of sending an answer.

use crate::gateway::adapter::timeouts::within;
use crate::gateway::http2::frames::Seen;
use crate::gateway::lane::min_rate::Pace;
use bytes::Bytes;
use cutover_core::Mono;
use h2::SendStream;
use pingora::prelude::*;
use pingora::{Error, ErrorType, OrErr};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

/// The progress of a DATA frame that the library does not report yet. A frame may be so large that
/// a slow client needs minutes to send it.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) seen: Arc<Seen>,
    pub(super) stream: u32,
    pub(super) partial: u64,
    pub(super) pace: Pace,
}

impl Progress {
    /// Returns whether bytes were received since the last call, at no less than the minimum rate.
    /// `read` is the number of bytes of the body that have been read.
    pub(super) fn is_made(&mut self, read: usize, now: Mono) -> bool {
        let partial = self.seen.partial_data(self.stream);
        let has_moved = partial > self.partial;
        self.partial = partial;
        has_moved && self.pace.is_kept(read as u64 + partial, now)
    }
}

/// Sends a part of a body as far as the client's windows allow. Each step may take `limit`.
pub(super) async fn send_all(
    send: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
    limit: Duration,
) -> Result<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = match within(limit, poll_fn(|cx| send.poll_capacity(cx))).await {
            Some(Some(room)) => room.or_err(
                ErrorType::WriteError,
                "while waiting for the client to read",
            )?,
            Some(None) => {
                return Error::e_explain(ErrorType::WriteError, "the client has ended the stream");
            }
            None => return Error::e_explain(ErrorType::WriteTimedout, "the client does not read"),
        };
        let part = data.split_to(room.min(data.len()));
        let is_last = data.is_empty() && end;
        send.send_data(part, is_last)
            .or_err(ErrorType::WriteError, "while writing an answer")?;
        if is_last {
            return Ok(());
        }
    }
    if end {
        send.send_data(data, true)
            .or_err(ErrorType::WriteError, "while ending an answer")
    } else {
        Ok(())
    }
}
