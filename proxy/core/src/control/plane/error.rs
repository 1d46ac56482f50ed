//! The reasons for which a command is refused.

use std::fmt;
use std::sync::Arc;

/// The reason for which a command was refused. A refused command has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// No rollout has this id.
    UnknownRollout {
        /// The requested id.
        id: String,
        /// The ids that exist.
        known: Vec<Arc<str>>,
    },
    /// Legacy does not answer, so a rollback would give all users errors.
    LegacyDown {
        /// The id of the rollout.
        id: String,
    },
    /// Legacy must be probed first to find out whether it can take users. The shell probes it and
    /// repeats the command.
    MustAsk {
        /// The id of the rollout.
        id: Arc<str>,
    },
    /// The rollout is not rolled back, so it cannot be re-armed.
    NotRolledBack {
        /// The id of the rollout.
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
                 no user was moved"
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
