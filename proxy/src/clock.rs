//! The only reader of time. Everything else receives a [`Now`] or a [`Mono`].

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cutover_core::time::micros;
use cutover_core::{Mono, Now, Wall};

static START: OnceLock<Instant> = OnceLock::new();

/// Reads the monotonic clock, in microseconds since the first reading in this process.
pub fn mono() -> Mono {
    Mono::from_micros(micros(START.get_or_init(Instant::now).elapsed()))
}

/// Makes the monotonic clock continue from its time in another process, so that times can be handed
/// over unchanged. Returns whether it does; it does not if the clock has been read here before.
pub fn go_on_from(there: Mono) -> bool {
    let began = Instant::now().checked_sub(Duration::from_micros(there.as_micros()));
    began.is_some_and(|began| START.set(began).is_ok())
}

/// Reads the wall clock, for people and records. A time before 1970 is read as 1970.
pub fn wall() -> Wall {
    let millis = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    Wall::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// Reads both clocks once.
pub fn now() -> Now {
    Now {
        mono: mono(),
        wall: wall(),
    }
}

/// Formats a wall-clock time as RFC 3339 in UTC with milliseconds, such as
/// `2026-11-20T10:15:30.250Z`.
pub fn rfc3339(wall: Wall) -> String {
    match jiff::Timestamp::from_millisecond(wall.as_millis()) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => format!("@{}ms", wall.as_millis()),
    }
}

/// Parses a time that [`rfc3339`] wrote.
pub fn parse_rfc3339(text: &str) -> Option<Wall> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(|timestamp| Wall::from_millis(timestamp.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_and_parsed_back() {
        let wall = Wall::from_millis(1_795_169_730_250);
        assert_eq!(rfc3339(wall), "2026-11-20T10:15:30.250Z");
        assert_eq!(parse_rfc3339(&rfc3339(wall)), Some(wall));
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn the_monotonic_clock_does_not_run_backwards() {
        let first = mono();
        assert!(mono() >= first);
    }
}
