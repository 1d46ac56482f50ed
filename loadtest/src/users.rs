//! The stable users, and the oracle that knows the side each of them belongs to.
//!
//! The generator draws from a fixed population (`user-0`, `user-1`, …) so that every user returns
//! many times and a change of side shows. The oracle repeats the published rule of the hash from
//! its definition, with its own MurmurHash3:
//!
//! ```text
//! hash   = murmur3_x86_32(utf8(salt + ":" + user), seed 0)
//! bucket = (hash * 100000) >> 32          (in 64 bits)
//! new    iff bucket < percent * 1000
//! ```
//!
//! Deliberately absent: any code shared with the proxy (an oracle that shares code with what it
//! judges judges nothing), and skewed draws. Each user is equally likely, which is what the
//! intervals of the report assume.

use crate::units::{Percent, UsageError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::fmt;

/// The largest population that is accepted. The report keeps a few bytes for each user.
pub const MOST_USERS: u32 = 10_000_000;

const BUCKETS: u64 = 100_000;

/// The backend group that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The system being replaced.
    Legacy,
    /// The system that replaces it.
    New,
}

impl Side {
    /// Returns the side named by a response header, if the name is one of the two.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"legacy" => Some(Self::Legacy),
            b"new" => Some(Self::New),
            _ => None,
        }
    }

    /// Returns `legacy` or `new`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::New => "new",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Returns the key of the user with this number.
pub fn user_name(user: u32) -> String {
    format!("user-{user}")
}

/// Random draws of users, uniform over a population. The same seed gives the same sequence.
#[derive(Debug, Clone)]
pub struct UserDraws {
    population: u32,
    random: StdRng,
}

impl UserDraws {
    /// Creates draws from `user-0` to `user-(population - 1)`.
    pub fn new(population: u32, seed: u64) -> Result<Self, UsageError> {
        if population == 0 || population > MOST_USERS {
            return Err(UsageError::new(format!(
                "expected 1 to {MOST_USERS} users, found {population}"
            )));
        }
        Ok(Self {
            population,
            random: StdRng::seed_from_u64(seed),
        })
    }

    /// Returns the number of the next user.
    pub fn draw(&mut self) -> u32 {
        self.random.random_range(0..self.population)
    }
}

/// An oracle that knows the side of every user under one salt and percentage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oracle {
    salt: String,
    percent: Percent,
}

impl Oracle {
    /// Creates an oracle for this salt and this percentage on new.
    pub fn new(salt: impl Into<String>, percent: Percent) -> Self {
        Self {
            salt: salt.into(),
            percent,
        }
    }

    /// Returns the salt.
    pub fn salt(&self) -> &str {
        &self.salt
    }

    /// Returns the percentage of users on new.
    pub fn percent(&self) -> Percent {
        self.percent
    }

    /// Returns the hash bucket of a user, 0 to 99999.
    pub fn bucket(&self, user: &str) -> u64 {
        let hash = murmur3_x86_32(format!("{}:{user}", self.salt).as_bytes(), 0);
        (u64::from(hash) * BUCKETS) >> 32
    }

    /// Returns the side that the user belongs to.
    pub fn side(&self, user: &str) -> Side {
        self.side_at(user, self.percent)
    }

    /// Returns the side that the user belongs to at another percentage.
    pub fn side_at(&self, user: &str, percent: Percent) -> Side {
        Self::side_of(self.bucket(user), percent)
    }

    /// Returns the side of a bucket.
    pub fn side_of(bucket: u64, percent: Percent) -> Side {
        if bucket < u64::from(percent.thousandths()) {
            Side::New
        } else {
            Side::Legacy
        }
    }

    /// Returns how many of the users `user-0` to `user-(population - 1)` belong to new.
    pub fn users_on_new(&self, population: u32) -> u32 {
        let mut on_new = 0;
        for user in 0..population {
            on_new += u32::from(self.side(&user_name(user)) == Side::New);
        }
        on_new
    }
}

