//! Reading files that came from elsewhere: what is no ordinary file is refused before it is opened, for a pipe would wait
//! for ever and a device never ends.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Longest configuration that is read: published ones have a few thousand bytes.
const LONGEST_CONFIGURATION: u64 = 1 << 20;

/// Opens a file and says how long it is.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a folder, a pipe or a device.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let reading = || Error::io("reading", path);
    let metadata = std::fs::metadata(path).map_err(reading())?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is no ordinary file"));
    }
    let file = File::open(path).map_err(reading())?;
    Ok((file, metadata.len()))
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
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_QUOTE {
        text.truncate(text.floor_char_boundary(LONGEST_QUOTE));
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
