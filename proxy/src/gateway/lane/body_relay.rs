//! Relays a request body to the backend and an answer body to the client. Each has one buffer, so
//! that a slow receiver slows the sender down.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cutover_core::FailureKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::clock;
use crate::gateway::lane::body_decoder::BodyDecoder;
use crate::gateway::lane::min_rate::Pace;
use crate::gateway::lane::read_buffer::{Buffer, Size};
use crate::gateway::lane::{Lane, LaneStream};
use crate::gateway::listener::deadlines::{Alarm, Deadline};
use crate::gateway::router::{Blame, Failure};

/// The reason why a transaction cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum RelayError {
    /// The client disconnected.
    ClientGone,
    /// The client was slower than allowed.
    ClientSlow,
    /// The backend failed in this way.
    Backend(FailureKind),
    /// The transaction was drained.
    SentAway,
    /// There is no file descriptor or memory for a connection.
    Shortage,
}

impl RelayError {
    /// Converts the error to the router's [`Failure`]. After the answer has begun, every failure of
    /// the backend counts as a truncated answer.
    pub(super) fn failure(self, answer_begun: bool) -> Failure {
        match self {
            Self::ClientGone => Failure {
                blame: Blame::Client,
                kind: FailureKind::Reset,
            },
            Self::ClientSlow => Failure {
                blame: Blame::Client,
                kind: FailureKind::Timeout,
            },
            Self::Backend(_) if answer_begun => Failure {
                blame: Blame::Backend,
                kind: FailureKind::Truncated,
            },
            Self::Backend(kind) => Failure {
                blame: Blame::Backend,
                kind,
            },
            Self::SentAway => Failure {
                blame: Blame::Proxy,
                kind: FailureKind::Reset,
            },
            Self::Shortage => Failure {
                blame: Blame::Proxy,
                kind: FailureKind::Connect,
            },
        }
    }
}

/// Handles a read or write that is pending. If the deadline has passed, the awaited side is late
/// and `late` is returned.
pub(super) fn pending<T>(watched: &Deadline, late: RelayError) -> Poll<Result<T, RelayError>> {
    match watched.alarm() {
        None => Poll::Pending,
        Some(Alarm::Overdue) => Poll::Ready(Err(late)),
        Some(Alarm::SentAway) => Poll::Ready(Err(RelayError::SentAway)),
    }
}

/// Writes all these bytes.
pub(in crate::gateway) async fn write_all<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut bytes: &[u8],
    watched: &Deadline,
    gone: RelayError,
    late: RelayError,
) -> Result<(), RelayError> {
    std::future::poll_fn(|cx| {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) if written > 0 => bytes = &bytes[written..],
                Poll::Ready(_) => return Poll::Ready(Err(gone)),
                Poll::Pending => return pending(watched, late),
            }
        }
        match Pin::new(&mut *to).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(gone)),
            Poll::Pending => pending(watched, late),
        }
    })
    .await
}

/// Writes the contents of a buffer as far as possible.
fn poll_drain<W: AsyncWrite + Unpin>(
    buffer: &mut Buffer,
    to: &mut W,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !buffer.is_empty() {
        let written = ready!(Pin::new(&mut *to).poll_write(cx, buffer.filled()))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        buffer.consume(written);
    }
    Poll::Ready(Ok(()))
}

/// The rest of a request body that was not completely in the head's buffer.
#[derive(Debug)]
pub(super) struct Upload {
    left: u64,
    /// The bytes that were read and not written yet.
    buffer: Option<Buffer>,
    /// The number of bytes read so far, including those in the head's buffer.
    pub(super) read: u64,
    pace: Pace,
    /// Whether the backend takes no more of the upload.
    is_refused: bool,
}

impl Upload {
    /// Creates an upload of which `read` bytes have been read and `left` bytes have not.
    pub(super) fn new(read: u64, left: u64) -> Self {
        Self {
            left,
            buffer: None,
            read,
            pace: Pace::default(),
            is_refused: false,
        }
    }

