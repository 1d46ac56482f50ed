//! The position of a value in the file.

use crate::text::{self};
use toml::de::DeValue;

/// The path of a key in the file, as it appears at the beginning of messages: `listen.http[1]: `,
/// `rollout "checkout": guard.window: `.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    pub(super) context: String,
    pub(super) keys: String,
    /// The path as a table heading, without ids and numbers.
    pub(super) heading: String,
}

impl Path {
    pub(super) fn child(&self, name: &str) -> Self {
        let join = |parent: &str| {
            if parent.is_empty() {
                text::key(name)
            } else {
                format!("{parent}.{}", text::key(name))
            }
        };
        Self {
            context: self.context.clone(),
            keys: join(&self.keys),
            heading: join(&self.heading),
        }
    }

    pub(super) fn item(&self, index: usize, item: &DeValue<'_>) -> Self {
        if self.heading == "rollout" {
            let id = item.get("id").and_then(|id| id.get_ref().as_str());
            return Self {
                context: rollout_context(id, index),
                keys: String::new(),
                heading: self.heading.clone(),
            };
        }
        Self {
            keys: format!("{}[{}]", self.keys, index + 1),
            ..self.clone()
        }
    }

    /// Returns the last key, as a hint repeats it.
    pub(super) fn key(&self) -> &str {
        let key = self.keys.rsplit('.').next().unwrap_or_default();
        key.split('[').next().unwrap_or_default()
    }

    pub(super) fn heading(&self) -> &str {
        &self.heading
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.context)?;
        if self.keys.is_empty() {
            Ok(())
        } else {
            write!(f, "{}: ", self.keys)
        }
    }
}

/// Returns the beginning of messages about a rollout: its id, or otherwise its number in the file,
/// counted from 1.
pub(crate) fn rollout_context(id: Option<&str>, index: usize) -> String {
    match id {
        Some(id) => format!("rollout {}: ", text::quote(id)),
        None => format!("rollout[{}]: ", index + 1),
    }
}
