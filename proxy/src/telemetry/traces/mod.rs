//! Export of finished requests to a collector of traces. The request path only hands over plain
//! facts; a separate thread makes spans of them and sends them in batches. When that thread is
//! behind, requests are dropped and counted, never waited for.
//!
//! The sender is in `otlp`, which is included only in programs built with the feature of that name.
//! Its libraries change every few months, and most deployments take their spans from elsewhere.

#[cfg(feature = "otlp")]
mod otlp;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use cutover_config::Traces as Settings;
use cutover_core::Mono;

use crate::telemetry::request_summary::Ended;
pub use spans::{Attempt, Spans, hex_digits, new_span};

/// Whether this program can export traces.
pub const CAN_EXPORT: bool = cfg!(feature = "otlp");
/// The number of requests that may wait.
#[cfg(feature = "otlp")]
const QUEUE: usize = 4_096;

/// The sending half. It is cheap to clone and never blocks.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    sender: Option<SyncSender<Finished>>,
    counts: Arc<Counts>,
}

/// The number of spans by their result.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Whether the process is ending.
    ending: AtomicBool,
}

/// A sampled request that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The trace to which the request belongs.
    pub trace: u128,
    /// The span that sent the request.
    pub parent: Option<u64>,
    /// The spans of the proxy.
    pub spans: Box<Spans>,
    /// The facts that the line in the access log also contains.
    pub ended: Ended,
    /// The end of the request on the clock that measures attempts.
    pub ended_mono: Mono,
}

impl Traces {
    /// Starts the export that the file defines, and its thread. Without a collector in the file, or
    /// in a program that cannot export, nothing is sampled.
    ///
    /// # Errors
    /// Fails when the thread cannot be started, or when the address of the collector is invalid.
    pub fn start(
        settings: Option<&Settings>,
    ) -> std::io::Result<(Self, Option<std::thread::JoinHandle<()>>)> {
        let Some(settings) = settings else {
            return Ok((Self::default(), None));
        };
        #[cfg(feature = "otlp")]
        {
            let (sender, receiver) = std::sync::mpsc::sync_channel(QUEUE);
            let counts: Arc<Counts> = Arc::default();
            let thread = otlp::start(settings, receiver, Arc::clone(&counts))?;
            Ok((
                Self {
                    sender: Some(sender),
                    counts,
                },
                Some(thread),
            ))
        }
        #[cfg(not(feature = "otlp"))]
        {
            tracing::warn!(
                endpoint = settings.endpoint,
                "no spans are exported: {CANNOT}"
            );
            Ok((Self::default(), None))
        }
    }

    /// Returns how many requests in a million are sampled; `None` if spans are not exported.
    pub fn samples(&self, settings: Option<&Settings>) -> Option<u32> {
        self.sender
            .as_ref()
            .and(settings)
            .map(|settings| settings.sample.ppm())
    }

    /// Accepts a request, or drops it when the exporter is behind.
    pub fn send(&self, finished: Finished) {
        let spans = 1 + finished.spans.attempts.len() as u64;
        if let Some(sender) = &self.sender
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                sender.try_send(finished)
        {
            self.counts.dropped.fetch_add(spans, Ordering::Relaxed);
        }
    }

    /// Ends the export. The remaining spans have two seconds.
    pub fn end(self) {
        self.counts.ending.store(true, Ordering::Relaxed);
    }

    /// Returns the number of spans by their result: accepted by the collector, dropped because the
    /// exporter was behind, or failed because the collector refused them or was not reached.
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        let Counts {
            exported,
            dropped,
            failed,
            ending: _,
        } = &*self.counts;
        [
            ("exported", exported),
            ("dropped", dropped),
            ("failed", failed),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

/// The message for a `[traces]` table in a program that cannot export.
pub const CANNOT: &str =
    "this program was built without the feature otlp (cargo build --release --features otlp)";
