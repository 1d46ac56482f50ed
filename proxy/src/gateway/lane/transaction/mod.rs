//! One request on the lane, from its decision to its end.
//!
//! Attempts are made in this order, and at most two on each side. If no connection could be made,
//! another server of the backend is tried. If a kept connection broke before the first byte of the
//! answer and the request has a safe method, the same request is sent again. Then the other side is
//! tried, if the router says so. The buffer with the head is kept until the end, because each
//! attempt may need it.

mod answer;
mod attempt;

use std::time::Duration;

use cutover_core::FailureKind;
use http::Method;

use crate::clock::mono as now;
use crate::gateway::lane::body_relay::{ClientSide, RelayError, Upload, write_all};
use crate::gateway::lane::read_buffer::Buffer;
use crate::gateway::lane::request::{Request, RequestFacts};
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::lane::{CLOSE_TIMEOUT, Lane, LaneStream, date};
use crate::gateway::listener::deadlines::Deadline;
use crate::gateway::message::reply::{Reply, wants_html};
use crate::gateway::router::{Blame, End, Exchange, Failure};
use crate::shared::drain::Drained;
use crate::telemetry::request_summary::Engine;
use crate::upstream::Chosen;
use attempt::Attempt;

/// What happens to the client's connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The connection waits for the next request.
    Keep,
    /// The connection is closed.
    Close,
    /// The connection is closed after the client's remaining bytes have been read, which may take
    /// at most this long.
    Linger(Duration),
    /// The connection is aborted.
    Cut,
}

/// One request on the lane.
pub(super) struct Transaction<'a> {
    lane: &'a Lane,
    watched: &'a Deadline,
    exchange: Exchange,
    facts: RequestFacts,
    request: Request,
    /// The bytes of the head, and the part of the body that was received with it.
    head_bytes: Buffer,
    upload: Upload,
    end: End,
    chosen: Option<Chosen>,
    attempts_on_this_side: u8,
    /// Whether a kept connection was unusable, so that others are likely to be as well.
    needs_a_fresh_one: bool,
    /// Whether any part of the request has been sent to a server.
    something_sent: bool,
    /// Whether a part of the final answer may have been written to the client.
    answer_begun: bool,
    interim: u8,
}

impl<'a> Transaction<'a> {
    /// Creates the transaction of a request whose head is at the start of this buffer. Bytes in it
    /// after the request are moved to `pipelined`.
    pub(super) fn new(
        lane: &'a Lane,
        watched: &'a Deadline,
        exchange: Exchange,
        facts: RequestFacts,
        request: Request,
        mut head_bytes: Buffer,
        pipelined: &mut Option<Buffer>,
    ) -> Self {
        let body = ((head_bytes.len() - request.head) as u64).min(facts.body);
        let used = request.head + body as usize;
        if head_bytes.len() > used {
            *pipelined = Buffer::of(&head_bytes.filled()[used..]);
            debug_assert!(pipelined.is_some(), "the bytes fit in a buffer");
            head_bytes.truncate(used);
        }
        Self {
            lane,
            watched,
            exchange,
            facts,
            request,
            head_bytes,
            upload: Upload::new(body, facts.body - body),
            end: End {
                engine: Engine::Lane,
                ..End::default()
            },
            chosen: None,
            attempts_on_this_side: 0,
            needs_a_fresh_one: false,
            something_sent: false,
            answer_begun: false,
            interim: 0,
        }
    }

    /// Serves the request.
    pub(super) async fn run<S: LaneStream>(&mut self, client: &mut ClientSide<'_, S>) -> After {
        let began = self.exchange.started();
        if self.facts.body == 0 {
            self.lane.router.sent(&mut self.exchange, began);
        }
        match self.exchange.stays_on_new() {
            Some((slot, revision)) => self.watched.conn().stay.on_new(slot, revision),
            None => self.watched.conn().stay.over(),
        }
        let mut began = Some(began);
        let after = loop {
            match self.attempt(client, began.take()).await {
                Ok(Attempt::Again) => {}
                Ok(Attempt::Answered { keeps }) => {
                    break self.after_answer(keeps, client.pipelined.is_some());
                }
                Err(failure) => break self.fail(client.stream, failure).await,
            }
        };
        self.leave();
        after
    }

