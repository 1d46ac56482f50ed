//! Pingora's phases, translated to the gate. With `spelling` and `tunnel` the only room that names pingora's request types; it decides nothing.
//!
//! Attempts, in this order and at most two on a side: another server of the backend when a connection could not be made; the same request once more when a kept connection broke
//! before the first byte; then the other side, if the gate says so.

mod context;
mod failure;
mod heads;

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::listeners::ALPN;
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType};

use super::door::{self, NO_TIMER};
use super::gate::{ATTEMPTS_ON_A_SIDE, Answer, Blame, End, Exchange, Gate, MAX_INTERIM, Sent, Step, is_safe};
use super::head::Conn;
use super::parking::Parking;
use super::reply::{Reply, wants_html};
use super::spelling::is_plain;
use super::tunnel::{self, Tunnel};
use crate::clock;
use crate::pool::has_unread;
use crate::upstream::{self, Connect};
use context::Context;
use failure::{can_repeat, failure_of, is_unanswered};
use heads::{OUR_HEADERS, RequestEdits, RequestHead, ResponseEdits, drop_hops};

/// Attempts for one request: pingora counts them all, and on each side a kept connection that was of no use.
pub const MAX_ATTEMPTS: usize = 2 * (ATTEMPTS_ON_A_SIDE as usize + 1);

/// The proxy application. One per process.
pub struct Adapter {
    gate: Arc<Gate>,
    parking: Parking,
    timeouts: ClientTimeouts,
    max_body: u64,
}

/// How long we wait for a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimeouts {
    /// For the next part of a body.
    pub body_idle: Duration,
    /// For a client that does not read.
    pub write: Duration,
}

impl Adapter {
    /// An adapter to this gate.
    pub fn new(gate: Arc<Gate>, parking: Parking, listen: &cutover_config::Listen) -> Self {
        let timeouts = ClientTimeouts { body_idle: listen.body_idle_timeout, write: listen.write_timeout };
        Self { gate, parking, timeouts, max_body: listen.max_body }
    }

