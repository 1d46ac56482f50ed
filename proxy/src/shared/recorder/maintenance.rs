//! The treatment of a request by maintenance.

/// The treatment of a request by maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// The request was answered with 503 at once.
    Refused,
    /// The request was held.
    Held,
    /// The request was released after it was held, to be decided.
    Released,
    /// The request was answered with 503 after it was held for as long as allowed.
    Expired,
    /// The client disconnected while the request was held.
    Left,
}

impl Halted {
    /// The number of variants.
    pub const COUNT: usize = 5;
    /// All variants, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Refused,
        Self::Held,
        Self::Released,
        Self::Expired,
        Self::Left,
    ];

    /// Returns the name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Held => "held",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Left => "left",
        }
    }

    /// Returns the position in arrays of counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}
