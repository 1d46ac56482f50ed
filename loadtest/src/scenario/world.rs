//! The stage of a scenario: a folder, sample backends, certificates, and the proxy as a child
//! process.
//!
//! Everything ends with the stage, on every exit path. The handle of a child kills it when the
//! stage is dropped, also after a panic or an interruption. The child survives only if this process
//! itself is killed.
//!
//! Sample backends run on their own threads. The threads are named so that their processor time can
//! be distinguished from that of the generator.

use crate::backend::{Backend, BackendConfig, Dial, Stats};
use crate::calls::call;
use crate::driver::{Target, Trust};
use crate::probe::{BACKEND_THREADS, Probe};
use crate::scenario::certificates::Authority;
use crate::scenario::file::{BackendSection, ProxySection, Scenario};
use crate::scenario::template::{Names, fill, names_with};
use crate::units::UsageError;
use http::Method;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, Runtime};

/// The interval at which the readiness of a proxy is checked.
const LOOK: Duration = Duration::from_millis(10);
/// How long a proxy may take to end after SIGTERM, before it is killed.
const GRACE: Duration = Duration::from_secs(3);
/// The number of lines of a proxy's output that are shown when it fails.
const LAST_LINES: usize = 15;

/// The decisions of the caller of a scenario.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The target, if no proxy is to be started.
    pub target: Option<String>,
    /// The program that replaces `{cutover}`.
    pub cutover: Option<PathBuf>,
    /// The program that replaces `{kit}`.
    pub kit: Option<PathBuf>,
    /// The process that serves the target, to measure its resource use.
    pub proxy_pid: Option<u32>,
    /// Which certificates to trust at the target.
    pub trust: Trust,
    /// Whether targets other than loopback may be loaded.
    pub allow_remote: bool,
}

/// A backend of the scenario.
#[derive(Debug)]
enum Running {
    /// A backend in this process.
    Here(Backend),
    /// A backend elsewhere, with this control port.
    There(String),
}

/// Everything that a scenario has started.
pub struct World {
    /// The target that receives the load.
    pub target: Target,
    /// Which certificates to trust at the target.
    pub trust: Trust,
    /// The values of the placeholders.
    pub names: Names,
    /// The authority that signs certificates.
    pub authority: Option<Authority>,
    /// The probe of the proxy process, which measures its resource use.
    pub probe: Option<Probe>,
    /// The number of processors that the proxy may use.
    pub cores: Option<f64>,
    backends: BTreeMap<String, Running>,
    proxy: Option<Child>,
    runtime: Option<Runtime>,
    allow_remote: bool,
    _folder: TempDir,
}

impl World {
    /// Starts everything that the scenario needs, and waits until the target can be loaded.
    pub async fn build(
        scenario: &Scenario,
        surroundings: &Surroundings,
        seed: u64,
    ) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cutover-loadtest-")
            .tempdir()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(BACKEND_THREADS)
            .enable_all()
            .build()?;
        let mut names = Names::new();
        names.insert("folder".to_owned(), folder.path().display().to_string());
        names.insert("seed".to_owned(), seed.to_string());
        for (name, program) in [
            ("cutover", &surroundings.cutover),
            ("kit", &surroundings.kit),
        ] {
            if let Some(program) = program {
                names.insert(name.to_owned(), program.display().to_string());
            }
        }
        names.extend(
            scenario
                .variables
                .iter()
                .map(|(name, value)| (name.clone(), value.to_string())),
        );

        let mut backends = BTreeMap::new();
        for (name, section) in &scenario.backend {
            let section = section.get_ref();
            if let Some(control) = &section.control {
                backends.insert(name.clone(), Running::There(control.clone()));
                continue;
            }
            if surroundings.target.is_some() && section.listen.is_none() {
                // The target has its own backends, so a free port of this process would be unused.
                continue;
            }
            let backend = start_backend(&runtime, name, section, seed).await?;
            names.insert(name.clone(), backend.address().to_string());
            backends.insert(name.clone(), Running::Here(backend));
        }

        let authority = if scenario.certificate.is_empty() {
            None
        } else {
            Some(Authority::new(folder.path())?)
        };
        for (name, section) in &scenario.certificate {
            if let Some(authority) = &authority {
                authority.issue(name, &section.names)?;
            }
        }

