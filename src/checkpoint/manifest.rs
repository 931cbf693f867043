//! The manifest of a checkpoint: its files, with their sizes and digests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn_pack::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{length_and_sha256, path_text, sha256};

/// Name of the manifest.
///
/// It is written last: a folder without it is not a checkpoint.
pub(super) const MANIFEST: &str = "manifest.json";

/// Version of the format of the files and their contents.
pub(super) const FORMAT: u32 = 2;

/// Largest manifest that is read: a manifest has only a handful of short lines.
const LARGEST_MANIFEST: u64 = 1 << 20;

/// Size and digest of a file as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub bytes: u64,
    pub sha256: String,
}

impl FileRecord {
    /// The record of a file; `look` is called with its contents piece by piece.
    pub fn of_file(path: &Path, look: impl FnMut(&[u8])) -> std::io::Result<Self> {
        let (bytes, sha256) = length_and_sha256(path, look)?;
        Ok(Self { bytes, sha256 })
    }
}

/// The files of a checkpoint.
///
/// The manifest has a digest of its own, so that a change to it is noticed as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    pub step: u64,
    pub files: BTreeMap<String, FileRecord>,
    /// Digest of this manifest with this field empty.
    pub sha256: String,
}

impl Manifest {
    /// Creates the manifest of a list of files, with its digest.
    pub fn new(step: u64, files: BTreeMap<String, FileRecord>) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            step,
            files,
            sha256: String::new(),
        };
        manifest.sha256 = sha256(manifest.text().as_bytes());
        manifest
    }

    /// The text of this manifest; there is only one.
    pub fn text(&self) -> String {
        // Strings and integers only: serialising them cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Parses a manifest that is exactly what [`Manifest::text`] writes.
    ///
    /// # Errors
    /// A sentence that describes the problem.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let found: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("{MANIFEST} cannot be read: {error}"))?;
        let sealed = Self {
            format: found.format,
            ..Self::new(found.step, found.files.clone())
        };
        if found.format != FORMAT {
            return Err(format!(
                "{MANIFEST} has format {}, but this version reads {FORMAT}",
                found.format
            ));
        }
        if sealed.text().as_bytes() != bytes {
            return Err(format!("{MANIFEST} has changed since it was written"));
        }
        match found.files.keys().find(|name| !is_plain(name)) {
            Some(name) => Err(format!(
                "{MANIFEST} lists `{name}`, which is not a file name"
            )),
            None => Ok(found),
        }
    }

    /// Reads the manifest of a checkpoint, and checks that each file is as it was written.
    ///
    /// # Errors
    /// A sentence that describes the problem.
    pub fn verify(folder: &Path) -> std::result::Result<Self, String> {
        let path = folder.join(MANIFEST);
        let size = size_of(&path)?;
        if size > LARGEST_MANIFEST {
            return Err(format!("{MANIFEST} has {size} bytes"));
        }
        let bytes = fs::read(&path).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let manifest = Self::parse(&bytes)?;
        for (name, written) in &manifest.files {
            let found = size_of(&folder.join(name))?;
            if found != written.bytes {
                return Err(format!(
                    "{name} has {found} bytes, but {} were written",
                    written.bytes
                ));
            }
        }
        for (name, written) in &manifest.files {
            let found = FileRecord::of_file(&folder.join(name), |_| {})
                .map_err(|error| format!("{name} cannot be read: {error}"))?;
            if found != *written {
                return Err(format!(
                    "{name} has changed since it was written (SHA-256 differs)"
                ));
            }
        }
        Ok(manifest)
    }

    /// Reads a file, and checks that its contents are those that were written.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if there is no such file or it has changed since.
    pub fn read(&self, folder: &Path, name: &str) -> Result<Bytes> {
        let path = folder.join(name);
        let written = self.files.get(name);
        let mut bytes = room(written.map_or(0, |written| written.bytes as usize))
            .map_err(Error::io("reading", &path))?;
        let found = FileRecord::of_file(&path, |piece| bytes.extend_from_byte_slice(piece));
        let found = found.map_err(Error::io("reading", &path))?;
        if written == Some(&found) {
            return Ok(bytes);
        }
        Err(Error::InvalidFile {
            path,
            message: "does not match the manifest; resume again to use an older checkpoint".into(),
        })
    }
}

/// Allocates this many bytes, aligned for every type of number: burn copies unaligned bytes.
pub(super) fn room(bytes: usize) -> std::io::Result<Bytes> {
    let mut numbers = Vec::<u128>::new();
    let count = bytes.div_ceil(std::mem::size_of::<u128>());
    let reserved = numbers.try_reserve_exact(count);
    reserved.map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    Ok(Bytes::from_elems(numbers))
}

/// Whether a name cannot lead out of the folder.
fn is_plain(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte == b'.' || byte == b'_';
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(legal)
}

/// The size of an ordinary file; reading anything else might never end.
fn size_of(path: &Path) -> std::result::Result<u64, String> {
    let name = || path_text(path.file_name().unwrap_or_default());
    let metadata = fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", name()))?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(format!("{} is not a file", name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: &[u8]) -> FileRecord {
        FileRecord {
            bytes: bytes.len() as u64,
            sha256: sha256(bytes),
        }
    }

    fn manifest() -> Manifest {
        let files = [("model.bpk", &b"weights"[..]), ("state.json", &b"{}"[..])];
        let files = files.map(|(name, bytes)| (name.to_owned(), record(bytes)));
        Manifest::new(40, files.into())
    }

    #[test]
    fn the_digest_is_sha_256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), expected);
    }

    #[test]
    fn a_manifest_reads_back_and_every_flipped_bit_of_it_is_seen() {
        let text = manifest().text();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest());
        let mut flips = 0;
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                assert!(Manifest::parse(&bytes).is_err(), "byte {index}, bit {bit}");
                flips += 1;
            }
        }
        for length in 0..text.len() {
            assert!(Manifest::parse(&text.as_bytes()[..length]).is_err());
        }
        println!(
            "{flips} flips and {} truncations of a manifest seen",
            text.len()
        );
    }

    #[test]
    fn a_sealed_manifest_cannot_lead_out_of_its_folder() {
        for name in ["../model.bpk", "/etc/passwd", "", ".hidden", "a/b", "a\\b"] {
            let files = [(name.to_owned(), record(b""))].into();
            let error = Manifest::parse(Manifest::new(0, files).text().as_bytes()).unwrap_err();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn another_format_is_named() {
        let mut other = manifest();
        other.format = FORMAT + 1;
        other.sha256 = String::new();
        other.sha256 = sha256(other.text().as_bytes());
        let error = Manifest::parse(other.text().as_bytes()).unwrap_err();
        assert!(error.contains("format 3"), "{error}");
    }

    #[test]
    fn a_file_that_changes_after_it_was_verified_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bpk");
        fs::write(&path, "weights").unwrap();
        let read = |name| manifest().read(folder.path(), name);
        assert_eq!(read("model.bpk").unwrap()[..], b"weights"[..]);
        fs::write(&path, "Weights").unwrap();
        let error = read("model.bpk").unwrap_err().to_string();
        assert!(error.contains("does not match the manifest"), "{error}");
        // A file that exists but is not listed.
        fs::write(folder.path().join("notes"), "").unwrap();
        assert!(read("notes").is_err());
    }
}
