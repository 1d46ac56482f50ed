//! What a client is served on: its socket, bare while the lane has it or nobody, and in pingora's
//! clothes while pingora has it.
//!
//! Pingora's own stream has a buffer and records that stay for as long as the connection does,
//! counts time at each read and asks the kernel for an option when it is closed. Here what
//! pingora needs exists while a request is pingora's, and the socket comes back from it.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::shared::connections::{Lingering, MOST_LINGERING};
use crate::upstream::pool::{Unread, unread};

/// Bytes that pingora may write before they are sent, so that a head and a short body leave
/// together: its own default, about a segment.
const WRITE_BUFFER: usize = 1_460;

/// How long a client may go on sending after pingora has closed its connection.
const LINGER: Duration = Duration::from_secs(2);

/// How many of these may be clients of whom nothing is unread: their answers are lost only if they
/// go on sending.
const MOST_SILENT: usize = MOST_LINGERING / 2;

/// What a client is served on.
#[derive(Debug)]
pub enum Client {
    /// Its socket.
    Bare(TcpStream),
    /// Something above it, such as TLS.
    Above(Stream),
}

impl Client {
    /// For pingora to serve a request on.
    pub fn lend(self) -> Stream {
        match self {
            Self::Bare(socket) => Box::new(LentStream::new(socket)),
            Self::Above(stream) => stream,
        }
    }

