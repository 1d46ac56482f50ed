//! Files of a configuration, read from the disk.

use crate::state::last_good::{self};
use cutover_config::Loader;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The files that one reading touched.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Touched {
    pub(super) files: BTreeSet<String>,
    /// The files that have the syntax of the main file.
    pub(super) includes: BTreeSet<String>,
    pub(super) patterns: BTreeSet<String>,
}

/// A reader of the files beside the main one, which remembers the files it read.
pub(super) struct Files {
    pub(super) base: PathBuf,
    /// The state directory and the digest of the content that replaces the file, by path.
    pub(super) held: BTreeMap<String, (PathBuf, [u8; 32])>,
    pub(super) touched: RefCell<Touched>,
    pub(super) texts: RefCell<BTreeMap<String, String>>,
}

impl Loader for Files {
    fn read(&self, path: &str) -> Result<String, String> {
        self.touched.borrow_mut().files.insert(path.to_owned());
        if let Some((state, digest)) = self.held.get(path) {
            // The current content is never used, because it may be incomplete.
            return last_good::content(state, digest).ok_or_else(|| {
                "it is being written, and what was read before cannot be read from the state \
                 directory"
                    .to_owned()
            });
        }
        let text = read_regular(&self.base.join(path))?;
        self.texts
            .borrow_mut()
            .insert(path.to_owned(), text.clone());
        Ok(text)
    }

    fn include(&self, path: &str) -> Result<String, String> {
        self.touched.borrow_mut().includes.insert(path.to_owned());
        self.read(path)
    }

    /// Lists the files that match a pattern. Patterns have `*` in their last part only, so they
    /// cover one directory, with names by prefix and suffix.
    fn glob(&self, pattern: &str) -> Result<Vec<String>, String> {
        self.touched
            .borrow_mut()
            .patterns
            .insert(pattern.to_owned());
        let (directory, name) = pattern
            .rsplit_once('/')
            .map_or(("", pattern), |(directory, name)| (directory, name));
        if directory.contains('*') {
            return Err("`*` may stand in the file name only".to_owned());
        }
        let Some((prefix, suffix)) = name.split_once('*') else {
            return Ok(vec![pattern.to_owned()]);
        };
        if suffix.contains('*') {
            return Err("only one `*` may stand in a pattern".to_owned());
        }
        let entries = match fs::read_dir(self.base.join(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.to_string()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(|error| error.to_string())?
                .file_name()
                .to_string_lossy()
                .into_owned();
            let hidden = name.starts_with('.');
            if !hidden
                && name.len() >= prefix.len() + suffix.len()
                && name.starts_with(prefix)
                && name.ends_with(suffix)
            {
                found.push(if directory.is_empty() {
                    name
                } else {
                    format!("{directory}/{name}")
                });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// Reads a regular file of bounded size as UTF-8. A pipe or device is refused before it is opened,
/// because it could block forever.
pub(super) fn read_regular(path: &Path) -> Result<String, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("is a directory, not a file".to_owned());
    }
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {} MiB", MAX_FILE / 1024 / 1024));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!(
            "is not UTF-8 text: byte {} is out of place",
            error.utf8_error().valid_up_to()
        )
    })
}

/// Returns the mount points in a `mountinfo`: the fifth field of each line, with its octal escapes
/// decoded.
pub(super) fn mount_points(mountinfo: &str) -> BTreeSet<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescaped(field))))
        .collect()
}

pub(super) fn unescaped(field: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), field.as_bytes());
    while let [first, others @ ..] = rest {
        let escaped = others
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|octal| u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() {
            &others[3..]
        } else {
            others
        };
    }
    bytes
}

/// The largest file that is read, in bytes. `cutover_config` has the limit of each kind of file,
/// with a message that names the place; this limit keeps a wrong file out of memory.
pub(super) const MAX_FILE: u64 = 64 * 1024 * 1024;
