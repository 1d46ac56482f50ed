//! The stream on which a client is served. It is the bare socket while the lane serves it or the
//! connection is idle, and a pingora stream while pingora serves it.
//!
//! Pingora's own stream has a buffer and records that stay as long as the connection, takes the
//! time at each read, and queries a socket option when it is closed. Here the parts that pingora
//! needs exist only while pingora serves a request, and pingora gives the socket back afterwards.

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

/// The number of bytes that pingora may write before they are sent, so that a head and a short body
/// leave together. This is pingora's own default, about one segment.
const WRITE_BUFFER: usize = 1_460;

/// How long a client may continue to send after pingora has closed its connection.
const LINGER: Duration = Duration::from_secs(2);

/// The number of lingering connections that may have no unread bytes. The answers of such clients
/// are lost only if the clients continue to send.
const MOST_SILENT: usize = MOST_LINGERING / 2;

/// The stream on which a client is served.
#[derive(Debug)]
pub enum Client {
    /// The bare socket.
    Bare(TcpStream),
    /// A layer above the socket, such as TLS.
    Above(Stream),
}

impl Client {
    /// Converts the client to a stream on which pingora can serve a request.
    pub fn lend(self) -> Stream {
        match self {
            Self::Bare(socket) => Box::new(LentStream::new(socket)),
            Self::Above(stream) => stream,
        }
    }

    /// Converts the stream that pingora gives back. The socket is bare again, unless bytes are left
    /// in the lent stream. `None` if the stream is not a client's.
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
            // Bytes written to a socket are already being sent.
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

/// A socket with the features that pingora needs from a stream.
#[derive(Debug)]
pub struct LentStream {
    /// The socket, until it is given back.
    socket: Option<BufWriter<TcpStream>>,
    /// The bytes that were read to detect the client's protocol and have to be read again.
    begun: Vec<u8>,
    /// Whether anything was sent to the client.
    has_written: bool,
    digest: Arc<SocketDigest>,
}

impl LentStream {
    /// Creates a stream from this socket.
    pub fn new(socket: TcpStream) -> Self {
        Self::begun(socket, Vec::new())
    }

    /// Creates a stream from a socket from which these bytes were already read.
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
    /// Keeps the socket open for a while. Pingora closes the connection even if the client is still
    /// sending. Unread bytes would then cause a reset, which may reach the client before the
    /// answers in flight.
    fn drop(&mut self) {
        let Some(mut socket) = self.socket.take() else {
            return;
        };
        // If nothing was sent, nothing can be lost. This covers failed handshakes and scanners.
        if !self.has_written {
            return;
        }
        // A head that waits for its body is sent when the connection is aborted, because pingora
        // relies on that. It is sent as far as there is room.
        let _ = Pin::new(&mut socket).poll_flush(&mut Context::from_waker(Waker::noop()));
        let socket = socket.into_inner();
        let most = match unread(socket.as_raw_fd()) {
            Unread::Bytes => MOST_LINGERING,
            Unread::Nothing => MOST_SILENT,
            // The client has ended its side, or has disconnected.
            Unread::End => return,
        };
        if let Ok(runtime) = Handle::try_current()
            && let Some(place) = Lingering::enter(most)
        {
            drop(runtime.spawn(linger(socket, place)));
        }
    }
}

/// Ends our side, and for a while discards what the client still sends.
async fn linger(mut socket: TcpStream, _place: Lingering) {
    let until_its_end = async {
        if socket.shutdown().await.is_ok() {
            let mut buffer = vec![0; 4 << 10];
            while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        }
    };
    // A client that sends for longer has had its time.
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
        // A client that has already disconnected needs no notice.
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
    async fn the_socket_returns_from_pingora_unless_bytes_are_left() {
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
    async fn buffered_bytes_are_sent_when_a_connection_is_aborted() {
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
    async fn bytes_read_to_detect_the_protocol_are_read_again() {
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