    /// Returns whether the backend has received the whole upload.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0 && self.buffer.is_none() && !self.is_refused
    }

    /// Returns whether the upload needs no further work.
    pub(super) fn is_done(&self) -> bool {
        self.is_over() || self.is_refused
    }

    /// Returns whether the client has sent the whole upload, so that anything received now belongs
    /// to something else.
    pub(super) fn is_read(&self) -> bool {
        self.left == 0
    }

    /// Records that the backend takes no more of the upload. The backend may have answered already.
    pub(super) fn refuse(&mut self) {
        self.is_refused = true;
        self.buffer = None;
    }

    /// Prepares another attempt, which sends the same bytes.
    pub(super) fn begin_again(&mut self) {
        self.is_refused = false;
    }

    /// Returns whether the upload waits for the client and not for the backend.
    pub(super) fn waits_for_the_client(&self) -> bool {
        self.buffer.is_none() && !self.is_done()
    }

    /// Moves as many bytes as possible. Completes when the backend has the whole upload. The
    /// awaited side has its own limit, and for a backend this is `patience`. If `patience` is
    /// `None`, the answer in flight sets the limit for both sides.
    pub(super) fn poll<S: AsyncRead + Unpin>(
        &mut self,
        client: &mut S,
        backend: &mut TcpStream,
        (lane, watched): (&Lane, &Deadline),
        patience: Option<Duration>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RelayError>> {
        loop {
            if let Some(buffer) = &mut self.buffer {
                match poll_drain(buffer, backend, cx) {
                    Poll::Pending => return Poll::Pending,
                    // The backend's answer, if there is one, is read first.
                    Poll::Ready(Err(_)) => {
                        self.refuse();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => self.buffer = None,
                }
                if patience.is_some() {
                    watched.within(lane.body_idle);
                }
            }
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = Buffer::new(Size::Body);
            match buffer.poll_fill(client, usize::try_from(self.left).unwrap_or(usize::MAX), cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(read)) if read > 0 => {
                    self.read += read as u64;
                    self.left -= read as u64;
                    if self.left > 0 && !self.pace.is_kept(self.read, clock::mono()) {
                        return Poll::Ready(Err(RelayError::ClientSlow));
                    }
                    self.buffer = Some(buffer);
                    if let Some(patience) = patience {
                        watched.within(patience);
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Err(RelayError::ClientGone)),
            }
        }
    }
}

/// The part of an answer's body that has not been written yet.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) left: BodyDecoder,
    /// Whether the body is chunked for the client.
    in_chunks: bool,
    buffer: Option<Buffer>,
    is_read: bool,
    /// The number of payload bytes that were written or are about to be written.
    pub(super) payload: u64,
    /// Whether there were bytes after the end of the body.
    pub(super) has_more: bool,
}

/// The room for the size of a chunk before its bytes, and for its end and the last chunk after
/// them.
const CHUNK_HEAD: usize = 10;
const CHUNK_TAIL: usize = 2;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl Download {
    /// Creates a download of a whole body.
    pub(super) fn new(left: BodyDecoder, in_chunks: bool) -> Self {
        let is_read = left.is_nothing();
        Self {
            left,
            in_chunks,
            buffer: None,
            is_read,
            payload: 0,
            has_more: false,
        }
    }

    /// Returns whether the whole body has been read.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Takes the bytes that were received with the head, and appends the ones to pass on to `out`.
    pub(super) fn begin(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Result<(), RelayError> {
        if self.is_read {
            self.has_more = !bytes.is_empty();
            return Ok(());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let fed = self
            .left
            .feed(bytes)
            .ok_or(RelayError::Backend(FailureKind::Truncated))?;
        self.payload += fed.payload;
        if self.in_chunks {
            chunk_head(fed.kept, |head| out.extend_from_slice(head));
        }
        out.extend_from_slice(&bytes[..fed.kept]);
        if self.in_chunks {
            out.extend_from_slice(b"\r\n");
        }
        self.end(fed.is_over, fed.used < bytes.len(), |end| {
            out.extend_from_slice(end);
        });
        Ok(())
    }

    fn end(&mut self, is_over: bool, has_more: bool, write: impl FnOnce(&[u8])) {
        if is_over {
            self.is_read = true;
            self.has_more = has_more;
            write(self.left.end());
        }
    }

    /// Returns whether the download waits for the client and not for the backend.
    pub(super) fn waits_for_the_client(&self) -> bool {
        self.buffer.is_some()
    }

    /// Moves as many bytes as possible. Completes when the client has the whole body. `late` is the
    /// error if the backend sends nothing in time.
    pub(super) fn poll<S: LaneStream>(
        &mut self,
        backend: &mut TcpStream,
        client: &mut S,
        (lane, watched): (&Lane, &Deadline),
        (patience, late): (Duration, RelayError),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RelayError>> {
        loop {
            if let Some(buffer) = &mut self.buffer {
                match poll_drain(buffer, client, cx) {
                    Poll::Pending => return pending(watched, RelayError::ClientSlow),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(RelayError::ClientGone)),
                    Poll::Ready(Ok(())) => self.buffer = None,
                }
                watched.within(patience);
            }
            if self.is_read {
                return match Pin::new(&mut *client).poll_flush(cx) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                    Poll::Ready(Err(_)) => Poll::Ready(Err(RelayError::ClientGone)),
                    Poll::Pending => pending(watched, RelayError::ClientSlow),
                };
            }
            let mut buffer = Buffer::new(Size::Body);
            if self.in_chunks {
                buffer.begin_at(CHUNK_HEAD);
            }
            match buffer.poll_fill(
                backend,
                Size::Body.bytes() - CHUNK_HEAD - CHUNK_TAIL - LAST_CHUNK.len(),
                cx,
            ) {
                Poll::Pending => {
                    // Written bytes must not wait for bytes still to be received.
                    return match Pin::new(&mut *client).poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(RelayError::ClientGone)),
                        Poll::Ready(Ok(())) | Poll::Pending => pending(watched, late),
                    };
                }
                Poll::Ready(Ok(0)) if matches!(self.left, BodyDecoder::Close) => {
                    self.is_read = true;
                    if self.in_chunks {
                        let _ = buffer.extend(LAST_CHUNK);
                    }
                }
                Poll::Ready(Ok(read)) if read > 0 => self.take(&mut buffer)?,
                Poll::Ready(_) => {
                    return Poll::Ready(Err(RelayError::Backend(FailureKind::Truncated)));
                }
            }
            watched.within(lane.write);
            self.buffer = Some(buffer);
        }
    }

    fn take(&mut self, buffer: &mut Buffer) -> Result<(), RelayError> {
        let fed = self
            .left
            .feed(buffer.filled_mut())
            .ok_or(RelayError::Backend(FailureKind::Truncated))?;
        self.payload += fed.payload;
        let has_more = fed.used < buffer.len();
        buffer.truncate(fed.kept);
        if self.in_chunks {
            chunk_head(fed.kept, |head| buffer.prepend(head));
            // There is room, because fewer bytes were read.
            let _ = buffer.extend(b"\r\n");
        }
        self.end(fed.is_over, has_more, |end| {
            let _ = buffer.extend(end);
        });
        Ok(())
    }
}

