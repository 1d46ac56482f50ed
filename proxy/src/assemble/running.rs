//! A running proxy, and how it stops.

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

/// How long WebSockets may take to end when the process does.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How often a stopping process looks whether it is idle.
pub(super) const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// How often a start looks whether a list has rested.
pub(super) const START_LOOK: Duration = Duration::from_millis(50);

/// A running proxy. Dropping it without [`Running::stop`] leaves its threads behind.
#[derive(Debug)]
pub struct Running {
    /// The addresses that requests come to without TLS; real ports where the file says 0.
    pub http: Vec<SocketAddr>,
    /// The same with TLS.
    pub https: Vec<SocketAddr>,
    /// The address of the admin port.
    pub admin: SocketAddr,
    /// `listen.engine` as it is until a restart.
    pub engine: Engine,
    /// To the control loop.
    pub control: ControlHandle,
    /// To the watched file.
    pub watch: ReloadHandle,
    /// To the file of the access log.
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
    /// For the process after this one.
    pub(super) sockets: Vec<Socket>,
    pub(super) predecessor: Option<Predecessor>,
}

impl Running {
    /// Stops, and says how many connections had to be cut. `hurry` ends all waiting.
    ///
    /// For `lead` all goes on, while load balancers see that readiness has fallen and clients are
    /// told with every answer to come on another connection; without clients, and without anybody
    /// who asks for readiness, there is nothing to wait for. Then the listeners close, idle
    /// connections with them, and what is in flight finishes, at most for `grace`.
    pub fn stop(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        let hurried = wait(lead, &hurry, || {
            self.connections.open() == 0 && self.ready.is_fall_known()
        });
        self.stop_listening();
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(grace, &hurry, || self.has_nobody());
        }
        self.end()
    }

    /// Whether no client is there and none will be. In this order: who has been accepted is counted
    /// before its listener is closed.
    pub(super) fn has_nobody(&self) -> bool {
        self.ending.closed_listeners.load(Ordering::Acquire) == self.listeners
            && self.connections.open() == 0
    }

    /// Stops after another process has taken over, and says how many connections had to be cut.
    /// `hurry` ends all waiting.
    ///
    /// The listeners close at once, since the other process has them, too; the admin port accepts
    /// nobody since the handover. Clients are told with every answer to come on another connection,
    /// and go there; who sends nothing may stay for `grace`, so that no request meets a
    /// connection that is being closed. What is in flight then may take `lead` to finish.
    pub fn retire(mut self, lead: Duration, grace: Duration, hurry: impl Fn() -> bool) -> usize {
        self.ready.fall();
        self.ending.closing.send_replace(true);
        self.stop_listening();
        let hurried = wait(grace, &hurry, || self.has_nobody());
        self.ending.dismissed.send_replace(true);
        if !hurried {
            wait(lead, &hurry, || self.connections.open() == 0);
        }
        self.end()
    }

    /// What a process needs that takes over.
    ///
    /// # Errors
    /// When this process has too many open files.
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

    /// Whether the process that this one has taken over from is still serving.
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
            // Whoever can be told that this is the end is told.
            self.drains.order_all();
            wait(CLOSE_TIMEOUT, &|| false, || self.connections.open() == 0);
        }
        // Whoever still sends would lose an answer that is under way.
        wait(CLOSE_TIMEOUT, &|| false, || lingering() == 0);
        self.runtime.shutdown_timeout(Duration::from_millis(100));
        self.watch.stop();
        // The admin answered until here: whoever waits for readiness to fall has seen it fall.
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

/// Waits until it is done, at most so long, and says whether somebody is in a hurry.
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
