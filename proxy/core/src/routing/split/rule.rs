//! Which requests a rollout takes, and what it asks of them.

use super::key::{Anonymous, Key, UserList};
use crate::routing::bucket::Salt;
use crate::side::PerSide;
use std::sync::Arc;

/// The part of a rollout that only a changed file changes.
#[derive(Clone, Debug)]
pub struct RolloutRule {
    /// The id of the rollout.
    pub id: Arc<str>,
    /// Its place in the recorder, the same for as long as the process lives.
    pub slot: usize,
    /// Which requests it takes.
    pub matches: Match,
    /// The salt of its hash.
    pub salt: Salt,
    /// Where the user key comes from; the first source that is not empty wins.
    pub keys: Vec<Key>,
    /// What happens to a request without a key.
    pub anonymous: Anonymous,
    /// Users on new whatever their bucket, unless rolled back.
    pub always_new: UserList,
    /// Users on legacy whatever their bucket.
    pub always_legacy: UserList,
    /// Names of the backends of the two sides.
    pub backends: PerSide<Arc<str>>,
    /// Whether a request that fails on new is answered by legacy.
    pub failover: Failover,
    /// Path prefixes, in the form of [`Match::path`], below which a file that is missing on one
    /// side is fetched from the other.
    pub fallback_on_404: Vec<Box<str>>,
}

impl RolloutRule {
    /// Whether a file missing at this normalised path is fetched from the other side.
    pub fn falls_back(&self, path: &str) -> bool {
        self.fallback_on_404
            .iter()
            .any(|prefix| is_below(prefix, path))
    }
}

/// Which requests that fail on new are answered by legacy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Failover {
    /// None.
    Off,
    /// Those of which nothing was sent: the connection could not be made.
    Connect,
    /// These, and those that change nothing (GET, HEAD, OPTIONS) if the failure shows before the
    /// response header or is one (5xx).
    #[default]
    Safe,
}

impl Failover {
    /// The name the file uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connect => "connect",
            Self::Safe => "safe",
        }
    }
}

/// Which requests a rollout takes. Each part is optional; an absent one accepts everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Lower-case host without port, or `*.example.org` for any name below it.
    pub host: Option<Box<str>>,
    /// Path prefix by whole segments, beginning with `/` and without a closing one: `/shop` takes
    /// `/shop` and `/shop/1`, not `/shopping`.
    pub path: Option<Box<str>>,
    /// Upper-case methods; empty takes all.
    pub methods: Vec<Box<str>>,
}

impl Match {
    /// Whether a request is taken. `host` has no port and may end in the dot of a full name, `path`
    /// is normalised and has no query.
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

/// A host without the dot that a full name may end in: `shop.example.` is `shop.example`.
pub(crate) fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether a normalised path is the prefix or below it, by whole segments.
pub(super) fn is_below(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
