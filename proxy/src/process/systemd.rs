//! Notifications to systemd: ready, reloading, stopping, another main process, alive. Without
//! systemd none are sent, and nothing changes.

use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

use crate::shared::control_handle::ControlHandle;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Notifies systemd that requests are accepted or that a reload is done.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Notifies systemd that the file is about to be read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager cannot be told"),
    }
}

/// Notifies systemd that the file cannot be used. `systemctl status` shows the reason until a file
/// can be used.
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

/// Notifies systemd that a file is in force, and clears the notice about an earlier one.
pub fn accepted() {
    if IS_REJECTED.swap(false, Ordering::AcqRel) {
        tell(&[NotifyState::Status("the file is in force")]);
    }
}

/// Whether the last notification to systemd said that the file cannot be used.
static IS_REJECTED: AtomicBool = AtomicBool::new(false);

/// Notifies systemd that the service stops. A process that has handed over does not send this,
/// because the service continues.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Notifies systemd that another process is the main process from now on.
pub fn succeeded_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// Notifies systemd regularly that the control loop is alive, if systemd expects it, so that a
/// process whose guard hangs is restarted. The notifications end with the loop.
///
/// # Errors
/// Fails when the thread cannot be started.
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
