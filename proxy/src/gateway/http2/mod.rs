//! One client connection that speaks HTTP/2, with a task for each stream and one way to end all of
//! them.
//!
//! *How it ends.* Every end sends GOAWAY with the last stream that was accepted (RFC 9113, section
//! 6.8) and lets the streams in flight finish. The connection ends when the process drains, when
//! nothing has happened for `keepalive_timeout`, and when the client has sent more malformed
//! requests than allowed. Only a header block that does not end aborts the streams, because nothing
//! else can follow it.
//!
//! *Memory.* A connection holds at most [`CONNECTION_WINDOW`] bytes of request bodies that no
//! backend has taken yet, and [`SEND_BUFFER`] bytes of each answer that its client has not read.

mod frames;
mod session;

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Digest, Stream};
use pingora::proxy::HttpProxy;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use crate::clock;
use crate::gateway::adapter::timeouts::{RequestTimeouts, STEP, within};
use crate::gateway::adapter::{self, Adapter};
use crate::gateway::http2::frames::{FrameWatcher, Resets, Seen};
use crate::gateway::http2::session::StreamSession;
use crate::gateway::listener::deadlines::Deadlines;
use crate::gateway::listener::{Shutdown, attended};
use crate::gateway::message::head::Conn;
use crate::gateway::message::reply::Reply;
use crate::gateway::router::{End, Router, Sketch};
use crate::shared::drain::DrainSignal;
use crate::shared::refusals::Refusal;

/// The number of bytes of a request body that a client may send before a backend has taken any of
/// them. With a round trip of 100 ms an upload reaches 10 MB per second.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The window for all streams of a connection together, in bytes. Stalled streams leave room for
/// others.
pub const CONNECTION_WINDOW: u32 = 4 << 20;
/// The number of bytes of each answer that wait for the client to read.
pub const SEND_BUFFER: usize = 64 << 10;
/// The largest number of concurrent streams on one connection.
pub const MAX_STREAMS: u32 = 100;
/// The number of malformed streams that may be refused on one connection. More than that is no
/// mistake of the client.
const MAX_REFUSED: usize = 32;
/// The number of malformed streams from which the connection no longer waits for streams in flight.
const FAR_TOO_MANY: usize = 512;
const MALFORMED: Reply = Reply::refused(
    Refusal::Stream,
    "the request is malformed (RFC 9113, section 8.1.1)",
);
const TOO_MANY_STREAMS: Reply = Reply::refused(
    Refusal::Stream,
    "the connection has as many streams as it may have at once",
);
/// How long a client may take to notice that its connection ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves HTTP/2 connections. There is one for each kind of port.
pub struct Http2 {
    proxy: Arc<HttpProxy<Adapter>>,
    router: Arc<Router>,
    drains: DrainSignal,
    ending: Arc<Shutdown>,
    closing: watch::Receiver<bool>,
    deadlines: Arc<Deadlines>,
    options: Builder,
    header_timeout: Duration,
    keepalive_timeout: Duration,
    write_timeout: Duration,
}

type Accepted = Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>;

/// An event on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "it is looked at where it is made, and never kept"
)]
enum Event {
    Accepted(Accepted),
    /// A stream has ended.
    Drained(u32),
    /// Our side has reset a stream, with this code.
    Reset(u32, u32),
    /// The process drains: clients are told to use another connection.
    Closing,
    /// The process ends: a connection without streams has to close.
    Dismissed,
    /// The connection has been idle for as long as allowed.
    Idle,
    /// A header block has not ended in time.
    LateHead,
}

impl Http2 {
    /// Creates a server for HTTP/2 connections with these limits.
    pub fn new(
        proxy: Arc<HttpProxy<Adapter>>,
        router: Arc<Router>,
        drains: DrainSignal,
        ending: Arc<Shutdown>,
        deadlines: Arc<Deadlines>,
        listen: &cutover_config::Listen,
    ) -> Self {
        let mut options = Builder::new();
        options
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(listen.max_header_bytes).unwrap_or(u32::MAX));
        Self {
            proxy,
            router,
            drains,
            closing: ending.closing.subscribe(),
            ending,
            deadlines,
            options,
            header_timeout: listen.header_timeout,
            keepalive_timeout: listen.keepalive_timeout,
            write_timeout: listen.write_timeout,
        }
    }

    /// Serves one connection until it ends.
    pub async fn serve(self: &Arc<Self>, stream: Stream, conn: Arc<Conn>) {
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let seen = Arc::new(Seen::default());
        let (watched, resets) = FrameWatcher::new(stream, Arc::clone(&seen));
        let handshake = self.options.handshake(watched);
        let Some(Ok(h2)) = within(self.header_timeout, handshake).await else {
            return;
        };
        let live = Live {
            common: Arc::clone(self),
            conn,
            digest,
            seen,
            resets,
            h2,
            streams: JoinSet::new(),
            taken: HashSet::new(),
            is_ending: false,
            malformed: 0,
        };
        live.work().await;
    }
}

