//! Pingora's heads as the router sees them, and the router's edits on them.

use http::{HeaderName, HeaderValue, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::proxy::Session;

use crate::gateway::message::head::{Edits, HOP_BY_HOP, Head, Value, names_with};
use crate::upstream::Chosen;

pub(super) struct RequestHead<'a> {
    pub(super) head: &'a RequestHeader,
    /// The head as received. It is empty if there is none, as in HTTP/2, and if it was checked
    /// already.
    pub(super) raw: &'a [u8],
}

impl<'a> RequestHead<'a> {
    /// Creates the view of a request that was already admitted.
    pub(super) fn of(session: &'a Session) -> Self {
        Self {
            head: session.req_header(),
            raw: b"",
        }
    }
}

/// Estimates how many bytes an HTTP/2 head would have had as text.
fn size_of(head: &RequestHeader) -> usize {
    let target = head
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    target
        + head
            .headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum::<usize>()
}

impl Head for RequestHead<'_> {
    fn method(&self) -> &Method {
        &self.head.method
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.head.uri.query()
    }

    fn authority(&self) -> Option<&str> {
        self.head.uri.authority().map(http::uri::Authority::as_str)
    }

    fn host_value(&self) -> Option<Value<'_>> {
        match self.head.uri.authority() {
            Some(authority) => Some(Value::Text(authority.as_str().as_bytes())),
            None => self.head.headers.get(http::header::HOST).map(Value::Shared),
        }
    }

    fn requires_host(&self) -> bool {
        self.head.version >= Version::HTTP_11
    }

    fn target(&self) -> &[u8] {
        self.head.raw_path()
    }

    fn raw(&self) -> &[u8] {
        self.raw
    }

    fn size(&self) -> usize {
        if self.raw.is_empty() {
            size_of(self.head)
        } else {
            self.raw.len()
        }
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.head.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'b>(&'b self, name: &HeaderName, found: &mut dyn FnMut(&'b [u8])) {
        self.head
            .headers
            .get_all(name)
            .iter()
            .for_each(|value| found(value.as_bytes()));
    }

    fn fields<'b>(&'b self, found: &mut impl FnMut(&'b [u8], &'b [u8])) {
        self.head
            .headers
            .iter()
            .for_each(|(name, value)| found(name.as_str().as_bytes(), value.as_bytes()));
    }
}

/// Gives a request without a host the host of the server. HTTP/1.0 needs no host, but the protocol
/// spoken to backends does. If the target names a host, the engine uses that one.
pub(super) fn give_host(request: &mut RequestHeader, chosen: Option<&Chosen>) -> Result<()> {
    match chosen {
        Some(chosen)
            if !request.headers.contains_key(http::header::HOST)
                && matches!(request.raw_path(), [b'/', ..] | b"*")
                && request.uri.authority().is_none() =>
        {
            request.insert_header(http::header::HOST, chosen.server().host())
        }
        Some(_) | None => Ok(()),
    }
}

/// Removes the hop-by-hop fields of an answer (RFC 9110, section 7.6.1), including those that
/// `Connection` names. Fields that frame the message are kept. Pingora does this for requests
/// itself.
pub(super) fn drop_hops(response: &mut ResponseHeader) {
    let named = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect::<Vec<_>>()
    };
    let mut names: Vec<HeaderName> = response
        .headers
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(named)
        .collect();
    names.retain(|name| {
        *name != http::header::CONTENT_LENGTH && *name != http::header::TRANSFER_ENCODING
    });
    for name in HOP_BY_HOP.iter().chain(&names) {
        response.remove_header(name);
    }
}

/// The largest number of headers that the router sets.
pub(super) const OUR_HEADERS: usize = 9;

/// Edits pingora's heads. An edit fails only if a header name or value is invalid, and ours are
/// valid by type. The first failure is kept.
macro_rules! edits {
    ($edits:ident, $head:ty) => {
        pub(super) struct $edits<'a> {
            pub(super) head: &'a mut $head,
            pub(super) failed: Option<Box<Error>>,
        }

        impl Edits for $edits<'_> {
            fn set(&mut self, name: &'static HeaderName, value: Value<'_>) {
                if let Err(error) = self.head.insert_header(name.as_str(), value.to_header()) {
                    self.failed.get_or_insert(error);
                }
            }

            fn append(&mut self, name: &'static HeaderName, value: Value<'_>) {
                if let Err(error) = self.head.append_header(name.as_str(), value.to_header()) {
                    self.failed.get_or_insert(error);
                }
            }

            fn remove(&mut self, name: &HeaderName) {
                self.head.remove_header(name);
            }

            fn contains(&self, name: &HeaderName) -> bool {
                self.head.headers.contains_key(name)
            }

            fn remove_all(&mut self, prefix: &str) {
                names_with(&self.head.headers, prefix)
                    .iter()
                    .for_each(|name| drop(self.head.remove_header(name)));
            }
        }
    };
}

edits!(RequestEdits, RequestHeader);
edits!(ResponseEdits, ResponseHeader);
