//! Simulated users. Each keeps its ID, all of them together send at a steady rate, and every answer
//! is recorded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cutover_core::Side;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The answers received so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The number of answers by side.
    pub(super) answers: BTreeMap<Side, u64>,
    /// The number of failed requests: 5xx, or no answer.
    pub(super) failed: u64,
    /// The side that last served each user.
    pub(super) side_of: BTreeMap<u32, Side>,
    /// The users with at least one failed request, and the number of failures.
    pub(super) hurt: BTreeMap<u32, u64>,
    /// The number of users who moved from new back to legacy.
    pub(super) moved_back: u64,
}

impl Seen {
    /// Returns the number of users whose last answer was from `side`.
    pub(super) fn users_on(&self, side: Side) -> usize {
        self.side_of.values().filter(|on| **on == side).count()
    }

    /// Returns the number of all answers.
    pub(super) fn total(&self) -> u64 {
        self.answers.values().sum::<u64>()
    }

    fn add(&mut self, user: u32, side: Option<Side>, failed: bool) {
        if let Some(side) = side {
            *self.answers.entry(side).or_default() += 1;
            let before = self.side_of.insert(user, side);
            self.moved_back += u64::from(before == Some(Side::New) && side == Side::Legacy);
        }
        if failed {
            self.failed += 1;
            *self.hurt.entry(user).or_default() += 1;
        }
    }
}

/// The simulated users. They send requests until this is dropped.
#[derive(Debug)]
pub(super) struct Users {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

/// Returns the ID of a user.
pub(super) fn id(user: u32) -> String {
    format!("user-{user}")
}

impl Users {
    /// Starts `users` users who together send `rps` requests per second, each in turn.
    pub(super) fn start(proxy: SocketAddr, users: u32, rps: u32) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let remembering = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let client: Client<HttpConnector, Full<Bytes>> =
                Client::builder(TokioExecutor::new()).build_http();
            let mut beat = tokio::time::interval(Duration::from_secs(1) / rps);
            for user in (0..users).cycle() {
                beat.tick().await;
                let (client, seen) = (client.clone(), Arc::clone(&remembering));
                tokio::spawn(async move {
                    let (side, failed) = ask(&client, proxy, user).await;
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .add(user, side, failed);
                });
            }
        });
        Self { seen, task }
    }

    /// Returns the answers received so far.
    pub(super) fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Resets the answers, but keeps the side of each user.
    pub(super) fn start_counting(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Seen {
            side_of: std::mem::take(&mut seen.side_of),
            ..Seen::default()
        };
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    proxy: SocketAddr,
    user: u32,
) -> (Option<Side>, bool) {
    let request = Request::get(format!("http://{proxy}/"))
        .header("x-user-id", id(user))
        .body(Full::default());
    let Ok(request) = request else {
        return (None, true);
    };
    let Ok(response) = client.request(request).await else {
        return (None, true);
    };
    let failed = response.status().is_server_error();
    let side = response.headers().get("x-served-by").and_then(|name| {
        Side::BOTH
            .into_iter()
            .find(|side| name.as_bytes() == side.name().as_bytes())
    });
    // The body is read so that the connection can be kept alive.
    let whole = response.into_body().collect().await.is_ok();
    (side, failed || !whole)
}
