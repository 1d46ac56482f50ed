//! The present second as a `Date` has it (RFC 9110, 5.6.7), made once a second by each thread.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;

thread_local! {
    static PRESENT: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// Gives the date to whoever wants to write it.
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
    fn a_date_has_a_length_of_its_own() {
        let date = with(<[u8]>::to_vec);
        assert!(
            date.len() == 29 && date.ends_with(b" GMT"),
            "{}",
            String::from_utf8_lossy(&date)
        );
    }
}
