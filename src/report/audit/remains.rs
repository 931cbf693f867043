//! What in a folder still holds a forgotten item, and its removal.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::measured;
use crate::error::{Error, Result};
use crate::files::{entries, sync_folder};

/// How a file may hold the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemainderKind {
    /// It is the item: a file with its SHA-256.
    Subject,
    /// It is the model from before: a file with the SHA-256 of one of its files of weights.
    OldModel,
    /// Weights of a checkpoint that was written during the run.
    Checkpoint,
    /// The state of an optimiser: moments of gradients at the item.
    OptimizerState,
    /// Prepared data: latents, embeddings, features.
    Cache,
    /// A picture made by the model from before, or of the item.
    Picture,
    /// A link. What it leads to is not looked at and never removed.
    Link,
}

impl RemainderKind {
    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            RemainderKind::Subject => "the item itself",
            RemainderKind::OldModel => "old model",
            RemainderKind::Checkpoint => "checkpoint",
            RemainderKind::OptimizerState => "optimiser state",
            RemainderKind::Cache => "cache",
            RemainderKind::Picture => "picture",
            RemainderKind::Link => "link",
        }
    }
}

impl fmt::Display for RemainderKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A file that may hold the item.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remainder {
    /// Where it is.
    pub path: PathBuf,
    /// How it may hold the item.
    pub kind: RemainderKind,
    /// Its length in bytes; of a link 0.
    pub bytes: u64,
    /// Its SHA-256; `None` for a link.
    pub sha256: Option<String>,
}

/// What to look for.
///
/// Files are recognised by content first: the items and the files of the old model by their
/// SHA-256, under whatever name. Everything else goes by the names that this crate, diffusers and
/// their training scripts give, so a list without a file is no proof that the file holds nothing.
///
/// | kind | recognised by |
/// |---|---|
/// | [`Subject`](RemainderKind::Subject), [`OldModel`](RemainderKind::OldModel) | SHA-256 |
/// | [`OptimizerState`](RemainderKind::OptimizerState) | a name that begins with `optimizer` or `optimiser` |
/// | [`Checkpoint`](RemainderKind::Checkpoint) | anything else in a folder called `checkpoints`, `checkpoint-…` or `step-…` |
/// | [`Cache`](RemainderKind::Cache) | a name of a file or folder with `cache`, `latents` or `embeddings` |
/// | [`Picture`](RemainderKind::Picture) | a picture whose name, or folder, begins with `before`, `denoised` or `forget` |
/// | [`Link`](RemainderKind::Link) | any link |
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemainsOf {
    /// SHA-256 of the items' files.
    pub subjects: Vec<String>,
    /// SHA-256 of the old model's files of weights.
    pub old_model: Vec<String>,
}

/// Files that may still hold an item, found in some folders.
///
/// Finding changes nothing. [`remove`](Self::remove) removes only what it is told by name, only if
/// it was found, and only if it is still the same file. Links are never followed: neither to
/// search behind them nor to remove what they lead to.
///
/// On most file systems a removed file can be recovered until its place is used again, and backups
/// are not looked at.
///
/// # Example
/// ```
/// use siss::report::audit::{RemainderKind, Remains, RemainsOf};
///
/// # let scratch = tempfile::tempdir()?;
/// # let folder = scratch.path();
/// # std::fs::create_dir_all(folder.join("checkpoints/step-10"))?;
/// # std::fs::write(folder.join("checkpoints/step-10/optimizer.bpk"), "moments")?;
/// # std::fs::write(folder.join("summary.json"), "{}")?;
/// let mut remains = Remains::find(&[folder], &RemainsOf::default())?;
/// let first = remains.files()[0].clone();
/// assert_eq!(first.kind, RemainderKind::OptimizerState);
/// println!("{}: {} ({} bytes)", first.path.display(), first.kind, first.bytes);
///
/// remains.remove(&[&first.path])?;
/// assert!(remains.files().is_empty() && !first.path.exists());
/// assert!(folder.join("summary.json").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// Without links in their paths.
    roots: Vec<PathBuf>,
    files: Vec<Remainder>,
}

impl Remains {
    /// Looks through folders and their subfolders. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::Io`], for instance if a folder cannot be read: a search that leaves one out would
    /// promise too much.
    pub fn find<P: AsRef<Path>>(folders: &[P], of: &RemainsOf) -> Result<Self> {
        let mut remains = Self {
            roots: Vec::new(),
            files: Vec::new(),
        };
        for folder in folders {
            let folder = folder.as_ref();
            let root = fs::canonicalize(folder).map_err(Error::io("reading", folder))?;
            let is_inside = remains.roots.iter().any(|other| root.starts_with(other));
            if !is_inside {
                // A folder around an earlier one would list its files twice.
                remains.roots.retain(|other| !other.starts_with(&root));
                remains.files.retain(|file| !file.path.starts_with(&root));
                remains.search(&root, &root, of)?;
                remains.roots.push(root);
            }
        }
        remains
            .files
            .sort_by(|one, other| one.path.cmp(&other.path));
        Ok(remains)
    }

