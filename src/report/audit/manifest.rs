//! The files of a folder by SHA-256.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{entries, invalid, length_and_sha256, path_text, sha256};

/// The files of one or more folders, sorted by path, each with its SHA-256.
///
/// Its own SHA-256 stands for all of them in a report: it changes if a file is added, removed,
/// renamed or changed. It is that of the text which coreutils' `sha256sum` writes for the same
/// files, with paths from the folder on and `/` between their parts:
///
/// ```sh
/// cd FOLDER; find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
/// ```
///
/// Links are not followed and not listed. A path with a line break or a backslash is written as
/// [`path_text`] has it, where `sha256sum` escapes it in another way.
///
/// # Example
/// ```
/// use siss::report::audit::Manifest;
///
/// # let folder = tempfile::tempdir()?;
/// # std::fs::write(folder.path().join("a.txt"), "hello\n")?;
/// # let folder = folder.path();
/// let manifest = Manifest::of(folder)?;
/// assert_eq!(manifest.files().len(), 1);
/// assert!(manifest.to_text().starts_with("5891b5b522d5df08"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<ManifestFile>,
}

/// A file of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManifestFile {
    /// Its path from the folder on, as text with `/` between the parts.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Reads all files of a folder and its subfolders, or one file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Empty`] if there is no file.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let is_folder = fs::metadata(path)
            .map_err(Error::io("reading", path))?
            .is_dir();
        let found = match is_folder {
            true => files_below(path)?,
            false => vec![path.to_owned()],
        };
        let base = if is_folder {
            path
        } else {
            path.parent().unwrap_or(path)
        };
        let mut files: Vec<ManifestFile> = found
            .iter()
            .map(|file| ManifestFile::read(file, base))
            .collect::<Result<_>>()?;
        files.sort_by(|one, other| one.name.cmp(&other.name));
        if files.is_empty() {
            let (what, remedy) = ("the folder", "give a folder with files, or one file");
            return Err(Error::Empty { what, remedy });
        }
        Ok(Self { files })
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// One line per file: SHA-256, two spaces, name.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}  {}", file.sha256, file.name);
        }
        text
    }

    /// SHA-256 of [`to_text`](Self::to_text): it stands for all files.
    pub fn sha256(&self) -> String {
        sha256(self.to_text().as_bytes())
    }
}

impl ManifestFile {
    fn read(path: &Path, base: &Path) -> Result<Self> {
        let (bytes, sha256) = measured(path)?;
        let relative = path.strip_prefix(base).unwrap_or(path);
        let parts = relative
            .components()
            .map(|part| path_text(Path::new(part.as_os_str())));
        Ok(Self {
            name: parts.collect::<Vec<_>>().join("/"),
            bytes,
            sha256,
        })
    }
}

/// Length and SHA-256 of an ordinary file.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a pipe or a device, which might never end.
pub(super) fn measured(path: &Path) -> Result<(u64, String)> {
    let metadata = fs::metadata(path).map_err(Error::io("reading", path))?;
    match metadata.is_file() {
        true => length_and_sha256(path, |_| ()).map_err(Error::io("reading", path)),
        false => Err(invalid(path, "it is not an ordinary file")),
    }
}

/// All ordinary files below a folder. Links are left out.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        let kind = fs::symlink_metadata(&path).map_err(Error::io("reading", &path))?;
        if kind.is_dir() {
            found.extend(files_below(&path)?);
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}
