//! The threads that cases are played on.
//!
//! Each has a runtime of its own and a share of the groups: the worker of a group, both of its
//! clients and the backends of both engines live on one thread, so that nothing that one of them
//! says wakes another thread. Such a thread also knows when everything that had arrived has been
//! looked at, without asking over the network.

use std::future::pending;
use std::io;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// All threads. They end with the process.
#[derive(Clone, Debug)]
pub struct Threads(Vec<Handle>);

impl Threads {
    /// Starts so many.
    ///
    /// # Errors
    /// When the system has none left.
    pub fn start(number: usize) -> io::Result<Self> {
        let mut all = Vec::new();
        for at in 0..number.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            all.push(runtime.handle().clone());
            std::thread::Builder::new()
                .name(format!("cases-{at}"))
                .spawn(move || runtime.block_on(pending::<()>()))?;
        }
        Ok(Self(all))
    }

    /// How many there are.
    pub fn number(&self) -> usize {
        self.0.len()
    }

    /// Runs something on the thread that this group belongs to.
    pub fn spawn<T: Send + 'static>(
        &self,
        group: usize,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        match self.0.get(group % self.0.len().max(1)) {
            Some(thread) => thread.spawn(task),
            None => tokio::spawn(task),
        }
    }
}

/// Lets a thread look so often at everything that has arrived.
pub async fn look_around(times: usize) {
    for _ in 0..times {
        // Whoever yields goes on behind the next look at the network.
        tokio::task::yield_now().await;
    }
}
