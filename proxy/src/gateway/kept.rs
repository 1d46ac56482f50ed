//! A client connection that can be waited on between two requests, at the price of a byte.
//!
//! Pingora waits for a request inside the future of the whole request: some 15 KiB, most of them for a TLS handshake with a backend, and a buffer for the head, pinned by every idle client. Here
//! the door waits for the first byte of a head, and only then the request's future is made. The byte is given back in front of what follows it, in the same read, so that a
//! head that comes as a whole is still parsed once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::listeners::ALPN;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// A stream, and the byte that has been read from it while waiting.
#[derive(Debug)]
pub struct Kept {
    inner: Stream,
    first: Option<u8>,
}

impl Kept {
    /// Around this stream.
    pub fn new(inner: Stream) -> Self {
        Self { inner, first: None }
    }

    /// Waits for a byte to read. False when there will be none.
    pub async fn begins(&mut self) -> bool {
        if self.first.is_none() {
            self.first = self.inner.read_u8().await.ok();
        }
        self.first.is_some()
    }
}

impl AsyncRead for Kept {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(first) = self.first.filter(|_| buf.remaining() > 0) else {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        };
        buf.put_slice(&[first]);
        self.first = None;
        if buf.remaining() > 0
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.inner).poll_read(cx, buf)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Kept {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Kept {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Kept {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Kept {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Kept {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Kept {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Kept {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for Kept {}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn pair() -> (Kept, tokio::io::DuplexStream) {
        let (inner, client) = tokio::io::duplex(64);
        (Kept::new(Box::new(inner)), client)
    }

    #[tokio::test]
    async fn what_was_waited_for_comes_in_one_read_with_what_follows() {
        let (mut kept, mut client) = pair();
        client.write_all(b"GET / HTTP/1.1").await.expect("no error");
        assert!(kept.begins().await);
        assert!(kept.begins().await, "twice is as good as once");
        let mut buffer = [0; 64];
        let read = kept.read(&mut buffer).await.expect("no error");
        assert_eq!(&buffer[..read], b"GET / HTTP/1.1");
    }

    #[tokio::test]
    async fn a_single_byte_is_not_held_back_for_a_second_one() {
        let (mut kept, mut client) = pair();
        client.write_all(b"G").await.expect("no error");
        assert!(kept.begins().await);
        let mut buffer = [0; 64];
        assert_eq!(kept.read(&mut buffer).await.expect("no error"), 1);
        client.write_all(b"ET").await.expect("no error");
        let read = kept.read(&mut buffer).await.expect("no error");
        assert_eq!(&buffer[..read], b"ET");
    }

    #[tokio::test]
    async fn a_read_without_room_takes_nothing() {
        let (mut kept, mut client) = pair();
        client.write_all(b"G").await.expect("no error");
        assert!(kept.begins().await);
        assert_eq!(kept.read(&mut []).await.expect("no error"), 0);
        assert_eq!(kept.read_u8().await.expect("no error"), b'G');
    }

    #[tokio::test]
    async fn the_end_is_no_beginning() {
        let (mut kept, client) = pair();
        drop(client);
        assert!(!kept.begins().await);
    }
}
