//! One request as a line of text. Runs in the writer's thread; nothing is built that is not written.

use std::fmt::Write as _;
use std::io::Write;

use cutover_config::{LogFormat, LogUser};
use cutover_core::{Maintenance, Outcome, Wall};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Line;
use crate::clock;

/// What lines have in common, kept from one to the next.
pub(super) struct Renderer {
    format: LogFormat,
    /// SHA-256 that has read the secret, so that each user costs one block more.
    hash: Sha256,
    second: i64,
    /// The present second as RFC 3339, up to its point.
    stamp: String,
}

/// Names after the Elastic Common Schema and OpenTelemetry where they have one.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: &'a str,
    #[serde(rename = "event.dataset")]
    dataset: &'static str,
    #[serde(rename = "http.request.method")]
    method: &'a str,
    #[serde(rename = "url.path")]
    path: &'a str,
    #[serde(rename = "http.response.status_code")]
    status: Option<u16>,
    #[serde(rename = "cutover.rollout", skip_serializing_if = "Option::is_none")]
    rollout: Option<&'a str>,
    #[serde(rename = "cutover.backend", skip_serializing_if = "Option::is_none")]
    backend: Option<&'static str>,
    #[serde(rename = "cutover.reason", skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(rename = "cutover.bucket", skip_serializing_if = "Option::is_none")]
    bucket: Option<u32>,
    #[serde(rename = "cutover.moved", skip_serializing_if = "Option::is_none")]
    moved: Option<&'static str>,
    #[serde(rename = "cutover.maintenance", skip_serializing_if = "Option::is_none")]
    maintenance: Option<&'static str>,
    #[serde(rename = "error.kind", skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(rename = "user.hash", skip_serializing_if = "Option::is_none")]
    user_hash: Option<&'a str>,
    #[serde(rename = "user.id", skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(rename = "client.address")]
    client: std::net::IpAddr,
    #[serde(rename = "server.address", skip_serializing_if = "Option::is_none")]
    server: Option<std::net::SocketAddr>,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parked_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    #[serde(rename = "http.request.body.bytes")]
    bytes_in: u64,
    #[serde(rename = "http.response.body.bytes")]
    bytes_out: u64,
    attempts: u8,
    #[serde(rename = "http.request.id")]
    request_id: &'a str,
    #[serde(rename = "trace.id")]
    trace_id: &'a str,
    #[serde(rename = "span.id", skip_serializing_if = "Option::is_none")]
    span_id: Option<&'a str>,
}

impl Renderer {
    pub(super) fn new(format: LogFormat, secret: &[u8; 32]) -> Self {
        Self { format, hash: Sha256::new_with_prefix(secret), second: i64::MIN, stamp: String::new() }
    }

    /// Appends a line.
    pub(super) fn render(&mut self, line: &Line, text: &mut Vec<u8>) {
        let request_id = String::from_utf8_lossy(line.request_id.as_bytes());
        let side = line.decision.map(|decision| decision.side.name());
        let maintenance = Some(line.maintenance).filter(|mode| *mode != Maintenance::Off).map(Maintenance::name);
        let reason = line.decision.map(|decision| decision.reason.name()).or(maintenance.map(|_| "maintenance"));
        let error = match line.outcome {
            Outcome::Failure(kind) => Some(kind.name()),
            Outcome::Aborted => Some("aborted"),
            Outcome::Success | Outcome::ClientError | Outcome::Ignored => None,
        };
        let millis = |duration: std::time::Duration| duration.as_micros() as f64 / 1e3;
        let (mut hash, mut plain) = (None, None);
        match line.user.as_ref() {
            Some((LogUser::Hashed, key)) => hash = Some(self.hash_of(key)),
            Some((LogUser::Plain, key)) => plain = Some(String::from_utf8_lossy(key)),
            Some((LogUser::Off, _)) | None => {}
        }
        let stamp = self.stamp(line.at);
        let trace_id = format!("{:032x}", line.trace);
        let span_id = line.span.map(|span| format!("{span:016x}"));
        let written = match self.format {
            LogFormat::Json => {
                let json = Json {
                    timestamp: &stamp,
                    dataset: "cutover.access",
                    method: line.method.as_str(),
                    path: &line.path,
                    status: line.status,
                    rollout: line.rollout.as_deref(),
                    backend: side,
                    reason,
                    bucket: line.decision.and_then(|decision| decision.bucket).map(cutover_core::Bucket::number),
                    moved: line.moved,
                    maintenance,
                    error,
                    user_hash: hash.as_deref(),
                    user_id: plain.as_deref(),
                    client: line.client,
                    server: line.server,
                    duration_ms: millis(line.total),
                    parked_ms: (!line.parked.is_zero()).then(|| millis(line.parked)),
                    upstream_ms: line.upstream.map(millis),
                    bytes_in: line.bytes_in,
                    bytes_out: line.bytes_out,
                    attempts: line.attempts,
                    request_id: &request_id,
                    trace_id: &trace_id,
                    span_id: span_id.as_deref(),
                };
                serde_json::to_writer(&mut *text, &json).map_err(std::io::Error::from)
            }
            LogFormat::Text => write!(
                text,
                "{stamp} {} {} {:?} {} {}/{} {:.1}ms{}{}{}{}{} id={request_id:?} trace={trace_id}",
                line.client,
                line.method,
                line.path,
                line.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
                line.rollout.as_deref().unwrap_or("-"),
                side.unwrap_or("-"),
                millis(line.total),
                reason.map(|reason| format!(" by={reason}")).unwrap_or_default(),
                maintenance.map(|mode| format!(" maintenance={mode}")).unwrap_or_default(),
                error.map(|error| format!(" error={error}")).unwrap_or_default(),
                line.moved.map(|moved| format!(" moved={moved}")).unwrap_or_default(),
                hash.map(|hash| format!(" user={hash}")).or(plain.map(|plain| format!(" user={plain:?}"))).unwrap_or_default(),
            ),
        };
        // Writing to memory does not fail.
        if written.is_ok() {
            text.push(b'\n');
        }
    }

    /// Of the same user the same as long as the secret is: 64 bits of SHA-256 over the secret and the key.
    fn hash_of(&self, key: &[u8]) -> String {
        let digest = self.hash.clone().chain_update(key).finalize();
        digest[..8].iter().fold(String::with_capacity(16), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The moment as RFC 3339. The calendar is asked once a second.
    fn stamp(&mut self, at: Wall) -> String {
        let (second, millis) = (at.as_millis().div_euclid(1_000), at.as_millis().rem_euclid(1_000));
        if second != self.second {
            self.stamp = clock::rfc3339(Wall::from_millis(second * 1_000));
            self.stamp.truncate(self.stamp.find('.').unwrap_or(self.stamp.len()));
            self.second = second;
        }
        format!("{}.{millis:03}Z", self.stamp)
    }
}