        let mut world = Self {
            target: Target::resolve("http://127.0.0.1:1", false)
                .await
                .map_err(io::Error::other)?,
            trust: surroundings.trust.clone(),
            names,
            authority,
            probe: surroundings.proxy_pid.map(Probe::of),
            cores: scenario.proxy.as_ref().and_then(|proxy| proxy.cores),
            backends,
            proxy: None,
            runtime: Some(runtime),
            allow_remote: surroundings.allow_remote,
            _folder: folder,
        };
        let target = match (&surroundings.target, &scenario.proxy) {
            (Some(target), _) => target.clone(),
            (None, Some(proxy)) => world.start_proxy(proxy, scenario).await?,
            (None, None) => match world.names.get("new").or_else(|| world.names.get("legacy")) {
                Some(address) => format!("http://{address}"),
                None => {
                    return Err(usage(
                        "expected a [proxy], a [backend.new] or --target: there is nothing to load",
                    ));
                }
            },
        };
        world.names.insert("target".to_owned(), target.clone());
        world.target = Target::resolve(&target, surroundings.allow_remote)
            .await
            .map_err(invalid)?;
        Ok(world)
    }

    /// Writes the files of the proxy, starts the program, and waits until it reports its address.
    /// Returns the target.
    async fn start_proxy(
        &mut self,
        proxy: &ProxySection,
        scenario: &Scenario,
    ) -> io::Result<String> {
        let folder = self.folder();
        let texts = proxy
            .files
            .values()
            .chain(&proxy.command)
            .chain([&proxy.target])
            .chain(&proxy.admin);
        let steps = scenario
            .step
            .iter()
            .flat_map(|step| step.get_ref().command.iter().flatten());
        let ports: Vec<String> = texts
            .chain(steps)
            .flat_map(|text| names_with(text, "port:"))
            .map(str::to_owned)
            .collect();
        self.reserve_ports(ports)?;
        for (name, text) in &proxy.files {
            std::fs::write(folder.join(name), fill(text, &self.names).map_err(invalid)?)?;
        }
        let command: Vec<String> = proxy
            .command
            .iter()
            .map(|word| fill(word, &self.names))
            .collect::<Result<_, _>>()
            .map_err(invalid)?;
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| usage("expected a program in proxy.command"))?;
        let log = folder.join("proxy.log");
        let output = File::create(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("{program} cannot be started: {error}"),
                )
            })?;
        self.probe = child.id().map(Probe::of);
        self.proxy = Some(child);

        let deadline = Instant::now() + proxy.ready_within;
        let target = self.said(&proxy.target, &log, deadline).await?;
        if let Some(admin) = &proxy.admin {
            let admin = self.said(admin, &log, deadline).await?;
            self.names.insert("admin".to_owned(), admin);
        }
        if let Some(ca) = &proxy.ca {
            self.trust = Trust::Authority(fill(ca, &self.names).map_err(invalid)?.into());
        }
        self.connectable(&target, &log, deadline).await?;
        Ok(target)
    }

    /// Reserves a free port for each name. Another process can take a port before the proxy does,
    /// so a proxy that can choose its ports by itself should do so.
    fn reserve_ports(&mut self, names: Vec<String>) -> io::Result<()> {
        let mut held = Vec::new();
        for name in names {
            if let Entry::Vacant(unset) = self.names.entry(name) {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                unset.insert(listener.local_addr()?.port().to_string());
                held.push(listener);
            }
        }
        Ok(())
    }

    /// Returns the pattern itself, or the text in the proxy's output at the place of `{}`.
    async fn said(&mut self, pattern: &str, log: &Path, deadline: Instant) -> io::Result<String> {
        let Some((before, after)) = pattern.split_once("{}") else {
            return fill(pattern, &self.names).map_err(invalid);
        };
        loop {
            let output = std::fs::read_to_string(log).unwrap_or_default();
            if let Some(found) = between(&output, before, after) {
                return Ok(found.to_owned());
            }
            self.still_starting(
                log,
                deadline,
                &format!("its output has nothing like {pattern:?}"),
            )?;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn connectable(&mut self, target: &str, log: &Path, deadline: Instant) -> io::Result<()> {
        let resolved = Target::resolve(target, self.allow_remote)
            .await
            .map_err(invalid)?;
        while TcpStream::connect(resolved.addresses()).await.is_err() {
            self.still_starting(log, deadline, &format!("nothing listens on {target}"))?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn still_starting(&mut self, log: &Path, deadline: Instant, missing: &str) -> io::Result<()> {
        let ended = match &mut self.proxy {
            Some(child) => child.try_wait()?,
            None => None,
        };
        if ended.is_none() && Instant::now() < deadline {
            return Ok(());
        }
        let what = ended.map_or_else(
            || format!("the proxy is not ready in time, {missing}"),
            |status| format!("the proxy ended with {status}"),
        );
        let output = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        Err(io::Error::other(format!(
            "{what}; its output ends with:\n{}",
            lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
        )))
    }

    /// Returns the folder of the scenario.
    pub fn folder(&self) -> PathBuf {
        self._folder.path().to_owned()
    }

    /// Sets the dial of a backend, and returns once it is set.
    pub async fn dial(&self, backend: &str, dial: Dial) -> io::Result<()> {
        match self.backends.get(backend) {
            Some(Running::Here(backend)) => backend.dial().turn(dial).await.map_err(invalid),
            Some(Running::There(control)) => {
                let body = serde_json::to_string(&dial)?;
                match call(
                    &Method::PUT,
                    &format!("{}/__dial", control.trim_end_matches('/')),
                    Some(&body),
                    self.allow_remote,
                )
                .await?
                {
                    (200, _) => Ok(()),
                    (status, answer) => Err(io::Error::other(format!(
                        "the control port of {backend} answered {status}: {answer}"
                    ))),
                }
            }
            None => Err(usage(&format!(
                "the dial of {backend:?} is out of reach: with --target its section needs control = \"http://...\" or listen"
            ))),
        }
    }

    /// Returns the counters of the backends in this process.
    pub fn stats(&self) -> BTreeMap<String, Stats> {
        self.backends
            .iter()
            .filter_map(|(name, backend)| match backend {
                Running::Here(backend) => Some((name.clone(), backend.stats())),
                Running::There(_) => None,
            })
            .collect()
    }

    /// Sends a signal to the proxy.
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        let pid = self
            .proxy
            .as_ref()
            .and_then(Child::id)
            .and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        let pid =
            pid.ok_or_else(|| usage("there is no proxy of this scenario to send a signal to"))?;
        rustix::process::kill_process(pid, signal).map_err(io::Error::from)
    }

    /// Whether addresses other than loopback may receive requests.
    pub fn allows_remote(&self) -> bool {
        self.allow_remote
    }

    /// Ends everything.
    pub async fn end(mut self) {
        // SIGINT is sent first, so that a proxy can write its files. Then the handle kills it.
        let _ = self.signal(rustix::process::Signal::INT);
        if let Some(mut proxy) = self.proxy.take() {
            let _ = tokio::time::timeout(GRACE, proxy.wait()).await;
            let _ = proxy.kill().await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not wait for its threads inside another runtime's tasks.
            runtime.shutdown_background();
        }
    }
}

async fn start_backend(
    runtime: &Runtime,
    name: &str,
    section: &BackendSection,
    seed: u64,
) -> io::Result<Backend> {
    let named = BackendConfig::named(name);
    let config = BackendConfig {
        listen: section.listen.unwrap_or(named.listen),
        latency: section.latency,
        work: section.work,
        error_rate: section.error_rate,
        body_bytes: section.body_bytes,
        concurrency: section.concurrency,
        connections: section.connections,
        seed,
        ..named
    };
    runtime
        .spawn(Backend::start(config))
        .await
        .map_err(io::Error::other)?
}

/// Returns the first text between these two in the output that looks like an address.
pub(crate) fn between<'output>(
    output: &'output str,
    before: &str,
    after: &str,
) -> Option<&'output str> {
    let begin = output.find(before)? + before.len();
    let rest = &output[begin..];
    let line = &rest[..rest.find('\n')?];
    let found = if after.is_empty() {
        line.split_whitespace().next()?
    } else {
        &line[..line.find(after)?]
    };
    (!found.is_empty()).then_some(found)
}

fn invalid(error: UsageError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn usage(message: &str) -> io::Error {
    invalid(UsageError::new(message))
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn an_address_is_found_in_a_complete_line_of_output() {
        assert_eq!(
            between(
                "x\n{\"http\":\"http://a:1\",\"admin\":\"http://a:2\"}\n",
                "\"http\":\"",
                "\""
            ),
            Some("http://a:1")
        );
        assert_eq!(
            between("listening on http://a:1\n", "listening on ", ""),
            Some("http://a:1")
        );
        assert_eq!(
            between("listening on http://a:1", "listening on ", ""),
            None
        );
        assert_eq!(between("listening on \n", "listening on ", ""), None);
        assert_eq!(between("", "listening on ", ""), None);
    }
}
