//! One request on the lane, from its decision to its end.
//!
//! Attempts, in this order and at most two on a side: another server of the backend when a
//! connection could not be made; the same request once more when a kept connection broke before the
//! first byte of the answer and it changes nothing; then the other side, if the gate says so. The
//! buffer with the head is kept until the end, since each attempt may need it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use cutover_core::{FailureKind, Mono};
use http::Method;
use tokio::net::TcpStream;

use crate::clock::mono as now;
use crate::gateway::lane::body_decoder::{Body, Left};
use crate::gateway::lane::body_relay::{Broken, Caller, Download, Upload, pending, write_all};
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::lane::request::{Asked, Parsed, Request};
use crate::gateway::lane::response::{self, Sending};
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::lane::{FAREWELL, Lane, LaneStream, date};
use crate::gateway::listener::deadlines::Watched;
use crate::gateway::message::reply::{Reply, wants_html};
use crate::gateway::router::{
    ATTEMPTS_ON_A_SIDE, Answer, Blame, End, Exchange, Failure, MAX_INTERIM, Sent, is_safe,
};
use crate::shared::drain::Ended;
use crate::telemetry::request_summary::Engine;
use crate::upstream::fd_exhaustion;
use crate::upstream::{Chosen, Connect, Server};

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It waits for the next request.
    Keep,
    /// It ends.
    Close,
    /// It ends after what the client still sends has been read, for so long at most.
    Linger(Duration),
    /// It breaks off.
    Cut,
}

/// One request.
pub(super) struct Transaction<'a> {
    lane: &'a Lane,
    watched: &'a Watched,
    exchange: Exchange,
    asked: Asked,
    request: Request,
    /// The bytes of its head, and what came of the body with it.
    came: Buffer,
    upload: Upload,
    end: End,
    chosen: Option<Chosen>,
    attempts_on_this_side: u8,
    /// Whether a kept connection has been of no use: others are likely to be.
    needs_a_fresh_one: bool,
    /// Whether a server has seen something of the request.
    something_sent: bool,
    /// Whether something of the final answer may have been written to the client.
    answer_begun: bool,
    interim: u8,
}

/// What came of one attempt.
enum Attempt {
    /// The client has its answer, whole.
    Answered { keeps: bool },
    /// The next attempt is worth making.
    Again,
}

impl<'a> Transaction<'a> {
    /// Of a request whose head this buffer begins with. What follows the request in it goes to
    /// `ahead`.
    pub(super) fn new(
        lane: &'a Lane,
        watched: &'a Watched,
        exchange: Exchange,
        asked: Asked,
        request: Request,
        mut came: Buffer,
        ahead: &mut Option<Buffer>,
    ) -> Self {
        let body = ((came.len() - request.head) as u64).min(asked.body);
        let used = request.head + body as usize;
        if came.len() > used {
            *ahead = Buffer::of(&came.filled()[used..]);
            debug_assert!(ahead.is_some(), "it came in a buffer");
            came.truncate(used);
        }
        Self {
            lane,
            watched,
            exchange,
            asked,
            request,
            came,
            upload: Upload::new(body, asked.body - body),
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

    /// Serves it.
    pub(super) async fn run<S: LaneStream>(&mut self, client: &mut Caller<'_, S>) -> After {
        let began = self.exchange.started();
        if self.asked.body == 0 {
            self.lane.gate.sent(&mut self.exchange, began);
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
                    break self.after_answer(keeps, client.ahead.is_some());
                }
                Err(failure) => break self.fail(client.stream, failure).await,
            }
        };
        self.leave();
        after
    }

    /// It is nowhere in particular any more; an order to leave that came meanwhile was for what has
    /// ended.
    fn leave(&self) {
        self.watched.conn().stay.over();
        self.watched.conn().heard();
    }

    /// It is over, however it was.
    pub(super) fn done(self) {
        let end = End {
            bytes_in: self.upload.read,
            ..self.end
        };
        self.lane.gate.done(
            self.exchange,
            self.request.of(self.came.filled()).path_sent(),
            end,
            now,
        );
    }

    fn after_answer(&self, keeps: bool, has_more: bool) -> After {
        if keeps {
            After::Keep
        } else if self.asked.body > 0 && !self.upload.is_over() {
            After::Linger(self.lane.body_idle)
        } else if self.asked.keeps || has_more {
            After::Linger(FAREWELL)
        } else {
            After::Close
        }
    }

