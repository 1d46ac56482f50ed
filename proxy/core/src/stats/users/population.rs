//! The number of users and networks that new serves.

use super::class::Class;
use super::stamp::{age, stamp_of};
use super::{NO_CAP, PERIOD_TICKS, STAMP_TICKS, UserTracker};
use crate::time::Mono;
use std::sync::atomic::{AtomicU16, Ordering};

/// The number of different users and networks that new has served lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Population {
    /// The number of users in the last ten seconds.
    pub users_10s: f64,
    /// The number of users in the last minute.
    pub users_60s: f64,
    /// The number of client networks in the last ten seconds.
    pub networks_10s: f64,
    /// The number of client networks in the last minute.
    pub networks_60s: f64,
}

impl Population {
    /// Whether one more user or network may change what is required of a case against new.
    pub fn is_small(&self) -> bool {
        self.users_60s < 8.0 || self.networks_60s < 8.0
    }
}

/// The population when it was counted last.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastPopulation {
    pub(super) population: Population,
    pub(super) newcomers: u32,
}

impl LastPopulation {
    /// Counts the population again if that `is_due`. While there are few users, it also counts as
    /// soon as a user has arrived, because then their number affects which users may trip a rule.
    pub fn look(&mut self, watch: &UserTracker, is_due: bool, now: Mono) -> Option<Population> {
        // Read before the tables: a user who arrives meanwhile is counted now or at the next
        // evaluation.
        let newcomers = watch.newcomers.load(Ordering::Acquire);
        if is_due || self.population.is_small() && newcomers != self.newcomers {
            *self = Self {
                population: watch.population(now),
                newcomers,
            };
            return Some(self.population);
        }
        None
    }
}

/// Returns how often one of `population` members may count in
/// [`USER_PERIOD`](crate::stats::users::USER_PERIOD): four times what an
/// average member would at the relevant rate, and at least `least`. A smaller share would mute a
/// rollout of few busy users. A larger share would let one of many users decide.
pub fn fair_share(rate: f64, requests: f64, population: f64, least: u16) -> u16 {
    let share = 4.0 * rate * requests / population.max(1.0);
    // The cast saturates: no share exceeds what sixteen bits hold.
    (share.ceil() as u16).clamp(least, NO_CAP - 1)
}

impl UserTracker {
    /// Counts the users that new has served lately. This searches two tables, so it is meant for
    /// once a second and not for each tick, unless no user has arrived since the tables were found
    /// empty: see [`LastPopulation`].
    pub fn population(&self, now: Mono) -> Population {
        let newest = self.newest.load(Ordering::Relaxed);
        if newest == self.empty_at.load(Ordering::Relaxed) {
            return Population::default();
        }
        let now = stamp_of(now);
        // A network's stamp has no bit for the side, because all networks in the table are those of
        // new.
        let count = |cells: &[AtomicU16], bits: u16| {
            let (mut in_10s, mut in_60s, mut any) = (0usize, 0usize, false);
            for cell in cells {
                let stamp = cell.load(Ordering::Relaxed);
                // Most cells are empty where there are few users.
                if stamp == 0 {
                    continue;
                }
                let age = age(now, stamp >> bits);
                let is_of_new = bits == 0 || stamp & 1 == 1;
                in_60s += usize::from(is_of_new && age <= 6 * PERIOD_TICKS);
                in_10s += usize::from(is_of_new && age <= PERIOD_TICKS);
                if age > STAMP_TICKS {
                    // The cell is cleared before the bits of a stamp wrap around and make it look
                    // young.
                    let _ = cell.compare_exchange(stamp, 0, Ordering::Relaxed, Ordering::Relaxed);
                } else {
                    any |= is_of_new;
                }
            }
            // Linear counting (Whang, Vander-Zanden, Taylor 1990): the estimated number of members
            // for the number of occupied cells.
            let cells = cells.len() as f64;
            (
                [in_10s, in_60s]
                    .map(|taken| -cells * (1.0 - (taken as f64).min(cells - 1.0) / cells).ln()),
                any,
            )
        };
        let (([users_10s, users_60s], any_user), ([networks_10s, networks_60s], any_network)) =
            (count(&self.seen, 1), count(&self.networks, 0));
        if !any_user && !any_network {
            self.empty_at.store(newest, Ordering::Relaxed);
        }
        Population {
            users_10s,
            users_60s,
            networks_10s,
            networks_60s,
        }
    }

    /// Whether so many networks are served that networks are distinguished instead of users.
    #[inline]
    pub fn tells_networks_apart(&self) -> bool {
        (self.shares[Class::Failure.index()].load(Ordering::Relaxed) >> 16) as u16 != NO_CAP
    }
}
