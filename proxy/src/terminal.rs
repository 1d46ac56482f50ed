//! Lines for the terminal: data on stdout, and messages for people on stderr. Colours are omitted
//! if the output is not a terminal.

use std::io::{self, Write};

/// Writes a line of data to stdout.
///
/// # Errors
/// Fails when stdout cannot be written; a reader that has gone (`| head`) is
/// [`io::ErrorKind::BrokenPipe`].
pub fn out(line: &str) -> io::Result<()> {
    writeln!(anstream::stdout(), "{line}")
}

/// Writes a line for people to stderr. A failure to write is ignored.
pub fn note(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}
