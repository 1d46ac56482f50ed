//! The affected users of new over a while: how many users and networks there are, and whether one
//! of them caused all bad events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::stats::users::{BadEvent, Class, Population};
use crate::time::Mono;

/// How long a bad event is remembered. Evidence that took longer to collect is rare and slow. A
/// verdict then uses the newer part of it.
const MEMORY: Duration = Duration::from_secs(600);
/// The maximum number of bad events of one class that are remembered.
const MOST: usize = 2_048;
/// With more users or networks than this on new, none of them may decide alone.
const FEW: f64 = 4.0;

/// The bad events of one rollout by class.
#[derive(Clone, Debug, Default)]
pub(super) struct AffectedUsers([VecDeque<BadEvent>; Class::COUNT]);

/// A summary of the bad events of one class since a given moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Summary {
    /// The number of distinct users.
    pub(super) users: usize,
    /// The number of distinct networks.
    pub(super) networks: usize,
    /// The share of the user with the most bad events, `0..=1`.
    pub(super) top_user: f64,
    /// The share of the network with the most bad events, `0..=1`.
    pub(super) top_network: f64,
    /// The path with more than four fifths of the failures, and its share. `None` if there is no
    /// such path.
    pub(super) path: Option<(Box<str>, f64)>,
}

impl AffectedUsers {
    /// Records new bad events and discards old ones.
    pub(super) fn add(&mut self, bad_events: &[BadEvent], now: Mono) {
        for bad_event in bad_events {
            let class = &mut self.0[bad_event.class.index()];
            if class.len() == MOST {
                class.pop_front();
            }
            class.push_back(bad_event.clone());
        }
        for class in &mut self.0 {
            while class
                .pop_front_if(|bad_event| now.since(bad_event.at) > MEMORY)
                .is_some()
            {}
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Summarizes the bad events of a class since a given moment. `only_compared` leaves out users
    /// whom neither the hash nor chance placed.
    pub(super) fn summary(&self, class: Class, since: Mono, only_compared: bool) -> Summary {
        // Bad events of several threads arrive slightly out of order.
        let since = since.back(Duration::from_millis(5));
        let all: Vec<&BadEvent> = self.0[class.index()]
            .iter()
            .filter(|bad_event| bad_event.at >= since && (bad_event.is_compared || !only_compared))
            .collect();
        let top_user = top(all.iter().map(|bad_event| bad_event.who.user));
        let top_network = top(all.iter().map(|bad_event| bad_event.who.network));
        let top_path = top(all.iter().filter_map(|bad_event| bad_event.path.clone()));
        let part = |count: usize| {
            if all.is_empty() {
                0.0
            } else {
                count as f64 / all.len() as f64
            }
        };
        Summary {
            users: all
                .iter()
                .map(|bad_event| bad_event.who.user)
                .collect::<BTreeSet<_>>()
                .len(),
            networks: all
                .iter()
                .map(|bad_event| bad_event.who.network)
                .collect::<BTreeSet<_>>()
                .len(),
            top_user: top_user.map_or(0.0, |(_, count)| part(count)),
            top_network: top_network.map_or(0.0, |(_, count)| part(count)),
            path: top_path
                .map(|(path, count)| (path, part(count)))
                .filter(|(_, part)| *part > 0.8),
        }
    }
}

fn top<T: Ord>(all: impl Iterator<Item = T>) -> Option<(T, usize)> {
    let mut counts = BTreeMap::<T, usize>::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}

/// The number of users and networks that must be affected, relative to those that new has served in
/// the last minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Needed {
    pub(super) users: usize,
    pub(super) networks: usize,
    /// Whether the case must hold without the user with the most bad events.
    pub(super) without_top_user: bool,
    /// Whether the case must hold without the network with the most bad events.
    pub(super) without_top_network: bool,
}

impl Needed {
    pub(super) fn of(population: &Population, min_users: u32) -> Self {
        let at_most = |wanted: usize, seen: f64| wanted.min(seen.round().max(1.0) as usize);
        Self {
            users: at_most(min_users as usize, population.users_60s),
            networks: at_most(2, population.networks_60s),
            without_top_user: population.users_60s.round() > FEW,
            without_top_network: population.networks_60s.round() > FEW,
        }
    }
}

/// Whether new serves so many networks that the weight of a single one must be limited.
pub(super) fn are_many(networks: f64) -> bool {
    networks.round() > FEW
}
