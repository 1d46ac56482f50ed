//! The end of a request: its outcome, its counters, its log line and its span.

use super::exchange::Exchange;
use super::failover::{Blame, Failure, Moved, Said};
use super::route::new_request_id;
use super::{Router, Sketch, refuse};
use crate::gateway::message::fields::Fields;
use crate::gateway::message::head::Conn;
use crate::gateway::message::reply::Reply;
use crate::gateway::message::trace::Trace;
use crate::shared::failover_budget::FailoverResult;
use crate::shared::recorder::{Origin, UNMATCHED};
use crate::telemetry::access_log::{Line, Refused};
use crate::telemetry::request_summary::{Ended, Engine};
use crate::telemetry::traces::Finished;
use cutover_core::{Ending, Evidence, FailureKind, Maintenance, Mono, Outcome, Side, UserKey};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The facts that an engine knows at the end of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// The status that the client received, if any.
    pub status: Option<u16>,
    /// The number of body bytes from the client.
    pub bytes_in: u64,
    /// The number of body bytes to the client.
    pub bytes_out: u64,
    /// The address of the server that was used.
    pub server: Option<SocketAddr>,
    /// The number of attempts that were made.
    pub attempts: u8,
    /// The engine that moved the bytes.
    pub engine: Engine,
}

/// Returns the outcome of a request for its backend. A failure after the answer began also counts,
/// because the body was truncated.
pub(super) fn outcome(exchange: &Exchange) -> Outcome {
    let is_of_backend = matches!(
        exchange.failure,
        Some(Failure {
            blame: Blame::Backend,
            ..
        })
    );
    match exchange
        .said
        .filter(|_| !is_of_backend && exchange.status.is_some())
    {
        Some(Said::Failure) => return Outcome::Failure(FailureKind::Status),
        Some(Said::Ignore) => return Outcome::Ignored,
        Some(Said::Success) if exchange.failure.is_none() => return Outcome::Success,
        Some(Said::Success) | None => {}
    }
    match (exchange.failure, exchange.status) {
        (
            Some(Failure {
                blame: Blame::Backend,
                kind,
            }),
            _,
        ) => Outcome::Failure(kind),
        // If the backend had already answered 5xx, a disconnect of the client does not turn that
        // answer into a success.
        (_, Some(500..)) => Outcome::Failure(FailureKind::Status),
        (
            Some(Failure {
                blame: Blame::Client,
                ..
            }),
            _,
        ) => Outcome::Aborted,
        (
            Some(Failure {
                blame: Blame::Proxy,
                ..
            }),
            _,
        )
        | (None, None) => Outcome::Ignored,
        (None, Some(400..=499)) => Outcome::ClientError,
        (None, Some(_)) => Outcome::Success,
    }
}

/// Returns the entry of the access log for a refused request.
pub(super) fn told(reply: &Reply) -> Refused {
    Refused {
        code: reply.code,
        sentence: reply.sentence(),
    }
}

impl Router {
    /// Records that the backend has switched protocols.
    pub fn is_a_websocket(&self, exchange: &mut Exchange) {
        if let Some(in_flight) = &mut exchange.in_flight {
            in_flight.is_a_websocket();
        }
    }

    /// Records the status of a gRPC call whose answer began with 200. The backend sends the status
    /// in the header or the trailer.
    pub fn grpc_status(&self, exchange: &mut Exchange, code: &[u8]) {
        match code {
            b"0" => {}
            // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: these
            // are caused by a server.
            b"2" | b"4" | b"12" | b"13" | b"14" | b"15" => {
                exchange.failure.get_or_insert(Failure {
                    blame: Blame::Backend,
                    kind: FailureKind::Status,
                });
            }
            // The others are caused by the caller, like 4xx.
            _ => exchange.status = Some(400),
        }
    }

    /// Records a failure, and returns the client's answer if one can still be sent. `refusal` is
    /// the answer if the body of the request itself is invalid.
    pub fn failed(
        &self,
        exchange: &mut Exchange,
        failure: Failure,
        refusal: Option<Reply>,
    ) -> Reply {
        exchange.failure = Some(failure);
        if let Some(reply) = refusal {
            refuse(exchange, reply);
            return reply;
        }
        match failure.blame {
            Blame::Backend => match failure.kind {
                FailureKind::Timeout => Reply::TIMEOUT,
                FailureKind::Connect
                | FailureKind::Reset
                | FailureKind::Status
                | FailureKind::Truncated
                | FailureKind::Protocol => Reply::BAD_GATEWAY,
            },
            Blame::Client if failure.kind == FailureKind::Timeout => Reply::CLIENT_TIMEOUT,
            Blame::Client => Reply::BAD_REQUEST,
            Blame::Proxy => Reply::INTERNAL,
        }
    }

