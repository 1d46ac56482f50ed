//! What maintenance did to a request.

/// What maintenance did to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// Answered with 503 at once.
    Refused,
    /// Parked.
    Held,
    /// Let go after it was parked, to be decided.
    Released,
    /// Answered with 503 after it was parked for as long as may be.
    Expired,
    /// Its client hung up while it was parked.
    Left,
}

impl Halted {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All of them, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Refused,
        Self::Held,
        Self::Released,
        Self::Expired,
        Self::Left,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Held => "held",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Left => "left",
        }
    }

    /// The place in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}
