//! The files of a configuration: reading them, detecting whether they changed, and editing a
//! percentage in them.
//!
//! A [`ConfigSource`] knows the main file and everything its last reading touched (includes, lists,
//! patterns), so that a poll can detect "nothing changed" by content alone. Times of modification
//! are never used for that, because they are unreliable on network file systems and in containers.
//!
//! A list that is being written is held: the configuration is read with the last accepted content,
//! which `last_good` keeps. A change beside the list therefore need not wait for it.

mod error;
mod files;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cutover_config::{Loader, Settings};
use cutover_core::Percent;
use sha2::{Digest, Sha256};

use crate::shared::reload_handle::SetError;
use crate::shared::settling::Fingerprint;
use crate::state::last_good::{self, Kept, LastGood};
use crate::state::status_file;
pub use error::SourceError;
use files::{Files, Touched, mount_points, read_regular};

/// How many times a configuration is read if each reading draws in other files. A remaining
/// difference shows as a change at the next check.
const READINGS: usize = 3;

/// The main file and the files that its last reading drew in.
#[derive(Debug)]
pub struct ConfigSource {
    path: PathBuf,
    touched: Touched,
    /// The fingerprint just before the last reading. It is taken before and not after, so that a
    /// file saved during the reading still counts as changed.
    read_at: [u8; 32],
    /// The fingerprints just before the last reading, by path; the main file is under the empty
    /// path.
    sights: BTreeMap<String, Fingerprint>,
    /// The texts of the last reading, by path, without held files; the main file is not included.
    texts: BTreeMap<String, String>,
    /// The fingerprints of what is in force, by path; the main file is under the empty path.
    accepted: BTreeMap<String, Fingerprint>,
    /// The content that replaces each held file.
    held: Kept,
    /// The state directory, once it is known. It stores the content of held files.
    state: Option<PathBuf>,
}

/// The fingerprints that a check found, by path; the main file is under the empty path.
pub type Fingerprints = BTreeMap<String, Fingerprint>;

