//! File operations whose errors contain the path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serializer;
use siss::files::path_text;
use siss::{Error, Result};

/// An I/O error with the action and the path.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(failed("reading", path))
}

/// Writes a file, replacing an existing one.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, contents).map_err(failed("writing", path))
}

/// Copies the content of a file, but not its mode.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    write(to, fs::read(from).map_err(failed("reading", from))?)
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(failed("creating", path))
}

/// Serialises a path as text; JSON has only UTF-8 texts.
pub fn as_text<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path_text(path))
}

/// Serialises paths as texts.
pub fn as_texts<S: Serializer>(
    paths: &[PathBuf],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(path_text))
}

/// Serialises an optional path as text.
pub fn as_optional_text<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path_text(path)),
        None => serializer.serialize_none(),
    }
}
