//! The spans of one request, and the digits of their IDs.

use std::net::SocketAddr;

use cutover_core::{FailureKind, Mono, Side};
use rand::Rng;

/// The spans of one request: that of the proxy, and one for each attempt.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    /// The ID of the proxy's span.
    pub id: u64,
    /// The attempts in order.
    pub attempts: Vec<Attempt>,
}

/// An attempt at a server.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The ID of the span.
    pub id: u64,
    /// The side to which the attempt was sent.
    pub side: Side,
    /// The server to which the attempt was sent.
    pub server: SocketAddr,
    /// The time at which the server was chosen.
    pub began: Mono,
    /// The end of the attempt; `None` while it is under way.
    pub ended: Option<Mono>,
    /// The status of the server's answer, if there was one.
    pub status: Option<u16>,
    /// The kind of failure, if the attempt failed.
    pub failure: Option<FailureKind>,
}

impl Spans {
    /// Records the start of the next attempt.
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

    /// Records the answer of the server.
    pub fn answered(&mut self, status: u16) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.status = Some(status);
        }
    }

    /// Records the end of the current attempt, if one is under way.
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

/// Returns a random span ID, which is never zero.
pub fn new_span(random: &mut impl Rng) -> u64 {
    random.random::<u64>() | 1
}

/// The two hexadecimal digits of each byte.
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

/// Returns a number in 32 hexadecimal digits.
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
