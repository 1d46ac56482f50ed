//! How long a file has to remain unchanged before it counts as complete.
//!
//! *Purpose.* A file that is written in place is incomplete for a while. A list of users, a bundle
//! of certificates or a chain of certificates has no syntax that reveals the truncation: its first
//! half is a valid file with a different meaning.
//!
//! *Why this way.* Content, size and time of modification have to remain unchanged. The required
//! time grows with the pauses that the writer makes, so a slow writer is waited for. A file that
//! was renamed into its place, or that a changed link leads to, was written elsewhere and needs the
//! short time only.
//!
//! *Not here:* what is in force meanwhile. `reload` and `certificates` decide that.
//!
//! Written by: no room: it has no state of its own. Read by: `reload` and the certificates, which
//! call it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cutover_core::{Mono, Wall};
use sha2::{Digest, Sha256};

/// The required time for a file whose syntax reveals most truncations, and for a file that was
/// renamed into its place.
pub const SHORT: Duration = Duration::from_millis(20);
/// The required time for a file whose content does not reveal a truncation.
pub const LONG: Duration = Duration::from_secs(1);
/// The required time for a file that has fewer entries than the one in force.
pub const SHORTER: Duration = Duration::from_secs(2);
/// The longest required time, which also applies to a file that has become empty.
pub const MOST: Duration = Duration::from_secs(10);
/// The factor by which the required time exceeds the longest pause of the writer.
const PAUSES: u32 = 4;

/// What one check saw of a file.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// SHA-256 of the content, or of the reason why the file is unreadable.
    pub content: [u8; 32],
    /// The size in bytes. 0 if the file is unreadable.
    pub size: u64,
    /// The number of lines that are neither blank nor a comment.
    pub entries: usize,
    /// Whether the last line ends with a line break.
    pub ends_with_line: bool,
    /// The time of the last modification, in seconds and nanoseconds of Unix time.
    modified: (i64, i64),
    /// The device and inode.
    inode: (u64, u64),
    /// Whether the last change to the inode was not a write, but a rename or a changed mode.
    moved: bool,
    /// The file that the path leads to after all links are followed.
    target: Option<PathBuf>,
}

impl Fingerprint {
    /// Records what was read from a path.
    pub fn of(path: &Path, read: Result<&[u8], &str>) -> Self {
        let metadata = std::fs::metadata(path).ok();
        let field = |get: fn(&Metadata) -> i64| metadata.as_ref().map_or(0, get);
        let modified = (field(Metadata::mtime), field(Metadata::mtime_nsec));
        let changed = (field(Metadata::ctime), field(Metadata::ctime_nsec));
        let inode = metadata
            .as_ref()
            .map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()));
        let text = read.unwrap_or_default();
        let says =
            |line: &&[u8]| !line.trim_ascii().is_empty() && !line.trim_ascii().starts_with(b"#");
        Self {
            content: read.map_or_else(Sha256::digest, Sha256::digest).into(),
            size: text.len() as u64,
            entries: text.split(|&byte| byte == b'\n').filter(says).count(),
            ends_with_line: text.ends_with(b"\n"),
            modified,
            inode,
            moved: changed > modified,
            target: std::fs::canonicalize(path).ok(),
        }
    }

    /// Returns whether another check saw the same content, size and time of modification.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.content, self.size, self.modified, self.inode)
            == (other.content, other.size, other.modified, other.inode)
    }

    /// Returns whether the file appeared as a whole. That is the case if another file was here
    /// before, and this one was renamed here after it had been written, or a link on the way was
    /// changed to it.
    pub fn came_whole(&self, before: Option<&Self>) -> bool {
        let was_turned = before.is_some_and(|before| {
            before.target.is_some() && self.target.is_some() && before.target != self.target
        });
        was_turned || (self.moved && before.is_none_or(|before| before.inode != self.inode))
    }

    /// Returns whether the file was written within `time` before a moment, by the clock of its file
    /// system.
    pub fn was_written_within(&self, time: Duration, now: Wall) -> bool {
        let modified = self
            .modified
            .0
            .saturating_mul(1_000)
            .saturating_add(self.modified.1 / 1_000_000);
        !self.moved
            && (0..time.as_millis() as i64).contains(&now.as_millis().saturating_sub(modified))
    }

    /// Returns the minimum time for a file without syntax. `before` is the file in force, if there
    /// was one.
    pub fn rest_after(&self, before: Option<&Self>) -> Duration {
        match before {
            Some(before) if self.size == 0 && before.size > 0 => MOST,
            Some(before) if self.entries < before.entries => SHORTER,
            before if self.came_whole(before) => SHORT,
            Some(_) | None => LONG,
        }
    }
}

/// A file that has changed, and since when it has remained unchanged.
#[derive(Debug)]
pub struct Settling {
    sight: Fingerprint,
    since: Mono,
    content_since: Mono,
    longest_pause: Duration,
}

impl Settling {
    /// Creates the state with the first check that saw the change.
    pub fn new(sight: Fingerprint, now: Mono) -> Self {
        Self {
            sight,
            since: now,
            content_since: now,
            longest_pause: Duration::ZERO,
        }
    }

