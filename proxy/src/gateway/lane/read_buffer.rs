//! Buffers that belong to a thread and are lent to connections that have bytes to process. An idle
//! connection has none.
//!
//! They have a few fixed sizes, are filled with zeros once in their life, and are returned when
//! they are dropped. A thread keeps a few of each size, and the others go back to the allocator.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// The purpose of a buffer, which determines its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Nearly every head, with a small body.
    Head,
    /// The largest head.
    LargeHead,
    /// Bodies that are being relayed.
    Body,
    /// A head larger than usual, as some backends really send.
    HugeHead,
}

impl Size {
    /// Returns the size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Head => 4 << 10,
            Self::LargeHead => 16 << 10,
            Self::Body => 64 << 10,
            Self::HugeHead => 1 << 20,
        }
    }

    /// Returns the number of buffers of this size that a thread keeps.
    const fn kept(self) -> usize {
        match self {
            Self::Head => 256,
            Self::LargeHead => 32,
            Self::Body => 16,
            Self::HugeHead => 0,
        }
    }
}

thread_local! {
    static FREE: RefCell<[Vec<Box<[u8]>>; 4]> = const { RefCell::new([const { Vec::new() }; 4]) };
}

/// A buffer with bytes that were read and are not consumed yet.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    size: Size,
}

impl Buffer {
    /// Returns one of the thread's buffers, empty.
    pub fn new(size: Size) -> Self {
        let bytes = FREE
            .with_borrow_mut(|free| free[size as usize].pop())
            .unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice());
        Self {
            bytes,
            start: 0,
            end: 0,
            size,
        }
    }

    /// Creates a buffer that holds these bytes, of the smallest size with room for them. `None` if
    /// no size has room.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let size = [Size::Head, Size::LargeHead, Size::Body, Size::HugeHead]
            .into_iter()
            .find(|size| bytes.len() <= size.bytes())?;
        let mut buffer = Self::new(size);
        buffer.extend(bytes).then_some(buffer)
    }

    /// Returns the bytes in the buffer.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Returns the bytes in the buffer, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Returns the number of bytes in the buffer.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns whether nothing more can be read into the buffer.
    pub fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    /// Discards the first bytes.
    pub fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Discards all but the first bytes.
    pub fn truncate(&mut self, bytes: usize) {
        self.end = self.end.min(self.start + bytes);
    }

    /// Leaves room at the front for bytes that may be prepended. Only allowed while the buffer is
    /// empty.
    pub fn begin_at(&mut self, room: usize) {
        debug_assert!(self.is_empty(), "room is left before anything is read");
        (self.start, self.end) = (room, room);
    }

    /// Inserts bytes before the others. [`begin_at`](Self::begin_at) must have left room for them.
    pub fn prepend(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.start, "no room was left in front");
        let start = self.start.saturating_sub(bytes.len());
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.start = start;
    }

    /// Appends these bytes, and returns whether there was room for all of them.
    #[must_use]
    pub fn extend(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(self.end..self.end + bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }

    /// Makes room after the bytes, if necessary with a larger buffer of up to one mebibyte. Returns
    /// whether there is room now.
    #[must_use]
    pub fn make_room(&mut self) -> bool {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            return true;
        }
        let size = match self.size {
            Size::Head => Size::LargeHead,
            Size::LargeHead => Size::Body,
            Size::Body => Size::HugeHead,
            Size::HugeHead => return false,
        };
        *self = std::mem::replace(self, Self::nothing()).moved_to(size);
        true
    }

    fn nothing() -> Self {
        Self {
            bytes: Box::default(),
            start: 0,
            end: 0,
            size: Size::HugeHead,
        }
    }

    /// Moves the bytes to a buffer of another size, which must have room for them.
    #[must_use]
    pub fn moved_to(self, size: Size) -> Self {
        let mut larger = Self::new(size);
        let fits = larger.extend(self.filled());
        debug_assert!(fits, "the other one is larger");
        larger
    }

    /// Reads once, at most `most` bytes, and returns how many were received. Zero means the end of
    /// the stream, or no room.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let until = self.bytes.len().min(self.end.saturating_add(most));
        let mut room = ReadBuf::new(&mut self.bytes[self.end..until]);
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // While a thread ends, there is no pool to return the buffer to.
        let _ = FREE.try_with(|free| {
            let free = &mut free.borrow_mut()[self.size as usize];
            if free.len() < self.size.kept() {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn fill(buffer: &mut Buffer, mut from: &[u8], most: usize) -> usize {
        match buffer.poll_fill(&mut from, most, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(read)) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn read_bytes_stay_until_they_are_consumed() {
        let mut buffer = Buffer::new(Size::Head);
        assert_eq!(
            (fill(&mut buffer, b"abcdef", 4), fill(&mut buffer, b"ef", 9)),
            (4, 2)
        );
        buffer.consume(2);
        assert_eq!(buffer.filled(), b"cdef");
        buffer.truncate(3);
        assert_eq!(buffer.filled(), b"cde");
        let mut larger = buffer.moved_to(Size::LargeHead);
        assert_eq!((larger.filled(), larger.len()), (&b"cde"[..], 3));
        larger.consume(9);
        assert!(larger.is_empty());
    }

    #[test]
    fn bytes_can_be_prepended_where_room_was_left() {
        let mut buffer = Buffer::new(Size::Head);
        buffer.begin_at(3);
        fill(&mut buffer, b"body", 9);
        buffer.prepend(b"4:");
        assert!(buffer.extend(b"."));
        assert_eq!(buffer.filled(), b"4:body.");
    }

    #[test]
    fn a_full_buffer_takes_no_more_bytes() {
        let mut buffer = Buffer::new(Size::Head);
        assert_eq!(fill(&mut buffer, &[7; 9_000], usize::MAX), 4096);
        assert!(buffer.is_full() && !buffer.extend(b"x"));
        assert_eq!(fill(&mut buffer, b"x", 1), 0);
    }

    #[test]
    fn a_buffer_returns_to_its_thread_empty() {
        let before = FREE.with_borrow(|free| free[Size::Body as usize].len());
        let mut buffer = Buffer::new(Size::Body);
        fill(&mut buffer, b"x", 1);
        drop(buffer);
        assert_eq!(
            FREE.with_borrow(|free| free[Size::Body as usize].len()),
            before.max(1)
        );
        assert!(Buffer::new(Size::Body).is_empty());
    }
}
