//! The state of one request on its way through pingora's phases.

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

/// The state that pingora carries for the adapter through one request.
#[derive(Default)]
pub struct Context {
    pub(super) conn: Option<Arc<Conn>>,
    pub(super) patience: Option<RequestTimeouts>,
    /// The router, needed when a request is dropped before its end.
    pub(super) router: Option<Arc<Router>>,
    pub(super) path: Box<str>,
    pub(super) exchange: Option<Exchange>,
    /// The time of the decision about the request, until its first attempt begins.
    pub(super) began: Option<Mono>,
    pub(super) end: End,
    pub(super) body_bytes: u64,
    pub(super) answer_begun: bool,
    /// The server of the current attempt.
    pub(super) chosen: Option<Chosen>,
    pub(super) attempts_on_this_side: u8,
    /// Whether any part of the request has been sent to a server.
    pub(super) something_sent: bool,
    /// Whether the answer is discarded and the request is sent to the other side.
    pub(super) asks_other_side: bool,
    pub(super) is_grpc: bool,
    /// Whether the request is a gRPC call.
    pub(super) is_call: bool,
    /// Whether the answer was late.
    pub(super) is_late: bool,
    /// The number of attempts that the backend did not process, or for which a kept connection was
    /// unusable.
    pub(super) unprocessed: u8,
    /// Whether the backend has not processed the request and the request cannot be sent again.
    pub(super) is_not_processed: bool,
    /// The number of interim answers so far.
    pub(super) interim: u8,
    /// Whether the kept connection was unusable, so that nothing was sent over it.
    pub(super) was_stale: bool,
    pub(super) tunnel: Option<Arc<Tunnel>>,
    /// Whether the minimum rate applies to the request body.
    pub(super) is_paced: bool,
    pub(super) pace: Pace,
}

impl Drop for Context {
    /// A request whose future is dropped has no other end. Either the client's connection is gone,
    /// the request was drained, or the backend takes no more of an upload.
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
    /// Ends the current attempt and directs the next one to the other side.
    pub(super) fn turn_to_the_other_side(&mut self) {
        self.chosen = None;
        self.was_stale = false;
        self.attempts_on_this_side = 0;
        self.end.server = None;
        if let Some(conn) = &self.conn {
            conn.stay.over();
        }
    }

    /// Expects a part of the answer within `limit`.
    pub(super) fn await_answer(&self, limit: Duration) {
        self.patience
            .iter()
            .for_each(|patience| patience.await_answer(limit));
    }

    /// Records that a part of the answer was received, or that an upload continues beside it.
    pub(super) fn answer_moved(&self) {
        self.patience.iter().for_each(RequestTimeouts::answer_moved);
    }

    /// Stops expecting any part of the answer.
    pub(super) fn answer_ended(&self) {
        self.patience.iter().for_each(RequestTimeouts::answer_ended);
    }

    /// Returns whether the answer is late, and ends the wait for it if so.
    pub(super) fn is_answer_late(&mut self) -> bool {
        self.is_late = self
            .patience
            .as_ref()
            .is_some_and(RequestTimeouts::is_answer_late);
        if let Some(conn) = self.conn.as_ref().filter(|_| self.is_late) {
            // The engine has noticed the end of its backend's socket.
            conn.head_came();
        }
        self.answer_ended();
        self.is_late
    }

    /// Returns what an error of the engine means for this request.
    pub(super) fn failure_of(&self, error: &Error) -> Failure {
        if self.is_late {
            return self.late_answer();
        }
        let failure = failure_of(error, self.answer_begun);
        // The backend itself had requested another attempt.
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

    /// Returns the failure of a backend whose answer, or the rest of it, did not arrive within its
    /// limit.
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

    /// Returns whether one more attempt may be made because the last one was not processed. That
    /// attempt does not count against the limit.
    pub(super) fn takes_one_more_attempt(&mut self) -> bool {
        let may = self.unprocessed < MAX_UNPROCESSED;
        self.unprocessed += u8::from(may);
        self.attempts_on_this_side = self.attempts_on_this_side.saturating_sub(u8::from(may));
        may
    }

    /// Records that an attempt at this server begins.
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

    /// Records whether the attempt, of a request or a prewarm, got a connection.
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

    /// Records that the current attempt ended without an answer, or with half of one. An attempt
    /// that was ended by the client or by a drain is not a failure of the server.
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

    /// Records that the server of the current attempt gave no answer.
    pub(super) fn server_failed(&self) {
        if let (Some(exchange), Some(chosen)) = (&self.exchange, &self.chosen) {
            exchange.backend().failed(chosen.server(), clock::mono());
        }
    }
}
