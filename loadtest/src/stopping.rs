//! The stop flag of tasks that run alongside the load. It becomes true once.

use tokio::sync::watch;

/// Returns when the flag is true, or when its sender is dropped.
pub async fn stopped(flag: &mut watch::Receiver<bool>) {
    // The value is dropped at once because it holds a lock.
    let _ = flag.wait_for(|stop| *stop).await.is_ok();
}
