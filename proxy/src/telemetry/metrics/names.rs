//! The name of every metric, defined once. Dashboards, alerts, documents and tests read this list;
//! it depends on nothing.
//!
//! Metrics use base units, and ratios from 0 to 1. A user, a path or a raw status is never a label.

/// A metric: its name without suffixes, its type, its labels and how to read it.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// The name in Prometheus.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram` or `summary`.
    pub kind: &'static str,
    /// The labels. A summary also has `quantile`, and a histogram `le`.
    pub labels: &'static [&'static str],
    /// The help text about how to read the metric.
    pub help: &'static str,
}

const fn name(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Name {
    Name {
        name,
        kind,
        labels,
        help,
    }
}

/// The answers given to clients.
pub const REQUESTS: Name = name(
    "cutover_requests_total",
    "counter",
    &["rollout", "backend", "code_class"],
    "Requests that ended on a side, by the class of the status that the client got from it; \
     code_class \"none\" got no answer from it. A request that new failed and legacy saved is on \
     new with \"none\" and on legacy with its answer. rollout \"\" matched no rollout.",
);
/// The failures that count as evidence.
pub const FAILURES: Name = name(
    "cutover_failures_total",
    "counter",
    &["rollout", "backend", "kind"],
    "Requests that failed by the backend's fault. What clients caused, testers and refused \
     requests are not among them.",
);
/// The latencies of requests.
pub const DURATION: Name = name(
    "cutover_request_duration_seconds",
    "histogram",
    &["rollout", "backend"],
    "Time from the request to the backend's response header. Timeouts count with the time waited; \
     other failures without an answer do not count.",
);
/// The recent quantiles of latencies.
pub const LATENCY: Name = name(
    "cutover_latency_seconds",
    "summary",
    &["rollout", "backend"],
    "Quantiles of the last 60 s from the HDR histogram, to two digits; NaN without requests. \
     Count and sum are since the start.",
);
/// The requests in flight.
pub const INFLIGHT: Name = name(
    "cutover_inflight",
    "gauge",
    &["rollout", "backend"],
    "Requests that have started and not finished.",
);
/// The open WebSockets.
pub const WEBSOCKETS: Name = name(
    "cutover_websockets",
    "gauge",
    &["rollout", "backend"],
    "WebSockets that are open. They are in cutover_inflight, too.",
);
/// The share of users on new: desired and effective.
pub const SPLIT: Name = name(
    "cutover_split_ratio",
    "gauge",
    &["rollout", "kind"],
    "Share of users on new: \"desired\" by the file, \"effective\" in force. They differ while \
     rolled back.",
);
/// The phase of each rollout.
pub const PHASE: Name = name(
    "cutover_phase",
    "gauge",
    &["rollout", "phase"],
    "1 for the phase a rollout is in, 0 for the others.",
);
/// The latch of each rollout.
pub const TRIPPED: Name = name(
    "cutover_guard_tripped",
    "gauge",
    &["rollout"],
    "1 while a rollout is latched at 0 %, whatever latched it.",
);
/// The evidence that new is worse.
pub const EVIDENCE: Name = name(
    "cutover_guard_evidence_log10",
    "gauge",
    &["rollout", "rule"],
    "Decimal logarithm of the evidence that new is worse, by rules that gather evidence. It \
     wanders up and down on a healthy backend, now and then to half of \
     cutover_guard_threshold_log10, which is what a rollback needs; after one it stands still \
     until rearm.",
);
/// The evidence on the scale that people see.
pub const EVIDENCE_RATIO: Name = name(
    "cutover_guard_evidence_ratio",
    "gauge",
    &["rollout", "rule"],
    "The part of the evidence that a rollback needs, 0 to 1 on the scale of logarithms, by rules \
     that gather evidence. 0 while nothing is wrong and while rolled back. At 1 a rule rolls back \
     if enough users are hurt, and legacy is not as bad and can take them.",
);
/// Whether new is worse and legacy does not answer.
pub const NO_REFUGE: Name = name(
    "cutover_guard_no_refuge",
    "gauge",
    &["rollout"],
    "1 while new is worse but legacy does not answer, so that no user is moved and raises are \
     frozen.",
);
/// Whether users are on new although the rollout is rolled back.
pub const SPILLED: Name = name(
    "cutover_guard_spilled",
    "gauge",
    &["rollout"],
    "1 while users are on new although the guard has rolled back, because legacy does not answer \
     or fails them.",
);
/// The evidence that a rollback needs.
pub const THRESHOLD: Name = name(
    "cutover_guard_threshold_log10",
    "gauge",
    &["rollout"],
    "Decimal logarithm of the evidence at which a rule rolls back; a healthy backend gets there \
     once in false_alarm_every.",
);
/// Whether both sides are bad at once.
pub const SHARED_CAUSE: Name = name(
    "cutover_guard_shared_cause",
    "gauge",
    &["rollout"],
    "1 while both sides are bad at once, so that raises are frozen.",
);
/// The number of rollbacks.
pub const ROLLBACKS: Name = name(
    "cutover_rollbacks_total",
    "counter",
    &["rollout", "rule"],
    "Rollbacks since the start, by the rule that tripped or \"manual\".",
);
/// The number of requests by the step that decided.
pub const DECISIONS: Name = name(
    "cutover_decisions_total",
    "counter",
    &["rollout", "reason"],
    "Requests sent to a backend, by the step that decided.",
);
/// The maintenance mode in force.
pub const MAINTENANCE: Name = name(
    "cutover_maintenance",
    "gauge",
    &["rollout", "mode"],
    "1 for the mode of maintenance that is in force for a rollout, 0 for the others; the stricter \
     of its own and that of all. rollout \"\" are requests that match none.",
);
/// The requests that maintenance refused or held.
pub const MAINTENANCE_REQUESTS: Name = name(
    "cutover_maintenance_requests_total",
    "counter",
    &["rollout", "result"],
    "Requests that maintenance concerned: refused with 503 at once; held, and of those released \
     to a backend, expired with 503, or left by their client. They are in cutover_requests_total \
     only once they are released.",
);
/// The held requests.
pub const HELD: Name = name(
    "cutover_held_requests",
    "gauge",
    &["rollout"],
    "Requests that are parked by maintenance now.",
);
/// The healthy servers of each backend.
pub const SERVERS: Name = name(
    "cutover_backend_healthy_servers",
    "gauge",
    &["backend"],
    "Servers of a backend that requests are sent to: those that have an address, pass their \
     checks and are not ejected.",
);
/// The servers of each backend by the file, healthy or not.
pub const EXPECTED: Name = name(
    "cutover_backend_servers",
    "gauge",
    &["backend"],
    "Servers of a backend by the file, healthy or not: each address of each name, and one for a \
     name that has never had an address.",
);
/// The requests that failed on new and were sent to legacy.
pub const FAILOVERS: Name = name(
    "cutover_failovers_total",
    "counter",
    &["rollout", "result"],
    "Requests that failed on new: \"saved\" were answered by legacy, \"failed\" failed there, \
     too, \"denied\" came after a fifth of new's requests of the last ten seconds.",
);
/// The WebSockets and streams that the proxy ended after a rollback or at a stop.
pub const DRAINED: Name = name(
    "cutover_drained_total",
    "counter",
    &["kind"],
    "What was still on new drain_on_rollback after a rollback, or still open at the end of a \
     stop, and was ended: \"websocket\" with close code 1012, or \"stream\".",
);
/// The expiry of each certificate.
pub const CERTIFICATE_EXPIRY: Name = name(
    "cutover_certificate_expiry_timestamp_seconds",
    "gauge",
    &["certificate"],
    "When a certificate in use expires, in seconds since 1970.",
);
/// Whether the current files of each certificate are in use.
pub const CERTIFICATE_CURRENT: Name = name(
    "cutover_certificate_last_reload_successful",
    "gauge",
    &["certificate"],
    "1 when the files of a certificate as they are now are in use, 0 when they cannot be used and \
     the ones before stay.",
);
/// The client connections by state.
pub const CONNECTIONS: Name = name(
    "cutover_connections",
    "gauge",
    &["state"],
    "Client connections: \"open\", which count in max_connections; and \"lingering\", those that \
     the proxy engine has closed and that are read for up to two seconds so that the last answer \
     arrives. At most about 1,024 linger in a process, besides max_connections.",
);
/// The number of refused connections.
pub const CONNECTIONS_REFUSED: Name = name(
    "cutover_connections_refused_total",
    "counter",
    &[],
    "Client connections closed at once because max_connections were open.",
);
/// The number of refused requests.
pub const REQUESTS_REFUSED: Name = name(
    "cutover_requests_refused_total",
    "counter",
    &["reason"],
    "Requests that were refused because of what they are, before a backend had all of them, by \
     the code in the error body: \"bad_request_line\", \"bad_version\", \"bad_line_end\", \
     \"bad_header\", \"headers_too_large\", \"method_not_allowed\", \"bad_target\", \
     \"missing_host\", \"bad_host\", \"bad_framing\", \"bad_chunk\", \"body_too_large\", \
     \"bad_connection\", \"key_nominated\", \"lookalike_header\", \"ambiguous_user\", \
     \"bad_stream\" (of HTTP/2). Each has a line in the access log with the reason.",
);
/// The requests that the fast lane left to the proxy engine, by reason.
pub const LANE_DECLINED: Name = name(
    "cutover_lane_declined_total",
    "counter",
    &["reason"],
    "Requests of HTTP/1 that the fast lane left to the proxy engine, by what is not plain about \
     them: \"head\" (large, or with odd lines), \"version\" (HTTP/1.0), \"method\", \"target\" \
     (not a path in plain characters), \"host\" (not exactly one), \"framing\" (chunked), \
     \"hop_by_hop\" (Expect, TE and such), \"lasts\" (upgrades, event streams, gRPC), \"body\" \
     (of a GET, HEAD or OPTIONS), \"backend\" (one of the two with TLS or HTTP/2), \"held\" (by \
     maintenance). Requests of HTTP/2 are not among them. Zero throughout with engine = \"proxy\".",
);
/// Whether the last reload of the file succeeded.
pub const RELOAD_SUCCESSFUL: Name = name(
    "cutover_config_last_reload_successful",
    "gauge",
    &[],
    "1 when the file as it is now is in force, 0 when it has problems and the last good one stays.",
);
/// The time at which the file in force was read.
pub const RELOAD_TIMESTAMP: Name = name(
    "cutover_config_last_reload_success_timestamp_seconds",
    "gauge",
    &[],
    "When the file in force was read, in seconds since 1970.",
);
/// The digest of the file in force.
pub const CONFIG: Name = name(
    "cutover_config_info",
    "gauge",
    &["digest"],
    "SHA-256 over everything that was read for the file in force.",
);
/// Whether the latches are on disk.
pub const DURABLE: Name = name(
    "cutover_latch_durable",
    "gauge",
    &[],
    "1 when the latches are on disk; 0 when a rollback would not survive a restart.",
);
/// The dropped lines of the access log and the event log.
pub const LOG_DROPPED: Name = name(
    "cutover_log_dropped_total",
    "counter",
    &[],
    "Lines of the access log and the event log dropped because their reader was behind.",
);
/// The number of spans by their result.
pub const SPANS: Name = name(
    "cutover_spans_total",
    "counter",
    &["result"],
    "Spans of sampled requests: \"exported\" to the collector, \"dropped\" because the exporter \
     was behind, \"failed\" because the collector did not take them.",
);
/// The attempts under way and the idle connections, by backend.
pub const UPSTREAM: Name = name(
    "cutover_upstream_connections",
    "gauge",
    &["backend", "state"],
    "Attempts under way at a backend, each on a connection or (HTTP/2) a stream: \"active\"; and \
     connections of the fast lane that rest: \"idle\". How many rest in the pool of the proxy \
     engine only that knows.",
);
/// The attempts by how they got their connection.
pub const CONNECTS: Name = name(
    "cutover_upstream_connects_total",
    "counter",
    &["backend", "result"],
    "Attempts at a backend by how they got their connection: \"new\", \"reused\" from the pool, \
     or \"failed\" to get one. Requests of warm-ups are among them, those of checks are not.",
);
/// The limit of client connections.
pub const CONNECTIONS_LIMIT: Name = name(
    "cutover_connections_limit",
    "gauge",
    &[],
    "listen.max_connections: above so many client connections further ones are closed at once.",
);
/// The version of the program.
pub const BUILD: Name = name(
    "cutover_build_info",
    "gauge",
    &["version"],
    "The version of the program.",
);

/// All metrics, in the order in which they are written. `process_*` follow.
pub const ALL: [Name; 40] = [
    REQUESTS,
    FAILURES,
    DURATION,
    LATENCY,
    INFLIGHT,
    WEBSOCKETS,
    SPLIT,
    PHASE,
    TRIPPED,
    EVIDENCE,
    EVIDENCE_RATIO,
    THRESHOLD,
    SHARED_CAUSE,
    NO_REFUGE,
    SPILLED,
    ROLLBACKS,
    DECISIONS,
    FAILOVERS,
    MAINTENANCE,
    MAINTENANCE_REQUESTS,
    HELD,
    SERVERS,
    EXPECTED,
    UPSTREAM,
    CONNECTS,
    DRAINED,
    CERTIFICATE_EXPIRY,
    CERTIFICATE_CURRENT,
    CONNECTIONS,
    CONNECTIONS_LIMIT,
    CONNECTIONS_REFUSED,
    REQUESTS_REFUSED,
    LANE_DECLINED,
    RELOAD_SUCCESSFUL,
    RELOAD_TIMESTAMP,
    CONFIG,
    DURABLE,
    LOG_DROPPED,
    SPANS,
    BUILD,
];

/// Returns the metrics document, which is generated from this list so that it is never out of date.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\nMade from `proxy/src/telemetry/metrics/names.rs` (`UPDATE=1 cargo test -p cutover \
         --test it every_metric` writes it). `GET /metrics` on the admin port; base units, \
         ratios from 0 to 1.\nEvery label pair of a rollout exists from its start. No user, path \
         or raw status is ever a label, so the number of series depends on the file alone.\n\n| \
         metric | type | labels | how to read it |\n|---|---|---|---|\n",
    );
    for name in ALL {
        let labels = name
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(" ");
        text.push_str(&format!(
            "| `{}` | {} | {labels} | {} |\n",
            name.name, name.kind, name.help
        ));
    }
    text.push_str(
        "| `process_*` | | | CPU, memory, file descriptors and start time of the process, as \
         Prometheus' own libraries export them. |\n",
    );
    text
}
