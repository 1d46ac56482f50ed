//! Watches the frames of one HTTP/2 connection as they pass between the socket and the h2 library.
//!
//! *Purpose.* The library reports whole requests only. Three things have to be known earlier, or
//! besides: whether a header block has begun and does not end, how much of a DATA frame was
//! received, and which streams the library refuses by itself.
//!
//! *Why this way.* Each frame has a header of nine bytes (RFC 9113, section 4.1), so following the
//! stream costs a few instructions per frame and none per byte. Nothing is decoded here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// The length of the client's connection preface in bytes (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// The length of a frame's header in bytes.
const HEADER: usize = 9;
/// The number of resets that are remembered between two checks.
const MAX_RESETS: usize = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;

/// What has been seen of a connection. It is shared by the socket, the loop and the streams of the
/// connection.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The number of the header block that has begun and has not ended. Zero while there is none.
    open_block: AtomicU64,
    /// The stream of the DATA frame that is being received, and how many of its bytes were
    /// received.
    data_stream: AtomicU32,
    data_bytes: AtomicU64,
}

/// The streams that our side resets, with the error codes.
pub(super) type Resets = mpsc::Receiver<(u32, u32)>;

impl Seen {
    /// Returns the number of the header block that the client has begun and not ended, if there is
    /// one.
    pub(super) fn open_block(&self) -> Option<u64> {
        Some(self.open_block.load(Ordering::Relaxed)).filter(|block| *block != 0)
    }

    /// Returns how many bytes were received of an incomplete DATA frame of this stream.
    pub(super) fn partial_data(&self, stream: u32) -> u64 {
        let is_its = self.data_stream.load(Ordering::Relaxed) == stream;
        if is_its {
            self.data_bytes.load(Ordering::Relaxed)
        } else {
            0
        }
    }
}

/// A connection's socket, or TLS above it, whose frames are watched.
#[derive(Debug)]
pub(super) struct FrameWatcher<T> {
    inner: T,
    incoming: Frames,
    outgoing: Frames,
    blocks: u64,
    seen: Arc<Seen>,
    resets: mpsc::Sender<(u32, u32)>,
}

impl<T> FrameWatcher<T> {
    /// Watches `inner`, from which nothing has been read yet.
    pub(super) fn new(inner: T, seen: Arc<Seen>) -> (Self, Resets) {
        let incoming = Frames {
            skip: PREFACE,
            ..Frames::default()
        };
        let (resets, sent) = mpsc::channel(MAX_RESETS);
        (
            Self {
                inner,
                incoming,
                outgoing: Frames::default(),
                blocks: 0,
                seen,
                resets,
            },
            sent,
        )
    }

    fn came(&mut self, bytes: &[u8]) {
        let Self {
            incoming,
            blocks,
            seen,
            ..
        } = self;
        incoming.pass(bytes, |frame, step| match (frame.kind, step) {
            (HEADERS, Step::Begun) => {
                *blocks += 1;
                seen.open_block.store(*blocks, Ordering::Relaxed);
            }
            (HEADERS | CONTINUATION, Step::Whole) if frame.flags & END_HEADERS != 0 => {
                seen.open_block.store(0, Ordering::Relaxed);
            }
            (DATA, Step::Begun) => {
                seen.data_bytes.store(0, Ordering::Relaxed);
                seen.data_stream.store(frame.stream, Ordering::Relaxed);
            }
            (DATA, Step::Part(bytes)) => {
                seen.data_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            (DATA, Step::Whole) => seen.data_stream.store(0, Ordering::Relaxed),
            _ => {}
        });
    }

    fn left(&mut self, bytes: &[u8]) {
        let Self {
            outgoing, resets, ..
        } = self;
        outgoing.pass(bytes, |frame, step| {
            if (frame.kind, step) == (RST_STREAM, Step::Whole) {
                // Resets beyond the capacity need no different treatment, so they are dropped.
                let _ = resets.try_send((frame.stream, frame.first_word));
            }
        });
    }
}

/// How much of a frame was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The header of the frame.
    Begun,
    /// This many more bytes of the payload.
    Part(usize),
    /// The whole frame.
    Whole,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// The first four bytes of the payload.
    first_word: u32,
}

