//! The sticky hash `murmur3-100k/1`, which determines the users on new at a given percentage.
//!
//! `h = murmur3_x86_32(utf8(salt + ":" + key), seed 0)`, `bucket = (h * 100000) >> 32` in 64 bits,
//! and a user is on new iff `bucket < percent * 1000`. The hash uses integers only, so any language
//! computes the same bucket. The bucket does not depend on the percentage: raising it never takes a
//! user off new, and lowering it never puts a user on new.
//!
//! The name is part of the contract. A changed hash would move every user at once. A better hash
//! gets a new name and exists beside this one. Source of the hash: MurmurHash3_x86_32, Austin
//! Appleby, public domain. Deliberately absent: `ahash`, whose output differs between builds.

use std::fmt;

use crate::percent::Percent;

/// The number of buckets: one for each thousandth of a percent.
pub const BUCKETS: u32 = 100_000;

/// The name of the hash in files, headers and documents.
pub const NAME: &str = "murmur3-100k/1";

/// The hash bucket of a user, in `0..100_000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u32);

impl Bucket {
    /// Returns the bucket of a 32-bit hash by a multiplication and a shift, without a modulo or a
    /// float.
    pub const fn of_hash(hash: u32) -> Self {
        Self(((hash as u64 * BUCKETS as u64) >> 32) as u32)
    }

    /// Returns the number of the bucket, `0..100_000`.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether a user in this bucket is on new at `percent`.
    pub const fn is_within(self, percent: Percent) -> bool {
        self.0 < percent.thousandths()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A rollout's salt with the hash state after `salt + ":"`, so that a request hashes only its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salt {
    text: Box<str>,
    prefix: Murmur3,
}

impl Salt {
    /// Creates a salt. The caller rejects `:` in it, because `a:b` + `c` and `a` + `b:c` would be
    /// the same user.
    pub fn new(text: &str) -> Self {
        let mut prefix = Murmur3::default();
        prefix.write(text.as_bytes());
        prefix.write(b":");
        Self {
            text: text.into(),
            prefix,
        }
    }

    /// Returns the salt as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the bucket of a user key. Keys are bytes: valid UTF-8 gives the documented hash, and
    /// anything else is hashed as it was received.
    pub fn bucket(&self, key: &[u8]) -> Bucket {
        let mut state = self.prefix.clone();
        state.write(key);
        Bucket::of_hash(state.finish())
    }
}

/// Returns MurmurHash3_x86_32 of `bytes` with seed 0.
pub fn murmur3_x86_32(bytes: &[u8]) -> u32 {
    let mut state = Murmur3::default();
    state.write(bytes);
    state.finish()
}

/// MurmurHash3_x86_32 with seed 0, with input in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Murmur3 {
    hash: u32,
    /// The bytes that do not fill a block yet, little-endian from the low end.
    tail: u32,
    /// The total length. Its low two bits are the number of bytes in `tail`.
    length: u32,
}

impl Murmur3 {
    const C1: u32 = 0xcc9e_2d51;
    const C2: u32 = 0x1b87_3593;

    fn write(&mut self, mut bytes: &[u8]) {
        while !self.length.is_multiple_of(4) {
            let Some((&first, rest)) = bytes.split_first() else {
                return;
            };
            self.push(first);
            bytes = rest;
        }
        let mut blocks = bytes.chunks_exact(4);
        for block in &mut blocks {
            self.mix(u32::from_le_bytes([block[0], block[1], block[2], block[3]]));
            self.length = self.length.wrapping_add(4);
        }
        for &byte in blocks.remainder() {
            self.push(byte);
        }
    }

    fn push(&mut self, byte: u8) {
        self.tail |= u32::from(byte) << (8 * (self.length % 4));
        self.length = self.length.wrapping_add(1);
        if self.length.is_multiple_of(4) {
            let block = std::mem::take(&mut self.tail);
            self.mix(block);
        }
    }

    fn mix(&mut self, block: u32) {
        self.hash ^= block
            .wrapping_mul(Self::C1)
            .rotate_left(15)
            .wrapping_mul(Self::C2);
        self.hash = self
            .hash
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }

    fn finish(&self) -> u32 {
        let mut hash = self.hash
            ^ self
                .tail
                .wrapping_mul(Self::C1)
                .rotate_left(15)
                .wrapping_mul(Self::C2);
        hash ^= self.length;
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^ (hash >> 16)
    }
}
