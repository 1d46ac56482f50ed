//! Decides whether a request gets another attempt after one that gave no answer.

use pingora::ErrorType;
use pingora::prelude::*;
use pingora::proxy::Session;

use crate::clock;
use crate::gateway::adapter::Adapter;
use crate::gateway::adapter::context::Context;
use crate::gateway::adapter::failure::{self, can_repeat, failure_of};
use crate::gateway::router::{ATTEMPTS_ON_A_SIDE, Blame, Sent, is_safe};
use crate::upstream::Connect;

impl Adapter {
    /// Handles an attempt that has no connection. Records in the error whether another attempt is
    /// made.
    pub(super) fn after_no_connection(
        &self,
        session: &Session,
        context: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let failure = failure_of(&error, false);
        let is_backends = failure.blame == Blame::Backend;
        // A kept HTTP/2 connection ended before a stream was opened on it, so nothing was sent.
        if is_backends && failure::was_kept(&error) && context.takes_one_more_attempt() {
            context.attempt_failed(&self.router, failure);
            error.set_retry(true);
            return error;
        }
        if is_backends {
            context.server_failed();
        }
        if is_backends && error.etype() != &ErrorType::ConnectionClosed {
            context.connected(Connect::Failed);
        }
        context.attempt_failed(&self.router, failure);
        let Some(exchange) = &mut context.exchange else {
            return error;
        };
        let another = is_backends
            && exchange.backend().servers().len() > 1
            && context.attempts_on_this_side < ATTEMPTS_ON_A_SIDE;
        let sent = match context.something_sent {
            false => Sent::Nothing,
            true if can_repeat(session) => Sent::Repeatable,
            true => Sent::Gone,
        };
        let rescued = !another
            && self.router.rescue(
                exchange,
                failure,
                session.req_header().uri.path(),
                sent,
                clock::mono(),
            );
        if rescued {
            context.turn_to_the_other_side();
        }
        error.set_retry(another || rescued);
        error
    }

    /// Handles an attempt that failed after it had a connection. When a kept connection closes
    /// before the first byte of the answer, the backend may or may not have begun. Only a request
    /// with a safe method is then sent again, and only while its whole body is still in the buffer.
    /// Pingora's own policy would also repeat PUT and DELETE.
    pub(super) fn after_an_attempt(
        &self,
        session: &Session,
        context: &mut Context,
        mut error: Box<Error>,
        reused: bool,
    ) -> Box<Error> {
        if std::mem::take(&mut context.asks_other_side) || context.was_stale {
            error.set_retry(true);
            return error;
        }
        let is_late = context.is_answer_late();
        if is_late {
            // An HTTP/2 connection on which an answer is late may be dead.
            context
                .chosen
                .iter()
                .for_each(|chosen| chosen.server().leave_connections());
        }
        if !is_late && !context.answer_begun && failure::was_not_processed(&error) {
            return self.not_processed(session, error, context);
        }
        let may_repeat =
            is_safe(&session.req_header().method) && !context.answer_begun && can_repeat(session);
        if may_repeat && !is_late && context.attempts_on_this_side < ATTEMPTS_ON_A_SIDE {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        let failure = context.failure_of(&error);
        context.attempt_failed(&self.router, failure);
        if error.retry() || failure.blame != Blame::Backend || context.answer_begun {
            return error;
        }
        context.server_failed();
        let Some(exchange) = context
            .exchange
            .as_mut()
            .filter(|exchange| exchange.is_sent())
        else {
            return error;
        };
        if may_repeat
            && self.router.rescue(
                exchange,
                failure,
                session.req_header().uri.path(),
                Sent::Repeatable,
                clock::mono(),
            )
        {
            context.turn_to_the_other_side();
            error.set_retry(true);
        }
        error
    }

    /// Handles a backend that says it has not begun to process the request (RFC 9113, section 8.7).
    /// The request may be sent again whatever its method, if all of it is still in the buffer.
    fn not_processed(
        &self,
        session: &Session,
        mut error: Box<Error>,
        context: &mut Context,
    ) -> Box<Error> {
        let failure = failure_of(&error, false);
        let is_whole = can_repeat(session);
        context.attempt_failed(&self.router, failure);
        if is_whole && context.takes_one_more_attempt() {
            error.set_retry(true);
            return error;
        }
        error.set_retry(false);
        if !is_whole && failure::is_graceful(&error) {
            // The backend closes the connection gracefully, and the request is no longer complete
            // in the buffer. This failure is attributed to neither side.
            context.is_not_processed = true;
            return error;
        }
        context.server_failed();
        if let Some(exchange) = context.exchange.as_mut().filter(|_| is_whole)
            && self.router.rescue(
                exchange,
                failure,
                session.req_header().uri.path(),
                Sent::Nothing,
                clock::mono(),
            )
        {
            context.turn_to_the_other_side();
            error.set_retry(true);
        }
        error
    }
}