    /// Records another check.
    pub fn look(&mut self, sight: Fingerprint, now: Mono) {
        if !self.sight.is_like(&sight) {
            self.longest_pause = self.longest_pause.max(now.since(self.since));
            self.since = now;
            if self.sight.content != sight.content {
                self.content_since = now;
            }
        }
        self.sight = sight;
    }

    /// Returns what the last check saw.
    pub fn sight(&self) -> &Fingerprint {
        &self.sight
    }

    /// Returns how long the file has to remain unchanged, which is at least `least`.
    pub fn needed(&self, least: Duration) -> Duration {
        least.max((self.longest_pause * PAUSES).min(MOST))
    }

    /// Returns whether the file has remained unchanged for that long. If its time of modification
    /// keeps changing, that time is ignored after [`MOST`].
    pub fn has_rested(&self, least: Duration, now: Mono) -> bool {
        now.since(self.since) >= self.needed(least) || now.since(self.content_since) >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn look(path: &Path) -> Fingerprint {
        let read = fs::read(path).map_err(|error| error.to_string());
        Fingerprint::of(path, read.as_deref().map_err(String::as_str))
    }

    fn at(millis: u64) -> Mono {
        Mono::from_micros(millis * 1_000)
    }

    #[test]
    fn the_required_time_grows_with_the_writers_pauses_up_to_its_limit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        let mut file = fs::File::create(&path).expect("created");
        let mut write = || {
            file.write_all(b"user\n").expect("written");
            look(&path)
        };
        let mut resting = Settling::new(write(), at(0));
        assert!(!resting.has_rested(LONG, at(999)) && resting.has_rested(LONG, at(1_000)));
        resting.look(write(), at(60));
        assert_eq!(resting.needed(SHORT), Duration::from_millis(240));
        assert!(!resting.has_rested(SHORT, at(299)) && resting.has_rested(SHORT, at(300)));
        resting.look(write(), at(960));
        assert!(
            !resting.has_rested(LONG, at(960 + 3_599)) && resting.has_rested(LONG, at(960 + 3_600))
        );
        resting.look(write(), at(60_000));
        assert_eq!(resting.needed(LONG), MOST);
        resting.look(look(&path), at(60_500));
        assert!(
            resting.has_rested(LONG, at(70_000)),
            "a look that sees the same is no write"
        );
    }

    #[test]
    fn an_ever_changing_modification_time_is_ignored_in_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("list");
        fs::write(&path, "ana\n").expect("written");
        let mut sight = look(&path);
        let mut resting = Settling::new(sight.clone(), at(0));
        for second in 1..10 {
            sight.modified.0 += 1;
            resting.look(sight.clone(), at(second * 1_000));
            assert!(!resting.has_rested(LONG, at(second * 1_000)));
        }
        assert!(resting.has_rested(LONG, at(10_000)));
    }

    #[test]
    fn the_required_time_depends_on_the_old_file_and_how_it_was_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, beside) = (
            directory.path().join("list"),
            directory.path().join("list.new"),
        );
        fs::write(&path, "ana\n# nobody\n\nbob\n").expect("written");
        let before = look(&path);
        assert_eq!(before.entries, 2);
        assert_eq!(
            before.rest_after(None),
            LONG,
            "a first reading may be a cut"
        );
        fs::write(&path, "ana\nbob\neve\n").expect("written");
        assert_eq!(look(&path).rest_after(Some(&before)), LONG);
        fs::write(&path, "ana\n").expect("written");
        assert_eq!(look(&path).rest_after(Some(&before)), SHORTER);
        fs::write(&path, "").expect("written");
        assert_eq!(look(&path).rest_after(Some(&before)), MOST);
        let renamed = |text: &str| {
            fs::write(&beside, text).expect("written");
            let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            fs::File::options()
                .write(true)
                .open(&beside)
                .and_then(|file| file.set_modified(long_ago))
                .expect("dated");
            fs::rename(&beside, &path).expect("renamed");
            look(&path)
        };
        assert_eq!(renamed("ana\nbob\neve\n").rest_after(Some(&before)), SHORT);
        assert_eq!(
            renamed("ana\n").rest_after(Some(&before)),
            SHORTER,
            "a shorter list always rests"
        );
        // The layout is that of a configuration map: folders of versions, and a link to the current
        // one.
        let at = |name: &str| directory.path().join(name);
        for (version, text) in [
            ("1", "ana\nbob\n"),
            ("2", "ana\nbob\neve\n"),
            ("3", "ana\n"),
        ] {
            fs::create_dir(at(version)).expect("a directory");
            fs::write(at(version).join("list"), text).expect("written");
        }
        let turned = |version: &str| {
            symlink(version, at("data.new")).expect("linked");
            fs::rename(at("data.new"), at("data")).expect("renamed");
            look(&at("data/list"))
        };
        let before = turned("1");
        assert_eq!(turned("2").rest_after(Some(&before)), SHORT);
        assert_eq!(turned("3").rest_after(Some(&before)), SHORTER);
    }
}
