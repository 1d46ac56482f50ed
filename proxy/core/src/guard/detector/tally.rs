//! The counts of both sides that a detector folds in.

/// The number of trials on both sides, and the number of bad ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// The number of trials on new.
    pub n: u64,
    /// The number of bad trials on new, as far as they count.
    pub x: u64,
    /// The number of trials on legacy.
    pub m: u64,
    /// The number of bad trials on legacy, as far as they count.
    pub y: u64,
    /// The number of all bad trials on new.
    pub all_x: u64,
    /// The number of all bad trials on legacy.
    pub all_y: u64,
    /// The number of requests to new, where a trial is not a request.
    pub all_n: u64,
    /// The number of requests to legacy, where a trial is not a request.
    pub all_m: u64,
    /// The number of failed connection attempts to new, which no client can cause.
    pub connects: u64,
}

impl Tally {
    /// Returns the difference between an earlier tally and this one.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            n: self.n.saturating_sub(earlier.n),
            x: self.x.saturating_sub(earlier.x),
            m: self.m.saturating_sub(earlier.m),
            y: self.y.saturating_sub(earlier.y),
            all_x: self.all_x.saturating_sub(earlier.all_x),
            all_y: self.all_y.saturating_sub(earlier.all_y),
            all_n: self.all_n.saturating_sub(earlier.all_n),
            all_m: self.all_m.saturating_sub(earlier.all_m),
            connects: self.connects.saturating_sub(earlier.connects),
        }
    }

    /// Returns the sum of both tallies.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            n: self.n + other.n,
            x: self.x + other.x,
            m: self.m + other.m,
            y: self.y + other.y,
            all_x: self.all_x + other.all_x,
            all_y: self.all_y + other.all_y,
            all_n: self.all_n + other.all_n,
            all_m: self.all_m + other.all_m,
            connects: self.connects + other.connects,
        }
    }

    /// The number of counts in a tally.
    pub(super) const COUNT: usize = 9;

    pub(super) fn numbers(&self) -> [f64; Self::COUNT] {
        [
            self.n,
            self.x,
            self.m,
            self.y,
            self.all_x,
            self.all_y,
            self.all_n,
            self.all_m,
            self.connects,
        ]
        .map(|count| count as f64)
    }

    pub(super) fn of_numbers(numbers: &[f64]) -> Self {
        let count = |at: usize| numbers.get(at).map_or(0, |number| *number as u64);
        Self {
            n: count(0),
            x: count(1),
            m: count(2),
            y: count(3),
            all_x: count(4),
            all_y: count(5),
            all_n: count(6),
            all_m: count(7),
            connects: count(8),
        }
    }

    /// Returns the share of new among the trials of both sides, `0..=1`.
    pub fn share_of_new(&self) -> f64 {
        if self.n + self.m == 0 {
            0.0
        } else {
            self.n as f64 / (self.n + self.m) as f64
        }
    }
}