    /// Removes the request from its side. A drain signal received meanwhile was meant for the
    /// request that has ended.
    fn leave(&self) {
        self.watched.conn().stay.over();
        self.watched.conn().heard();
    }

    /// Ends the transaction, whatever its result.
    pub(super) fn done(self) {
        let end = End {
            bytes_in: self.upload.read,
            ..self.end
        };
        self.lane.router.done(
            self.exchange,
            self.request.of(self.head_bytes.filled()).path_sent(),
            end,
            now,
        );
    }

    fn after_answer(&self, keeps: bool, has_more: bool) -> After {
        if keeps {
            After::Keep
        } else if self.facts.body > 0 && !self.upload.is_over() {
            After::Linger(self.lane.body_idle)
        } else if self.facts.keeps || has_more {
            After::Linger(CLOSE_TIMEOUT)
        } else {
            After::Close
        }
    }

    /// Handles a final failure of the request.
    async fn fail<S: LaneStream>(&mut self, client: &mut S, failure: Failure) -> After {
        let is_sent_away = failure.blame == Blame::Proxy && failure.kind == FailureKind::Reset;
        if is_sent_away {
            self.watched.conn().heard();
            self.lane.drains.count(Drained::Stream);
        }
        let reply = self.lane.router.failed(&mut self.exchange, failure, None);
        let is_gone = failure.blame == Blame::Client && failure.kind == FailureKind::Reset;
        if self.answer_begun || is_gone || is_sent_away {
            return After::Cut;
        }
        self.reply(client, reply).await
    }

    /// Writes one of the proxy's own answers.
    pub(super) async fn reply<S: LaneStream>(&mut self, client: &mut S, reply: Reply) -> After {
        // The request body may be unread, and the bytes that follow on this connection could be
        // mistaken for a request.
        let keeps = reply.retry_after.is_some()
            && self.facts.body == 0
            && self.facts.keeps
            && !self.lane.is_closing();
        let (body, content_type) =
            reply.body(wants_html(&self.request.of(self.head_bytes.filled())));
        let mut out = Scratch::new();
        write_reply(
            &reply,
            content_type,
            body.as_bytes(),
            keeps,
            *self.exchange.method() == Method::HEAD,
            &mut out,
        );
        self.watched.within(self.lane.write);
        if write_all(
            client,
            &out,
            self.watched,
            RelayError::ClientGone,
            RelayError::ClientSlow,
        )
        .await
        .is_err()
        {
            return After::Cut;
        }
        self.end.status = Some(reply.status.as_u16());
        self.end.bytes_out = if *self.exchange.method() == Method::HEAD {
            0
        } else {
            body.len() as u64
        };
        self.after_answer(keeps, false)
    }
}

pub(in crate::gateway) fn write_reply(
    reply: &Reply,
    content_type: &str,
    body: &[u8],
    keeps: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) {
    let mut number = itoa::Buffer::new();
    let mut add = |part: &[u8]| out.extend_from_slice(part);
    add(b"HTTP/1.1 ");
    add(reply.status.as_str().as_bytes());
    add(b" ");
    add(reply
        .status
        .canonical_reason()
        .unwrap_or("Error")
        .as_bytes());
    add(b"\r\nContent-Type: ");
    add(content_type.as_bytes());
    add(b"\r\nContent-Length: ");
    add(number.format(body.len()).as_bytes());
    add(b"\r\nCache-Control: no-store\r\n");
    if let Some(seconds) = reply.retry_after {
        add(b"Retry-After: ");
        add(number.format(seconds).as_bytes());
        add(b"\r\n");
    }
    add(b"Date: ");
    date::with(|date| add(date));
    add(if keeps {
        b"\r\n\r\n"
    } else {
        b"\r\nConnection: close\r\n\r\n"
    });
    if !head_only {
        add(body);
    }
}
