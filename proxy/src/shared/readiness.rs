//! Whether requests may be sent here, and whether those who ask know it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Ready from its making until it falls, which it does once.
#[derive(Debug, Default)]
pub struct Readiness {
    has_fallen: AtomicBool,
    asked: AtomicBool,
    told: AtomicBool,
}

impl Readiness {
    /// Answers somebody who asks.
    pub fn is_ready(&self) -> bool {
        let ready = !self.has_fallen.load(Ordering::Acquire);
        let seen = if ready { &self.asked } else { &self.told };
        seen.store(true, Ordering::Release);
        ready
    }

    /// No new requests from now on.
    pub fn fall(&self) {
        self.has_fallen.store(true, Ordering::Release);
    }

    /// Whether it has fallen; asking so is not being told.
    pub fn has_fallen(&self) -> bool {
        self.has_fallen.load(Ordering::Acquire)
    }

    /// Whether whoever has asked before has been told that it fell. Nobody asks where there is no
    /// load balancer.
    pub fn is_fall_known(&self) -> bool {
        !self.asked.load(Ordering::Acquire) || self.told.load(Ordering::Acquire)
    }
}
