//! The state that the router keeps for one request.

use super::failover::{Failure, Moved, Said};
use crate::gateway::message::reply::Reply;
use crate::gateway::message::trace::Trace;
use crate::shared::published::Snapshot;
use crate::shared::recorder::{Held, InFlight, UNMATCHED};
use crate::telemetry::access_log::User;
use crate::telemetry::request_summary::RequestId;
use crate::upstream::Backend;
use cutover_core::{Decision, Ending, Evidence, Maintenance, Mono, Reason, Requester, Side};
use http::{HeaderName, HeaderValue, Method};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The state of one request from its start to its end.
#[derive(Debug)]
pub struct Exchange {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) rollout: Option<usize>,
    pub(super) decision: Option<Decision>,
    pub(super) backend: Arc<Backend>,
    pub(super) started: Mono,
    pub(super) answered: Option<Mono>,
    pub(super) status: Option<u16>,
    pub(super) failure: Option<Failure>,
    pub(super) client: IpAddr,
    pub(super) request_id: RequestId,
    pub(super) trace: Trace,
    pub(super) set_cookie: Option<HeaderValue>,
    pub(super) method: Method,
    /// Whether the client sent a header whose name is reserved for the proxy.
    pub(super) has_forged: bool,
    pub(super) may_last: bool,
    /// The user in the form in which it is logged. `Some` only if a log line may be written.
    pub(super) user: Option<User>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) who: Requester,
    /// Whether the backend has received the whole request.
    pub(super) is_sent: bool,
    /// The reason why the request was moved to the side that was not decided. `None` if it was not
    /// moved.
    pub(super) moved: Option<Moved>,
    /// The failure on new after which the request was sent to legacy. A request that fails on both
    /// sides is evidence against neither. Boxed, because hardly any request has one.
    pub(super) failed_on_new: Option<Box<Ending>>,
    /// The result that the backend reports for its answer.
    pub(super) said: Option<Said>,
    /// The maintenance that answers the request or holds it.
    pub(super) maintenance: Maintenance,
    /// How long the request was held before the decision. This time is attributed to no backend.
    pub(super) parked: Duration,
    /// The place in the hold queue, while the request is held.
    pub(super) held: Option<Held>,
    /// The answer to the request if the request itself is invalid. Boxed, because hardly any
    /// request has one.
    pub(super) refused: Option<Box<Reply>>,
}

impl Exchange {
    /// Returns the backend of the request.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Returns where a rollback of its rollout finds the request: the recorder slot, and the
    /// revision under which it was decided. `None` if no rollback concerns the request.
    pub fn stays_on_new(&self) -> Option<(usize, u64)> {
        let decided = self
            .decision
            .is_some_and(|decision| decision.reason != Reason::Override);
        (decided && self.side() == Side::New).then(|| (self.slot(), self.snapshot.split.revision))
    }

    /// Returns whether the backend has received the whole request.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Returns the rollout that matched the request, if any.
    pub fn rollout(&self) -> Option<&Arc<str>> {
        self.rollout
            .map(|at| &self.snapshot.split.rollouts[at].rule.id)
    }

    /// Returns whether the head says that the exchange may be long-lived.
    pub fn may_last(&self) -> bool {
        self.may_last
    }

    /// Returns whether every server that the request may be sent to, on either side, speaks
    /// HTTP/1.1 without TLS.
    pub fn is_plain(&self) -> bool {
        self.rollout
            .map_or(self.snapshot.common.is_default_plain, |at| {
                self.snapshot.prepared[at].is_plain
            })
    }

    /// Returns when the request began.
    pub fn started(&self) -> Mono {
        self.started
    }

    /// Returns the method of the request.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns how long the request has been held so far.
    pub fn parked(&self) -> Duration {
        self.parked
    }

    pub(super) fn slot(&self) -> usize {
        self.rollout
            .map_or(UNMATCHED, |at| self.snapshot.prepared[at].slot)
    }

    /// Returns the side that currently handles the request.
    pub(super) fn side(&self) -> Side {
        let decided = self.decision.map_or(Side::Legacy, |decision| decision.side);
        if self.moved.is_some() {
            decided.other()
        } else {
            decided
        }
    }

    /// Returns the header in which the backend reports the result of its answer, if the rollout
    /// names one.
    pub fn outcome_header(&self) -> Option<&HeaderName> {
        self.rollout
            .and_then(|at| self.snapshot.prepared[at].outcome_header.as_ref())
    }

    /// Returns what the outcome is evidence of. A user that was moved to the current side is not a
    /// fair sample of it.
    pub(super) fn evidence(&self) -> Evidence {
        if self.moved.is_some() {
            Evidence::None
        } else {
            self.decision
                .map_or(Evidence::None, |decision| decision.evidence())
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.rollout
            .map_or(0, |at| self.snapshot.split.rollouts[at].epoch)
    }
}
