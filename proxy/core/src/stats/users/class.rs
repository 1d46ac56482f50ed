//! The ways in which a request can be bad, and the classes in which a request counts.

use super::LIMITS;

/// A kind of bad event that counts once per user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The request failed because of the backend.
    Failure,
    /// The backend answered with a 4xx.
    ClientError,
    /// The client gave up.
    Abort,
    /// The user receives only redirects:
    /// [`REDIRECTS_IN_A_ROW`](crate::stats::users::REDIRECTS_IN_A_ROW) of them in a row.
    Redirects,
    /// The request was slower than the latency limit with this index, below [`LIMITS`].
    Slow(u8),
}

impl Class {
    /// The number of classes.
    pub const COUNT: usize = 4 + LIMITS;

    /// Returns the index of this class in arrays of counts.
    pub const fn index(self) -> usize {
        match self {
            Self::Failure => 0,
            Self::ClientError => 1,
            Self::Abort => 2,
            Self::Redirects => 3,
            Self::Slow(limit) => 4 + limit as usize,
        }
    }
}

/// The classes and blocks in which one ended request counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The classes in which the request counts, by [`Class::index`].
    pub(super) classes: u16,
    /// The classes in which the request is bad, whether it counts or not.
    pub(super) bad: u16,
    /// The number of running blocks in which this is the user's first bad event, the shortest
    /// block first, with two bits for each class.
    pub(super) affected: u32,
    /// The number of running blocks in which this is the user's first answer, the shortest block
    /// first.
    pub(super) first: u8,
    pub(super) is_appearance: bool,
}

impl Counted {
    /// Whether the user had not been seen before in this tick.
    pub const fn is_appearance(self) -> bool {
        self.is_appearance
    }

    /// Returns the number of running blocks in which this is the user's first answer, the shortest
    /// block first.
    pub const fn first_in(self) -> usize {
        self.first as usize
    }

    /// Returns the number of running blocks in which this is the user's first bad event of a class,
    /// the shortest block first.
    pub const fn affected_in(self, class: usize) -> usize {
        (self.affected >> (2 * class) & 3) as usize
    }

    pub(super) fn add(&mut self, class: Class) {
        self.classes |= 1 << class.index();
    }

    pub(super) fn is_bad(&mut self, class: Class, affected: usize) {
        self.bad |= 1 << class.index();
        self.affected |= (affected as u32) << (2 * class.index());
    }

    /// Whether the request counts in no class and no block.
    pub const fn is_empty(self) -> bool {
        self.classes == 0 && !self.is_appearance && self.bad == 0
    }

    /// Whether the request counts in any class of bad events.
    pub const fn is_bad_anywhere(self) -> bool {
        self.classes != 0
    }

    /// Whether any part of it concerns users as trials.
    pub const fn is_of_users(self) -> bool {
        self.first != 0 || self.affected != 0
    }

    /// Whether the request counts in this class.
    pub const fn has(self, class: Class) -> bool {
        self.classes & (1 << class.index()) != 0
    }

    /// Returns the indexes of the classes in which the request counts.
    pub fn indexes(self) -> impl Iterator<Item = usize> {
        ones(self.classes)
    }

    /// Returns the indexes of the classes in which the request is bad, whether it counts or not.
    pub fn bad_indexes(self) -> impl Iterator<Item = usize> {
        ones(self.bad)
    }
}

pub(super) fn ones(mut left: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(index)
    })
}
