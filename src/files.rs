//! Reading files that came from elsewhere: what is no ordinary file is refused before it is opened, for a pipe would wait
//! for ever and a device never ends.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use crate::error::{Error, Result};

/// Longest configuration that is read: published ones have a few thousand bytes.
const LONGEST_CONFIGURATION: u64 = 1 << 20;

/// What Git leaves in the place of a large file until it is asked for it: a text that begins like this.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// A pointer is shorter than this.
const LONGEST_POINTER: u64 = 1024;

/// Opens a file and says how long it is.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a folder, a pipe or a device, and for a pointer of Git LFS.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let reading = || Error::io("reading", path);
    let metadata = std::fs::metadata(path).map_err(reading())?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is no ordinary file"));
    }
    let mut file = File::open(path).map_err(reading())?;
    if metadata.len() < LONGEST_POINTER && is_pointer(&mut file).map_err(reading())? {
        let message = "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file";
        return Err(invalid(path, message));
    }
    Ok((file, metadata.len()))
}

fn is_pointer(file: &mut File) -> std::io::Result<bool> {
    let mut beginning = Vec::new();
    let length = POINTER.len() as u64;
    file.take(length).read_to_end(&mut beginning)?;
    file.rewind()?;
    Ok(beginning == POINTER)
}

/// Reads a configuration.
///
/// # Errors
/// As [`open`]; [`Error::InvalidFile`] for more than 1 MiB or what is no UTF-8.
pub(crate) fn read_configuration(path: &Path) -> Result<String> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST_CONFIGURATION + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("reading", path))?;
    if bytes.len() as u64 > LONGEST_CONFIGURATION {
        let message = format!("it has {length} bytes; a configuration of at most 1 MiB is read");
        return Err(invalid(path, message));
    }
    String::from_utf8(bytes)
        .map_err(|error| invalid(path, format!("not a configuration in UTF-8: {error}")))
}

pub(crate) fn invalid(path: &Path, message: impl Into<String>) -> Error {
    Error::InvalidFile {
        path: path.into(),
        message: shortened(message.into()),
    }
}

/// Longest part of a message that comes from a file, in bytes.
const LONGEST_QUOTE: usize = 400;

/// A text that quotes a file, cut where it goes on for too long: a name may have megabytes.
pub(crate) fn shortened(text: String) -> String {
    cut(text, LONGEST_QUOTE)
}

/// A text of at most `longest` bytes and an ellipsis.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        assert_eq!(shortened("a".repeat(400)).len(), 400);
        let cut = shortened(format!("a{}", "ü".repeat(400)));
        assert_eq!(cut, format!("a{}…", "ü".repeat(199)));
    }
}