    /// As pingora gives it back: bare again, unless something is left in what was lent. `None` if
    /// it is no client's.
    pub fn back(stream: Stream) -> Option<Self> {
        if !stream
            .as_any()
            .downcast_ref::<LentStream>()
            .is_some_and(LentStream::is_empty)
        {
            return Some(Self::Above(stream));
        }
        let mut lent = stream.into_any().downcast::<LentStream>().ok()?;
        lent.socket
            .take()
            .map(|socket| Self::Bare(socket.into_inner()))
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Bare(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Above(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Bare(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Above(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // What is written to a socket is on its way.
            Self::Bare(_) => Poll::Ready(Ok(())),
            Self::Above(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Bare(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Above(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A socket with what pingora asks of a stream.
#[derive(Debug)]
pub struct LentStream {
    /// Until it is given back.
    socket: Option<BufWriter<TcpStream>>,
    /// What was read to learn what the client speaks, and is to be read again.
    begun: Vec<u8>,
    /// Whether something was said to the client.
    has_written: bool,
    digest: Arc<SocketDigest>,
}

impl LentStream {
    /// Of this socket.
    pub fn new(socket: TcpStream) -> Self {
        Self::begun(socket, Vec::new())
    }

    /// Of a socket from which these bytes were read already.
    pub fn begun(socket: TcpStream, begun: Vec<u8>) -> Self {
        let digest = Arc::new(SocketDigest::from_raw_fd(socket.as_raw_fd()));
        Self {
            socket: Some(BufWriter::with_capacity(WRITE_BUFFER, socket)),
            begun,
            has_written: false,
            digest,
        }
    }

    fn is_empty(&self) -> bool {
        self.begun.is_empty()
            && self
                .socket
                .as_ref()
                .is_some_and(|socket| socket.buffer().is_empty())
    }

    fn socket(&mut self) -> io::Result<Pin<&mut BufWriter<TcpStream>>> {
        self.socket
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for LentStream {
    /// Pingora closes whatever the client still sends: unread bytes would make a reset of it, which
    /// may reach the client before the answers that are under way.
    fn drop(&mut self) {
        let Some(mut socket) = self.socket.take() else {
            return;
        };
        // Where nothing was said nothing can be lost: handshakes that failed, scanners.
        if !self.has_written {
            return;
        }
        // A head that waits for its body leaves with a connection that breaks off: pingora counts
        // on it. As far as there is room for it.
        let _ = Pin::new(&mut socket).poll_flush(&mut Context::from_waker(Waker::noop()));
        let socket = socket.into_inner();
        let most = match unread(socket.as_raw_fd()) {
            Unread::Bytes => MOST_LINGERING,
            Unread::Nothing => MOST_SILENT,
            // It has ended its side, or has gone.
            Unread::End => return,
        };
        if let Ok(runtime) = Handle::try_current()
            && let Some(place) = Lingering::enter(most)
        {
            drop(runtime.spawn(linger(socket, place)));
        }
    }
}

/// Ends our side, and throws away what the client still sends, for a while.
async fn linger(mut socket: TcpStream, _place: Lingering) {
    let until_its_end = async {
        if socket.shutdown().await.is_ok() {
            let mut buffer = vec![0; 4 << 10];
            while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        }
    };
    // Whoever sends for longer has had its time.
    let _ = tokio::time::timeout(LINGER, until_its_end).await;
}

impl AsyncRead for LentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return self.socket()?.poll_read(cx, buffer);
        }
        let bytes = self.begun.len().min(buffer.remaining());
        buffer.put_slice(&self.begun[..bytes]);
        self.begun.drain(..bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LentStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        self.socket()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        self.socket()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for LentStream {
    async fn shutdown(&mut self) {
        // Whoever has gone already need not be told.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for LentStream {
    fn id(&self) -> UniqueIDType {
        self.socket
            .as_ref()
            .map_or(-1, |socket| socket.get_ref().as_raw_fd())
    }
}

impl Ssl for LentStream {}

impl Peek for LentStream {}

impl GetTimingDigest for LentStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for LentStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for LentStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address"))
            .await
            .expect("a connection");
        (listener.accept().await.expect("a connection").0, client)
    }

    #[tokio::test]
    async fn the_socket_comes_back_from_pingora_unless_something_is_left_in_what_was_lent() {
        let (ours, mut theirs) = pair().await;
        let mut lent = Client::Bare(ours).lend();
        assert!(
            lent.get_socket_digest()
                .is_some_and(|digest| digest.peer_addr().is_some())
        );
        lent.write_all(b"not sent yet").await.expect("no error");
        let Some(Client::Above(mut lent)) = Client::back(lent) else {
            panic!("there are bytes to be sent")
        };
        lent.flush().await.expect("no error");
        let Some(Client::Bare(mut socket)) = Client::back(lent) else {
            panic!("nothing is left")
        };
        socket.write_all(b"; sent").await.expect("no error");
        drop(socket);
        let mut came = String::new();
        theirs.read_to_string(&mut came).await.expect("no error");
        assert_eq!(came, "not sent yet; sent");
    }

    #[tokio::test]
    async fn what_is_written_and_not_sent_leaves_with_a_connection_that_breaks_off() {
        let (ours, mut theirs) = pair().await;
        let mut lent = Client::Bare(ours).lend();
        lent.write_all(b"HTTP/1.1 200 OK\r\n")
            .await
            .expect("no error");
        drop(lent);
        let mut came = String::new();
        theirs.read_to_string(&mut came).await.expect("no error");
        assert_eq!(came, "HTTP/1.1 200 OK\r\n");
    }

    #[tokio::test]
    async fn what_was_read_to_learn_what_the_client_speaks_is_read_again() {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"E / HTTP/1.1").await.expect("no error");
        theirs.shutdown().await.expect("no error");
        let Some(Client::Above(mut lent)) =
            Client::back(Box::new(LentStream::begun(ours, b"PUR".to_vec())))
        else {
            panic!("there are bytes to be read")
        };
        let mut came = [0; 2];
        lent.read_exact(&mut came).await.expect("two bytes");
        assert_eq!(&came, b"PU");
        let mut rest = String::new();
        lent.read_to_string(&mut rest).await.expect("no error");
        assert_eq!(rest, "RE / HTTP/1.1");
        assert!(matches!(Client::back(lent), Some(Client::Bare(_))));
    }
}
