//! What the router remembers of one request.

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

/// What one request remembers from its start to its end.
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
    /// Whether the client sent a header whose name is ours alone.
    pub(super) has_forged: bool,
    pub(super) may_last: bool,
    /// Where a line may be written: the user, as it is to be said.
    pub(super) user: Option<User>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) who: Requester,
    /// Whether the backend has all of the request.
    pub(super) is_sent: bool,
    /// Whether it has been moved to the side that was not decided.
    pub(super) moved: Option<Moved>,
    /// The failure on new that legacy is asked about. What both sides fail at is evidence on
    /// neither. Boxed, because hardly any request has one.
    pub(super) failed_on_new: Option<Box<Ending>>,
    /// What the backend says the answer was.
    pub(super) said: Option<Said>,
    /// The maintenance that answers it or keeps it waiting.
    pub(super) maintenance: Maintenance,
    /// How long it was parked before it was decided, which is no time of any backend.
    pub(super) parked: Duration,
    /// While it is parked.
    pub(super) held: Option<Held>,
    /// The answer to the request if the request itself is at fault. Boxed, because hardly any
    /// request has one.
    pub(super) refused: Option<Box<Reply>>,
}

impl Exchange {
    /// Where the request goes.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Where a rollback of its rollout finds it: the recorder slot and the revision it was decided
    /// under. `None` unless it is one that a rollback concerns.
    pub fn stays_on_new(&self) -> Option<(usize, u64)> {
        let decided = self
            .decision
            .is_some_and(|decision| decision.reason != Reason::Override);
        (decided && self.side() == Side::New).then(|| (self.slot(), self.snapshot.split.revision))
    }

    /// Whether the backend has all of the request.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// The rollout that takes it, if one does.
    pub fn rollout(&self) -> Option<&Arc<str>> {
        self.rollout
            .map(|at| &self.snapshot.split.rollouts[at].rule.id)
    }

    /// Whether its head says that it may become, or be answered by, something that lasts.
    pub fn may_last(&self) -> bool {
        self.may_last
    }

    /// Whether every server that it may be sent to, on either side, speaks HTTP/1.1 without TLS.
    pub fn is_plain(&self) -> bool {
        self.rollout
            .map_or(self.snapshot.common.is_default_plain, |at| {
                self.snapshot.prepared[at].is_plain
            })
    }

    /// When it began.
    pub fn started(&self) -> Mono {
        self.started
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// How long it was parked so far.
    pub fn parked(&self) -> Duration {
        self.parked
    }

    pub(super) fn slot(&self) -> usize {
        self.rollout
            .map_or(UNMATCHED, |at| self.snapshot.prepared[at].slot)
    }

    /// The side that is asked now.
    pub(super) fn side(&self) -> Side {
        let decided = self.decision.map_or(Side::Legacy, |decision| decision.side);
        if self.moved.is_some() {
            decided.other()
        } else {
            decided
        }
    }

    /// The header in which the backend says what its answer was, if its rollout names one.
    pub fn outcome_header(&self) -> Option<&HeaderName> {
        self.rollout
            .and_then(|at| self.snapshot.prepared[at].outcome_header.as_ref())
    }

    /// What comes of it is evidence of. Whoever was moved to the side that is asked now is no fair
    /// sample of it.
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
