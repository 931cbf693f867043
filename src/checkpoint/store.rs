//! Checkpoints on disk: one folder each, which exists completely or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::manifest::{FileRecord, MANIFEST, Manifest};
use crate::error::{Error, Result};
use crate::files::{Lock, entries, is_there, remove_all, rename, sync_file, sync_folder};

const LOCK: &str = "lock";
/// Prefix of folders that are being written or removed.
///
/// The remains of a killed process are removed when the store is opened.
const SCRATCH: &str = ".scratch-";
const PREFIX: &str = "step-";
/// Suffix of a checkpoint that is being replaced by another of the same step.
const REPLACED: &str = ".old";

/// The folder of a run's checkpoints, locked against other writers while this value exists.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    lock: Lock,
}

/// A file of a checkpoint: its name, and the function that writes it to a path.
pub(super) type NewFile<'a> = (&'static str, Box<dyn FnOnce(&Path) -> Result<()> + 'a>);

/// A folder that has the name of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub step: u64,
    pub path: PathBuf,
}

impl Store {
    /// Creates the folder if it does not exist, locks it and removes what a killed writer left.
    ///
    /// # Errors
    /// [`Error::FolderInUse`]; [`Error::Io`].
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(Error::io("creating", &folder))?;
        let Some(lock) = Lock::take(&folder.join(LOCK))? else {
            return Err(Error::FolderInUse { folder });
        };
        let store = Self { folder, lock };
        sync_folder(&store.folder)?;
        let parent = store
            .folder
            .parent()
            .filter(|parent| *parent != Path::new(""));
        sync_folder(parent.unwrap_or(Path::new(".")))?;
        for name in store.names()? {
            if name.starts_with(SCRATCH) {
                remove_all(&store.folder.join(name))?;
            }
        }
        Ok(store)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether other writers are locked out: some file systems have no locks.
    pub fn is_locked(&self) -> bool {
        self.lock.is_held()
    }

    /// Folders with the name of a checkpoint, newest first; their contents are not checked.
    pub fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut found: Vec<_> = self
            .names()?
            .into_iter()
            .filter_map(|name| {
                let (digits, is_current) = match name.strip_suffix(REPLACED) {
                    Some(digits) => (digits, false),
                    None => (name.as_str(), true),
                };
                let step: u64 = digits.strip_prefix(PREFIX)?.parse().ok()?;
                let path = self.folder.join(&name);
                Some((step, is_current, Candidate { step, path }))
            })
            .collect();
        found.sort_by_key(|(step, is_current, _)| std::cmp::Reverse((*step, *is_current)));
        Ok(found
            .into_iter()
            .map(|(_, _, candidate)| candidate)
            .collect())
    }

    /// Writes the checkpoint of a step, file by file.
    ///
    /// When this returns, the checkpoint is on disk. If it fails or the process is killed, the
    /// earlier state is still there.
    ///
    /// # Errors
    /// [`Error::Io`] with the file or folder; those of the functions that write the files.
    pub fn write(&self, step: u64, files: Vec<NewFile<'_>>) -> Result<PathBuf> {
        let target = self.folder.join(format!("{PREFIX}{step:010}"));
        let scratch = Scratch::create(self.scratch(&format!("write-{step}")))?;
        let mut records = BTreeMap::new();
        for (name, write) in files {
            records.insert(name.to_owned(), scratch.write(name, write)?);
        }
        let manifest = Manifest::new(step, records);
        scratch.write(MANIFEST, |path| {
            write_bytes(path, manifest.text().as_bytes())
        })?;
        sync_folder(&scratch.path)?;
        if !is_there(&target) {
            scratch.rename_to(&target)?;
            sync_folder(&self.folder)?;
        } else if Manifest::verify(&target) != Ok(manifest) {
            self.replace(&scratch, &target)?;
        }
        Ok(target)
    }

    /// Replaces a checkpoint by another of the same step.
    ///
    /// The old one is a candidate under one of its two names until the new one is in place.
    fn replace(&self, scratch: &Scratch, target: &Path) -> Result<()> {
        let mut old = target.as_os_str().to_owned();
        old.push(REPLACED);
        let old = PathBuf::from(old);
        self.remove(&old)?;
        rename(target, &old)?;
        if let Err(error) = scratch.rename_to(target) {
            // Restore the old one; if that fails too, it is still found under its other name.
            let _ = rename(&old, target);
            return Err(error);
        }
        sync_folder(&self.folder)?;
        self.remove(&old)
    }

    /// Removes a checkpoint, so that it is never visible in part.
    pub fn remove(&self, path: &Path) -> Result<()> {
        if !is_there(path) {
            return Ok(());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let doomed = self.scratch(&format!("remove-{name}"));
        rename(path, &doomed)?;
        sync_folder(&self.folder)?;
        remove_all(&doomed)
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{SCRATCH}{name}"))
    }

    /// The names in the folder.
    ///
    /// Names that are not UTF-8 are skipped: they are not checkpoints.
    fn names(&self) -> Result<Vec<String>> {
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(entries(&self.folder)?
            .into_iter()
            .filter_map(name)
            .collect())
    }
}

