//! Who changes something, and by which way the change came.

/// Who did something, and through which door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The name of a token, a user, or of the part of Cutover that acted.
    pub name: String,
    /// The door.
    pub source: Via,
}

impl Actor {
    /// The guard itself.
    pub fn guard() -> Self {
        Self {
            name: "guard".to_owned(),
            source: Via::Guard,
        }
    }

    /// A time that was set beforehand and has come.
    pub fn timer() -> Self {
        Self {
            name: "timer".to_owned(),
            source: Via::Timer,
        }
    }

    /// Whoever edited the file.
    pub fn file() -> Self {
        Self {
            name: "file".to_owned(),
            source: Via::File,
        }
    }
}

/// The door through which a change came.
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
    /// Start-up and what was found there.
    Start,
    /// A time that was set beforehand.
    Timer,
}

impl Via {
    /// All doors.
    pub const ALL: [Self; 7] = [
        Self::File,
        Self::Cli,
        Self::Ui,
        Self::Api,
        Self::Guard,
        Self::Start,
        Self::Timer,
    ];

    /// The name in records.
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

    /// The door of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }
}
