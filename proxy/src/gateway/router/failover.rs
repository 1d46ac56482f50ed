//! Attempts, and requests that the other side answers instead.

use super::ending::outcome;
use super::exchange::Exchange;
use super::{Router, normalised};
use crate::shared::recorder::Origin;
use cutover_core::{Ending, Evidence, Failover, FailureKind, Mono, Outcome, Side};
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;

/// The number of attempts on one side: a server of the backend, and one more.
pub const ATTEMPTS_ON_A_SIDE: u8 = 2;

/// The treatment of an answer of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterResponse {
    /// Give the answer to the client.
    Deliver,
    /// Discard the answer and send the request to [`Exchange::backend`], which is now the other
    /// side.
    AskOtherSide,
}

/// How much of a request a backend may have seen when an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing, because there was no connection.
    Nothing,
    /// All or a part of the request, and it can be sent again.
    Repeatable,
    /// All or a part of the request, and the sent bytes are no longer available.
    Gone,
}

/// The reason why a request was moved to the other side after it had been sent to the decided one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// New failed, and legacy answers instead.
    Failover,
    /// The file was missing.
    Fallback,
}

impl Moved {
    /// Returns the name used in headers and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Fallback => "fallback",
        }
    }
}

/// The result that a backend reports for an answer, in the header that its rollout names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Success,
    Failure,
    Ignore,
}

impl Said {
    /// Parses the result. `None` if the bytes are not a known word.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.trim_ascii();
        let words = [
            (&b"success"[..], Self::Success),
            (b"failure", Self::Failure),
            (b"ignore", Self::Ignore),
        ];
        words
            .into_iter()
            .find_map(|(word, said)| bytes.eq_ignore_ascii_case(word).then_some(said))
    }
}

/// The failure of an attempt, as an engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The side to which the failure is attributed.
    pub blame: Blame,
    /// The kind of failure.
    pub kind: FailureKind,
}

/// The side to which a failure is attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The backend.
    Backend,
    /// The client.
    Client,
    /// The proxy itself.
    Proxy,
}

/// Returns whether a method changes nothing, so that the request may be sent twice.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

impl Router {
    /// Records that the whole request has been sent. From now on the client waits for the backend.
    pub fn sent(&self, exchange: &mut Exchange, now: Mono) {
        exchange.is_sent = true;
        let evidence = exchange.evidence();
        let counts = exchange.answered.is_none() && evidence.counts();
        if let Some(in_flight) = exchange.in_flight.as_mut().filter(|_| counts) {
            in_flight.waits(exchange.who, evidence, now);
        }
    }

    /// Decides what to do with the backend's first final answer. Informational answers do not
    /// count. `says` is the value of [`Exchange::outcome_header`]. `can_repeat` says whether the
    /// whole request can be sent again.
    pub fn answered(
        &self,
        exchange: &mut Exchange,
        status: u16,
        says: Option<&[u8]>,
        path: &str,
        can_repeat: bool,
        now: Mono,
    ) -> AfterResponse {
        if status < 200 && status != 101 {
            return AfterResponse::Deliver;
        }
        exchange.answered.get_or_insert(now);
        exchange.status = Some(status);
        exchange.said = says.and_then(Said::of);
        if exchange.failed_on_new.is_some() {
            let has_failed = matches!(outcome(exchange), Outcome::Failure(_));
            self.judge_failover(exchange, has_failed, path, now);
        }
        if let Some(spans) = &mut exchange.trace.spans {
            spans.answered(status);
        }
        if let Some(in_flight) = &mut exchange.in_flight {
            in_flight.is_answered();
        }
        let moves = match status {
            _ if !can_repeat => false,
            // The backend's own report takes precedence over its status.
            _ if matches!(exchange.said, Some(Said::Success | Said::Ignore)) => false,
            500.. => self.rescue(
                exchange,
                Failure {
                    blame: Blame::Backend,
                    kind: FailureKind::Status,
                },
                path,
                Sent::Repeatable,
                now,
            ),
            404 => self.fall_back(exchange, path, now),
            _ => false,
        };
        if moves {
            AfterResponse::AskOtherSide
        } else {
            AfterResponse::Deliver
        }
    }

    /// Records that an attempt at this server begins. Earlier sending is over.
    pub fn attempt(&self, exchange: &mut Exchange, server: SocketAddr, now: Mono) {
        let side = exchange.side();
        if let Some(spans) = &mut exchange.trace.spans {
            spans.attempt(side, server, now);
        }
    }

