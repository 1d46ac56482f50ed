//! A Cutover process with one engine, in front of the kit's own backends.
//!
//! Every group of backends has two rollouts. One matches requests by host and the other by path, so
//! an odd host or an odd path alone does not lead away from the group. Timeouts are short, because
//! missing bytes should be noticed soon. Guards, failover and the access log are off, because they
//! would make one request depend on others.

use crate::calls::call;
use crate::differential::backend::Backends;
use crate::peers::process::Process;
use crate::scenario::between;
use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a process may take to become ready.
const START: Duration = Duration::from_secs(30);
/// The interval at which readiness is checked.
const LOOK: Duration = Duration::from_millis(10);
/// The log level of the process: it logs that it is ready, and what ends it. The messages of its
/// engine about every odd request would fill a disk in millions of cases.
const LOG: &str = "error,cutover=info";
/// The number of lines of its output that are shown when it fails.
const LAST_LINES: usize = 30;

/// Returns the name that a group's rollouts match: the host is this name with `.test`, and the path
/// starts with it.
pub fn group_name(group: usize) -> String {
    format!("w{group:03}")
}

/// A running process.
#[derive(Debug)]
pub struct Engine {
    /// The value of `[listen] engine`.
    pub name: String,
    /// The address that clients connect to.
    pub address: SocketAddr,
    admin: String,
    process: Process,
    log: PathBuf,
    // The folder that the process writes to. It is deleted when this value is dropped.
    _folder: TempDir,
}

impl Engine {
    /// Starts a process and waits until it is ready.
    ///
    /// # Errors
    /// Fails if the process does not become ready. The error contains the end of its output.
    pub async fn start(
        program: &Path,
        name: &str,
        backends: &Backends,
        threads: usize,
    ) -> io::Result<Self> {
        let folder = TempDir::with_prefix("differential-")?;
        let (file, state, log) = (
            folder.path().join("cutover.toml"),
            folder.path().join("state"),
            folder.path().join("log"),
        );
        fs::create_dir(&state)?;
        fs::write(&file, config(name, backends, &state))?;
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("-c")
            .arg(&file)
            .args(["--threads", &threads.to_string()])
            .env("CUTOVER_LOG", LOG);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut process = Process::start(&mut command, None)?;
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let address =
                between(&said, "\"http\":\"http://", "\"").and_then(|address| address.parse().ok());
            if let (Some(address), Some(admin)) = (address, between(&said, "\"admin\":\"", "\"")) {
                let admin = admin.to_owned();
                return Ok(Self {
                    name: name.to_owned(),
                    address,
                    admin,
                    process,
                    log,
                    _folder: folder,
                });
            }
            let is_running = process.is_running()?;
            if !is_running || begun.elapsed() > START {
                let what = if is_running {
                    "is not ready in time"
                } else {
                    "ended at its start"
                };
                return Err(io::Error::other(format!(
                    "cutover with the engine {name:?} {what}. It said:\n{}",
                    last_lines(&said)
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns the last output of the process, if it has ended.
    ///
    /// # Errors
    /// Fails if the system does not report the state of the process.
    pub fn last_words(&mut self) -> io::Result<Option<String>> {
        if self.process.is_running()? {
            return Ok(None);
        }
        Ok(Some(last_lines(
            &fs::read_to_string(&self.log).unwrap_or_default(),
        )))
    }

    /// Returns how many requests the process has counted, and all its metrics about the lane.
    pub async fn counted(&self) -> Counted {
        let Ok((200, text)) = call(
            &http::Method::GET,
            &format!("{}/metrics", self.admin),
            None,
            false,
        )
        .await
        else {
            return Counted::default();
        };
        Counted::read(&text)
    }
}

/// The values read from the metrics.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Counted {
    /// The number of requests that ended on a side.
    pub requests: f64,
    /// Every sample whose name starts with `cutover_lane_`.
    pub lane: Vec<(String, f64)>,
}

impl Counted {
    fn read(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name, value.parse::<f64>().ok()?))
            });
        let mut counted = Self::default();
        for (name, value) in samples {
            if name.starts_with("cutover_requests_total{") {
                counted.requests += value;
            } else if name.starts_with("cutover_lane_") && value > 0.0 {
                counted.lane.push((name.to_owned(), value));
            }
        }
        counted
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn config(engine: &str, backends: &Backends, state: &Path) -> String {
    let mut text = format!(
        r#"[listen]
http = ["127.0.0.1:0"]
engine = "{engine}"
header_timeout = "1s"
body_idle_timeout = "1s"
[admin]
address = "127.0.0.1:0"
[state]
directory = '{}'
[log]
access = "off"
[backend.commons]
servers = ["{}"]
response_timeout = "1s"
[routing]
default_backend = "commons"
"#,
        state.display(),
        backends.commons()
    );
    for (group, (legacy, new)) in backends.groups().enumerate() {
        let name = group_name(group);
        for (side, address) in [("legacy", legacy), ("new", new)] {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "[backend.{side}-{name}]\nservers = [\"{address}\"]\nresponse_timeout = \"1s\"\n"
            );
        }
        for (id, matched) in [
            (format!("host-{name}"), format!("host = \"{name}.test\"")),
            (format!("path-{name}"), format!("path = \"/{name}\"")),
        ] {
            let _ = write!(
                text,
                r#"[[rollout]]
id = "{id}"
match = {{ {matched} }}
percent = 50
key = ["header:x-user-id"]
legacy = "legacy-{name}"
new = "new-{name}"
salt = "differential"
failover = "off"
[rollout.guard]
mode = "off"
"#
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_and_the_requests_are_read_from_the_metrics() {
        let text = "# HELP x\ncutover_requests_total{rollout=\"a\"} \
                    3\ncutover_requests_total{rollout=\"b\"} \
                    4\ncutover_lane_declined_total{reason=\"te\"} \
                    2\ncutover_lane_declined_total{reason=\"x\"} 0\nother 9\n";
        let counted = Counted::read(text);
        assert_eq!(
            (counted.requests, counted.lane.as_slice()),
            (
                7.0,
                &[("cutover_lane_declined_total{reason=\"te\"}".to_owned(), 2.0)][..]
            )
        );
    }
}