/// One open connection.
struct Live {
    common: Arc<Http2>,
    conn: Arc<Conn>,
    digest: Arc<Digest>,
    seen: Arc<Seen>,
    resets: Resets,
    h2: Connection<FrameWatcher<Stream>, Bytes>,
    /// The streams in flight. Each task returns the number of its stream.
    streams: JoinSet<u32>,
    taken: HashSet<u32>,
    /// Whether the client has been told that the connection ends.
    is_ending: bool,
    /// The number of streams that were refused because they were malformed.
    malformed: usize,
}

impl Live {
    async fn work(mut self) {
        let (mut closing, mut dismissed) = (
            self.common.closing.clone(),
            self.common.ending.dismissed.subscribe(),
        );
        let mut is_dismissed = false;
        let mut idle = pin!(sleep(self.common.keepalive_timeout));
        let mut head = pin!(HeadTimer {
            block: None,
            sleep: Box::pin(sleep(Duration::ZERO)),
            left: Duration::ZERO
        });
        loop {
            let has_none = self.streams.is_empty();
            // Received data is handled first, so that no client is considered late because the
            // process stood still.
            let event = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing), if !self.is_ending => Event::Closing,
                _ = dismissed.wait_for(|dismissed| *dismissed), if !is_dismissed => Event::Dismissed,
                accepted = self.h2.accept() => Event::Accepted(accepted),
                Some((stream, code)) = self.resets.recv() => Event::Reset(stream, code),
                Some(Ok(stream)) = self.streams.join_next(), if !has_none => Event::Drained(stream),
                () = head.late(&self.seen, self.common.header_timeout) => Event::LateHead,
                () = &mut idle, if has_none => Event::Idle,
            };
            match event {
                Event::Accepted(Some(Ok((request, respond)))) => self.take(request, respond),
                // The library has already sent GOAWAY.
                Event::Accepted(None | Some(Err(_))) => return,
                Event::Drained(stream) => drop(self.taken.remove(&stream)),
                Event::Reset(stream, code) => self.has_reset(stream, code),
                Event::Closing => self.end_gracefully(),
                Event::Dismissed => is_dismissed = true,
                Event::Idle if !self.is_ending => self.end_gracefully(),
                // The client does not read its answers, or does not respond.
                Event::Idle => return self.finish(Reason::NO_ERROR).await,
                Event::LateHead => return self.finish(Reason::ENHANCE_YOUR_CALM).await,
            }
            if self.malformed > FAR_TOO_MANY {
                return self.finish(Reason::ENHANCE_YOUR_CALM).await;
            }
            if self.malformed > MAX_REFUSED && !self.is_ending {
                self.end_gracefully();
            }
            if is_dismissed && self.streams.is_empty() && !self.h2.has_streams() {
                return self.finish(Reason::NO_ERROR).await;
            }
            if !self.streams.is_empty() {
                continue;
            }
            let limit = match (self.is_ending, self.h2.has_streams()) {
                (false, _) => self.common.keepalive_timeout,
                (true, false) => CLOSE_TIMEOUT,
                // The client has not read all of an answer.
                (true, true) => self.common.write_timeout,
            };
            idle.set(sleep(limit));
        }
    }

    /// Starts to serve a request.
    fn take(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let number = respond.stream_id().as_u32();
        self.taken.insert(number);
        let conn = Arc::new(self.conn.for_stream());
        let common = Arc::clone(&self.common);
        let target = request.uri().path();
        if *request.method() == Method::CONNECT || !(target.starts_with('/') || target == "*") {
            self.streams.spawn(async move {
                common.refuse(request, respond, &conn).await;
                number
            });
            return;
        }
        let patience = RequestTimeouts::new(Arc::clone(&conn), Arc::clone(&common.deadlines));
        let session = StreamSession::new(
            request,
            respond,
            Arc::clone(&self.seen),
            patience,
            Arc::clone(&self.digest),
        );
        let of_stream = Arc::clone(&conn);
        let serving = async move {
            let watched = Arc::clone(&common.deadlines).watch(of_stream).await;
            let session = ServerSession::new_custom(Box::new(session));
            attended(
                common.proxy.process_new_http(session, &common.closing),
                &watched,
                &common.drains,
            )
            .await;
            number
        };
        self.streams.spawn(CONN.scope(conn, serving));
    }

    /// Reports to the router a stream that the library has refused. Nothing is known of its request
    /// except that it was received.
    fn has_reset(&mut self, stream: u32, code: u32) {
        let reply = match Reason::from(code) {
            _ if self.taken.contains(&stream) => return,
            Reason::PROTOCOL_ERROR => MALFORMED,
            Reason::REFUSED_STREAM => TOO_MANY_STREAMS,
            _ => return,
        };
        let now = clock::mono();
        self.common.router.refused(
            Sketch::default(),
            &self.conn,
            &reply,
            End::default(),
            now,
            now,
        );
        // A client may open more streams than allowed before it has read how many are allowed.
        self.malformed += usize::from(reply == MALFORMED);
    }

    /// Tells the client that the connection ends. Its streams continue, including those that it
    /// began before it received the GOAWAY.
    fn end_gracefully(&mut self) {
        self.is_ending = true;
        self.h2.graceful_shutdown();
    }

    /// Ends the connection now: sends GOAWAY with the last accepted stream, and ends TLS.
    async fn finish(mut self, reason: Reason) {
        self.h2.abrupt_shutdown(reason);
        let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.h2.poll_closed(cx))).await;
    }
}

