//! Lines for the terminal: data on stdout, words for people on stderr. Colours are dropped where
//! nobody would see them.

use std::io::{self, Write};

/// Writes a line of data to stdout.
///
/// # Errors
/// When stdout cannot be written; a reader that went away (`| head`) is
/// [`io::ErrorKind::BrokenPipe`].
pub fn out(line: &str) -> io::Result<()> {
    writeln!(anstream::stdout(), "{line}")
}

/// Writes a line for people to stderr. Where nobody listens, nothing is lost.
pub fn note(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}
