//! Connections to backends for upgrades, with a socket of our own below pingora's.
//!
//! Pingora races the end of the (empty) request body against the backend's answer. When the 101 is
//! read first, it takes the end of the body for the end of the tunnel and closes the tunnel
//! (cloudflare/pingora#946). A backend that answers at once occasionally wins that race on a busy
//! machine. Here the first read after each write to the backend finds nothing, whatever is there,
//! so the end of the body is always handled first. That costs an upgrade one poll of its task. The
//! pool is not used, because a tunnel ends with its connection.
//!
//! Server-sent events also use this path, because they may be idle for as long.
//!
//! When a tunnel is drained, the client gets a close frame (1012, service restart) between two
//! frames of the backend, and then the end of the connection. An event stream just ends, and its
//! client reconnects. When the backend connection uses TLS, its frames are not visible, and a
//! tunnel ends without a close frame.
//!
//! A tunnel ends when neither side has sent anything for the backend's `stream_idle_timeout`. A
//! side that only listens is not late.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, Version};
use pingora::connectors::L4Connect;
use pingora::http::RequestHeader;
use pingora::listeners::ALPN;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::shared::drain::Drained;

/// The time added to the deadline of a gRPC call.
const GRPC_GRACE: Duration = Duration::from_secs(1);
/// The group that keeps these connections apart from those of requests.
const GROUP: u64 = 1;

/// One upgrade on its way to becoming a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    kind: Drained,
    /// How long both sides may be silent.
    idle: Duration,
    is_open: AtomicBool,
    drained: CancellationToken,
}

impl Tunnel {
    /// Prepares a peer for an upgrade, if the request asks for one that the engine passes on. The
    /// engine supports WebSocket only.
    pub fn asked_for(
        head: &RequestHeader,
        peer: &mut HttpPeer,
        idle: Duration,
    ) -> Option<Arc<Self>> {
        let upgrade = head
            .headers
            .get(http::header::UPGRADE)
            .filter(|_| head.version == Version::HTTP_11);
        let kind = match upgrade {
            Some(upgrade) if upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") => {
                Drained::WebSocket
            }
            _ if head
                .headers
                .get(http::header::ACCEPT)
                .is_some_and(|accept| accept == "text/event-stream") =>
            {
                Drained::Stream
            }
            Some(_) | None => return None,
        };
        // An HTTP/2 request shares a connection, so it cannot have one of its own.
        if peer.options.alpn != ALPN::H1 {
            return None;
        }
        let tunnel = Arc::new(Self {
            kind,
            idle,
            is_open: AtomicBool::new(false),
            drained: CancellationToken::new(),
        });
        peer.group_key = GROUP;
        peer.options.idle_timeout = Some(Duration::ZERO);
        peer.options.read_timeout = None;
        peer.options.custom_l4 = Some(Arc::new(Connect(Arc::clone(&tunnel))));
        Some(tunnel)
    }

    /// Returns the kind of the tunnel.
    pub fn kind(&self) -> Drained {
        self.kind
    }

    /// Ends the tunnel as gracefully as its protocol allows.
    pub fn drain(&self) {
        self.drained.cancel();
    }

    /// Returns whether the proxy ended the tunnel.
    pub fn is_drained(&self) -> bool {
        self.drained.is_cancelled()
    }

    /// Returns whether the backend has switched protocols, so that what the client sends is not
    /// HTTP.
    pub fn has_switched(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Records that the backend has switched protocols. From now on both sides may send at any
    /// time.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

/// Returns whether a message is a gRPC message.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Parses the deadline of a gRPC call from `grpc-timeout`: at most eight digits and a unit.
fn grpc_deadline(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last().filter(|(_, digits)| {
        (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
    })?;
    let number = digits
        .iter()
        .fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Returns how long to wait for the answer of a gRPC call, if the call has a deadline. The server's
/// own error about the deadline should arrive before ours.
pub fn patience_of_call(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get("grpc-timeout")
        .and_then(|deadline| grpc_deadline(deadline.as_bytes()))
        .map(|deadline| deadline + GRPC_GRACE)
}

#[derive(Debug)]
struct Connect(Arc<Tunnel>);

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "a backend has an internet address");
        };
        let failed = |error: io::Error| {
            let kind = if error.kind() == io::ErrorKind::ConnectionRefused {
                ErrorType::ConnectRefused
            } else {
                ErrorType::ConnectError
            };
            Error::because(kind, "connecting for an upgrade", error).into_up()
        };
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let idle = Box::pin(tokio::time::sleep(self.0.idle));
        Ok(VirtualSocketStream::new(Box::new(Socket {
            tcp,
            has_written: false,
            idle,
            drained: Box::pin(self.0.drained.clone().cancelled_owned()),
            frames: Frames::default(),
            farewell: None,
            tunnel: Arc::clone(&self.0),
        }))
        .into())
    }
}

