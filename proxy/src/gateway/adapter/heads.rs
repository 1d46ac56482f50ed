//! Pingora's heads as the gate sees them, and its edits on them.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::http::{HeaderNameVariant, RequestHeader, ResponseHeader};
use pingora::prelude::*;
use pingora::proxy::Session;

use crate::gateway::head::{Edits, Head};

pub(super) struct RequestHead<'a> {
    pub(super) head: &'a RequestHeader,
    pub(super) size: usize,
}

impl<'a> RequestHead<'a> {
    /// Of a request that was let in already, so that its size is of no interest.
    pub(super) fn of(session: &'a Session) -> Self {
        Self { head: session.req_header(), size: 0 }
    }
}

/// What a head of HTTP/2 would have had as bytes, about.
pub(super) fn size_of(head: &RequestHeader) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    target + head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
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

    fn host(&self) -> Option<&str> {
        let of_target = self.head.uri.authority().map(http::uri::Authority::as_str);
        of_target.or_else(|| self.head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()))
    }

    fn host_value(&self) -> Option<HeaderValue> {
        match self.head.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => self.head.headers.get(http::header::HOST).cloned(),
        }
    }

    fn requires_host(&self) -> bool {
        self.head.version >= Version::HTTP_11
    }

    fn size(&self) -> usize {
        self.size
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        self.head.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'b>(&'b self, name: &HeaderName, found: &mut dyn FnMut(&'b [u8])) {
        self.head.headers.get_all(name).iter().for_each(|value| found(value.as_bytes()));
    }
}

/// How many headers the gate sets at most.
pub(super) const OUR_HEADERS: usize = 9;

/// Names that pingora writes in this case when it keeps no record of what the client wrote.
const CANONICAL: [&[u8]; 12] = [
    b"Host",
    b"Connection",
    b"Content-Length",
    b"Content-Type",
    b"Content-Encoding",
    b"Transfer-Encoding",
    b"Cache-Control",
    b"Date",
    b"Accept-Ranges",
    b"Age",
    b"Server",
    b"Set-Cookie",
];

/// Whether nothing is lost without pingora's record of the client's own spelling: names in lower case, as behind anything that speaks HTTP/2, and a target that its URI gives back byte for
/// byte. Edits then need one map instead of two, which is most of what they cost. Any other spelling is kept, for backends that depend on it.
pub(super) fn is_plain(head: &RequestHeader) -> bool {
    let mut plain = head.uri.authority().is_none() && head.uri.path_and_query().is_some_and(|target| target.as_str().as_bytes() == head.raw_path());
    if plain && head.has_case() {
        let looked_at = head.map(|name, _| {
            if let HeaderNameVariant::Case(name) = name {
                let name = name.as_slice();
                plain &= !name.iter().any(u8::is_ascii_uppercase) || CANONICAL.contains(&name);
            }
            Ok(())
        });
        plain &= looked_at.is_ok();
    }
    plain
}

impl Edits for HeaderMap {
    fn set(&mut self, name: &'static HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }

    fn append(&mut self, name: &'static HeaderName, value: HeaderValue) {
        Self::append(self, name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }
}

/// Edits on pingora's heads. They fail only on header names and values that are not valid, which ours are by type; the first failure is kept.
macro_rules! edits {
    ($edits:ident, $head:ty) => {
        pub(super) struct $edits<'a> {
            pub(super) head: &'a mut $head,
            pub(super) failed: Option<Box<Error>>,
        }

        impl Edits for $edits<'_> {
            fn set(&mut self, name: &'static HeaderName, value: HeaderValue) {
                if let Err(error) = self.head.insert_header(name.as_str(), value) {
                    self.failed.get_or_insert(error);
                }
            }

            fn append(&mut self, name: &'static HeaderName, value: HeaderValue) {
                if let Err(error) = self.head.append_header(name.as_str(), value) {
                    self.failed.get_or_insert(error);
                }
            }

            fn remove(&mut self, name: &HeaderName) {
                self.head.remove_header(name);
            }

            fn contains(&self, name: &HeaderName) -> bool {
                self.head.headers.contains_key(name)
            }
        }
    };
}

edits!(RequestEdits, RequestHeader);
edits!(ResponseEdits, ResponseHeader);
