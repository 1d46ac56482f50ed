//! Cases by chance: plain requests and nearly plain ones, and what a backend may answer to them.
//!
//! A request that is wrong in ten ways is refused for the first and says nothing of the others. So
//! most begin as a browser would send them, and get none, one, two or three oddities out of a
//! table; the same for answers. A new oddity is a line in one of these tables, with a weight.
//!
//! Seed and number make a case, whatever was made before it, so a case can be made again alone. The
//! group changes its names only, which have the same length in each group.
//!
//! What stands behind a request and is no body of it begins the next one, so it is written when
//! that one is: only a pipelined case has both at once.
//!
//! What only a timeout ends (half a body on a connection that stays open, a backend that does not
//! answer) costs a second, in which thousands of others could be played. It is made in one case
//! of [`SLOW_ONE_IN`] only; everything else ends by what is said.

mod answer;
mod answer_head;
mod framing;
mod oddity;
mod request;

use crate::differential::case::{Case, Pause, Request, Writes};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;

/// One case of so many may need a timeout to end.
pub const SLOW_ONE_IN: u32 = 400;
/// The most requests of a case, beside the plain one that asks whether the connection is still in
/// step.
const MOST_REQUESTS: u32 = 4;

/// How many bytes of a message are cut one by one at most.
const MOST_CUT_BYTES: usize = 200;
/// How many are, mostly.
const STRETCH: usize = 24;
/// What tells chance aside from what goes on.
const ASIDE: u64 = 0x5851_f42d_4c95_7f2d;

/// Where chance comes from.
#[derive(Debug)]
pub struct Chance(StdRng);

impl Chance {
    /// The chance of one case.
    pub fn of(seed: u64, number: u64) -> Self {
        // Neighbours in both numbers are to have nothing in common.
        Self(StdRng::seed_from_u64(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
                ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03),
        ))
    }

    /// True once in so many times.
    pub fn one_in(&mut self, number: u32) -> bool {
        self.below(number) == 0
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0.random_range(0..limit.max(1))
    }

    /// A size below this one.
    pub fn size(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit.max(1))
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.size(all.len())).copied()
    }

    /// One of these texts.
    pub fn text(&mut self, all: &[&'static str]) -> &'static str {
        self.pick(all).unwrap_or_default()
    }

    /// One of these, by weight.
    pub fn weighted<T: Copy>(&mut self, all: &[(u32, T)]) -> Option<T> {
        let mut at = self.below(all.iter().map(|(weight, _)| weight).sum());
        for &(weight, item) in all {
            if at < weight {
                return Some(item);
            }
            at -= weight;
        }
        None
    }

    /// Chance that takes nothing from this one: what is made afterwards stays what it was.
    fn aside(&self) -> Self {
        Self(StdRng::seed_from_u64(
            self.0.clone().random::<u64>() ^ ASIDE,
        ))
    }

    /// Where to cut so many bytes: not at all, in some places, or everywhere: in a stretch, or the
    /// whole beginning.
    pub fn writes(&mut self, length: usize) -> Writes {
        let mut cuts: Vec<usize> = match self.below(60) {
            0..=35 => Vec::new(),
            36..=57 => (0..=self.below(4)).map(|_| self.size(length)).collect(),
            58 => (0..=self.below(40)).map(|_| self.size(length)).collect(),
            _ => self.aside().every_byte(length).collect(),
        };
        cuts.sort_unstable();
        cuts.dedup();
        let pause = match self.below(60) {
            0 if cuts.len() < 10 => Pause::Tiny,
            0..=29 => Pause::Yield,
            _ => Pause::Nothing,
        };
        Writes { cuts, pause }
    }
}

impl Chance {
    /// Cuts at every byte: of a stretch somewhere in the beginning, or one time in four of all of
    /// it. Each costs both ends and both engines a system call.
    fn every_byte(&mut self, length: usize) -> Range<usize> {
        let most = length.min(MOST_CUT_BYTES);
        if self.one_in(4) {
            return 1..most;
        }
        let begin = 1 + self.size(most);
        begin..most.min(begin + STRETCH)
    }
}

/// Which message of which case in which group is made.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The case.
    pub case: u64,
    /// The request of the case.
    pub request: usize,
    /// The group of backends.
    pub group: usize,
}

