//! Opens connections to a backend before its first user. A few requests for its health path, sent
//! through each engine, leave their connections in its pool.
//!
//! Without this, the first percent of users would pay for a connection (and with TLS for a
//! handshake) with each of their first requests. They would also be compared with a legacy backend
//! whose connections are warm. Only the engine itself can put connections into the proxy engine's
//! pool. These requests belong to no user: they are not counted, judged or logged.
//!
//! Deliberately absent: prewarming of backends without `health`. There is no path that is known to
//! change nothing.

use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::gateway::adapter::Adapter;
use crate::gateway::lane::warm;
use crate::gateway::message::head::Conn;
use crate::shared::prewarm::PrewarmRequests;
use crate::upstream::Server;

/// The number of connections to each server of a backend.
const CONNECTIONS: usize = 4;
/// The number of servers of a backend that are prewarmed. The other servers of a larger backend
/// warm up through normal traffic.
const MAX_SERVERS: usize = 16;
/// How long a prewarm may take.
const MOST: Duration = Duration::from_secs(10);
/// The size in bytes of the buffer for an answer that is ignored.
const BUFFER: usize = 4 * 1024;

/// Carries out the requests of a [`Prewarm`](crate::shared::prewarm::Prewarm).
#[derive(Debug)]
pub struct Prewarmer(PrewarmRequests);

impl Prewarmer {
    /// Creates a prewarmer for these requests.
    pub fn new(wishes: PrewarmRequests) -> Self {
        Self(wishes)
    }

    /// Works until no more prewarms can be requested.
    pub async fn work(mut self, proxy: Arc<HttpProxy<Adapter>>, has_lane: bool) {
        // This is not the drain's signal: losing a prewarm at the end of the process harms no
        // request.
        let closing = watch::Sender::new(false);
        while let Some((backends, done)) = self.0.next().await {
            let (proxy, closing) = (Arc::clone(&proxy), closing.subscribe());
            tokio::spawn(async move {
                let mut requests = JoinSet::new();
                for (backend, server) in backends.iter().flat_map(|backend| {
                    backend
                        .servers()
                        .iter()
                        .take(MAX_SERVERS)
                        .map(|server| (backend, Arc::clone(server)))
                        .collect::<Vec<_>>()
                }) {
                    let Some(health) = backend
                        .settings()
                        .health
                        .as_ref()
                        .filter(|_| server.passes_checks())
                    else {
                        continue;
                    };
                    if has_lane && backend.is_plain() {
                        let (path, limit) =
                            (health.path.to_string(), backend.settings().connect_timeout);
                        for _ in 0..CONNECTIONS {
                            let (server, path) = (Arc::clone(&server), path.clone());
                            requests.spawn(async move { warm(&server, &path, limit).await });
                        }
                    }
                    // Streams share a connection.
                    for _ in 0..if backend.settings().http2 {
                        1
                    } else {
                        CONNECTIONS
                    } {
                        requests.spawn(request(
                            Arc::clone(&proxy),
                            Arc::clone(&server),
                            health.path.to_string(),
                            closing.clone(),
                        ));
                    }
                }
                let _ = tokio::time::timeout(MOST, requests.join_all()).await;
                let _ = done.send(());
            });
        }
    }
}

/// Sends one request for this path to this server.
async fn request(
    proxy: Arc<HttpProxy<Adapter>>,
    server: Arc<Server>,
    path: String,
    closing: watch::Receiver<bool>,
) {
    let (mut client, ours) = tokio::io::duplex(BUFFER);
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: {}\r\n\r\n",
        server.host(),
        concat!("cutover-warm-up/", env!("CARGO_PKG_VERSION"))
    );
    let mut session = ServerSession::new_http1(Box::new(ours));
    session.set_keepalive(None);
    session.set_connection_user_context(Some(Box::new(Arc::new(Conn::warm_up(server)))));
    let ask = async {
        if client.write_all(head.as_bytes()).await.is_ok() {
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        }
    };
    tokio::join!(proxy.process_new_http(session, &closing), ask);
}