/// Follows the frames in a stream of bytes, however the bytes are split.
#[derive(Debug, Default)]
struct Frames {
    /// The number of bytes before the first frame.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    frame: Frame,
    /// The number of payload bytes of the current frame that were received. The remaining ones are
    /// counted beside it.
    past: usize,
    left: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut found: impl FnMut(&Frame, Step)) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < HEADER {
                let now = (HEADER - self.have).min(bytes.len());
                self.header[self.have..self.have + now].copy_from_slice(&bytes[..now]);
                self.have += now;
                bytes = &bytes[now..];
                if self.have < HEADER {
                    return;
                }
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.past = 0;
                self.frame = Frame {
                    kind,
                    flags,
                    stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
                    first_word: 0,
                };
                found(&self.frame, Step::Begun);
            }
            let now = self.left.min(bytes.len());
            for &byte in bytes[..now].iter().take(4_usize.saturating_sub(self.past)) {
                self.frame.first_word = self.frame.first_word << 8 | u32::from(byte);
            }
            self.past += now;
            self.left -= now;
            bytes = &bytes[now..];
            if now > 0 {
                found(&self.frame, Step::Part(now));
            }
            if self.left == 0 {
                self.have = 0;
                found(&self.frame, Step::Whole);
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FrameWatcher<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.came(&buffer.filled()[before..]);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FrameWatcher<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.left(&bytes[..written]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            for slice in slices {
                let now = left.min(slice.len());
                self.left(&slice[..now]);
                left -= now;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0,
            (payload.len() >> 8) as u8,
            payload.len() as u8,
            kind,
            flags,
        ];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_header_block_is_open_until_its_last_frame_is_complete() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        let opens = bytes.len() + HEADER;
        bytes.extend(frame(HEADERS, 0, 1, b"half"));
        bytes.extend(frame(CONTINUATION, 0, 1, b"more"));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, b"rest"));
        let closes = bytes.len();
        bytes.extend(frame(6, 0, 0, &[0; 8]));
        for size in [1, 2, 7, 1_000] {
            let seen = Arc::new(Seen::default());
            let (mut watched, _resets) = FrameWatcher::new(tokio::io::empty(), Arc::clone(&seen));
            let mut at = 0;
            for part in bytes.chunks(size) {
                watched.came(part);
                at += part.len();
                assert_eq!(
                    seen.open_block().is_some(),
                    (opens..closes).contains(&at),
                    "after {at} bytes in parts of {size}"
                );
            }
        }
    }

    #[test]
    fn a_one_frame_header_block_closes_and_the_next_has_a_new_number() {
        let seen = Arc::new(Seen::default());
        let (mut watched, _resets) = FrameWatcher::new(tokio::io::empty(), Arc::clone(&seen));
        watched.incoming.skip = 0;
        watched.came(&frame(HEADERS, END_HEADERS, 1, b"all"));
        assert_eq!(seen.open_block(), None);
        watched.came(&frame(HEADERS, 0, 3, b""));
        let first = seen.open_block();
        watched.came(&frame(CONTINUATION, END_HEADERS, 3, b""));
        watched.came(&frame(HEADERS, 0, 5, b""));
        assert!(first.is_some() && seen.open_block().is_some() && first != seen.open_block());
    }

    #[test]
    fn the_bytes_of_a_partial_data_frame_are_counted_for_its_stream() {
        let seen = Arc::new(Seen::default());
        let (mut watched, _resets) = FrameWatcher::new(tokio::io::empty(), Arc::clone(&seen));
        watched.incoming.skip = 0;
        let bytes = frame(DATA, 0, 7, b"0123456789");
        watched.came(&bytes[..HEADER + 4]);
        assert_eq!((seen.partial_data(7), seen.partial_data(5)), (4, 0));
        watched.came(&bytes[HEADER + 4..]);
        assert_eq!(seen.partial_data(7), 0);
    }

    #[test]
    fn a_reset_that_the_proxy_sends_is_seen_with_its_code() {
        for size in [1, 3, 100] {
            let seen = Arc::new(Seen::default());
            let (mut watched, mut resets) =
                FrameWatcher::new(tokio::io::empty(), Arc::clone(&seen));
            let mut bytes = frame(HEADERS, END_HEADERS, 1, b"answer");
            bytes.extend(frame(RST_STREAM, 0, 9, &7_u32.to_be_bytes()));
            bytes.extend(frame(DATA, 1, 1, b"body"));
            bytes.chunks(size).for_each(|part| watched.left(part));
            assert_eq!(
                (resets.try_recv().ok(), resets.try_recv().ok()),
                (Some((9, 7)), None)
            );
        }
    }
}