/// Computes MurmurHash3_x86_32 of Austin Appleby, from its public-domain definition.
pub fn murmur3_x86_32(bytes: &[u8], seed: u32) -> u32 {
    let scramble = |block: u32| {
        block
            .wrapping_mul(0xcc9e_2d51)
            .rotate_left(15)
            .wrapping_mul(0x1b87_3593)
    };
    let mut hash = seed;
    let (blocks, tail) = bytes.as_chunks::<4>();
    for block in blocks {
        hash ^= scramble(u32::from_le_bytes(*block));
        hash = hash
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        hash ^= scramble(u32::from_le_bytes(last));
    }
    // The definition takes the length modulo 2^32.
    hash ^= bytes.len() as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::{Oracle, Side, UserDraws, murmur3_x86_32};
    use crate::units::Percent;

    #[test]
    fn murmur3_gives_the_published_hashes() {
        let published: [(&[u8], u32, u32); 13] = [
            (b"", 0, 0),
            (b"", 1, 0x514e_28b7),
            (b"", 0xffff_ffff, 0x81f1_6f39),
            (&[0xff; 4], 0, 0x7629_3b50),
            (&[0x21, 0x43, 0x65, 0x87], 0, 0xf55b_516b),
            (&[0x21, 0x43, 0x65, 0x87], 0x5082_edee, 0x2362_f9de),
            (&[0x21, 0x43, 0x65], 0, 0x7e4a_8634),
            (&[0x21, 0x43], 0, 0xa0f7_b07a),
            (&[0x21], 0, 0x7266_1cf4),
            (&[0; 4], 0, 0x2362_f9de),
            (b"aaaa", 0x9747_b28c, 0x5a97_808a),
            (b"Hello, world!", 0x9747_b28c, 0x2488_4cba),
            (
                b"The quick brown fox jumps over the lazy dog",
                0x9747_b28c,
                0x2fa8_26cd,
            ),
        ];
        for (bytes, seed, hash) in published {
            assert_eq!(murmur3_x86_32(bytes, seed), hash, "{bytes:?} seed {seed}");
        }
    }

    #[test]
    fn buckets_match_the_agreed_vectors() {
        let agreed = [
            ("checkout-2026", "user-1", 237_975_799, 5_540),
            ("checkout-2026", "user-2", 3_998_113_648, 93_088),
            ("checkout-2026", "", 2_904_631_491, 67_628),
            (
                "checkout-2026",
                "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
                1_127_330_232,
                26_247,
            ),
            ("checkout-2026", "zoë@exämple.com", 3_036_758_457, 70_705),
            ("s", "ユーザー42", 2_673_124_820, 62_238),
            ("a:b", "c", 1_815_718_997, 42_275),
            ("a", "b:c", 1_815_718_997, 42_275),
            ("checkout-2026", &"A".repeat(300), 1_244_779_314, 28_982),
        ];
        for (salt, user, hash, bucket) in agreed {
            assert_eq!(
                murmur3_x86_32(format!("{salt}:{user}").as_bytes(), 0),
                hash,
                "{salt}:{user}"
            );
            assert_eq!(Oracle::new(salt, Percent::ZERO).bucket(user), bucket);
        }
    }

    #[test]
    fn a_user_is_on_new_from_the_first_percentage_above_the_bucket() {
        // Bucket 5540: 5.540 % does not include it, but 5.541 % does.
        for (percent, side) in [
            ("0", Side::Legacy),
            ("5.54", Side::Legacy),
            ("5.541", Side::New),
            ("100", Side::New),
        ] {
            let percent = Percent::parse(percent).expect("a percentage");
            let oracle = Oracle::new("checkout-2026", percent);
            assert_eq!(oracle.side("user-1"), side, "{percent}");
        }
    }

    #[test]
    fn the_population_is_split_near_the_percentage() {
        let oracle = Oracle::new("checkout", Percent::parse("25").expect("a percentage"));
        let on_new = oracle.users_on_new(10_000);
        assert!((2_350..=2_650).contains(&on_new), "{on_new}");
    }

    #[test]
    fn the_same_seed_draws_the_same_users() {
        let draw = |seed| {
            let mut draws = UserDraws::new(1_000, seed).expect("a population");
            (0..100).map(|_| draws.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|user| *user < 1_000));
    }

    #[test]
    fn an_empty_population_is_refused() {
        assert!(UserDraws::new(0, 1).is_err());
    }
}
