//! What a valid file means, in types that cannot hold an invalid one.
//!
//! These are the answers of [`crate::parse`]; the words of the file (its mirror for serde and for
//! the schema) are in `schema`. What the core decides with is stored as core types, so that the
//! proxy hands it on without a second conversion. Deliberately absent: serialisation. The file is
//! the only form, and it is written by people.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::{Rate, RolloutSettings};
use ipnet::IpNet;

use crate::error::Problem;

/// Everything one file (with its includes and lists) asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where requests come in, and the limits on them. Needs a restart to change.
    pub listen: Listen,
    /// The admin port. Needs a restart to change.
    pub admin: Admin,
    /// Where state is kept. Needs a restart to change.
    pub state: State,
    /// What is logged.
    pub log: Log,
    /// Where spans go; `None` makes none.
    pub traces: Option<Traces>,
    /// All backends, in file order; at least one, names unique.
    pub backends: Vec<Backend>,
    /// What happens outside of the rollouts.
    pub routing: Routing,
    /// All rollouts, those of the main file first, then those of the included files; ids unique.
    /// The first match wins.
    pub rollouts: Vec<RolloutSettings>,
    /// For each rollout id the file it stands in: the name given to [`crate::parse`], or the path
    /// of an included file as the loader was asked for it.
    pub rollout_files: BTreeMap<String, String>,
    /// What is allowed but probably not meant, sorted by position.
    pub warnings: Vec<Problem>,
    /// SHA-256, as 64 lower-case hex digits, over the text of everything read: main file, includes
    /// and lists, in the order in which the file names them. Names of files are not part of
    /// it, so moving the folder does not change it.
    pub digest: String,
    /// All other files read, as the loader was asked for them: for the watcher. No duplicates.
    pub files: Vec<String>,
}

impl Settings {
    /// The names of the keys that differ from the running settings and need a restart, such as
    /// `listen.http`. Empty when a reload is enough.
    pub fn restart_needed(&self, running: &Self) -> Vec<&'static str> {
        // Taken apart by name, so that a new field cannot be forgotten here.
        // Certificates are read anew whenever they change.
        let Listen {
            http,
            https,
            certificates: _,
            h2c,
            engine,
            trusted_proxies,
            max_connections,
            max_header_bytes,
            header_timeout,
            body_idle_timeout,
            write_timeout,
            keepalive_timeout,
            max_body,
        } = &self.listen;
        let Admin { address, tokens } = &self.admin;
        let State { directory } = &self.state;
        // The others are read anew for each request.
        let Log {
            format,
            access: _,
            sample: _,
            user: _,
            file,
        } = &self.log;
        let exports = |settings: &Self| {
            settings.traces.as_ref().map(
                |Traces {
                     endpoint,
                     sample: _,
                     service,
                 }| (endpoint.clone(), service.clone()),
            )
        };
        let was = running;
        [
            ("listen.http", *http != was.listen.http),
            ("listen.https", *https != was.listen.https),
            ("listen.h2c", *h2c != was.listen.h2c),
            ("listen.engine", *engine != was.listen.engine),
            (
                "listen.trusted_proxies",
                *trusted_proxies != was.listen.trusted_proxies,
            ),
            (
                "listen.max_connections",
                *max_connections != was.listen.max_connections,
            ),
            (
                "listen.max_header_bytes",
                *max_header_bytes != was.listen.max_header_bytes,
            ),
            (
                "listen.header_timeout",
                *header_timeout != was.listen.header_timeout,
            ),
            (
                "listen.body_idle_timeout",
                *body_idle_timeout != was.listen.body_idle_timeout,
            ),
            (
                "listen.write_timeout",
                *write_timeout != was.listen.write_timeout,
            ),
            (
                "listen.keepalive_timeout",
                *keepalive_timeout != was.listen.keepalive_timeout,
            ),
            ("listen.max_body", *max_body != was.listen.max_body),
            ("admin.address", *address != was.admin.address),
            ("admin.tokens", *tokens != was.admin.tokens),
            ("state.directory", *directory != was.state.directory),
            ("log.format", *format != was.log.format),
            ("log.file", *file != was.log.file),
            ("traces", exports(self) != exports(was)),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// `[listen]`: where requests come in, and the limits on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Addresses without TLS. Port 0 lets the system choose.
    pub http: Vec<SocketAddr>,
    /// Addresses with TLS; at least one here or in `http`.
    pub https: Vec<SocketAddr>,
    /// Chosen by server name; the first is the default. Not empty where `https` is not.
    pub certificates: Vec<Certificate>,
    /// Whether cleartext HTTP/2 is understood on the `http` addresses.
    pub h2c: bool,
    /// What moves the bytes of requests.
    pub engine: Engine,
    /// Networks whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Client connections held at once, `1..=1_000_000`.
    pub max_connections: usize,
    /// The largest request head in bytes, from 1 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// For a whole request head. Like all timeouts here: from 1 ms to 10 years.
    pub header_timeout: Duration,
    /// For a request body that stalls.
    pub body_idle_timeout: Duration,
    /// For a client that does not read.
    pub write_timeout: Duration,
    /// For a connection between two requests.
    pub keepalive_timeout: Duration,
    /// The largest request body in bytes, at least 1.
    pub max_body: u64,
}

/// What moves the bytes of requests: `listen.engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Plain HTTP/1.1 on the fast lane, everything else through the proxy engine.
    Auto,
    /// Everything through the proxy engine.
    Proxy,
}