    async fn reply(&self, session: &mut Session, reply: Reply) -> Result<()> {
        let (body, content_type) = reply.body(wants_html(&RequestHead::of(session)));
        let head_only = session.req_header().method == Method::HEAD;
        let mut response = ResponseHeader::build(reply.status, Some(4))?;
        response.insert_header(http::header::CONTENT_TYPE, content_type)?;
        response.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        if let Some(seconds) = reply.retry_after {
            response.insert_header(http::header::RETRY_AFTER, seconds)?;
        }
        // The request body may not have been read: what follows on this connection could be mistaken for a request.
        let keepalive = if reply.retry_after.is_some() && session.is_body_empty() { session.get_keepalive() } else { None };
        session.set_keepalive(keepalive);
        session.write_response_header(Box::new(response), head_only).await?;
        if !head_only {
            session.write_response_body(Some(Bytes::from(body)), true).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ProxyHttp for Adapter {
    // Boxed, because pingora moves it along with the future of the request, which is copied as a whole.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Self::CTX {
        Box::default()
    }

    /// No modules: the default installs a compression context for each request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn on_connection_reuse(&self, _: &mut Session, context: &mut Box<Context>, conn: Box<dyn Any + Send + Sync>) {
        context.conn = conn.downcast::<Arc<Conn>>().ok().map(|conn| *conn);
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Box<Context>) -> Result<bool> {
        let Some(conn) = context.conn.clone().or_else(door::conn_of_task) else { return Error::e_explain(ErrorType::InternalError, "the door gave no connection") };
        context.conn = Some(Arc::clone(&conn));
        if conn.warms.is_some() {
            return Ok(false);
        }
        conn.head_came();
        if session.get_keepalive().is_some() {
            session.set_keepalive(NO_TIMER);
        }
        let is_bodiless = session.is_body_empty();
        if !is_bodiless {
            session.set_read_timeout(Some(self.timeouts.body_idle));
        }
        session.set_write_timeout(Some(self.timeouts.write));
        session.set_total_drain_timeout(Some(self.timeouts.body_idle));
        let raw = session.as_downstream().as_http1().map(HttpSession::get_headers_raw_bytes).unwrap_or_default();
        let mut now = clock::mono();
        let (mut exchange, mut step) = self.gate.request(&RequestHead { head: session.req_header(), raw: &raw }, &conn, now);
        while let Step::Hold(_) = step {
            let socket = session.digest().and_then(|digest| digest.socket_digest.clone());
            let tcp_state = || Some(socket.as_ref()?.tcp_info()?.tcpi_state);
            (exchange, step) = self.parking.hold(&self.gate, exchange, &RequestHead { head: session.req_header(), raw: &raw }, &conn, tcp_state).await;
            now = clock::mono();
        }
        if is_bodiless {
            self.gate.sent(&mut exchange, now);
        } else if !tunnel::is_grpc(&session.req_header().headers) {
            // What flows both ways may rest: streams of gRPC, and tunnels, which begin without a body.
            context.is_paced = true;
            conn.body_moved(now);
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

    async fn upstream_peer(&self, session: &mut Session, context: &mut Box<Context>) -> Result<Box<HttpPeer>> {
        if let Some(server) = context.conn.as_ref().and_then(|conn| conn.warms.as_ref()) {
            return Ok(Box::new(server.peer().clone()));
        }
        let (backend, now) = (context.exchange.as_ref().map(Exchange::backend), context.began.take().unwrap_or_else(clock::mono));
        // A second attempt goes to another server than the first, where there is one.
        let tried = context.end.server.filter(|_| !context.was_stale);
        let chosen = backend.and_then(|backend| backend.choose(tried, now).or_else(|| backend.choose(None, now)));
        let Some(chosen) = chosen else {
            return Err(Error::create(ErrorType::ConnectError, ErrorSource::Upstream, Some("there is no server to send to".into()), None));
        };
        let mut peer = Box::new(chosen.server().peer().clone());
        if context.was_stale {
            upstream::make_fresh(&mut peer);
        }
        if context.exchange.as_ref().is_some_and(Exchange::may_last) {
            context.tunnel = Tunnel::asked_for(session.req_header(), &mut peer);
            if let Some(conn) = &context.conn {
                conn.tunnel.store(context.tunnel.clone());
            }
        }
        context.attempt(&self.gate, chosen, now);
        Ok(peer)
    }

    async fn connected_to_upstream(&self, _: &mut Session, reused: bool, peer: &HttpPeer, socket: RawFd, digest: Option<&Digest>, context: &mut Box<Context>) -> Result<()> {
        // Below TLS and in HTTP/2 there may be messages of their own.
        let is_plain = digest.is_some_and(|digest| digest.ssl_digest.is_none()) && peer.options.alpn == ALPN::H1;
        context.was_stale = reused && is_plain && has_unread(socket);
        if !context.was_stale {
            context.connected(if reused { Connect::Reused } else { Connect::New });
        }
        let error = || Error::explain(ErrorType::ConnectionClosed, "the kept connection had ended or held bytes nobody asked for").into_up();
        if context.was_stale { Err(error()) } else { Ok(()) }
    }

    async fn upstream_request_filter(&self, session: &mut Session, upstream: &mut RequestHeader, context: &mut Box<Context>) -> Result<()> {
        context.something_sent = true;
        let (Some(exchange), Some(conn)) = (&context.exchange, &context.conn) else { return Ok(()) };
        let head = RequestHead::of(session);
        if is_plain(upstream) {
            let mut parts = http::request::Parts::from(std::mem::replace(upstream, RequestHeader::from(http::Request::new(()).into_parts().0)));
            parts.headers.reserve(OUR_HEADERS);
            self.gate.edits(exchange, &head, conn, &mut parts.headers);
            *upstream = RequestHeader::from(parts);
            return Ok(());
        }
        let mut edits = RequestEdits { head: upstream, failed: None };
        self.gate.edits(exchange, &head, conn, &mut edits);
        edits.failed.map_or(Ok(()), Err)
    }

    async fn request_body_filter(&self, session: &mut Session, body: &mut Option<Bytes>, end_of_stream: bool, context: &mut Box<Context>) -> Result<()> {
        context.body_bytes += body.as_ref().map_or(0, |body| body.len() as u64);
        if let Some(conn) = context.conn.as_ref().filter(|_| context.is_paced && !end_of_stream) {
            let now = clock::mono();
            conn.body_moved(now);
            if !context.pace.is_kept(context.body_bytes, now) {
                return Err(Error::explain(ErrorType::ReadTimedout, "the body comes with less than 100 bytes a second").into_down());
            }
        }
        if context.body_bytes > self.max_body && !session.was_upgraded() {
            // As the client's error, so that it ends this request as a 413 and not as the backend's failure.
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the request body is larger than max_body").into_down());
        }
        if end_of_stream {
            if let Some(conn) = &context.conn {
                conn.body_ended();
            }
            // An empty last part would end a chunked body twice, and the second end would stand before the next request on that connection (cloudflare/pingora#935).
            body.take_if(|body| body.is_empty());
            if let Some(exchange) = context.exchange.as_mut().filter(|exchange| !exchange.is_sent()) {
                self.gate.sent(exchange, clock::mono());
            }
        }
        Ok(())
    }

    async fn upstream_response_filter(&self, session: &mut Session, response: &mut ResponseHeader, context: &mut Box<Context>) -> Result<()> {
        // A backend that speaks HTTP/1.0 is no reason to speak it to the client.
        response.set_version(Version::HTTP_11);
        if context.tunnel.is_some() && response.status == StatusCode::SWITCHING_PROTOCOLS {
            session.set_read_timeout(Some(tunnel::IDLE));
            if let Some(exchange) = &mut context.exchange {
                self.gate.is_a_websocket(exchange);
            }
        } else if response.status.is_informational() {
            context.interim = context.interim.saturating_add(1);
            if context.interim > MAX_INTERIM || response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "too many interim answers, or a switch of protocols that nobody asked for").into_up());
            }
            return Ok(());
        }
        if let Some(chosen) = &context.chosen {
            chosen.server().answered();
        }
        if let Some(tunnel) = &context.tunnel {
            tunnel.open();
        }
        if let Some(exchange) = &mut context.exchange {
            let can_repeat = can_repeat(session);
            if self.gate.answered(exchange, response.status.as_u16(), session.req_header().uri.path(), can_repeat, clock::mono()) == Answer::AskOtherSide {
                context.turn_to_the_other_side();
                context.asks_other_side = true;
                let mut error = Error::create(ErrorType::HTTPStatus(response.status.as_u16()), ErrorSource::Upstream, None, None);
                error.set_retry(true);
                return Err(error);
            }
            context.is_grpc = exchange.may_last() && tunnel::is_grpc(&response.headers);
            if let (true, Some(code)) = (context.is_grpc, response.headers.get("grpc-status")) {
                self.gate.grpc_status(exchange, code.as_bytes());
            }
        }
        context.answer_begun = true;
        Ok(())
    }

