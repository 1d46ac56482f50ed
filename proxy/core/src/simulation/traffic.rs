//! Simulated users and the load that they make.

use super::chance::Chance;
use crate::stats::users::Requester;

/// Healthy traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Requests per second over both sides.
    pub rps: f64,
    /// How many users there are.
    pub users: u32,
    /// How many client networks they come from.
    pub networks: u32,
    /// The share of requests that fail on a healthy backend.
    pub errors: f64,
    /// The share answered 4xx by a healthy backend.
    pub client_errors: f64,
    /// The share of requests that clients give up.
    pub aborts: f64,
    /// The median latency in microseconds.
    pub median_us: f64,
    /// The spread of the latency: the standard deviation of its logarithm. 1 is a heavy tail.
    pub sigma: f64,
    /// Whether few users do most of what is done (Zipf's law), rather than all alike.
    pub is_uneven: bool,
    /// The share of users of whom `persistent_rate` of the requests are answered 4xx, on either
    /// side: expired tokens, broken scripts.
    pub persistent: f64,
    /// How many of the requests of a persistent user fail.
    pub persistent_rate: f64,
    /// The share of users who are `slow_times` slower than the others, on either side.
    pub slow_users: f64,
    /// How many times slower they are.
    pub slow_times: f64,
    /// The share of requests without a user key; all of them are quick and go to legacy.
    pub keyless: f64,
    /// How much slower requests of users named in `always_new` are than those of others.
    pub listed_times: f64,
    /// The share of requests that are long polls, answered after 14 s; a fifth of the users send
    /// all of them.
    pub polls: f64,
    /// By how much traffic falls at night, `0..=1`: midnight is at the beginning.
    pub night: f64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            rps: 100.0,
            users: 10_000,
            networks: 2_500,
            errors: 0.001,
            client_errors: 0.01,
            aborts: 0.001,
            median_us: 40_000.0,
            sigma: 1.0,
            ..Self::STILL
        }
    }
}

impl Traffic {
    /// Nothing at all: no user is unlike another.
    pub(super) const STILL: Self = Self {
        rps: 0.0,
        users: 1,
        networks: 1,
        errors: 0.0,
        client_errors: 0.0,
        aborts: 0.0,
        median_us: 1.0,
        sigma: 0.0,
        is_uneven: false,
        persistent: 0.0,
        persistent_rate: 1.0,
        slow_users: 0.0,
        slow_times: 20.0,
        keyless: 0.0,
        listed_times: 1.0,
        polls: 0.0,
        night: 0.0,
    };
}

/// One user.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) key: Vec<u8>,
    pub(super) who: Requester,
    pub(super) is_listed: bool,
    pub(super) is_persistent: bool,
    pub(super) is_slow: bool,
    /// Whether a fault of some users strikes this one: `0..1`, below the share of the fault.
    pub(super) luck: f64,
}

/// Draws by weight in constant time (Walker 1977, with Vose's construction of 1991).
#[derive(Clone, Debug)]
pub(super) struct Alias(Vec<(f64, u32)>);

impl Alias {
    pub(super) fn new(weights: Vec<f64>) -> Self {
        let (count, sum) = (weights.len(), weights.iter().sum::<f64>());
        let mut scaled: Vec<f64> = weights
            .iter()
            .map(|weight| weight / sum * count as f64)
            .collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..count).partition(|at| scaled[*at] < 1.0);
        let mut cells = vec![(1.0, 0u32); count];
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            cells[low] = (scaled[low], high as u32);
            scaled[high] -= 1.0 - scaled[low];
            if scaled[high] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self(cells)
    }

    pub(super) fn draw(&self, chance: &mut Chance) -> usize {
        let cell = chance.below(self.0.len() as u32) as usize;
        let (part, other) = self.0[cell];
        if chance.unit() < part {
            cell
        } else {
            other as usize
        }
    }
}

/// What is asked for, evenly.
pub(super) const PATHS: [&str; 6] = [
    "/",
    "/cart",
    "/cart/items",
    "/api/orders",
    "/api/users",
    "/search",
];

/// A keyless request takes this part of the others' time.
pub(super) const KEYLESS_TIMES: f64 = 0.1;
