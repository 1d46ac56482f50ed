//! The minimum rate of a request body. A client that sends a byte now and then must not occupy a
//! backend's connection for hours.

use std::time::Duration;

use cutover_core::Mono;

/// The minimum number of bytes in [`SPAN`]: 100 bytes per second.
const LEAST: u64 = 1_000;
const SPAN: Duration = Duration::from_secs(10);

/// The rate of one body.
#[derive(Debug, Default)]
pub struct Pace {
    /// The start of the current span, and the number of bytes received by then.
    began: Option<(Mono, u64)>,
}

impl Pace {
    /// Returns whether the body has been fast enough so far. `bytes` is the total number of bytes
    /// received.
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
    fn a_hundred_bytes_per_second_are_enough_and_fewer_are_not() {
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
