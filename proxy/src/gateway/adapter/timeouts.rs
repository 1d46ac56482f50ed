//! The limits on how long one request waits for its backend and for the rest of its body.
//!
//! The proxy engine has one limit for every read from a backend. An answer needs three: until its
//! header, between the parts of its body, and within a stream. Therefore the engine's limit is off,
//! and these deadlines are checked wherever the engine listens to the client meanwhile. When one
//! has passed, the client's stream fails, and the adapter knows that the backend was late. The
//! deadlines task makes sure that the check happens. It also makes sure that time in which the
//! process stood still is attributed to neither side.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::Mono;

use crate::gateway::listener::deadlines::Deadlines;
use crate::gateway::message::head::Conn;

/// The deadlines of one request. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RequestTimeouts {
    conn: Arc<Conn>,
    deadlines: Arc<Deadlines>,
}

impl RequestTimeouts {
    /// Creates the deadlines of the request that `conn` serves. `deadlines` has to watch `conn`.
    pub fn new(conn: Arc<Conn>, deadlines: Arc<Deadlines>) -> Self {
        Self { conn, deadlines }
    }

    /// Expects a part of the answer from the backend within `limit`.
    pub fn await_answer(&self, limit: Duration) {
        self.conn.answer.begin(self.deadlines.due(limit), limit);
    }

    /// Restarts the backend's limit, if something is expected of the backend.
    pub fn answer_moved(&self) {
        if let Some(limit) = self.conn.answer.limit() {
            self.await_answer(limit);
        }
    }

    /// Stops expecting anything of the backend.
    pub fn answer_ended(&self) {
        self.conn.answer.end();
        self.conn.taking.end();
        self.conn.set_client_behind(false);
        self.conn.set_upstream(-1);
    }

    /// Expects the backend to take a part of an upload within `limit`.
    pub fn await_taking(&self, limit: Duration) {
        self.conn.taking.begin(self.deadlines.due(limit), limit);
    }

    /// Records that the backend has taken all that was received of the upload.
    pub fn has_taken(&self) {
        self.conn.taking.end();
    }

    /// Records whether the client still has to read. While it has, the backend is not late.
    /// Afterwards the backend has its whole limit again.
    pub fn client_is_behind(&self, is_behind: bool) {
        if self.conn.is_client_behind() != is_behind {
            self.conn.set_client_behind(is_behind);
        }
        if !is_behind {
            self.answer_moved();
        }
    }

    /// Returns whether the backend has missed its deadline.
    pub fn is_answer_late(&self) -> bool {
        self.conn.is_answer_late(self.deadlines.now_us())
    }

    /// Expects more of the request body within `limit`.
    pub fn await_body(&self, limit: Duration) {
        self.conn.body.begin(self.deadlines.due(limit), limit);
    }

    /// Records that more of the request body, or its end, was received.
    pub fn body_came(&self) {
        self.conn.body.end();
    }

    /// Returns the time of the deadlines task, which stands still with the process.
    pub fn now(&self) -> Mono {
        Mono::from_micros(self.deadlines.now_us())
    }

    /// Returns whether more of the request body is expected.
    pub fn is_body_awaited(&self) -> bool {
        self.conn.body.limit().is_some()
    }

    /// Returns whether the client has missed the deadline for its body.
    pub fn is_body_late(&self) -> bool {
        self.conn.body.is_over(self.deadlines.now_us())
    }
}

/// The part of a limit that a standstill of the process can consume. A standstill counts as one
/// step, however long it lasts.
pub(in crate::gateway) const STEP: Duration = Duration::from_millis(500);

/// Waits for `future` within `limit`. Returns `None` if it did not complete in time. Time in which
/// the process stood still does not count, because the timer is set again step by step.
pub async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = limit;
    while !left.is_zero() {
        let step = left.min(STEP);
        if let Ok(output) = tokio::time::timeout(step, future.as_mut()).await {
            return Some(output);
        }
        left -= step;
    }
    None
}

/// The content types of answers whose parts may be far apart: streams that last as long as their
/// readers.
const STREAMS: [&[u8]; 6] = [
    b"text/event-stream",
    b"application/grpc",
    b"application/x-ndjson",
    b"application/jsonl",
    b"application/json-seq",
    b"multipart/x-mixed-replace",
];

/// Returns whether an answer is a stream: its content type is that of a stream, and it has no
/// length.
pub fn is_stream(content_type: Option<&[u8]>, has_length: bool) -> bool {
    let begins_with = |name: &[u8], kind: &[u8]| {
        kind.get(..name.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(name))
    };
    // gRPC types continue with a plus sign. All other types end there or have parameters.
    let ends = |name: &[u8], kind: &[u8]| {
        matches!(
            kind.get(name.len()),
            None | Some(b';' | b' ' | b'\t' | b'+' | b'-')
        )
    };
    !has_length
        && content_type.is_some_and(|kind| {
            STREAMS
                .iter()
                .any(|name| begins_with(name, kind) && ends(name, kind))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_stream_type_and_no_length_is_a_stream() {
        for (kind, has_length, stream) in [
            ("text/event-stream", false, true),
            ("Text/Event-Stream; charset=utf-8", false, true),
            ("text/event-stream", true, false),
            ("application/grpc", false, true),
            ("application/grpc+proto", false, true),
            ("application/grpc-web", false, true),
            ("application/x-ndjson", false, true),
            ("multipart/x-mixed-replace; boundary=frame", false, true),
            ("text/event-streams", false, false),
            ("application/json", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                is_stream(Some(kind.as_bytes()), has_length),
                stream,
                "{kind}"
            );
        }
        assert!(!is_stream(None, false));
    }
}