/// Writes the line before a chunk of this many bytes.
fn chunk_head(bytes: usize, write: impl FnOnce(&[u8])) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = [0; CHUNK_HEAD];
    let mut at = CHUNK_HEAD - 2;
    line[at..].copy_from_slice(b"\r\n");
    let mut left = bytes;
    while at > 0 {
        at -= 1;
        line[at] = DIGITS[left & 0xf];
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    write(&line[at..]);
}

/// The client side of a request.
pub(super) struct ClientSide<'a, S> {
    /// The client's connection.
    pub(super) stream: &'a mut S,
    /// The bytes that the client sent ahead of its next request.
    pub(super) pipelined: &'a mut Option<Buffer>,
}

impl<S: AsyncRead + Unpin> ClientSide<'_, S> {
    /// Checks whether the client has disconnected, and keeps the bytes it sends early as far as
    /// there is room.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) -> Result<(), RelayError> {
        let mut buffer = self
            .pipelined
            .take()
            .unwrap_or_else(|| Buffer::new(Size::Head));
        let is_gone = loop {
            if buffer.is_full() {
                break false;
            }
            match buffer.poll_fill(self.stream, usize::MAX, cx) {
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(_) => break true,
                Poll::Pending => break false,
            }
        };
        if !buffer.is_empty() {
            *self.pipelined = Some(buffer);
        }
        if is_gone {
            Err(RelayError::ClientGone)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::lane::body_decoder::Body;

    #[test]
    fn a_chunk_size_is_written_in_hexadecimal() {
        for (bytes, line) in [
            (1, "1\r\n"),
            (0xabc, "abc\r\n"),
            (0xffff_ffff, "ffffffff\r\n"),
        ] {
            chunk_head(bytes, |head| assert_eq!(head, line.as_bytes()));
        }
    }

    #[test]
    fn bytes_received_with_the_head_are_part_of_the_body() {
        for (body, in_chunks, bytes, goes_on, is_read, has_more) in [
            (
                Body::Length(2),
                false,
                &b"okmore"[..],
                &b"ok"[..],
                true,
                true,
            ),
            (Body::Length(4), false, b"ok", b"ok", false, false),
            (Body::Length(0), false, b"", b"", true, false),
            (Body::Length(0), false, b"more", b"", true, true),
            (Body::Close, true, b"ok", b"2\r\nok\r\n", false, false),
            (Body::Close, true, b"", b"", false, false),
            (
                Body::Chunked,
                false,
                b"2\r\nok\r\n0\r\na: b\r\n\r\n",
                b"2\r\nok\r\n0\r\n\r\n",
                true,
                false,
            ),
        ] {
            let (mut download, mut out) =
                (Download::new(BodyDecoder::new(body), in_chunks), Vec::new());
            assert_eq!(download.begin(&mut bytes.to_vec(), &mut out), Ok(()));
            assert_eq!(
                (&out[..], download.is_read(), download.has_more),
                (goes_on, is_read, has_more),
                "{body:?} {bytes:?}"
            );
        }
        let mut download = Download::new(BodyDecoder::new(Body::Chunked), false);
        assert_eq!(
            download.begin(&mut b"nonsense".to_vec(), &mut Vec::new()),
            Err(RelayError::Backend(FailureKind::Truncated))
        );
    }
}
