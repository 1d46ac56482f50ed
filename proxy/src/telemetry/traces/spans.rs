//! The spans of one request, and the digits of their ids.

use std::net::SocketAddr;

use cutover_core::{FailureKind, Mono, Side};
use rand::Rng;

/// The spans of one request: ours, and one for each attempt.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    /// The id of ours.
    pub id: u64,
    /// In order.
    pub attempts: Vec<Attempt>,
}

/// One attempt at a server.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The id of its span.
    pub id: u64,
    /// The side that was asked.
    pub side: Side,
    /// The server that was asked.
    pub server: SocketAddr,
    /// When it was chosen.
    pub began: Mono,
    /// When the attempt was over; `None` while it is not.
    pub ended: Option<Mono>,
    /// What the server answered, if it did.
    pub status: Option<u16>,
    /// How it failed, if it did.
    pub failure: Option<FailureKind>,
}

impl Spans {
    /// The next attempt begins.
    pub fn attempt(&mut self, side: Side, server: SocketAddr, now: Mono) {
        self.ended(None, now);
        self.attempts.push(Attempt {
            id: new_span(&mut rand::rng()),
            side,
            server,
            began: now,
            ended: None,
            status: None,
            failure: None,
        });
    }

    /// The server has answered.
    pub fn answered(&mut self, status: u16) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.status = Some(status);
        }
    }

    /// The present attempt is over, if one is under way.
    pub fn ended(&mut self, failure: Option<FailureKind>, now: Mono) {
        if let Some(attempt) = self
            .attempts
            .last_mut()
            .filter(|attempt| attempt.ended.is_none())
        {
            attempt.ended = Some(now);
            attempt.failure = failure.or(attempt.failure);
        }
    }
}

/// Returns a random span id, which is never zero.
pub fn new_span(random: &mut impl Rng) -> u64 {
    random.random::<u64>() | 1
}

/// Both digits of each byte.
const HEX_PAIRS: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 0xf]];
        byte += 1;
    }
    pairs
};

/// A number in 32 hexadecimal digits.
pub fn hex_digits(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(number.to_be_bytes())
    {
        *pair = HEX_PAIRS[usize::from(byte)];
    }
    digits
}
