//! What the control loop says to the request path when a backend is about to get its first users,
//! and how long it waits for that. What is done about it is `gateway::stoker`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::upstream::Backend;

/// How long somebody waits for a warm-up: no longer than a tick. What takes longer goes on without
/// them.
const WAIT: Duration = Duration::from_millis(100);

/// Asks for warm-ups. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prewarm(mpsc::UnboundedSender<PrewarmRequest>);

/// Backends, and whom to tell when they are warm.
pub type PrewarmRequest = (Vec<Arc<Backend>>, oneshot::Sender<()>);

/// What has been asked for.
#[derive(Debug)]
pub struct PrewarmRequests(mpsc::UnboundedReceiver<PrewarmRequest>);

impl Prewarm {
    /// The two ends.
    pub fn new() -> (Self, PrewarmRequests) {
        let (wishes, wished) = mpsc::unbounded_channel();
        (Self(wishes), PrewarmRequests(wished))
    }

    /// Has these warmed up, and returns when that is done, after 100 ms at the latest.
    pub async fn warm(&self, backends: Vec<Arc<Backend>>) {
        let (done, is_done) = oneshot::channel();
        // Nobody there is the end of the process.
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
    /// The next one; `None` when nobody can ask any more.
    pub async fn next(&mut self) -> Option<PrewarmRequest> {
        self.0.recv().await
    }
}