impl ConfigSource {
    /// Creates a source for this file. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            touched: Touched::default(),
            read_at: [0; 32],
            sights: Fingerprints::new(),
            texts: BTreeMap::new(),
            accepted: Fingerprints::new(),
            held: Kept::new(),
            state: None,
        }
    }

    /// Returns another reader of the same file, with the same held files.
    pub fn beside(&self) -> Self {
        Self {
            held: self.held.clone(),
            state: self.state.clone(),
            ..Self::new(&self.path)
        }
    }

    /// Sets the state directory, from which held content is read.
    pub fn keep_in(&mut self, state: &Path) {
        self.state = Some(state.to_owned());
    }

    /// Reads the saved content of these files from now on, until other files are held.
    pub fn hold(&mut self, held: Kept) {
        self.held = held;
    }

    /// Returns the held files, which are not read as they are now.
    pub fn held(&self) -> &Kept {
        &self.held
    }

    /// Returns the fingerprints of what is in force, by path.
    pub fn accepted(&self) -> &Fingerprints {
        &self.accepted
    }

    /// Whether the main file as it was last read is in force.
    pub fn is_accepted(&self) -> bool {
        self.accepted.contains_key("")
    }

    /// Returns the fingerprint of what is in force.
    pub fn accepted_fingerprint(&self) -> [u8; 32] {
        self.fingerprint_of(&self.accepted, &Kept::new())
    }

    /// Whether a cut of this file can be detected, because the main file and includes have a
    /// syntax.
    pub fn has_syntax(&self, path: &str) -> bool {
        path.is_empty() || self.touched.includes.contains(path)
    }

    /// Returns the content that replaces these files while they are held. Files that were never in
    /// force, or whose content is not kept, are omitted.
    pub fn holdable<'a>(&self, paths: impl Iterator<Item = &'a String>) -> Kept {
        let is_kept = |digest: &[u8; 32]| {
            self.state
                .as_ref()
                .is_some_and(|state| last_good::path_of(state, digest).is_file())
        };
        paths
            .filter_map(|path| Some((path.clone(), self.accepted.get(path)?.content)))
            .filter(|(_, digest)| is_kept(digest))
            .collect()
    }

    /// Marks the last reading as in force, and returns what is to be kept of it.
    pub fn accept(&mut self, main: &str) -> LastGood {
        let text = self.self_contained(main);
        let mut files = std::mem::take(&mut self.texts);
        let sights = std::mem::take(&mut self.sights);
        for (path, sight) in sights {
            let read = if path.is_empty() {
                Some(main)
            } else {
                files.get(&path).map(String::as_str)
            };
            // A change written between the check and the reading is found at the next check.
            if read.is_some_and(|read| Sha256::digest(read)[..] == sight.content) {
                self.accepted.insert(path, sight);
            }
        }
        let Touched {
            files: touched,
            includes,
            ..
        } = &self.touched;
        self.accepted
            .retain(|path, _| path.is_empty() || touched.contains(path));
        files.retain(|path, _| !includes.contains(path));
        let unchanged = self
            .held
            .iter()
            .filter(|(path, _)| touched.contains(*path) && !includes.contains(*path))
            .map(|(path, digest)| (path.clone(), *digest));
        LastGood {
            text,
            files,
            unchanged: unchanged.collect(),
        }
    }

    /// Returns the path of the main file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and parses everything.
    ///
    /// # Errors
    /// Fails when the main file cannot be read, or when anything in it or drawn in by it cannot be
    /// used.
    pub fn load(&mut self) -> Result<(Settings, String), SourceError> {
        // The files that a file draws in are known only once it is read. It is then read once more,
        // so that the fingerprint covers all of them.
        for _ in 0..READINGS {
            self.sights = self.look();
            self.read_at = self.fingerprint_of(&self.sights, &Kept::new());
            let drawn_in = self.touched.clone();
            let loaded = self.load_once();
            if self.touched == drawn_in {
                return loaded;
            }
        }
        self.load_once()
    }

    /// Returns the fingerprint of what the last [`ConfigSource::load`] read, including held files.
    pub fn fingerprint_read(&self) -> [u8; 32] {
        self.fingerprint_of(&self.sights, &self.held)
    }

    /// Whether the last [`ConfigSource::load`] read what a check has seen. A list may change
    /// between the two, and what was read then has not settled. A file that the check did not know
    /// counts as seen.
    pub fn has_read(&self, seen: &Fingerprints, main: &str) -> bool {
        let is_main_seen = seen
            .get("")
            .is_some_and(|sight| Sha256::digest(main)[..] == sight.content);
        is_main_seen
            && self.texts.iter().all(|(path, text)| {
                seen.get(path)
                    .is_none_or(|sight| Sha256::digest(text)[..] == sight.content)
            })
    }

    /// Returns the fingerprints just before the last [`ConfigSource::load`] that are not accepted.
    pub fn sights(&self) -> &Fingerprints {
        &self.sights
    }

    /// Whether anything differs from what the last [`ConfigSource::load`] found.
    pub fn has_changed(&self) -> bool {
        self.fingerprint() != self.read_at
    }

    fn load_once(&mut self) -> Result<(Settings, String), SourceError> {
        let name = self.path.display().to_string();
        let text = read_regular(&self.path).map_err(|reason| SourceError::Unreadable {
            path: name.clone(),
            reason,
        })?;
        let parsed = self.parse(&name, &text);
        if parsed.is_err() {
            self.texts.clear();
        }
        Ok((parsed?, text))
    }

    /// Parses a text as if it were the main file.
    ///
    /// # Errors
    /// Fails when anything in it or drawn in by it cannot be used.
    pub fn parse(&mut self, name: &str, text: &str) -> Result<Settings, SourceError> {
        let files = self.files();
        let parsed = cutover_config::parse(name, text, &files);
        self.touched = files.touched.into_inner();
        self.texts = files.texts.into_inner();
        parsed.map_err(SourceError::Problems)
    }

    /// Returns the current fingerprints of everything that the last reading touched. Held files are
    /// also checked in their original place.
    pub fn look(&self) -> Fingerprints {
        let base = self.base();
        let sight = |path: &Path| {
            let read = read_regular(path);
            Fingerprint::of(
                path,
                read.as_ref().map(String::as_bytes).map_err(String::as_str),
            )
        };
        let files = self
            .touched
            .files
            .iter()
            .map(|file| (file.clone(), sight(&base.join(file))));
        files.chain([(String::new(), sight(&self.path))]).collect()
    }

    /// Returns a hash of the current content of everything the last reading touched. An unreadable
    /// file counts as such.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint_of(&self.look(), &Kept::new())
    }

    /// Returns the hash for a completed check, with what patterns find now and with the content
    /// that replaces held files.
    pub fn fingerprint_of(&self, sights: &Fingerprints, held: &Kept) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |what: &str, content: &[u8]| {
            for part in [what.as_bytes(), content] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        };
        for (path, sight) in sights {
            add(path, held.get(path).unwrap_or(&sight.content));
        }
        let files = self.files();
        for pattern in &self.touched.patterns {
            add(
                pattern,
                files
                    .glob(pattern)
                    .map_or_else(|reason| format!("-{reason}"), |found| found.join("\n"))
                    .as_bytes(),
            );
        }
        hash.finalize().into()
    }

    fn files(&self) -> Files {
        let held = self
            .state
            .iter()
            .flat_map(|state| {
                self.held
                    .iter()
                    .map(|(path, digest)| (path.clone(), (state.clone(), *digest)))
            })
            .collect();
        Files {
            base: self.base(),
            held,
            touched: RefCell::default(),
            texts: RefCell::default(),
        }
    }

    /// Returns the files of the last reading, including the main file, that are mount points of
    /// their own. These are single files bound into a container. A mount keeps the file it was made
    /// of, so a file that is renamed into its place outside is never visible here.
    pub fn mounted_alone(&self) -> Vec<PathBuf> {
        let mounts = mount_points(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let base = self.base();
        let files = self
            .touched
            .files
            .iter()
            .map(|file| base.join(file))
            .chain([self.path.clone()]);
        files
            .filter(|file| fs::canonicalize(file).is_ok_and(|file| mounts.contains(&file)))
            .collect()
    }

    /// Returns the directories in which a change may appear. These contain every file touched and,
    /// for links, their targets.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let base = self.base();
        let files = self
            .touched
            .files
            .iter()
            .chain(&self.touched.patterns)
            .map(|file| base.join(file))
            .chain([self.path.clone()]);
        let with_targets =
            files.flat_map(|file| fs::canonicalize(&file).ok().into_iter().chain([file]));
        with_targets
            .filter_map(|file| {
                file.parent().map(|parent| {
                    if parent.as_os_str().is_empty() {
                        PathBuf::from(".")
                    } else {
                        parent.to_owned()
                    }
                })
            })
            .filter(|directory| directory.is_dir())
            .collect()
    }

    /// Writes a new percentage to the file that contains the rollout, keeps everything else, and
    /// returns the settings that it then contains. For a link, the target is changed.
    ///
    /// # Errors
    /// Fails when the file is not usable as it is or with the new percentage, or cannot be written.
    /// The file is unchanged then.
    pub fn set_percent(
        &mut self,
        rollout: &str,
        percent: Percent,
        dry_run: bool,
    ) -> Result<(Settings, String), SetError> {
        let (settings, main) = self
            .load()
            .map_err(|error| SetError::Broken(error.to_string()))?;
        let Some(file) = settings.rollout_files.get(rollout) else {
            let known = settings
                .rollouts
                .iter()
                .map(|rollout| &*rollout.id)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(SetError::Unknown {
                id: rollout.to_owned(),
                known,
            });
        };
        let main_name = self.path.display().to_string();
        let in_main = *file == main_name;
        let path = if in_main {
            self.path.clone()
        } else {
            self.base().join(file)
        };
        let before = if in_main {
            main.clone()
        } else {
            read_regular(&path).map_err(|reason| {
                let error = SourceError::Unreadable {
                    path: file.clone(),
                    reason,
                };
                SetError::Broken(error.to_string())
            })?
        };
        let after =
            cutover_config::set_percent(&before, rollout, percent).map_err(SetError::Edit)?;
        if in_main {
            self.parse(&main_name, &after)
                .map_err(|error| SetError::Rejected(error.to_string()))?;
        }
        if dry_run {
            return Ok((settings, main));
        }
        let target = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        status_file::replace(&target, after.as_bytes()).map_err(|error| SetError::Unwritable {
            path: path.display().to_string(),
            error,
        })?;
        self.load()
            .map_err(|error| SetError::Rejected(error.to_string()))
    }

    /// Returns the main text with its includes inserted, so that it needs no other files.
    pub fn self_contained(&self, main: &str) -> String {
        let Ok(mut document) = main.parse::<toml_edit::DocumentMut>() else {
            return main.to_owned();
        };
        if document.remove("include").is_none() {
            return main.to_owned();
        }
        let files = self.files();
        let included = self.touched.includes.iter().filter_map(|file| {
            self.texts
                .get(file)
                .cloned()
                .or_else(|| files.read(file).ok())
        });
        // An included file contains nothing but `[[rollout]]` blocks, so it may simply follow.
        std::iter::once(document.to_string())
            .chain(included)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Returns the directory of the main file, to which relative paths refer.
    pub fn base(&self) -> PathBuf {
        self.path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKENDS: &str = "[backend.legacy]\nservers = [\"127.0.0.1:1\"]\n[backend.new]\nservers \
                            = [\"127.0.0.1:2\"]\n";

    fn rollout(id: &str, percent: &str) -> String {
        format!(
            "[[rollout]]\nid = \"{id}\"\nmatch = {{ path = \"/{id}\" }}\npercent = {percent} # \
             keep me\nkey = [\"header:x-user-id\"]\n"
        )
    }

    #[test]
    fn a_fingerprint_changes_with_every_file_drawn_in() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("rollouts")).expect("a directory");
        fs::write(
            at("cutover.toml"),
            format!("include = [\"rollouts/*.toml\"]\n{BACKENDS}"),
        )
        .expect("written");
        fs::write(
            at("rollouts/a.toml"),
            format!(
                "{}always_new = [\"file:../users.txt\"]\n",
                rollout("a", "5")
            ),
        )
        .expect("written");
        fs::write(at("users.txt"), "ana\n").expect("written");
        fs::write(at("rollouts/users.txt"), "ana\n").expect("written");
        let mut source = ConfigSource::new(at("cutover.toml"));
        let _ = source.load();
        let mut seen = vec![source.fingerprint()];
        assert_eq!(source.fingerprint(), seen[0]);
        fs::write(at("rollouts/a.toml"), rollout("a", "6")).expect("written");
        seen.push(source.fingerprint());
        fs::write(at("rollouts/b.toml"), rollout("b", "6")).expect("written");
        seen.push(source.fingerprint());
        fs::remove_file(at("cutover.toml")).expect("removed");
        seen.push(source.fingerprint());
        let distinct: BTreeSet<[u8; 32]> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len());
    }

    #[test]
    fn a_change_during_or_right_after_a_reading_is_detected() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(
            at("cutover.toml"),
            format!("include = [\"*.inc.toml\"]\n{BACKENDS}"),
        )
        .expect("written");
        fs::write(at("a.inc.toml"), rollout("a", "5")).expect("written");
        let mut source = ConfigSource::new(at("cutover.toml"));
        source.load().unwrap_or_else(|error| panic!("{error}"));
        assert!(
            !source.has_changed(),
            "what an include says is part of the first reading"
        );
        fs::write(at("a.inc.toml"), rollout("a", "6")).expect("written");
        assert!(source.has_changed());
        assert!(source.has_changed(), "looking is not reading");
        source.load().unwrap_or_else(|error| panic!("{error}"));
        assert!(!source.has_changed());
        fs::write(at("cutover.toml"), "broken").expect("written");
        assert!(
            source.load().is_err() && !source.has_changed(),
            "a broken file is read once"
        );
    }

    #[test]
    fn a_percentage_is_set_in_the_file_that_contains_the_rollout() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("rollouts")).expect("a directory");
        fs::write(
            at("cutover.toml"),
            format!(
                "include = [\"rollouts/*.toml\"]\n{BACKENDS}{}",
                rollout("main", "5")
            ),
        )
        .expect("written");
        fs::write(at("rollouts/a.toml"), rollout("a", "5")).expect("written");
        let mut source = ConfigSource::new(at("cutover.toml"));
        let percent = Percent::parse("12.5").expect("a percentage");
        for (id, file) in [("main", "cutover.toml"), ("a", "rollouts/a.toml")] {
            let before = fs::read_to_string(at(file)).expect("text");
            source.set_percent(id, percent, true).expect("a dry run");
            assert_eq!(fs::read_to_string(at(file)).expect("text"), before);
            let (settings, _) = source.set_percent(id, percent, false).expect("set");
            assert!(
                settings
                    .rollouts
                    .iter()
                    .any(|rollout| &*rollout.id == id && rollout.percent == percent)
            );
            assert_eq!(
                fs::read_to_string(at(file)).expect("text"),
                before.replace("percent = 5 ", "percent = 12.5 ")
            );
        }
        assert!(matches!(
            source.set_percent("nobody", percent, false),
            Err(SetError::Unknown { .. })
        ));
        let standalone =
            source.self_contained(&fs::read_to_string(at("cutover.toml")).expect("text"));
        let alone = ConfigSource::new(at("alone.toml"))
            .parse("alone.toml", &standalone)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(alone.rollouts.len(), 2);
    }

    #[test]
    fn mount_points_of_single_files_are_found_by_escaped_path() {
        let mountinfo = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n41 36 \
                         8:1 /srv/a /etc/cutover/cutover.toml ro - ext4 /dev/sda1 rw\n42 36 8:1 / \
                         /a\\040b\\134\\303\\244 rw - ext4 /dev/sda1 rw\nodd\n";
        let expected = ["/mnt2", "/etc/cutover/cutover.toml", "/a b\\\u{e4}"].map(PathBuf::from);
        assert_eq!(mount_points(mountinfo), BTreeSet::from(expected));
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(
            directory.path().join("cutover.toml"),
            format!("{BACKENDS}{}", rollout("a", "5")),
        )
        .expect("written");
        let mut source = ConfigSource::new(directory.path().join("cutover.toml"));
        source.load().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(source.mounted_alone(), Vec::<PathBuf>::new());
    }

    #[test]
    fn each_kind_of_unreadable_file_has_its_own_message() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cutover.toml");
        let problem = |path: &Path| {
            ConfigSource::new(path)
                .load()
                .expect_err("not usable")
                .to_string()
        };
        assert!(problem(&path).contains("No such file"));
        assert!(problem(directory.path()).contains("is a directory"));
        assert!(problem(Path::new("/dev/null")).contains("not a regular file"));
        fs::write(&path, [b'a', 0xff, 0xfe]).expect("written");
        assert!(problem(&path).contains("is not UTF-8 text: byte 1"));
    }
}
