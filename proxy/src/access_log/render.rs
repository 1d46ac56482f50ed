//! One request as a line of text. Runs in the writer's thread; nothing is built that is not written.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use cutover_config::{LogFormat, LogUser};
use cutover_core::{Maintenance, Outcome, Wall};
use siphasher::sip::SipHasher24;

use super::Line;
use crate::clock;
use crate::gateway::trace::write_hex;

/// What lines have in common, kept from one to the next.
pub(super) struct Renderer {
    format: LogFormat,
    /// With its key.
    hash: SipHasher24,
    second: i64,
    /// The present second as RFC 3339, up to its point.
    stamp: String,
}

/// A JSON object that is being written. By hand, since this is most of what a line costs: names and words are ours and need no escaping, and what a client has sent is left to serde_json.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.last() == Some(&b'\n') || self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Anything.
    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    /// What needs no escaping.
    fn word(&mut self, name: &str, word: &str) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(word.as_bytes());
        self.0.push(b'"');
    }

    fn shown(&mut self, name: &str, shown: impl Display) {
        self.name(name);
        let _ = write!(self.0, "\"{shown}\"");
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// To a microsecond.
    fn millis(&mut self, name: &str, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.number(name, micros / 1_000);
        let rest = micros % 1_000;
        if rest > 0 {
            self.0.push(b'.');
            let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8);
            let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |at| at + 1);
            self.0.extend_from_slice(&digits[..end]);
        }
    }
}

impl Renderer {
    pub(super) fn new(format: LogFormat, secret: &[u8; 16]) -> Self {
        Self { format, hash: SipHasher24::new_with_key(secret), second: i64::MIN, stamp: String::new() }
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
        let (mut hash, mut plain) = (None, None);
        match line.user.as_ref() {
            Some((LogUser::Hashed, key)) => hash = Some(self.hash_of(key)),
            Some((LogUser::Plain, key)) => plain = Some(String::from_utf8_lossy(key)),
            Some((LogUser::Off, _)) | None => {}
        }
        let stamp = self.stamp(line.at);
        let trace_id = hex(line.trace);
        match self.format {
            LogFormat::Json => {
                let mut object = Object(text);
                object.word("@timestamp", &stamp);
                object.word("event.dataset", "cutover.access");
                object.text("http.request.method", line.method.as_str());
                object.text("url.path", &line.path);
                line.status.into_iter().for_each(|status| object.number("http.response.status_code", u64::from(status)));
                line.rollout.iter().for_each(|rollout| object.text("cutover.rollout", rollout));
                side.into_iter().for_each(|side| object.word("cutover.backend", side));
                reason.into_iter().for_each(|reason| object.word("cutover.reason", reason));
                let bucket = line.decision.and_then(|decision| decision.bucket);
                bucket.into_iter().for_each(|bucket| object.number("cutover.bucket", u64::from(bucket.number())));
                line.moved.into_iter().for_each(|moved| object.word("cutover.moved", moved));
                maintenance.into_iter().for_each(|mode| object.word("cutover.maintenance", mode));
                error.into_iter().for_each(|error| object.word("error.kind", error));
                hash.iter().for_each(|hash| object.word("user.hash", hash));
                plain.iter().for_each(|plain| object.text("user.id", plain));
                object.shown("client.address", line.client);
                line.server.into_iter().for_each(|server| object.shown("server.address", server));
                object.millis("duration_ms", line.total);
                if !line.parked.is_zero() {
                    object.millis("parked_ms", line.parked);
                }
                line.upstream.into_iter().for_each(|upstream| object.millis("upstream_ms", upstream));
                object.number("http.request.body.bytes", line.bytes_in);
                object.number("http.response.body.bytes", line.bytes_out);
                object.number("attempts", u64::from(line.attempts));
                object.text("http.request.id", &request_id);
                object.word("trace.id", &trace_id);
                line.span.into_iter().for_each(|span| object.word("span.id", &hex(u128::from(span))[16..]));
                text.push(b'}');
            }
            LogFormat::Text => {
                // Writing to memory does not fail.
                let _ = write!(
                    text,
                    "{stamp} {} {} {:?} {} {}/{} {:.1}ms{}{}{}{}{} id={request_id:?} trace={trace_id}",
                    line.client,
                    line.method,
                    line.path,
                    line.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
                    line.rollout.as_deref().unwrap_or("-"),
                    side.unwrap_or("-"),
                    line.total.as_secs_f64() * 1e3,
                    reason.map(|reason| format!(" by={reason}")).unwrap_or_default(),
                    maintenance.map(|mode| format!(" maintenance={mode}")).unwrap_or_default(),
                    error.map(|error| format!(" error={error}")).unwrap_or_default(),
                    line.moved.map(|moved| format!(" moved={moved}")).unwrap_or_default(),
                    hash.map(|hash| format!(" user={hash}")).or(plain.map(|plain| format!(" user={plain:?}"))).unwrap_or_default(),
                );
            }
        }
        text.push(b'\n');
    }

    /// Of the same user the same as long as the secret is: SipHash-2-4 (Aumasson and Bernstein, 2012), which cannot be foreseen without its key.
    fn hash_of(&self, key: &[u8]) -> String {
        hex(u128::from(self.hash.hash(key))).split_off(16)
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

/// In 32 digits.
fn hex(number: u128) -> String {
    let mut digits = [0; 32];
    write_hex(number, &mut digits);
    String::from_utf8_lossy(&digits).into_owned()
}
