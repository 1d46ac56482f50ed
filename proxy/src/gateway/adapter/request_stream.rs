//! The part of a client's stream that is one HTTP/1 request, as the proxy engine reads it.
//!
//! The engine reads as far as it can and loses the bytes that follow a request. If two requests are
//! sent at once, it answers one of them and closes the connection. A [`RequestStream`] ends where
//! its request ends. Bytes that the client sends after that are kept for the next request, and a
//! disconnect of the client is still noticed.
//!
//! The engine is also lenient with chunks: it takes an empty line for the end of a body, and allows
//! line feeds in extensions. Here chunks pass through the lane's decoder first. A malformed chunk
//! is an error of the read, so the engine aborts, and no backend sees a body that looks complete.
//! Extensions and trailers are removed.
//!
//! A request that asks for another protocol ends with its head. After the backend has switched
//! protocols, all bytes pass.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::listeners::ALPN;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::gateway::adapter::timeouts::RequestTimeouts;
use crate::gateway::lane::body_decoder::BodyDecoder;
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::message::head::Conn;

/// The error of a read that found a malformed chunk.
#[derive(Debug)]
pub struct MalformedChunk;

impl fmt::Display for MalformedChunk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a chunk of the request body is malformed")
    }
}

impl Error for MalformedChunk {}

/// Returns whether an error of the engine comes from a malformed chunk.
pub fn is_malformed_chunk(error: &pingora::Error) -> bool {
    let cause = error
        .root_cause()
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    cause
        .and_then(|cause| cause.downcast_ref::<MalformedChunk>())
        .is_some()
}

/// A client's stream for the duration of one request.
#[derive(Debug)]
pub struct RequestStream {
    /// The client's stream, until it is given back.
    stream: Option<Stream>,
    conn: Arc<Conn>,
    patience: RequestTimeouts,
    /// The decoder for the rest of the body. `None` when all of the body has been read.
    left: Option<BodyDecoder>,
    /// The end of a chunked body that has not been passed on yet.
    owed: &'static [u8],
    /// Whether the client asks for another protocol, which begins where the request ends.
    upgrades: bool,
    /// The bytes that the client sent after the request.
    pipelined: Option<Buffer>,
    /// The channel that takes the stream if the engine drops it after the whole request was read.
    dropped: Option<oneshot::Sender<Returned>>,
}

/// A client's stream as it was lent, and the bytes that were read after the request.
pub type Returned = (Stream, Option<Buffer>);

impl Drop for RequestStream {
    fn drop(&mut self) {
        if let (Some(stream), Some(dropped)) = (
            self.stream
                .take()
                .filter(|_| self.left.is_none() && self.owed.is_empty()),
            self.dropped.take(),
        ) {
            // Without a receiver, the stream ends here.
            let _ = dropped.send((stream, self.pipelined.take()));
        }
    }
}

impl RequestStream {
    /// Creates the stream of a request. `left` decodes the part of the request that is still
    /// missing, and `pipelined` holds the bytes received after it. `patience` holds the deadlines.
    ///
    /// The receiver gets the stream if the engine drops it. The engine drops even a usable
    /// connection when an HTTP/2 backend answers and resets its stream before it has taken all of
    /// an upload that was read completely.
    pub(in crate::gateway) fn new(
        stream: Stream,
        conn: Arc<Conn>,
        patience: RequestTimeouts,
        left: Option<BodyDecoder>,
        upgrades: bool,
        pipelined: Option<Buffer>,
    ) -> (Self, oneshot::Receiver<Returned>) {
        let (dropped, returned) = oneshot::channel();
        (
            Self {
                stream: Some(stream),
                conn,
                patience,
                left,
                owed: b"",
                upgrades,
                pipelined,
                dropped: Some(dropped),
            },
            returned,
        )
    }

    /// Ends the request and returns the client's stream. `None` if the stream is not a
    /// [`RequestStream`].
    pub fn end(stream: Stream) -> Option<Returned> {
        let mut turn = stream.into_any().downcast::<Self>().ok()?;
        Some((turn.stream.take()?, turn.pipelined.take()))
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream
            .as_mut()
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Records that the proxy waited for the client, and therefore not for the backend.
    fn has_moved<T>(&self, written: &Poll<io::Result<T>>) {
        self.patience.client_is_behind(written.is_pending());
    }

    fn has_switched(&self) -> bool {
        self.upgrades
            && self
                .conn
                .tunnel
                .load()
                .as_ref()
                .is_some_and(|tunnel| tunnel.has_switched())
    }

    /// Reads after the end of the request. Keeps what is received as far as there is room, and then
    /// reads only the end of the stream.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let buffer = self
                .pipelined
                .get_or_insert_with(|| Buffer::new(Size::Head));
            if buffer.is_full() {
                return Poll::Pending;
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let polled = buffer.poll_fill(stream, usize::MAX, cx);
            self.pipelined.take_if(|buffer| buffer.is_empty());
            if ready!(polled)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Feeds what has been read from `from` on to the decoder. The bytes to pass on stay in `room`.
    fn feed(&mut self, room: &mut ReadBuf<'_>, from: usize) -> io::Result<()> {
        let Some(left) = &mut self.left else {
            return Ok(());
        };
        let came = &mut room.filled_mut()[from..];
        let fed = left
            .feed(came)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, MalformedChunk))?;
        if fed.used < came.len() {
            self.pipelined = Some(Buffer::of(&came[fed.used..]).ok_or(io::ErrorKind::OutOfMemory)?);
        }
        room.set_filled(from + fed.kept);
        if fed.is_over {
            self.owed = left.end();
            self.left = None;
        }
        Ok(())
    }
}

