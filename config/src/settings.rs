//! The meaning of a valid file, in types that cannot hold an invalid one.
//!
//! These are the results of [`crate::parse`]. The words of the file (its mirror for serde and for
//! the schema) are in `schema`. Everything the core needs for its decisions is stored as core
//! types, so that the proxy passes it on without a second conversion. Deliberately absent:
//! serialisation. The file is the only form, and it is written by people.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cutover_core::{Rate, RolloutSettings};
use ipnet::IpNet;

use crate::error::Problem;

/// The settings from one file, with its includes and lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The listening addresses and the limits on requests. A change needs a restart.
    pub listen: Listen,
    /// The admin port. A change needs a restart.
    pub admin: Admin,
    /// The place where state is kept. A change needs a restart.
    pub state: State,
    /// The settings of the log.
    pub log: Log,
    /// The destination of spans. `None` creates no spans.
    pub traces: Option<Traces>,
    /// All backends in file order. There is at least one, and the names are unique.
    pub backends: Vec<Backend>,
    /// The handling of requests outside of the rollouts.
    pub routing: Routing,
    /// All rollouts, those of the main file first, then those of the included files. The ids are
    /// unique. The first match applies.
    pub rollouts: Vec<RolloutSettings>,
    /// The file of each rollout id: the name given to [`crate::parse`], or the path of an included
    /// file as it was passed to the loader.
    pub rollout_files: BTreeMap<String, String>,
    /// Mistakes that are allowed but probably not intended, sorted by position.
    pub warnings: Vec<Problem>,
    /// The SHA-256, as 64 lower-case hex digits, over the text of everything read: main file,
    /// includes and lists, in the order in which the file names them. The names of the files are
    /// not part of it, so moving the folder does not change it.
    pub digest: String,
    /// All other files read, as they were passed to the loader. The watcher uses them. There are
    /// no duplicates.
    pub files: Vec<String>,
}

impl Settings {
    /// Returns the names of the keys that differ from the running settings and need a restart, such
    /// as `listen.http`. Empty when a reload is enough.
    pub fn restart_needed(&self, running: &Self) -> Vec<&'static str> {
        // The fields are destructured by name, so that a new field cannot be forgotten here.
        // Certificates are read again whenever they change.
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
        // The other fields are read again for each request.
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

/// `[listen]`: the listening addresses and the limits on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The addresses without TLS. Port 0 lets the system choose.
    pub http: Vec<SocketAddr>,
    /// The addresses with TLS. There is at least one address here or in `http`.
    pub https: Vec<SocketAddr>,
    /// The certificates, chosen by server name. The first is the default. Not empty where `https`
    /// is not empty.
    pub certificates: Vec<Certificate>,
    /// Whether cleartext HTTP/2 is accepted on the `http` addresses.
    pub h2c: bool,
    /// The engine that transfers the bytes of requests.
    pub engine: Engine,
    /// The networks whose `X-Forwarded-*` headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The maximum number of open client connections, `1..=1_000_000`.
    pub max_connections: usize,
    /// The largest request head in bytes, from 1 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// The timeout for a whole request head. Like all timeouts here, it is from 1 ms to 10 years.
    pub header_timeout: Duration,
    /// The timeout for a request body that stalls.
    pub body_idle_timeout: Duration,
    /// The timeout for a client that does not read.
    pub write_timeout: Duration,
    /// The timeout for a connection between two requests.
    pub keepalive_timeout: Duration,
    /// The largest request body in bytes, at least 1.
    pub max_body: u64,
}

/// The engine that transfers the bytes of requests: `listen.engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Plain HTTP/1.1 uses the fast lane, and everything else uses the proxy engine.
    Auto,
    /// All requests use the proxy engine.
    Proxy,
}

impl Engine {
    /// Returns the name used in the file.
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
    /// The path of the certificate chain, in PEM form.
    pub cert: String,
    /// The path of the private key, in PEM form.
    pub key: String,
}

/// `[admin]`: the port for people, programs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The listening address. It is a loopback address unless there are tokens. Port 0 lets the
    /// system choose.
    pub address: SocketAddr,
    /// The tokens that grant access. Their names are unique. If there are none, every user of this
    /// machine has access.
    pub tokens: Vec<Token>,
}

/// One entry of `admin.tokens`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The name of the token's owner in the journal.
    pub name: String,
    /// The role, which defines the permissions of the token.
    pub role: Role,
    /// The SHA-256 of the token. The token itself is never in the file.
    pub sha256: [u8; 32],
}

