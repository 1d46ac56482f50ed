//! Reads the counters and asks the plane what follows from them.

use super::{ASKED_BEFORE_A_ROLLBACK, Control, Waiting};
use crate::clock;
use crate::shared::control_handle::Refusal;
use crate::shared::recorder::{self, WAIT_TICKS, slot_of};
use crate::upstream::probe::Answer;
use cutover_core::stats::users::tick_of;
use cutover_core::{
    CommandError, Effect, Event, Mono, Observed, PerSide, Rule, Side, TICK, Totals,
};
use std::ops::Range;

/// What was seen of one rollout, beside its totals.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) look: recorder::Look,
    pub(super) available: PerSide<bool>,
    pub(super) passes_checks: PerSide<bool>,
}

/// Why the plane is shown what was seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look<'a> {
    /// A tick is over.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A backend has said whether it can take users.
    Answer(&'a Answer),
}

/// Ticks after which one was held up by more than the work of the loop.
pub(super) const HELD_UP: u32 = 6;

/// Between which ticks the process stood still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standstill {
    pub(super) begun: u64,
    pub(super) ended: u64,
}

impl Standstill {
    /// Whether requests from before it may still be waiting at this tick.
    pub(super) fn is_recent(self, tick: u64) -> bool {
        tick < self.ended + WAIT_TICKS as u64
    }
}

/// The tick up to which all requests have waited for `older` ticks, of which a standstill counts
/// none.
pub(super) fn reached(now: u64, older: u64, standstill: Option<Standstill>) -> u64 {
    let until = now.saturating_sub(older);
    match standstill {
        Some(Standstill { begun, ended }) if until < ended => {
            until.saturating_sub(ended - begun).min(begun)
        }
        Some(_) | None => until,
    }
}

impl Control {
    pub(super) async fn tick(&mut self) {
        self.note_standstill(clock::mono());
        self.reader.read();
        self.reader.hand_out_permits(clock::mono());
        let effects = self.judge(Look::Tick);
        self.carry_out(effects).await;
        self.send_away(clock::mono());
        if self.disk.is_durable()
            && let Some(split) = self.held.take()
        {
            let in_force = self.published.load();
            let raises = split.rollouts.iter().any(|rollout| {
                in_force
                    .split
                    .rollouts
                    .iter()
                    .any(|now| now.rule.id == rollout.rule.id && now.percent < rollout.percent)
            });
            if raises {
                tracing::info!(
                    "the state is durable again: the raise that was held back is now in force"
                );
            }
            self.publish_warm(split).await;
        }
    }

    /// Sends away what has outlived a rollback for long enough. Who is re-armed meanwhile is on new
    /// again, and stays.
    pub(super) fn send_away(&mut self, now: Mono) {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        self.leaving = later;
        for (_, id, before) in due {
            if let Some(rollout) = self
                .plane
                .rollouts()
                .iter()
                .find(|rollout| *rollout.id() == id && rollout.latch().is_some())
            {
                self.drains.order(slot_of(rollout.slot()), before);
            }
        }
    }

    pub(super) async fn look_at_failures(&mut self) {
        self.reader.read_counts();
        let effects = self.judge(Look::Failure);
        self.carry_out(effects).await;
    }

    /// A tick that comes much too late was held up: the process stood still, and no request has
    /// waited for its backend meanwhile.
    pub(super) fn note_standstill(&mut self, now: Mono) {
        let gap = now.since(self.ticked);
        if gap > TICK * HELD_UP {
            let begun = tick_of(self.ticked);
            // One that follows before the last is forgotten goes on with it.
            let begun = self
                .standstill
                .filter(|last| last.is_recent(begun))
                .map_or(begun, |last| last.begun);
            self.standstill = Some(Standstill {
                begun,
                ended: tick_of(now),
            });
        }
        self.ticked = now;
    }

    /// A backend has said whether it can take users.
    pub(super) async fn hear(&mut self, answer: Answer) {
        self.reader.read_counts();
        let effects = self.judge(Look::Answer(&answer));
        self.carry_out(effects).await;
        if answer.side != Side::Legacy {
            return;
        }
        let (heard, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| *waiting.rollout == *answer.rollout);
        self.waiting = waiting;
        for waiting in heard {
            let Waiting {
                rollout,
                command,
                actor,
                reason,
                if_revision,
                ..
            } = &waiting;
            let event = Event::Command {
                rollout,
                command: *command,
                actor: actor.clone(),
                reason: reason.clone(),
            };
            let done = match self.obey(event, if_revision.clone()).await {
                // One answer may be late by accident.
                Err(Refusal::Command(CommandError::MustAsk { id }))
                    if waiting.asked < ASKED_BEFORE_A_ROLLBACK =>
                {
                    self.ask(&id, Side::Legacy);
                    self.waiting.push(Waiting {
                        asked: waiting.asked + 1,
                        ..waiting
                    });
                    continue;
                }
                Err(Refusal::Command(CommandError::MustAsk { id })) => {
                    Err(CommandError::LegacyDown { id: id.to_string() }.into())
                }
                done => done,
            };
            let _ = waiting.reply.send(done);
        }
    }

