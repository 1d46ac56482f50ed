//! The author of a change and the way by which the change arrived.

/// Who made a change, and by which way it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The name of a token, of a user, or of the part of Cutover that acted.
    pub name: String,
    /// The way by which the change arrived.
    pub source: Via,
}

impl Actor {
    /// Returns the actor for the guard itself.
    pub fn guard() -> Self {
        Self {
            name: "guard".to_owned(),
            source: Via::Guard,
        }
    }

    /// Returns the actor for a timer that has expired.
    pub fn timer() -> Self {
        Self {
            name: "timer".to_owned(),
            source: Via::Timer,
        }
    }

    /// Returns the actor for the person who edited the file.
    pub fn file() -> Self {
        Self {
            name: "file".to_owned(),
            source: Via::File,
        }
    }
}

/// The way by which a change arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The watched file.
    File,
    /// The command line.
    Cli,
    /// The admin page.
    Ui,
    /// The admin API.
    Api,
    /// The guard.
    Guard,
    /// Start-up, and the state that was found then.
    Start,
    /// A timer that has expired.
    Timer,
}

impl Via {
    /// All variants.
    pub const ALL: [Self; 7] = [
        Self::File,
        Self::Cli,
        Self::Ui,
        Self::Api,
        Self::Guard,
        Self::Start,
        Self::Timer,
    ];

    /// Returns the name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cli => "cli",
            Self::Ui => "ui",
            Self::Api => "api",
            Self::Guard => "guard",
            Self::Start => "start",
            Self::Timer => "timer",
        }
    }

    /// Returns the variant with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }
}
