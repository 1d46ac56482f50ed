//! The handling of missing file descriptors or memory: the attribution of such failures, and an
//! occasional log line.
//!
//! Such requests fail by the thousands per second, and say nothing about a backend. They are no
//! evidence, and no retry helps them. One line every ten seconds is enough to find the limit that
//! is too low.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cutover_core::Mono;
use cutover_core::time::micros;
use nix::errno::Errno;

use crate::clock;

/// The minimum time between two log lines.
const EVERY: Duration = Duration::from_secs(10);

/// A limit on the rate of log lines, however often there is a reason for one.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// The time of the last line in microseconds, plus one. 0 before the first line.
    said: AtomicU64,
}

impl LogLimit {
    /// Creates a limit without an earlier line.
    pub const fn new() -> Self {
        Self {
            said: AtomicU64::new(0),
        }
    }

    /// Returns whether a line is due. If several threads call it at once, it returns true to one of
    /// them.
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

/// Returns whether a connection to a backend failed because this process or machine is out of file
/// descriptors or memory. No backend causes that, so the failure is attributed to none. Logs the
/// shortage occasionally.
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
    fn a_refused_connection_is_not_a_shortage_of_the_proxy() {
        let of = |errno: Errno| is_noted(&io::Error::from_raw_os_error(errno as i32));
        assert!(of(Errno::EMFILE) && of(Errno::ENFILE) && of(Errno::ENOBUFS) && of(Errno::ENOMEM));
        assert!(
            !of(Errno::ECONNREFUSED)
                && !of(Errno::EHOSTUNREACH)
                && !is_noted(&io::ErrorKind::TimedOut.into())
        );
    }
}
