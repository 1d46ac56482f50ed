//! Pingora's phases, translated to the gate. The only file that names pingora's request types; it decides nothing.

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cutover_core::FailureKind;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType};

use super::door::NO_TIMER;
use super::gate::{Blame, End, Exchange, Failure, Gate, Step};
use super::head::{Conn, Edits, Head, others};
use super::reply::{Reply, wants_html};
use super::spelling::is_plain;
use super::tunnel::{self, Tunnel};
use crate::clock;
use crate::upstream;

/// The proxy application. One per process.
pub struct Adapter {
    gate: Arc<Gate>,
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

/// What pingora carries for us through one request.
#[derive(Default)]
pub struct Context {
    conn: Option<Arc<Conn>>,
    exchange: Option<Exchange>,
    end: End,
    body_bytes: u64,
    answer_begun: bool,
    /// Interim answers so far.
    interim: u8,
    /// Whether the kept connection was of no use, so that nothing was sent over it.
    was_stale: bool,
    tunnel: Option<Arc<Tunnel>>,
}

impl Adapter {
    /// An adapter to this gate.
    pub fn new(gate: Arc<Gate>, listen: &cutover_config::Listen) -> Self {
        let timeouts = ClientTimeouts { body_idle: listen.body_idle_timeout, write: listen.write_timeout };
        Self { gate, timeouts, max_body: listen.max_body }
    }

