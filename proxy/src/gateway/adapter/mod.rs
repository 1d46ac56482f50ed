//! Pingora's phases, translated to the router. Besides `header_case` and `tunnel`, this is the only
//! module that names pingora's request types. It decides nothing.
//!
//! Attempts are made in this order, and at most two on each side. If no connection could be made,
//! another server of the backend is tried. If a kept connection broke before the first byte, the
//! same request is sent again. Then the other side is tried, if the router says so.

mod answer;
mod attempts;
mod body;
mod context;
mod failure;
pub mod header_case;
mod heads;
mod replies;
pub mod request_stream;
pub mod timeouts;
pub mod tunnel;

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::listeners::ALPN;
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType};

use crate::clock;
use crate::gateway::adapter::context::Context;
use crate::gateway::adapter::failure::{is_unanswered, refusal_of};
use crate::gateway::adapter::header_case::is_plain;
use crate::gateway::adapter::heads::{
    OUR_HEADERS, RequestEdits, RequestHead, ResponseEdits, drop_hops, give_host,
};
use crate::gateway::adapter::timeouts::RequestTimeouts;
use crate::gateway::adapter::tunnel::Tunnel;
use crate::gateway::http2;
use crate::gateway::listener::NO_TIMER;
use crate::gateway::listener::deadlines::Deadlines;
use crate::gateway::message::head::Conn;
use crate::gateway::message::reply::Reply;
use crate::gateway::router::hold_queue::HoldQueue;
use crate::gateway::router::{ATTEMPTS_ON_A_SIDE, Blame, End, Exchange, Router, Step};
use crate::upstream::pool::has_unread;
use crate::upstream::{self, Connect};
pub(super) use replies::refusal;

/// The largest number of attempts for one request, because pingora counts them all. Each side can
/// also have one unusable kept connection, and the total includes attempts that a backend did not
/// process.
pub const MAX_ATTEMPTS: usize = 2 * (ATTEMPTS_ON_A_SIDE as usize + 1) + MAX_UNPROCESSED as usize;
/// The number of attempts that a backend may leave unprocessed before that counts as its failure.
const MAX_UNPROCESSED: u8 = 3;

/// The proxy application. There is one per process.
pub struct Adapter {
    router: Arc<Router>,
    hold_queue: HoldQueue,
    deadlines: Arc<Deadlines>,
    timeouts: ClientTimeouts,
    max_body: u64,
}

/// The limits on how long the proxy waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimeouts {
    /// How long the proxy waits for the next part of a body.
    pub body_idle: Duration,
    /// How long the proxy waits for a client that does not read.
    pub write: Duration,
}

impl Adapter {
    /// Creates an adapter to this router.
    pub fn new(
        router: Arc<Router>,
        hold_queue: HoldQueue,
        deadlines: Arc<Deadlines>,
        listen: &cutover_config::Listen,
    ) -> Self {
        let timeouts = ClientTimeouts {
            body_idle: listen.body_idle_timeout,
            write: listen.write_timeout,
        };
        Self {
            router,
            hold_queue,
            deadlines,
            timeouts,
            max_body: listen.max_body,
        }
    }
}

