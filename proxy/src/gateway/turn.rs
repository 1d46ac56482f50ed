//! The part of a client's stream that is one request of HTTP/1, as the proxy engine reads it.
//!
//! The engine reads as far as it can and loses what follows a request: it answers one of two requests that were sent
//! at once, and closes. A [`Turn`] ends where its request ends. What the client sends behind that is kept for the next
//! request, and the client is heard when it goes away.
//!
//! The engine is also lenient with chunks: it takes an empty line for the end of a body, and lets line feeds stand in
//! extensions. Here chunks pass through the lane's decoder first. A malformed chunk is an error of the read, so the
//! engine breaks off, and no backend sees a body that looks complete. Extensions and trailers are cut out.
//!
//! A request that asks for another protocol ends with its head. When the backend has switched, all bytes pass.

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
use pingora::protocols::{GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::buffer::{Buffer, Size};
use super::head::Conn;
use super::lane::framing::Left;
use super::patience::Patience;

/// The error of a read that met a malformed chunk.
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
    let cause = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.and_then(|cause| cause.downcast_ref::<MalformedChunk>()).is_some()
}

/// A client's stream, for as long as one request lasts.
#[derive(Debug)]
pub struct Turn {
    /// Until it is given back.
    stream: Option<Stream>,
    conn: Arc<Conn>,
    patience: Patience,
    /// What is left of the body; nothing when all of it has been read.
    left: Option<Left>,
    /// The end of a chunked body that has not been passed on yet.
    owed: &'static [u8],
    /// Whether the client asks for another protocol, which begins where the request ends.
    upgrades: bool,
    /// What the client has said behind the request.
    ahead: Option<Buffer>,
    /// Where the stream goes if the engine drops it with the request read as a whole.
    dropped: Option<oneshot::Sender<Returned>>,
}

/// A client's stream as it was lent, and what has been read behind the request.
pub type Returned = (Stream, Option<Buffer>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let (Some(stream), Some(dropped)) = (self.stream.take().filter(|_| self.left.is_none() && self.owed.is_empty()), self.dropped.take()) {
            // Without anybody who takes it, it ends here.
            let _ = dropped.send((stream, self.ahead.take()));
        }
    }
}

impl Turn {
    /// Creates the turn of a request of which `left` has not come yet, and behind which `ahead` has. `patience` has its deadlines.
    ///
    /// The receiver gets the stream if the engine drops it. The engine does so with a connection that could go on: when a backend
    /// of HTTP/2 answers and resets its stream before it has taken all of an upload that was read as a whole.
    pub(super) fn new(stream: Stream, conn: Arc<Conn>, patience: Patience, left: Option<Left>, upgrades: bool, ahead: Option<Buffer>) -> (Self, oneshot::Receiver<Returned>) {
        let (dropped, returned) = oneshot::channel();
        (Self { stream: Some(stream), conn, patience, left, owed: b"", upgrades, ahead, dropped: Some(dropped) }, returned)
    }

    /// Ends a turn. `None` if the stream is no turn.
    pub fn end(stream: Stream) -> Option<Returned> {
        let mut turn = stream.into_any().downcast::<Self>().ok()?;
        Some((turn.stream.take()?, turn.ahead.take()))
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// While the client was waited for, the backend was not.
    fn has_moved(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(1..)) = written {
            self.patience.answer_moved();
        }
    }

    fn has_switched(&self) -> bool {
        self.upgrades && self.conn.tunnel.load().as_ref().is_some_and(|tunnel| tunnel.has_switched())
    }

    /// Behind the request: keeps what comes as far as there is room, and reads nothing but the end of the stream.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let buffer = self.ahead.get_or_insert_with(|| Buffer::new(Size::Head));
            if buffer.is_full() {
                return Poll::Pending;
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let polled = buffer.poll_fill(stream, usize::MAX, cx);
            self.ahead.take_if(|buffer| buffer.is_empty());
            if ready!(polled)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// What has been read from `from` on is fed to the decoder; what goes on stays in `room`.
    fn feed(&mut self, room: &mut ReadBuf<'_>, from: usize) -> io::Result<()> {
        let Some(left) = &mut self.left else { return Ok(()) };
        let came = &mut room.filled_mut()[from..];
        let fed = left.feed(came).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, MalformedChunk))?;
        if fed.used < came.len() {
            self.ahead = Some(Buffer::of(&came[fed.used..]).ok_or(io::ErrorKind::OutOfMemory)?);
        }
        room.set_filled(from + fed.kept);
        if fed.is_over {
            self.owed = left.end();
            self.left = None;
        }
        Ok(())
    }
}

impl AsyncRead for Turn {
    /// The engine listens to the client while it waits for the backend, so this is where it hears that the backend is late.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_request(cx, room) {
            Poll::Pending if this.patience.is_answer_late() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            polled => polled,
        }
    }
}

impl Turn {
    /// Reads more of the request; behind it, waits for the end of the stream.
    fn poll_request(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
                None if this.has_switched() => match &mut this.ahead {
                    Some(buffer) => {
                        let bytes = buffer.len().min(room.remaining());
                        room.put_slice(&buffer.filled()[..bytes]);
                        buffer.consume(bytes);
                        this.ahead.take_if(|buffer| buffer.is_empty());
                    }
                    None => return this.stream()?.poll_read(cx, room),
                },
                None => return this.poll_behind(cx),
                Some(Left::Length(most)) => {
                    let most = usize::try_from(*most).unwrap_or(usize::MAX).min(room.remaining());
                    let mut part = ReadBuf::new(room.initialize_unfilled_to(most));
                    ready!(this.stream.as_mut().map(Pin::new).ok_or(io::ErrorKind::NotConnected)?.poll_read(cx, &mut part))?;
                    let read = part.filled().len();
                    if read == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    room.advance(read);
                    this.feed(room, from)?;
                }
                Some(Left::Chunked(_) | Left::Close) => {
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

impl AsyncWrite for Turn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, bytes);
        self.has_moved(&written);
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(cx, slices);
        self.has_moved(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Turn {
    async fn shutdown(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.shutdown().await;
        }
    }
}

impl UniqueID for Turn {
    fn id(&self) -> UniqueIDType {
        self.stream.as_ref().map_or(-1, |stream| stream.id())
    }
}

impl Ssl for Turn {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.as_ref()?.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.as_ref()?.selected_alpn_proto()
    }
}

impl Peek for Turn {}

impl GetTimingDigest for Turn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.as_ref().map_or_else(Vec::new, |stream| stream.get_timing_digest())
    }
}

impl GetProxyDigest for Turn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.as_ref()?.get_proxy_digest()
    }
}

impl GetSocketDigest for Turn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.as_ref()?.get_socket_digest()
    }
}
