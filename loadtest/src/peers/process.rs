//! The programs under measurement. They are started on a core, their CPU time and memory are read,
//! and they are ended on every path.
//!
//! CPU time is the run time of all threads from `/proc/PID/task/*/schedstat`, in nanoseconds.
//! `/proc/PID/stat` counts ticks of 10 ms and guesses. The run time contains what the kernel does
//! for the process in system calls and in softirqs on its behalf. The time of a thread that ended
//! is lost, so threads must stay alive while they are measured. Those of the proxies do.
//!
//! nginx is a master and a worker, so everything is summed over a program and its children. The
//! whole process group ends with the handle, because a worker whose master was killed would live
//! on. Deliberately absent: a graceful end. A dropped process is killed, and no other process is
//! touched.

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

/// The clock ticks of `/proc/stat` per second. Linux shows this number to programs on every
/// machine.
const TICKS_PER_SECOND: u64 = 100;

/// A running program with its children, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    group: Pid,
}

impl Process {
    /// Starts a program in its own process group, pinned to one core if one is given.
    ///
    /// # Errors
    /// Fails if the program cannot be started, or not on that core.
    pub fn start(command: &mut Command, core: Option<usize>) -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        command.process_group(0);
        let spawned = match core {
            None => command.spawn(),
            Some(core) => spawn_on(core, command),
        };
        let child = spawned.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot start {}: {error}", command.get_program().display()),
            )
        })?;
        Ok(Self {
            group: Pid::from_child(&child),
            child,
        })
    }

    /// Returns the standard output of the program, once, if it was piped.
    pub fn take_output(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Returns the standard error of the program, once, if it was piped.
    pub fn take_errors(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Interrupts the program as Ctrl-C does.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn interrupt(&self) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.group, Signal::INT)?)
    }

    /// Whether the program is still running.
    ///
    /// # Errors
    /// Fails if the system does not report the state.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Returns the IDs of the program and of its children, the program first.
    ///
    /// # Errors
    /// Fails if the program has ended.
    pub fn ids(&self) -> io::Result<Vec<u32>> {
        let mut ids = vec![self.child.id()];
        let mut next = 0;
        while let Some(&id) = ids.get(next) {
            for thread in fs::read_dir(format!("/proc/{id}/task"))? {
                ids.extend(
                    gone_is_empty(fs::read_to_string(thread?.path().join("children")))?
                        .split_whitespace()
                        .filter_map(|id| id.parse::<u32>().ok()),
                );
            }
            next += 1;
        }
        Ok(ids)
    }

    /// Returns the CPU time of all threads of the program and its children.
    ///
    /// # Errors
    /// Fails if the program has ended, or the kernel keeps no such statistics.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        self.ids()?
            .iter()
            .map(|id| cpu_time_of(&id.to_string()))
            .sum()
    }

    /// Returns the memory of the program and its children.
    ///
    /// # Errors
    /// Fails if the program has ended, or the kernel keeps no such statistics.
    pub fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory {
            rss_kib: 0,
            pss_kib: 0,
        };
        for id in self.ids()? {
            let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
            memory.rss_kib += kib_of(&text, "Rss")?;
            memory.pss_kib += kib_of(&text, "Pss")?;
        }
        Ok(memory)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail only if the program has already ended by itself.
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The memory that a program holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The resident memory in KiB. Pages that a master and its workers share are counted for each
    /// of them.
    pub rss_kib: u64,
    /// The resident memory in KiB, with each page divided by the processes that share it. It is
    /// the honest sum, and the one for differences.
    pub pss_kib: u64,
}

/// Returns the CPU time of this process.
///
/// # Errors
/// Fails if the kernel keeps no such statistics.
pub fn own_cpu_time() -> io::Result<Duration> {
    cpu_time_of("self")
}

fn cpu_time_of(process: &str) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = gone_is_empty(fs::read_to_string(thread?.path().join("schedstat")))?;
        if !text.is_empty() {
            nanoseconds += run_time_ns(&text)?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Treats a thread that ended between the listing and the reading as empty, which is not an error.
fn gone_is_empty(read: io::Result<String>) -> io::Result<String> {
    match read {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Ok(String::new())
        }
        read => read,
    }
}

/// Parses the first field of a line of schedstat.
fn run_time_ns(text: &str) -> io::Result<u64> {
    let field = text
        .split_whitespace()
        .next()
        .and_then(|field| field.parse().ok());
    field.ok_or_else(|| {
        invalid(format!(
            "expected schedstat to begin with a number, found {text:?}"
        ))
    })
}

/// Parses a line such as `Rss:    1712 kB`.
fn kib_of(text: &str, name: &str) -> io::Result<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
    kib.ok_or_else(|| {
        invalid(format!(
            "expected smaps_rollup to have {name} in kB, found {value:?}"
        ))
    })
}

/// Returns how long a core has been idle since the machine started. Time that was neither idle nor
/// used by the proxy went to other work.
///
/// # Errors
/// Fails if there is no such core.
pub fn idle_time(core: usize) -> io::Result<Duration> {
    idle_in(&fs::read_to_string("/proc/stat")?, core)
}

