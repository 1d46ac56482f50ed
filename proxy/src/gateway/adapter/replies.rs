//! The proxy's own answers, written by the engine.

use bytes::Bytes;
use http::Method;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::proxy::Session;

use crate::clock;
use crate::gateway::adapter::Adapter;
use crate::gateway::adapter::heads::RequestHead;
use crate::gateway::message::head::Conn;
use crate::gateway::message::reply::{Reply, wants_html};
use crate::gateway::message::validate;
use crate::gateway::router::{Exchange, Router, Step};

impl Adapter {
    /// Writes one of the proxy's own answers to the client.
    pub(super) async fn reply(&self, session: &mut Session, reply: Reply) -> Result<()> {
        let (body, content_type) = reply.body(wants_html(&RequestHead::of(session)));
        let head_only = session.req_header().method == Method::HEAD;
        let mut response = ResponseHeader::build(reply.status, Some(4))?;
        response.insert_header(http::header::CONTENT_TYPE, content_type)?;
        response.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        response.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        if let Some(seconds) = reply.retry_after {
            response.insert_header(http::header::RETRY_AFTER, seconds)?;
        }
        // The request body may be unread, and the bytes that follow on this connection could be
        // mistaken for a request.
        let keepalive = if reply.retry_after.is_some() && session.is_body_empty() {
            session.get_keepalive()
        } else {
            None
        };
        session.set_keepalive(keepalive);
        session
            .write_response_header(Box::new(response), head_only)
            .await?;
        if !head_only {
            session
                .write_response_body(Some(Bytes::from(body)), true)
                .await?;
        }
        Ok(())
    }
}

/// Returns the router's answer to a request that the engine must not see, and whether it is HTML.
pub(in crate::gateway) fn refusal(
    router: &Router,
    head: &RequestHeader,
    conn: &Conn,
) -> (Exchange, Reply, bool) {
    let head = RequestHead { head, raw: b"" };
    let (exchange, step) = router.request(&head, conn, clock::mono());
    let reply = match step {
        Step::Reply(reply) | Step::Hold(reply) => reply,
        Step::Forward => validate::NO_TARGET,
    };
    (exchange, reply, wants_html(&head))
}
