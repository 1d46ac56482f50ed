//! Programs under measurement: started on a core, asked for their CPU time, and ended whatever happens.
//!
//! CPU time is the run time of all threads from `/proc/PID/task/*/schedstat`, in nanoseconds: `/proc/PID/stat` counts ticks of 10 ms and guesses. It contains what the kernel does for
//! the process in system calls and softirqs on its behalf. The time of a thread that ended is lost, so measure while threads stay; those of the proxies do.
//!
//! Cores are chosen with `taskset`, since the system call would need unsafe code. Deliberately absent: a graceful end. Whoever is dropped here is killed, and no other process is touched.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", command.get_program().display())))?;
        Ok(Self { child })
    }

    /// Its standard output, once, if it was piped.
    pub fn take_output(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The CPU time of all its threads.
    ///
    /// # Errors
    /// When it has ended, or the kernel keeps no such statistics.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        cpu_time_of(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of this process.
///
/// # Errors
/// When the kernel keeps no such statistics.
pub fn own_cpu_time() -> io::Result<Duration> {
    cpu_time_of("self")
}

fn cpu_time_of(process: &str) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        match std::fs::read_to_string(thread?.path().join("schedstat")) {
            Ok(text) => nanoseconds += run_time(&text)?,
            // It ended between the listing and the reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// The first field of a line of schedstat.
fn run_time(text: &str) -> io::Result<u64> {
    let field = text.split_whitespace().next().and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("expected schedstat to begin with a number, found {text:?}")))
}

/// A command for `program`, kept to one core if one is given.
pub fn command_on(core: Option<usize>, program: &Path) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            // taskset becomes the program, so the id is the program's.
            let mut command = Command::new("taskset");
            command.arg("--cpu-list").arg(core.to_string()).arg(program);
            command
        }
    }
}

/// Whether programs can be kept to cores.
pub fn can_pin() -> bool {
    let found = Command::new("taskset").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Keeps this process, and the threads it starts from now on, to one core.
///
/// # Errors
/// When the system refuses.
pub fn pin_self(core: usize) -> io::Result<()> {
    let status = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", &core.to_string(), &std::process::id().to_string()]).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("taskset cannot keep this process to core {core}; try --pin false"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_time_is_the_first_field() {
        assert_eq!(run_time("138996 1546428 2\n").expect("a number"), 138_996);
        assert!(run_time("").is_err());
    }

    #[test]
    fn a_process_is_measured_and_ends_with_its_handle() {
        let mut process = Process::start(Command::new("sleep").arg("60")).expect("sleep is everywhere");
        assert!(process.is_running().expect("the system says"));
        process.cpu_time().expect("schedstat is readable");
        let folder = format!("/proc/{}", process.child.id());
        assert!(Path::new(&folder).exists());
        drop(process);
        assert!(!Path::new(&folder).exists());
    }
}
