//! Idle connections to one server.
//!
//! Each thread has a shelf of its own, last in, first out. So a thread neither waits for a lock
//! that another holds nor takes a connection that is in another CPU's cache. Only if its own shelf
//! is empty does it try the shelves of its neighbours. A connection that is taken is silent and
//! open, because the kernel is queried each time. The runtime learns of an end, or of unsolicited
//! bytes, only when it polls. Until then the next user would receive those bytes as an answer.

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cutover_core::Mono;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// The number of shelves. If there are more threads, they share them.
const SHELVES: usize = 16;
/// The number of ended connections that are tried for one request.
const MOST_GONE: usize = 8;
/// The number of connections on a shelf.
const PLACES: usize = 512;

/// The idle connections to one server.
#[derive(Debug, Default)]
pub struct Pool {
    shelves: [Mutex<Vec<Settling>>; SHELVES],
}

#[derive(Debug)]
struct Settling {
    stream: TcpStream,
    since: Mono,
}

impl Settling {
    /// Returns whether nothing was received, neither bytes nor the end of the connection.
    fn is_silent(&self) -> bool {
        !has_unread(self.stream.as_raw_fd())
    }

    fn has_rested(&self, longest: Duration, now: Mono) -> bool {
        now.since(self.since) >= longest
    }
}

/// Returns the shelf of this thread.
fn own() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(THREADS.fetch_add(1, Ordering::Relaxed) % SHELVES);
        }
        own.get()
    })
}

impl Pool {
    /// Returns a usable connection, if there is one that has been idle for less than `longest`.
    pub fn take(&self, longest: Duration, now: Mono) -> Option<TcpStream> {
        let own = own();
        // These are closed when no lock is held.
        let mut gone = Vec::new();
        for step in 0..SHELVES {
            let shelf = &self.shelves[(own + step) % SHELVES];
            // A neighbour that is using its shelf needs the connections on it.
            let Some(mut shelf) = (if step == 0 {
                Some(shelf.lock())
            } else {
                shelf.try_lock()
            }) else {
                continue;
            };
            while let Some(resting) = shelf.pop() {
                if !resting.has_rested(longest, now) && resting.is_silent() {
                    return Some(resting.stream);
                }
                gone.push(resting);
                // If this many have ended, the others have as well. They are dropped later.
                if gone.len() == MOST_GONE {
                    return None;
                }
            }
        }
        None
    }

    /// Stores a connection whose last answer was read to its end, unless 512 are already on the
    /// shelf.
    pub fn put(&self, stream: TcpStream, now: Mono) {
        let mut shelf = self.shelves[own()].lock();
        if shelf.len() < PLACES {
            shelf.push(Settling { stream, since: now });
        }
    }

    /// Drops connections that were idle for longer than allowed, have ended, or received
    /// unsolicited bytes.
    pub fn tidy(&self, longest: Duration, now: Mono) {
        for shelf in &self.shelves {
            let mut shelf = shelf.lock();
            let gone: Vec<Settling> = shelf
                .extract_if(.., |resting| {
                    resting.has_rested(longest, now) || !resting.is_silent()
                })
                .collect();
            drop(shelf);
            // Closing takes time.
            drop(gone);
        }
    }

    /// Returns the number of idle connections.
    pub fn len(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.lock().len()).sum()
    }

    /// Returns whether there are no idle connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The unread data on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Nothing is unread, and the connection is open.
    Nothing,
    /// Bytes are unread.
    Bytes,
    /// The connection has ended.
    End,
}

/// Queries the kernel. Engines also check, but they see what the runtime has been told and not what
/// was received since.
pub fn unread(socket: RawFd) -> Unread {
    match recv(
        socket,
        &mut [0],
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    ) {
        Err(Errno::EAGAIN) => Unread::Nothing,
        Ok(1) => Unread::Bytes,
        Ok(_) | Err(_) => Unread::End,
    }
}

/// Returns whether something is unread on a kept connection: its end, or unsolicited bytes.
pub fn has_unread(socket: RawFd) -> bool {
    unread(socket) != Unread::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::net::TcpListener;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Mono {
        Mono::default().forward(Duration::from_secs(seconds))
    }

    async fn pair(listener: &TcpListener) -> (TcpStream, std::net::TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().expect("an address"))
            .await
            .expect("a connection");
        let theirs = listener
            .accept()
            .await
            .expect("a connection")
            .0
            .into_std()
            .expect("a socket");
        (ours, theirs)
    }

    /// Waits until the kernel has received something.
    async fn hear(pool: &Pool) {
        for _ in 0..10_000 {
            let is_heard = pool.shelves.iter().any(|shelf| {
                shelf
                    .lock()
                    .iter()
                    .any(|resting| has_unread(resting.stream.as_raw_fd()))
            });
            if is_heard {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("nothing came");
    }

    #[tokio::test]
    async fn the_connection_stored_last_is_taken_first_by_any_thread() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let pool = Pool::default();
        let (first, _a) = pair(&listener).await;
        let (second, _b) = pair(&listener).await;
        let last = second.local_addr().expect("an address");
        pool.put(first, at(1));
        pool.put(second, at(1));
        let taken = std::thread::scope(|scope| scope.spawn(|| pool.take(MINUTE, at(2))).join())
            .expect("no panic")
            .expect("a connection");
        assert_eq!(
            (taken.local_addr().expect("an address"), pool.len()),
            (last, 1)
        );
        assert!(pool.take(MINUTE, at(2)).is_some() && pool.take(MINUTE, at(2)).is_none());
    }

    #[tokio::test]
    async fn ended_unsolicited_or_expired_connections_are_not_reused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let pool = Pool::default();
        let (ours, theirs) = pair(&listener).await;
        pool.put(ours, at(1));
        drop(theirs);
        hear(&pool).await;
        assert!(pool.take(MINUTE, at(2)).is_none());

        let (ours, mut theirs) = pair(&listener).await;
        pool.put(ours, at(1));
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").expect("no error");
        hear(&pool).await;
        assert!(pool.take(MINUTE, at(2)).is_none());

        let (ours, _theirs) = pair(&listener).await;
        pool.put(ours, at(1));
        pool.tidy(MINUTE, at(60));
        assert_eq!(pool.len(), 1);
        assert!(pool.take(MINUTE, at(61)).is_none() && pool.is_empty());
    }
}
