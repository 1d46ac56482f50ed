//! A proxy on pingora that does nothing except split: one hash of the user, modulo 100, and a
//! prepared peer. It shows which part of Cutover's cost is its own.
//!
//! Everything that is not Cutover's logic is the same as in Cutover: allocator, runtime, read
//! buffer, pool, timeouts of the peer, no modules. The only callback is `upstream_peer`, and
//! signals have no handler, so SIGTERM ends it at once. Deliberately absent: any header that is
//! changed, and anything that is counted.

use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use parking_lot::Mutex;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::modules::http::HttpModules;
use pingora::prelude::*;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Fds;
use pingora::server::configuration::ServerConf;
use pingora::services::Service;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run a proxy that does nothing except split, for comparison
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The address to listen on; port 0 picks a free one
    #[arg(long)]
    listen: SocketAddr,
    /// The backend; given twice, the second one gets a share of the users
    #[arg(long, required = true)]
    backend: Vec<SocketAddr>,
    /// How many of a hundred users go to the last backend, by a hash of x-user-id
    #[arg(long, default_value_t = 25)]
    percent: u64,
    /// The number of worker threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

struct DoNothing {
    first: HttpPeer,
    last: HttpPeer,
    percent: u64,
}

#[async_trait]
impl ProxyHttp for DoNothing {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn upstream_peer(&self, session: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let user = session
            .req_header()
            .headers
            .get("x-user-id")
            .map_or(&[][..], http::HeaderValue::as_bytes);
        // The hash has no random keys, so a user stays on the same backend after a restart.
        let mut hasher = DefaultHasher::new();
        hasher.write(user);
        let peer = if hasher.finish() % 100 < self.percent {
            &self.last
        } else {
            &self.first
        };
        Ok(Box::new(peer.clone()))
    }
}

/// Returns a peer with the timeouts that a backend has if the file sets none.
fn peer(backend: SocketAddr) -> HttpPeer {
    let (connect, response, idle) = (
        Duration::from_secs(1),
        Duration::from_secs(30),
        Duration::from_secs(30),
    );
    let mut peer = HttpPeer::new(backend, false, String::new());
    peer.options.connection_timeout = Some(connect);
    peer.options.total_connection_timeout = Some(connect);
    peer.options.read_timeout = Some(response);
    peer.options.write_timeout = Some(response);
    peer.options.idle_timeout = Some(idle);
    peer
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    // The socket is bound here and handed over, because pingora does not report its port.
    let listener = std::net::TcpListener::bind(arguments.listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let mut listening = Fds::new();
    listening.add(address.to_string(), listener.into_raw_fd());

    let settings = Arc::new(ServerConf {
        threads: arguments.threads,
        upstream_keepalive_pool_size: 1024,
        max_retries: 2,
        ..ServerConf::default()
    });
    let (Some(&first), Some(&last)) = (arguments.backend.first(), arguments.backend.last()) else {
        return Err(std::io::Error::other("expected a backend"));
    };
    let mut service = http_proxy_service(
        &settings,
        DoNothing {
            first: peer(first),
            last: peer(last),
            percent: arguments.percent,
        },
    );
    service.add_listener(
        ListenerConfig::tcp(address.to_string())
            .l4_buffer(L4BufferSettings::default().read(4096).write(1460)),
    );

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads)
        .thread_name("proxy")
        .enable_all()
        .build()?;
    writeln!(std::io::stdout(), "listening on http://{address}")?;
    let (_go_on, shutdown) = tokio::sync::watch::channel(false);
    runtime.block_on(service.start_service(Some(Arc::new(Mutex::new(listening))), shutdown, 1));
    Ok(())
}
