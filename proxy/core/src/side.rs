//! The two sides of a cutover, and arrays indexed by them. No maps: there are exactly two.

use std::fmt;
use std::ops::{Index, IndexMut};

/// One of the two backends: the one that users are moved from, or the one that they are moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The stack that users are moved from.
    Legacy,
    /// The stack that users are moved to.
    New,
}

impl Side {
    /// Both sides, in the order in which tables show them.
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::New];

    /// Returns the name used in files, headers, metrics and sentences.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::New => "new",
        }
    }

    /// Returns the opposite side.
    pub const fn other(self) -> Self {
        match self {
            Self::Legacy => Self::New,
            Self::New => Self::Legacy,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerSide<T> {
    /// The value of the legacy side.
    pub legacy: T,
    /// The value of the new side.
    pub new: T,
}

impl<T> PerSide<T> {
    /// Builds both values with one function.
    pub fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
        Self {
            legacy: make(Side::Legacy),
            new: make(Side::New),
        }
    }

    /// Converts both values.
    pub fn map<U>(&self, mut convert: impl FnMut(&T) -> U) -> PerSide<U> {
        PerSide {
            legacy: convert(&self.legacy),
            new: convert(&self.new),
        }
    }
}

impl<T> Index<Side> for PerSide<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Legacy => &self.legacy,
            Side::New => &self.new,
        }
    }
}

impl<T> IndexMut<Side> for PerSide<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Legacy => &mut self.legacy,
            Side::New => &mut self.new,
        }
    }
}