/// A socket that is written to before it is read from.
#[derive(Debug)]
struct Socket {
    tcp: TcpStream,
    has_written: bool,
    /// The timer for how long both sides may be silent.
    idle: Pin<Box<Sleep>>,
    drained: Pin<Box<WaitForCancellationFutureOwned>>,
    frames: Frames,
    /// The unsent rest of the close frame.
    farewell: Option<&'static [u8]>,
    tunnel: Arc<Tunnel>,
}

/// A server's close frame with the code 1012, service restart (RFC 6455, section 5.5.1, and the
/// registry of close codes).
const CLOSE: &[u8] = &[0x88, 0x02, 0x03, 0xf4];

impl Socket {
    fn has_spoken(&mut self) {
        let idle = self.tunnel.idle;
        self.idle.set(tokio::time::sleep(idle));
    }
}

impl VirtualSocket for Socket {
    /// All the requested options were set when the connection was made.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_written) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let is_drained = self.drained.as_mut().poll(context).is_ready();
        if is_drained && (self.tunnel.kind == Drained::Stream || self.frames.is_between()) {
            let farewell = self
                .farewell
                .unwrap_or(if self.tunnel.kind == Drained::WebSocket {
                    CLOSE
                } else {
                    &[]
                });
            let (now, later) = farewell.split_at(farewell.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.farewell = Some(later);
            return Poll::Ready(Ok(()));
        }
        let filled = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.tcp).poll_read(context, buffer) {
            self.has_spoken();
            if self.tunnel.kind == Drained::WebSocket {
                self.frames.pass(&buffer.filled()[filled..]);
            }
            return Poll::Ready(read);
        }
        // The timer is also polled before the tunnel is open, so that the task wakes up even if
        // neither side sends anything afterwards.
        if !is_drained && self.idle.as_mut().poll(context).is_ready() {
            if self.tunnel.is_open.load(Ordering::Relaxed) {
                // The tunnel ends like one that is drained.
                self.tunnel.drain();
            } else {
                self.has_spoken();
            }
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        self.has_spoken();
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// Follows what a backend sends: the head of its answer, and then frames, of which only the lengths
/// are read (RFC 6455, section 5.2).
#[derive(Debug, Default)]
struct Frames {
    /// How many bytes of the end of the head have been seen. Four is all of it.
    head_end: usize,
    /// The incomplete header of a frame.
    header: Vec<u8>,
    /// The number of bytes of a frame that are still missing.
    left: u64,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.head_end == HEAD_END.len() && self.header.is_empty() && self.left == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes
            .split_first()
            .filter(|_| self.head_end < HEAD_END.len())
        {
            let begins = usize::from(byte == HEAD_END[0]);
            self.head_end = if byte == HEAD_END[self.head_end] {
                self.head_end + 1
            } else {
                begins
            };
            bytes = rest;
        }
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.left -= here as u64;
                bytes = &bytes[here..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(length) = payload_length(&self.header) {
                self.left = length;
                self.header.clear();
            }
        }
    }
}

const HEAD_END: &[u8] = b"\r\n\r\n";

/// Returns the length of the rest of a frame with this header. `None` while the header is
/// incomplete. Backends do not mask frames, but masked frames are followed correctly.
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        127 => u64::from_be_bytes(header.get(2..10)?.try_into().ok()?),
        short => u64::from(short),
    };
    Some(length.saturating_add(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_call_may_be_idle_until_its_deadline() {
        for (text, deadline) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("2H", Some(Duration::from_secs(7200))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
        ] {
            assert_eq!(grpc_deadline(text.as_bytes()), deadline, "{text}");
        }
        for text in ["", "S", "123456789S", "1", "-1S", "1s", "1 S"] {
            assert_eq!(grpc_deadline(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_frame_boundary_is_found_for_any_split_of_bytes() {
        let mut sent = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n".to_vec();
        let mut ends = vec![sent.len()];
        for (length, masked) in [
            (0usize, false),
            (5, false),
            (125, true),
            (126, false),
            (65_535, false),
            (65_536, true),
        ] {
            let mask = if masked { 0x80 } else { 0 };
            sent.push(0x82);
            match length {
                0..=125 => sent.push(mask | length as u8),
                126..=65_535 => {
                    sent.push(mask | 126);
                    sent.extend((length as u16).to_be_bytes());
                }
                _ => {
                    sent.push(mask | 127);
                    sent.extend((length as u64).to_be_bytes());
                }
            }
            sent.extend(vec![0x88; length + if masked { 4 } else { 0 }]);
            ends.push(sent.len());
        }
        for size in [1, 2, 3, 7, 4096] {
            let mut frames = Frames::default();
            let mut at = 0;
            for part in sent.chunks(size) {
                frames.pass(part);
                at += part.len();
                assert_eq!(
                    frames.is_between(),
                    ends.contains(&at),
                    "after {at} bytes in parts of {size}"
                );
            }
        }
    }
}