    /// Records that the current attempt has ended, and the server's failure if there was one.
    pub fn attempt_ended(&self, exchange: &mut Exchange, failure: Option<FailureKind>, now: Mono) {
        if let Some(spans) = &mut exchange.trace.spans {
            spans.ended(failure, now);
        }
    }

    /// Decides about a request that failed on new before any part of the answer was sent. Returns
    /// whether the request is now sent to legacy.
    pub fn rescue(
        &self,
        exchange: &mut Exchange,
        failure: Failure,
        path: &str,
        sent: Sent,
        now: Mono,
    ) -> bool {
        let (Some(at), true) = (exchange.rollout, failure.blame == Blame::Backend) else {
            return false;
        };
        if exchange.moved.is_some() || exchange.side() != Side::New || !exchange.evidence().counts()
        {
            return false;
        }
        let allowed = match exchange.snapshot.split.rollouts[at].rule.failover {
            Failover::Off => false,
            Failover::Connect => sent == Sent::Nothing,
            Failover::Safe => {
                sent == Sent::Nothing || (sent == Sent::Repeatable && is_safe(&exchange.method))
            }
        };
        if !allowed
            || !exchange.snapshot.prepared[at].backends[Side::Legacy].takes_failover(now)
            || !self.recorder.rescue(exchange.slot()).permit()
        {
            return false;
        }
        exchange.failure = Some(failure);
        self.move_over(exchange, Moved::Failover, path, now);
        true
    }

    /// Moves a request to the other side if a file is missing. The file may exist there, because
    /// assets are named by the build that needs them.
    pub(super) fn fall_back(&self, exchange: &mut Exchange, path: &str, now: Mono) -> bool {
        let Some(at) = exchange.rollout.filter(|_| {
            exchange.moved.is_none() && matches!(exchange.method, Method::GET | Method::HEAD)
        }) else {
            return false;
        };
        let rule = &exchange.snapshot.split.rollouts[at].rule;
        // The list is empty in nearly all configurations, and then the path is not read at all.
        if rule.fallback_on_404.is_empty()
            || !rule.falls_back(&normalised(path))
            || !exchange.snapshot.prepared[at].backends[exchange.side().other()].is_available()
        {
            return false;
        }
        exchange.status = None;
        self.move_over(exchange, Moved::Fallback, path, now);
        true
    }

    /// Ends the request on the decided side, with its outcome there, and begins it on the other.
    pub(super) fn move_over(&self, exchange: &mut Exchange, moved: Moved, path: &str, now: Mono) {
        let latency_us = exchange.answered.unwrap_or(now).since(exchange.started);
        let ending = Ending {
            outcome: outcome(exchange),
            status: None,
            latency_us: Some(cutover_core::time::micros(latency_us)),
            evidence: exchange.evidence(),
        };
        let in_flight = exchange.in_flight.take();
        match moved {
            // The request is over on new, but the answer of legacy decides whether that counts as a
            // failure of new.
            Moved::Failover => {
                drop(in_flight);
                exchange.failed_on_new = Some(Box::new(ending));
            }
            Moved::Fallback => {
                let origin = Origin {
                    who: exchange.who,
                    path,
                    epoch: exchange.epoch(),
                    at: now,
                };
                in_flight
                    .into_iter()
                    .for_each(|in_flight| in_flight.end(&ending, &origin));
            }
        }
        exchange.moved = Some(moved);
        (
            exchange.answered,
            exchange.status,
            exchange.failure,
            exchange.said,
        ) = (None, None, None, None);
        exchange.in_flight = Some(self.recorder.begin(exchange.slot(), exchange.side(), None));
        if let Some(at) = exchange.rollout {
            exchange.backend =
                Arc::clone(&exchange.snapshot.prepared[at].backends[exchange.side()]);
        }
    }

    /// Judges a request that failed on new, once legacy has answered or no answer is expected. A
    /// failure on both sides is caused by the request itself, or by something that both sides
    /// depend on.
    pub(super) fn judge_failover(
        &self,
        exchange: &mut Exchange,
        has_legacy_failed: bool,
        path: &str,
        now: Mono,
    ) {
        let Some(ending) = exchange.failed_on_new.take() else {
            return;
        };
        let evidence = if has_legacy_failed {
            Evidence::None
        } else {
            ending.evidence
        };
        let origin = Origin {
            who: exchange.who,
            path,
            epoch: exchange.epoch(),
            at: now,
        };
        self.recorder.record(
            exchange.slot(),
            Side::New,
            &Ending {
                evidence,
                ..*ending
            },
            &origin,
        );
    }
}
