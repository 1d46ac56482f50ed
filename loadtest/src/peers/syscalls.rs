//! The number of system calls that a proxy makes per request, counted by strace over a whole load.
//!
//! Unlike times, counts are nearly the same on a busy machine. However, strace slows the proxy, so
//! more is ready at once and there are fewer waits per request than without it. The proxy's own
//! work in the meantime (timers, the ticks of a guard) is counted as well, but it is small at these
//! rates.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::peers::load::{Load, Pace, Plan};
use crate::peers::peer::Running;
use crate::peers::population::Requests;
use crate::peers::process::Process;

/// How long strace may take to attach or to write its table.
const STRACE_TIMEOUT: Duration = Duration::from_secs(15);
/// The smallest number of calls per request that is listed. Rarer calls are only part of the sum.
const LEAST_SHOWN: f64 = 0.01;

const RECEIVES: [&str; 4] = ["recvfrom", "recvmsg", "read", "readv"];
const SENDS: [&str; 4] = ["sendto", "sendmsg", "write", "writev"];
const WAITS: [&str; 5] = [
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "select",
];

/// The system calls per request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerRequest {
    /// All calls.
    pub all: f64,
    /// The calls that receive.
    pub receives: f64,
    /// The calls that send.
    pub sends: f64,
    /// The calls that wait for sockets.
    pub waits: f64,
    /// The other calls by name, without the rare ones.
    pub others: BTreeMap<String, f64>,
}

/// Counts system calls while a closed loop sends requests for this long.
///
/// # Errors
/// Fails if strace cannot attach, or its table cannot be read.
pub async fn count(
    proxy: &Running,
    strace: &Path,
    connections: usize,
    duration: Duration,
    requests: &Requests,
    folder: &TempDir,
) -> io::Result<PerRequest> {
    let table = folder.path().join("strace");
    let ids = proxy.process.ids()?;
    let mut command = Command::new(strace);
    command
        .args(["-f", "-c", "-o"])
        .arg(&table)
        .args(ids.iter().flat_map(|id| ["-p".to_owned(), id.to_string()]));
    let mut strace = Process::start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
        None,
    )?;
    wait_until_attached(&mut strace, ids.len()).await?;

    let plan = Plan {
        address: proxy.address,
        connections,
        pace: Pace::Closed,
        measured: Duration::ZERO..Duration::ZERO,
        requests: requests.clone(),
    };
    let load = Load::start(plan, proxy.sightings.clone())?;
    tokio::time::sleep(duration).await;
    let seen = load.stop();
    if let Some(why) = seen.first_failure {
        return Err(io::Error::other(format!(
            "{} requests failed under strace: {why}",
            seen.failed
        )));
    }
    strace.interrupt()?;
    let begun = Instant::now();
    while strace.is_running()? {
        if begun.elapsed() > STRACE_TIMEOUT {
            return Err(io::Error::other("strace does not end"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    per_request(&fs::read_to_string(&table)?, seen.answered)
}

/// Waits until strace has attached. strace prints one line for each process it has attached to, or
/// the reason why it has not.
async fn wait_until_attached(strace: &mut Process, processes: usize) -> io::Result<()> {
    let errors = strace
        .take_errors()
        .ok_or_else(|| io::Error::other("strace has no standard error"))?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(errors).lines();
        for _ in 0..processes {
            let line = lines.next().transpose()?.unwrap_or_default();
            if !line.contains("attached") {
                return Err(io::Error::other(format!("strace cannot attach: {line:?}")));
            }
        }
        // The remaining output is read so that strace never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(())
    });
    let attached = tokio::time::timeout(STRACE_TIMEOUT, reading)
        .await
        .map_err(|_| io::Error::other("strace does not attach"))?;
    attached.map_err(io::Error::other)?
}

fn per_request(table: &str, requests: u64) -> io::Result<PerRequest> {
    let calls: BTreeMap<&str, u64> = table.lines().filter_map(call).collect();
    if calls.is_empty() || requests == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("expected calls and requests, found {requests} requests and {table:?}"),
        ));
    }
    let per_request = |calls: u64| calls as f64 / requests as f64;
    let sum_of =
        |names: &[&str]| per_request(names.iter().filter_map(|name| calls.get(name)).sum());
    let is_other = |name: &str| {
        ![&RECEIVES[..], &SENDS, &WAITS]
            .iter()
            .any(|group| group.contains(&name))
    };
    let others = calls
        .iter()
        .filter(|(name, _)| is_other(name))
        .map(|(name, &calls)| ((*name).to_owned(), per_request(calls)));
    Ok(PerRequest {
        all: per_request(calls.values().sum()),
        receives: sum_of(&RECEIVES),
        sends: sum_of(&SENDS),
        waits: sum_of(&WAITS),
        others: others.filter(|&(_, calls)| calls >= LEAST_SHOWN).collect(),
    })
}

/// Parses a line with the columns `% time, seconds, usecs/call, calls, [errors,] name`.
fn call(line: &str) -> Option<(&str, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (&name, calls) = (fields.last()?, fields.get(3)?.parse().ok()?);
    (matches!(fields.len(), 5 | 6) && name != "total").then_some((name, calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 41.23    0.123456           3      2010        10 recvfrom
 30.00    0.100000           3      2000           sendto
 20.00    0.050000           3      1000           getpeername
  5.00    0.010000           3        30           epoll_wait
  3.77    0.001000           3         4         2 futex
------ ----------- ----------- --------- --------- ----------------
100.00    0.284456           3      5044        12 total
";

    #[test]
    fn the_table_of_strace_becomes_calls_per_request() {
        let calls = per_request(TABLE, 1_000).expect("a table");
        let expected = PerRequest {
            all: 5.044,
            receives: 2.01,
            sends: 2.0,
            waits: 0.03,
            others: BTreeMap::from([("getpeername".to_owned(), 1.0)]),
        };
        assert_eq!(calls, expected);
    }

    #[test]
    fn a_missing_table_and_zero_requests_are_errors() {
        assert!(per_request("", 1_000).is_err());
        assert!(per_request(TABLE, 0).is_err());
    }
}
