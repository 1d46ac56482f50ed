//! Rendering of one request as a line of text. It runs in the writer's thread, and builds nothing
//! that is not written.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use cutover_config::LogFormat;
use cutover_core::{Maintenance, Outcome, Wall};

use crate::clock;
use crate::telemetry::access_log::{Line, User};
use crate::telemetry::traces::hex_digits;

/// The state that is kept between lines.
pub(super) struct Renderer {
    format: LogFormat,
    second: i64,
    /// The last time as RFC 3339, and its second.
    stamp: String,
}

/// A JSON object that is being written. It is written by hand, since this is most of the cost of a
/// line. Names and fixed words need no escaping, and text from clients is left to serde_json.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn name(&mut self, name: &str) {
        self.0
            .push(if self.0.last() == Some(&b'\n') || self.0.is_empty() {
                b'{'
            } else {
                b','
            });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Writes any text, escaped.
    fn text(&mut self, name: &str, text: &str) {
        // The loop has no early exit, so that many bytes are processed at once.
        if !text.bytes().fold(false, |found, byte| {
            found | (byte < b' ') | (byte == b'"') | (byte == b'\\')
        }) {
            return self.word(name, text);
        }
        self.name(name);
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    /// Writes a word that needs no escaping.
    fn word(&mut self, name: &str, word: &str) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(word.as_bytes());
        self.0.push(b'"');
    }

    /// Writes an address, with its port if there is one.
    fn address(&mut self, name: &str, ip: IpAddr, port: Option<u16>) {
        self.name(name);
        self.0.push(b'"');
        match ip {
            // IPv4 addresses are the most common by far, and the standard library is slow at
            // formatting them.
            IpAddr::V4(v4) => v4.octets().into_iter().enumerate().for_each(|(at, octet)| {
                if at > 0 {
                    self.0.push(b'.');
                }
                self.digits(u64::from(octet));
            }),
            IpAddr::V6(v6) if port.is_some() => drop(write!(self.0, "[{v6}]")),
            IpAddr::V6(v6) => drop(write!(self.0, "{v6}")),
        }
        if let Some(port) = port {
            self.0.push(b':');
            self.digits(u64::from(port));
        }
        self.0.push(b'"');
    }

    /// Writes the last `digits` of 32 hexadecimal digits.
    fn hex(&mut self, name: &str, number: u128, digits: usize) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(&hex_digits(number)[32 - digits..]);
        self.0.push(b'"');
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.digits(number);
    }

    fn digits(&mut self, number: u64) {
        self.0
            .extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Writes a duration in milliseconds, with a precision of one microsecond.
    fn millis(&mut self, name: &str, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.number(name, micros / 1_000);
        let rest = micros % 1_000;
        if rest > 0 {
            self.0.push(b'.');
            let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8);
            let end = digits
                .iter()
                .rposition(|digit| *digit != b'0')
                .map_or(0, |at| at + 1);
            self.0.extend_from_slice(&digits[..end]);
        }
    }
}

impl Renderer {
    pub(super) fn new(format: LogFormat) -> Self {
        Self {
            format,
            second: i64::MIN,
            stamp: String::new(),
        }
    }

