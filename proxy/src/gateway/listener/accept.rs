//! Accepts clients. Each listening socket has one task, which starts a task for each connection.
//!
//! Pingora's listener does the same, but its task has room for pingora's own handshakes. That task
//! is nearly nine KiB large and is copied several times before the first byte is read. This was
//! more than half of the user-space cost of a new connection.

use std::io;
use std::net::TcpListener as Socket;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::clock;
use crate::gateway::listener::Listener;
use crate::upstream::fd_exhaustion::LogLimit;

/// The number of clients that may wait to be accepted. The system has a limit of its own
/// (`net.core.somaxconn`), which is meant to be the effective one.
const QUEUE: i32 = 65_535;
/// How long no client is accepted after the system refused. It is out of file descriptors or
/// memory, and connections that end meanwhile release some.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket that accepts clients for a listener.
#[derive(Debug)]
pub struct AcceptLoop {
    listener: TcpListener,
}

impl AcceptLoop {
    /// Creates an accept loop for this socket, which is already listening. It must be called in the
    /// runtime that is to serve the clients.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // This call sets a long queue. The code that bound the socket may have requested a short
        // one, as the standard library does.
        rustix::net::listen(&socket, QUEUE)?;
        Ok(Self {
            listener: TcpListener::from_std(socket)?,
        })
    }

    /// Accepts until `stop` turns true.
    pub async fn work(self, listener: Arc<Listener>, mut stop: watch::Receiver<bool>) {
        let said = LogLimit::new();
        // A sender that is gone means that the process ends.
        let mut stopped = pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stopped => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    // Small answers must not wait for each other. A socket that does not support
                    // the option still works.
                    let _ = socket.set_nodelay(true);
                    listener.admit(socket, peer.ip());
                }
                Err(error) if has_left(&error) => {}
                Err(error) => {
                    if said.is_due(clock::mono()) {
                        tracing::error!(%error, "clients wait: the system refuses new connections (too many open files? LimitNOFILE, ulimit -n)");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(self.listener);
        listener.closed().await;
    }
}

/// Returns whether the error concerns a single client that disconnected before it was accepted.
fn has_left(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hundreds_of_clients_may_wait_to_be_accepted() {
        let acceptor =
            AcceptLoop::new(Socket::bind("127.0.0.1:0").expect("a port")).expect("no error");
        let address = acceptor.listener.local_addr().expect("an address");
        // A client that finds the queue full gets no answer, and tries again after a second.
        let waiting = |_| {
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(900))
                .expect("a place in the queue")
        };
        assert_eq!((0..400).map(waiting).collect::<Vec<_>>().len(), 400);
    }

    #[test]
    fn a_client_that_disconnected_early_does_not_pause_accepting() {
        assert!(has_left(&io::Error::from_raw_os_error(
            nix::libc::ECONNABORTED
        )));
        assert!(!has_left(&io::Error::from_raw_os_error(nix::libc::EMFILE)));
    }
}