#[async_trait]
impl ProxyHttp for Adapter {
    // The context is boxed because pingora moves it along with the future of the request, which is
    // copied as a whole.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Self::CTX {
        Box::default()
    }

    /// No modules are installed: the default installs a compression context for each request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        _: &mut Session,
        context: &mut Box<Context>,
        conn: Box<dyn Any + Send + Sync>,
    ) {
        context.conn = conn.downcast::<Arc<Conn>>().ok().map(|conn| *conn);
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        context: &mut Box<Context>,
    ) -> Result<bool> {
        let Some(conn) = context.conn.clone().or_else(http2::conn_of_task) else {
            return Error::e_explain(ErrorType::InternalError, "the listener gave no connection");
        };
        context.conn = Some(Arc::clone(&conn));
        context.patience = Some(RequestTimeouts::new(
            Arc::clone(&conn),
            Arc::clone(&self.deadlines),
        ));
        context.router = Some(Arc::clone(&self.router));
        context.path = session.req_header().uri.path().into();
        if conn.warms.is_some() {
            return Ok(false);
        }
        conn.head_came();
        if session.get_keepalive().is_some() {
            session.set_keepalive(NO_TIMER);
        }
        let is_bodiless = session.is_body_empty();
        context.is_call = tunnel::is_grpc(&session.req_header().headers);
        if !is_bodiless && !context.is_call {
            session.set_read_timeout(Some(self.timeouts.body_idle));
        }
        session.set_write_timeout(Some(self.timeouts.write));
        session.set_total_drain_timeout(Some(self.timeouts.body_idle));
        let raw = session
            .as_downstream()
            .as_http1()
            .map(HttpSession::get_headers_raw_bytes)
            .unwrap_or_default();
        let mut now = clock::mono();
        let (mut exchange, mut step) = self.router.request(
            &RequestHead {
                head: session.req_header(),
                raw: &raw,
            },
            &conn,
            now,
        );
        while let Step::Hold(_) = step {
            let socket = session
                .digest()
                .and_then(|digest| digest.socket_digest.clone());
            let tcp_state = || Some(socket.as_ref()?.tcp_info()?.tcpi_state);
            (exchange, step) = self
                .hold_queue
                .hold(
                    &self.router,
                    exchange,
                    &RequestHead {
                        head: session.req_header(),
                        raw: &raw,
                    },
                    &conn,
                    tcp_state,
                )
                .await;
            now = clock::mono();
        }
        if is_bodiless {
            self.router.sent(&mut exchange, now);
        } else if !context.is_call {
            // Traffic that flows both ways may be idle: gRPC streams, and tunnels, which begin
            // without a body.
            context.is_paced = true;
        }
        match exchange.stays_on_new().filter(|_| step == Step::Forward) {
            Some((slot, revision)) => conn.stay.on_new(slot, revision),
            None => conn.stay.over(),
        }
        context.began = Some(now);
        context.exchange = Some(exchange);
        match step {
            Step::Forward => Ok(false),
            Step::Reply(reply) | Step::Hold(reply) => {
                self.reply(session, reply).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Box<Context>,
    ) -> Result<Box<HttpPeer>> {
        if let Some(server) = context.conn.as_ref().and_then(|conn| conn.warms.as_ref()) {
            return Ok(Box::new(server.peer().clone()));
        }
        let (backend, now) = (
            context.exchange.as_ref().map(Exchange::backend),
            context.began.take().unwrap_or_else(clock::mono),
        );
        // A second attempt goes to a different server than the first, if there is one.
        let tried = context.end.server.filter(|_| !context.was_stale);
        let chosen = backend.and_then(|backend| {
            backend
                .choose(tried, now)
                .or_else(|| backend.choose(None, now))
        });
        let Some(chosen) = chosen else {
            return Err(Error::create(
                ErrorType::ConnectError,
                ErrorSource::Upstream,
                Some("there is no server to send to".into()),
                None,
            ));
        };
        let mut peer = Box::new(chosen.server().peer_for_attempt());
        // The deadlines of `patience` are shorter. This one is for an engine that does not listen
        // to the client.
        peer.options.read_timeout = backend.map(|backend| backend.settings().longest_wait() * 2);
        peer.options.write_timeout = peer.options.read_timeout;
        if context.was_stale || context.unprocessed > 0 {
            upstream::make_fresh(&mut peer);
        }
        if context.exchange.as_ref().is_some_and(Exchange::may_last) {
            let idle = backend.map_or(Duration::MAX, |backend| {
                backend.settings().stream_idle_timeout
            });
            context.tunnel = Tunnel::asked_for(session.req_header(), &mut peer, idle);
            if let Some(conn) = &context.conn {
                conn.tunnel.store(context.tunnel.clone());
            }
        }
        context.attempt(&self.router, chosen, now);
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        socket: RawFd,
        digest: Option<&Digest>,
        context: &mut Box<Context>,
    ) -> Result<()> {
        // Messages below TLS, and those within HTTP/2, may have a framing of their own.
        let is_plain = digest.is_some_and(|digest| digest.ssl_digest.is_none())
            && peer.options.alpn == ALPN::H1;
        context.was_stale = reused && is_plain && has_unread(socket);
        if let Some(conn) = &context.conn {
            conn.set_upstream(if peer.options.alpn == ALPN::H1 {
                socket
            } else {
                -1
            });
        }
        if !context.was_stale {
            context.connected(if reused {
                Connect::Reused
            } else {
                Connect::New
            });
        }
        let error = || {
            Error::explain(
                ErrorType::ConnectionClosed,
                "the kept connection was closed or held unexpected bytes",
            )
            .into_up()
        };
        if context.was_stale {
            Err(error())
        } else {
            Ok(())
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        context.something_sent = true;
        let (Some(exchange), Some(conn)) = (&context.exchange, &context.conn) else {
            return Ok(());
        };
        give_host(upstream, context.chosen.as_ref())?;
        let head = RequestHead::of(session);
        if context.is_call {
            let limit = tunnel::patience_of_call(&session.req_header().headers)
                .unwrap_or(exchange.backend().settings().stream_idle_timeout);
            context.await_answer(limit);
            if upstream.version == Version::HTTP_2 {
                // The engine has removed it as a hop-by-hop field. gRPC servers may insist on it.
                upstream.insert_header(http::header::TE, "trailers")?;
            }
        } else if exchange.is_sent() {
            context.await_answer(exchange.backend().settings().response_timeout);
        }
        if is_plain(upstream) {
            let mut parts = http::request::Parts::from(std::mem::replace(
                upstream,
                RequestHeader::from(http::Request::new(()).into_parts().0),
            ));
            parts.headers.reserve(OUR_HEADERS);
            self.router.edits(exchange, &head, conn, &mut parts.headers);
            *upstream = RequestHeader::from(parts);
            return Ok(());
        }
        let mut edits = RequestEdits {
            head: upstream,
            failed: None,
        };
        self.router.edits(exchange, &head, conn, &mut edits);
        edits.failed.map_or(Ok(()), Err)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<Context>,
    ) -> Result<()> {
        self.body_part(session, body, end_of_stream, context)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        self.answer_head(session, response, context)
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<Context>,
    ) -> Result<Option<Duration>> {
        if end_of_stream {
            context.answer_ended();
        } else {
            context.answer_moved();
        }
        Ok(None)
    }

    fn upstream_response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        context: &mut Box<Context>,
    ) -> Result<()> {
        if let (true, Some(exchange), Some(code)) = (
            context.is_grpc,
            &mut context.exchange,
            trailers.get("grpc-status"),
        ) {
            self.router.grpc_status(exchange, code.as_bytes());
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        let Some(exchange) = context
            .exchange
            .as_ref()
            .filter(|_| !response.status.is_informational())
        else {
            return Ok(());
        };
        if !exchange.is_sent() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            // The backend may take no more of the upload, and the rest of it cannot be told apart
            // from the next request.
            session.set_keepalive(None);
        }
        if session.req_header().version < Version::HTTP_11 {
            // A client that does not understand chunks gets the body until the end of the
            // connection.
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        if response.status != StatusCode::SWITCHING_PROTOCOLS {
            drop_hops(response);
        }
        let mut edits = ResponseEdits {
            head: response,
            failed: None,
        };
        self.router.client_edits(exchange, &mut edits);
        edits.failed.map_or(Ok(()), Err)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        context: &mut Box<Context>,
        error: Box<Error>,
    ) -> Box<Error> {
        self.after_no_connection(session, context, error)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Box<Context>,
        reused: bool,
    ) -> Box<Error> {
        self.after_an_attempt(session, context, error, reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Box<Context>,
    ) -> FailToProxy {
        let mut failure = context.failure_of(error);
        context.answer_ended();
        // The backend cannot answer a request that it has not fully received. A client that uploads
        // slowly ran into its own timeout, and the backend did not.
        if context
            .tunnel
            .as_ref()
            .is_some_and(|tunnel| tunnel.is_drained())
        {
            // A tunnel that the proxy ended is attributed to neither side.
            failure.blame = Blame::Proxy;
        } else if context.is_not_processed {
            failure.blame = Blame::Proxy;
        } else if !context.is_late
            && *error.etype() == ErrorType::ReadTimedout
            && context
                .exchange
                .as_ref()
                .is_some_and(|exchange| !exchange.is_sent())
        {
            failure.blame = Blame::Client;
        }
        let reply = match &mut context.exchange {
            Some(exchange) if context.is_not_processed => {
                self.router
                    .failed(exchange, failure, Some(Reply::NOT_PROCESSED))
            }
            Some(exchange) => self.router.failed(exchange, failure, refusal_of(error)),
            None => Reply::INTERNAL,
        };
        let client_is_gone = failure.blame == Blame::Client
            && reply.refusal.is_none()
            && matches!(
                error.etype(),
                ErrorType::WriteError
                    | ErrorType::ReadError
                    | ErrorType::ConnectionClosed
                    | ErrorType::WriteTimedout
            );
        let may_answer = is_unanswered(session) && !session.was_upgraded() && !client_is_gone;
        let mut error_code = 0;
        if may_answer {
            // A client that has disconnected meanwhile needs no answer.
            error_code = self
                .reply(session, reply)
                .await
                .map_or(0, |()| reply.status.as_u16());
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    /// Failures are counted and written to the access log. An outage must not cause a flood of
    /// error lines.
    fn suppress_error_log(&self, _: &Session, _: &Box<Context>, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Box<Context>,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        context: &mut Box<Context>,
    ) {
        let Some(exchange) = context.exchange.take() else {
            return;
        };
        if let Some(conn) = context.conn.as_ref().filter(|_| {
            error.is_none()
                && context.tunnel.is_none()
                && exchange.is_sent()
                && session.get_keepalive().is_some()
        }) {
            conn.answered_whole();
        }
        let status = session
            .response_written()
            .map(|response| response.status.as_u16());
        let (bytes_in, bytes_out) = (
            session.body_bytes_read() as u64,
            session.body_bytes_sent() as u64,
        );
        self.router.done(
            exchange,
            session.req_header().uri.path(),
            End {
                status,
                bytes_in,
                bytes_out,
                ..context.end
            },
            clock::mono,
        );
        if let Some(conn) = &context.conn {
            conn.stay.over();
            context.answer_ended();
            if context.tunnel.is_some() {
                conn.tunnel.store(None);
            }
        }
    }
}