impl AsyncRead for RequestStream {
    /// The engine listens to the client while it waits for the backend, so this is where it learns
    /// that the backend is late.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The stream is read again, so the backend has taken what was received before.
        this.patience.has_taken();
        match this.poll_request(cx, room) {
            Poll::Pending if this.patience.is_answer_late() => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            polled => polled,
        }
    }
}

impl RequestStream {
    /// Reads more of the request. After the request, waits for the end of the stream.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self;
        let from = room.filled().len();
        loop {
            if !this.owed.is_empty() {
                let (now, later) = this.owed.split_at(this.owed.len().min(room.remaining()));
                room.put_slice(now);
                this.owed = later;
            }
            if room.filled().len() > from || room.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match &this.left {
                None if this.has_switched() => match &mut this.pipelined {
                    Some(buffer) => {
                        let bytes = buffer.len().min(room.remaining());
                        room.put_slice(&buffer.filled()[..bytes]);
                        buffer.consume(bytes);
                        this.pipelined.take_if(|buffer| buffer.is_empty());
                    }
                    None => return this.stream()?.poll_read(cx, room),
                },
                None => return this.poll_behind(cx),
                Some(BodyDecoder::Length(most)) => {
                    let most = usize::try_from(*most)
                        .unwrap_or(usize::MAX)
                        .min(room.remaining());
                    let mut part = ReadBuf::new(room.initialize_unfilled_to(most));
                    ready!(
                        this.stream
                            .as_mut()
                            .map(Pin::new)
                            .ok_or(io::ErrorKind::NotConnected)?
                            .poll_read(cx, &mut part)
                    )?;
                    let read = part.filled().len();
                    if read == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    room.advance(read);
                    this.feed(room, from)?;
                }
                Some(BodyDecoder::Chunked(_) | BodyDecoder::Close) => {
                    ready!(this.stream()?.poll_read(cx, room))?;
                    if room.filled().len() == from {
                        return Poll::Ready(Ok(()));
                    }
                    this.feed(room, from)?;
                }
            }
        }
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, bytes);
        self.has_moved(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(cx, slices);
        self.has_moved(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream()?.poll_flush(cx);
        self.has_moved(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for RequestStream {
    async fn shutdown(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.shutdown().await;
        }
    }
}

impl UniqueID for RequestStream {
    fn id(&self) -> UniqueIDType {
        self.stream.as_ref().map_or(-1, |stream| stream.id())
    }
}

impl Ssl for RequestStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.as_ref()?.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.as_ref()?.selected_alpn_proto()
    }
}

impl Peek for RequestStream {}

impl GetTimingDigest for RequestStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream
            .as_ref()
            .map_or_else(Vec::new, |stream| stream.get_timing_digest())
    }
}

impl GetProxyDigest for RequestStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.as_ref()?.get_proxy_digest()
    }
}

