//! Ends long-lived exchanges after a rollback. WebSockets and streams that are still on new some
//! time after it are told to end.
//!
//! Every connection carries a [`DrainMarker`]. It says for which rollout the current request is on
//! new, and since which revision. The control loop sends one signal when the time is up, and each
//! connection with a marker checks whether the signal applies to it. A short request pays two
//! stores for this. Requests of a later revision (a tester's, or after re-arming) stay.
//!
//! Written by: the control loop. Read by: connections and streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// The drain signal to all connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DrainSignal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    orders: watch::Sender<Vec<Order>>,
    counts: [AtomicU64; 2],
}

/// The requests that have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The requests on new in this slot that began under an older revision.
    Slot(usize, u64),
    /// All requests, because the process ends.
    All,
}

/// The kind of exchange that was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// A WebSocket.
    WebSocket,
    /// Any other exchange that was still being answered.
    Stream,
}

impl Drained {
    /// All kinds, in the order of their counts.
    pub const ALL: [Self; 2] = [Self::WebSocket, Self::Stream];

    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Stream => "stream",
        }
    }
}

impl DrainSignal {
    /// Drains the requests that are on new in this slot since before a revision.
    pub fn order(&self, slot: usize, before: u64) {
        self.0.orders.send_modify(|orders| {
            // There is one order for each slot, because a later rollback includes an earlier one.
            orders.retain(|order| !matches!(order, Order::Slot(known, _) if *known == slot));
            orders.push(Order::Slot(slot, before));
        });
    }

    /// Drains everything that has not ended by itself.
    pub fn order_all(&self) {
        self.0.orders.send_modify(|orders| orders.push(Order::All));
    }

    /// Returns a receiver for one connection.
    pub fn listen(&self) -> DrainReceiver {
        let mut orders = self.0.orders.subscribe();
        orders.mark_unchanged();
        DrainReceiver(orders)
    }

    /// Counts one exchange that was ended.
    pub fn count(&self, ended: Drained) {
        self.0.counts[ended as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many exchanges were ended, in the order of [`Drained::ALL`].
    pub fn counts(&self) -> [u64; 2] {
        std::array::from_fn(|at| self.0.counts[at].load(Ordering::Relaxed))
    }
}

/// Receives drain orders.
#[derive(Clone, Debug)]
pub struct DrainReceiver(watch::Receiver<Vec<Order>>);

impl DrainReceiver {
    /// Returns when an order was received. Cancel safe.
    pub async fn come(&mut self) {
        if self.0.changed().await.is_err() {
            // No order can follow, because the sender is gone.
            std::future::pending::<()>().await;
        }
    }

    /// Returns whether any order applies to this marker.
    pub fn means(&self, stay: &DrainMarker) -> bool {
        self.0.borrow().iter().any(|order| stay.is_meant(*order))
    }

    /// Returns when an order was received that applies to this marker. Cancel safe.
    pub async fn sent_away(&mut self, stay: &DrainMarker) {
        loop {
            self.come().await;
            if self.means(stay) {
                return;
            }
        }
    }
}

/// The rollout and revision of the current request of a connection, or of a stream.
#[derive(Debug, Default)]
pub struct DrainMarker(AtomicU64);

/// The number of bits for the slot. A revision and a slot share one word. Slots are counted from
/// one, so zero means no marker.
const SLOT_BITS: u32 = 16;

impl DrainMarker {
    /// Marks the request as on new, in this slot, decided under this revision.
    pub fn on_new(&self, slot: usize, revision: u64) {
        self.0.store(
            revision << SLOT_BITS | (slot as u64 + 1) & ((1 << SLOT_BITS) - 1),
            Ordering::Relaxed,
        );
    }

    /// Clears the marker.
    pub fn over(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn is_meant(&self, order: Order) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        match order {
            Order::Slot(slot, before) => {
                word & ((1 << SLOT_BITS) - 1) == slot as u64 + 1 && word >> SLOT_BITS < before
            }
            Order::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    fn is_sent_away(listener: &mut DrainReceiver, stay: &DrainMarker) -> bool {
        let mut waiting = Box::pin(listener.sent_away(stay));
        waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            == Poll::Ready(())
    }

    #[test]
    fn only_requests_on_new_before_the_rollback_are_drained() {
        let drains = DrainSignal::default();
        let stays: Vec<DrainMarker> = (0..4).map(|_| DrainMarker::default()).collect();
        stays[0].on_new(1, 6);
        stays[1].on_new(1, 7);
        stays[2].on_new(2, 6);
        let mut listeners: Vec<DrainReceiver> = stays.iter().map(|_| drains.listen()).collect();
        drains.order(1, 7);
        let leave: Vec<bool> = listeners
            .iter_mut()
            .zip(&stays)
            .map(|(listener, stay)| is_sent_away(listener, stay))
            .collect();
        assert_eq!(leave, [true, false, false, false]);
        // A later receiver gets later orders only.
        assert!(!is_sent_away(&mut drains.listen(), &stays[0]));
        drains.order(1, 9);
        assert!(
            is_sent_away(&mut listeners[1], &stays[1])
                && !is_sent_away(&mut listeners[2], &stays[2])
        );
        stays[2].over();
        drains.order_all();
        assert!(is_sent_away(&mut listeners[2], &stays[2]));
    }
}
