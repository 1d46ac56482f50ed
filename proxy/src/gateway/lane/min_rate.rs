//! The least pace at which a request body has to come: a client that sends a byte now and then must
//! not hold a backend's connection for hours.

use std::time::Duration;

use cutover_core::Mono;

/// Bytes in [`SPAN`]: 100 a second.
const LEAST: u64 = 1_000;
const SPAN: Duration = Duration::from_secs(10);

/// The pace of one body.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the present span began, and how many bytes had come then.
    began: Option<(Mono, u64)>,
}

impl Pace {
    /// Whether the body has come fast enough so far. `bytes` is all that has come.
    pub fn is_kept(&mut self, bytes: u64, now: Mono) -> bool {
        let (at, before) = *self.began.get_or_insert((now, 0));
        if now.since(at) < SPAN {
            return true;
        }
        self.began = Some((now, bytes));
        bytes - before >= LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_until_cut(bytes: u64, every: Duration) -> Option<u64> {
        let (mut pace, mut now, mut sent) = (Pace::default(), Mono::default(), 0);
        for _ in 0..1_000 {
            sent += bytes;
            if !pace.is_kept(sent, now) {
                return Some(sent);
            }
            now = now.forward(every);
        }
        None
    }

    #[test]
    fn a_hundred_bytes_a_second_are_enough_and_less_is_not() {
        assert_eq!(bytes_until_cut(100, Duration::from_secs(1)), None);
        assert_eq!(
            bytes_until_cut(1_500, Duration::from_secs(15)),
            None,
            "in parts with pauses"
        );
        assert_eq!(bytes_until_cut(90, Duration::from_secs(1)), Some(990));
        assert_eq!(bytes_until_cut(1, Duration::from_secs(5)), Some(3));
    }
}