    /// One attempt at one server.
    async fn attempt<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        began: Option<Mono>,
    ) -> Result<Attempt, Failure> {
        let at = began.unwrap_or_else(now);
        let backend = self.exchange.backend();
        // A second attempt goes to another server than the first, where there is one.
        let chosen = backend
            .choose(self.end.server, at)
            .or_else(|| backend.choose(None, at));
        let Some(chosen) = chosen else {
            return Err(Failure {
                blame: Blame::Backend,
                kind: FailureKind::Connect,
            });
        };
        let (connect_timeout, response_timeout, idle_timeout) = {
            let settings = backend.settings();
            (
                settings.connect_timeout,
                settings.response_timeout,
                settings.idle_timeout,
            )
        };
        let server = std::sync::Arc::clone(chosen.server());
        self.end.server = Some(server.address());
        self.end.attempts = self.end.attempts.saturating_add(1);
        self.attempts_on_this_side += 1;
        self.lane
            .gate
            .attempt(&mut self.exchange, server.address(), at);
        self.chosen = Some(chosen);
        self.upload.begin_again();

        let kept = if self.needs_a_fresh_one {
            None
        } else {
            server.pool().take(idle_timeout, at)
        };
        let reused = kept.is_some();
        let mut stream = match kept {
            Some(stream) => stream,
            None => match self.connect(server.address(), connect_timeout).await {
                Ok(stream) => stream,
                Err(broken) => {
                    if let Broken::Backend(_) = broken {
                        server.connected(Connect::Failed);
                    }
                    return self.not_connected(broken);
                }
            },
        };
        server.connected(if reused {
            Connect::Reused
        } else {
            Connect::New
        });

        let mut response = match self.ask(client, &mut stream, response_timeout).await {
            Ok(response) => response,
            Err(broken) => return self.unanswered(broken, reused),
        };
        let answer = match self
            .final_answer(client, &mut stream, &mut response, response_timeout)
            .await
        {
            Ok(answer) => answer,
            Err(broken) => return self.unanswered(broken, false),
        };
        server.answered();
        let can_repeat = self.upload.is_over() && self.upload.read == self.sent_with_the_head();
        let path = self.request.of(self.came.filled()).path_sent();
        let says = answer.says;
        let said = self
            .exchange
            .outcome_header()
            .and_then(|name| answer.value(response.filled(), name.as_str()));
        if self.lane.gate.answered(
            &mut self.exchange,
            says.status,
            said,
            path,
            can_repeat,
            now(),
        ) == Answer::AskOtherSide
        {
            self.turn_to_the_other_side();
            return Ok(Attempt::Again);
        }
        self.answer_begun = true;
        self.end.status = Some(says.status);
        match self
            .deliver(client, stream, &server, response, answer)
            .await
        {
            Ok(keeps) => Ok(Attempt::Answered { keeps }),
            Err(broken) => Err(self.broken(broken)),
        }
    }

    /// Body bytes that came with the head, and are there for another attempt.
    fn sent_with_the_head(&self) -> u64 {
        (self.came.len() - self.request.head) as u64
    }

    /// A new connection.
    async fn connect(
        &self,
        address: std::net::SocketAddr,
        within: Duration,
    ) -> Result<TcpStream, Broken> {
        self.watched.within(within);
        let mut connecting = std::pin::pin!(TcpStream::connect(address));
        let stream = poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(Ok(stream)) => Poll::Ready(Ok(stream)),
            Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                Poll::Ready(Err(Broken::Backend(FailureKind::Timeout)))
            }
            Poll::Ready(Err(error)) if fd_exhaustion::is_noted(&error) => {
                Poll::Ready(Err(Broken::Shortage))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Backend(FailureKind::Connect))),
            Poll::Pending => pending(self.watched, Broken::Backend(FailureKind::Timeout)),
        })
        .await?;
        // Without it small messages wait for each other; a socket that does not know it is as good.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// There was no connection: another server, the other side, or the end.
    fn not_connected(&mut self, broken: Broken) -> Result<Attempt, Failure> {
        let failure = self.broken(broken);
        if failure.blame != Blame::Backend {
            return Err(failure);
        }
        self.server_failed();
        let another = self.exchange.backend().servers().len() > 1
            && self.attempts_on_this_side < ATTEMPTS_ON_A_SIDE;
        let sent = match self.something_sent {
            false => Sent::Nothing,
            true if self.upload.read == self.sent_with_the_head() => Sent::Repeatable,
            true => Sent::Gone,
        };
        if another || self.rescue(failure, sent) {
            Ok(Attempt::Again)
        } else {
            Err(failure)
        }
    }

    /// There was no answer, or none that can be read. `is_stale` is whether a kept connection ended
    /// before a byte of it.
    fn unanswered(&mut self, broken: Broken, is_stale: bool) -> Result<Attempt, Failure> {
        let failure = self.broken(broken);
        let may_repeat = is_safe(self.exchange.method());
        if may_repeat
            && is_stale
            && failure.kind == FailureKind::Reset
            && failure.blame == Blame::Backend
            && self.attempts_on_this_side < ATTEMPTS_ON_A_SIDE
        {
            self.needs_a_fresh_one = true;
            return Ok(Attempt::Again);
        }
        if failure.blame != Blame::Backend {
            return Err(failure);
        }
        self.server_failed();
        if may_repeat && self.exchange.is_sent() && self.rescue(failure, Sent::Repeatable) {
            Ok(Attempt::Again)
        } else {
            Err(failure)
        }
    }

    /// What a break means, told to the gate.
    fn broken(&mut self, broken: Broken) -> Failure {
        let failure = broken.failure(self.answer_begun);
        let kind = Some(failure.kind).filter(|_| failure.blame == Blame::Backend);
        self.lane
            .gate
            .attempt_ended(&mut self.exchange, kind, now());
        failure
    }

    fn server_failed(&self) {
        if let Some(chosen) = &self.chosen {
            self.exchange.backend().failed(chosen.server(), now());
        }
    }

    fn rescue(&mut self, failure: Failure, sent: Sent) -> bool {
        let path = self.request.of(self.came.filled()).path_sent();
        let is_rescued = self
            .lane
            .gate
            .rescue(&mut self.exchange, failure, path, sent, now());
        if is_rescued {
            self.turn_to_the_other_side();
        }
        is_rescued
    }

    fn turn_to_the_other_side(&mut self) {
        self.chosen = None;
        self.attempts_on_this_side = 0;
        self.needs_a_fresh_one = false;
        self.end.server = None;
        self.leave();
    }

    /// Sends the request, and reads the first bytes of an answer. After an error not a byte of one
    /// has come.
    async fn ask<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        stream: &mut TcpStream,
        response_timeout: Duration,
    ) -> Result<Buffer, Broken> {
        let mut out = Scratch::new();
        let head = self.request.of(self.came.filled());
        head.write(&mut out, |splice| {
            splice.drop_named(b"connection");
            self.lane
                .gate
                .edits(&self.exchange, &head, self.watched.conn(), splice);
        });
        out.extend_from_slice(&self.came.filled()[self.request.head..]);
        self.something_sent = true;
        self.watched.within(response_timeout);
        let reset = Broken::Backend(FailureKind::Reset);
        let written = write_all(
            stream,
            &out,
            self.watched,
            reset,
            Broken::Backend(FailureKind::Timeout),
        )
        .await;
        drop(out);
        match written {
            Ok(()) if self.upload.is_over() => self.sent(),
            Ok(()) => self.watched.within(self.lane.body_idle),
            // It may have answered before it closed.
            Err(broken) if broken == reset => self.upload.refuse(),
            Err(broken) => return Err(broken),
        }
        let mut response = Buffer::new(Size::Head);
        self.fill(client, stream, &mut response, response_timeout)
            .await?;
        Ok(response)
    }

    fn sent(&mut self) {
        if !self.exchange.is_sent() {
            self.lane.gate.sent(&mut self.exchange, now());
        }
    }

    /// Reads bytes of the answer's head, while the rest of the upload goes on.
    async fn fill<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        stream: &mut TcpStream,
        response: &mut Buffer,
        response_timeout: Duration,
    ) -> Result<(), Broken> {
        poll_fn(|cx| {
            let mut late = Broken::Backend(FailureKind::Timeout);
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
                        late = Broken::ClientSlow;
                    }
                    Poll::Pending => {}
                }
            }
            // As long as it has some of the body to send it is heard there, or not at all.
            if self.upload.is_done()
                && self.upload.is_read()
                && let Err(gone) = client.look(cx)
            {
                return Poll::Ready(Err(gone));
            }
            match response.poll_fill(stream, usize::MAX, cx) {
                Poll::Ready(Ok(read)) if read > 0 => Poll::Ready(Ok(())),
                Poll::Ready(_) => Poll::Ready(Err(Broken::Backend(FailureKind::Reset))),
                Poll::Pending => pending(self.watched, late),
            }
        })
        .await
    }

    /// Reads until there is the head of a final answer, and hands on the interim ones.
    async fn final_answer<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        stream: &mut TcpStream,
        response: &mut Buffer,
        response_timeout: Duration,
    ) -> Result<response::Answer, Broken> {
        let to_head = *self.exchange.method() == Method::HEAD;
        loop {
            match response::parse(response.filled(), to_head) {
                Some(Parsed::Whole(answer)) if answer.says.status >= 200 => return Ok(answer),
                Some(Parsed::Whole(answer))
                    if answer.says.status != 101 && self.interim < MAX_INTERIM =>
                {
                    self.interim += 1;
                    let mut out = Scratch::new();
                    answer.write_interim(
                        response.filled(),
                        self.exchange.outcome_header(),
                        &mut out,
                    );
                    response.consume(answer.says.head);
                    drop(answer);
                    self.watched.within(self.lane.write);
                    write_all(
                        client.stream,
                        &out,
                        self.watched,
                        Broken::ClientGone,
                        Broken::ClientSlow,
                    )
                    .await?;
                    self.watched.within(response_timeout);
                    if !response.is_empty() {
                        continue;
                    }
                }
                // The limit is one for all of a head: a backend that sends it byte by byte has no
                // more time than others.
                Some(Parsed::Partial) if !response.is_full() || response.make_room() => {}
                Some(_) | None => return Err(Broken::Backend(FailureKind::Protocol)),
            }
            self.fill(client, stream, response, response_timeout)
                .await?;
        }
    }

    /// Writes the answer, and lays the backend's connection down when all of it has been read. Says
    /// whether the client's is kept.
    async fn deliver<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        stream: TcpStream,
        server: &Server,
        mut response: Buffer,
        answer: response::Answer,
    ) -> Result<bool, Broken> {
        let says = answer.says;
        let pause = self
            .exchange
            .backend()
            .settings()
            .pause(answer.is_stream(response.filled()));
        let keeps = self.asked.keeps && self.upload.is_over() && !self.lane.is_closing();
        let in_chunks = says.body == Body::Close;
        let mut out = Scratch::new();
        answer.write(
            response.filled(),
            Sending { keeps, in_chunks },
            &self.lane.gate,
            &self.exchange,
            &mut out,
        );
        drop(answer);
        response.consume(says.head);
        let mut download = Download::new(Left::new(says.body), in_chunks);
        let begun = download.begin(response.filled_mut(), &mut out);
        drop(response);
        let is_reusable = says.keeps && self.upload.is_over();
        // Before the client has the answer, so that its next request finds it.
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
            Broken::ClientGone,
            Broken::ClientSlow,
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
        if !self.upload.is_done() && says.status < 400 {
            self.finish_upload(client.stream, &mut stream, pause).await;
        }
        if says.keeps && self.upload.is_over() && !download.has_more {
            server.pool().put(stream, now());
        }
        Ok(keeps)
    }

    /// The client has its answer, and the backend not yet all of the request, which it did not
    /// refuse: it may have answered first and read later. Whether that comes to an end changes
    /// nothing about the answer.
    async fn finish_upload<S: LaneStream>(
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

    async fn relay<S: LaneStream>(
        &mut self,
        client: &mut Caller<'_, S>,
        stream: &mut TcpStream,
        download: &mut Download,
        pause: Duration,
    ) -> Result<(), Broken> {
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
                // What moves either way shows that both are there; a client that does not read has
                // its own limit.
                if (self.upload.is_done() || self.upload.read > before)
                    && !download.waits_for_the_client()
                {
                    self.watched.within(self.pause_beside_the_upload(pause));
                }
            }
            if self.upload.is_done() && self.upload.is_read() {
                client.look(cx)?;
            }
            // A backend may wait for the rest of an upload before it goes on.
            let late = if self.upload.waits_for_the_client() {
                Broken::ClientSlow
            } else {
                Broken::Backend(FailureKind::Timeout)
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

    /// How long nothing may move in either direction: a client that stops its upload has no more
    /// time under an answer than without one.
    fn pause_beside_the_upload(&self, pause: Duration) -> Duration {
        if self.upload.waits_for_the_client() {
            pause.min(self.lane.body_idle)
        } else {
            pause
        }
    }

    /// It failed, for good.
    async fn fail<S: LaneStream>(&mut self, client: &mut S, failure: Failure) -> After {
        let is_sent_away = failure.blame == Blame::Proxy && failure.kind == FailureKind::Reset;
        if is_sent_away {
            self.watched.conn().heard();
            self.lane.drains.count(Ended::Stream);
        }
        let reply = self.lane.gate.failed(&mut self.exchange, failure, None);
        let is_gone = failure.blame == Blame::Client && failure.kind == FailureKind::Reset;
        if self.answer_begun || is_gone || is_sent_away {
            return After::Cut;
        }
        self.reply(client, reply).await
    }

    /// Writes an answer of ours.
    pub(super) async fn reply<S: LaneStream>(&mut self, client: &mut S, reply: Reply) -> After {
        // The request body may not have been read: what follows on this connection could be
        // mistaken for a request.
        let keeps = reply.retry_after.is_some()
            && self.asked.body == 0
            && self.asked.keeps
            && !self.lane.is_closing();
        let (body, content_type) = reply.body(wants_html(&self.request.of(self.came.filled())));
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
            Broken::ClientGone,
            Broken::ClientSlow,
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
