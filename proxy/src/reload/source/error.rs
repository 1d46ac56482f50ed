//! The reasons why a configuration cannot be used.

use cutover_config::Problems;

/// Why there is no usable configuration.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The main file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The path of the main file.
        path: String,
        /// The error of the file system.
        reason: String,
    },
    /// The configuration contains something that cannot be used.
    #[error("{0}")]
    Problems(Problems),
}

impl SourceError {
    /// Renders the whole message, with colours for a terminal if `color` is true.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Unreadable { .. } => format!("error: {self}\n"),
            Self::Problems(problems) => problems.render(color),
        }
    }
}
