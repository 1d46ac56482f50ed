//! The fast lane: plain HTTP/1.1, forwarded as the bytes that were received.
//!
//! 1. `serve` waits for a head, without a buffer while the connection is idle. It parses and checks
//!    the head in one pass over the bytes of the thread's buffer, and asks the [`Router`].
//! 2. A request that is not plain, or cannot be answered at once, is `Declined`. The proxy engine
//!    gets it with every byte that was read, for this one request.
//! 3. A `Transaction` chooses a server, uses a kept or a new connection, sends head and body,
//!    receives the head of the answer and relays its body.
//!
//! Decisions, evidence, failover, our own headers and log lines belong to the [`Router`], as for
//! the other engine. Deadlines belong to [`Deadlines`](crate::gateway::listener::deadlines). This
//! module only moves bytes. It contains which requests are plain (`request`), where a body ends
//! (`body_decoder`), heads built from the received lines (`header_lines`, `response`), bodies with
//! one buffer each way (`body_relay`), and the order of all this (`transaction`).
//!
//! A request needs no allocation, no timer, no task and no channel. Buffers are lent by the thread
//! and returned whenever the lane has to wait.
//!
//! Deliberately absent: chunked requests, upgrades, `Expect`, long-lived exchanges, TLS and HTTP/2
//! to backends, HTTP/1.0, requests that maintenance holds. The proxy engine has all of these.
//!
//! It costs about half of the proxy engine's CPU per request: see `docs/PERFORMANCE.md`.

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

/// The size in bytes of the largest head that the lane takes.
pub const LARGEST_HEAD: usize = Size::LargeHead.bytes();

/// How long a client may continue to send after its last answer, if it did not announce that it
/// would close.
pub(in crate::gateway) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream on which the lane can serve a client.
pub trait LaneStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> LaneStream for T {}

/// The lane. There is one per process.
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

/// The way in which the lane finished with a connection.
#[derive(Debug)]
pub enum Exit {
    /// The connection is finished.
    Closed,
    /// The next request is not for the lane. The buffer holds every byte that was read of it.
    Declined(Buffer),
}

/// The decision about a request that the lane takes: its destination, or our own answer.
type Decided = (Exchange, RequestFacts, Request, Option<Reply>);

impl Lane {
    /// Creates a lane to this router. Once `closing` is set, clients are told to use another
    /// connection.
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
        // It turns true once. Reading the value would take a lock.
        self.closing.has_changed().unwrap_or(true)
    }

    /// Serves a client as long as its requests are plain. The deadline that was set last applies to
    /// the first byte of the first request, and to its whole head if `is_first`. `pipelined` holds
    /// the bytes that the client sent before the lane took over.
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
                    // Below TLS, no message is needed beyond the end of the connection.
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

    /// Parses a request and decides about it in one step.
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

/// Waits for the first bytes of a request. `None` when no request follows, or the wait was ended.
pub async fn begins<S: AsyncRead + Unpin>(client: &mut S, watched: &Deadline) -> Option<Buffer> {
    poll_fn(|cx| {
        let mut buffer = Buffer::new(Size::Head);
        match buffer.poll_fill(client, usize::MAX, cx) {
            // A request that has arrived is never dropped.
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

/// Waits for more bytes of a head. Returns whether some were received.
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

/// Ends our side of the connection within this time.
async fn end<S: LaneStream>(client: &mut S, watched: &Deadline, most: Duration) {
    watched.within(most);
    let _ = poll_fn(|cx| match Pin::new(&mut *client).poll_shutdown(cx) {
        Poll::Pending if watched.alarm().is_some() => Poll::Ready(Ok(())),
        polled => polled,
    })
    .await;
}

/// Ends our side, and for a while reads what the client still sends. A connection that is closed
/// with unread bytes is reset, and the client may lose its answer.
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
