//! The budget of requests that fail on new and may be answered by legacy, and the results.
//!
//! A failing backend must not double the load on the other. Of new's requests of the last ten
//! seconds at most a fifth fail over, or at most ten if there were only a few. The control loop
//! hands out permits at each tick. The request path takes one only when a request has failed, so a
//! request that succeeds pays nothing. Unused permits expire with the tick.
//!
//! Written by: the control loop (permits) and the router (results). Read by: the router and the
//! metrics.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use cutover_core::Mono;

/// The time over which new's requests and failovers are counted.
const SPAN: Duration = Duration::from_secs(10);
/// One of this many requests may fail over.
const ONE_OF: u64 = 5;
/// The number of failovers in ten seconds that are allowed however few requests there are. One per
/// second is no load.
const AT_LEAST: u64 = 10;

/// The result of a request that failed on new and could have failed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverResult {
    /// Legacy answered it.
    Saved,
    /// Legacy failed as well.
    Failed,
    /// The failover budget of the last ten seconds was used up.
    Denied,
}

impl FailoverResult {
    /// All results, in the order of their counts.
    pub const ALL: [Self; 3] = [Self::Saved, Self::Failed, Self::Denied];

    /// Returns the name used in metrics and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Saved => "saved",
            Self::Failed => "failed",
            Self::Denied => "denied",
        }
    }
}

/// The permits and counts of one rollout, shared by all request threads.
#[derive(Debug)]
pub struct FailoverBudget {
    permits: AtomicI64,
    taken: AtomicU64,
    counts: [AtomicU64; 3],
}

impl Default for FailoverBudget {
    fn default() -> Self {
        Self {
            permits: AtomicI64::new(AT_LEAST as i64),
            taken: AtomicU64::default(),
            counts: Default::default(),
        }
    }
}

impl FailoverBudget {
    /// Takes a permit. Without one the client receives the failure, and the request is counted as
    /// denied.
    pub fn permit(&self) -> bool {
        let has_one = self.permits.fetch_sub(1, Ordering::Relaxed) > 0;
        if has_one {
            self.taken.fetch_add(1, Ordering::Relaxed);
        } else {
            self.count(FailoverResult::Denied);
        }
        has_one
    }

    /// Counts the result of a request.
    pub fn count(&self, saving: FailoverResult) {
        self.counts[saving as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts so far, in the order of [`FailoverResult::ALL`].
    pub fn counts(&self) -> [u64; 3] {
        std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed))
    }
}

/// The state that the control loop keeps to hand out permits of one rollout.
#[derive(Clone, Debug, Default)]
pub struct BudgetRefill {
    /// The numbers of requests on new and of permits taken so far, at the ticks of the last ten
    /// seconds.
    seen: VecDeque<(Mono, u64, u64)>,
}

impl BudgetRefill {
    /// Hands out the permits until the next tick. `requests` is the number of requests sent to new
    /// so far.
    pub fn hand_out(&mut self, rescue: &FailoverBudget, requests: u64, now: Mono) {
        let taken = rescue.taken.load(Ordering::Relaxed);
        while self.seen.len() > 1
            && self
                .seen
                .get(1)
                .is_some_and(|(at, ..)| now.since(*at) >= SPAN)
        {
            self.seen.pop_front();
        }
        if self.seen.is_empty() {
            // Requests before the first tick also count.
            self.seen.push_back((now, 0, 0));
        }
        let (_, requests_before, taken_before) = self.seen.front().copied().unwrap_or((now, 0, 0));
        self.seen.push_back((now, requests, taken));
        let most = (requests.saturating_sub(requests_before) / ONE_OF).max(AT_LEAST);
        let left = most.saturating_sub(taken.saturating_sub(taken_before));
        rescue
            .permits
            .store(i64::try_from(left).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_fifth_of_the_requests_on_new_in_ten_seconds_fail_over() {
        let (rescue, mut ration) = (FailoverBudget::default(), BudgetRefill::default());
        let tick = Duration::from_millis(250);
        let mut now = Mono::default();
        let mut requests = 0;
        let mut saved: Vec<(u64, u64)> = Vec::new();
        for tick_number in 0..400u64 {
            ration.hand_out(&rescue, requests, now);
            let before = rescue.taken.load(Ordering::Relaxed);
            // After half a minute all requests fail, a hundred per tick.
            for _ in 0..100 {
                requests += 1;
                if tick_number > 120 {
                    rescue.permit();
                }
            }
            saved.push((100, rescue.taken.load(Ordering::Relaxed) - before));
            now = now.forward(tick);
        }
        for window in saved.windows(40).skip(40) {
            let (asked, saved) = window
                .iter()
                .fold((0, 0), |(asked, saved), (a, s)| (asked + a, saved + s));
            assert!(saved * ONE_OF <= asked, "{saved} of {asked}");
        }
        let all: u64 = saved.iter().map(|(_, saved)| saved).sum();
        assert!(
            all > 279 * 100 / ONE_OF * 9 / 10,
            "{all} were saved: the ration is used"
        );
        let [_, _, denied] = rescue.counts();
        assert_eq!(denied + all, 279 * 100);
    }

    #[test]
    fn a_few_failovers_are_allowed_when_requests_are_few() {
        let (rescue, mut ration) = (FailoverBudget::default(), BudgetRefill::default());
        assert!((0..AT_LEAST).all(|_| rescue.permit()) && !rescue.permit());
        ration.hand_out(&rescue, 12, Mono::default());
        assert!(!rescue.permit(), "the first ones are in the ration");
    }
}
