//! Reads the journal from its end.

use super::record::Record;
use super::{GENESIS, MAX_LINE, hash, path};
use cutover_core::control::maintenance::EVERYTHING;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The number of bytes that are read at a time.
pub(super) const BLOCK: u64 = 64 * 1024;

/// The most records of one page.
pub const MAX_PAGE: usize = 1_000;

/// The most bytes of the records of one page, as they are in the file.
pub const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;

/// The newest records of a journal, and the result of verifying the part of the chain that was read
/// for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The records, newest first.
    pub records: Vec<Record>,
    /// The problem of the chain; `None` if there is none.
    pub problem: Option<String>,
    /// The number of lines read.
    pub lines: u64,
    /// Whether all lines were read.
    pub is_whole: bool,
    /// The hash of the last line of the previous file, if this one does not begin the chain. It is
    /// known when the first line was read.
    pub continues: Option<String>,
}

/// Reads the newest records from the end of a file of this length, of one rollout or of all. Both
/// the number of records and their bytes are limited.
///
/// # Errors
/// Fails on any error of the file system.
pub fn page(
    file: impl Read + Seek,
    len: u64,
    rollout: Option<&str>,
    limit: usize,
    bytes: usize,
) -> io::Result<Page> {
    let mut lines = FromEnd {
        file,
        start: len,
        pending: VecDeque::new(),
        is_torn: true,
    };
    let (mut page, mut left) = (Page::default(), bytes);
    // The hash that the line after this one expects for it.
    let mut expected: Option<String> = None;
    loop {
        let is_full = page.records.len() >= limit;
        let Some(line) = lines.next()? else { break };
        let place = lines.start + lines.pending.len() as u64;
        if expected
            .take()
            .is_some_and(|expected| expected != hash(&line))
            && page.problem.is_none()
        {
            page.problem = Some(format!(
                "the line at byte {place} is not the one that the line after it names: a line was \
                 changed or taken out here"
            ));
        }
        if is_full {
            // This line was read only to compare it with the oldest record of the page.
            return Ok(Page {
                continues: None,
                ..page
            });
        }
        page.lines += 1;
        match serde_json::from_slice::<Brief>(&line) {
            Ok(brief) => expected = Some(brief.previous.clone()),
            Err(error) => {
                page.problem = page
                    .problem
                    .or_else(|| Some(format!("the line at byte {place}: {error}")));
            }
        }
        page.continues.clone_from(&expected);
        let concerns = serde_json::from_slice::<Brief>(&line).is_ok_and(|brief| {
            rollout.is_none_or(|rollout| brief.rollout == rollout || brief.rollout == EVERYTHING)
        });
        if !concerns {
            continue;
        }
        match left.checked_sub(line.len()) {
            Some(less) => left = less,
            // At least one record is returned, however long it is.
            None if !page.records.is_empty() => {
                return Ok(Page {
                    continues: None,
                    ..page
                });
            }
            None => left = 0,
        }
        match serde_json::from_slice::<Record>(&line) {
            Ok(record) => page.records.push(record),
            Err(error) => {
                page.problem = page
                    .problem
                    .or_else(|| Some(format!("the line at byte {place}: {error}")));
            }
        }
    }
    page.is_whole = true;
    page.continues = page
        .continues
        .filter(|previous| previous != GENESIS && !previous.is_empty());
    Ok(page)
}

/// The parts of a line that the chain needs.
#[derive(Deserialize)]
pub(super) struct Brief {
    pub(super) rollout: String,
    #[serde(default)]
    pub(super) previous: String,
}

/// The lines of a file, from its end.
pub(super) struct FromEnd<F> {
    pub(super) file: F,
    /// The offset in bytes from which everything has been read.
    pub(super) start: u64,
    /// The bytes that have been read and not yet returned.
    pub(super) pending: VecDeque<u8>,
    /// Whether the pending bytes may be a torn last line, which belongs to no record.
    pub(super) is_torn: bool,
}

impl<F: Read + Seek> FromEnd<F> {
    /// Returns the line before the one that was returned last, without its line break. Blank lines
    /// are skipped. A last line without a line break is also skipped, because it is being written.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let unsearched = self.pending.len() - searched;
            if let Some(at) = self
                .pending
                .iter()
                .take(unsearched)
                .rposition(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.pending.split_off(at + 1).into();
                self.pending.pop_back();
                searched = 0;
                if !std::mem::replace(&mut self.is_torn, false) && !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            searched = self.pending.len();
            if self.start == 0 {
                let line: Vec<u8> = std::mem::take(&mut self.pending).into();
                return Ok(Some(line).filter(|line| !self.is_torn && !line.trim_ascii().is_empty()));
            }
            if self.pending.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "a line before byte {} has more than {MAX_LINE} bytes",
                        self.start + self.pending.len() as u64
                    ),
                ));
            }
            let start = self.start.saturating_sub(BLOCK);
            let mut block = vec![0; (self.start - start) as usize];
            self.file.seek(SeekFrom::Start(start))?;
            self.file.read_exact(&mut block)?;
            self.start = start;
            for byte in block.into_iter().rev() {
                self.pending.push_front(byte);
            }
        }
    }
}

/// Reads the newest records of a state directory, as [`page`] does. A missing journal counts as
/// empty.
///
/// # Errors
/// Fails when the file cannot be read.
pub fn newest(
    directory: &Path,
    rollout: Option<&str>,
    limit: usize,
    bytes: usize,
) -> io::Result<Page> {
    match File::open(path(directory)) {
        Ok(file) => {
            let len = file.metadata()?.len();
            page(file, len, rollout, limit, bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Page {
            is_whole: true,
            ..Page::default()
        }),
        Err(error) => Err(error),
    }
}

/// Returns the end of the last whole line of a file, and its hash. It reads from the end, in
/// blocks.
pub(super) fn end_of(file: &mut (impl Read + Seek), len: u64) -> io::Result<(u64, Option<String>)> {
    let whole = last_byte(file, len, |byte| byte == b'\n')?.map_or(0, |at| at + 1);
    let Some(end) = last_byte(file, whole, |byte| !byte.is_ascii_whitespace())?.map(|at| at + 1)
    else {
        return Ok((whole, None));
    };
    let start = last_byte(file, end, |byte| byte == b'\n')?.map_or(0, |at| at + 1);
    file.seek(SeekFrom::Start(start))?;
    let (mut hash, mut left, mut block) = (Sha256::new(), end - start, vec![0; BLOCK as usize]);
    while left > 0 {
        let part = &mut block[..left.min(BLOCK) as usize];
        file.read_exact(part)?;
        hash.update(&*part);
        left -= part.len() as u64;
    }
    Ok((whole, Some(format!("{:x}", hash.finalize()))))
}

/// Returns the last position before `end` that has this byte.
pub(super) fn last_byte(
    file: &mut (impl Read + Seek),
    end: u64,
    is_it: impl Fn(u8) -> bool,
) -> io::Result<Option<u64>> {
    let (mut end, mut block) = (end, vec![0; BLOCK as usize]);
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| is_it(*byte)) {
            return Ok(Some(start + at as u64));
        }
        end = start;
    }
    Ok(None)
}
