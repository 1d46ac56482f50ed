//! The rows of the comparison: the program of each row, where it is found, and how it is started on
//! its core.
//!
//! nginx, HAProxy and Cutover are given a port that was free just before, because the first two
//! cannot report which port they got. Another process may take the port first. Then the proxy ends,
//! and another port is tried. The output of a program goes to files that are shown if it does not
//! start.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use tempfile::TempDir;

use crate::peers::answer;
use crate::peers::configs;
use crate::peers::population::{PERCENT, Requests, Sightings};
use crate::peers::process::Process;
use crate::peers::stub::Stubs;

const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one answer of a freshly started proxy may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the start of a proxy is tried, each time on another port.
const STARTS: usize = 3;

/// A program of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The do-nothing proxy on pingora.
    Minipingora,
    /// The product, Cutover.
    Cutover,
    /// The path of HAProxy.
    Haproxy,
    /// The path of nginx.
    Nginx,
}

/// A row of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// The do-nothing proxy: the cost of pingora itself
    Minipingora,
    /// The do-nothing proxy again: its distance from the first is chance
    MinipingoraAgain,
    /// Cutover with guard, metrics and headers, without an access log
    Cutover,
    /// Cutover with guard, metrics, headers and a JSON access log
    CutoverLog,
    /// HAProxy without a log
    Haproxy,
    /// HAProxy with a JSON log
    HaproxyLog,
    /// nginx without a log
    Nginx,
    /// nginx with a JSON log
    NginxLog,
}

impl Peer {
    /// All rows, in the order of the tables.
    pub const ALL: [Self; 8] = [
        Self::Minipingora,
        Self::MinipingoraAgain,
        Self::Cutover,
        Self::CutoverLog,
        Self::Haproxy,
        Self::HaproxyLog,
        Self::Nginx,
        Self::NginxLog,
    ];

    /// Returns the name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minipingora => "minipingora",
            Self::MinipingoraAgain => "minipingora again",
            Self::Cutover => "cutover",
            Self::CutoverLog => "cutover, access log",
            Self::Haproxy => "haproxy",
            Self::HaproxyLog => "haproxy, access log",
            Self::Nginx => "nginx",
            Self::NginxLog => "nginx, access log",
        }
    }

    /// Returns the program of the row.
    pub fn program(self) -> Program {
        match self {
            Self::Minipingora | Self::MinipingoraAgain => Program::Minipingora,
            Self::Cutover | Self::CutoverLog => Program::Cutover,
            Self::Haproxy | Self::HaproxyLog => Program::Haproxy,
            Self::Nginx | Self::NginxLog => Program::Nginx,
        }
    }

    /// Whether the row writes a log line for each request.
    pub fn has_log(self) -> bool {
        match self {
            Self::Minipingora
            | Self::MinipingoraAgain
            | Self::Cutover
            | Self::Haproxy
            | Self::Nginx => false,
            Self::CutoverLog | Self::HaproxyLog | Self::NginxLog => true,
        }
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The paths of the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The path of the product, built for release.
    pub cutover: PathBuf,
    /// The path of the do-nothing proxy, built for release.
    pub minipingora: PathBuf,
    /// HAProxy.
    pub haproxy: PathBuf,
    /// nginx.
    pub nginx: PathBuf,
}

impl Programs {
    /// Returns the path of the program and its reported version, or the reason why it cannot be
    /// run.
    ///
    /// # Errors
    /// Fails if the program is not found.
    pub fn find(&self, program: Program) -> Result<(PathBuf, String), String> {
        let (named, question) = match program {
            Program::Minipingora => (&self.minipingora, "--version"),
            Program::Cutover => (&self.cutover, "--version"),
            Program::Haproxy => (&self.haproxy, "-v"),
            Program::Nginx => (&self.nginx, "-v"),
        };
        let path = on_path(named).ok_or_else(|| {
            format!(
                "there is no {}; build it, install its package or say where it is",
                named.display()
            )
        })?;
        let output = Command::new(&path)
            .arg(question)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run {}: {error}", path.display()))?;
        // nginx prints its version on standard error.
        let said = [output.stdout, output.stderr]
            .into_iter()
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .find(|said| !said.trim().is_empty());
        let version = said
            .filter(|_| output.status.success())
            .and_then(|said| Some(said.lines().next()?.trim().to_owned()));
        Ok((
            path,
            version.unwrap_or_else(|| "does not say its version".to_owned()),
        ))
    }
}