    /// Appends a line.
    pub(super) fn render(&mut self, line: &Line, text: &mut Vec<u8>) {
        let request_id = String::from_utf8_lossy(line.request_id.as_bytes());
        let side = line.ended.decision.map(|decision| decision.side.name());
        let maintenance = Some(line.maintenance)
            .filter(|mode| *mode != Maintenance::Off)
            .map(Maintenance::name);
        let reason = line
            .ended
            .decision
            .map(|decision| decision.reason.name())
            .or(maintenance.map(|_| "maintenance"));
        let error = match line.ended.outcome {
            Outcome::Failure(kind) => Some(kind.name()),
            Outcome::Aborted => Some("aborted"),
            Outcome::Success | Outcome::ClientError | Outcome::Ignored => None,
        };
        let (hash, plain) = match &line.user {
            Some(User::Hashed(hash)) => (Some(*hash), None),
            Some(User::Plain(key)) => (None, Some(String::from_utf8_lossy(key))),
            None => (None, None),
        };
        self.set_stamp(line.ended.at);
        match self.format {
            LogFormat::Json => {
                let mut object = Object(text);
                object.word("@timestamp", &self.stamp);
                object.word("event.dataset", "cutover.access");
                object.text("http.request.method", line.ended.method.as_str());
                object.text("url.path", &line.ended.path);
                line.ended.status.into_iter().for_each(|status| {
                    object.number("http.response.status_code", u64::from(status));
                });
                line.ended
                    .rollout
                    .iter()
                    .for_each(|rollout| object.text("cutover.rollout", rollout));
                side.into_iter()
                    .for_each(|side| object.word("cutover.backend", side));
                reason
                    .into_iter()
                    .for_each(|reason| object.word("cutover.reason", reason));
                let bucket = line.ended.decision.and_then(|decision| decision.bucket);
                bucket
                    .into_iter()
                    .for_each(|bucket| object.number("cutover.bucket", u64::from(bucket.number())));
                line.ended
                    .moved
                    .into_iter()
                    .for_each(|moved| object.word("cutover.moved", moved));
                maintenance
                    .into_iter()
                    .for_each(|mode| object.word("cutover.maintenance", mode));
                error
                    .into_iter()
                    .for_each(|error| object.word("error.kind", error));
                if let Some(refused) = &line.refused {
                    object.word("cutover.refused", refused.code);
                    object.text("error.message", &refused.sentence);
                }
                hash.into_iter()
                    .for_each(|hash| object.hex("user.hash", u128::from(hash), 16));
                plain.iter().for_each(|plain| object.text("user.id", plain));
                object.address("client.address", line.ended.client, None);
                line.server.into_iter().for_each(|server| {
                    object.address("server.address", server.ip(), Some(server.port()));
                });
                object.millis("duration_ms", line.ended.total);
                if !line.parked.is_zero() {
                    object.millis("parked_ms", line.parked);
                }
                line.upstream
                    .into_iter()
                    .for_each(|upstream| object.millis("upstream_ms", upstream));
                object.number("http.request.body.bytes", line.bytes_in);
                object.number("http.response.body.bytes", line.bytes_out);
                object.number("attempts", u64::from(line.attempts));
                object.word("cutover.engine", line.engine.name());
                object.text("http.request.id", &request_id);
                object.hex("trace.id", line.trace, 32);
                line.span
                    .into_iter()
                    .for_each(|span| object.hex("span.id", u128::from(span), 16));
                text.push(b'}');
            }
            LogFormat::Text => {
                // Writing to memory does not fail.
                let _ = write!(
                    text,
                    "{} {} {} {:?} {} {}/{} {:.1}ms{}{}{}{}{}{} engine={} id={request_id:?} \
                     trace={:032x}",
                    self.stamp,
                    line.ended.client,
                    line.ended.method,
                    line.ended.path,
                    line.ended
                        .status
                        .map_or_else(|| "-".to_owned(), |status| status.to_string()),
                    line.ended.rollout.as_deref().unwrap_or("-"),
                    side.unwrap_or("-"),
                    line.ended.total.as_secs_f64() * 1e3,
                    reason
                        .map(|reason| format!(" by={reason}"))
                        .unwrap_or_default(),
                    maintenance
                        .map(|mode| format!(" maintenance={mode}"))
                        .unwrap_or_default(),
                    error
                        .map(|error| format!(" error={error}"))
                        .unwrap_or_default(),
                    line.refused
                        .as_ref()
                        .map(|refused| format!(
                            " refused={} why={:?}",
                            refused.code, refused.sentence
                        ))
                        .unwrap_or_default(),
                    line.ended
                        .moved
                        .map(|moved| format!(" moved={moved}"))
                        .unwrap_or_default(),
                    hash.map(|hash| format!(" user={hash:016x}"))
                        .or(plain.map(|plain| format!(" user={plain:?}")))
                        .unwrap_or_default(),
                    line.engine.name(),
                    line.trace,
                );
            }
        }
        text.push(b'\n');
    }

    /// Writes the time as RFC 3339. The calendar is computed once a second.
    fn set_stamp(&mut self, at: Wall) {
        let (second, millis) = (
            at.as_millis().div_euclid(1_000),
            at.as_millis().rem_euclid(1_000),
        );
        if second != self.second {
            self.stamp = clock::rfc3339(Wall::from_millis(second * 1_000));
            self.second = second;
        }
        // The suffix consists of the point, three digits and the Z.
        self.stamp
            .truncate(self.stamp.rfind('.').unwrap_or(self.stamp.len()));
        self.stamp.push('.');
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            self.stamp.push(char::from(b'0' + digit as u8));
        }
        self.stamp.push('Z');
    }
}