/// A timer for the end of a header block.
struct HeadTimer {
    /// The header block that `sleep` is for.
    block: Option<u64>,
    /// The timer for one step of the limit, and the remaining time after it. A standstill of the
    /// process consumes one step.
    sleep: Pin<Box<Sleep>>,
    left: Duration,
}

impl HeadTimer {
    fn next_step(&mut self) {
        let step = self.left.min(STEP);
        self.left -= step;
        self.sleep.set(sleep(step));
    }

    /// Returns when a header block has been open for `limit`. The task that polls this function
    /// also reads the bytes of the block, so it checks again whenever some were received. Cancel
    /// safe.
    async fn late(self: &mut Pin<&mut Self>, seen: &Seen, limit: Duration) {
        poll_fn(|cx| {
            let block = seen.open_block();
            if block.is_none() {
                self.block = None;
                return Poll::Pending;
            }
            if block != self.block {
                self.block = block;
                self.left = limit;
                self.next_step();
            }
            while self.sleep.as_mut().poll(cx).is_ready() {
                if self.left.is_zero() {
                    return Poll::Ready(());
                }
                self.next_step();
            }
            Poll::Pending
        })
        .await;
    }
}

impl Http2 {
    /// Answers a request that the engine must not see, because the engine would answer it by
    /// itself.
    async fn refuse(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        conn: &Conn,
    ) {
        let head = RequestHeader::from(request.into_parts().0);
        let (exchange, reply, is_html) = adapter::refusal(&self.router, &head, conn);
        let (body, content_type) = reply.body(is_html);
        let answer = Response::builder()
            .status(reply.status)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::CACHE_CONTROL, "no-store")
            .body(());
        let bytes_out = body.len() as u64;
        let mut status = None;
        if let Ok(answer) = answer
            && let Ok(mut send) = respond.send_response(answer, false)
            && pingora::protocols::http::v2::write_body(
                &mut send,
                body.into(),
                true,
                Some(self.write_timeout),
            )
            .await
            .is_ok()
        {
            status = Some(reply.status.as_u16());
        }
        let end = End {
            status,
            bytes_out,
            ..End::default()
        };
        self.router
            .done(exchange, head.uri.path(), end, clock::mono);
    }
}

tokio::task_local! {
    /// The connection of the current HTTP/2 stream. Pingora carries our data along for HTTP/1.1
    /// only.
    static CONN: Arc<Conn>;
}

/// Returns the connection that the current task serves, if the task is an HTTP/2 stream.
pub(super) fn conn_of_task() -> Option<Arc<Conn>> {
    CONN.try_with(Arc::clone).ok()
}
