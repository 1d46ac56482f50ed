//! Starts the data path: the request threads, both engines and the listeners.

use std::io;
use std::sync::Arc;

use cutover_config::{Engine, Settings};
use pingora::listeners::tls::Acceptor as TlsAcceptor;
use pingora::server::configuration::ServerConf;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::error::StartError;
use super::sockets::Sockets;
use crate::gateway::adapter::{Adapter, MAX_ATTEMPTS};
use crate::gateway::lane::Lane;
use crate::gateway::listener::accept::AcceptLoop;
use crate::gateway::listener::deadlines::Deadlines;
use crate::gateway::listener::{self, Listener, Protocol, Shutdown};
use crate::gateway::prewarm::Prewarmer;
use crate::gateway::router::hold_queue::{HoldLimits, HoldQueue};
use crate::gateway::router::{Limits, Router};
use crate::process::sockets::Socket;
use crate::shared::certificates::Certificates;
use crate::shared::connections::Connections;
use crate::shared::drain::DrainSignal;
use crate::shared::prewarm::{Prewarm, PrewarmRequests};
use crate::shared::published::Published;
use crate::shared::recorder::Recorder;
use crate::shared::refusals::Refusals;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::traces::Traces;

/// The number of idle backend connections for each thread. A pool smaller than the concurrency
/// doubles the cost of a request.
const POOL_PER_THREAD: usize = 1_024;

/// What the data path shares with the other rooms.
pub(super) struct Parts {
    pub(super) published: Arc<Published>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) access_log: AccessLog,
    pub(super) traces: Traces,
    pub(super) drains: DrainSignal,
    pub(super) prewarm: Prewarm,
    pub(super) prewarm_requests: PrewarmRequests,
}

/// The running data path.
pub(super) struct DataPath {
    /// The request threads.
    pub(super) runtime: Runtime,
    pub(super) connections: Arc<Connections>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) shutdown: Arc<Shutdown>,
    /// Turns true when no client is accepted any longer.
    pub(super) stop_accepting: watch::Sender<bool>,
    /// The number of listening sockets.
    pub(super) listeners: usize,
}

impl DataPath {
    /// Starts the request threads, of which there are `threads` or one for each core, and accepts
    /// clients on `sockets`.
    ///
    /// # Errors
    /// When a thread, a socket or the certificates cannot be used.
    pub(super) fn start(
        settings: &Settings,
        threads: Option<usize>,
        sockets: &Sockets,
        certificates: &Certificates,
        parts: Parts,
    ) -> Result<Self, StartError> {
        let listen = &settings.listen;
        let threads =
            threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let (published, drains) = (&parts.published, &parts.drains);
        let router = Arc::new(Router::new(
            Arc::clone(published),
            parts.recorder,
            parts.access_log,
            parts.traces,
            Limits {
                max_header_bytes: listen.max_header_bytes,
                max_body: listen.max_body,
            },
        ));
        let connections: Arc<Connections> = Arc::default();
        let shutdown: Arc<Shutdown> = Arc::default();
        let deadlines = Arc::new(Deadlines::new(&published.load()));
        let (hold_queue, releaser) = HoldQueue::new(Arc::clone(published), HoldLimits::default());
        runtime.spawn(releaser.work());
        let conf = ServerConf {
            threads,
            max_retries: MAX_ATTEMPTS,
            upstream_keepalive_pool_size: POOL_PER_THREAD,
            ..ServerConf::default()
        };
        let proxy = Arc::new(pingora::proxy::http_proxy(
            &Arc::new(conf),
            Adapter::new(
                Arc::clone(&router),
                hold_queue,
                Arc::clone(&deadlines),
                listen,
            ),
        ));
        let lane = (listen.engine == Engine::Auto).then(|| {
            Arc::new(Lane::new(
                Arc::clone(&router),
                drains.clone(),
                Arc::clone(&connections),
                shutdown.closing.subscribe(),
                listen,
            ))
        });
        let prewarmer = Prewarmer::new(parts.prewarm_requests);
        runtime.spawn(prewarmer.work(Arc::clone(&proxy), lane.is_some()));
        let (prewarm, in_use) = (parts.prewarm, published.load().new_in_use());
        runtime.spawn(async move { prewarm.warm(in_use).await });
        runtime.spawn(Arc::clone(&deadlines).work(
            Arc::clone(published),
            drains.clone(),
            shutdown.dismissed.subscribe(),
        ));
        let refusals = Arc::clone(router.refusals());
        let shared = listener::Shared {
            proxy,
            router,
            lane,
            connections: Arc::clone(&connections),
            ending: Arc::clone(&shutdown),
            drains: drains.clone(),
            deadlines,
        };
        let (stop_accepting, accepting) = watch::channel(false);
        let mut listeners = 0;
        let mut accept = |protocol, sockets: &[Socket]| -> io::Result<()> {
            let listener = Arc::new(Listener::new(&shared, protocol, listen));
            let _inside = runtime.enter();
            for socket in sockets {
                let accept_loop = AcceptLoop::new(socket.again()?.listener)?;
                runtime.spawn(accept_loop.work(Arc::clone(&listener), accepting.clone()));
                listeners += 1;
            }
            Ok(())
        };
        accept(Protocol::Plain { h2c: listen.h2c }, &sockets.http)?;
        if !sockets.https.is_empty() {
            let config = Arc::new(certificates.server_config()?);
            let tls = TlsAcceptor::from_server_config(config);
            accept(Protocol::Tls(tls), &sockets.https)?;
        }
        Ok(Self {
            runtime,
            connections,
            refusals,
            shutdown,
            stop_accepting,
            listeners,
        })
    }
}
