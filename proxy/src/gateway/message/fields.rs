//! The header fields of a request that the router needs, found in one pass.
//!
//! Each lookup of a single name costs a hash of the name, and most names are absent. One pass that
//! distinguishes names by their length first costs a tenth of a dozen lookups. Therefore this pass
//! reads every field that matters for all requests. Fields that matter only for some rollouts (a
//! cookie, a claim) are looked up where they are needed.

use http::HeaderName;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

use crate::gateway::message::forward;
use crate::gateway::message::head::Head;

/// The relevant header fields of one request.
#[derive(Debug, Default)]
pub struct Fields<'a> {
    /// The value of the first `Host`.
    pub host: Option<&'a [u8]>,
    /// The number of `Host` fields.
    pub hosts: u8,
    /// The value of the first `Content-Length`.
    pub length: Option<&'a [u8]>,
    /// Whether the framing of the body is ambiguous or malformed. At most one length, in digits,
    /// and at most one coding, `chunked`, are valid. The engine would drop every other coding
    /// while the body remains coded.
    pub is_badly_framed: bool,
    /// Whether a backend that treats underscores as hyphens would confuse a name with one of ours,
    /// or with one that carries a user key. CGI, WSGI and similar interfaces do.
    pub has_lookalike: bool,
    /// Whether a name is present that is reserved for the proxy.
    pub has_forged: bool,
    /// The value of the first `Connection`.
    pub connection: Option<&'a [u8]>,
    /// Whether there is more than one `Connection`, or another hop-by-hop name.
    pub has_hop_by_hop: bool,
    /// Whether there is a `Transfer-Encoding`.
    pub is_coded: bool,
    /// Whether the exchange may be long-lived: an upgrade, an event stream, or gRPC.
    pub may_last: bool,
    /// The value of the first `X-Cutover-Override`.
    pub override_to: Option<&'a [u8]>,
    /// The value of the first `X-Request-Id`.
    pub request_id: Option<&'a [u8]>,
    /// The value of `traceparent`, if there is exactly one.
    pub traceparent: Option<&'a [u8]>,
    /// Whether there is a `tracestate`.
    pub has_tracestate: bool,
    traceparents: u8,
    lengths: u8,
    codings: u8,
}

impl<'a> Fields<'a> {
    /// Reads the fields of a head. `key_headers` are the headers that carry a user key in any
    /// rollout.
    pub fn of(head: &'a impl Head, key_headers: &[HeaderName]) -> Self {
        let mut fields = Self::default();
        head.fields(&mut |name, value| fields.take(name, value, key_headers));
        fields.is_badly_framed |= fields.lengths > 1 || fields.codings > 1;
        fields.traceparent = fields.traceparent.filter(|_| fields.traceparents == 1);
        fields
    }

    fn take(&mut self, name: &'a [u8], value: &'a [u8], key_headers: &[HeaderName]) {
        match name {
            // Nearly every request has these, and nothing here depends on them.
            b"accept-encoding" | b"accept-language" | b"user-agent" | b"cookie" | b"referer"
            | b"authorization" | b"cache-control" | b"origin" => {}
            b"host" => {
                self.hosts = self.hosts.saturating_add(1);
                self.host = self.host.or(Some(value));
            }
            b"connection" => {
                self.has_hop_by_hop |= self.connection.is_some();
                self.connection = self.connection.or(Some(value));
            }
            b"te"
            | b"trailer"
            | b"expect"
            | b"keep-alive"
            | b"proxy-connection"
            | b"proxy-authorization"
            | b"proxy-authenticate"
            | b"http2-settings" => self.has_hop_by_hop = true,
            b"content-length" => {
                self.lengths = self.lengths.saturating_add(1);
                self.is_badly_framed |= value.is_empty() || !value.iter().all(u8::is_ascii_digit);
                self.length = self.length.or(Some(value));
            }
            b"transfer-encoding" => {
                self.codings = self.codings.saturating_add(1);
                self.is_coded = true;
                self.is_badly_framed |= !value.eq_ignore_ascii_case(b"chunked");
            }
            b"accept" => self.may_last |= value == b"text/event-stream",
            b"content-type" => self.may_last |= value.starts_with(b"application/grpc"),
            b"upgrade" => self.may_last = true,
            b"x-request-id" => self.request_id = self.request_id.or(Some(value)),
            b"traceparent" => {
                self.traceparents = self.traceparents.saturating_add(1);
                self.traceparent = Some(value);
            }
            b"tracestate" => self.has_tracestate = true,
            _ => {
                self.has_forged |= name.starts_with(forward::PREFIX.as_bytes());
                if name == b"x-cutover-override" {
                    self.override_to = self.override_to.or(Some(value));
                }
                self.has_lookalike |= is_lookalike(name, key_headers);
            }
        }
    }
}

