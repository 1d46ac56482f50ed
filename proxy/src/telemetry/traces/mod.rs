//! Finished requests on their way to a collector of traces. The request path only hands over plain
//! facts; a thread of its own makes spans of them and sends them in batches. When it is behind,
//! they are dropped and counted, never waited for.
//!
//! What sends is in `otlp`, part of programs built with the feature of that name: its libraries
//! change every few months, and most deployments take their spans from elsewhere.

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

/// Whether this program can export at all.
pub const CAN_EXPORT: bool = cfg!(feature = "otlp");
/// How many requests may wait.
#[cfg(feature = "otlp")]
const QUEUE: usize = 4_096;

/// The sending half: cheap to clone, never blocks.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    sender: Option<SyncSender<Finished>>,
    counts: Arc<Counts>,
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Whether the process ends.
    ending: AtomicBool,
}

/// A sampled request that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The trace it belongs to.
    pub trace: u128,
    /// The span that asked for it.
    pub parent: Option<u64>,
    /// Ours.
    pub spans: Box<Spans>,
    /// What its line says, too.
    pub ended: Ended,
    /// When it ended by the clock that attempts are measured with.
    pub ended_mono: Mono,
}

impl Traces {
    /// Starts to export as the file says, and the thread that does it. Without a collector in the
    /// file, or in a program that cannot export, nothing is sampled.
    ///
    /// # Errors
    /// When the thread cannot be started, or the collector's address is none.
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

    /// How many requests in a million are sampled; `None` where spans go nowhere.
    pub fn samples(&self, settings: Option<&Settings>) -> Option<u32> {
        self.sender
            .as_ref()
            .and(settings)
            .map(|settings| settings.sample.ppm())
    }

    /// Takes a request, or drops it when the exporter is behind.
    pub fn send(&self, finished: Finished) {
        let spans = 1 + finished.spans.attempts.len() as u64;
        if let Some(sender) = &self.sender
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                sender.try_send(finished)
        {
            self.counts.dropped.fetch_add(spans, Ordering::Relaxed);
        }
    }

    /// The process ends: what is left has two seconds.
    pub fn end(self) {
        self.counts.ending.store(true, Ordering::Relaxed);
    }

    /// Spans by what became of them: taken by the collector, dropped because the exporter was
    /// behind, refused or not reached.
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

/// What to say where `[traces]` asks for what this program cannot do.
pub const CANNOT: &str =
    "this program was built without the feature otlp (cargo build --release --features otlp)";
