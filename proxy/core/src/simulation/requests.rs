//! The handling of simulated requests.

use super::fault::{Fault, FaultKind};
use super::traffic::{KEYLESS_TIMES, PATHS, User};
use super::world::World;
use super::{POLL, POLLERS};
use crate::routing::split::{Ask, Decision, UserKey, decide};
use crate::side::{PerSide, Side};
use crate::stats::outcome::{Ending, FailureKind, Outcome};
use crate::stats::users::Requester;
use crate::time::micros;

impl World {
    pub(super) fn is_down(&self, side: Side) -> bool {
        self.faults(side).any(|kind| kind == FaultKind::NoServer)
    }

    /// Returns the faults of a side that are active now.
    pub(super) fn faults(&self, side: Side) -> impl Iterator<Item = FaultKind> + '_ {
        let elapsed = self.elapsed();
        let is_on = move |fault: &&Fault| {
            fault.side.is_none_or(|at| at == side)
                && elapsed >= fault.from
                && elapsed - fault.from < fault.lasts
        };
        self.scenario
            .faults
            .iter()
            .filter(is_on)
            .map(|fault| fault.kind)
    }

    pub(super) fn decide(&self, key: UserKey<'_>) -> Option<Decision> {
        let available = PerSide::from_fn(|side| !self.is_down(side));
        self.split.rollouts.first().map(|rollout| {
            decide(
                rollout,
                &Ask {
                    key,
                    override_to: None,
                    available,
                },
            )
        })
    }

    /// Simulates one request. Returns whether it failed on new.
    pub(super) fn request(
        &mut self,
        started: &mut PerSide<u64>,
        compared_started: &mut PerSide<u64>,
    ) -> bool {
        let traffic = self.scenario.traffic;
        let is_keyless = self.chance.happens(traffic.keyless);
        let is_poll = !is_keyless && self.chance.happens(traffic.polls);
        let number = match &self.activity {
            _ if is_poll => self
                .chance
                .below(((self.users.len() as f64 * POLLERS) as u32).max(1))
                as usize,
            Some(activity) => activity.draw(&mut self.chance),
            None => self.chance.below(self.users.len() as u32) as usize,
        };
        let User {
            who,
            is_listed,
            is_persistent,
            is_slow,
            luck,
            ..
        } = self.users[number];
        let key = if is_keyless {
            UserKey::None
        } else {
            UserKey::Known(&self.users[number].key)
        };
        let Some(decision) = self.decide(key) else {
            return false;
        };
        let (side, evidence) = (decision.side, decision.evidence());
        started[side] += 1;
        compared_started[side] += u64::from(evidence.is_compared());
        if is_poll {
            self.polls.push_back((self.now.mono, number));
            return false;
        }
        let mut ending = Ending {
            outcome: Outcome::Success,
            status: Some(200),
            latency_us: None,
            evidence,
        };
        let mut latency = f64::from(self.latencies[self.chance.below(1 << 16) as usize]);
        latency *= if is_slow { traffic.slow_times } else { 1.0 }
            * if is_listed { traffic.listed_times } else { 1.0 }
            * if is_keyless { KEYLESS_TIMES } else { 1.0 };
        let mut errors = traffic.errors;
        let mut client_errors = if is_persistent && !is_keyless {
            traffic.persistent_rate
        } else {
            traffic.client_errors
        };
        let (mut is_refused, mut is_hanging, mut is_redirected) = (false, false, false);
        let faults: Vec<FaultKind> = self.faults(side).collect();
        for fault in faults {
            match fault {
                FaultKind::Errors(rate) => errors = errors.max(rate),
                FaultKind::ErrorsOfUsers(share) => errors = if luck < share { 1.0 } else { errors },
                FaultKind::Refused | FaultKind::NoServer => is_refused = true,
                FaultKind::Slow(factor) => latency *= factor,
                FaultKind::Tail(share, factor) => {
                    latency *= if self.chance.happens(share) {
                        factor
                    } else {
                        1.0
                    }
                }
                FaultKind::ClientErrors(rate) => client_errors = client_errors.max(rate),
                FaultKind::Redirects(share) => is_redirected |= luck < share,
                FaultKind::Hang => is_hanging = true,
            }
        }
        if is_hanging {
            self.hanging.push_back((self.now.mono, side, who, evidence));
            self.on_new.0 += u64::from(side == Side::New);
            return false;
        }
        ending.latency_us = Some(latency.min(6e7) as u64);
        if is_refused {
            ending = Ending {
                outcome: Outcome::Failure(FailureKind::Connect),
                status: Some(502),
                latency_us: None,
                ..ending
            };
        } else if self.chance.happens(errors) {
            ending = Ending {
                outcome: Outcome::Failure(FailureKind::Status),
                status: Some(500),
                ..ending
            };
        } else if self.chance.happens(client_errors) {
            ending = Ending {
                outcome: Outcome::ClientError,
                status: Some(404),
                ..ending
            };
        } else if self.chance.happens(traffic.aborts) {
            ending = Ending {
                outcome: Outcome::Aborted,
                status: None,
                latency_us: None,
                ..ending
            };
        } else if is_redirected {
            ending.status = Some(302);
        }
        self.end(side, &ending, who)
    }

    /// Ends the long polls whose time has passed with a good answer. They are decided again,
    /// because only their side matters.
    pub(super) fn end_polls(&mut self) {
        while let Some((_, number)) = self
            .polls
            .pop_front_if(|(at, _)| self.now.mono.since(*at) >= POLL)
        {
            let User { key, who, .. } = self.users[number].clone();
            let Some(decision) = self.decide(UserKey::Known(&key)) else {
                continue;
            };
            let ending = Ending {
                outcome: Outcome::Success,
                status: Some(200),
                latency_us: Some(micros(POLL)),
                evidence: decision.evidence(),
            };
            self.end(decision.side, &ending, who);
        }
    }

    /// Counts the end of a request. Returns whether it failed on new.
    pub(super) fn end(&mut self, side: Side, ending: &Ending, who: Requester) -> bool {
        let path = PATHS[self.chance.below(PATHS.len() as u32) as usize];
        let counted = self.watch.see(side, ending, who, path, self.now.mono);
        self.totals[0][side].record(ending, counted);
        if ending.evidence.is_compared() {
            self.compared[0][side].record(ending, counted);
        }
        let failed = matches!(ending.outcome, Outcome::Failure(_));
        if side == Side::New {
            self.on_new.0 += 1;
            self.on_new.1 += u64::from(failed);
        }
        failed && side == Side::New
    }

    pub(super) fn make_noise(&mut self) {
        let mut noise = std::mem::take(&mut self.noise);
        for noisy in &mut noise {
            noisy.left -= 1;
            self.fails_on_purpose(noisy.who, noisy.side);
        }
        noise.retain(|noisy| noisy.left > 0);
        self.noise = noise;
    }

    pub(super) fn end_hanging(&mut self) {
        while let Some((_, side, who, evidence)) = self
            .hanging
            .pop_front_if(|(at, ..)| self.now.mono.since(*at) >= self.scenario.timeout)
        {
            let ending = Ending {
                outcome: Outcome::Failure(FailureKind::Timeout),
                status: Some(504),
                latency_us: Some(micros(self.scenario.timeout)),
                evidence,
            };
            self.end(side, &ending, who);
            self.on_new.0 -= u64::from(side == Side::New);
        }
    }
}