fn is_lookalike(name: &[u8], key_headers: &[HeaderName]) -> bool {
    if !name.contains(&b'_') {
        return false;
    }
    let same = |known: &HeaderName| {
        let known = known.as_str().as_bytes();
        known != name
            && known.len() == name.len()
            && known.iter().zip(name).all(|(&known, &byte)| {
                known == byte || (matches!(known, b'-' | b'_') && matches!(byte, b'-' | b'_'))
            })
    };
    forward::OURS
        .into_iter()
        .chain([&CONTENT_LENGTH, &TRANSFER_ENCODING])
        .chain(key_headers)
        .any(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::TestHead;

    fn head(headers: &[(&str, &str)]) -> TestHead {
        headers
            .iter()
            .fold(TestHead::get("/"), |head, (name, value)| {
                head.with(name, value)
            })
    }

    #[test]
    fn a_body_has_exactly_one_framing() {
        let is_bad = |headers: &[(&str, &str)]| Fields::of(&head(headers), &[]).is_badly_framed;
        for good in [
            &[][..],
            &[("content-length", "5")],
            &[("transfer-encoding", "Chunked")],
        ] {
            assert!(!is_bad(good), "{good:?}");
        }
        for bad in [
            &[("content-length", "5"), ("content-length", "5")][..],
            &[("content-length", "5, 5")],
            &[("content-length", "+5")],
            &[("content-length", "")],
            &[("transfer-encoding", "gzip, chunked")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
        ] {
            assert!(is_bad(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_underscore_does_not_create_another_name() {
        let keys = [
            HeaderName::from_static("x-user-id"),
            HeaderName::from_static("tenant_id"),
        ];
        let is_lookalike = |name: &str| Fields::of(&head(&[(name, "1")]), &keys).has_lookalike;
        for name in [
            "x_user_id",
            "x-user_id",
            "tenant-id",
            "x_forwarded_for",
            "x_cutover_backend",
            "x_request-id",
            "content_length",
        ] {
            assert_eq!(is_lookalike(name), name.contains('_'), "{name}");
        }
        for name in [
            "x-user-id",
            "tenant_id",
            "some_header",
            "x_user_idx",
            "_",
            "x-forwarded-for",
        ] {
            assert!(!is_lookalike(name), "{name}");
        }
    }

    #[test]
    fn the_first_value_counts_and_two_traceparents_count_as_none() {
        let head = head(&[
            ("host", "a"),
            ("host", "b"),
            ("x-request-id", "1"),
            ("x-request-id", "2"),
            ("x-cutover-override", "new x"),
            ("x-cutover-override", "legacy x"),
            ("traceparent", "t"),
            ("traceparent", "t"),
            ("tracestate", "s"),
        ]);
        let fields = Fields::of(&head, &[]);
        assert_eq!(
            (
                fields.host,
                fields.request_id,
                fields.override_to,
                fields.traceparent
            ),
            (Some(&b"a"[..]), Some(&b"1"[..]), Some(&b"new x"[..]), None)
        );
        assert!(fields.has_tracestate && fields.has_forged && fields.connection.is_none());
    }

    #[test]
    fn long_lived_exchanges_are_recognized_by_their_head() {
        for (name, value, lasts) in [
            ("upgrade", "websocket", true),
            ("accept", "text/event-stream", true),
            ("content-type", "application/grpc+proto", true),
            ("accept", "*/*", false),
            ("content-type", "application/json", false),
        ] {
            assert_eq!(
                Fields::of(&head(&[(name, value)]), &[]).may_last,
                lasts,
                "{name}: {value}"
            );
        }
    }
}
