//! Reads the answer of a server and sends it to the client.

use super::Transaction;
use crate::clock::mono as now;
use crate::gateway::lane::LaneStream;
use crate::gateway::lane::body_decoder::{Body, BodyDecoder};
use crate::gateway::lane::body_relay::{ClientSide, Download, RelayError, pending, write_all};
use crate::gateway::lane::read_buffer::Buffer;
use crate::gateway::lane::request::Parsed;
use crate::gateway::lane::response::{self, Sending};
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::router::MAX_INTERIM;
use crate::upstream::Server;
use cutover_core::FailureKind;
use http::Method;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;

impl<'a> Transaction<'a> {
    /// Reads bytes of the answer's head, while the rest of the upload continues.
    pub(super) async fn fill<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        stream: &mut TcpStream,
        response: &mut Buffer,
        response_timeout: Duration,
    ) -> Result<(), RelayError> {
        poll_fn(|cx| {
            let mut late = RelayError::Backend(FailureKind::Timeout);
            if !self.upload.is_done() {
                match self.upload.poll(
                    client.stream,
                    stream,
                    (self.lane, self.watched),
                    Some(response_timeout),
                    cx,
                ) {
                    Poll::Ready(Ok(())) => {
                        self.sent();
                        self.watched.within(response_timeout);
                    }
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                    Poll::Pending if self.upload.waits_for_the_client() => {
                        late = RelayError::ClientSlow;
                    }
                    Poll::Pending => {}
                }
            }
            // As long as the client still has to send some of the body, a disconnect is noticed
            // there, or not at all.
            if self.upload.is_done()
                && self.upload.is_read()
                && let Err(gone) = client.look(cx)
            {
                return Poll::Ready(Err(gone));
            }
            match response.poll_fill(stream, usize::MAX, cx) {
                Poll::Ready(Ok(read)) if read > 0 => Poll::Ready(Ok(())),
                Poll::Ready(_) => Poll::Ready(Err(RelayError::Backend(FailureKind::Reset))),
                Poll::Pending => pending(self.watched, late),
            }
        })
        .await
    }

    /// Reads until the head of a final answer is complete, and passes on the interim answers.
    pub(super) async fn final_answer<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        stream: &mut TcpStream,
        response: &mut Buffer,
        response_timeout: Duration,
    ) -> Result<response::Answer, RelayError> {
        let to_head = *self.exchange.method() == Method::HEAD;
        loop {
            match response::parse(response.filled(), to_head) {
                Some(Parsed::Whole(answer)) if answer.response_head.status >= 200 => {
                    return Ok(answer);
                }
                Some(Parsed::Whole(answer))
                    if answer.response_head.status != 101 && self.interim < MAX_INTERIM =>
                {
                    self.interim += 1;
                    let mut out = Scratch::new();
                    answer.write_interim(
                        response.filled(),
                        self.exchange.outcome_header(),
                        &mut out,
                    );
                    response.consume(answer.response_head.head);
                    drop(answer);
                    self.watched.within(self.lane.write);
                    write_all(
                        client.stream,
                        &out,
                        self.watched,
                        RelayError::ClientGone,
                        RelayError::ClientSlow,
                    )
                    .await?;
                    self.watched.within(response_timeout);
                    if !response.is_empty() {
                        continue;
                    }
                }
                // One limit applies to the whole head. A backend that sends it byte by byte has no
                // more time than others.
                Some(Parsed::Partial) if !response.is_full() || response.make_room() => {}
                Some(_) | None => return Err(RelayError::Backend(FailureKind::Protocol)),
            }
            self.fill(client, stream, response, response_timeout)
                .await?;
        }
    }

    /// Writes the answer, and returns the backend's connection to the pool when the whole answer
    /// has been read. Returns whether the client's connection is kept.
    pub(super) async fn deliver<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        stream: TcpStream,
        server: &Server,
        mut response: Buffer,
        answer: response::Answer,
    ) -> Result<bool, RelayError> {
        let response_head = answer.response_head;
        let pause = self
            .exchange
            .backend()
            .settings()
            .pause(answer.is_stream(response.filled()));
        let keeps = self.facts.keeps && self.upload.is_over() && !self.lane.is_closing();
        let in_chunks = response_head.body == Body::Close;
        let mut out = Scratch::new();
        answer.write(
            response.filled(),
            Sending { keeps, in_chunks },
            &self.lane.router,
            &self.exchange,
            &mut out,
        );
        drop(answer);
        response.consume(response_head.head);
        let mut download = Download::new(BodyDecoder::new(response_head.body), in_chunks);
        let begun = download.begin(response.filled_mut(), &mut out);
        drop(response);
        let is_reusable = response_head.keeps && self.upload.is_over();
        // The connection is returned before the client has the answer, so that the client's next
        // request finds it.
        let mut stream = Some(stream);
        if is_reusable && download.is_read() && !download.has_more && begun.is_ok() {
            stream
                .take()
                .into_iter()
                .for_each(|stream| server.pool().put(stream, now()));
        }
        self.watched.within(self.lane.write);
        let written = write_all(
            client.stream,
            &out,
            self.watched,
            RelayError::ClientGone,
            RelayError::ClientSlow,
        )
        .await;
        drop(out);
        self.end.bytes_out = download.payload;
        written?;
        begun?;
        let Some(mut stream) = stream else {
            return Ok(keeps);
        };
        if !download.is_read() {
            self.watched.within(self.pause_beside_the_upload(pause));
            let relayed = self.relay(client, &mut stream, &mut download, pause).await;
            self.end.bytes_out = download.payload;
            relayed?;
        }
        if !self.upload.is_done() && response_head.status < 400 {
            self.finish_upload(client.stream, &mut stream, pause).await;
        }
        if response_head.keeps && self.upload.is_over() && !download.has_more {
            server.pool().put(stream, now());
        }
        Ok(keeps)
    }

    /// Continues an upload after the client has received its answer. The backend does not have the
    /// whole request yet but did not refuse it, because it may answer first and read later. Whether
    /// the upload completes changes nothing about the answer.
    pub(super) async fn finish_upload<S: LaneStream>(
        &mut self,
        client: &mut S,
        stream: &mut TcpStream,
        pause: Duration,
    ) {
        self.watched.within(if self.upload.waits_for_the_client() {
            self.lane.body_idle
        } else {
            pause
        });
        let is_over = poll_fn(|cx| {
            match self
                .upload
                .poll(client, stream, (self.lane, self.watched), Some(pause), cx)
            {
                Poll::Ready(uploaded) => Poll::Ready(uploaded.is_ok()),
                Poll::Pending if self.upload.is_done() || self.watched.alarm().is_some() => {
                    Poll::Ready(false)
                }
                Poll::Pending => Poll::Pending,
            }
        });
        if is_over.await {
            self.sent();
        }
    }

    pub(super) async fn relay<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        stream: &mut TcpStream,
        download: &mut Download,
        pause: Duration,
    ) -> Result<(), RelayError> {
        poll_fn(|cx| {
            if !self.upload.is_done() {
                let before = self.upload.read;
                if let Poll::Ready(uploaded) =
                    self.upload
                        .poll(client.stream, stream, (self.lane, self.watched), None, cx)
                {
                    uploaded?;
                    self.sent();
                }
                // Movement in either direction shows that both sides are alive. A client that does
                // not read has its own limit.
                if (self.upload.is_done() || self.upload.read > before)
                    && !download.waits_for_the_client()
                {
                    self.watched.within(self.pause_beside_the_upload(pause));
                }
            }
            if self.upload.is_done() && self.upload.is_read() {
                client.look(cx)?;
            }
            // A backend may wait for the rest of an upload before it continues.
            let late = if self.upload.waits_for_the_client() {
                RelayError::ClientSlow
            } else {
                RelayError::Backend(FailureKind::Timeout)
            };
            download.poll(
                stream,
                client.stream,
                (self.lane, self.watched),
                (self.pause_beside_the_upload(pause), late),
                cx,
            )
        })
        .await
    }

    /// Returns how long nothing may move in either direction. A client that stops its upload has no
    /// more time during an answer than without one.
    pub(super) fn pause_beside_the_upload(&self, pause: Duration) -> Duration {
        if self.upload.waits_for_the_client() {
            pause.min(self.lane.body_idle)
        } else {
            pause
        }
    }
}