    /// What was found, sorted by path.
    pub fn files(&self) -> &[Remainder] {
        &self.files
    }

    fn search(&mut self, root: &Path, folder: &Path, of: &RemainsOf) -> Result<()> {
        for path in entries(folder)? {
            let metadata = fs::symlink_metadata(&path).map_err(Error::io("reading", &path))?;
            if metadata.is_symlink() {
                self.files.push(Remainder {
                    path,
                    kind: RemainderKind::Link,
                    bytes: 0,
                    sha256: None,
                });
            } else if metadata.is_dir() {
                self.search(root, &path, of)?;
            } else if metadata.is_file() {
                let (bytes, sha256) = measured(&path)?;
                let named = path.strip_prefix(root).unwrap_or(&path);
                if let Some(kind) = of.kind(named, &sha256) {
                    self.files.push(Remainder {
                        path,
                        kind,
                        bytes,
                        sha256: Some(sha256),
                    });
                }
            }
        }
        Ok(())
    }

    /// Removes these files, which must be among those found, and returns what was removed.
    ///
    /// All are checked before the first is removed. Folders stay.
    ///
    /// # Errors
    /// [`Error::NotRemoved`] for a file that was not found or has changed since, or whose folder is
    /// now reached through a link; nothing was removed then. [`Error::Io`] if the system refuses;
    /// those before it are removed and no longer among [`files`](Self::files).
    pub fn remove<P: AsRef<Path>>(&mut self, paths: &[P]) -> Result<Vec<Remainder>> {
        let chosen = paths.iter().map(|path| self.check(path.as_ref()));
        let chosen: Vec<Remainder> = chosen.collect::<Result<_>>()?;
        for file in &chosen {
            // The same file may be named twice.
            if let Some(place) = self.files.iter().position(|it| it.path == file.path) {
                fs::remove_file(&file.path).map_err(Error::io("removing", &file.path))?;
                sync_folder(file.path.parent().unwrap_or(Path::new(".")))?;
                self.files.remove(place);
            }
        }
        Ok(chosen)
    }

    /// Finds a listed file that is still the same.
    fn check(&self, path: &Path) -> Result<Remainder> {
        let refused = |reason| Error::NotRemoved {
            path: path.into(),
            reason,
        };
        // The folder is resolved, the last part is not: it may be a link that is to go.
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let folder = fs::canonicalize(parent.unwrap_or(Path::new(".")));
        let folder = folder.map_err(Error::io("reading", path))?;
        let place = folder.join(path.file_name().unwrap_or_default());
        let found = self.files.iter().find(|file| file.path == place);
        let found = found.ok_or_else(|| refused("it is not in the list"))?;
        let is_inside = self.roots.iter().any(|root| place.starts_with(root));
        if !is_inside {
            return Err(refused("it is outside of the folders that were searched"));
        }
        let metadata = fs::symlink_metadata(&place).map_err(Error::io("reading", path))?;
        let is_same = match &found.sha256 {
            None => metadata.is_symlink(),
            Some(sha256) => metadata.is_file() && measured(&place)?.1 == *sha256,
        };
        match is_same {
            true => Ok(found.clone()),
            false => Err(refused("it has changed since it was listed")),
        }
    }
}

impl RemainsOf {
    /// How a file may hold the item, by its path from the searched folder on and its content.
    fn kind(&self, path: &Path, sha256: &str) -> Option<RemainderKind> {
        let parts = path.components();
        let parts = parts.map(|part| part.as_os_str().to_string_lossy().to_lowercase());
        let mut folders: Vec<String> = parts.collect();
        let name = folders.pop().unwrap_or_default();
        let begins = |text: &str, starts: &[&str]| starts.iter().any(|it| text.starts_with(it));
        let is_cached = |text: &String| {
            let signs = ["cache", "latents", "embeddings"];
            signs.iter().any(|sign| text.contains(sign))
        };
        let in_checkpoint = folders
            .iter()
            .any(|folder| folder == "checkpoints" || begins(folder, &["checkpoint-", "step-"]));
        let shows = ["before", "denoised", "forget"];
        let is_shown = begins(&name, &shows) || folders.iter().any(|it| begins(it, &shows));
        if self.subjects.iter().any(|it| it == sha256) {
            Some(RemainderKind::Subject)
        } else if self.old_model.iter().any(|it| it == sha256) {
            Some(RemainderKind::OldModel)
        } else if begins(&name, &["optimizer", "optimiser"]) {
            Some(RemainderKind::OptimizerState)
        } else if in_checkpoint {
            Some(RemainderKind::Checkpoint)
        } else if is_cached(&name) || folders.iter().any(is_cached) {
            Some(RemainderKind::Cache)
        } else if is_shown && is_picture(&name) {
            Some(RemainderKind::Picture)
        } else {
            None
        }
    }
}

fn is_picture(name: &str) -> bool {
    let ends = [
        ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg",
    ];
    ends.iter().any(|end| name.ends_with(end))
}
