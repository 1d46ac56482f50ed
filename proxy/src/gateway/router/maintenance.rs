//! Requests that maintenance refuses or holds.

use super::exchange::Exchange;
use super::failover::{Blame, Failure, is_safe};
use super::{Router, Step};
use crate::gateway::message::head::{Conn, Head};
use crate::gateway::message::reply::Reply;
use crate::gateway::router::hold_queue::HoldOutcome;
use crate::shared::recorder::Halted;
use cutover_core::{FailureKind, Maintenance, Mono, Treatment};
use http::Method;

/// The value of `Retry-After`, in seconds, when maintenance has no end yet.
pub(super) const RETRY_AFTER: u32 = 30;

/// Creates the answer that a client receives during maintenance. The suggested time for a retry is
/// the end of maintenance, if there is one.
pub(super) fn closed_reply(exchange: &Exchange, now: Mono) -> Reply {
    let remaining = exchange
        .snapshot
        .split
        .restriction(exchange.rollout)
        .remaining(now);
    let retry_after = remaining.map_or(RETRY_AFTER, |remaining| {
        u32::try_from(remaining.as_micros().div_ceil(1_000_000))
            .unwrap_or(u32::MAX)
            .max(1)
    });
    let message = match exchange.maintenance {
        Maintenance::ReadOnly => {
            "this service is read-only for maintenance, please try again later"
        }
        Maintenance::Off | Maintenance::Hold | Maintenance::Full => {
            "this service is closed for maintenance, please try again later"
        }
    };
    Reply::maintenance(message, retry_after)
}

impl Router {
    /// Decides what maintenance does to a request that is not from a tester. `None` if the request
    /// passes.
    pub(super) fn closed(
        &self,
        exchange: &mut Exchange,
        at: Option<usize>,
        method: &Method,
        now: Mono,
    ) -> Option<Step> {
        let mode = exchange.snapshot.split.restriction(at).mode;
        let treatment = mode.treats(is_safe(method));
        if treatment == Treatment::Pass {
            return None;
        }
        exchange.rollout = at;
        exchange.maintenance = mode;
        let reply = closed_reply(exchange, now);
        if treatment == Treatment::Hold {
            return Some(Step::Hold(reply));
        }
        self.recorder.halted(exchange.slot(), Halted::Refused);
        Some(Step::Reply(reply))
    }

    /// Counts a request as held. It already has a slot.
    pub fn park(&self, exchange: &mut Exchange) {
        exchange.held = Some(self.recorder.hold(exchange.slot()));
    }

    /// Ends the hold of a request. The request is either answered, or decided again on the current
    /// configuration as if it had just arrived.
    pub fn unparked(
        &self,
        mut exchange: Exchange,
        head: &impl Head,
        conn: &Conn,
        why: HoldOutcome,
        now: Mono,
    ) -> (Exchange, Step) {
        let held = exchange.held.take();
        let ended = |how: Halted| held.into_iter().for_each(|held| held.end(how));
        match why {
            HoldOutcome::Released => {
                ended(Halted::Released);
                let parked = exchange.parked + now.since(exchange.started);
                let (again, step) = self.request(head, conn, now);
                return (Exchange { parked, ..again }, step);
            }
            HoldOutcome::Expired => ended(Halted::Expired),
            HoldOutcome::NoPlace => self.recorder.halted(exchange.slot(), Halted::Refused),
            HoldOutcome::Left => {
                ended(Halted::Left);
                exchange.failure = Some(Failure {
                    blame: Blame::Client,
                    kind: FailureKind::Reset,
                });
            }
        }
        let reply = closed_reply(&exchange, now);
        (exchange, Step::Reply(reply))
    }
}