/// A folder that is being written; it is removed unless it is renamed to its final name.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(path: PathBuf) -> Result<Self> {
        remove_all(&path)?;
        fs::create_dir(&path).map_err(Error::io("creating", &path))?;
        Ok(Self { path })
    }

    /// Writes a file with a function, flushes it to disk, and returns its record.
    fn write(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<FileRecord> {
        let path = self.path.join(name);
        write(&path)?;
        let record = FileRecord::of_file(&path, |_| {}).map_err(Error::io("reading", &path))?;
        sync_file(&path)?;
        Ok(record)
    }

    fn rename_to(&self, target: &Path) -> Result<()> {
        rename(&self.path, target)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is left if it was renamed. If it cannot be removed now, it is removed when the
        // store is opened again.
        let _ = remove_all(&self.path);
    }
}

/// Writes a file that does not exist yet.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(Error::io("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder.join("checkpoints")).unwrap()
    }

    fn files(text: &'static str) -> Vec<NewFile<'static>> {
        let write = |path: &Path| write_bytes(path, text.as_bytes());
        vec![("model.bpk", Box::new(write))]
    }

    fn steps(store: &Store) -> Vec<u64> {
        let candidates = store.candidates().unwrap();
        candidates.iter().map(|candidate| candidate.step).collect()
    }

    #[test]
    fn checkpoints_are_found_newest_first_and_everything_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        for step in [5, 20, 10] {
            store.write(step, files("weights")).unwrap();
        }
        for name in ["step-", "step-x", "notes", "step-7.txt"] {
            fs::write(store.folder().join(name), "").unwrap();
        }
        assert_eq!(steps(&store), [20, 10, 5]);
        store.remove(&store.candidates().unwrap()[1].path).unwrap();
        assert_eq!(steps(&store), [20, 5]);
        assert!(store.folder().join("notes").exists());
    }

    #[test]
    fn a_second_writer_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        assert!(first.is_locked());
        let error = Store::open(first.folder().to_owned()).unwrap_err();
        assert!(matches!(error, Error::FolderInUse { .. }), "{error}");
        drop(first);
        store(folder.path());
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_what_it_replaced_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path());
        let path = first.write(5, files("old")).unwrap();
        fs::rename(&path, path.with_extension("old")).unwrap();
        fs::create_dir(first.scratch("write-5")).unwrap();
        fs::write(first.scratch("write-5").join("model.bpk"), "torn").unwrap();
        drop(first);

        let second = store(folder.path());
        assert!(!second.scratch("write-5").exists());
        let found = second.candidates().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(Manifest::verify(&found[0].path).unwrap().step, 5);
    }

    #[test]
    fn a_checkpoint_of_the_same_step_is_replaced_unless_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = store.write(5, files("old")).unwrap();
        let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let first = written(&path.join(MANIFEST));
        store.write(5, files("old")).unwrap();
        assert_eq!(written(&path.join(MANIFEST)), first);
        store.write(5, files("new")).unwrap();
        assert_eq!(fs::read(path.join("model.bpk")).unwrap(), b"new");
        // Truncated, then written again.
        fs::write(path.join("model.bpk"), "ne").unwrap();
        store.write(5, files("new")).unwrap();
        assert_eq!(Manifest::verify(&path).unwrap().step, 5);
        assert_eq!(steps(&store), [5]);
    }

    #[test]
    fn a_failing_rename_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = store.write(5, files("old")).unwrap();
        // A scratch folder that does not exist cannot be renamed.
        let gone = Scratch {
            path: store.scratch("gone"),
        };
        let error = store.replace(&gone, &path).unwrap_err();
        let Error::Io { path: named, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(named, &path);
        assert_eq!(Manifest::verify(&path).unwrap().step, 5);
        assert_eq!(steps(&store), [5]);
    }

    #[test]
    fn what_was_replaced_comes_after_what_replaced_it_and_is_not_in_its_way() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = store.write(5, files("old")).unwrap();
        let replaced = path.with_extension("old");
        fs::create_dir(&replaced).unwrap();
        fs::write(replaced.join("model.bpk"), "older").unwrap();
        let found = store.candidates().unwrap().into_iter();
        let found: Vec<_> = found.map(|candidate| candidate.path).collect();
        assert_eq!(found, [path.clone(), replaced.clone()]);
        store.write(5, files("new")).unwrap();
        assert_eq!(fs::read(path.join("model.bpk")).unwrap(), b"new");
        assert!(!replaced.exists());
    }
}
