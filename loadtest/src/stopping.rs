//! How what runs beside the load learns that it is over: a flag that becomes true once.

use tokio::sync::watch;

/// Returns when the flag is true, or nobody is left to make it so.
pub async fn stopped(flag: &mut watch::Receiver<bool>) {
    // The value is let go at once, for it is a lock.
    let _ = flag.wait_for(|stop| *stop).await.is_ok();
}
