//! The population: the users, their requests as sent on the wire, and the side on which each user
//! was last seen.
//!
//! There are ten thousand users with keys as long as a UUID, and consecutive requests belong to
//! different users. A single key would stay in the first-level cache, and a proxy that decides once
//! for each connection would look sticky. Requests are rendered once, because the load must be
//! cheap.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::users::Side;

/// The number of users.
pub const USERS: usize = 10_000;
/// The percentage of users that every splitting proxy is configured to send to new.
pub const PERCENT: u32 = 25;
/// The allowed distance of a share from [`PERCENT`], in standard deviations of a fair hash. At
/// five, chance alone fails one run in a million.
const DEVIATIONS: f64 = 5.0;

/// One request for each user, in the order of sending.
pub type Requests = Arc<[Box<[u8]>]>;

/// What happens to the connection after each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The connection is kept.
    Keep,
    /// The proxy closes the connection.
    Close,
}

/// Returns the requests of all users.
pub fn requests(after: After) -> Requests {
    let connection = match after {
        After::Keep => "",
        After::Close => "connection: close\r\n",
    };
    let request = |user: String| {
        format!(
            "GET /checkout HTTP/1.1\r\nhost: shop.example\r\nuser-agent: \
             cutover-loadtest\r\naccept: */*\r\n{connection}x-user-id: {user}\r\n\r\n"
        )
    };
    users()
        .map(|user| request(user).into_bytes().into_boxed_slice())
        .collect()
}

/// Returns the keys of the users in the form of UUIDs. They are the same in each run.
fn users() -> impl Iterator<Item = String> {
    let mut random = StdRng::seed_from_u64(1);
    (0..USERS).map(move |_| {
        let (high, low): (u64, u64) = (random.random(), random.random());
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    })
}

/// The side on which each user was last seen. Each proxy has one such record for all its requests.
#[derive(Clone, Debug)]
pub struct Sightings {
    last: Vec<Option<Side>>,
    moved: u64,
}

impl Default for Sightings {
    fn default() -> Self {
        Self {
            last: vec![None; USERS],
            moved: 0,
        }
    }
}

impl Sightings {
    /// Returns the number of users.
    pub fn users(&self) -> usize {
        self.last.len()
    }

    /// Records that this side answered the user with this number.
    pub fn note(&mut self, user: usize, side: Side) {
        let last = &mut self.last[user];
        if last.is_some_and(|last| last != side) {
            self.moved += 1;
        }
        *last = Some(side);
    }

    /// Returns the number of users on each side.
    pub fn split(&self) -> Split {
        let on = |side| self.last.iter().filter(|&&last| last == Some(side)).count();
        Split {
            legacy: on(Side::Legacy),
            new: on(Side::New),
            moved: self.moved,
        }
    }
}

/// The number of users seen on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Split {
    /// The number of users last seen on legacy.
    pub legacy: usize,
    /// The number of users last seen on new.
    pub new: usize,
    /// How often a user was answered by another side than before. Any value except 0 is a failure.
    pub moved: u64,
}

impl Split {
    /// Returns the users on new as a percentage of the users seen. Returns `None` if no users were
    /// seen.
    pub fn percent(&self) -> Option<f64> {
        let seen = self.legacy + self.new;
        (seen > 0).then(|| self.new as f64 * 100.0 / seen as f64)
    }

    /// Returns the reason why this cannot be the configured split, or `None` if it can.
    pub fn wrong(&self) -> Option<String> {
        if self.moved > 0 {
            return Some(format!(
                "{} times a user was answered by another side than before",
                self.moved
            ));
        }
        let Some(percent) = self.percent() else {
            return Some("no user was seen".to_owned());
        };
        let (expected, seen) = (f64::from(PERCENT), (self.legacy + self.new) as f64);
        let tolerance = DEVIATIONS * (expected * (100.0 - expected) / seen).sqrt();
        let is_off = (percent - expected).abs() > tolerance;
        is_off.then(|| {
            format!("{percent:.1} % of users were on new, expected {expected:.0} ± {tolerance:.1}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_distinct_request_that_repeats_in_each_run() {
        let all = requests(After::Keep);
        assert_eq!(all.len(), USERS);
        assert_eq!(all, requests(After::Keep));
        assert_ne!(all[0], all[1]);
        let first = String::from_utf8(all[0].to_vec()).expect("text");
        let user = first
            .lines()
            .find_map(|line| line.strip_prefix("x-user-id: "))
            .expect("a user");
        assert_eq!(user.len(), 36);
        assert!(first.ends_with("\r\n\r\n") && !first.contains("connection:"));
        assert!(
            requests(After::Close)[0]
                .windows(19)
                .any(|part| part == b"connection: close\r\n")
        );
    }

    #[test]
    fn every_change_of_side_is_counted_as_a_move() {
        let mut seen = Sightings::default();
        for side in [Side::New, Side::New, Side::Legacy, Side::New] {
            seen.note(7, side);
        }
        seen.note(8, Side::Legacy);
        assert_eq!(
            seen.split(),
            Split {
                legacy: 1,
                new: 1,
                moved: 2
            }
        );
        assert!(
            seen.split()
                .wrong()
                .is_some_and(|why| why.starts_with("2 times"))
        );
    }

    #[test]
    fn a_share_is_wrong_if_chance_does_not_explain_it() {
        let of_all = |new| Split {
            legacy: USERS - new,
            new,
            moved: 0,
        };
        for new in [2_300, 2_500, 2_700] {
            assert_eq!(of_all(new).wrong(), None, "{new}");
        }
        for new in [0, 2_200, 2_800, USERS] {
            assert!(of_all(new).wrong().is_some(), "{new}");
        }
        // With few users, many shares are plausible.
        assert_eq!(
            Split {
                legacy: 8,
                new: 0,
                moved: 0
            }
            .wrong(),
            None
        );
        assert!(
            Split {
                legacy: 0,
                new: 0,
                moved: 0
            }
            .wrong()
            .is_some()
        );
    }
}
