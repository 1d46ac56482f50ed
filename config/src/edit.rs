//! Changing one number in a file that belongs to people.

use std::fmt;

use cutover_core::Percent;

/// Why a file was not edited.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EditError {
    /// No rollout of this id is in this file.
    NotFound,
    /// The file is not TOML; what is wrong, with line and column.
    Syntax(String),
    /// The rollout follows a plan: its percentage is not the operator's to set.
    HasPlan,
    /// The rollout has no `percent` to change.
    NoPercent,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such rollout in this file"),
            Self::Syntax(what) => write!(f, "the file cannot be edited: {what}"),
            Self::HasPlan => f.write_str("the rollout follows a plan"),
            Self::NoPercent => f.write_str("the rollout has no `percent` line to change"),
        }
    }
}

impl std::error::Error for EditError {}

/// Stub.
///
/// # Errors
/// Stub.
pub fn set_percent(_text: &str, _rollout: &str, _percent: Percent) -> Result<String, EditError> {
    Err(EditError::NotFound)
}
