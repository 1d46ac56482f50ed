//! How a request names its user.

use crate::routing::bucket::Bucket;
use std::collections::HashSet;

/// A place where the user key may be found in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A request header, lower case.
    Header(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
    /// A claim of the bearer token, read without verifying its signature: for bucketing only.
    Jwt(Box<str>),
    /// A query parameter.
    Query(Box<str>),
    /// The N-th path segment, counted from 1.
    Path(usize),
    /// The client's address.
    Ip,
}

impl KeySource {
    /// The source as the file writes it, such as `header:x-user-id`.
    pub fn text(&self) -> String {
        match self {
            Self::Header(name) => format!("header:{name}"),
            Self::Cookie(name) => format!("cookie:{name}"),
            Self::Jwt(claim) => format!("jwt:{claim}"),
            Self::Query(name) => format!("query:{name}"),
            Self::Path(segment) => format!("path:{segment}"),
            Self::Ip => "ip".to_owned(),
        }
    }
}

/// One step in reading what a source has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyStep {
    /// Percent-decodes. A plus sign stays one, and what is no escape stays as it is.
    Decode,
    /// Writes ASCII letters in lower case.
    Lower,
    /// Removes ASCII white space at both ends.
    Trim,
    /// Decodes base64 of either alphabet, with or without padding. Anything else counts as no key.
    Base64,
}

impl KeyStep {
    /// Every step.
    pub const ALL: [Self; 4] = [Self::Decode, Self::Lower, Self::Trim, Self::Base64];

    /// The step as the file writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Lower => "lower",
            Self::Trim => "trim",
            Self::Base64 => "base64",
        }
    }
}

/// Where a user key may be found, and how what stands there is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place.
    pub source: KeySource,
    /// The steps of reading, in order.
    pub steps: Vec<KeyStep>,
}

impl Key {
    /// The key as the file writes it, such as `cookie:uid|decode|lower`.
    pub fn text(&self) -> String {
        self.steps
            .iter()
            .fold(self.source.text(), |text, step| text + "|" + step.name())
    }
}

impl From<KeySource> for Key {
    fn from(source: KeySource) -> Self {
        Self {
            source,
            steps: Vec::new(),
        }
    }
}

/// What happens to a request without a user key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Anonymous {
    /// Goes to legacy.
    #[default]
    Legacy,
    /// Gets an id in a cookie and is bucketed by it, this very request included.
    Cookie,
    /// Is decided by chance, request by request.
    Random,
}

/// User keys named by the operator. The map hashes in memory only, with fixed seeds: its order and
/// output are never seen.
#[derive(Clone, Debug)]
pub struct UserList(HashSet<Box<[u8]>, ahash::RandomState>);

impl UserList {
    /// A list of these keys.
    pub fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut list = HashSet::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4));
        list.extend(keys.into_iter().map(|key| key.as_ref().into()));
        Self(list)
    }

    /// Whether the key is named.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains(key)
    }

    /// How many keys are named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for UserList {
    fn default() -> Self {
        Self::new(std::iter::empty::<&[u8]>())
    }
}

impl PartialEq for UserList {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum UserKey<'a> {
    /// A key that the request carries, or one minted for it just now.
    Known(&'a [u8]),
    /// No key, and chance decides: a bucket drawn by the shell.
    Random(Bucket),
    /// No key.
    None,
}
