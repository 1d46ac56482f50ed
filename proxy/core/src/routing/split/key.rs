//! The identification of the user of a request.

use crate::routing::bucket::Bucket;
use std::collections::HashSet;

/// The place in a request where the user key may be found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A request header, by its lower-case name.
    Header(Box<str>),
    /// A cookie, by its name.
    Cookie(Box<str>),
    /// A claim of the bearer token, read without verifying its signature: for bucketing only.
    Jwt(Box<str>),
    /// A query parameter, by its name.
    Query(Box<str>),
    /// The N-th path segment, counted from 1.
    Path(usize),
    /// The client's address.
    Ip,
}

impl KeySource {
    /// Returns the source as it is written in the file, such as `header:x-user-id`.
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

/// One step in decoding the value of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyStep {
    /// Percent-decodes the value. A plus sign is kept, and anything that is not an escape is kept
    /// unchanged.
    Decode,
    /// Converts ASCII letters to lower case.
    Lower,
    /// Removes ASCII white space at both ends.
    Trim,
    /// Decodes base64 of either alphabet, with or without padding. Anything else counts as a
    /// missing key.
    Base64,
}

impl KeyStep {
    /// All steps.
    pub const ALL: [Self; 4] = [Self::Decode, Self::Lower, Self::Trim, Self::Base64];

    /// Returns the step as it is written in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Lower => "lower",
            Self::Trim => "trim",
            Self::Base64 => "base64",
        }
    }
}

/// The place where a user key may be found, and the steps that decode its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place in the request.
    pub source: KeySource,
    /// The decoding steps, in order.
    pub steps: Vec<KeyStep>,
}

impl Key {
    /// Returns the key as it is written in the file, such as `cookie:uid|decode|lower`.
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

/// The treatment of a request without a user key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Anonymous {
    /// The request goes to legacy.
    #[default]
    Legacy,
    /// The user gets an id in a cookie and is bucketed by it, including for this request.
    Cookie,
    /// The request is decided by chance, independently of other requests.
    Random,
}

/// User keys listed by the operator. The map exists in memory only and hashes with fixed seeds: its
/// order and output are never visible.
#[derive(Clone, Debug)]
pub struct UserList(HashSet<Box<[u8]>, ahash::RandomState>);

impl UserList {
    /// Creates a list of these keys.
    pub fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut list = HashSet::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4));
        list.extend(keys.into_iter().map(|key| key.as_ref().into()));
        Self(list)
    }

    /// Whether the key is listed.
    pub fn contains(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains(key)
    }

    /// Returns the number of listed keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list is empty.
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

/// The user of a request.
#[derive(Clone, Copy, Debug)]
pub enum UserKey<'a> {
    /// A key that the request carries, or one created for it just now.
    Known(&'a [u8]),
    /// There is no key, and chance decides: a bucket drawn by the shell.
    Random(Bucket),
    /// There is no key.
    None,
}