/// Makes a case.
pub fn case(seed: u64, number: u64, group: usize) -> Case {
    let mut chance = Chance::of(seed, number);
    let is_slow = chance.one_in(SLOW_ONE_IN);
    let count = match chance.below(10) {
        0..=5 => 1,
        6..=8 => 2,
        _ => 1 + chance.below(MOST_REQUESTS),
    };
    let is_pipelined = count > 1 && chance.one_in(6);
    let mut all = Vec::new();
    let mut loose = Vec::new();
    for at in 0..count {
        let place = Place {
            case: number,
            request: all.len(),
            group,
        };
        let mut request =
            request::make(&mut chance, place, is_slow && at + 1 == count, is_pipelined);
        request.start.splice(0..0, loose.drain(..));
        let behind = if request.has_loose_bytes() {
            std::mem::take(&mut request.body)
        } else {
            Vec::new()
        };
        all.push(request);
        if behind.ends_with(b"\r\n\r\n") {
            all.push(Request::raw(behind));
        } else {
            loose = behind;
        }
    }
    if chance.one_in(2) {
        let mut request = request::plain(
            &mut chance,
            Place {
                case: number,
                request: all.len(),
                group,
            },
        );
        request.start.splice(0..0, loose);
        all.push(request);
    }
    Case {
        number,
        requests: all,
        is_pipelined,
    }
}

/// Bytes that say whose they are.
fn tagged(place: Place, what: char, length: usize) -> Vec<u8> {
    let tag = format!("{what}{}.{};", place.case, place.request);
    let mut bytes = tag.as_bytes().repeat(length.div_ceil(tag.len()));
    bytes.truncate(length);
    bytes
}

/// A length: mostly small, rarely up to the limit.
fn length(chance: &mut Chance, limit: usize) -> usize {
    match chance.below(40) {
        0..=5 => 0,
        6..=24 => 1 + chance.size(40),
        25..=35 => chance.size(limit.min(3_000)),
        36..=38 => chance.size(limit.min(20_000)),
        _ => chance.size(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::case::code;

    #[test]
    fn seed_and_number_make_the_same_case_again() {
        for number in 0..2_000 {
            assert!(case(7, number, 3) == case(7, number, 3), "{number}");
        }
        assert!(case(7, 1, 0).requests != case(8, 1, 0).requests);
    }

    #[test]
    fn some_messages_are_cut_at_every_byte_and_what_is_made_afterwards_does_not_hang_on_it() {
        let all: Vec<usize> = (0..40_000)
            .map(|number| Chance::of(1, number).writes(1_000).cuts.len())
            .collect();
        let (long, short) = (
            all.iter()
                .filter(|cuts| **cuts == MOST_CUT_BYTES - 1)
                .count(),
            all.iter().filter(|cuts| **cuts == STRETCH).count(),
        );
        assert!(long > 100 && short > 300, "{long} {short}");
        let (mut one, mut other) = (Chance::of(1, 1), Chance::of(1, 1));
        one.aside().below(9);
        assert_eq!(one.below(1_000_000), other.below(1_000_000));
    }

    #[test]
    fn the_group_changes_names_and_nothing_else() {
        for number in 0..500 {
            let (here, there) = (case(1, number, 1), case(1, number, 2));
            for (here, there) in here.requests.iter().zip(&there.requests) {
                let (one, other) = (here.bytes(), there.bytes());
                assert!(
                    one.len() == other.len() && here.script == there.script,
                    "{number}"
                );
                assert!(
                    one.iter()
                        .zip(&other)
                        .all(|pair| pair.0 == pair.1 || pair == (&b'1', &b'2')),
                    "{number}"
                );
            }
        }
    }

    #[test]
    fn every_request_carries_its_code_in_one_line() {
        for number in 0..5_000 {
            for (at, request) in case(3, number, 0).requests.iter().enumerate() {
                if request.lines.is_empty() {
                    continue;
                }
                let codes: Vec<&Vec<u8>> = request
                    .lines
                    .iter()
                    .filter(|line| Request::is_code(line))
                    .collect();
                assert_eq!(codes.len(), 1, "{number}");
                assert!(
                    String::from_utf8_lossy(codes[0]).contains(&code(number, at)),
                    "{number}"
                );
            }
        }
    }

    #[test]
    fn what_needs_a_timeout_is_rare() {
        let hangs = |number| {
            case(1, number, 0)
                .requests
                .iter()
                .any(|request| request.script.after == crate::differential::case::After::Hang)
        };
        assert!((0..20_000).filter(|&number| hangs(number)).count() < 200);
    }
}
