//! Accepts clients: a task for each listening socket, which begins one for each connection.
//!
//! Pingora's listener does the same in a task that has room for its own handshakes, of nearly nine KiB, which is copied several times before the first byte is read: more than half of what a new
//! connection cost in user space.

use std::io;
use std::net::TcpListener as Socket;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::door::Door;
use crate::clock;

/// How long nobody is accepted after the system refused: it is out of files or memory, and what ends meanwhile gives some back.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that is said.
const SAID: Duration = Duration::from_secs(10);

/// A socket that listens, for clients of a door.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
}

impl Acceptor {
    /// Of this socket, which listens already. In the runtime that is to serve its clients.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // The sockets of clients have it from the one that listens: one call less for each. Small answers must not wait for each other.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpNoDelay, &true)?;
        Ok(Self { listener: TcpListener::from_std(socket)? })
    }

    /// Accepts until `stop` turns true.
    pub async fn work(self, door: Arc<Door>, mut stop: watch::Receiver<bool>) {
        let mut said_at = None;
        // A sender that is gone is the end of the process.
        let mut stopped = pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stopped => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => door.admit(socket, peer.ip()),
                Err(error) if has_left(&error) => {}
                Err(error) => {
                    let now = clock::mono();
                    if said_at.is_none_or(|said| now.since(said) >= SAID) {
                        said_at = Some(now);
                        tracing::error!(%error, "clients wait: the system refuses new connections (too many open files?)");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(self.listener);
        door.closed().await;
    }
}

/// Whether the error is of one client that did not wait to be accepted.
fn has_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn clients_sockets_do_not_hold_small_answers_back() {
        let acceptor = Acceptor::new(Socket::bind("127.0.0.1:0").expect("a port")).expect("no error");
        let _client = TcpStream::connect(acceptor.listener.local_addr().expect("an address")).await.expect("a connection");
        let (socket, _) = acceptor.listener.accept().await.expect("a connection");
        assert!(socket.nodelay().expect("an option"));
    }

    #[test]
    fn a_client_that_has_left_is_no_reason_to_pause() {
        assert!(has_left(&io::Error::from_raw_os_error(nix::libc::ECONNABORTED)));
        assert!(!has_left(&io::Error::from_raw_os_error(nix::libc::EMFILE)));
    }
}
