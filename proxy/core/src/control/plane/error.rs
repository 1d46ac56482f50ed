//! Why a command is refused.

use std::fmt;
use std::sync::Arc;

/// Why a command was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// No rollout has this id.
    UnknownRollout {
        /// The id asked for.
        id: String,
        /// The ids there are.
        known: Vec<Arc<str>>,
    },
    /// Legacy does not answer, so a rollback would give everybody errors.
    LegacyDown {
        /// The rollout.
        id: String,
    },
    /// Legacy has to be asked first whether it can take users. The shell asks, and says the command
    /// again.
    MustAsk {
        /// The rollout.
        id: Arc<str>,
    },
    /// Only a rolled-back rollout can be re-armed.
    NotRolledBack {
        /// The rollout.
        id: String,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownRollout { id, known } => write!(
                f,
                "no rollout has the id `{id}`; there are: {}",
                known.join(", ")
            ),
            Self::LegacyDown { id } => write!(
                f,
                "legacy of `{id}` does not answer, so a rollback would give errors to everybody; \
                 nobody was moved"
            ),
            Self::MustAsk { id } => write!(
                f,
                "legacy of `{id}` has not said yet whether it can take users"
            ),
            Self::NotRolledBack { id } => write!(
                f,
                "`{id}` is not rolled back, so there is nothing to re-arm"
            ),
        }
    }
}

impl std::error::Error for CommandError {}
