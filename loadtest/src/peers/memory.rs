//! The memory that a proxy holds: at rest, and for each idle kept connection.
//!
//! Each connection makes one request before it is left idle, like the connection of a browser,
//! because much memory is allocated only then. Connections are opened one after another. Otherwise
//! the buffers of simultaneous requests would be counted as if connections needed them.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::net::TcpStream;

use crate::peers::answer::{ask_on, most_answer_bytes};
use crate::peers::peer::Running;
use crate::peers::population::Requests;
use crate::peers::process::Memory;

/// The interval between readings. Memory is read again until it has not changed between two
/// readings.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long memory may take to stop changing.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The memory that one fresh proxy held.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// The memory after its first answer.
    pub rest: Memory,
    /// The memory for each number of idle connections.
    pub idle: Vec<Idle>,
}

/// The memory cost of idle connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Idle {
    /// The number of idle connections.
    pub connections: usize,
    /// The memory of the proxy and its children above that at rest, per connection, in KiB.
    pub kib_per_connection: f64,
}

/// Raises the limit of open files for this process, and for processes it starts from now on, as far
/// as it may.
///
/// # Errors
/// Fails if the limit is not enough for this many connections.
pub fn allow_open_files(connections: usize) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    // A proxy has the client's end of a connection and may have a backend's. The constant covers
    // other open files.
    let wanted = connections as u64 * 2 + 500;
    match limit.maximum {
        Some(most) if most < wanted => Err(io::Error::other(format!(
            "{connections} connections need a limit of {wanted} open files (ulimit -n), found \
             {most}"
        ))),
        _ => Ok(()),
    }
}

/// Opens idle connections, in ascending numbers, and measures the proxy's memory at each number.
///
/// # Errors
/// Fails if a connection is not answered.
pub async fn hold(proxy: &Running, numbers: &[usize], requests: &Requests) -> io::Result<Held> {
    let rest = settled(proxy).await?;
    let mut open = Vec::new();
    let mut buffer = vec![0; most_answer_bytes()];
    let mut idle = Vec::new();
    for &connections in numbers {
        while open.len() < connections {
            let mut stream = TcpStream::connect(proxy.address).await?;
            let request = &requests[open.len() % requests.len()];
            let asked =
                tokio::time::timeout(ANSWER_TIMEOUT, ask_on(&mut stream, request, &mut buffer))
                    .await;
            let wrong = |why: String| {
                io::Error::other(format!(
                    "{} did not answer on connection {}: {why}",
                    proxy.peer.name(),
                    open.len() + 1
                ))
            };
            asked
                .map_err(|error| wrong(error.to_string()))?
                .map_err(|error| wrong(error.to_string()))?;
            open.push(stream);
        }
        idle.push(Idle {
            connections,
            kib_per_connection: per_connection(rest, settled(proxy).await?, connections),
        });
    }
    let closed = open.iter().filter(|stream| !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)).count();
    if closed > 0 {
        return Err(io::Error::other(format!(
            "{} closed {closed} of {} idle connections",
            proxy.peer.name(),
            open.len()
        )));
    }
    Ok(Held { rest, idle })
}

fn per_connection(rest: Memory, now: Memory, connections: usize) -> f64 {
    (now.pss_kib as f64 - rest.pss_kib as f64) / connections as f64
}

async fn settled(proxy: &Running) -> io::Result<Memory> {
    let begun = Instant::now();
    let mut last = proxy.process.memory()?;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = proxy.process.memory()?;
        if now == last || begun.elapsed() > SETTLE_TIMEOUT {
            return Ok(now);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_costs_the_memory_above_that_at_rest() {
        let memory = |pss_kib| Memory {
            rss_kib: 9_000_000,
            pss_kib,
        };
        assert_eq!(per_connection(memory(10_000), memory(30_000), 1_000), 20.0);
    }

    #[test]
    fn more_connections_than_the_limit_allows_are_refused_up_front() {
        allow_open_files(10).expect("some files may always be open");
        if getrlimit(Resource::Nofile).maximum.is_some() {
            assert!(allow_open_files(usize::MAX / 4).is_err());
        }
    }
}