    /// Counts a request that was refused before the decision, and writes its log line. `end` holds
    /// what the client received, and `began` is when the request began.
    pub fn refused(
        &self,
        sketch: Sketch,
        conn: &Conn,
        reply: &Reply,
        end: End,
        began: Mono,
        now: Mono,
    ) {
        if let Some(why) = reply.refusal {
            self.refusals.add(why);
        }
        let snapshot = self.published.load();
        let Sketch { method, path } = sketch;
        let who = self.who(UserKey::None, conn.peer);
        let ending = Ending {
            outcome: Outcome::Ignored,
            status: end.status,
            latency_us: None,
            evidence: Evidence::None,
        };
        self.recorder.record(
            UNMATCHED,
            Side::Legacy,
            &ending,
            &Origin {
                who,
                path: &path,
                epoch: 0,
                at: now,
            },
        );
        let log = &snapshot.common.settings.log;
        if !self.access_log.is_on(log.access) {
            return;
        }
        let trace = Trace::of(&Fields::default(), false, None);
        let (request_id, total) = (new_request_id(&trace), now.since(began));
        let ended = Ended {
            at: crate::clock::wall(),
            total,
            method,
            path,
            status: end.status,
            rollout: None,
            decision: None,
            moved: None,
            outcome: Outcome::Ignored,
            client: conn.peer,
        };
        self.access_log.write(Line {
            ended,
            server: end.server,
            maintenance: Maintenance::Off,
            parked: Duration::ZERO,
            upstream: None,
            bytes_in: end.bytes_in,
            bytes_out: end.bytes_out,
            attempts: end.attempts,
            engine: end.engine,
            request_id,
            trace: trace.id,
            span: None,
            user: None,
            refused: Some(Box::new(told(reply))),
        });
    }

    /// Ends a request: records its outcome, its counters and its log line. The clock is read only
    /// if the time is needed.
    pub fn done(&self, mut exchange: Exchange, path: &str, end: End, clock: impl Fn() -> Mono) {
        let outcome = outcome(&exchange);
        if let Some(why) = exchange.refused.as_ref().and_then(|reply| reply.refusal) {
            self.refusals.add(why);
        }
        let latency_us = match outcome {
            Outcome::Failure(FailureKind::Timeout) => Some(clock().since(exchange.started)),
            Outcome::Success
            | Outcome::ClientError
            | Outcome::Failure(_)
            | Outcome::Aborted
            | Outcome::Ignored => exchange.answered.map(|at| at.since(exchange.started)),
        };
        let evidence = exchange.evidence();
        if exchange.failed_on_new.is_some() {
            let has_legacy_failed = matches!(outcome, Outcome::Failure(_));
            self.judge_failover(&mut exchange, has_legacy_failed, path, clock());
        }
        if exchange.moved == Some(Moved::Failover) {
            let saved = !matches!(outcome, Outcome::Failure(_));
            self.recorder.rescue(exchange.slot()).count(if saved {
                FailoverResult::Saved
            } else {
                FailoverResult::Failed
            });
        }
        let ending = Ending {
            outcome,
            status: end.status,
            latency_us: latency_us.map(cutover_core::time::micros),
            evidence,
        };
        // Without a latency there was no answer, so the end is now. Otherwise the end is known
        // without reading the clock.
        let at = latency_us.map_or_else(&clock, |latency| exchange.started.forward(latency));
        let origin = Origin {
            who: exchange.who,
            path,
            epoch: exchange.epoch(),
            at,
        };
        match exchange.in_flight.take() {
            Some(in_flight) => in_flight.end(&ending, &origin),
            // A request that maintenance answered did not reach any backend.
            None if exchange.maintenance != Maintenance::Off => {}
            None => self
                .recorder
                .record(exchange.slot(), exchange.side(), &ending, &origin),
        }
        self.tell(exchange, path, end, outcome, clock);
    }

    /// Writes and exports the records of a request that has ended.
    pub(super) fn tell(
        &self,
        exchange: Exchange,
        path: &str,
        end: End,
        outcome: Outcome,
        clock: impl Fn() -> Mono,
    ) {
        let log = &exchange.snapshot.common.settings.log;
        let is_unusual = exchange.moved.is_some() || !exchange.parked.is_zero();
        let has_line = self.access_log.is_on(log.access)
            && (exchange.refused.is_some()
                || self.access_log.wants(log, outcome, end.status, is_unusual));
        if !has_line && exchange.trace.spans.is_none() {
            return;
        }
        let now = clock();
        let ended = Ended {
            at: crate::clock::wall(),
            total: exchange.parked + now.since(exchange.started),
            method: exchange.method,
            path: path.into(),
            status: end.status,
            rollout: exchange
                .rollout
                .map(|at| Arc::clone(&exchange.snapshot.split.rollouts[at].rule.id)),
            decision: exchange.decision,
            moved: exchange.moved.map(Moved::name),
            outcome,
            client: exchange.client,
        };
        let Trace {
            id: trace,
            parent,
            spans,
            ..
        } = exchange.trace;
        let span = spans.as_ref().map(|spans| spans.id).or(parent);
        if let Some(mut spans) = spans {
            let failure = if let Outcome::Failure(kind) = outcome {
                Some(kind)
            } else {
                None
            };
            spans.ended(failure, now);
            self.traces.send(Finished {
                trace,
                parent,
                spans,
                ended: ended.clone(),
                ended_mono: now,
            });
        }
        if has_line {
            self.access_log.write(Line {
                ended,
                server: end.server,
                maintenance: exchange.maintenance,
                parked: exchange.parked,
                upstream: exchange.answered.map(|at| at.since(exchange.started)),
                bytes_in: end.bytes_in,
                bytes_out: end.bytes_out,
                attempts: end.attempts,
                engine: end.engine,
                request_id: exchange.request_id,
                trace,
                span,
                user: exchange.user,
                refused: exchange.refused.map(|reply| Box::new(told(&reply))),
            });
        }
    }
}
