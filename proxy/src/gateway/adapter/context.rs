//! What one request is on its way through pingora's phases.

use std::sync::Arc;
use std::time::Duration;

use cutover_core::{FailureKind, Mono};
use pingora::Error;

use crate::clock;
use crate::gateway::adapter::MAX_UNPROCESSED;
use crate::gateway::adapter::failure::{failure_of, was_not_taken_again};
use crate::gateway::adapter::timeouts::RequestTimeouts;
use crate::gateway::adapter::tunnel::Tunnel;
use crate::gateway::lane::min_rate::Pace;
use crate::gateway::message::head::Conn;
use crate::gateway::router::{Blame, End, Exchange, Failure, Router};
use crate::upstream::{Chosen, Connect};

/// What pingora carries for us through one request.
#[derive(Default)]
pub struct Context {
    pub(super) conn: Option<Arc<Conn>>,
    pub(super) patience: Option<RequestTimeouts>,
    /// For a request that is dropped before its end.
    pub(super) router: Option<Arc<Router>>,
    pub(super) path: Box<str>,
    pub(super) exchange: Option<Exchange>,
    /// When the request was decided, until its first attempt begins.
    pub(super) began: Option<Mono>,
    pub(super) end: End,
    pub(super) body_bytes: u64,
    pub(super) answer_begun: bool,
    /// The server of the present attempt.
    pub(super) chosen: Option<Chosen>,
    pub(super) attempts_on_this_side: u8,
    /// Whether a server has seen something of the request.
    pub(super) something_sent: bool,
    /// Whether the answer is thrown away and the other side asked.
    pub(super) asks_other_side: bool,
    pub(super) is_grpc: bool,
    /// Whether the request is a call of gRPC.
    pub(super) is_call: bool,
    /// Whether the answer was late.
    pub(super) is_late: bool,
    /// Attempts that the backend has not processed, or for which a kept connection was of no use.
    pub(super) unprocessed: u8,
    /// Whether the backend has not processed the request, which cannot be sent once more.
    pub(super) is_not_processed: bool,
    /// Interim answers so far.
    pub(super) interim: u8,
    /// Whether the kept connection was of no use, so that nothing was sent over it.
    pub(super) was_stale: bool,
    pub(super) tunnel: Option<Arc<Tunnel>>,
    /// Whether the body has to come at the least pace.
    pub(super) is_paced: bool,
    pub(super) pace: Pace,
}

impl Drop for Context {
    /// A request whose future is dropped has no other end: its client's connection has gone, it was
    /// sent away, or its backend takes no more of an upload.
    fn drop(&mut self) {
        let (Some(mut exchange), Some(router)) = (self.exchange.take(), self.router.take()) else {
            return;
        };
        let is_sent_away = self.conn.as_ref().is_some_and(|conn| conn.is_sent_away());
        let blame = if is_sent_away {
            Blame::Proxy
        } else {
            Blame::Client
        };
        let failure = if self.is_answer_late() {
            self.late_answer()
        } else {
            Failure {
                blame,
                kind: FailureKind::Reset,
            }
        };
        router.failed(&mut exchange, failure, None);
        router.done(
            exchange,
            &self.path,
            End {
                bytes_in: self.body_bytes,
                ..self.end
            },
            clock::mono,
        );
    }
}

impl Context {
    /// The present attempt is over, and the next one goes to the other side.
    pub(super) fn turn_to_the_other_side(&mut self) {
        self.chosen = None;
        self.was_stale = false;
        self.attempts_on_this_side = 0;
        self.end.server = None;
        if let Some(conn) = &self.conn {
            conn.stay.over();
        }
    }

    /// Something of the answer is awaited, for so long at most.
    pub(super) fn await_answer(&self, limit: Duration) {
        self.patience
            .iter()
            .for_each(|patience| patience.await_answer(limit));
    }

    /// Something of the answer has come, or an upload goes on beside it.
    pub(super) fn answer_moved(&self) {
        self.patience.iter().for_each(RequestTimeouts::answer_moved);
    }

    /// Nothing of the answer is awaited any longer.
    pub(super) fn answer_ended(&self) {
        self.patience.iter().for_each(RequestTimeouts::answer_ended);
    }

    /// Whether the answer is late, which ends the wait for it.
    pub(super) fn is_answer_late(&mut self) -> bool {
        self.is_late = self
            .patience
            .as_ref()
            .is_some_and(RequestTimeouts::is_answer_late);
        if let Some(conn) = self.conn.as_ref().filter(|_| self.is_late) {
            // The end of its backend's socket has been heard.
            conn.head_came();
        }
        self.answer_ended();
        self.is_late
    }

    /// What an error of the engine means for this request.
    pub(super) fn failure_of(&self, error: &Error) -> Failure {
        if self.is_late {
            return self.late_answer();
        }
        let failure = failure_of(error, self.answer_begun);
        // It was the backend that had asked for another attempt.
        let is_ours = self.unprocessed > 0 && was_not_taken_again(error);
        if is_ours {
            Failure {
                blame: Blame::Proxy,
                ..failure
            }
        } else {
            failure
        }
    }

    /// The failure of a backend whose answer, or the rest of it, did not arrive within its limit.
    const fn late_answer(&self) -> Failure {
        let kind = if self.answer_begun {
            FailureKind::Truncated
        } else {
            FailureKind::Timeout
        };
        Failure {
            blame: Blame::Backend,
            kind,
        }
    }

    /// Whether one more attempt may be made because the last one was not processed. It counts as
    /// none.
    pub(super) fn takes_one_more_attempt(&mut self) -> bool {
        let may = self.unprocessed < MAX_UNPROCESSED;
        self.unprocessed += u8::from(may);
        self.attempts_on_this_side = self.attempts_on_this_side.saturating_sub(u8::from(may));
        may
    }

    /// An attempt at this server begins.
    pub(super) fn attempt(&mut self, router: &Router, chosen: Chosen, now: Mono) {
        let address = chosen.server().address();
        self.end.server = Some(address);
        self.end.attempts = self.end.attempts.saturating_add(1);
        self.attempts_on_this_side += u8::from(!self.was_stale);
        if let Some(exchange) = &mut self.exchange {
            router.attempt(exchange, address, now);
        }
        self.chosen = Some(chosen);
    }

    /// The attempt, of a request or a warm-up, has its connection or has none.
    pub(super) fn connected(&self, how: Connect) {
        let server = self
            .chosen
            .as_ref()
            .map(Chosen::server)
            .or_else(|| self.conn.as_ref()?.warms.as_ref());
        if let Some(server) = server {
            server.connected(how);
        }
    }

    /// The present attempt is over without an answer, or with half of one. What a client or a drain
    /// has ended is no failure of the server.
    pub(super) fn attempt_failed(&mut self, router: &Router, failure: Failure) {
        let is_drained = self
            .tunnel
            .as_ref()
            .is_some_and(|tunnel| tunnel.is_drained());
        let kind = Some(failure.kind).filter(|_| failure.blame == Blame::Backend && !is_drained);
        if let Some(exchange) = &mut self.exchange {
            router.attempt_ended(exchange, kind, clock::mono());
        }
    }

    /// The server of the present attempt gave no answer.
    pub(super) fn server_failed(&self) {
        if let (Some(exchange), Some(chosen)) = (&self.exchange, &self.chosen) {
            exchange.backend().failed(chosen.server(), clock::mono());
        }
    }
}
