//! Files that are not read, with the reasons.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::files::path::path_text;

/// A file that is not read, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadFile {
    /// The file, link or folder.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// Why it is not read, and what to do.
    pub reason: String,
}

impl fmt::Display for UnreadFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", path_text(&self.path), self.reason)
    }
}

/// A path of any file system as text, as far as text can represent it.
pub(super) fn as_text<S: Serializer>(
    path: &Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
