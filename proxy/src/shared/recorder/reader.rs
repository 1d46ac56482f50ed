//! Reads the counters of all threads for the control loop.

use super::maintenance::Halted;
use super::shard::{PLACES, Seen, Shard, WAIT_CELLS, WAIT_TICKS, add_news};
use super::{Registry, slot_of};
use crate::shared::failover_budget::BudgetRefill;
use cutover_core::stats::users::{LastPopulation, tick_of};
use cutover_core::stats::window::Totals;
use cutover_core::{
    BadEvent, Mono, Observed, PerSide, Population, Reason, Side, UserTracker, Waited,
};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, PoisonError};
use tokio::sync::Notify;

/// The counts of a slot, as the reader last saw them.
#[derive(Clone, Debug, Default)]
pub struct SlotTotals {
    /// The outcomes, for the guard and the metrics.
    pub totals: PerSide<Totals>,
    /// The outcomes of users who were placed by the hash or by chance. The sides are compared by
    /// these.
    pub compared: PerSide<Totals>,
    /// The decisions by [`Reason::index`], both sides together.
    pub reasons: [u64; Reason::COUNT],
    /// The number of requests that have started and not finished.
    pub in_flight: PerSide<u64>,
    /// The number of open WebSockets.
    pub websockets: PerSide<u64>,
    /// The results of failing requests that could fail over, in the order of
    /// [`FailoverResult::ALL`](crate::shared::failover_budget::FailoverResult::ALL).
    pub savings: [u64; 3],
    /// What maintenance did to requests, by [`Halted::index`].
    pub halted: [u64; Halted::COUNT],
}

impl SlotTotals {
    /// Returns how many requests are held.
    pub fn parked(&self) -> u64 {
        let count = |halted: Halted| self.halted[halted.index()];
        count(Halted::Held)
            .saturating_sub(count(Halted::Released) + count(Halted::Expired) + count(Halted::Left))
    }
}

/// The facts that one check finds about a slot, besides its totals.
#[derive(Debug, Default)]
pub struct Look {
    pub(super) streaks: PerSide<u32>,
    pub(super) waited: PerSide<Waited>,
    pub(super) waited_compared: PerSide<Waited>,
    pub(super) bad_events: Vec<BadEvent>,
    pub(super) population: Option<Population>,
}

impl Look {
    /// Converts the facts to the guard's input.
    pub fn observed<'a>(
        &'a self,
        totals: &'a PerSide<Totals>,
        compared: &'a PerSide<Totals>,
        available: PerSide<bool>,
        passes_checks: PerSide<bool>,
    ) -> Observed<'a> {
        Observed {
            totals,
            compared,
            streaks: self.streaks,
            available,
            passes_checks,
            waited: self.waited,
            waited_compared: self.waited_compared,
            bad_events: &self.bad_events,
            population: self.population,
        }
    }
}

/// The reading half, which sums the shards of all threads. The control plane owns it.
#[derive(Debug)]
pub struct Reader {
    pub(super) registry: Arc<Registry>,
    pub(super) known: Vec<Known>,
    pub(super) slots: Vec<Slot>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) sum: SlotTotals,
    pub(super) started: PerSide<u64>,
    pub(super) finished: PerSide<u64>,
    /// The waits of users who are not compared, and of those who are.
    pub(super) waits: [PerSide<Waits>; 2],
    pub(super) population: LastPopulation,
    pub(super) ration: BudgetRefill,
}

/// The reader's view of the ring of waiting requests of one side.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    /// The counts of threads that have ended.
    pub(super) retired_begun: Box<[u16]>,
    pub(super) retired_ended: Box<[u16]>,
    /// The requests that had begun, and those that still waited, when a cell was last read, one
    /// round of the ring ago.
    pub(super) begun: Box<[u16]>,
    pub(super) stuck: Box<[u16]>,
}

