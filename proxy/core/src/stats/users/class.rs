//! In which ways a request can be bad, and in what it counts.

use super::LIMITS;

/// A kind of bad event that counts once per user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The request failed by the backend's fault.
    Failure,
    /// A 4xx answer.
    ClientError,
    /// The client gave up.
    Abort,
    /// The user gets nothing but redirects: [`REDIRECTS_IN_A_ROW`] of them.
    Redirects,
    /// Slower than the latency limit with this index, below [`LIMITS`].
    Slow(u8),
}

impl Class {
    /// How many classes there are.
    pub const COUNT: usize = 4 + LIMITS;

    /// The place of this class in arrays of counts.
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

/// In what one ended request counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The classes in which it counts, by [`Class::index`].
    pub(super) classes: u16,
    /// The classes in which it is bad, whether it counts or not.
    pub(super) bad: u16,
    /// In how many of the running blocks it is the user's first bad event, the shortest block
    /// first; two bits for each class.
    pub(super) affected: u32,
    /// In how many of the running blocks it is the user's first answer, the shortest block first.
    pub(super) first: u8,
    pub(super) is_appearance: bool,
}

impl Counted {
    /// Whether the user had not been seen in this tick before.
    pub const fn is_appearance(self) -> bool {
        self.is_appearance
    }

    /// In how many of the running blocks this is the user's first answer, the shortest block first.
    pub const fn first_in(self) -> usize {
        self.first as usize
    }

    /// In how many of the running blocks this is the user's first bad event of a class, the
    /// shortest block first.
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

    /// Whether it counts in nothing.
    pub const fn is_empty(self) -> bool {
        self.classes == 0 && !self.is_appearance && self.bad == 0
    }

    /// Whether it counts in any class of bad events.
    pub const fn is_bad_anywhere(self) -> bool {
        self.classes != 0
    }

    /// Whether anything of it concerns users as trials.
    pub const fn is_of_users(self) -> bool {
        self.first != 0 || self.affected != 0
    }

    /// Whether it counts in this class.
    pub const fn has(self, class: Class) -> bool {
        self.classes & (1 << class.index()) != 0
    }

    /// The indexes of the classes in which it counts.
    pub fn indexes(self) -> impl Iterator<Item = usize> {
        ones(self.classes)
    }

    /// The indexes of the classes in which it is bad, whether it counts or not.
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
