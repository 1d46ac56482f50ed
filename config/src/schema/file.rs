//! The main file and its tables, apart from rollouts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::default;
use super::rollout::RolloutTable;
use super::value::{At, DurationText, RateText, SizeText};

type Texts = Vec<At<String>>;

/// Cutover: sends each request to a legacy or a new backend by a sticky hash of the user, and goes
/// back to 0 % by itself when the new side is worse. Everything is reloaded while it runs, except
/// the keys marked (restart).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Further files that hold only `[[rollout]]` blocks: paths or patterns with `*`, relative to
    /// the folder of this file. Main file only.
    #[schemars(extend("examples" = [["rollouts/*.toml"]]))]
    pub(crate) include: Option<Texts>,
    /// (restart) Where requests come in, and the limits on them.
    pub(crate) listen: Option<ListenTable>,
    /// (restart) The port for people, programs and metrics.
    pub(crate) admin: Option<AdminTable>,
    /// (restart) Where the latch, the journal and the last good file are kept.
    pub(crate) state: Option<StateTable>,
    /// Events and requests: what is written of them, and where.
    pub(crate) log: Option<LogTable>,
    /// Where spans of requests go. Without this table none are made.
    pub(crate) traces: Option<TracesTable>,
    /// Groups of servers that answer the same, by name. Rollouts speak of them by these names.
    pub(crate) backend: Option<BTreeMap<At<String>, BackendTable>>,
    /// What happens outside of the rollouts.
    pub(crate) routing: Option<At<RoutingTable>>,
    /// Which requests move, and how many users. The first rollout that matches wins, in file
    /// order.
    pub(crate) rollout: Option<Vec<At<RolloutTable>>>,
    /// Who is told. Not supported yet.
    pub(crate) notify: Option<Vec<At<NotifyTable>>>,
}

