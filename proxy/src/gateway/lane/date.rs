//! The current second in the `Date` format (RFC 9110, section 5.6.7). Each thread formats it once
//! per second.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;

thread_local! {
    static PRESENT: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// Passes the date to `write`.
pub(in crate::gateway) fn with<T>(write: impl FnOnce(&[u8]) -> T) -> T {
    PRESENT.with_borrow_mut(|(second, text)| {
        let now = clock::wall().as_millis().div_euclid(1_000);
        if now != *second {
            *second = now;
            *text = httpdate::fmt_http_date(
                UNIX_EPOCH + Duration::from_secs(u64::try_from(now).unwrap_or_default()),
            );
        }
        write(text.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_always_has_the_same_length() {
        let date = with(<[u8]>::to_vec);
        assert!(
            date.len() == 29 && date.ends_with(b" GMT"),
            "{}",
            String::from_utf8_lossy(&date)
        );
    }
}
