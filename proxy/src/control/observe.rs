//! Reads the counters and passes them to the control plane.

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

/// The observations of one rollout, in addition to its totals.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) look: recorder::Look,
    pub(super) available: PerSide<bool>,
    pub(super) passes_checks: PerSide<bool>,
}

/// The reason why the counters are read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look<'a> {
    /// A tick has ended.
    Tick,
    /// A request to new has failed.
    Failure,
    /// A backend has answered whether it can take users.
    Answer(&'a Answer),
}

/// The number of ticks after which a tick was delayed by more than the work of the loop.
pub(super) const HELD_UP: u32 = 6;

/// The ticks between which the process stood still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standstill {
    pub(super) begun: u64,
    pub(super) ended: u64,
}

impl Standstill {
    /// Whether requests from before the standstill may still be waiting at this tick.
    pub(super) fn is_recent(self, tick: u64) -> bool {
        tick < self.ended + WAIT_TICKS as u64
    }
}

/// Returns the tick up to which all requests have waited for `older` ticks. A standstill does not
/// count as waiting.
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
            && let Some(split) = self.awaiting_persist.take()
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

    /// Sends away connections and requests that have outlived a rollback for long enough. Users of
    /// a rollout that was re-armed in the meantime are on new again, and stay.
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

    /// Records a standstill. If a tick is much too late, the process stood still, and no request
    /// has waited for its backend in that time.
    pub(super) fn note_standstill(&mut self, now: Mono) {
        let gap = now.since(self.ticked);
        if gap > TICK * HELD_UP {
            let begun = tick_of(self.ticked);
            // A standstill that follows before the last one is forgotten extends it.
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

    /// Handles the answer of a backend about whether it can take users.
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
                // A single answer may be late by chance.
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

    /// Passes the counted events to the control plane, and passes the limits of its user trackers
    /// to the request path.
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
        // Checks are never refused.
        let effects = self.plane.on(event, now).unwrap_or_default();
        self.set_tracker_limits();
        effects
    }

    /// Returns the observations in addition to the totals, by control-plane slot.
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

    /// Returns the ticks in which all requests have reached this age since the last call.
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

    /// Sets the limits before anything is published, because a re-armed rollout must be judged from
    /// its first request.
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
    fn requests_do_not_age_while_the_process_stands_still() {
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
