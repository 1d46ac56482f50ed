//! Probes whether a backend can take users, before they are sent there. It uses the health check
//! that the file names, or else a connection (with its TLS and HTTP/2 handshake). One responding
//! server is enough.

use std::fmt;
use std::sync::Arc;

use cutover_core::Side;
use cutover_core::simulation::ASK_PATIENCE;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::upstream::Backend;
use crate::upstream::health::Prober;

/// The number of servers of a backend that are probed at once.
const MAX_SERVERS: usize = 8;

/// Sends probes and receives the answers.
pub struct Probes {
    prober: Arc<Prober>,
    answers: mpsc::UnboundedSender<Answer>,
    heard: mpsc::UnboundedReceiver<Answer>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

/// Whether a backend can take users.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The rollout of the probe.
    pub rollout: Arc<str>,
    /// The probed side.
    pub side: Side,
    /// Whether the backend can take users.
    pub is_good: bool,
}

impl Probes {
    /// Creates the probes without any in flight.
    pub fn new() -> Self {
        let (answers, heard) = mpsc::unbounded_channel();
        Self {
            prober: Arc::default(),
            answers,
            heard,
        }
    }

    /// Probes a backend for a rollout. The answer is available within a quarter of a second.
    pub fn ask(&self, rollout: Arc<str>, side: Side, backend: Arc<Backend>) {
        let (prober, answers) = (Arc::clone(&self.prober), self.answers.clone());
        tokio::spawn(async move {
            let is_good = tokio::time::timeout(ASK_PATIENCE, any_answers(&prober, &backend))
                .await
                .unwrap_or(false);
            // The receiver is gone when the process ends.
            let _ = answers.send(Answer {
                rollout,
                side,
                is_good,
            });
        });
    }

    /// Returns the next answer.
    pub async fn next(&mut self) -> Option<Answer> {
        self.heard.recv().await
    }
}

impl Default for Probes {
    fn default() -> Self {
        Self::new()
    }
}

async fn any_answers(prober: &Prober, backend: &Backend) -> bool {
    let servers = backend.servers();
    let mut asked: FuturesUnordered<_> = servers
        .iter()
        .take(MAX_SERVERS)
        .map(|server| prober.is_answered(backend, server))
        .collect();
    while let Some(is_good) = asked.next().await {
        if is_good {
            return true;
        }
    }
    false
}
