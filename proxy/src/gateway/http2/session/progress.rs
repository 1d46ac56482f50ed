//! How far the sending of an answer has come.

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

/// How far a DATA frame has come that the library does not show yet: a frame may be as large as a
/// slow client sends in minutes.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) seen: Arc<Seen>,
    pub(super) stream: u32,
    pub(super) partial: u64,
    pub(super) pace: Pace,
}

impl Progress {
    /// Whether bytes have come since the last call, at no less than the least pace. `read` is how
    /// many bytes of the body have been read.
    pub(super) fn is_made(&mut self, read: usize, now: Mono) -> bool {
        let partial = self.seen.partial_data(self.stream);
        let has_moved = partial > self.partial;
        self.partial = partial;
        has_moved && self.pace.is_kept(read as u64 + partial, now)
    }
}

/// Sends a part of a body as far as the client's windows allow. Each step of it may take `limit`.
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