fn idle_in(text: &str, core: usize) -> io::Result<Duration> {
    let name = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    // user nice system idle iowait …: waiting for a disk also counts as idle.
    let ticks = line.and_then(|line| {
        line.split_whitespace()
            .skip(3)
            .take(2)
            .map(str::parse::<u64>)
            .sum::<Result<u64, _>>()
            .ok()
    });
    let ticks = ticks.ok_or_else(|| {
        invalid(format!(
            "expected /proc/stat to have a line of core {core}, found {line:?}"
        ))
    })?;
    Ok(Duration::from_millis(ticks * (1_000 / TICKS_PER_SECOND)))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Starts a program from a thread that is pinned to the core. A child inherits the core, so there
/// is no moment at which it runs elsewhere.
fn spawn_on(core: usize, command: &mut Command) -> io::Result<Child> {
    thread::scope(|scope| {
        let starter = scope.spawn(|| {
            pin(None, core)?;
            command.spawn()
        });
        starter
            .join()
            .map_err(|_| io::Error::other("the thread that starts programs ended by a panic"))?
    })
}

/// Pins this process, and the threads it starts from now on, to one core.
///
/// # Errors
/// Fails if the system refuses.
pub fn pin_self(core: usize) -> io::Result<()> {
    own_threads()?
        .into_iter()
        .try_for_each(|thread| pin(thread, core))
}

/// Sets the niceness of this process and of everything it starts from now on.
///
/// # Errors
/// Fails if the system refuses, as it does below 0 without privileges.
pub fn renice_self(nice: i32) -> io::Result<()> {
    let renice = |thread| {
        setpriority_process(thread, nice).map_err(|error| {
            io::Error::other(format!("cannot have a niceness of {nice} ({error})"))
        })
    };
    own_threads()?.into_iter().try_for_each(renice)
}

/// Returns the IDs of this process's threads. For Linux each thread is a process in this respect.
fn own_threads() -> io::Result<Vec<Option<Pid>>> {
    let id = |thread: io::Result<fs::DirEntry>| {
        Ok(thread?
            .file_name()
            .to_str()
            .and_then(|name| Pid::from_raw(name.parse().ok()?)))
    };
    fs::read_dir("/proc/self/task")?.map(id).collect()
}

fn pin(thread: Option<Pid>, core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(thread, &cores).map_err(|error| {
        io::Error::other(format!(
            "cannot keep to core {core} ({error}); try --pin false"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Stdio;
    use std::time::Instant;

    #[test]
    fn the_run_time_is_the_first_field() {
        assert_eq!(
            run_time_ns("138996 1546428 2\n").expect("a number"),
            138_996
        );
        assert!(run_time_ns("").is_err());
    }

    #[test]
    fn memory_is_read_by_its_full_name() {
        let text = "560098fe8000-7fff0b22d000 ---p 00000000 00:00 0 [rollup]\nRss:                \
                    1712 kB\nPss_Dirty:           112 kB\nPss:                 330 kB\n";
        assert_eq!(
            (
                kib_of(text, "Rss").expect("there"),
                kib_of(text, "Pss").expect("there")
            ),
            (1712, 330)
        );
        assert!(kib_of(text, "Swap").is_err());
    }

    #[test]
    fn idle_time_is_per_core_and_includes_waiting_for_a_disk() {
        let text = "cpu  9 9 9 9 9\ncpu1 100 200 300 400 50 6 7 8 0 0\ncpu10 1 2 3 4 5 6\n";
        assert_eq!(
            idle_in(text, 1).expect("there"),
            Duration::from_millis(4_500)
        );
        assert_eq!(idle_in(text, 10).expect("there"), Duration::from_millis(90));
        assert!(idle_in(text, 0).is_err());
    }

    #[test]
    fn a_process_tree_is_measured_and_ends_with_the_handle() {
        let mut process = Process::start(
            Command::new("sh")
                .args(["-c", "sleep 60 & wait"])
                .stdout(Stdio::null()),
            Some(0),
        )
        .expect("a shell is everywhere");
        let deadline = Instant::now() + Duration::from_secs(20);
        let ids = loop {
            let ids = process.ids().expect("it runs");
            if ids.len() == 2 {
                break ids;
            }
            assert!(Instant::now() < deadline, "{ids:?}");
            thread::yield_now();
        };
        assert!(process.is_running().expect("the system says"));
        assert!(process.cpu_time().expect("schedstat is readable") > Duration::ZERO);
        assert!(process.memory().expect("smaps_rollup is readable").pss_kib > 0);
        let is_kept = |id: &u32| {
            fs::read_to_string(format!("/proc/{id}/status"))
                .expect("it runs")
                .contains("Cpus_allowed_list:\t0\n")
        };
        assert!(ids.iter().all(is_kept));
        drop(process);
        assert!(!Path::new(&format!("/proc/{}", ids[0])).exists());
        // The grandchild is reaped by the process that inherits it, which may take a moment or not
        // happen. It must not run.
        let runs = || {
            fs::read_to_string(format!("/proc/{}/stat", ids[1]))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        while runs() {
            assert!(Instant::now() < deadline, "it still runs");
            thread::yield_now();
        }
    }
}
