//! The complete last accepted configuration: the text with its includes inserted, and the lists and
//! certificates of authorities that it names.
//!
//! Lists are kept beside the text in a directory, each under the SHA-256 of its content, so that an
//! unchanged list is not written again. Comments at the end of the text map each path to its
//! content. The text is written last and by a rename, so a crash leaves the old set or the new one.
//! A text without such comments, as earlier versions wrote it, is complete without them.
//!
//! *Not here:* certificates and keys of `[listen]`. A private key is not copied to another place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::state::{regular_file, status_file};

/// The name of the text in the state directory.
pub const NAME: &str = "last-good.toml";
/// The name of the directory with the files that the text names.
const FOLDER: &str = "last-good.d";
/// The beginning of a comment that names a kept file. The SHA-256 of the file, a space and the path
/// follow.
const MARK: &str = "#kept ";

/// Paths as the file writes them, with the SHA-256 of the content of each.
pub type Kept = BTreeMap<String, [u8; 32]>;

/// All parts of an accepted configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastGood {
    /// The text with its includes inserted.
    pub text: String,
    /// The other files that the text names, by path.
    pub files: BTreeMap<String, String>,
    /// The files whose content is already kept and has not changed.
    pub unchanged: Kept,
}

impl LastGood {
    /// Makes the configuration durable in a state directory.
    ///
    /// # Errors
    /// Fails on any error of the file system. The configuration kept before is complete then.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        let folder = directory.join(FOLDER);
        let mut text = self.text.clone();
        let mut named = BTreeSet::new();
        let digests = self
            .files
            .iter()
            .map(|(path, content)| (path, Sha256::digest(content).into()));
        let unchanged = self.unchanged.iter().map(|(path, digest)| (path, *digest));
        let mut kept: Kept = digests
            .chain(unchanged)
            .map(|(path, digest)| (path.clone(), digest))
            .collect();
        // A comment is one line, so a file with such a path is not kept but read in its original
        // place.
        kept.retain(|path, _| !path.contains(['\n', '\r']));
        if !kept.is_empty() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)?;
            text.push_str(
                "\n# The files that this configuration names, as they were: contents are in \
                 last-good.d.\n",
            );
        }
        for (path, digest) in &kept {
            let name = hex(digest);
            let file = folder.join(&name);
            let is_there = |content: &String| {
                fs::metadata(&file).is_ok_and(|there| there.len() == content.len() as u64)
            };
            if let Some(content) = self.files.get(path).filter(|content| !is_there(content)) {
                status_file::replace_private(&file, content.as_bytes())?;
            }
            text.push_str(&format!("{MARK}{name} {path}\n"));
            named.insert(name);
        }
        status_file::replace(&directory.join(NAME), text.as_bytes())?;
        // A file that is no longer named only takes space; the next save tries again to remove it.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !named.contains(&*entry.file_name().to_string_lossy()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// Reads the text that was kept in a state directory, and the list of files that belong to it.
///
/// # Errors
/// Fails on any error of the file system.
pub fn read(directory: &Path) -> io::Result<(String, Kept)> {
    let text = regular_file::read_to_string(&directory.join(NAME))?;
    let kept = text
        .lines()
        .filter_map(|line| line.strip_prefix(MARK)?.split_once(' '))
        .filter_map(|(digest, path)| Some((path.to_owned(), unhex(digest)?)));
    let kept = kept.collect();
    Ok((text, kept))
}

/// Returns the content of a kept file, if it exists and is whole.
pub fn content(directory: &Path, digest: &[u8; 32]) -> Option<String> {
    let content = regular_file::read_to_string(&path_of(directory, digest)).ok()?;
    (<[u8; 32]>::from(Sha256::digest(&content)) == *digest).then_some(content)
}

/// Returns the path of a kept file.
pub fn path_of(directory: &Path, digest: &[u8; 32]) -> PathBuf {
    directory.join(FOLDER).join(hex(digest))
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, files: &[(&str, &str)]) -> LastGood {
        let files = files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), (*content).to_owned()))
            .collect();
        LastGood {
            text: text.to_owned(),
            files,
            unchanged: Kept::new(),
        }
    }

    #[test]
    fn a_kept_configuration_is_read_back_with_every_file_it_names() {
        let directory = tempfile::tempdir().expect("a directory");
        of(
            "a = 1\n",
            &[("beta users.txt", "ana\n"), ("../ca.pem", "pem\n")],
        )
        .save(directory.path())
        .expect("saved");
        let (text, kept) = read(directory.path()).expect("read");
        assert!(text.starts_with("a = 1\n"));
        let content_of = |path: &str| content(directory.path(), &kept[path]);
        assert_eq!(
            (
                content_of("beta users.txt").as_deref(),
                content_of("../ca.pem").as_deref()
            ),
            (Some("ana\n"), Some("pem\n"))
        );
        let mut next = of("a = 2\n", &[("../ca.pem", "other\n")]);
        next.unchanged
            .insert("beta users.txt".to_owned(), kept["beta users.txt"]);
        next.save(directory.path()).expect("saved");
        let (_, now) = read(directory.path()).expect("read");
        assert_eq!(
            content(directory.path(), &now["beta users.txt"]).as_deref(),
            Some("ana\n")
        );
        assert_eq!(
            content(directory.path(), &kept["../ca.pem"]),
            None,
            "what nothing names is removed"
        );
    }

    #[test]
    fn a_damaged_kept_file_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        of("a = 1\n", &[("users.txt", "ana\nbob\n")])
            .save(directory.path())
            .expect("saved");
        let (_, kept) = read(directory.path()).expect("read");
        fs::write(path_of(directory.path(), &kept["users.txt"]), "ana\n").expect("written");
        assert_eq!(content(directory.path(), &kept["users.txt"]), None);
    }

    #[test]
    fn a_text_of_an_earlier_version_names_no_kept_files() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(
            directory.path().join(NAME),
            "percent = 5 # kept\n#kept x y\n",
        )
        .expect("written");
        assert_eq!(read(directory.path()).expect("read").1, Kept::new());
    }
}
