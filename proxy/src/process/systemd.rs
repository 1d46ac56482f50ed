//! What systemd is told: ready, reloading, stopping, another main process, alive. Without systemd
//! nobody is told, and nothing changes.

use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

use crate::shared::control_handle::ControlHandle;

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

/// The file cannot be used: `systemctl status` shows why until one can.
pub fn rejected(problems: &str) {
    let problem = problems
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("error");
    let place = problems
        .lines()
        .find_map(|line| line.trim().strip_prefix("--> "))
        .map(|place| format!(" ({place})"))
        .unwrap_or_default();
    IS_REJECTED.store(true, Ordering::Release);
    tell(&[NotifyState::Status(&format!(
        "the last good file is in force; the file cannot be used: {problem}{place}"
    ))]);
}

/// A file is in force: what was told of the one before is over.
pub fn accepted() {
    if IS_REJECTED.swap(false, Ordering::AcqRel) {
        tell(&[NotifyState::Status("the file is in force")]);
    }
}

/// Whether the service manager was told last that the file cannot be used.
static IS_REJECTED: AtomicBool = AtomicBool::new(false);

/// The service stops. Not told by a process that another has taken over from: the service goes on.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Another process is the service from now on.
pub fn succeeded_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// Tells again and again that the control loop turns, if anybody wants to know: a process whose
/// guard hangs is to be restarted. Ends with the loop.
///
/// # Errors
/// When the thread cannot be started.
pub fn keep_telling(control: ControlHandle) -> std::io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return Ok(());
    };
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            while control.pulse_blocking().is_ok() {
                tell(&[NotifyState::Watchdog]);
                std::thread::sleep(limit / 3);
            }
        })?;
    Ok(())
}