    fn upstream_response_trailer_filter(&self, _: &mut Session, trailers: &mut HeaderMap, context: &mut Box<Context>) -> Result<()> {
        if let (true, Some(exchange), Some(code)) = (context.is_grpc, &mut context.exchange, trailers.get("grpc-status")) {
            self.gate.grpc_status(exchange, code.as_bytes());
        }
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, context: &mut Box<Context>) -> Result<()> {
        let Some(exchange) = context.exchange.as_ref().filter(|_| !response.status.is_informational()) else { return Ok(()) };
        if session.req_header().version < Version::HTTP_11 {
            // Who does not know chunks gets the body until the end of the connection.
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        if session.as_downstream().as_http1().is_some() {
            drop_hops(response);
        }
        let mut edits = ResponseEdits { head: response, failed: None };
        self.gate.client_edits(exchange, &mut edits);
        edits.failed.map_or(Ok(()), Err)
    }

    fn fail_to_connect(&self, session: &mut Session, _: &HttpPeer, context: &mut Box<Context>, mut error: Box<Error>) -> Box<Error> {
        let failure = failure_of(&error, false);
        let is_backends = failure.blame == Blame::Backend;
        if is_backends {
            context.server_failed();
        }
        if is_backends && error.etype() != &ErrorType::ConnectionClosed {
            context.connected(Connect::Failed);
        }
        context.attempt_failed(&self.gate, failure);
        let Some(exchange) = &mut context.exchange else { return error };
        let another = is_backends && exchange.backend().servers().len() > 1 && context.attempts_on_this_side < ATTEMPTS_ON_A_SIDE;
        let sent = match context.something_sent {
            false => Sent::Nothing,
            true if can_repeat(session) => Sent::Repeatable,
            true => Sent::Gone,
        };
        let rescued = !another && self.gate.rescue(exchange, failure, session.req_header().uri.path(), sent, clock::mono());
        if rescued {
            context.turn_to_the_other_side();
        }
        error.set_retry(another || rescued);
        error
    }

    /// A kept connection that closed before the first byte of the answer: the backend may or may not have begun, so only a method that changes nothing is sent once more, and only
    /// while its body is still whole in the buffer. Pingora's own policy would repeat PUT and DELETE, too.
    fn error_while_proxy(&self, _: &HttpPeer, session: &mut Session, mut error: Box<Error>, context: &mut Box<Context>, reused: bool) -> Box<Error> {
        if std::mem::take(&mut context.asks_other_side) || context.was_stale {
            error.set_retry(true);
            return error;
        }
        let may_repeat = is_safe(&session.req_header().method) && !context.answer_begun && can_repeat(session);
        if may_repeat && context.attempts_on_this_side < ATTEMPTS_ON_A_SIDE {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        let failure = failure_of(&error, context.answer_begun);
        context.attempt_failed(&self.gate, failure);
        if error.retry() || failure.blame != Blame::Backend || context.answer_begun {
            return error;
        }
        context.server_failed();
        let Some(exchange) = context.exchange.as_mut().filter(|exchange| exchange.is_sent()) else { return error };
        if may_repeat && self.gate.rescue(exchange, failure, session.req_header().uri.path(), Sent::Repeatable, clock::mono()) {
            context.turn_to_the_other_side();
            error.set_retry(true);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Box<Context>) -> FailToProxy {
        let mut failure = failure_of(error, context.answer_begun);
        // The backend cannot answer what it does not have yet: a client that uploads slowly ran into its timeout, not the backend.
        if context.tunnel.as_ref().is_some_and(|tunnel| tunnel.is_drained()) || (*error.etype() == ErrorType::ReadTimedout && session.was_upgraded()) {
            // A tunnel that we ended, or that rested too long, is nobody's failure.
            failure.blame = Blame::Proxy;
        } else if *error.etype() == ErrorType::ReadTimedout && context.exchange.as_ref().is_some_and(|exchange| !exchange.is_sent()) {
            failure.blame = Blame::Client;
        }
        let reply = match (&mut context.exchange, error.etype()) {
            (Some(exchange), ErrorType::HTTPStatus(413)) => {
                self.gate.failed(exchange, failure);
                Reply::TOO_LARGE
            }
            (Some(exchange), _) => self.gate.failed(exchange, failure),
            (None, _) => Reply::INTERNAL,
        };
        let client_is_gone =
            failure.blame == Blame::Client && matches!(error.etype(), ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteTimedout);
        let may_answer = is_unanswered(session) && !session.was_upgraded() && !client_is_gone;
        let mut error_code = 0;
        if may_answer {
            // A client that went away meanwhile needs no answer.
            error_code = self.reply(session, reply).await.map_or(0, |()| reply.status.as_u16());
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// Failures are counted and in the access log; an outage must not be a flood of error lines.
    fn suppress_error_log(&self, _: &Session, _: &Box<Context>, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Context>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, context: &mut Box<Context>) {
        let Some(exchange) = context.exchange.take() else { return };
        let status = session.response_written().map(|response| response.status.as_u16());
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        self.gate.done(exchange, session.req_header().uri.path(), End { status, bytes_in, bytes_out, ..context.end }, clock::mono);
        if let Some(conn) = &context.conn {
            conn.stay.over();
            conn.body_ended();
            if context.tunnel.is_some() {
                conn.tunnel.store(None);
            }
        }
    }
}
