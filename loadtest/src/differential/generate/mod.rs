//! Random cases: plain and nearly plain requests, and the answers of a backend to them.
//!
//! A request that is wrong in ten ways is refused for the first of them and reveals nothing about
//! the others. Most requests therefore start as a browser would send them, and get none, one, two
//! or three oddities from a table. The same applies to answers. A new oddity is a line in one of
//! these tables, with a weight.
//!
//! The seed and the number determine a case, independently of earlier cases, so a single case can
//! be made again on its own. The group changes only the names in a case, and these have the same
//! length in each group.
//!
//! Bytes behind a request that are not its body begin the next request. They are therefore written
//! together with the next request: only a pipelined case has both at once.
//!
//! Some things end only by a timeout: half a body on a connection that stays open, or a backend
//! that does not answer. Each costs a second, in which thousands of other cases could be played.
//! They are made only in one case of [`SLOW_ONE_IN`]. Every other case ends by what is sent.

mod answer;
mod answer_head;
mod framing;
mod oddity;
mod request;

use crate::differential::case::{Case, Pause, Request, Writes};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;

/// One case in this many may need a timeout to end.
pub const SLOW_ONE_IN: u32 = 400;
/// The most requests of a case, not counting the plain one that checks whether the connection is
/// still in step.
const MOST_REQUESTS: u32 = 4;

/// The most bytes of a message that are split one by one.
const MOST_CUT_BYTES: usize = 200;
/// The usual number of bytes that are split one by one.
const STRETCH: usize = 24;
/// The constant that separates a side stream of random numbers from the main one.
const ASIDE: u64 = 0x5851_f42d_4c95_7f2d;

/// The source of random numbers.
#[derive(Debug)]
pub struct Chance(StdRng);

impl Chance {
    /// Returns the random numbers of one case.
    pub fn of(seed: u64, number: u64) -> Self {
        // Neighbouring seeds and neighbouring numbers must not give related streams.
        Self(StdRng::seed_from_u64(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
                ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03),
        ))
    }

    /// Returns true with a probability of one in `number`.
    pub fn one_in(&mut self, number: u32) -> bool {
        self.below(number) == 0
    }

    /// Returns a number below the limit. The limit must not be 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0.random_range(0..limit.max(1))
    }

    /// Returns a size below the limit.
    pub fn size(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit.max(1))
    }

    /// Returns one of the items.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.size(all.len())).copied()
    }

    /// Returns one of the texts.
    pub fn text(&mut self, all: &[&'static str]) -> &'static str {
        self.pick(all).unwrap_or_default()
    }

    /// Returns one of the items, chosen by weight.
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

    /// Returns a side stream that takes nothing from this one, so later random decisions do not
    /// change.
    fn aside(&self) -> Self {
        Self(StdRng::seed_from_u64(
            self.0.clone().random::<u64>() ^ ASIDE,
        ))
    }

    /// Returns where to split this many bytes: not at all, in some places, or at every byte, either
    /// of a stretch or of the whole beginning.
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
    /// Splits at every byte of a stretch near the beginning or, one time in four, of the whole
    /// beginning. Each split costs both ends and both engines a system call.
    fn every_byte(&mut self, length: usize) -> Range<usize> {
        let most = length.min(MOST_CUT_BYTES);
        if self.one_in(4) {
            return 1..most;
        }
        let begin = 1 + self.size(most);
        begin..most.min(begin + STRETCH)
    }
}

/// The position of a message: its case, request and group.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The number of the case.
    pub case: u64,
    /// The index of the request in the case.
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

/// Returns bytes that identify the message they belong to.
fn tagged(place: Place, what: char, length: usize) -> Vec<u8> {
    let tag = format!("{what}{}.{};", place.case, place.request);
    let mut bytes = tag.as_bytes().repeat(length.div_ceil(tag.len()));
    bytes.truncate(length);
    bytes
}

/// Returns a length that is mostly small and rarely up to the limit.
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
    fn the_same_seed_and_number_make_the_same_case() {
        for number in 0..2_000 {
            assert!(case(7, number, 3) == case(7, number, 3), "{number}");
        }
        assert!(case(7, 1, 0).requests != case(8, 1, 0).requests);
    }

    #[test]
    fn splitting_at_every_byte_does_not_change_later_choices() {
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
    fn the_group_changes_only_the_names() {
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
    fn cases_that_need_a_timeout_are_rare() {
        let hangs = |number| {
            case(1, number, 0)
                .requests
                .iter()
                .any(|request| request.script.after == crate::differential::case::After::Hang)
        };
        assert!((0..20_000).filter(|&number| hangs(number)).count() < 200);
    }
}
