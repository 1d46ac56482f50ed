//! Connections to backends for upgrades, with a socket of our own below pingora's.
//!
//! Pingora puts the end of the (empty) request body and the backend's answer into one race: when the 101 is read first, it takes the end of the body for the end of the tunnel and tears it
//! down (cloudflare/pingora#946). A backend that answers at once wins that race now and then on a busy machine. Here the first look for an answer after each write to the backend finds nothing,
//! whatever is there, so that the end of the body is always handled first. That costs an upgrade one turn of its task; the pool is not used, since a tunnel ends with its connection.
//!
//! Pingora has one limit for every read. An answer to an upgrade may take as long as any other answer; a tunnel may rest for much longer. So the limit for the answer is kept here.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use http::Version;
use pingora::connectors::L4Connect;
use pingora::http::RequestHeader;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long nothing may pass through a tunnel before it is closed.
pub const IDLE: Duration = Duration::from_secs(3600);
/// Keeps these connections apart from those of requests.
const GROUP: u64 = 1;
/// For a backend without a limit of its own; ours all have one.
const PATIENCE: Duration = Duration::from_secs(30);

/// One upgrade on its way to being a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    patience: Duration,
    is_open: AtomicBool,
}

impl Tunnel {
    /// Makes a peer one for an upgrade, if the request asks for one that the engine passes on: it knows WebSocket only.
    pub fn asked_for(head: &RequestHeader, peer: &mut HttpPeer) -> Option<Arc<Self>> {
        let upgrade = head.headers.get(http::header::UPGRADE).filter(|_| head.version == Version::HTTP_11)?;
        if !upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") {
            return None;
        }
        let tunnel = Arc::new(Self { patience: peer.options.read_timeout.unwrap_or(PATIENCE), is_open: AtomicBool::new(false) });
        peer.group_key = GROUP;
        peer.options.read_timeout = Some(IDLE);
        peer.options.custom_l4 = Some(Arc::new(Connect(Arc::clone(&tunnel))));
        Some(tunnel)
    }

    /// The backend has switched protocols: from now on the tunnel may rest.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

/// Whether a read failed because the answer to an upgrade did not come in time.
pub fn is_late(error: &Error) -> bool {
    let cause = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none())
}

#[derive(Debug)]
struct Connect(Arc<Tunnel>);

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else { return Error::e_explain(ErrorType::ConnectError, "a backend has an internet address") };
        let failed = |error: io::Error| {
            let kind = if error.kind() == io::ErrorKind::ConnectionRefused { ErrorType::ConnectRefused } else { ErrorType::ConnectError };
            Error::because(kind, "connecting for an upgrade", error).into_up()
        };
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let patience = Box::pin(tokio::time::sleep(self.0.patience));
        Ok(VirtualSocketStream::new(Box::new(Socket { tcp, has_written: false, patience, tunnel: Arc::clone(&self.0) })).into())
    }
}

/// A socket that is written to before it is read from.
#[derive(Debug)]
struct Socket {
    tcp: TcpStream,
    has_written: bool,
    patience: Pin<Box<Sleep>>,
    tunnel: Arc<Tunnel>,
}

impl VirtualSocket for Socket {
    /// All that is asked for was set when the connection was made.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_written) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Poll::Ready(read) = Pin::new(&mut self.tcp).poll_read(context, buffer) {
            return Poll::Ready(read);
        }
        if !self.tunnel.is_open.load(Ordering::Relaxed) && self.patience.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.has_written = true;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