    async fn reply(&self, session: &mut Session, reply: Reply) -> Result<()> {
        let (body, content_type) = reply.body(wants_html(&RequestHead { head: session.req_header(), raw: b"" }));
        let head_only = session.req_header().method == Method::HEAD;
        let mut response = ResponseHeader::build(reply.status, Some(4))?;
        response.insert_header(http::header::CONTENT_TYPE, content_type)?;
        response.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        // The request body may not have been read: what follows on this connection could be mistaken for a request.
        session.set_keepalive(None);
        session.write_response_header(Box::new(response), head_only).await?;
        if !head_only {
            session.write_response_body(Some(Bytes::from(body)), true).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ProxyHttp for Adapter {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::default()
    }

    /// No modules: the default installs a compression context for each request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn on_connection_reuse(&self, _: &mut Session, context: &mut Context, conn: Box<dyn Any + Send + Sync>) {
        context.conn = conn.downcast::<Arc<Conn>>().ok().map(|conn| *conn);
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let Some(conn) = context.conn.clone() else { return Error::e_explain(ErrorType::InternalError, "the door gave no connection") };
        conn.head_came();
        if session.get_keepalive().is_some() {
            session.set_keepalive(NO_TIMER);
        }
        if !session.is_body_empty() {
            session.set_read_timeout(Some(self.timeouts.body_idle));
        }
        session.set_write_timeout(Some(self.timeouts.write));
        session.set_total_drain_timeout(Some(self.timeouts.body_idle));
        let raw = session.as_downstream().as_http1().map(HttpSession::get_headers_raw_bytes).unwrap_or_default();
        let now = clock::mono();
        let (mut exchange, step) = self.gate.request(&RequestHead { head: session.req_header(), raw: &raw }, &conn, now);
        if session.is_body_empty() {
            self.gate.sent(&mut exchange, now);
        }
        context.exchange = Some(exchange);
        match step {
            Step::Forward => Ok(false),
            Step::Reply(reply) => {
                self.reply(session, reply).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        let backend = context.exchange.as_ref().map(Exchange::backend);
        // A second attempt goes to another server than the first, and takes no turn from anybody.
        let Some(mut peer) = backend.and_then(|backend| backend.next_peer(context.end.server)) else {
            return Err(Error::create(ErrorType::ConnectError, ErrorSource::Upstream, Some("no server has an address".into()), None));
        };
        if context.was_stale {
            upstream::make_fresh(&mut peer);
        }
        context.end.server = peer._address.as_inet().copied();
        context.end.attempts = context.end.attempts.saturating_add(1);
        context.tunnel = Tunnel::asked_for(session.req_header(), &mut peer);
        Ok(peer)
    }

    async fn connected_to_upstream(&self, _: &mut Session, reused: bool, _: &HttpPeer, socket: RawFd, digest: Option<&Digest>, context: &mut Context) -> Result<()> {
        // Below TLS there may be messages of its own.
        context.was_stale = reused && digest.is_some_and(|digest| digest.ssl_digest.is_none()) && upstream::has_unread(socket);
        let error = || Error::explain(ErrorType::ConnectionClosed, "the kept connection had ended or held bytes nobody asked for").into_up();
        if context.was_stale { Err(error()) } else { Ok(()) }
    }

    async fn upstream_request_filter(&self, session: &mut Session, upstream: &mut RequestHeader, context: &mut Context) -> Result<()> {
        let (Some(exchange), Some(conn)) = (&context.exchange, &context.conn) else { return Ok(()) };
        let head = RequestHead { head: session.req_header(), raw: b"" };
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

    async fn request_body_filter(&self, _: &mut Session, body: &mut Option<Bytes>, end_of_stream: bool, context: &mut Context) -> Result<()> {
        context.body_bytes += body.as_ref().map_or(0, |body| body.len() as u64);
        if context.body_bytes > self.max_body {
            // As the client's error, so that it ends this request as a 413 and not as the backend's failure.
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the request body is larger than max_body").into_down());
        }
        if end_of_stream {
            // An empty last part would end chunks to the backend twice (cloudflare/pingora#935), and the next user would find the second end.
            *body = body.take().filter(|body| !body.is_empty());
        }
        if let (true, Some(exchange)) = (end_of_stream, &mut context.exchange) {
            self.gate.sent(exchange, clock::mono());
        }
        Ok(())
    }

    async fn upstream_response_filter(&self, session: &mut Session, response: &mut ResponseHeader, context: &mut Context) -> Result<()> {
        // A backend that speaks HTTP/1.0 is no reason to speak it to the client.
        response.set_version(Version::HTTP_11);
        if let (Some(tunnel), StatusCode::SWITCHING_PROTOCOLS) = (&context.tunnel, response.status) {
            tunnel.open();
            session.set_read_timeout(Some(tunnel::IDLE));
        } else if response.status.is_informational() {
            context.interim = context.interim.saturating_add(1);
            if context.interim > MAX_INTERIM || response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "too many interim answers, or a switch of protocols that nobody asked for").into_up());
            }
        }
        if let Some(exchange) = &mut context.exchange {
            self.gate.answered(exchange, response.status.as_u16(), clock::mono());
        }
        context.answer_begun |= !response.status.is_informational();
        Ok(())
    }

    async fn response_filter(&self, _: &mut Session, response: &mut ResponseHeader, context: &mut Context) -> Result<()> {
        let Some(exchange) = context.exchange.as_ref().filter(|_| !response.status.is_informational()) else { return Ok(()) };
        let mut edits = ResponseEdits { head: response, failed: None };
        self.gate.client_edits(exchange, &mut edits);
        edits.failed.map_or(Ok(()), Err)
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, context: &mut Context, mut error: Box<Error>) -> Box<Error> {
        // Nothing was sent, so another server of the same backend may try. How often is bounded by pingora's `max_retries`.
        error.set_retry(context.exchange.as_ref().is_some_and(|exchange| exchange.backend().servers() > 1));
        error
    }

    /// A kept connection that closed before the first byte of the answer: the backend may or may not have begun, so only a method that changes nothing is sent once more, and only
    /// while its body is still whole in the buffer. Pingora's own policy would repeat PUT and DELETE, too.
    fn error_while_proxy(&self, _: &HttpPeer, session: &mut Session, mut error: Box<Error>, context: &mut Context, reused: bool) -> Box<Error> {
        if context.was_stale {
            error.set_retry(true);
            return error;
        }
        let is_safe = matches!(session.req_header().method, Method::GET | Method::HEAD | Method::OPTIONS);
        if is_safe && !context.answer_begun && session.response_written().is_none() && !session.as_ref().retry_buffer_truncated() {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        let mut failure = failure_of(error, context.answer_begun);
        // The backend cannot answer what it does not have yet: a client that uploads slowly ran into its timeout, not the backend.
        if *error.etype() == ErrorType::ReadTimedout && session.was_upgraded() {
            failure.blame = Blame::Proxy; // A tunnel that rested too long is nobody's failure.
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
        let may_answer = session.response_written().is_none_or(|response| response.status.is_informational()) && !session.was_upgraded() && !client_is_gone;
        let mut error_code = 0;
        if may_answer {
            // A client that went away meanwhile needs no answer.
            error_code = self.reply(session, reply).await.map_or(0, |()| reply.status.as_u16());
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// Failures are counted and in the access log; an outage must not be a flood of error lines.
    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Context, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, context: &mut Context) {
        let Some(exchange) = context.exchange.take() else { return };
        let status = session.response_written().map(|response| response.status.as_u16());
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        self.gate.done(exchange, session.req_header().uri.path(), End { status, bytes_in, bytes_out, ..context.end }, clock::mono);
        if let Some(conn) = &context.conn {
            conn.await_head();
        }
    }
}

/// Pingora's error as our failure. The one place where its sources and types are read.
fn failure_of(error: &Error, answer_begun: bool) -> Failure {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, H1Error, InvalidHTTPHeader, ReadTimedout, SocketError, TLSHandshakeTimedout,
        WriteTimedout,
    };
    let blame = match error.esource() {
        ErrorSource::Upstream => Blame::Backend,
        ErrorSource::Downstream => Blame::Client,
        ErrorSource::Internal | ErrorSource::Unset => Blame::Proxy,
    };
    let kind = match error.etype() {
        ConnectTimedout | TLSHandshakeTimedout | ReadTimedout | WriteTimedout if !answer_begun => FailureKind::Timeout,
        ErrorType::ReadError if !answer_begun && tunnel::is_late(error) => FailureKind::Timeout,
        ConnectRefused | ConnectNoRoute | ConnectError | ConnectProxyFailure | SocketError => FailureKind::Connect,
        InvalidHTTPHeader | H1Error if !answer_begun => FailureKind::Protocol,
        _ if answer_begun => FailureKind::Truncated,
        _ => FailureKind::Reset,
    };
    Failure { blame, kind }
}

/// How many interim answers a backend may send before its answer.
const MAX_INTERIM: u8 = 32;

struct RequestHead<'a> {
    head: &'a RequestHeader,
    raw: &'a [u8],
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &Method {
        &self.head.method
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.head.uri.query()
    }

    fn host(&self) -> Option<&str> {
        let of_target = self.head.uri.authority().map(http::uri::Authority::as_str);
        of_target.or_else(|| self.head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()))
    }

    fn host_value(&self) -> Option<HeaderValue> {
        match self.head.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => self.head.headers.get(http::header::HOST).cloned(),
        }
    }

