//! What the router wants to know of the header fields of a request, found in one pass over them.
//!
//! Looking names up one by one costs a hash of the name each time, and most are not there. One pass
//! that tells names apart by their length first costs a tenth of a dozen lookups, so every question
//! that is asked of each request is answered here. What only some rollouts ask (a cookie, a claim)
//! is looked up where it is needed.

use http::HeaderName;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

use crate::gateway::message::forward;
use crate::gateway::message::head::Head;

/// What stands in the header of one request.
#[derive(Debug, Default)]
pub struct Fields<'a> {
    /// The first `Host`.
    pub host: Option<&'a [u8]>,
    /// How many there are.
    pub hosts: u8,
    /// The first `Content-Length`.
    pub length: Option<&'a [u8]>,
    /// Whether the body is framed in more ways than one, or in one that cannot be read: at most
    /// one length, in digits, and at most one coding, `chunked`, are good. Every other coding
    /// would be dropped by the engine while the body stays coded.
    pub is_badly_framed: bool,
    /// Whether a name becomes one of ours, or one that carries a user key, in a backend that takes
    /// underscores for hyphens. CGI, WSGI and their kin do.
    pub has_lookalike: bool,
    /// Whether a name is there that is ours alone.
    pub has_forged: bool,
    /// The first `Connection`.
    pub connection: Option<&'a [u8]>,
    /// Whether there is more than one `Connection`, or another name that is for the next hop only.
    pub has_hop_by_hop: bool,
    /// Whether there is a `Transfer-Encoding`.
    pub is_coded: bool,
    /// Whether the connection may become, or the answer be, something that lasts: an upgrade, a
    /// stream of events, gRPC.
    pub may_last: bool,
    /// The first `X-Cutover-Override`.
    pub override_to: Option<&'a [u8]>,
    /// The first `X-Request-Id`.
    pub request_id: Option<&'a [u8]>,
    /// The `traceparent`, if there is exactly one.
    pub traceparent: Option<&'a [u8]>,
    /// Whether there is a `tracestate`.
    pub has_tracestate: bool,
    traceparents: u8,
    lengths: u8,
    codings: u8,
}

impl<'a> Fields<'a> {
    /// Reads the fields of a head. `key_headers` are those that carry a user key in any rollout.
    pub fn of(head: &'a impl Head, key_headers: &[HeaderName]) -> Self {
        let mut fields = Self::default();
        head.fields(&mut |name, value| fields.take(name, value, key_headers));
        fields.is_badly_framed |= fields.lengths > 1 || fields.codings > 1;
        fields.traceparent = fields.traceparent.filter(|_| fields.traceparents == 1);
        fields
    }

    fn take(&mut self, name: &'a [u8], value: &'a [u8], key_headers: &[HeaderName]) {
        match name {
            // Nearly every request has these, and nothing hangs on them here.
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
    fn a_body_is_framed_in_one_way() {
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
    fn an_underscore_does_not_make_another_name() {
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
    fn the_first_of_each_counts_and_two_contexts_are_none() {
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
    fn what_lasts_shows_in_the_head() {
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
