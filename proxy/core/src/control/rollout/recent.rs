//! The last minute of both sides of a rollout.

use crate::guard::judge::{Observed, Recent};
use crate::side::{PerSide, Side};
use crate::stats::window::{Span, Window};
use crate::time::Mono;
use std::time::Duration;

/// One window over all evidence, and one over the evidence of users who are compared.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    pub(super) all: PerSide<Window>,
    pub(super) compared: PerSide<Window>,
}

impl Windows {
    pub(super) fn new(length: Duration, new_since: Option<Mono>) -> Self {
        let window = || {
            PerSide::from_fn(|_| {
                new_since.map_or_else(
                    || Window::new(length),
                    |now| Window::from_nothing(length, now),
                )
            })
        };
        Self {
            all: window(),
            compared: window(),
        }
    }

    pub(super) fn tick(&mut self, now: Mono, observed: &Observed<'_>) {
        for side in Side::BOTH {
            self.all[side].tick(now, &observed.totals[side]);
            self.compared[side].tick(now, &observed.compared[side]);
        }
    }

    pub(super) fn each(&mut self, change: impl Fn(&mut Window)) {
        for side in Side::BOTH {
            change(&mut self.all[side]);
            change(&mut self.compared[side]);
        }
    }

    pub(super) fn recent(&self) -> Recent<'_> {
        Recent {
            all: spans(&self.all),
            compared: spans(&self.compared),
            last_of_new: self.all.new.last_latencies(),
            last_compared: PerSide {
                legacy: self.compared.legacy.last_latencies(),
                new: self.compared.new.last_latencies(),
            },
        }
    }
}

pub(super) fn spans(windows: &PerSide<Window>) -> PerSide<&Span> {
    PerSide {
        legacy: windows.legacy.span(),
        new: windows.new.span(),
    }
}