/// A file named by `include`: only rollouts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IncludedFile {
    pub(crate) rollout: Option<Vec<At<RolloutTable>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenTable {
    /// (restart) Addresses without TLS; may be empty where there is `https`.
    #[schemars(extend("default" = [default::HTTP]))]
    pub(crate) http: Option<At<Texts>>,
    /// (restart) Addresses for TLS: HTTP/2 or HTTP/1.1, as the client chooses.
    #[schemars(extend("default" = [], "examples" = [["0.0.0.0:8443"]]))]
    pub(crate) https: Option<At<Texts>>,
    /// Certificates, chosen by server name; the first is for clients that name none or an unknown
    /// one. Read again when their files change.
    #[schemars(extend("default" = [], "examples" = [[{ "cert": "site.pem", "key": "site.key" }]]))]
    pub(crate) certificates: Option<At<Vec<CertificateTable>>>,
    /// (restart) Networks or addresses whose X-Forwarded-For is believed.
    #[schemars(extend("default" = [], "examples" = [["10.0.0.0/8"]]))]
    pub(crate) trusted_proxies: Option<Texts>,
    /// (restart) Cleartext HTTP/2 on the http ports, for clients that begin with it; HTTP/1.1 goes
    /// on working there.
    #[schemars(extend("default" = false))]
    pub(crate) h2c: Option<bool>,
    /// (restart) What moves the bytes of requests. Both keep every promise; the lane costs less.
    #[schemars(extend("default" = "auto"))]
    pub(crate) engine: Option<EngineText>,
    /// (restart) Client connections held at once.
    #[schemars(extend("default" = default::MAX_CONNECTIONS, "minimum" = 1, "maximum" = 1_000_000))]
    pub(crate) max_connections: Option<u64>,
    /// (restart) The largest request head, from 1KiB to 1MiB.
    #[schemars(extend("default" = default::MAX_HEADER_BYTES))]
    pub(crate) max_header_bytes: Option<At<SizeText>>,
    /// (restart) For the whole request head, not per read.
    #[schemars(extend("default" = default::HEADER_TIMEOUT))]
    pub(crate) header_timeout: Option<At<DurationText>>,
    /// (restart) For a request body that stalls.
    #[schemars(extend("default" = default::BODY_IDLE_TIMEOUT))]
    pub(crate) body_idle_timeout: Option<At<DurationText>>,
    /// (restart) For a client that does not read.
    #[schemars(extend("default" = default::WRITE_TIMEOUT))]
    pub(crate) write_timeout: Option<At<DurationText>>,
    /// (restart) For a connection between two requests.
    #[schemars(extend("default" = default::KEEPALIVE_TIMEOUT))]
    pub(crate) keepalive_timeout: Option<At<DurationText>>,
    /// (restart) The largest request body.
    #[schemars(extend("default" = default::MAX_BODY))]
    pub(crate) max_body: Option<At<SizeText>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EngineText {
    /// Plain HTTP/1.1 on a fast lane, request by request; everything else as with `proxy`.
    Auto,
    /// Everything through the HTTP proxy engine.
    Proxy,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateTable {
    /// Certificate chain, PEM, the site's own first. Relative to the folder of the file.
    #[schemars(required, extend("examples" = ["site.pem"]))]
    pub(crate) cert: Option<At<String>>,
    /// Private key, PEM.
    #[schemars(required, extend("examples" = ["site.key"]))]
    pub(crate) key: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdminTable {
    /// (restart) Where the admin port listens. Anything but a loopback address needs tokens.
    #[schemars(extend("default" = default::ADMIN))]
    pub(crate) address: Option<At<String>>,
    /// (restart) Who may come in. Without tokens everybody on this machine may.
    #[schemars(extend("default" = []))]
    pub(crate) tokens: Option<Vec<TokenTable>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenTable {
    /// Whose it is; the journal names them by it.
    #[schemars(required, extend("examples" = ["ana"]))]
    pub(crate) name: Option<At<String>>,
    /// What it allows.
    #[schemars(required, extend("examples" = ["operator"]))]
    pub(crate) role: Option<RoleText>,
    /// SHA-256 of the token as 64 hex digits: `printf %s "$TOKEN" | sha256sum`.
    #[schemars(required, extend("pattern" = "^[0-9a-fA-F]{64}$|\\$\\{"))]
    pub(crate) sha256: Option<At<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoleText {
    /// Reads.
    Viewer,
    /// Also moves rollouts.
    Operator,
    /// Also does what is rare and sharp.
    Admin,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateTable {
    /// (restart) A folder that the process may write to.
    #[schemars(extend("default" = default::DIRECTORY))]
    pub(crate) directory: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogTable {
    /// The form of a line.
    #[schemars(extend("default" = "json"))]
    pub(crate) format: Option<LogFormatText>,
    /// Which requests get a line.
    #[schemars(extend("default" = "all"))]
    pub(crate) access: Option<AccessText>,
    /// Of the requests that went well, this many get a line; what failed, was moved or parked
    /// always does.
    #[schemars(extend("default" = default::LOG_SAMPLE))]
    pub(crate) sample: Option<At<RateText>>,
    /// What a line says of the user key.
    #[schemars(extend("default" = "hashed"))]
    pub(crate) user: Option<LogUserText>,
    /// (restart) A file for the lines of requests, in place of standard output; reopened on
    /// SIGUSR1. Relative to the folder of this file.
    #[schemars(extend("examples" = ["access.log", "/var/log/cutover/access.log"]))]
    pub(crate) file: Option<At<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TracesTable {
    /// (restart) A collector that takes OTLP over HTTP (protobuf), without TLS: `/v1/traces` is
    /// added.
    #[schemars(required, extend("examples" = ["http://127.0.0.1:4318"]))]
    pub(crate) endpoint: Option<At<String>>,
    /// So many requests are sampled. What a trusted proxy has decided on stays as it is.
    #[schemars(extend("default" = default::TRACES_SAMPLE))]
    pub(crate) sample: Option<At<RateText>>,
    /// (restart) The name that spans carry as `service.name`.
    #[schemars(extend("default" = default::TRACES_SERVICE))]
    pub(crate) service: Option<At<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormatText {
    /// One JSON object per line.
    Json,
    /// For eyes.
    Text,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogUserText {
    /// A hash that is the same for the same user as long as the state directory is.
    Hashed,
    /// As it is.
    Plain,
    /// Nothing.
    Off,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccessText {
    /// Every request.
    All,
    /// Those that failed.
    Errors,
    /// None.
    Off,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackendTable {
    /// `host:port`, or `https://host:port` for TLS; names are resolved again and again.
    #[schemars(required, extend("minItems" = 1, "examples" = [["10.0.1.1:3000"]]))]
    pub(crate) servers: Option<Texts>,
    /// HTTP/2 to the servers, as gRPC needs it: over TLS, or without TLS for servers that speak
    /// nothing else.
    #[schemars(extend("default" = false))]
    pub(crate) http2: Option<bool>,
    /// The name that the servers' certificates are for; default: the host of each.
    #[schemars(extend("examples" = ["shop.internal"]))]
    pub(crate) server_name: Option<At<String>>,
    /// Certificates, PEM, that the servers' are signed by; default: those of the system.
    #[schemars(extend("examples" = ["internal-ca.pem"]))]
    pub(crate) ca: Option<At<String>>,
    /// To make a connection.
    #[schemars(extend("default" = default::CONNECT_TIMEOUT))]
    pub(crate) connect_timeout: Option<At<DurationText>>,
    /// From the whole request to the response header.
    #[schemars(extend("default" = default::RESPONSE_TIMEOUT))]
    pub(crate) response_timeout: Option<At<DurationText>>,
    /// How long the body of an ordinary answer may pause after its header.
    #[schemars(extend("default" = default::BODY_PAUSE_TIMEOUT))]
    pub(crate) body_pause_timeout: Option<At<DurationText>>,
    /// How long an event stream, a WebSocket or a gRPC stream may be silent after its header.
    #[schemars(extend("default" = default::STREAM_IDLE_TIMEOUT))]
    pub(crate) stream_idle_timeout: Option<At<DurationText>>,
    /// How long an unused connection is kept. Keep it below the server's own.
    #[schemars(extend("default" = default::IDLE_TIMEOUT))]
    pub(crate) idle_timeout: Option<At<DurationText>>,
    /// Active health checks. Without them a server counts as well until requests to it fail.
    pub(crate) health: Option<HealthTable>,
    /// Over this time a server that has come back gets more and more of its share.
    #[schemars(extend("default" = default::SLOW_START))]
    pub(crate) slow_start: Option<At<DurationText>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthTable {
    /// What is asked for, with GET. An answer from 200 to 399 is good.
    #[schemars(required, extend("examples" = ["/healthz"]))]
    pub(crate) path: Option<At<String>>,
    /// How often, from 10ms to 1h; also how long an answer may take, between 1s and 10s.
    #[schemars(extend("default" = default::HEALTH_INTERVAL))]
    pub(crate) interval: Option<At<DurationText>>,
    /// Failures in a row until a server gets no requests. The first check of all counts alone.
    #[schemars(extend("default" = default::UNHEALTHY_AFTER, "minimum" = 1, "maximum" = 1000))]
    pub(crate) unhealthy_after: Option<u64>,
    /// Successes in a row until it gets some again.
    #[schemars(extend("default" = default::HEALTHY_AFTER, "minimum" = 1, "maximum" = 1000))]
    pub(crate) healthy_after: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoutingTable {
    /// The backend of requests that no rollout matches.
    #[schemars(extend("default" = default::LEGACY))]
    pub(crate) default_backend: Option<At<String>>,
    /// SHA-256 of the testers' token as 64 hex digits, for the request header `x-cutover-override:
    /// new TOKEN`. Without it there is no override.
    #[schemars(extend("pattern" = "^[0-9a-fA-F]{64}$|\\$\\{"))]
    pub(crate) override_token_sha256: Option<At<String>>,
    /// Whether clients see `x-cutover-backend` and `x-cutover-rollout`.
    #[schemars(extend("default" = false))]
    pub(crate) expose_decision: Option<bool>,
}

#[expect(
    dead_code,
    reason = "parsed so that mistakes in it are found, refused until it does something"
)]
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotifyTable {
    /// Where events are posted to.
    #[schemars(required, extend("examples" = ["https://hooks.example/..."]))]
    url: Option<String>,
    /// The form of an event.
    #[schemars(extend("default" = "cloudevents"))]
    format: Option<NotifyFormatText>,
    /// Which events.
    events: Option<Vec<EventText>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NotifyFormatText {
    /// CloudEvents 1.0 as JSON.
    CloudEvents,
    /// A Slack message.
    Slack,
    /// Alertmanager's API.
    Alertmanager,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventText {
    /// A rollout went to 0 %.
    Rollback,
    /// A stage began.
    Stage,
    /// A changed file was refused.
    ConfigRejected,
}