    fn requires_host(&self) -> bool {
        self.head.version >= Version::HTTP_11
    }

    fn target(&self) -> &[u8] {
        self.head.raw_path()
    }

    fn raw(&self) -> &[u8] {
        self.raw
    }

    fn size(&self) -> usize {
        self.raw.len()
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.head.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'b>(&'b self, name: &HeaderName, found: &mut dyn FnMut(&'b [u8])) {
        self.head.headers.get_all(name).iter().for_each(|value| found(value.as_bytes()));
    }

    fn any_name(&self, is_so: &mut dyn FnMut(&HeaderName) -> bool) -> bool {
        self.head.headers.keys().any(is_so)
    }
}

/// How many headers the gate sets at most.
const OUR_HEADERS: usize = 9;

/// Edits on pingora's heads. They fail only on header names and values that are not valid, which ours are by type; the first failure is kept.
macro_rules! edits {
    ($edits:ident, $head:ty) => {
        struct $edits<'a> {
            head: &'a mut $head,
            failed: Option<Box<Error>>,
        }

        impl Edits for $edits<'_> {
            fn set(&mut self, name: &'static HeaderName, value: HeaderValue) {
                if let Err(error) = self.head.insert_header(name.as_str(), value) {
                    self.failed.get_or_insert(error);
                }
            }

            fn append(&mut self, name: &'static HeaderName, value: HeaderValue) {
                if let Err(error) = self.head.append_header(name.as_str(), value) {
                    self.failed.get_or_insert(error);
                }
            }

            fn remove(&mut self, name: &HeaderName) {
                self.head.remove_header(name);
            }

            fn contains(&self, name: &HeaderName) -> bool {
                self.head.headers.contains_key(name)
            }

            fn remove_others(&mut self, prefix: &str, kept: &[&HeaderName]) {
                others(&self.head.headers, prefix, kept).iter().for_each(|name| drop(self.head.remove_header(name)));
            }
        }
    };
}

edits!(RequestEdits, RequestHeader);
edits!(ResponseEdits, ResponseHeader);
