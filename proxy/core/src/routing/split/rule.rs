//! The requests that a rollout applies to, and how it treats them.

use super::key::{Anonymous, Key, UserList};
use crate::routing::bucket::Salt;
use crate::side::PerSide;
use std::sync::Arc;

/// The part of a rollout that only a changed file changes.
#[derive(Clone, Debug)]
pub struct RolloutRule {
    /// The id of the rollout.
    pub id: Arc<str>,
    /// The index of the rollout in the recorder, which is fixed for the lifetime of the process.
    pub slot: usize,
    /// The requests that the rollout applies to.
    pub matches: Match,
    /// The salt of the rollout's hash.
    pub salt: Salt,
    /// The sources of the user key. The first source that is not empty is used.
    pub keys: Vec<Key>,
    /// The treatment of a request without a key.
    pub anonymous: Anonymous,
    /// The users who are on new regardless of their hash bucket, unless the rollout is rolled
    /// back.
    pub always_new: UserList,
    /// The users who are on legacy regardless of their hash bucket.
    pub always_legacy: UserList,
    /// The names of the backends of the two sides.
    pub backends: PerSide<Arc<str>>,
    /// Whether legacy answers a request that fails on new.
    pub failover: Failover,
    /// The path prefixes, in the form of [`Match::path`], below which a file that is missing on
    /// one side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
}

impl RolloutRule {
    /// Whether a file that is missing at this normalised path is fetched from the other side.
    pub fn falls_back(&self, path: &str) -> bool {
        self.fallback_on_404
            .iter()
            .any(|prefix| is_below(prefix, path))
    }
}

/// The requests that legacy answers when they fail on new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Failover {
    /// No requests.
    Off,
    /// Requests of which nothing was sent, because the connection could not be made.
    Connect,
    /// The requests of `Connect`, and requests that change nothing (GET, HEAD, OPTIONS) if the
    /// failure occurs before the response header or is a 5xx response.
    #[default]
    Safe,
}

impl Failover {
    /// Returns the name used in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connect => "connect",
            Self::Safe => "safe",
        }
    }
}

/// The requests that a rollout applies to. Each part is optional, and an absent part accepts
/// everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// A lower-case host without a port, or `*.example.org` for any name below it.
    pub host: Option<Box<str>>,
    /// A path prefix by whole segments, which begins with `/` and does not end with one: `/shop`
    /// matches `/shop` and `/shop/1`, but not `/shopping`.
    pub path: Option<Box<str>>,
    /// The methods in upper case. An empty list matches all methods.
    pub methods: Vec<Box<str>>,
}

impl Match {
    /// Whether the rollout applies to a request. `host` has no port and may end in the dot of a
    /// full name. `path` is normalised and has no query.
    pub fn accepts(&self, host: &str, path: &str, method: &str) -> bool {
        self.accepts_host(host)
            && self.accepts_path(path)
            && (self.methods.is_empty()
                || self.methods.iter().any(|accepted| &**accepted == method))
    }

    pub(super) fn accepts_host(&self, host: &str) -> bool {
        let host = without_root(host);
        match self.host.as_deref() {
            None => true,
            Some(wanted) => match wanted.strip_prefix('*') {
                None => wanted.eq_ignore_ascii_case(host),
                Some(suffix) => {
                    let Some(at) = host.len().checked_sub(suffix.len()) else {
                        return false;
                    };
                    at > 0 && host.as_bytes()[at..].eq_ignore_ascii_case(suffix.as_bytes())
                }
            },
        }
    }

    pub(super) fn accepts_path(&self, path: &str) -> bool {
        match self.path.as_deref() {
            None | Some("" | "/") => true,
            Some(prefix) => is_below(prefix, path),
        }
    }
}

/// Returns a host without the dot that a full name may end in: `shop.example.` becomes
/// `shop.example`.
pub(crate) fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether a normalised path equals the prefix or is below it, by whole segments.
pub(super) fn is_below(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
