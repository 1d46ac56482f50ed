//! The limits that the judge sets for the request path.

use super::class::Class;
use super::stamp::stamp_of;
use super::{BLOCKS, LIMITS, NO_CAP, UserTracker};
use crate::side::{PerSide, Side};
use crate::time::Mono;
use std::sync::atomic::Ordering;

/// What the request path must watch in one rollout. Only the control plane writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerLimits {
    /// The present epoch. Outcomes of requests that were decided under another epoch are not
    /// evidence: a re-armed rollout is not judged by requests from before.
    pub epoch: u64,
    /// The latency limits in microseconds; `u64::MAX` means no limit.
    pub slow: PerSide<[u64; LIMITS]>,
    /// How often one user and one network count in
    /// [`USER_PERIOD`](crate::stats::users::USER_PERIOD), by class.
    pub shares: [(u16, u16); Class::COUNT],
    /// The start times of the running blocks, the shortest first.
    pub blocks: [Mono; BLOCKS],
}

impl Default for TrackerLimits {
    fn default() -> Self {
        Self {
            epoch: 0,
            slow: PerSide::from_fn(|_| [u64::MAX; LIMITS]),
            shares: [(1, NO_CAP); Class::COUNT],
            blocks: [Mono::default(); BLOCKS],
        }
    }
}

impl UserTracker {
    /// Sets the limits that are watched from now on.
    pub fn set_tracker_limits(&self, tracker_limits: &TrackerLimits) {
        self.epoch.store(tracker_limits.epoch, Ordering::Relaxed);
        let blocks = tracker_limits
            .blocks
            .iter()
            .rev()
            .fold(0u64, |all, begun| all << 16 | u64::from(stamp_of(*begun)));
        self.blocks.store(blocks, Ordering::Relaxed);
        for (cell, &(of_user, of_network)) in self.shares.iter().zip(&tracker_limits.shares) {
            cell.store(
                u32::from(of_user.max(1)) | u32::from(of_network) << 16,
                Ordering::Relaxed,
            );
        }
        for side in Side::BOTH {
            let sheet = &self.sides[side];
            for (cell, &limit) in sheet.slow.iter().zip(&tracker_limits.slow[side]) {
                cell.store(limit, Ordering::Relaxed);
            }
            sheet.floor.store(
                tracker_limits.slow[side]
                    .iter()
                    .copied()
                    .min()
                    .unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
        }
    }
}
