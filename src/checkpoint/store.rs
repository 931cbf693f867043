//! Checkpoints on disk: a folder each, there as a whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::manifest::{FileRecord, MANIFEST, Manifest};
use crate::error::{Error, Result};

const LOCK: &str = "lock";
/// Folders that are being written or removed. What a killed process leaves of them goes when the store is opened.
const SCRATCH: &str = ".scratch-";
const PREFIX: &str = "step-";
/// A checkpoint that is being replaced by another of the same step.
const REPLACED: &str = ".old";

/// The folder of a run's checkpoints, locked against other writers for as long as this lives.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    lock: File,
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing is not enough while a process that another thread has just started still holds a copy of the handle.
        let _ = self.lock.unlock();
    }
}

/// A file of a checkpoint: its name, and what writes it to a path.
pub(super) type NewFile<'a> = (&'static str, Box<dyn FnOnce(&Path) -> Result<()> + 'a>);

/// A folder that has the name of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub step: u64,
    pub path: PathBuf,
}

impl Store {
    /// Creates the folder if there is none, locks it and clears away what a killed writer left.
    ///
    /// # Errors
    /// [`Error::CheckpointsInUse`]; [`Error::Io`].
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(Error::io("creating", &folder))?;
        let path = folder.join(LOCK);
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Error::io("creating", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::CheckpointsInUse { folder }),
            Err(TryLockError::Error(source)) => return Err(Error::io("locking", path)(source)),
        }
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

    /// What has the name of a checkpoint, newest first; whether it is one is not looked at.
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

    /// Writes the checkpoint of a step, file by file. When this returns it is on disk; when it fails, or never returns, what was
    /// there before is there still.
    ///
    /// # Errors
    /// [`Error::Io`] with the file or folder; those of what writes a file.
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
        if fs::symlink_metadata(&target).is_err() {
            scratch.rename_to(&target)?;
            sync_folder(&self.folder)?;
        } else if Manifest::verify(&target) != Ok(manifest) {
            self.replace(&scratch, &target)?;
        }
        Ok(target)
    }

    /// Puts a checkpoint in the place of another of its step, which is a candidate under either name until the new one is there.
    fn replace(&self, scratch: &Scratch, target: &Path) -> Result<()> {
        let mut old = target.as_os_str().to_owned();
        old.push(REPLACED);
        let old = PathBuf::from(old);
        self.remove(&old)?;
        rename(target, &old)?;
        if let Err(error) = scratch.rename_to(target) {
            // Back to what was there; should that fail too, it is still found under its other name.
            let _ = rename(&old, target);
            return Err(error);
        }
        sync_folder(&self.folder)?;
        self.remove(&old)
    }

    /// Removes a checkpoint, so that it is never seen in part.
    pub fn remove(&self, path: &Path) -> Result<()> {
        if fs::symlink_metadata(path).is_err() {
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

    fn names(&self) -> Result<Vec<String>> {
        let reading = || Error::io("reading", &self.folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(reading())? {
            // A name that is no text is none of ours.
            names.extend(entry.map_err(reading())?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

/// A folder in the making, removed unless it is given its name.
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

    /// Has a file written, brings it to disk, and tells what it is.
    fn write(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<FileRecord> {
        let path = self.path.join(name);
        write(&path)?;
        let record = FileRecord::of_file(&path, |_| {}).map_err(Error::io("reading", &path))?;
        let synced = OpenOptions::new().write(true).open(&path);
        let synced = synced.and_then(|file| file.sync_all());
        synced.map_err(Error::io("writing", path))?;
        Ok(record)
    }

    fn rename_to(&self, target: &Path) -> Result<()> {
        rename(&self.path, target)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone if it was renamed. Otherwise what cannot be removed now is removed when the store is opened again.
        let _ = remove_all(&self.path);
    }
}

/// Writes a file that is not there yet.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(Error::io("writing", path))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("renaming a folder to", to))
}

/// Removes a file, or a folder and what is in it, if it is there.
fn remove_all(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a folder last. Only Unix lets a folder be opened for it.
fn sync_folder(folder: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::io("writing", folder))
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
        let error = Store::open(first.folder().to_owned()).unwrap_err();
        assert!(matches!(error, Error::CheckpointsInUse { .. }), "{error}");
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
        // Torn, then written again.
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
        // A scratch folder that is not there cannot be renamed.
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