impl Engine {
    /// The word of the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Proxy => "proxy",
        }
    }
}

/// One entry of `listen.certificates`: two paths, relative to the folder of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, PEM.
    pub cert: String,
    /// The private key, PEM.
    pub key: String,
}

/// `[admin]`: the port for people, programs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; a loopback address unless there are tokens. Port 0 lets the system
    /// choose.
    pub address: SocketAddr,
    /// Who may come in; names unique. Empty: everybody on this machine.
    pub tokens: Vec<Token>,
}

/// One entry of `admin.tokens`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is, as the journal names them.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// SHA-256 of the token. The token itself is never in the file.
    pub sha256: [u8; 32],
}

/// What a token allows. Ordered: each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also moves rollouts.
    Operator,
    /// Also does what is rare and sharp.
    Admin,
}

impl Role {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// `[state]`: where the latch, the journal and the last good file are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// A folder; relative paths are the shell's to resolve. Not empty.
    pub directory: String,
}

/// `[log]`: what is written of events and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which requests get a line.
    pub access: AccessLog,
    /// How many of those that went well.
    pub sample: Rate,
    /// What a line says of the user key.
    pub user: LogUser,
    /// Where the lines of requests go; `None` is standard output. As the file has it: relative
    /// paths are the shell's to resolve.
    pub file: Option<String>,
}

/// `[traces]`: where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// `http://` with a host and perhaps a port, without a path.
    pub endpoint: String,
    /// How many requests are sampled.
    pub sample: Rate,
    /// The name of this service. Not empty.
    pub service: String,
}

/// What a line says of the user key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogUser {
    /// A keyed hash.
    Hashed,
    /// The key.
    Plain,
    /// Nothing.
    Off,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For eyes.
    Text,
}

/// Which requests get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessLog {
    /// Every one.
    All,
    /// Those that failed.
    Errors,
    /// None.
    Off,
}

/// `[backend.NAME]`: servers that answer the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The name that rollouts use.
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<Server>,
    /// To make a connection. Like all timeouts here: from 1 ms to 10 years.
    pub connect_timeout: Duration,
    /// From the whole request to the response header.
    pub response_timeout: Duration,
    /// How long the body of an ordinary answer may pause after its header.
    pub body_pause_timeout: Duration,
    /// How long an event stream, a WebSocket or a gRPC stream may be silent after its header.
    pub stream_idle_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Whether the servers are spoken to in HTTP/2, and in nothing else.
    pub http2: bool,
    /// The name that certificates of its servers must be for; `None` is the host of each.
    pub server_name: Option<String>,
    /// What certificates of its servers must be signed by, as DER; `None` is what the system
    /// trusts.
    pub ca: Option<Vec<Vec<u8>>>,
    /// Active health checks.
    pub health: Option<HealthCheck>,
    /// How long a server that has come back takes to its full share; zero is at once.
    pub slow_start: Duration,
}

impl Backend {
    /// How long an answer may be silent after its header.
    pub fn pause(&self, is_stream: bool) -> Duration {
        if is_stream {
            self.stream_idle_timeout
        } else {
            self.body_pause_timeout
        }
    }

    /// The longest time for which anything is waited for of a server.
    pub fn longest_wait(&self) -> Duration {
        self.response_timeout
            .max(self.body_pause_timeout)
            .max(self.stream_idle_timeout)
    }
}

/// `health` of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked for; begins with `/`.
    pub path: String,
    /// From 10 ms to an hour.
    pub interval: Duration,
    /// Failures in a row that make a server unhealthy, `1..=1000`.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again, `1..=1000`.
    pub healthy_after: u32,
}

/// One server of a backend. Displays as `host:port`, an IPv6 address in brackets, with `https://` before it where TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// A lower-case name, or an IP address without brackets.
    pub host: String,
    /// `1..=65535`.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "https://" } else { "" })?;
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `[routing]`: what happens outside of the rollouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The backend of requests that no rollout matches; always one of the backends.
    pub default_backend: Arc<str>,
    /// SHA-256 of the testers' token; `None` switches the override off.
    pub override_token_sha256: Option<[u8; 32]>,
    /// Whether clients see which side answered.
    pub expose_decision: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_displayed_as_it_is_dialled() {
        assert_eq!(
            Server {
                host: "10.0.0.1".into(),
                port: 3000,
                tls: false
            }
            .to_string(),
            "10.0.0.1:3000"
        );
        assert_eq!(
            Server {
                host: "::1".into(),
                port: 3000,
                tls: true
            }
            .to_string(),
            "https://[::1]:3000"
        );
    }

    #[test]
    fn roles_are_ordered_by_what_they_allow() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
