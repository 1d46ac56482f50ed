//! A loader over a folder of this crate, and a few variables.
#![allow(dead_code, reason = "every test file uses its own part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use cutover_config::{Loader, Problems, Settings};

/// Returns a folder below the crate.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A loader that reads from one folder.
pub struct Folder(pub PathBuf);

impl Loader for Folder {
    fn read(&self, path: &str) -> Result<String, String> {
        // The words are fixed, because those of the system differ between systems.
        fs::read_to_string(self.0.join(path)).map_err(|_| "no such file".to_owned())
    }

    fn glob(&self, pattern: &str) -> Result<Vec<String>, String> {
        let (folder, file) = pattern.rsplit_once('/').unwrap_or(("", pattern));
        let (before, after) = file.split_once('*').ok_or("only * is known here")?;
        let names = fs::read_dir(self.0.join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut found: Vec<String> = names
            .filter(|name| name.starts_with(before) && name.ends_with(after))
            .map(|name| {
                if folder.is_empty() {
                    name
                } else {
                    format!("{folder}/{name}")
                }
            })
            .collect();
        found.sort();
        Ok(found)
    }

    fn env(&self, name: &str) -> Option<String> {
        match name {
            "SERVER" => Some("10.0.9.9:3000".to_owned()),
            "TOKEN_SHA256" => Some("ab".repeat(32)),
            "PERCENT" => Some("5".to_owned()),
            _ => None,
        }
    }
}

/// Parses a text with the files of `tests`.
pub fn parse(text: &str) -> Result<Settings, Problems> {
    cutover_config::parse("cutover.toml", text, &Folder(folder("tests/files")))
}

/// Two backends, to be put before rollouts.
pub const BACKENDS: &str = "[backend.legacy]\nservers = \
                            [\"127.0.0.1:3001\"]\n[backend.new]\nservers = [\"127.0.0.1:3002\"]\n";

/// Returns a rollout that is valid together with [`BACKENDS`], with `more` added to it.
pub fn with(more: &str) -> String {
    format!("{BACKENDS}[[rollout]]\nid = \"a\"\npercent = 5\nkey = [\"cookie:uid\"]\n{more}\n")
}
