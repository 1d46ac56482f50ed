//! One stream of an HTTP/2 connection as the proxy engine serves it.
//!
//! *Purpose.* The engine's own HTTP/2 session has no limit for a stalled body, drops interim
//! answers, and cannot learn that a backend is late. It also hides the requests that it refuses.
//! This session is built on the same h2 library and otherwise keeps the engine's rules.
//!
//! *Not here.* The router decides which requests are valid, as for HTTP/1.1.

mod cookies;
mod progress;
mod replay;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, OrErr};

use crate::gateway::adapter::timeouts::RequestTimeouts;
use crate::gateway::http2::frames::Seen;
use crate::gateway::lane::date;
use crate::gateway::lane::min_rate::Pace;
use cookies::join_cookies;
use progress::{Progress, send_all};
use replay::{REPLAY, Replay};

/// An HTTP/2 request and its answer.
pub(super) struct StreamSession {
    head: RequestHeader,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// Whether END_STREAM has been sent.
    has_ended: bool,
    read: usize,
    sent: usize,
    replay: Replay,
    /// The bytes that are read again for another attempt, before the rest of the body.
    again: Option<Bytes>,
    progress: Progress,
    patience: RequestTimeouts,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    digest: Arc<Digest>,
}

impl StreamSession {
    /// Creates the session of a request. `patience` holds the deadlines of its stream.
    pub(super) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        seen: Arc<Seen>,
        patience: RequestTimeouts,
        digest: Arc<Digest>,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        join_cookies(&mut parts.headers);
        let progress = Progress {
            seen,
            stream: respond.stream_id().as_u32(),
            partial: 0,
            pace: Pace::default(),
        };
        Self {
            head: parts.into(),
            body,
            respond,
            send: None,
            written: None,
            has_ended: false,
            read: 0,
            sent: 0,
            replay: Replay::Off,
            again: None,
            progress,
            patience,
            read_timeout: None,
            write_timeout: None,
            drain_timeout: None,
            digest,
        }
    }

    /// Reads a part of the body. A client that sends nothing for the read timeout is late.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        // The stream is read again, so the backend has taken what was received before.
        self.patience.has_taken();
        if let Some(again) = self.again.take() {
            return Poll::Ready(Ok(Some(again)));
        }
        match self.body.poll_data(cx) {
            Poll::Ready(data) => {
                self.patience.body_came();
                let data = data
                    .transpose()
                    .or_err(ErrorType::ReadError, "while reading a request body")
                    .map_err(Error::into_down)?;
                if let Some(data) = &data {
                    self.take(data);
                }
                Poll::Ready(Ok(data))
            }
            Poll::Pending => {
                let Some(timeout) = self.read_timeout else {
                    return Poll::Pending;
                };
                if !self.patience.is_body_awaited() {
                    self.patience.await_body(timeout);
                } else if self.patience.is_body_late() {
                    if !self.progress.is_made(self.read, self.patience.now()) {
                        self.patience.body_came();
                        return Poll::Ready(Err(Error::explain(
                            ErrorType::ReadTimedout,
                            "the request body does not come on",
                        )
                        .into_down()));
                    }
                    self.patience.await_body(timeout);
                }
                Poll::Pending
            }
        }
    }

    fn take(&mut self, data: &Bytes) {
        self.read += data.len();
        match &mut self.replay {
            Replay::Kept(kept) if kept.len() + data.len() <= REPLAY => kept.extend_from_slice(data),
            Replay::Kept(_) => self.replay = Replay::Truncated,
            Replay::Off | Replay::Truncated => {}
        }
        // This fails only on a closed stream, from which nothing more is read.
        let _ = self.body.flow_control().release_capacity(data.len());
    }

    /// Returns an error once the client has disconnected or the backend is late.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        self.patience.has_taken();
        if self.patience.is_answer_late() {
            return Poll::Ready(Error::explain(
                ErrorType::ReadTimedout,
                "the backend is late",
            ));
        }
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        let error = match ready!(reset) {
            Ok(reason) => Error::explain(
                ErrorType::H2Error,
                format!("the client has reset the stream: {reason}"),
            ),
            Err(error) => Error::because(ErrorType::H2Error, "while waiting for an answer", error),
        };
        Poll::Ready(error.into_down())
    }

    async fn write(&mut self, data: Bytes, end: bool) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let Some(send) = &mut self.send else {
            return Error::e_explain(ErrorType::H2Error, "a body before its header");
        };
        let bytes = data.len();
        self.patience.client_is_behind(true);
        let written = send_all(send, data, end, self.write_timeout.unwrap_or(Duration::MAX))
            .await
            .map_err(Error::into_down);
        self.patience.client_is_behind(false);
        written?;
        self.sent += bytes;
        self.has_ended |= end;
        Ok(())
    }

    fn write_header(&mut self, mut head: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        for name in [
            &TRANSFER_ENCODING,
            &CONNECTION,
            &UPGRADE,
            &KEEP_ALIVE,
            &PROXY_CONNECTION,
        ] {
            head.remove_header(name);
        }
        if head.status.is_informational() {
            // 101 has no meaning in HTTP/2 (RFC 9113, section 8.6).
            if head.status.as_u16() == 101 || self.written.is_some() {
                return Ok(());
            }
            let interim = Response::from_parts(head.as_owned_parts(), ());
            return self
                .respond
                .send_informational(interim)
                .or_err(ErrorType::WriteError, "while writing an interim answer")
                .map_err(Error::into_down);
        }
        if self.written.is_some() {
            return Ok(());
        }
        if !head.headers.contains_key(DATE) {
            head.insert_header(
                DATE,
                date::with(HeaderValue::from_bytes).unwrap_or(HeaderValue::from_static("")),
            )?;
        }
        let response = Response::from_parts(head.as_owned_parts(), ());
        let send = self
            .respond
            .send_response(response, end)
            .or_err(ErrorType::WriteError, "while writing an answer")
            .map_err(Error::into_down)?;
        (self.written, self.send) = (Some(head), Some(send));
        self.has_ended |= end;
        Ok(())
    }

    fn write_end(&mut self) -> Result<()> {
        // If no header was sent, the stream is reset when it is dropped.
        if let Some(send) = self.send.as_mut().filter(|_| !self.has_ended) {
            send.send_data(Bytes::new(), true)
                .or_err(ErrorType::WriteError, "while ending an answer")
                .map_err(Error::into_down)?;
            self.has_ended = true;
        }
        Ok(())
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

#[async_trait]
impl Session for StreamSession {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_body(cx)).await
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(poll_fn(|cx| self.poll_end(cx)).await);
        }
        poll_fn(|cx| {
            if self.patience.is_answer_late()
                && let Poll::Ready(late) = self.poll_end(cx)
            {
                return Poll::Ready(Err(late));
            }
            self.poll_body(cx)
        })
        .await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if self.is_body_done() {
            return Ok(());
        }
        let limit = self.drain_timeout;
        let drain = async {
            while self.read_body_bytes().await?.is_some() {}
            Ok(())
        };
        match limit {
            None => drain.await,
            Some(limit) => match tokio::time::timeout(limit, pin!(drain)).await {
                Ok(drained) => drained,
                Err(_) => {
                    Error::e_explain(ErrorType::ReadTimedout, "while draining a request body")
                }
            },
        }
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_header(head, end)
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_header(Box::new(head.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let Some(send) = &mut self.send else {
            return Error::e_explain(ErrorType::H2Error, "trailers before a header");
        };
        send.send_trailers(trailers)
            .or_err(ErrorType::WriteError, "while writing trailers")
            .map_err(Error::into_down)?;
        self.has_ended = true;
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_over = false;
        for task in tasks {
            is_over |= match task {
                HttpTask::Header(head, end) => {
                    self.write_header(head, end)?;
                    end
                }
                HttpTask::Body(data, end) => {
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        self.write(data, end).await?;
                    }
                    end
                }
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(
                        ErrorType::InternalError,
                        "an upgrade on a stream of HTTP/2",
                    );
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_trailers(*trailers).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if is_over {
            self.write_end()?;
        }
        Ok(is_over)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    /// Resets the stream, so that the client cannot mistake a partial answer for a complete one.
    async fn shutdown(&mut self, _: u32, _: &str) {
        if !self.has_ended {
            self.has_ended = true;
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.again.is_none() && (self.is_body_empty() || self.body.is_end_stream())
    }

    async fn finish(&mut self) -> Result<()> {
        self.write_end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.read == 0
            && (self.body.is_end_stream()
                || self
                    .head
                    .headers
                    .get(CONTENT_LENGTH)
                    .is_some_and(|length| length == "0"))
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    /// The engine needs this for subrequests only, and there are none here.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        let host = self
            .head
            .headers
            .get(HOST)
            .map_or(&b""[..], HeaderValue::as_bytes);
        [
            self.head.method.as_str().as_bytes(),
            b" ",
            self.head.raw_path(),
            b" HTTP/1.1\r\nhost: ",
            host,
            b"\r\n\r\n",
        ]
        .concat()
        .into()
    }

    /// The engine calls this function when an attempt begins.
    fn enable_retry_buffering(&mut self) {
        match &self.replay {
            Replay::Off => self.replay = Replay::Kept(BytesMut::new()),
            Replay::Kept(kept) if !kept.is_empty() => self.again = Some(kept.clone().freeze()),
            Replay::Kept(_) | Replay::Truncated => {}
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        matches!(self.replay, Replay::Truncated)
    }

    /// Returns nothing, because the kept bytes are read again as the body. The engine treats a
    /// backend that answers before it has read the retry buffer as failed. It does accept the
    /// answer of a backend that does not read the body.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn futures_util::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>>
    {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn futures_util::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
