//! Simulated users and the load that they generate.

use super::chance::Chance;
use crate::stats::users::Requester;

/// Healthy traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// The number of requests per second over both sides.
    pub rps: f64,
    /// The number of users.
    pub users: u32,
    /// The number of client networks of these users.
    pub networks: u32,
    /// The share of requests that fail on a healthy backend.
    pub errors: f64,
    /// The share of requests that a healthy backend answers with a 4xx.
    pub client_errors: f64,
    /// The share of requests that clients abort.
    pub aborts: f64,
    /// The median latency in microseconds.
    pub median_us: f64,
    /// The spread of the latency: the standard deviation of its logarithm. 1 is a heavy tail.
    pub sigma: f64,
    /// Whether few users send most of the requests (Zipf's law), instead of all users being
    /// equally active.
    pub is_uneven: bool,
    /// The share of users of whom `persistent_rate` of the requests receive a 4xx on either side,
    /// because of expired tokens or broken scripts.
    pub persistent: f64,
    /// The share of requests of a persistent user that fail.
    pub persistent_rate: f64,
    /// The share of users who are `slow_times` slower than the others, on either side.
    pub slow_users: f64,
    /// The factor by which these users are slower.
    pub slow_times: f64,
    /// The share of requests without a user key. All of them are fast and go to legacy.
    pub keyless: f64,
    /// The factor by which requests of users listed in `always_new` are slower than those of
    /// others.
    pub listed_times: f64,
    /// The share of requests that are long polls, answered after 14 s. A fifth of the users send
    /// all of them.
    pub polls: f64,
    /// The fraction by which traffic falls at night, `0..=1`. The simulation begins at midnight.
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
    /// No traffic and no differences between users.
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

/// A simulated user.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) key: Vec<u8>,
    pub(super) who: Requester,
    pub(super) is_listed: bool,
    pub(super) is_persistent: bool,
    pub(super) is_slow: bool,
    /// The random number that decides whether a fault of some users affects this one: `0..1`,
    /// affected if it is below the share of the fault.
    pub(super) luck: f64,
}

/// A sampler that draws by weight in constant time (Walker 1977, with Vose's construction of 1991).
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

/// The requested paths, which are all equally likely.
pub(super) const PATHS: [&str; 6] = [
    "/",
    "/cart",
    "/cart/items",
    "/api/orders",
    "/api/users",
    "/search",
];

/// The duration of a keyless request, as a fraction of that of other requests.
pub(super) const KEYLESS_TIMES: f64 = 0.1;