    /// Shows the plane what has been counted, and hands what it tracker_limits at to the request
    /// path.
    pub(super) fn judge(&mut self, look: Look<'_>) -> Vec<Effect> {
        let now = clock::now();
        let seen = self.see(now.mono, matches!(look, Look::Tick));
        let nothing = PerSide::<Totals>::default();
        let totals: Vec<(&PerSide<Totals>, &PerSide<Totals>)> = self.reader.rollouts().collect();
        let observed: Vec<Observed<'_>> = seen
            .iter()
            .enumerate()
            .map(|(slot, seen)| {
                let (totals, compared) = totals.get(slot).copied().unwrap_or((&nothing, &nothing));
                seen.look
                    .observed(totals, compared, seen.available, seen.passes_checks)
            })
            .collect();
        let event = match look {
            Look::Tick => Event::Tick(&observed),
            Look::Failure => Event::Failure(&observed),
            Look::Answer(Answer {
                rollout,
                side,
                is_good,
            }) => Event::Answered {
                rollout,
                side: *side,
                is_good: *is_good,
                observed: &observed,
            },
        };
        // Looks are never refused.
        let effects = self.plane.on(event, now).unwrap_or_default();
        self.set_tracker_limits();
        effects
    }

    /// By control-plane slot: what was seen beside the totals.
    pub(super) fn see(&mut self, now: Mono, is_tick: bool) -> Vec<Seen> {
        let slots = self
            .plane
            .rollouts()
            .iter()
            .map(|rollout| rollout.slot() + 1)
            .max()
            .unwrap_or_default();
        self.waited_until
            .resize(slots.max(self.waited_until.len()), tick_of(now));
        let snapshot = self.published.load();
        (0..slots)
            .map(|slot| {
                let rollout = self
                    .plane
                    .rollouts()
                    .iter()
                    .find(|rollout| rollout.slot() == slot);
                let at = rollout.and_then(|rollout| {
                    snapshot
                        .split
                        .rollouts
                        .iter()
                        .position(|split| split.rule.id == *rollout.id())
                });
                let available = at.map_or(
                    PerSide {
                        legacy: true,
                        new: true,
                    },
                    |at| snapshot.available(at),
                );
                let passes_checks = at.map_or(
                    PerSide {
                        legacy: false,
                        new: false,
                    },
                    |at| snapshot.pass_checks(at, now),
                );
                let hang = rollout.and_then(|rollout| rollout.settings().guard.rule("hang"));
                let aged = is_tick.then(|| match hang {
                    Some(Rule::Hang(older_than_us)) => self.aged(slot, now, older_than_us),
                    _ => 0..0,
                });
                Seen {
                    look: self.reader.look(slot_of(slot), now, aged),
                    available,
                    passes_checks,
                }
            })
            .collect()
    }

    /// The ticks all of whose requests have reached this age since the last call.
    pub(super) fn aged(&mut self, slot: usize, now: Mono, older_than_us: u64) -> Range<u64> {
        let until = reached(
            tick_of(now),
            older_than_us.div_ceil(TICK.as_micros() as u64),
            self.standstill,
        );
        let from = self.waited_until[slot].max(until.saturating_sub(WAIT_TICKS as u64 / 2));
        self.waited_until[slot] = until.max(self.waited_until[slot]);
        from..until
    }

    /// Before anything is published: a re-armed rollout is to be judged by its first request.
    pub(super) fn set_tracker_limits(&self) {
        for rollout in self.plane.rollouts() {
            self.reader
                .watch(slot_of(rollout.slot()))
                .set_tracker_limits(rollout.tracker_limits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::observe::reached;

    #[test]
    fn no_request_grows_older_while_the_process_stands_still() {
        let standstill = Some(Standstill {
            begun: 100,
            ended: 148,
        });
        for (now, without, with) in [
            (148, 108, 60),
            (150, 110, 62),
            (186, 146, 98),
            (187, 147, 99),
            (188, 148, 148),
            (200, 160, 160),
        ] {
            assert_eq!(
                (reached(now, 40, None), reached(now, 40, standstill)),
                (without, with),
                "{now}"
            );
        }
    }
}
