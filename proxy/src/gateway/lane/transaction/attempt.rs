//! One attempt at a server.

use super::Transaction;
use crate::clock::mono as now;
use crate::gateway::lane::LaneStream;
use crate::gateway::lane::body_relay::{ClientSide, RelayError, pending, write_all};
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::router::{ATTEMPTS_ON_A_SIDE, AfterResponse, Blame, Failure, Sent, is_safe};
use crate::upstream::Connect;
use crate::upstream::fd_exhaustion;
use cutover_core::{FailureKind, Mono};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;

/// The result of one attempt.
pub(super) enum Attempt {
    /// The client has received the whole answer.
    Answered { keeps: bool },
    /// The next attempt is worth making.
    Again,
}

impl<'a> Transaction<'a> {
    /// Makes one attempt at one server.
    pub(super) async fn attempt<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        began: Option<Mono>,
    ) -> Result<Attempt, Failure> {
        let at = began.unwrap_or_else(now);
        let backend = self.exchange.backend();
        // A second attempt goes to a different server than the first, if there is one.
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
            .router
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
                    if let RelayError::Backend(_) = broken {
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
        let path = self.request.of(self.head_bytes.filled()).path_sent();
        let response_head = answer.response_head;
        let said = self
            .exchange
            .outcome_header()
            .and_then(|name| answer.value(response.filled(), name.as_str()));
        if self.lane.router.answered(
            &mut self.exchange,
            response_head.status,
            said,
            path,
            can_repeat,
            now(),
        ) == AfterResponse::AskOtherSide
        {
            self.turn_to_the_other_side();
            return Ok(Attempt::Again);
        }
        self.answer_begun = true;
        self.end.status = Some(response_head.status);
        match self
            .deliver(client, stream, &server, response, answer)
            .await
        {
            Ok(keeps) => Ok(Attempt::Answered { keeps }),
            Err(broken) => Err(self.broken(broken)),
        }
    }

    /// Returns how many body bytes were received with the head. They are available for another
    /// attempt.
    pub(super) fn sent_with_the_head(&self) -> u64 {
        (self.head_bytes.len() - self.request.head) as u64
    }

    /// Opens a new connection.
    pub(super) async fn connect(
        &self,
        address: std::net::SocketAddr,
        within: Duration,
    ) -> Result<TcpStream, RelayError> {
        self.watched.within(within);
        let mut connecting = std::pin::pin!(TcpStream::connect(address));
        let stream = poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(Ok(stream)) => Poll::Ready(Ok(stream)),
            Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
                Poll::Ready(Err(RelayError::Backend(FailureKind::Timeout)))
            }
            Poll::Ready(Err(error)) if fd_exhaustion::is_noted(&error) => {
                Poll::Ready(Err(RelayError::Shortage))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(RelayError::Backend(FailureKind::Connect))),
            Poll::Pending => pending(self.watched, RelayError::Backend(FailureKind::Timeout)),
        })
        .await?;
        // Without this option small messages wait for each other. A socket that does not support
        // the option still works.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Handles an attempt without a connection: it continues with another server, with the other
    /// side, or not at all.
    pub(super) fn not_connected(&mut self, broken: RelayError) -> Result<Attempt, Failure> {
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

    /// Handles an attempt with no answer, or with a malformed one. `is_stale` says whether a kept
    /// connection ended before a byte of the answer.
    pub(super) fn unanswered(
        &mut self,
        broken: RelayError,
        is_stale: bool,
    ) -> Result<Attempt, Failure> {
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

    /// Converts an error to a failure, and reports it to the router.
    pub(super) fn broken(&mut self, broken: RelayError) -> Failure {
        let failure = broken.failure(self.answer_begun);
        let kind = Some(failure.kind).filter(|_| failure.blame == Blame::Backend);
        self.lane
            .router
            .attempt_ended(&mut self.exchange, kind, now());
        failure
    }

    pub(super) fn server_failed(&self) {
        if let Some(chosen) = &self.chosen {
            self.exchange.backend().failed(chosen.server(), now());
        }
    }

    pub(super) fn rescue(&mut self, failure: Failure, sent: Sent) -> bool {
        let path = self.request.of(self.head_bytes.filled()).path_sent();
        let is_rescued = self
            .lane
            .router
            .rescue(&mut self.exchange, failure, path, sent, now());
        if is_rescued {
            self.turn_to_the_other_side();
        }
        is_rescued
    }

    pub(super) fn turn_to_the_other_side(&mut self) {
        self.chosen = None;
        self.attempts_on_this_side = 0;
        self.needs_a_fresh_one = false;
        self.end.server = None;
        self.leave();
    }

    /// Sends the request, and reads the first bytes of an answer. After an error no byte of an
    /// answer was received.
    pub(super) async fn ask<S: LaneStream>(
        &mut self,
        client: &mut ClientSide<'_, S>,
        stream: &mut TcpStream,
        response_timeout: Duration,
    ) -> Result<Buffer, RelayError> {
        let mut out = Scratch::new();
        let head = self.request.of(self.head_bytes.filled());
        head.write(&mut out, |splice| {
            splice.drop_named(b"connection");
            self.lane
                .router
                .edits(&self.exchange, &head, self.watched.conn(), splice);
        });
        out.extend_from_slice(&self.head_bytes.filled()[self.request.head..]);
        self.something_sent = true;
        self.watched.within(response_timeout);
        let reset = RelayError::Backend(FailureKind::Reset);
        let written = write_all(
            stream,
            &out,
            self.watched,
            reset,
            RelayError::Backend(FailureKind::Timeout),
        )
        .await;
        drop(out);
        match written {
            Ok(()) if self.upload.is_over() => self.sent(),
            Ok(()) => self.watched.within(self.lane.body_idle),
            // The backend may have answered before it closed the connection.
            Err(broken) if broken == reset => self.upload.refuse(),
            Err(broken) => return Err(broken),
        }
        let mut response = Buffer::new(Size::Head);
        self.fill(client, stream, &mut response, response_timeout)
            .await?;
        Ok(response)
    }

    pub(super) fn sent(&mut self) {
        if !self.exchange.is_sent() {
            self.lane.router.sent(&mut self.exchange, now());
        }
    }
}