/// The permissions of a token. Roles are ordered: each role includes the permissions of the earlier
/// ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Permission to read.
    Viewer,
    /// Permission to read and to move rollouts.
    Operator,
    /// All permissions, including rare and dangerous operations.
    Admin,
}

impl Role {
    /// Returns the name used in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// `[state]`: the place of the latch, the journal and the last good file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The path of a folder, which is not empty. The shell resolves relative paths.
    pub directory: String,
}

/// `[log]`: the logging of events and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The format of a line.
    pub format: LogFormat,
    /// The requests that get a line.
    pub access: AccessLog,
    /// The share of successful requests that get a line.
    pub sample: Rate,
    /// The form of the user key in a line.
    pub user: LogUser,
    /// The file for the lines of requests. `None` is standard output. The path is as in the file:
    /// the shell resolves relative paths.
    pub file: Option<String>,
}

/// `[traces]`: the destination of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// The collector's address: `http://` with a host and an optional port, without a path.
    pub endpoint: String,
    /// The share of requests that are sampled.
    pub sample: Rate,
    /// The name of this service, which is not empty.
    pub service: String,
}

/// The form of the user key in a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogUser {
    /// A keyed hash of the user key.
    Hashed,
    /// The plain user key.
    Plain,
    /// No user key.
    Off,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// A line of text for people.
    Text,
}

/// The requests that get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessLog {
    /// All requests.
    All,
    /// Failed requests only.
    Errors,
    /// No requests.
    Off,
}

/// `[backend.NAME]`: equivalent servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The name that rollouts use.
    pub name: Arc<str>,
    /// The servers. There is at least one.
    pub servers: Vec<Server>,
    /// The timeout for making a connection. Like all timeouts here, it is from 1 ms to 10 years.
    pub connect_timeout: Duration,
    /// The timeout from the whole request to the response header.
    pub response_timeout: Duration,
    /// How long the body of an ordinary answer may pause after its header.
    pub body_pause_timeout: Duration,
    /// How long an event stream, a WebSocket or a gRPC stream may be silent after its header.
    pub stream_idle_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Whether the servers are contacted with HTTP/2 only.
    pub http2: bool,
    /// The name that the certificates of its servers must be valid for. `None` is the host of each
    /// server.
    pub server_name: Option<String>,
    /// The CA certificates that must have signed the certificates of its servers, as DER. `None`
    /// means the CAs that the system trusts.
    pub ca: Option<Vec<Vec<u8>>>,
    /// The active health checks. `None` if there are none.
    pub health: Option<HealthCheck>,
    /// How long a recovered server takes to reach its full share. Zero is at once.
    pub slow_start: Duration,
}

impl Backend {
    /// Returns how long an answer may be silent after its header.
    pub fn pause(&self, is_stream: bool) -> Duration {
        if is_stream {
            self.stream_idle_timeout
        } else {
            self.body_pause_timeout
        }
    }

    /// Returns the longest time of all waits for a server.
    pub fn longest_wait(&self) -> Duration {
        self.response_timeout
            .max(self.body_pause_timeout)
            .max(self.stream_idle_timeout)
    }
}

/// The `health` table of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The requested path, which begins with `/`.
    pub path: String,
    /// The interval between checks, from 10 ms to an hour.
    pub interval: Duration,
    /// The number of failures in a row that make a server unhealthy, `1..=1000`.
    pub unhealthy_after: u32,
    /// The number of successes in a row that make it healthy again, `1..=1000`.
    pub healthy_after: u32,
}

/// One server of a backend. Displays as `host:port`, with an IPv6 address in brackets, and with
/// `https://` before it where TLS is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// A lower-case name, or an IP address without brackets.
    pub host: String,
    /// The port, `1..=65535`.
    pub port: u16,
    /// Whether TLS is used.
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

/// `[routing]`: the handling of requests outside of the rollouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The backend of requests that no rollout matches. It is always one of the backends.
    pub default_backend: Arc<str>,
    /// The SHA-256 of the testers' token. `None` disables the override.
    pub override_token_sha256: Option<[u8; 32]>,
    /// Whether clients can see which side answered.
    pub expose_decision: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_displayed_in_the_form_in_which_it_is_dialled() {
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
    fn roles_are_ordered_by_their_permissions() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
