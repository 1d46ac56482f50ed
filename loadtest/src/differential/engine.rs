//! A cutover process with one engine, in front of backends of ours.
//!
//! Every group of backends has two rollouts, one that takes requests by their host and one that
//! takes them by their path, so that an odd host or an odd path alone does not lead away from them.
//! Timeouts are short, for what is missing shall be noticed soon; guards, failover and the access
//! log are off, for they would make one request depend on others.

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

/// How long a process may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// How often is looked whether it is.
const LOOK: Duration = Duration::from_millis(10);
/// What it says: that it is ready, and what ends it. What its engine says of every odd message
/// would fill a disk in millions of cases.
const LOG: &str = "error,cutover=info";
/// Lines of its output that are shown when it fails.
const LAST_LINES: usize = 30;

/// What the group's rollouts are matched by: the host is this with `.test`, the path begins with
/// it.
pub fn group_name(group: usize) -> String {
    format!("w{group:03}")
}

/// A running process.
#[derive(Debug)]
pub struct Engine {
    /// What `[listen] engine` is.
    pub name: String,
    /// Where clients connect.
    pub address: SocketAddr,
    admin: String,
    process: Process,
    log: PathBuf,
    // Kept for its end: the process writes there.
    _folder: TempDir,
}

impl Engine {
    /// Starts a process and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready, with the end of what it said.
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

    /// What the process said last, if it has ended.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn last_words(&mut self) -> io::Result<Option<String>> {
        if self.process.is_running()? {
            return Ok(None);
        }
        Ok(Some(last_lines(
            &fs::read_to_string(&self.log).unwrap_or_default(),
        )))
    }

    /// How many requests the process counts, and all it says of the lane.
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

/// What metrics say.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Counted {
    /// Requests that ended on a side.
    pub requests: f64,
    /// Every sample whose name begins with `cutover_lane_`.
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
    fn the_lane_and_the_requests_are_read_off_the_metrics() {
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