/// Returns a path unchanged, or looks up a bare name in the folders of `PATH` and those in which
/// Debian keeps servers.
pub fn on_path(named: &Path) -> Option<PathBuf> {
    if named.components().count() > 1 {
        return named.is_file().then(|| named.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
        .map(|folder| folder.join(named))
        .find(|file| file.is_file())
}

/// The conditions under which all proxies are started.
#[derive(Debug)]
pub struct TestBed {
    /// The core that the proxies are pinned to.
    pub core: Option<usize>,
    /// The number of worker threads of each proxy.
    pub threads: usize,
    /// The stubs that the proxies forward to.
    pub stubs: Stubs,
    /// The folder for everything that the proxies write, except for access logs.
    pub folder: TempDir,
    /// The file that receives the access logs.
    pub access_log: PathBuf,
    /// The requests of the load.
    pub requests: Requests,
}

/// A proxy that has started to answer.
#[derive(Debug)]
pub struct Running {
    /// The row of the proxy.
    pub peer: Peer,
    /// The process of the proxy.
    pub process: Process,
    /// The address that the proxy listens on.
    pub address: SocketAddr,
    /// The sides to which the proxy has sent users.
    pub sightings: Sightings,
    said: Vec<PathBuf>,
}

impl TestBed {
    /// Starts a proxy and waits until it answers.
    ///
    /// # Errors
    /// Fails if the proxy does not answer. The error contains its output.
    pub async fn start(&self, peer: Peer, program: &Path) -> io::Result<Running> {
        let mut starts = 1;
        loop {
            let started = async {
                let mut running = self.launch(peer, program)?;
                running.wait_until_it_answers(&self.requests[0]).await?;
                Ok(running)
            };
            match started.await {
                Err(error) if starts == STARTS => return Err(error),
                Err(_) => starts += 1,
                Ok(running) => return Ok(running),
            }
        }
    }

    fn launch(&self, peer: Peer, program: &Path) -> io::Result<Running> {
        let folder = tempfile::tempdir_in(&self.folder)?.keep();
        let in_folder = |name: &str| folder.join(name);
        let (file, output, errors) = (
            in_folder("config"),
            in_folder("stdout"),
            in_folder("stderr"),
        );
        let output = if peer.has_log() && peer.program() != Program::Nginx {
            self.access_log.clone()
        } else {
            output
        };
        let mut address = free_address()?;
        let mut command = Command::new(program);
        // The file is opened for appending, because several rows may share an access log.
        let append = |file: &Path| OpenOptions::new().append(true).create(true).open(file);
        command
            .stdin(Stdio::null())
            .stdout(append(&output)?)
            .stderr(append(&errors)?);
        match peer.program() {
            Program::Minipingora => {
                let Stubs { legacy, new } = self.stubs;
                command.args([
                    "--listen",
                    "127.0.0.1:0",
                    "--threads",
                    &self.threads.to_string(),
                    "--percent",
                    &PERCENT.to_string(),
                ]);
                command
                    .args([
                        "--backend",
                        &legacy.to_string(),
                        "--backend",
                        &new.to_string(),
                    ])
                    .stdout(Stdio::piped());
            }
            Program::Cutover => {
                let state = in_folder("state");
                std::fs::create_dir(&state)?;
                std::fs::write(
                    &file,
                    configs::cutover(
                        address,
                        self.stubs,
                        &state,
                        if peer.has_log() { "all" } else { "off" },
                    ),
                )?;
                command
                    .arg("run")
                    .arg("-c")
                    .arg(&file)
                    .args(["--threads", &self.threads.to_string()]);
            }
            Program::Haproxy => {
                std::fs::write(
                    &file,
                    configs::haproxy(address, self.stubs, self.threads, peer.has_log()),
                )?;
                command.arg("-db").arg("-f").arg(&file);
            }
            Program::Nginx => {
                std::fs::write(
                    &file,
                    configs::nginx(
                        address,
                        self.stubs,
                        self.threads,
                        &folder,
                        peer.has_log().then_some(self.access_log.as_path()),
                    ),
                )?;
                command
                    .arg("-e")
                    .arg("stderr")
                    .arg("-p")
                    .arg(&folder)
                    .arg("-c")
                    .arg(&file);
            }
        }
        let mut process = Process::start(&mut command, self.core)?;
        if let Some(output) = process.take_output() {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line)?;
            let said = line
                .trim()
                .strip_prefix("listening on http://")
                .and_then(|address| address.parse().ok());
            let complaint = || {
                io::Error::other(format!(
                    "{} did not say where it listens, but {line:?}{}",
                    peer.name(),
                    std::fs::read_to_string(&errors).unwrap_or_default()
                ))
            };
            address = said.ok_or_else(complaint)?;
        }
        let said = [output, errors]
            .into_iter()
            .filter(|file| *file != self.access_log)
            .collect();
        Ok(Running {
            peer,
            process,
            address,
            sightings: Sightings::default(),
            said,
        })
    }
}

impl Running {
    async fn wait_until_it_answers(&mut self, request: &[u8]) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let answered =
                tokio::time::timeout(ANSWER_TIMEOUT, answer::ask_once(self.address, request)).await;
            let error = match answered {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("nothing for {} s", ANSWER_TIMEOUT.as_secs()),
            };
            let is_running = self.process.is_running()?;
            if !is_running || begun.elapsed() > START_TIMEOUT {
                let state = if is_running {
                    format!("does not answer ({error})")
                } else {
                    "ended at its start".to_owned()
                };
                let said: String = self
                    .said
                    .iter()
                    .filter_map(|file| std::fs::read_to_string(file).ok())
                    .collect();
                return Err(io::Error::other(format!(
                    "{} {state}. It said:\n{said}",
                    self.peer.name()
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Returns an address that was free just now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_name_is_looked_up_on_path() {
        assert!(on_path(Path::new("sh")).is_some_and(|file| file.is_absolute()));
        assert_eq!(on_path(Path::new("./sh")), None);
        assert_eq!(on_path(Path::new("no-such-program")), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let programs = Programs {
            cutover: "target/none/cutover".into(),
            minipingora: "x".into(),
            haproxy: "x".into(),
            nginx: "x".into(),
        };
        let why = programs.find(Program::Cutover).expect_err("there is none");
        assert!(why.contains("target/none/cutover"), "{why}");
    }

    #[test]
    fn rows_are_in_the_order_of_their_names() {
        use clap::ValueEnum;
        assert_eq!(Peer::value_variants(), Peer::ALL);
    }
}
