//! A running proxy and its shutdown.

use crate::clock;
use crate::gateway::listener::Shutdown;
use crate::process::sockets::Socket;
use crate::process::upgrade::{Holdings, Predecessor};
use crate::shared::connections::{Connections, lingering};
use crate::shared::control_handle::ControlHandle;
use crate::shared::drain::DrainSignal;
use crate::shared::readiness::Readiness;
use crate::shared::reload_handle::ReloadHandle;
use crate::telemetry::access_log::Reopener;
use crate::telemetry::traces::Traces;
use cutover_config::Engine;
use std::io::{self};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// How long WebSockets may take to close when the process ends.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How often a stopping process checks whether it is idle.
pub(super) const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// How often a start checks whether a list is no longer being written.
pub(super) const START_LOOK: Duration = Duration::from_millis(50);

/// A running proxy. Dropping it without [`Running::stop`] leaves its threads behind.
#[derive(Debug)]
pub struct Running {
    /// The addresses that accept requests without TLS, with real ports where the file says 0.
    pub http: Vec<SocketAddr>,
    /// The addresses that accept requests with TLS, with real ports where the file says 0.
    pub https: Vec<SocketAddr>,
    /// The address of the admin port.
    pub admin: SocketAddr,
    /// The value of `listen.engine`, which cannot change until a restart.
    pub engine: Engine,
    /// The handle to the control loop.
    pub control: ControlHandle,
    /// The handle to the watched file.
    pub watch: ReloadHandle,
    /// The handle that reopens the access log.
    pub access_log: Reopener,
    pub(super) traces: Traces,
    pub(super) ready: Arc<Readiness>,
    pub(super) connections: Arc<Connections>,
    pub(super) stop_accepting: watch::Sender<bool>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) drains: DrainSignal,
    pub(super) close_admin: watch::Sender<bool>,
    pub(super) ending: Arc<Shutdown>,
    pub(super) listeners: usize,
    pub(super) stop_certificates: mpsc::Sender<()>,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) threads: Vec<JoinHandle<()>>,
    /// The listening sockets, kept for a successor process.
    pub(super) sockets: Vec<Socket>,
    pub(super) predecessor: Option<Predecessor>,
}

impl Running {
    /// Stops the proxy and returns the number of connections that had to be cut. `hurry` ends all
    /// waiting.
    ///
    /// For `lead` the proxy continues to serve. In this time load balancers see that readiness has
    /// fallen, and every answer asks its client to reconnect. Without clients and readiness probes
    /// there is nothing to wait for. Then the listeners and idle connections close, and requests in
    /// flight finish within `grace`.
    pub fn stop(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        let hurried = wait(lead, &hurry, || {
            self.connections.open() == 0 && self.ready.is_fall_known()
        });
        self.stop_listening();
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(grace, &hurry, || self.has_no_clients());
        }
        self.end()
    }

    /// Whether there are no clients and there will be none. The order matters: a connection is
    /// counted as accepted before its listener is closed.
    pub(super) fn has_no_clients(&self) -> bool {
        self.ending.closed_listeners.load(Ordering::Acquire) == self.listeners
            && self.connections.open() == 0
    }

    /// Stops the proxy after a successor has taken over, and returns the number of connections that
    /// had to be cut. `hurry` ends all waiting.
    ///
    /// The listeners close at once, since the successor has them also; the admin port has accepted
    /// no connection since the handover. Every answer asks its client to reconnect, which leads to
    /// the successor. An idle client may stay for `grace`, so that no request meets a connection
    /// that is being closed. Requests in flight at that point may take `lead` to finish.
    pub fn retire(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        self.stop_listening();
        let hurried = wait(grace, &hurry, || self.has_no_clients());
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(lead, &hurry, || self.connections.open() == 0);
        }
        self.end()
    }

    /// Returns everything that a successor process needs.
    ///
    /// # Errors
    /// Fails when this process has too many open files.
    pub fn holdings(&self) -> io::Result<Holdings> {
        let sockets = self
            .sockets
            .iter()
            .map(Socket::again)
            .collect::<io::Result<_>>()?;
        Ok(Holdings {
            control: self.control.clone(),
            watch: self.watch.clone(),
            close_admin: self.close_admin.clone(),
            sockets,
        })
    }

    /// Whether the predecessor process is still serving.
    pub fn has_predecessor(&self) -> bool {
        self.predecessor.as_ref().is_some_and(Predecessor::is_alive)
    }

    pub(super) fn stop_listening(&mut self) {
        self.stop_accepting.send_replace(true);
        self.sockets.clear();
    }

    pub(super) fn end(self) -> usize {
        let cut = self.connections.open();
        if cut > 0 {
            // Every client whose protocol allows it is asked to leave.
            self.drains.order_all();
            wait(CLOSE_TIMEOUT, &|| false, || self.connections.open() == 0);
        }
        // A client that still sends would lose an answer that is under way.
        wait(CLOSE_TIMEOUT, &|| false, || lingering() == 0);
        self.runtime.shutdown_timeout(Duration::from_millis(100));
        self.watch.stop();
        // The admin port has answered until here, so every probe has been able to see readiness
        // fall.
        self.stop.send_replace(true);
        self.traces.end();
        drop((self.control, self.watch, self.stop_certificates));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread panicked");
            }
        }
        cut
    }
}

/// Waits until `done` or until the time is over, and returns whether the wait was cut short.
pub(super) fn wait(
    longest: Duration,
    hurry: &impl Fn() -> bool,
    is_done: impl Fn() -> bool,
) -> bool {
    let started = clock::mono();
    while !is_done() && clock::mono().since(started) < longest {
        if hurry() {
            return true;
        }
        std::thread::sleep(DRAIN_LOOK);
    }
    false
}
