//! Why a configuration cannot be used.

use cutover_config::Problems;

/// Why there is no configuration.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The main file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// It says something that cannot be used.
    #[error("{0}")]
    Problems(Problems),
}

impl SourceError {
    /// The whole message, with colours for a terminal if wanted.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Unreadable { .. } => format!("error: {self}\n"),
            Self::Problems(problems) => problems.render(color),
        }
    }
}
