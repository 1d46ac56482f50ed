//! Active health checks. The health path of each server of a backend with `health` is requested
//! repeatedly, on a new connection.
//!
//! A check uses the same address, TLS, protocol and certificates as a request, but no connection of
//! the pool. It has to find out whether the server can be reached. A new server is considered
//! healthy until its first check, and that check alone decides. So at the start no request waits
//! for checks, and a server that is down is taken out within an interval.
//!
//! This module also resolves the names of backends repeatedly. A name that fails to resolve keeps
//! its last good addresses.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use cutover_config::HealthCheck;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::clock;
use crate::upstream::{Backend, Server};

/// How often the task looks for servers without a check, and for names that are due.
const LOOK: Duration = Duration::from_millis(100);
/// The interval at which the names of backends are resolved again.
const RESOLVE: Duration = Duration::from_secs(5);
/// The lower bound of how long an answer may take. Within the bounds an answer may take as long as
/// the interval.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(10);

/// Checks the servers and resolves the names of the current `backends`, on a thread of its own,
/// until `stopped` turns true.
///
/// # Errors
/// When the system cannot create the thread.
pub fn start(
    backends: impl Fn() -> Vec<Arc<Backend>> + Clone + Send + Sync + 'static,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?;
    std::thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(resolve(backends.clone()));
                let connector = Arc::new(Connector::new(None));
                let mut checks: HashMap<usize, AbortHandle> = HashMap::new();
                let mut looks = tokio::time::interval(LOOK);
                loop {
                    tokio::select! {
                        _ = stopped.wait_for(|stopped| *stopped) => return,
                        _ = looks.tick() => keep_up(&backends(), &connector, &mut checks),
                    }
                }
            });
            // A pending name lookup must not delay the stop.
            runtime.shutdown_background();
        })
}

/// Makes sure that each server with checks has one running check, and that no other server has one.
fn keep_up(
    backends: &[Arc<Backend>],
    connector: &Arc<Connector>,
    checks: &mut HashMap<usize, AbortHandle>,
) {
    let mut wanted = HashMap::new();
    for backend in backends
        .iter()
        .filter(|backend| backend.settings().health.is_some())
    {
        for server in &*backend.servers() {
            wanted.insert(
                Arc::as_ptr(server) as usize,
                (Arc::clone(backend), Arc::clone(server)),
            );
        }
    }
    checks.retain(|server, check| {
        let is_wanted = wanted.contains_key(server);
        if !is_wanted {
            check.abort();
        }
        is_wanted
    });
    for (key, (backend, server)) in wanted {
        // The task holds the server, so no other server can have its address in memory while the
        // task runs.
        checks.entry(key).or_insert_with(|| {
            tokio::spawn(watch_over(backend, server, Arc::clone(connector))).abort_handle()
        });
    }
}

async fn watch_over(backend: Arc<Backend>, server: Arc<Server>, connector: Arc<Connector>) {
    let Some(health) = backend.settings().health.clone() else {
        return;
    };
    let (mut good, mut bad, mut is_first) = (0u32, 0u32, true);
    loop {
        let patience = health.interval.clamp(LEAST_PATIENCE, MOST_PATIENCE);
        let result = tokio::time::timeout(patience, check(&connector, &server, &health))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {patience:?}")));
        (good, bad) = if result.is_ok() {
            (good + 1, 0)
        } else {
            (0, bad + 1)
        };
        if result.is_ok() {
            server.check_passed(clock::mono());
        }
        let passes = match server.passes_checks() {
            true => bad < health.unhealthy_after && !(is_first && bad > 0),
            false => good >= health.healthy_after || (is_first && good > 0),
        };
        is_first = false;
        if passes != server.passes_checks() {
            let (backend_name, name, address) =
                (&*backend.settings().name, server.name(), server.address());
            match &result {
                Ok(()) => {
                    tracing::info!(backend = backend_name, server = name, %address, "a server passes its checks again and gets requests");
                }
                Err(why) => {
                    tracing::warn!(backend = backend_name, server = name, %address, why, "a server fails its checks and gets no requests");
                }
            }
            server.checked(passes, clock::mono());
        }
        tokio::time::sleep(health.interval).await;
    }
}

/// Performs one check. The error says why it failed.
async fn check(connector: &Connector, server: &Server, health: &HealthCheck) -> Result<(), String> {
    let told = |error: Box<pingora::Error>| error.to_string();
    let (mut session, _) = connector
        .get_http_session(&fresh_peer(server))
        .await
        .map_err(told)?;
    let mut request = RequestHeader::build("GET", health.path.as_bytes(), Some(3)).map_err(told)?;
    request.insert_header("host", server.host()).map_err(told)?;
    request
        .insert_header(
            "user-agent",
            concat!("cutover-health/", env!("CARGO_PKG_VERSION")),
        )
        .map_err(told)?;
    if matches!(session, HttpSession::H1(_)) {
        request.insert_header("connection", "close").map_err(told)?;
    }
    session
        .write_request_header(Box::new(request))
        .await
        .map_err(told)?;
    session.finish_request_body().await.map_err(told)?;
    session.read_response_header().await.map_err(told)?;
    let status = session
        .response_header()
        .map_or(0, |response| response.status.as_u16());
    session.shutdown().await;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// Checks servers once, outside of the regular checks.
pub struct Prober(Connector);

impl Default for Prober {
    fn default() -> Self {
        Self(Connector::new(None))
    }
}

impl Prober {
    /// Returns whether a server passes the check that its backend names. If none is named, returns
    /// whether a connection can be made.
    pub async fn is_answered(&self, backend: &Backend, server: &Server) -> bool {
        match &backend.settings().health {
            Some(health) => check(&self.0, server, health).await.is_ok(),
            None => self.0.get_http_session(&fresh_peer(server)).await.is_ok(),
        }
    }
}

/// Returns the server as a check connects to it, without the connections of requests.
fn fresh_peer(server: &Server) -> HttpPeer {
    let mut peer = server.peer().clone();
    peer.group_key ^= 1;
    peer
}

async fn resolve(backends: impl Fn() -> Vec<Arc<Backend>>) {
    let mut complained: HashMap<String, String> = HashMap::new();
    loop {
        tokio::time::sleep(RESOLVE).await;
        let backends = backends();
        let looked_up = tokio::task::spawn_blocking(move || {
            backends
                .iter()
                .flat_map(|backend| backend.resolve())
                .collect::<HashMap<String, String>>()
        });
        let Ok(failed) = looked_up.await else {
            continue;
        };
        for (server, error) in failed
            .iter()
            .filter(|(server, error)| complained.get(*server) != Some(error))
        {
            tracing::warn!(
                server,
                error,
                "the name of a server does not resolve; its last good addresses stay"
            );
        }
        complained = failed;
    }
}
