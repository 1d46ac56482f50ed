//! What systemd is told: ready, reloading, stopping, another main process, alive. Without systemd nobody is told, and nothing changes.

use sd_notify::NotifyState;

use crate::control_handle::ControlHandle;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Requests are accepted; or a reload is done.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The file is about to be read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager cannot be told"),
    }
}

/// The service stops. Not told by a process that another has taken over from: the service goes on.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Another process is the service from now on.
pub fn succeeded_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// Tells again and again that the control loop turns, if anybody wants to know: a process whose guard hangs is to be restarted. Ends with the loop.
///
/// # Errors
/// When the thread cannot be started.
pub fn keep_telling(control: ControlHandle) -> std::io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        while control.pulse_blocking().is_ok() {
            tell(&[NotifyState::Watchdog]);
            std::thread::sleep(limit / 3);
        }
    })?;
    Ok(())
}