impl GetSocketDigest for RequestStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.as_ref()?.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::lane::body_decoder::Body;
    use crate::gateway::listener::deadlines::Deadlines;
    use crate::gateway::router::testing::World;
    use std::net::IpAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn conn() -> Arc<Conn> {
        Arc::new(Conn::new(IpAddr::from([192, 0, 2, 7]), false, false))
    }

    fn turn_of(
        stream: Stream,
        conn: Arc<Conn>,
        left: Option<BodyDecoder>,
        upgrades: bool,
        pipelined: Option<Buffer>,
    ) -> RequestStream {
        let deadlines = Arc::new(Deadlines::new(&World::new().published.load()));
        RequestStream::new(
            stream,
            Arc::clone(&conn),
            RequestTimeouts::new(conn, deadlines),
            left,
            upgrades,
            pipelined,
        )
        .0
    }

    /// Returns whether a read finds nothing at present.
    fn has_nothing(turn: &mut RequestStream) -> bool {
        let mut room = [0; 64];
        Pin::new(turn)
            .poll_read(
                &mut Context::from_waker(std::task::Waker::noop()),
                &mut ReadBuf::new(&mut room),
            )
            .is_pending()
    }

    /// Reads a request stream to the end of its body in steps of the given size. Returns what was
    /// read and what is kept after it.
    async fn read(
        body: Body,
        came: &[u8],
        pieces: usize,
        room: usize,
    ) -> (io::Result<Vec<u8>>, Vec<u8>) {
        let (mut client, ours) = tokio::io::duplex(pieces);
        let came = came.to_vec();
        let (leave, stays) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            // A request stream that has failed reads nothing more.
            let _ = client.write_all(&came).await;
            let _ = stays.await;
        });
        let mut turn = turn_of(
            Box::new(ours),
            conn(),
            Some(BodyDecoder::new(body)),
            false,
            None,
        );
        let mut out = Vec::new();
        let mut part = vec![0; room];
        while turn.left.is_some() || !turn.owed.is_empty() {
            match turn.read(&mut part).await {
                Ok(0) => break,
                Ok(read) => out.extend_from_slice(&part[..read]),
                Err(error) => return (Err(error), Vec::new()),
            }
        }
        // The bytes that follow are kept and are not part of the message.
        assert!(
            has_nothing(&mut turn),
            "nothing may be read behind the message"
        );
        let (mut stream, pipelined) = RequestStream::end(Box::new(turn)).expect("a turn");
        let mut behind = pipelined
            .map(|buffer| buffer.filled().to_vec())
            .unwrap_or_default();
        drop(leave);
        stream.read_to_end(&mut behind).await.expect("the rest");
        (Ok(out), behind)
    }

    #[tokio::test]
    async fn a_request_stream_ends_with_its_request_for_any_split_of_bytes() {
        const NEXT: &[u8] = b"GET /next HTTP/1.1\r\n\r\n";
        let chunked = [
            &b"5;a=b\r\nhello\r\n00A \r\n0123456789\r\n0\r\nX-A: 1\r\n\r\n"[..],
            NEXT,
        ]
        .concat();
        for pieces in [1, 2, 3, 7, 1_000] {
            for room in [1, 2, 3, 5, 1_000] {
                let (out, behind) = read(Body::Chunked, &chunked, pieces, room).await;
                assert_eq!(
                    (out.expect("well formed").as_slice(), &behind[..]),
                    (&b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n"[..], NEXT),
                    "{pieces} {room}"
                );
                let (out, behind) = read(
                    Body::Length(5),
                    &[&b"hello"[..], NEXT].concat(),
                    pieces,
                    room,
                )
                .await;
                assert_eq!(
                    (out.expect("well formed").as_slice(), &behind[..]),
                    (&b"hello"[..], NEXT),
                    "{pieces} {room}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_malformed_chunk_is_reported_as_a_malformed_chunk() {
        for pieces in [1, 1_000] {
            for bad in [&b"5\r\nhello\r\n\r\n"[..], b"\r\n\r\n", b"5;a\nhello\r\n"] {
                let (out, _) = read(Body::Chunked, bad, pieces, 64).await;
                let error = pingora::Error::because(
                    pingora::ErrorType::ReadError,
                    "reading",
                    out.expect_err("malformed"),
                );
                assert!(is_malformed_chunk(&error), "{error}");
            }
        }
        let other = pingora::Error::because(
            pingora::ErrorType::ReadError,
            "reading",
            io::Error::from(io::ErrorKind::ConnectionReset),
        );
        assert!(!is_malformed_chunk(&other));
    }

    #[tokio::test]
    async fn bytes_sent_before_a_protocol_switch_are_read_after_it() {
        let (mut client, ours) = tokio::io::duplex(64);
        let conn = conn();
        let mut turn = turn_of(
            Box::new(ours),
            Arc::clone(&conn),
            None,
            true,
            Buffer::of(b"early "),
        );
        client.write_all(b"frames").await.expect("sent");
        let mut part = [0; 64];
        assert!(has_nothing(&mut turn));
        let head = pingora::http::RequestHeader::build("GET", b"/", None).map(|mut head| {
            head.insert_header("upgrade", "websocket")
                .expect("a header");
            head
        });
        let mut peer = pingora::upstreams::peer::HttpPeer::new("127.0.0.1:1", false, String::new());
        let tunnel = crate::gateway::adapter::tunnel::Tunnel::asked_for(
            &head.expect("a head"),
            &mut peer,
            std::time::Duration::from_secs(60),
        )
        .expect("a tunnel");
        conn.tunnel.store(Some(Arc::clone(&tunnel)));
        assert!(
            has_nothing(&mut turn),
            "a tunnel that is asked for is none yet"
        );
        tunnel.open();
        let mut all = Vec::new();
        while all.len() < 12 {
            let read = turn.read(&mut part).await.expect("bytes");
            all.extend_from_slice(&part[..read]);
        }
        assert_eq!(all, b"early frames");
    }
}
