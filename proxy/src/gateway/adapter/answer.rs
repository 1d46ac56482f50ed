//! The head of an answer, as the proxy engine reads it.

use super::{Adapter, timeouts, tunnel};
use crate::clock;
use crate::gateway::adapter::context::Context;
use crate::gateway::adapter::failure::can_repeat;
use crate::gateway::router::{AfterResponse, MAX_INTERIM};
use http::{StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

impl Adapter {
    /// Takes the head of an answer of the backend, interim answers included.
    ///
    /// # Errors
    /// When the head may not be passed on, or when the other side is to answer instead.
    pub(super) fn answer_head(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        // A backend that speaks HTTP/1.0 is no reason to speak HTTP/1.0 to the client.
        response.set_version(Version::HTTP_11);
        if context.tunnel.is_some() && response.status == StatusCode::SWITCHING_PROTOCOLS {
            // While one side is silent, the other side may speak. The tunnel itself detects when
            // both have been silent for longer than allowed.
            session.set_read_timeout(None);
            context.answer_ended();
            if let Some(tunnel) = &context.tunnel {
                tunnel.open();
            }
            if let Some(exchange) = &mut context.exchange {
                self.router.is_a_websocket(exchange);
            }
        } else if response.status.is_informational() {
            context.interim = context.interim.saturating_add(1);
            if context.interim > MAX_INTERIM || response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Error::explain(
                    ErrorType::InvalidHTTPHeader,
                    "too many interim answers, or a switch of protocols without a request for it",
                )
                .into_up());
            }
            if let Some(name) = context
                .exchange
                .as_ref()
                .and_then(|exchange| exchange.outcome_header())
            {
                response.remove_header(name);
            }
            context.answer_moved();
            return Ok(());
        } else if let Some(exchange) = &context.exchange {
            let content_type = response
                .headers
                .get(http::header::CONTENT_TYPE)
                .map(http::HeaderValue::as_bytes);
            let is_stream = timeouts::is_stream(
                content_type,
                response.headers.contains_key(http::header::CONTENT_LENGTH),
            );
            context.await_answer(exchange.backend().settings().pause(is_stream));
        }
        if let Some(chosen) = &context.chosen {
            chosen.server().answered();
        }
        if let Some(exchange) = &mut context.exchange {
            let can_repeat = can_repeat(session);
            let said = exchange
                .outcome_header()
                .and_then(|name| response.headers.get(name))
                .map(http::HeaderValue::as_bytes);
            if self.router.answered(
                exchange,
                response.status.as_u16(),
                said,
                session.req_header().uri.path(),
                can_repeat,
                clock::mono(),
            ) == AfterResponse::AskOtherSide
            {
                context.turn_to_the_other_side();
                context.asks_other_side = true;
                let mut error = Error::create(
                    ErrorType::HTTPStatus(response.status.as_u16()),
                    ErrorSource::Upstream,
                    None,
                    None,
                );
                error.set_retry(true);
                return Err(error);
            }
            context.is_grpc = exchange.may_last() && tunnel::is_grpc(&response.headers);
            if let (true, Some(code)) = (context.is_grpc, response.headers.get("grpc-status")) {
                self.router.grpc_status(exchange, code.as_bytes());
            }
        }
        context.answer_begun = true;
        Ok(())
    }
}
