//! What maintenance leaves of the routing of a request: it passes, waits or is refused.

use std::time::Duration;

use crate::time::Mono;

/// What is kept out. Ordered: the later, the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Maintenance {
    /// Nothing.
    #[default]
    Off,
    /// Whatever may change something: every method but GET, HEAD and OPTIONS.
    ReadOnly,
    /// Everything, for so long that clients need not notice: requests wait for the end.
    Hold,
    /// Everything.
    Full,
}

impl Maintenance {
    /// All modes, the mildest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::ReadOnly, Self::Hold, Self::Full];

    /// The name in commands, `status`, metrics and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::ReadOnly => "read-only",
            Self::Hold => "hold",
            Self::Full => "full",
        }
    }

    /// The mode of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// What happens to a request under this mode; `reads` is whether its method changes nothing.
    pub const fn treats(self, reads: bool) -> Treatment {
        match self {
            Self::Off => Treatment::Pass,
            Self::ReadOnly if reads => Treatment::Pass,
            Self::ReadOnly | Self::Full => Treatment::Refuse,
            Self::Hold => Treatment::Hold,
        }
    }

    /// What it means for clients, as the end of a sentence.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Off => "requests pass",
            Self::ReadOnly => "methods other than GET, HEAD and OPTIONS get 503",
            Self::Hold => "requests wait",
            Self::Full => "every request gets 503",
        }
    }
}

/// What maintenance does to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is decided as always.
    Pass,
    /// It waits for the end of the mode.
    Hold,
    /// It gets an answer that says to come back later.
    Refuse,
}

/// What the data path needs to know of maintenance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restriction {
    /// The mode in force.
    pub mode: Maintenance,
    /// When it ends by itself, as far as known.
    pub until: Option<Mono>,
}

impl Restriction {
    /// The stricter of the two; of equals the one that ends later.
    pub fn stricter(self, other: Self) -> Self {
        // An open end is the latest.
        let rank = |restriction: &Self| {
            (
                restriction.mode,
                restriction.until.is_none(),
                restriction.until,
            )
        };
        if rank(&other) > rank(&self) {
            other
        } else {
            self
        }
    }

    /// How long it still lasts, as far as known.
    pub fn remaining(&self, now: Mono) -> Option<Duration> {
        self.until.map(|until| until.since(now))
    }
}
