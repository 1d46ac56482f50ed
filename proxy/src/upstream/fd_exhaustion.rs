//! Out of files or memory: whose fault that is, and a line about it now and then.
//!
//! Such a request fails in the thousands a second, and says nothing about a backend: it is no
//! evidence, no retry helps it, and one line every ten seconds is enough to find the limit that is
//! too low.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cutover_core::Mono;
use cutover_core::time::micros;
use nix::errno::Errno;

use crate::clock;

/// How often it is said.
const EVERY: Duration = Duration::from_secs(10);

/// Lines that are written now and then, however often there is a reason.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// Microseconds and one; 0 before the first line.
    said: AtomicU64,
}

impl LogLimit {
    /// With nothing said so far.
    pub const fn new() -> Self {
        Self {
            said: AtomicU64::new(0),
        }
    }

    /// Whether it is time for a line. True for one of those who ask at once.
    pub fn is_due(&self, now: Mono) -> bool {
        let (now, said) = (
            now.as_micros().saturating_add(1),
            self.said.load(Ordering::Relaxed),
        );
        (said == 0 || now.saturating_sub(said) >= micros(EVERY))
            && self
                .said
                .compare_exchange(said, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Whether a connection to a backend could not be made because this process or machine is out of
/// files or memory: no backend can help that, and none is to blame. Says so in the log now and
/// then.
pub fn is_noted(error: &io::Error) -> bool {
    static SELDOM: LogLimit = LogLimit::new();
    let is_ours = matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    );
    if is_ours && SELDOM.is_due(clock::mono()) {
        tracing::error!(%error, "the system refuses connections to backends: requests that need a new one are answered with 500 (too many open files? LimitNOFILE, ulimit -n)");
    }
    is_ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_at_first_and_then_every_ten_seconds() {
        let (seldom, at) = (LogLimit::new(), |seconds: u64| {
            Mono::from_micros(seconds * 1_000_000)
        });
        let due: Vec<bool> = [0, 0, 9, 10, 11, 19, 20]
            .into_iter()
            .map(|seconds| seldom.is_due(at(seconds)))
            .collect();
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn what_a_backend_refuses_is_no_shortage_of_ours() {
        let of = |errno: Errno| is_noted(&io::Error::from_raw_os_error(errno as i32));
        assert!(of(Errno::EMFILE) && of(Errno::ENFILE) && of(Errno::ENOBUFS) && of(Errno::ENOMEM));
        assert!(
            !of(Errno::ECONNREFUSED)
                && !of(Errno::EHOSTUNREACH)
                && !is_noted(&io::ErrorKind::TimedOut.into())
        );
    }
}
