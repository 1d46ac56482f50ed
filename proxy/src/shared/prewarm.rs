//! Tells the request path that a backend is about to get its first users, and limits how long the
//! control loop waits for that. The work itself is in `gateway::prewarm`.
//!
//! Written by: the control loop. Read by: `gateway::prewarm`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::upstream::Backend;

/// How long a caller waits for a prewarm: no longer than a tick. A longer prewarm continues without
/// the caller.
const WAIT: Duration = Duration::from_millis(100);

/// Requests prewarms. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prewarm(mpsc::UnboundedSender<PrewarmRequest>);

/// The backends to prewarm, and the channel that is notified when they are warm.
pub type PrewarmRequest = (Vec<Arc<Backend>>, oneshot::Sender<()>);

/// The requested prewarms.
#[derive(Debug)]
pub struct PrewarmRequests(mpsc::UnboundedReceiver<PrewarmRequest>);

impl Prewarm {
    /// Creates the two ends.
    pub fn new() -> (Self, PrewarmRequests) {
        let (wishes, wished) = mpsc::unbounded_channel();
        (Self(wishes), PrewarmRequests(wished))
    }

    /// Has these backends prewarmed. Returns when that is done, or after 100 ms at the latest.
    pub async fn warm(&self, backends: Vec<Arc<Backend>>) {
        let (done, is_done) = oneshot::channel();
        // A receiver that is gone means that the process ends.
        if backends
            .iter()
            .any(|backend| backend.settings().health.is_some())
            && self.0.send((backends, done)).is_ok()
        {
            let _ = tokio::time::timeout(WAIT, is_done).await;
        }
    }
}

impl PrewarmRequests {
    /// Returns the next request. `None` when no more requests can follow.
    pub async fn next(&mut self) -> Option<PrewarmRequest> {
        self.0.recv().await
    }
}
