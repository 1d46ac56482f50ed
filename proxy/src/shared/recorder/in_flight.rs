//! Requests that are in flight or held.

use super::maintenance::Halted;
use super::shard::{PLACES, WAIT_TICKS, bump16};
use super::{Origin, Recorder};
use crate::shared::recorder::shard::Counter;
use cutover_core::stats::users::tick_of;
use cutover_core::{Ending, Evidence, Mono, PerSide, Requester, Side};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A request that is held.
#[derive(Debug)]
pub struct Held {
    pub(super) recorder: Arc<Recorder>,
    pub(super) slot: usize,
    pub(super) ending: Halted,
}

impl Held {
    /// Counts how the hold ended.
    pub fn end(mut self, ending: Halted) {
        self.ending = ending;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.recorder.halted(self.slot, self.ending);
    }
}

/// A request that has started and not finished.
#[derive(Debug)]
pub struct InFlight {
    pub(super) recorder: Arc<Recorder>,
    pub(super) slot: usize,
    pub(super) side: Side,
    /// The cell of the ring in which the request waits, and the evidence it is counted under.
    pub(super) waiting: Option<(usize, Evidence)>,
    pub(super) is_finished: bool,
    /// The counter of open WebSockets, if the request is one.
    pub(super) websocket: Option<Arc<PerSide<AtomicU64>>>,
}

impl InFlight {
    /// Records that the request has become a WebSocket. It remains one until its end.
    pub fn is_a_websocket(&mut self) {
        if self.websocket.is_none() {
            let mut counted = None;
            self.recorder.with(self.slot, |local| {
                counted = Some(Arc::clone(&local.websockets));
            });
            if let Some(counted) = &counted {
                counted[self.side].fetch_add(1, Ordering::Relaxed);
            }
            self.websocket = counted;
        }
    }

    /// Counts the end of the request, and that it is no longer in flight.
    pub fn end(mut self, ending: &Ending, origin: &Origin<'_>) {
        self.is_finished = true;
        self.recorder.with(self.slot, |local| {
            if let Some((cell, evidence)) = self.waiting {
                bump16(
                    &self.recorder.shards(local, self.slot, evidence)[self.side].waits_ended[cell],
                );
            }
            self.recorder
                .record_locally(local, self.slot, self.side, ending, origin);
            local.shards[self.side].bump(const { Counter::Finished.index() }, 1);
        });
    }

    /// Counts the request as waiting for an answer from now on, because the whole request has been
    /// sent.
    pub fn waits(&mut self, who: Requester, evidence: Evidence, at: Mono) {
        if self.waiting.is_some() {
            return;
        }
        self.recorder.with(self.slot, |local| {
            let place = if local.watch.tells_networks_apart() {
                who.network
            } else {
                who.user
            };
            let cell = tick_of(at) as usize % WAIT_TICKS * PLACES + place as usize % PLACES;
            bump16(&self.recorder.shards(local, self.slot, evidence)[self.side].waits_begun[cell]);
            self.waiting = Some((cell, evidence));
        });
    }

    /// Counts the request as answered.
    pub fn is_answered(&mut self) {
        if let Some((cell, evidence)) = self.waiting.take() {
            self.recorder.with(self.slot, |local| {
                bump16(
                    &self.recorder.shards(local, self.slot, evidence)[self.side].waits_ended[cell],
                );
            });
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(counted) = &self.websocket {
            counted[self.side].fetch_sub(1, Ordering::Relaxed);
        }
        if !self.is_finished {
            self.is_answered();
            self.recorder.with(self.slot, |local| {
                local.shards[self.side].bump(const { Counter::Finished.index() }, 1);
            });
        }
    }
}
