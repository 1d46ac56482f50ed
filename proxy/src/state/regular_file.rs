//! Opens files of the state directory without ever waiting.
//!
//! Opening a named pipe blocks until another process opens its other end. A start must not depend
//! on that, so these functions refuse everything that is not a regular file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Opens a regular file with these options.
///
/// # Errors
/// Fails on any error of the file system; `InvalidInput` for a directory, named pipe, socket or
/// device.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // The flag changes nothing for a regular file, and makes the opening of a named pipe return.
    let file = options
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NXIO | Errno::ISDIR) => not_regular(),
            _ => error,
        })?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(not_regular())
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// Fails like [`open`].
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true), path)
}

/// Reads a whole regular file.
///
/// # Errors
/// Fails like [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_to_read(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a whole regular file as UTF-8.
///
/// # Errors
/// Fails like [`open`]; `InvalidData` for bytes that are not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut content = String::new();
    open_to_read(path)?.read_to_string(&mut content)?;
    Ok(content)
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_pipe_or_a_directory_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let pipe = directory.path().join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .expect("mkfifo")
                .success()
        );
        for path in [pipe.as_path(), directory.path()] {
            for options in [
                OpenOptions::new().read(true),
                OpenOptions::new().write(true),
                OpenOptions::new().read(true).append(true),
            ] {
                let error = open(options, path).expect_err("not a regular file");
                assert_eq!(
                    (error.kind(), error.to_string().as_str()),
                    (io::ErrorKind::InvalidInput, "is not a regular file"),
                    "{}",
                    path.display()
                );
            }
        }
    }

    #[test]
    fn a_regular_file_is_read_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "two\nlines\n").expect("written");
        assert_eq!(read(&path).expect("read"), b"two\nlines\n");
        assert_eq!(read_to_string(&path).expect("read"), "two\nlines\n");
    }
}
