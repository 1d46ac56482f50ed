//! The threads that cases are played on.
//!
//! Each thread has its own runtime and a share of the groups. The worker of a group, both of its
//! clients and the backends of both engines live on one thread, so their messages never wake
//! another thread. Such a thread also knows, without a request over the network, when everything
//! that had arrived has been handled.

use std::future::pending;
use std::io;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// All threads. They end with the process.
#[derive(Clone, Debug)]
pub struct Threads(Vec<Handle>);

impl Threads {
    /// Starts the given number of threads.
    ///
    /// # Errors
    /// Fails if the system cannot create another thread.
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

    /// Returns the number of threads.
    pub fn number(&self) -> usize {
        self.0.len()
    }

    /// Spawns a task on the thread that this group belongs to.
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

/// Lets the thread process everything that has arrived, the given number of times.
pub async fn look_around(times: usize) {
    for _ in 0..times {
        // A task that yields continues after the next poll of the network.
        tokio::task::yield_now().await;
    }
}
