//! The counts that a detector folds in.

/// Counts of both sides: how many were tried, and how many of them were bad.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tried on new.
    pub n: u64,
    /// Bad on new, as far as they count.
    pub x: u64,
    /// Tried on legacy.
    pub m: u64,
    /// Bad on legacy, as far as they count.
    pub y: u64,
    /// Bad on new, all of them.
    pub all_x: u64,
    /// Bad on legacy, all of them.
    pub all_y: u64,
    /// Requests to new, where what is tried is not requests.
    pub all_n: u64,
    /// Requests to legacy.
    pub all_m: u64,
    /// Connections to new that could not be made: what no client can cause.
    pub connects: u64,
}

impl Tally {
    /// What came between an earlier tally and this one.
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

    /// Both together.
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

    /// How many counts there are.
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

    /// New's part of what was tried on both sides, `0..=1`.
    pub fn share_of_new(&self) -> f64 {
        if self.n + self.m == 0 {
            0.0
        } else {
            self.n as f64 / (self.n + self.m) as f64
        }
    }
}
