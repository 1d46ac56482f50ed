//! The formatting of numbers for sentences.

use std::fmt;
use std::time::Duration;

/// Formats `events / total` as a percentage for people.
pub fn share(events: u64, total: u64) -> String {
    if total == 0 {
        return "no requests".to_owned();
    }
    let percent = events as f64 * 100.0 / total as f64;
    let text = format!("{percent:.2}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Formats microseconds as a latency for people.
pub fn millis(us: u64) -> String {
    match us {
        0..=999 => format!("{us} us"),
        1_000..=9_999 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..=9_999_999 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

pub(super) fn millis_or_none(us: Option<u64>) -> String {
    us.map_or_else(|| "unknown".to_owned(), millis)
}

/// Formats a duration for people, as `10 s` or `250 ms`.
pub fn seconds(duration: Duration) -> String {
    Seconds(duration).to_string()
}

pub(super) struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1_000 == 0 => write!(f, "{} s", millis / 1_000),
            millis => write!(f, "{millis} ms"),
        }
    }
}
