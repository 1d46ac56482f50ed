//! Properties of the hash and the decision, and the vectors that pin the hash as a wire format.

use cutover_core::routing::bucket::murmur3_x86_32;
use cutover_core::{BUCKETS, Bucket, Percent, Salt};
use proptest::prelude::*;

/// Published vectors of MurmurHash3_x86_32 with seed 0 (the public-domain reference), as hex of the
/// input and the hash.
const MURMUR3: [(&str, u32); 7] = [
    ("", 0),
    ("ffffffff", 0x7629_3b50),
    ("21436587", 0xf55b_516b),
    ("214365", 0x7e4a_8634),
    ("2143", 0xa0f7_b07a),
    ("21", 0x7266_1cf4),
    ("00000000", 0x2362_f9de),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

#[test]
fn the_hash_agrees_with_the_published_vectors() {
    for (hex, hash) in MURMUR3 {
        assert_eq!(murmur3_x86_32(&bytes(hex)), hash, "{hex:?}");
    }
}

/// `vectors/bucket.txt` comes from `vectors/bucket.py`, which shares no code with this crate. A
/// changed line would move users: never change one.
#[test]
fn every_golden_bucket_is_where_another_language_puts_it() {
    let lines: Vec<&str> = include_str!("vectors/bucket.txt").lines().collect();
    assert_eq!(lines.len(), 100);
    for line in lines {
        let [salt, key, hash, bucket] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns: {line}")
        };
        assert_eq!(
            murmur3_x86_32(format!("{salt}:{key}").as_bytes()).to_string(),
            hash,
            "{line}"
        );
        assert_eq!(
            Salt::new(salt).bucket(key.as_bytes()).to_string(),
            bucket,
            "{line}"
        );
    }
}

#[test]
fn the_ends_of_the_hash_are_the_ends_of_the_buckets() {
    for (hash, bucket) in [
        (0, 0),
        (1, 0),
        (0x7fff_ffff, 49_999),
        (0x8000_0000, 50_000),
        (u32::MAX, 99_999),
    ] {
        assert_eq!(Bucket::of_hash(hash).number(), bucket, "{hash:#x}");
    }
}

proptest! {
    #[test]
    fn hashing_in_pieces_is_hashing_the_whole(salt in "[a-z0-9.-]{0,20}", key in proptest::collection::vec(any::<u8>(), 0..100)) {
        let whole = [salt.as_bytes(), b":", &key].concat();
        prop_assert_eq!(Salt::new(&salt).bucket(&key), Bucket::of_hash(murmur3_x86_32(&whole)));
    }

    #[test]
    fn raising_the_percentage_keeps_everyone_who_was_on_new(hash: u32, low in 0u32..=BUCKETS, high in 0u32..=BUCKETS) {
        let (low, high) = (low.min(high), low.max(high));
        let (low, high) = (Percent::from_thousandths(low).expect("in range"), Percent::from_thousandths(high).expect("in range"));
        let bucket = Bucket::of_hash(hash);
        prop_assert!(bucket.number() < BUCKETS);
        prop_assert!(!bucket.is_within(low) || bucket.is_within(high));
        prop_assert!(!bucket.is_within(Percent::ZERO) && bucket.is_within(Percent::FULL));
    }
}

#[test]
fn the_share_of_many_users_is_the_percentage() {
    let salt = Salt::new("checkout");
    for percent in ["0.1", "1", "5", "25", "50", "99"] {
        let percent = Percent::parse(percent).expect("a percentage");
        let users = 200_000u32;
        let on_new = (0..users)
            .filter(|user| {
                salt.bucket(format!("user-{user}").as_bytes())
                    .is_within(percent)
            })
            .count() as f64;
        let expected = percent.as_ratio() * f64::from(users);
        // Five standard deviations of the binomial: the users are fixed, so this either always
        // holds or never.
        let bound = 5.0 * (expected * (1.0 - percent.as_ratio())).sqrt();
        assert!(
            (on_new - expected).abs() <= bound,
            "{percent} %: {on_new} of {users}"
        );
    }
}

#[test]
fn two_salts_put_independent_users_on_new() {
    let (a, b) = (Salt::new("checkout"), Salt::new("search"));
    let tenth = Percent::parse("10").expect("a percentage");
    let both = (0..200_000u32).filter(|user| {
        let key = format!("user-{user}");
        a.bucket(key.as_bytes()).is_within(tenth) && b.bucket(key.as_bytes()).is_within(tenth)
    });
    let both = both.count() as f64;
    assert!(
        (both - 2_000.0).abs() < 5.0 * 45.0,
        "{both} of 200000 are in both tenths, expected about 2000"
    );
}