impl Default for Waits {
    fn default() -> Self {
        let cells = || vec![0; WAIT_CELLS].into_boxed_slice();
        Self {
            retired_begun: cells(),
            retired_ended: cells(),
            begun: cells(),
            stuck: cells(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) slot: usize,
    pub(super) is_compared: bool,
    pub(super) shards: Arc<PerSide<Shard>>,
    pub(super) seen: PerSide<Seen>,
}

impl Reader {
    /// Adds what has been counted since the last call.
    pub fn read(&mut self) {
        self.add_all(true);
        let Self {
            registry,
            known,
            slots,
        } = self;
        // A shard that only the reader still holds belonged to a thread that has ended. No thread
        // can write it any longer (`get_mut` makes its last writes visible). It is released once
        // all its counts are in the sums. A thread that ended since the check above is released at
        // the next read.
        known.retain_mut(|known| {
            let Some(shards) = Arc::get_mut(&mut known.shards) else {
                return true;
            };
            let keep =
                shards.legacy.differs(&known.seen.legacy) || shards.new.differs(&known.seen.new);
            if !keep {
                for side in Side::BOTH {
                    slots[known.slot].waits[usize::from(known.is_compared)][side]
                        .retire(&shards[side]);
                }
            }
            keep
        });
        for (at, slot) in slots.iter_mut().enumerate() {
            let shared = registry.shared(at);
            slot.sum.savings = shared.rescue.counts();
            slot.sum.websockets =
                PerSide::from_fn(|side| shared.websockets[side].load(Ordering::Relaxed));
            // Started is summed with finished of the same pass, but other threads continue
            // meanwhile, so the difference is kept from going below zero.
            slot.sum.in_flight =
                PerSide::from_fn(|side| slot.started[side].saturating_sub(slot.finished[side]));
        }
    }

    /// Adds the counts only and leaves latencies unchanged. Cheap enough to be called after every
    /// failure.
    pub fn read_counts(&mut self) {
        self.add_all(false);
    }

    pub(super) fn add_all(&mut self, with_latencies: bool) {
        for registered in self
            .registry
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            self.known.push(Known {
                slot: registered.slot,
                is_compared: registered.is_compared,
                shards: registered.shards,
                seen: PerSide::default(),
            });
        }
        for known in &mut self.known {
            if self.slots.len() <= known.slot {
                self.slots.resize_with(known.slot + 1, Slot::default);
            }
            let slot = &mut self.slots[known.slot];
            for side in Side::BOTH {
                add_news(
                    &known.shards[side],
                    &mut known.seen[side],
                    slot,
                    (side, known.is_compared),
                    with_latencies,
                );
            }
        }
    }

    /// Returns the notification for each failure on new.
    pub fn failed(&self) -> Arc<Notify> {
        Arc::clone(&self.registry.failed)
    }

    /// Returns the user tracker of a slot.
    pub fn watch(&self, slot: usize) -> Arc<UserTracker> {
        self.registry.watch(slot)
    }

    /// Hands out the failover permits until the next tick.
    pub fn hand_out_permits(&mut self, now: Mono) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            slot.ration
                .hand_out(&self.registry.shared(at).rescue, slot.started.new, now);
        }
    }

    /// Returns the facts about a slot besides its totals. At a tick, `aged` are the ticks whose
    /// requests have now reached the age at which they count as hanging.
    pub fn look(&mut self, slot: usize, now: Mono, aged: Option<Range<u64>>) -> Look {
        let watch = self.registry.watch(slot);
        let known = self.slots.get_mut(slot);
        // This is done once per second, and not for all slots at once.
        let is_due = aged.is_some() && (tick_of(now) as usize + slot).is_multiple_of(4);
        let population = match known {
            Some(slot) => slot.population.look(&watch, is_due, now),
            None => is_due.then(|| watch.population(now)),
        };
        let (waited, waited_compared) = aged
            .filter(|ticks| !ticks.is_empty())
            .map(|ticks| self.waited(slot, ticks))
            .unwrap_or_default();
        Look {
            streaks: watch.streaks(),
            bad_events: watch.drain(),
            population,
            waited,
            waited_compared,
        }
    }

    /// Returns the requests that began to wait in these ticks, and those of them that still wait:
    /// for all users, and for those who are compared. Each tick has to be queried once, within a
    /// round of the ring.
    pub(super) fn waited(
        &mut self,
        slot: usize,
        ticks: Range<u64>,
    ) -> (PerSide<Waited>, PerSide<Waited>) {
        let compared = self.places(slot, ticks.clone(), true);
        let apart = self.places(slot, ticks, false);
        let all = PerSide::from_fn(|side| compared[side].plus(&apart[side]).waited());
        (all, compared.map(Places::waited))
    }

    pub(super) fn places(
        &mut self,
        slot: usize,
        ticks: Range<u64>,
        is_compared: bool,
    ) -> PerSide<Places> {
        let Some(sums) = self.slots.get_mut(slot) else {
            return PerSide::default();
        };
        let shards: Vec<&PerSide<Shard>> = self
            .known
            .iter()
            .filter(|known| known.slot == slot && known.is_compared == is_compared)
            .map(|known| &*known.shards)
            .collect();
        PerSide::from_fn(|side| {
            let waits = &mut sums.waits[usize::from(is_compared)][side];
            let mut places = Places::default();
            for tick in ticks.clone() {
                for (place, hung) in places.hung.iter_mut().enumerate() {
                    let cell = tick as usize % WAIT_TICKS * PLACES + place;
                    let sum = |cells: fn(&Shard) -> &[AtomicU16], retired: u16| {
                        shards.iter().fold(retired, |sum, shards| {
                            sum.wrapping_add(cells(&shards[side])[cell].load(Ordering::Relaxed))
                        })
                    };
                    // Ended is read before begun, so that a request between the two reads counts as
                    // waiting and not as minus one.
                    let ended = sum(|shard| &shard.waits_ended, waits.retired_ended[cell]);
                    let begun = sum(|shard| &shard.waits_begun, waits.retired_begun[cell]);
                    let waiting = begun.wrapping_sub(ended);
                    let news = begun.wrapping_sub(std::mem::replace(&mut waits.begun[cell], begun));
                    places.started += u64::from(news);
                    *hung += u64::from(
                        waiting
                            .saturating_sub(std::mem::replace(&mut waits.stuck[cell], waiting))
                            .min(news),
                    );
                }
            }
            places
        })
    }

    /// Returns the sums of one slot as of the last [`Reader::read`]. `None` before its first
    /// request.
    pub fn slot(&self, slot: usize) -> Option<&SlotTotals> {
        self.slots.get(slot).map(|slot| &slot.sum)
    }

    /// Returns the totals of all rollouts by control-plane slot, for a tick, and the totals of
    /// users who are compared.
    pub fn rollouts(&self) -> impl ExactSizeIterator<Item = (&PerSide<Totals>, &PerSide<Totals>)> {
        self.slots
            .iter()
            .skip(slot_of(0))
            .map(|slot| (&slot.sum.totals, &slot.sum.compared))
    }

    /// Returns the number of requests in flight over all slots and sides.
    pub fn in_flight(&self) -> u64 {
        self.slots
            .iter()
            .map(|slot| slot.sum.in_flight.legacy + slot.sum.in_flight.new)
            .sum()
    }
}

/// Waiting requests by their place of origin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) started: u64,
    pub(super) hung: [u64; PLACES],
}

impl Places {
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            started: self.started + other.started,
            hung: std::array::from_fn(|place| self.hung[place] + other.hung[place]),
        }
    }

    pub(super) fn waited(&self) -> Waited {
        let hung: u64 = self.hung.iter().sum();
        let top = self.hung.iter().max().copied().unwrap_or_default();
        let top_place = if hung == 0 {
            0.0
        } else {
            top as f64 / hung as f64
        };
        Waited {
            started: self.started,
            hung,
            places: self.hung.iter().filter(|count| **count > 0).count() as u32,
            top_place,
        }
    }
}

impl Waits {
    /// Takes over the counts of a thread that has ended.
    pub(super) fn retire(&mut self, shard: &Shard) {
        for (retired, cells) in [
            (&mut self.retired_begun, &shard.waits_begun),
            (&mut self.retired_ended, &shard.waits_ended),
        ] {
            for (sum, cell) in retired.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
    }
}
