//! Whether requests may be sent to this process, and whether those who query readiness know it.
//!
//! Written by: `assemble`. Read by: the admin port.

use std::sync::atomic::{AtomicBool, Ordering};

/// The readiness of the process. It is ready from its creation until it falls, which happens once.
#[derive(Debug, Default)]
pub struct Readiness {
    has_fallen: AtomicBool,
    asked: AtomicBool,
    told: AtomicBool,
}

impl Readiness {
    /// Returns the readiness to an outside caller, such as a load balancer.
    pub fn is_ready(&self) -> bool {
        let ready = !self.has_fallen.load(Ordering::Acquire);
        let seen = if ready { &self.asked } else { &self.told };
        seen.store(true, Ordering::Release);
        ready
    }

    /// Ends readiness: new requests should no longer be sent here.
    pub fn fall(&self) {
        self.has_fallen.store(true, Ordering::Release);
    }

    /// Returns whether readiness has ended. This query does not count as informing the caller.
    pub fn has_fallen(&self) -> bool {
        self.has_fallen.load(Ordering::Acquire)
    }

    /// Returns whether every earlier caller has been informed that readiness ended. Without a load
    /// balancer there are no callers.
    pub fn is_fall_known(&self) -> bool {
        !self.asked.load(Ordering::Acquire) || self.told.load(Ordering::Acquire)
    }
}
