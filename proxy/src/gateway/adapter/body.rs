//! The body of a request, as the proxy engine reads it.

use super::Adapter;
use crate::clock;
use crate::gateway::adapter::context::Context;
use crate::gateway::adapter::timeouts::RequestTimeouts;
use bytes::Bytes;
use pingora::prelude::*;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

impl Adapter {
    /// Takes the next part of the request body: its size, its pace, and its end.
    ///
    /// # Errors
    /// When the body is larger than `max_body`, or slower than the least rate.
    pub(super) fn body_part(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Box<Context>,
    ) -> Result<()> {
        context.body_bytes += body.as_ref().map_or(0, |body| body.len() as u64);
        let now = context
            .patience
            .as_ref()
            .map_or_else(clock::mono, RequestTimeouts::now);
        if context.is_paced && !end_of_stream && !context.pace.is_kept(context.body_bytes, now) {
            return Err(Error::explain(
                ErrorType::ReadTimedout,
                "the body comes with less than 100 bytes a second",
            )
            .into_down());
        }
        if let (Some(patience), Some(exchange)) = (
            &context.patience,
            context
                .exchange
                .as_ref()
                .filter(|_| !session.was_upgraded()),
        ) {
            let settings = exchange.backend().settings();
            patience.await_taking(if context.is_call {
                settings.stream_idle_timeout
            } else {
                settings.response_timeout
            });
            if context.is_call {
                patience.answer_moved();
            }
        }
        if context.body_bytes > self.max_body && !session.was_upgraded() {
            // The error is marked as the client's, so that the request ends with a 413 and not as a
            // failure of the backend.
            return Err(Error::explain(
                ErrorType::HTTPStatus(413),
                "the request body is larger than max_body",
            )
            .into_down());
        }
        if end_of_stream {
            // An empty last part would end a chunked body twice. The second end would stand before
            // the next request on that connection (cloudflare/pingora#935).
            body.take_if(|body| body.is_empty());
            if let Some(exchange) = context
                .exchange
                .as_mut()
                .filter(|exchange| !exchange.is_sent())
            {
                self.router.sent(exchange, clock::mono());
                let limit = exchange.backend().settings().response_timeout;
                if !context.is_call && !context.answer_begun {
                    context.await_answer(limit);
                }
            }
        }
        Ok(())
    }
}
