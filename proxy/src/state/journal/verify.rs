//! Verification that the journal is whole.

use super::read::BLOCK;
use super::record::Record;
use super::{GENESIS, MAX_LINE, hash, path};
use crate::state::regular_file;
use std::io::{self, BufRead, Read};
use std::path::Path;

/// The result of verifying the whole chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The first problem of the chain; `None` if there is none.
    pub problem: Option<String>,
    /// The number of lines.
    pub lines: u64,
    /// The hash of the last line of the previous file, if this one does not begin the chain.
    pub continues: Option<String>,
}

/// Verifies a whole journal line by line, in bounded memory.
///
/// # Errors
/// Fails on any error of the file system.
pub fn verify(mut file: impl BufRead) -> io::Result<Verified> {
    let mut verified = Verified::default();
    let (mut line, mut number, mut last) = (Vec::new(), 0, None);
    loop {
        line.clear();
        number += 1;
        if file
            .by_ref()
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(verified);
        }
        let problem = if line.len() > MAX_LINE {
            Some(format!(
                "line {number}: it has more than {MAX_LINE} bytes, so the lines after it were not \
                 read"
            ))
        } else if line.pop_if(|byte| *byte == b'\n').is_none() {
            // The last line is being written.
            return Ok(verified);
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            verified.lines += 1;
            match (serde_json::from_slice::<Record>(&line), &last) {
                (Err(error), _) => Some(format!("line {number}: {error}")),
                (Ok(record), None) => {
                    verified.continues = Some(record.previous)
                        .filter(|previous| previous != GENESIS && !previous.is_empty());
                    None
                }
                (Ok(record), Some(last)) if record.previous != *last => Some(format!(
                    "line {number}: its `previous` is not the hash of the line before: a line was \
                     changed or taken out here"
                )),
                (Ok(_), Some(_)) => None,
            }
        };
        let ends = line.len() > MAX_LINE;
        last = Some(hash(&line));
        verified.problem = verified.problem.or(problem);
        if ends {
            return Ok(verified);
        }
    }
}

/// Verifies the whole chain of a state directory, as [`verify`] does. A missing journal counts as
/// empty.
///
/// # Errors
/// Fails when the file cannot be read.
pub fn verify_in(directory: &Path) -> io::Result<Verified> {
    match regular_file::open_to_read(&path(directory)) {
        Ok(file) => verify(io::BufReader::with_capacity(BLOCK as usize, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Verified::default()),
        Err(error) => Err(error),
    }
}
