//! The effect of maintenance on the routing of a request: it passes, waits or is refused.

use std::time::Duration;

use crate::time::Mono;

/// The mode of maintenance. Modes are ordered: a later one is stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Maintenance {
    /// No requests are kept out.
    #[default]
    Off,
    /// Requests that may change something are kept out: every method except GET, HEAD and OPTIONS.
    ReadOnly,
    /// All requests are held until the mode ends. It is meant to be so short that clients need not
    /// notice.
    Hold,
    /// All requests are refused.
    Full,
}

impl Maintenance {
    /// All modes, the mildest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::ReadOnly, Self::Hold, Self::Full];

    /// Returns the name used in commands, `status`, metrics and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::ReadOnly => "read-only",
            Self::Hold => "hold",
            Self::Full => "full",
        }
    }

    /// Returns the mode of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Returns the treatment of a request under this mode. `reads` is whether its method changes
    /// nothing.
    pub const fn treats(self, reads: bool) -> Treatment {
        match self {
            Self::Off => Treatment::Pass,
            Self::ReadOnly if reads => Treatment::Pass,
            Self::ReadOnly | Self::Full => Treatment::Refuse,
            Self::Hold => Treatment::Hold,
        }
    }

    /// Returns what the mode means for clients, as the end of a sentence.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Off => "requests pass",
            Self::ReadOnly => "methods other than GET, HEAD and OPTIONS get 503",
            Self::Hold => "requests wait",
            Self::Full => "every request gets 503",
        }
    }
}

/// The effect of maintenance on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The request is decided as usual.
    Pass,
    /// The request waits for the end of the mode.
    Hold,
    /// The request receives an answer that tells the client to retry later.
    Refuse,
}

/// The part of maintenance that the data path needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restriction {
    /// The mode in force.
    pub mode: Maintenance,
    /// The time at which the mode ends by itself. `None` if it is unknown.
    pub until: Option<Mono>,
}

impl Restriction {
    /// Returns the stricter of the two. If they are equal, returns the one that ends later.
    pub fn stricter(self, other: Self) -> Self {
        // A missing end counts as the latest.
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

    /// Returns how long the mode still lasts. `None` if it is unknown.
    pub fn remaining(&self, now: Mono) -> Option<Duration> {
        self.until.map(|until| until.since(now))
    }
}
