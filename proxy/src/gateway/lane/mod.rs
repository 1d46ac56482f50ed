//! The fast lane: plain HTTP/1.1, moved as the bytes that came.
//!
//! ```text
//! serve: wait for a head (no buffer while nothing comes) -> with_head: parse, look, decide            one pass over the bytes of the thread's buffer
//!          |- not plain, or not to be answered at once: Declined, with every byte that was read -> the proxy engine, for one request
//!          '- Transaction: a server -> a kept or new connection -> head and body up -> the answer's head -> its body down
//! ```
//!
//! Decisions, evidence, failover, headers of ours and log lines are the [`Router`]'s, as for the
//! other engine; deadlines are the [`Deadlines`](crate::gateway::listener::deadlines)'s. Here is only what moves bytes:
//! which requests are plain (`request`), where a body ends (`framing`), heads made of the lines
//! that came (`lines`, `response`), bodies with one buffer each way (`relay`), and the order of it
//! all (`transaction`).
//!
//! No allocation, no timer, no task and no channel for a request: buffers are lent by the thread
//! and returned whenever something has to be waited for.
//!
//! Deliberately absent: chunked requests, upgrades, `Expect`, whatever lasts, TLS and HTTP/2 to
//! backends, HTTP/1.0, requests that maintenance holds. The proxy engine has all of these.
//!
//! Beside what it gives up, it costs about half of the proxy engine's CPU for a request:
//! `docs/PERFORMANCE.md`.

pub(in crate::gateway) mod body_decoder;
pub(in crate::gateway) mod body_relay;
pub(in crate::gateway) mod date;
pub mod fuzz_api;
mod header_lines;
pub mod min_rate;
pub mod prewarm;
pub mod read_buffer;
mod request;
mod response;
pub(in crate::gateway) mod transaction;
pub mod write_buffer;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::clock;
use crate::gateway::lane::body_relay::ClientSide;
pub use crate::gateway::lane::prewarm::warm;
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::lane::request::{Parsed, Request, RequestFacts};
use crate::gateway::lane::transaction::{After, Transaction};
use crate::gateway::listener::deadlines::Deadline;
use crate::gateway::message::reply::Reply;
use crate::gateway::router::{Exchange, Router, Step};
use crate::shared::connections::{Connections, Declined};
use crate::shared::drain::DrainSignal;

/// Bytes of the largest head that the lane takes.
pub const LARGEST_HEAD: usize = Size::LargeHead.bytes();

/// How long a client may go on sending after its last answer, when it did not say that it would
/// close.
pub(in crate::gateway) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the lane can serve a client on.
pub trait LaneStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> LaneStream for T {}

/// The lane. One per process.
#[derive(Debug)]
pub struct Lane {
    router: Arc<Router>,
    drains: DrainSignal,
    connections: Arc<Connections>,
    closing: watch::Receiver<bool>,
    header: Duration,
    keepalive: Duration,
    body_idle: Duration,
    write: Duration,
}

/// How the lane is done with a connection.
#[derive(Debug)]
pub enum Exit {
    /// It is over.
    Closed,
    /// The next request is not the lane's. Here is every byte that was read of it.
    Declined(Buffer),
}

/// What is known of a request that the lane takes: where it goes, or what we answer.
type Decided = (Exchange, RequestFacts, Request, Option<Reply>);

impl Lane {
    /// A lane to this router. From `closing` on clients are told to come on another connection.
    pub fn new(
        router: Arc<Router>,
        drains: DrainSignal,
        connections: Arc<Connections>,
        closing: watch::Receiver<bool>,
        listen: &cutover_config::Listen,
    ) -> Self {
        Self {
            router,
            drains,
            connections,
            closing,
            header: listen.header_timeout,
            keepalive: listen.keepalive_timeout,
            body_idle: listen.body_idle_timeout,
            write: listen.write_timeout,
        }
    }

    fn is_closing(&self) -> bool {
        // It turns true once. To look at the value would take a lock.
        self.closing.has_changed().unwrap_or(true)
    }

