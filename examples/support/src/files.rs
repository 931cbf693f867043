//! Files, with their paths in the errors.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serializer;
use siss::files::path_text;
use siss::{Error, Result};

/// An I/O error with what was being done and where.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// Reads a file of text.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(failed("reading", path))
}

/// Writes a file anew.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, contents).map_err(failed("writing", path))
}

/// Copies what is in a file, not its mode.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    write(to, fs::read(from).map_err(failed("reading", from))?)
}

/// Creates a folder, with those that it lies in.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(failed("creating", path))
}

/// A path in JSON, which has no other texts than those in UTF-8.
pub fn as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path_text(path))
}

/// The same for a path that may not be given.
pub fn as_optional_text<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path_text(path)),
        None => serializer.serialize_none(),
    }
}
