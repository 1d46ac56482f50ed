//! The headers that the router adds and removes.

use super::Router;
use super::exchange::Exchange;
use super::failover::Moved;
use super::route::joined;
use crate::gateway::message::forward;
use crate::gateway::message::head::{Conn, Edits, Head, Value};

impl Router {
    /// Edits the headers to the backend: forged ones are removed, ours are added.
    pub fn edits(
        &self,
        exchange: &Exchange,
        head: &impl Head,
        conn: &Conn,
        edits: &mut impl Edits,
    ) {
        if exchange.has_forged {
            edits.remove_all(forward::PREFIX);
        }
        if let (Some(at), Some(decision)) = (exchange.rollout, exchange.decision) {
            edits.set(&forward::BACKEND, Value::Word(exchange.side().name()));
            edits.set(
                &forward::ROLLOUT,
                Value::Shared(&exchange.snapshot.prepared[at].id),
            );
            edits.set(
                &forward::REASON,
                Value::Word(exchange.moved.map_or(decision.reason.name(), Moved::name)),
            );
            if let Some(bucket) = decision.bucket {
                edits.set(
                    &forward::BUCKET,
                    Value::Text(itoa::Buffer::new().format(bucket.number()).as_bytes()),
                );
            }
        }
        let host = head.host_value();
        let before = if conn.trusted {
            joined(head, &forward::FORWARDED_FOR)
        } else {
            None
        };
        forward::set_forwarding(edits, conn, host, before.as_deref());
        edits.set(
            &forward::REQUEST_ID,
            Value::Text(exchange.request_id.as_bytes()),
        );
        if let Some(traceparent) = exchange.trace.header() {
            edits.set(&forward::TRACEPARENT, Value::Text(&traceparent));
        }
        if exchange.trace.is_orphaned {
            edits.remove(&forward::TRACESTATE);
        }
    }

    /// Edits the headers to the client.
    pub fn client_edits(&self, exchange: &Exchange, edits: &mut impl Edits) {
        if let Some(name) = exchange.outcome_header() {
            edits.remove(name);
        }
        if let Some(cookie) = &exchange.set_cookie {
            edits.append(&forward::SET_COOKIE, Value::Shared(cookie));
            // A shared cache would pass the cookie, and with it the user's identity, to other
            // clients (RFC 9111, section 7.3).
            edits.append(&forward::CACHE_CONTROL, Value::Word("private"));
        }
        if let (true, Some(at)) = (
            exchange.snapshot.common.settings.routing.expose_decision,
            exchange.rollout,
        ) {
            edits.set(&forward::BACKEND, Value::Word(exchange.side().name()));
            edits.set(
                &forward::ROLLOUT,
                Value::Shared(&exchange.snapshot.prepared[at].id),
            );
        }
    }
}