    /// Serves a client as far as its requests are plain. What the deadlines has been told last holds
    /// for the first byte of the first request, and if `is_first` for its whole head.
    /// `ahead` is what the client has said before its turn.
    pub async fn serve<S: LaneStream>(
        &self,
        client: &mut S,
        watched: &Deadline,
        mut is_first: bool,
        mut pipelined: Option<Buffer>,
    ) -> Exit {
        loop {
            let mut head_bytes = match pipelined.take() {
                Some(buffer) => buffer,
                None => match begins(client, watched).await {
                    Some(buffer) => buffer,
                    None => return Exit::Closed,
                },
            };
            if !std::mem::take(&mut is_first) {
                watched.within(self.header);
            }
            let (mut transaction, refusal) = loop {
                match self.look(head_bytes.filled(), watched) {
                    Parsed::Partial => {}
                    Parsed::Declined(why) => {
                        self.connections.declines().add(why);
                        return Exit::Declined(head_bytes);
                    }
                    Parsed::Whole((exchange, facts, request, refusal)) => {
                        break (
                            Transaction::new(
                                self,
                                watched,
                                exchange,
                                facts,
                                request,
                                head_bytes,
                                &mut pipelined,
                            ),
                            refusal,
                        );
                    }
                }
                if head_bytes.is_full() {
                    head_bytes = head_bytes.moved_to(Size::LargeHead);
                }
                if !fills(client, &mut head_bytes, watched).await {
                    return Exit::Closed;
                }
            };
            let after = match refusal {
                None => {
                    transaction
                        .run(&mut ClientSide {
                            stream: &mut *client,
                            pipelined: &mut pipelined,
                        })
                        .await
                }
                Some(reply) => transaction.reply(client, reply).await,
            };
            transaction.done();
            match after {
                After::Keep => watched.within(self.keepalive),
                After::Close => {
                    // Below TLS there is nothing to say that the end of the connection does not.
                    if watched.conn().tls {
                        end(client, watched, CLOSE_TIMEOUT).await;
                    }
                    return Exit::Closed;
                }
                After::Linger(most) => {
                    linger(client, watched, most).await;
                    return Exit::Closed;
                }
                After::Cut => return Exit::Closed,
            }
        }
    }

    /// Parses and decides, in one go.
    fn look(&self, bytes: &[u8], watched: &Deadline) -> Parsed<Decided> {
        let request = match request::parse(bytes) {
            Parsed::Whole(request) => request,
            Parsed::Partial => return Parsed::Partial,
            Parsed::Declined(why) => return Parsed::Declined(why),
        };
        let head = request.of(bytes);
        let look = self.router.look(&head);
        let facts = match head.facts(&look.fields) {
            Ok(facts) => facts,
            Err(why) => return Parsed::Declined(why),
        };
        let (mut exchange, step) = self
            .router
            .decide(look, &head, watched.conn(), clock::mono());
        match step {
            Step::Forward if !exchange.is_plain() => Parsed::Declined(Declined::Backend),
            Step::Forward => {
                self.router.begin(&mut exchange);
                Parsed::Whole((exchange, facts, request, None))
            }
            Step::Hold(_) => Parsed::Declined(Declined::Held),
            Step::Reply(reply) => Parsed::Whole((exchange, facts, request, Some(reply))),
        }
    }
}

/// Waits for the first bytes of a request. `None` when there will be none, or the wait was ended.
pub async fn begins<S: AsyncRead + Unpin>(client: &mut S, watched: &Deadline) -> Option<Buffer> {
    poll_fn(|cx| {
        let mut buffer = Buffer::new(Size::Head);
        match buffer.poll_fill(client, usize::MAX, cx) {
            // A request that is there is never dropped.
            Poll::Ready(Ok(read)) if read > 0 => Poll::Ready(Some(buffer)),
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending if watched.alarm().is_some() || watched.is_dismissed() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Waits for more bytes of a head. Says whether some came.
pub async fn fills<S: AsyncRead + Unpin>(
    client: &mut S,
    buffer: &mut Buffer,
    watched: &Deadline,
) -> bool {
    poll_fn(|cx| match buffer.poll_fill(client, usize::MAX, cx) {
        Poll::Ready(read) => Poll::Ready(read.is_ok_and(|read| read > 0)),
        Poll::Pending if watched.alarm().is_some() => Poll::Ready(false),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Ends our side, within this time.
async fn end<S: LaneStream>(client: &mut S, watched: &Deadline, most: Duration) {
    watched.within(most);
    let _ = poll_fn(|cx| match Pin::new(&mut *client).poll_shutdown(cx) {
        Poll::Pending if watched.alarm().is_some() => Poll::Ready(Ok(())),
        polled => polled,
    })
    .await;
}

/// Ends our side, and reads what the client still sends for a while: a connection that is closed
/// with bytes unread is reset, and the client may lose its answer.
pub async fn linger<S: LaneStream>(client: &mut S, watched: &Deadline, most: Duration) {
    end(client, watched, most).await;
    let _ = poll_fn(|cx| {
        loop {
            let mut buffer = Buffer::new(Size::Head);
            match buffer.poll_fill(client, usize::MAX, cx) {
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if watched.alarm().is_some() => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
