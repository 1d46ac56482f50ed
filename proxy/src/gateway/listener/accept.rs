//! Accepts clients: a task for each listening socket, which begins one for each connection.
//!
//! Pingora's listener does the same in a task that has room for its own handshakes, of nearly nine
//! KiB, which is copied several times before the first byte is read: more than half of what a new
//! connection cost in user space.

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

/// How many clients may wait to be accepted. The system has a limit of its own
/// (`net.core.somaxconn`), which is meant to be the one that counts.
const QUEUE: i32 = 65_535;
/// How long nobody is accepted after the system refused: it is out of files or memory, and what
/// ends meanwhile gives some back.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens, for clients of a listener.
#[derive(Debug)]
pub struct AcceptLoop {
    listener: TcpListener,
}

impl AcceptLoop {
    /// Of this socket, which listens already. In the runtime that is to serve its clients.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Listened to once more: whoever bound it may have asked for a short queue, as the standard
        // library does.
        rustix::net::listen(&socket, QUEUE)?;
        Ok(Self {
            listener: TcpListener::from_std(socket)?,
        })
    }

    /// Accepts until `stop` turns true.
    pub async fn work(self, listener: Arc<Listener>, mut stop: watch::Receiver<bool>) {
        let said = LogLimit::new();
        // A sender that is gone is the end of the process.
        let mut stopped = pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stopped => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    // Small answers must not wait for each other. A socket that does not know it is
                    // as good.
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

/// Whether the error is of one client that did not wait to be accepted.
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
    async fn hundreds_of_clients_may_wait_until_they_are_accepted() {
        let acceptor =
            AcceptLoop::new(Socket::bind("127.0.0.1:0").expect("a port")).expect("no error");
        let address = acceptor.listener.local_addr().expect("an address");
        // Whoever finds the queue full gets no answer, and tries again after a second.
        let waiting = |_| {
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(900))
                .expect("a place in the queue")
        };
        assert_eq!((0..400).map(waiting).collect::<Vec<_>>().len(), 400);
    }

    #[test]
    fn a_client_that_has_left_is_no_reason_to_pause() {
        assert!(has_left(&io::Error::from_raw_os_error(
            nix::libc::ECONNABORTED
        )));
        assert!(!has_left(&io::Error::from_raw_os_error(nix::libc::EMFILE)));
    }
}
