//! One connection: the cap, the facts that hold for all of its requests, the deadline for a whole request head.
//!
//! Pingora bounds each read of a head, so a client that sends a byte a minute would hold a connection for hours; between requests it would register a timer for each. Here a watchdog looks at a
//! connection a few times in the span of its limit, and closes it when it has been waiting for a whole request head for `header_timeout` (the first one) or `keepalive_timeout` (later ones),
//! at most a quarter longer.
//!
//! The door stands before the engine. Today there is one engine, pingora's HTTP proxy with our adapter; a second one for plain HTTP/1.1 would be chosen here, per request, by handing
//! the stream back and forth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;

use super::adapter::Adapter;
use super::gate::is_trusted;
use super::head::Conn;

/// Client connections: how many are open, and how many were turned away.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    refused: AtomicU64,
}

impl Connections {
    /// Open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections closed at once because `max_connections` were open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>, max: usize) -> Option<OpenConnection> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(OpenConnection(Arc::clone(self)))
    }
}

struct OpenConnection(Arc<Connections>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The application that pingora's listener runs for each connection.
pub struct Door {
    proxy: Arc<HttpProxy<Adapter>>,
    connections: Arc<Connections>,
    max_connections: usize,
    trusted_proxies: Vec<ipnet::IpNet>,
    header_timeout: Duration,
    keepalive_timeout: Duration,
}

impl Door {
    /// A door before this proxy.
    pub fn new(proxy: HttpProxy<Adapter>, connections: Arc<Connections>, listen: &cutover_config::Listen) -> Self {
        Self {
            proxy: Arc::new(proxy),
            connections,
            max_connections: listen.max_connections,
            trusted_proxies: listen.trusted_proxies.clone(),
            header_timeout: listen.header_timeout,
            keepalive_timeout: listen.keepalive_timeout,
        }
    }
}

#[async_trait]
impl ServerApp for Door {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _open = self.connections.enter(self.max_connections)?;
        let peer = stream.get_socket_digest().and_then(|digest| digest.peer_addr().and_then(|address| address.as_inet().map(std::net::SocketAddr::ip)))?;
        let conn = Arc::new(Conn::new(peer, is_trusted(&self.trusted_proxies, peer.to_canonical())));

        // A task of its own, so that the watchdog is polled when its timer rings and not at every turn of a request.
        let serving = tokio::spawn(serve(Arc::clone(&self.proxy), stream, Arc::clone(&conn), shutdown.clone()));
        self.watch_heads(&conn, serving).await;
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// The same loop as pingora's own for HTTP/1.1, with our facts handed to each request.
async fn serve(proxy: Arc<HttpProxy<Adapter>>, stream: Stream, conn: Arc<Conn>, shutdown: ShutdownWatch) {
    let mut session = ServerSession::new_http1(stream);
    session.set_keepalive(if *shutdown.borrow() { None } else { NO_TIMER });
    session.set_connection_user_context(Some(Box::new(Arc::clone(&conn))));
    let mut served = proxy.process_new_http(session, &shutdown).await;
    while let Some((stream, persistent)) = served.map(pingora::apps::ReusedHttpStream::consume) {
        let mut session = ServerSession::new_http1(stream);
        if let Some(persistent) = persistent {
            persistent.apply_to_session(&mut session);
        }
        session.set_connection_user_context(Some(Box::new(Arc::clone(&conn))));
        served = proxy.process_new_http(session, &shutdown).await;
    }
}

impl Door {
    /// Ends with the connection, or ends the connection when a request head has been awaited for too long.
    async fn watch_heads(&self, conn: &Conn, serving: tokio::task::JoinHandle<()>) {
        // However this ends (a dropped runtime included), the connection ends with it.
        let mut serving = AbortOnDrop(serving);
        let (mut seen, mut waited) = (conn.turn(), Duration::ZERO);
        loop {
            let limit = if seen.is_first() { self.header_timeout } else { self.keepalive_timeout };
            let step = limit / LOOKS;
            if tokio::time::timeout(step, &mut serving.0).await.is_ok() {
                return;
            }
            let turn = conn.turn();
            if turn != seen || !turn.awaits_a_head() {
                (seen, waited) = (turn, Duration::ZERO);
                continue;
            }
            waited += step;
            if waited >= limit {
                return;
            }
        }
    }
}

/// How often the watchdog looks at a waiting connection within its limit.
const LOOKS: u32 = 4;

/// Pingora's word for "kept, without a timer of its own": the watchdog is the timer.
pub(super) const NO_TIMER: Option<u64> = Some(0);

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
