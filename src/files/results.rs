//! The result files of a run, which appear in their folder together or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Lock, entries, is_there, path_text, remove_all, rename, sync_file, sync_folder};
use crate::error::{Error, Result};

/// Folder of results that are being written.
///
/// The remains of a killed process are removed when the folder is opened again.
const UNFINISHED: &str = ".unfinished";
/// Folder of complete results that are being moved into place.
///
/// If the process is killed, the move is completed when the folder is opened again.
const FINISHED: &str = ".finished";
/// Prefix of earlier results that are being replaced.
const REPLACED: &str = ".replaced-";
const LOCK: &str = "lock";

/// A folder in which the results of a run appear together or not at all.
///
/// Results are written into [`path`](Self::path), a hidden folder, and [`publish`](Self::publish)
/// moves them into place. Until then the results of an earlier run are unchanged; then they are
/// replaced together, so that new weights are never next to old figures. If `publish` fails, the
/// earlier results are put back. If the process is killed during `publish`, the visible results are
/// those of a single run, and the next [`open`](Self::open) completes the move.
///
/// Anything else in the folder is left alone, such as the log and the checkpoints of a run that
/// continues.
///
/// # Example
/// ```
/// # let scratch = tempfile::tempdir()?;
/// # let folder = scratch.path().join("out");
/// let results = siss::files::ResultFolder::open(&folder, &["model.bpk", "summary.json"])?;
/// std::fs::write(results.path().join("model.bpk"), "weights")?;
/// std::fs::write(results.path().join("summary.json"), "{}")?;
/// assert!(!folder.join("model.bpk").exists());
/// results.publish()?;
/// assert!(folder.join("model.bpk").exists() && folder.join("summary.json").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ResultFolder {
    folder: PathBuf,
    names: Vec<String>,
    /// Held until the results are complete.
    lock: Option<Lock>,
    /// Whether the folder was created here.
    is_new: bool,
}

impl ResultFolder {
    /// Opens a folder, which is created if it does not exist, for results with these names: files,
    /// or folders with their contents.
    ///
    /// # Errors
    /// [`Error::FolderInUse`] if another process is writing results there; [`Error::Io`].
    pub fn open(folder: impl Into<PathBuf>, names: &[&str]) -> Result<Self> {
        let folder = folder.into();
        let is_new = !is_there(&folder);
        let unfinished = folder.join(UNFINISHED);
        fs::create_dir_all(&unfinished).map_err(Error::io("creating", &unfinished))?;
        let Some(lock) = Lock::take(&unfinished.join(LOCK))? else {
            return Err(Error::FolderInUse { folder });
        };
        let results = Self {
            folder,
            names: names.iter().map(|&name| name.to_owned()).collect(),
            lock: Some(lock),
            is_new,
        };
        results.recover()?;
        for path in results.staged()? {
            remove_all(&path)?;
        }
        Ok(results)
    }

    /// The path under which to write the results.
    pub fn path(&self) -> PathBuf {
        self.folder.join(UNFINISHED)
    }

    /// The results of an earlier run that [`publish`](Self::publish) replaces or removes.
    pub fn earlier(&self) -> Vec<PathBuf> {
        let places = self.names.iter().map(|name| self.folder.join(name));
        places.filter(|place| is_there(place)).collect()
    }

    /// Moves all results into place, and removes earlier results with names that were not written
    /// again.
    ///
    /// When this returns, everything is on disk.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a file with another name; [`Error::Io`] with the path. The
    /// earlier results are then in place, unless only their removal failed.
    pub fn publish(mut self) -> Result<()> {
        self.check_names()?;
        sync_all(&self.path())?;
        let set_aside = self.set_aside();
        if let Err(error) = set_aside.and_then(|()| self.complete()) {
            // Results that cannot be put back now are put back when the folder is opened again.
            let _ = restore(&self.folder);
            return Err(error);
        }
        if let Err(error) = bring_in(&self.folder) {
            let _ = self.take_back().and_then(|()| restore(&self.folder));
            return Err(error);
        }
        tidy(&self.folder)
    }

    /// From here on the new results count.
    fn complete(&mut self) -> Result<()> {
        sync_folder(&self.folder)?;
        // Windows does not rename a folder that contains an open file.
        self.lock = None;
        remove_all(&self.path().join(LOCK))?;
        rename(&self.path(), &self.folder.join(FINISHED))?;
        sync_folder(&self.folder)
    }

    /// The results written so far.
    fn staged(&self) -> Result<Vec<PathBuf>> {
        let mut paths = entries(&self.path())?;
        paths.retain(|path| !path.ends_with(LOCK));
        Ok(paths)
    }

    fn check_names(&self) -> Result<()> {
        let is_other = |path: &&PathBuf| self.names.iter().all(|name| !path.ends_with(name));
        match self.staged()?.iter().find(is_other) {
            None => Ok(()),
            Some(path) => Err(Error::InvalidSetting {
                what: format!("{} is not one of the announced results", path_text(path)),
                remedy: "pass its name to `ResultFolder::open`",
            }),
        }
    }

    /// Moves the earlier result of each name out of the way.
    fn set_aside(&self) -> Result<()> {
        for name in &self.names {
            let place = self.folder.join(name);
            if is_there(&place) {
                rename(&place, &self.folder.join(format!("{REPLACED}{name}")))?;
            }
        }
        Ok(())
    }

    /// Undoes a [`bring_in`] that failed half way.
    fn take_back(&self) -> Result<()> {
        let finished = self.folder.join(FINISHED);
        for name in &self.names {
            let (place, staged) = (self.folder.join(name), finished.join(name));
            if is_there(&place) && !is_there(&staged) {
                rename(&place, &staged)?;
            }
        }
        rename(&finished, &self.path())
    }

    /// Completes what a killed process began.
    fn recover(&self) -> Result<()> {
        match is_there(&self.folder.join(FINISHED)) {
            true => {
                bring_in(&self.folder)?;
                tidy(&self.folder)
            }
            false => restore(&self.folder),
        }
    }
}

impl Drop for ResultFolder {
    fn drop(&mut self) {
        // If it cannot be removed now, it is removed when the folder is opened again.
        let _ = remove_all(&self.path());
        if self.is_new {
            // Fails, as intended, if the folder is not empty.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Puts earlier results back, when there are no complete new ones.
fn restore(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if let Some(name) = replaced_name(&path) {
            rename(&path, &folder.join(name))?;
        }
    }
    Ok(())
}

/// Moves complete results into place; nothing else may be there.
fn bring_in(folder: &Path) -> Result<()> {
    for path in entries(&folder.join(FINISHED))? {
        let name = path.file_name().unwrap_or_default();
        rename(&path, &folder.join(name))?;
    }
    sync_folder(folder)
}

/// Removes the replaced results.
///
/// The empty folder is removed last: while it exists, the new results are complete.
fn tidy(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if replaced_name(&path).is_some() {
            remove_all(&path)?;
        }
    }
    remove_all(&folder.join(FINISHED))?;
    sync_folder(folder)
}

fn replaced_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(REPLACED)
}

/// Makes all files in a folder durable.
fn sync_all(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => sync_all(&path)?,
            Ok(metadata) if metadata.is_file() => sync_file(&path)?,
            Ok(_) => {}
            Err(error) => return Err(Error::io("reading", path)(error)),
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["model", "samples", "summary.json"];

    /// Writes results that name their run, with samples or without.
    fn write(results: &ResultFolder, whose: &str, samples: bool) {
        let path = |name: &str| results.path().join(name);
        fs::create_dir(path("model")).unwrap();
        fs::write(path("model/weights"), whose).unwrap();
        fs::write(path("summary.json"), whose).unwrap();
        if samples {
            fs::create_dir(path("samples")).unwrap();
            fs::write(path("samples/0.png"), whose).unwrap();
        }
    }

    fn open(folder: &Path) -> ResultFolder {
        ResultFolder::open(folder, &NAMES).unwrap()
    }

    fn publish(folder: &Path, whose: &str, samples: bool) {
        let results = open(folder);
        write(&results, whose, samples);
        results.publish().unwrap();
    }

    /// All files below a folder with their contents, `path=contents`.
    fn seen(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for path in entries(folder).unwrap() {
            if path.is_dir() {
                found.extend(seen(&path));
            } else {
                let name =
                    path.strip_prefix(folder.ancestors().find(|f| f.ends_with("out")).unwrap());
                let text = fs::read_to_string(&path).unwrap();
                found.push(format!("{}={text}", name.unwrap().display()));
            }
        }
        found
    }

    const NEW: [&str; 2] = ["model/weights=new", "summary.json=new"];
    const OLD: [&str; 3] = ["model/weights=old", "samples/0.png=old", "summary.json=old"];

    #[test]
    fn results_replace_earlier_ones_as_a_whole_and_leave_the_rest_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("a/out");
        publish(&folder, "old", true);
        assert_eq!(seen(&folder), OLD);
        fs::write(folder.join("notes"), "mine").unwrap();

        let results = open(&folder);
        let earlier = NAMES.map(|name| folder.join(name));
        assert_eq!(results.earlier(), earlier);
        write(&results, "new", false);
        let mut whole = seen(&folder);
        whole.retain(|line| !line.starts_with('.'));
        assert_eq!(whole, [OLD[0], "notes=mine", OLD[1], OLD[2]]);
        results.publish().unwrap();
        assert_eq!(seen(&folder), [NEW[0], "notes=mine", NEW[1]]);
        assert!(open(&folder.join("empty")).earlier().is_empty());
    }

    #[test]
    fn results_that_are_not_published_leave_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("out");
        write(&open(&folder), "new", true);
        assert!(!folder.exists());
        publish(&folder, "old", true);
        write(&open(&folder), "new", true);
        assert_eq!(seen(&folder), OLD);
        assert_eq!(entries(&folder).unwrap().len(), 3);
    }

    /// Whenever a process is killed, a folder that is opened again holds the complete results of
    /// one run, and before that it never shows a mix of two.
    #[test]
    fn a_killed_process_leaves_one_run() {
        let scratch = tempfile::tempdir().unwrap();
        type Kill = fn(&mut ResultFolder);
        let moments: [(Kill, &[&str]); 4] = [
            (|_| {}, &OLD),
            (|results| results.set_aside().unwrap(), &OLD),
            (
                |results| {
                    let place = |name: &str| results.folder.join(name);
                    rename(&place("model"), &place(".replaced-model")).unwrap();
                },
                &OLD,
            ),
            (
                |results| {
                    results.set_aside().unwrap();
                    results.complete().unwrap();
                    let place = |name: &str| results.folder.join(name);
                    rename(&place(".finished/model"), &place("model")).unwrap();
                },
                &NEW,
            ),
        ];
        for (index, (kill, expected)) in moments.into_iter().enumerate() {
            let folder = scratch.path().join(format!("{index}/out"));
            publish(&folder, "old", true);
            let mut results = open(&folder);
            write(&results, "new", false);
            kill(&mut results);
            let visible = seen(&folder);
            let of = |whose: &str| {
                let is_seen = |line: &&String| !line.starts_with('.') && line.ends_with(whose);
                visible.iter().filter(is_seen).count()
            };
            assert!(of("old") == 0 || of("new") == 0, "{index}: {visible:?}");
            // A killed process runs no destructor, but its lock is released.
            results.lock = None;
            std::mem::forget(results);
            drop(open(&folder));
            assert_eq!(seen(&folder), expected, "{index}");
            let left = entries(&folder).unwrap();
            assert_eq!(left.len(), expected.len(), "{index}: {left:?}");
        }
    }

    #[test]
    fn where_publishing_fails_the_earlier_results_are_back() {
        let scratch = tempfile::tempdir().unwrap();
        // A folder that is not empty first blocks the place for earlier results, then that for
        // complete results.
        for taken in [".replaced-summary.json/a", ".finished/a"] {
            let folder = scratch
                .path()
                .join(taken.split('/').next().unwrap())
                .join("out");
            publish(&folder, "old", true);
            let results = open(&folder);
            write(&results, "new", true);
            fs::create_dir_all(folder.join(taken)).unwrap();
            let error = results.publish().unwrap_err();
            let name = taken.split('/').next().unwrap();
            assert!(error.to_string().contains(name), "{error}");
            fs::remove_dir_all(folder.join(name)).unwrap_or_default();
            for line in OLD {
                assert!(
                    seen(&folder).contains(&line.into()),
                    "{taken}: {:?}",
                    seen(&folder)
                );
            }
        }
    }

    #[test]
    fn a_second_process_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("out");
        let first = open(&folder);
        let error = ResultFolder::open(&folder, &NAMES).unwrap_err();
        assert!(matches!(error, Error::FolderInUse { .. }), "{error}");
        drop(first);
        let results = open(&folder);
        fs::write(results.path().join("notes"), "").unwrap();
        let error = results.publish().unwrap_err().to_string();
        assert!(
            error.contains("notes is not one of the announced results"),
            "{error}"
        );
        // The error names a path that is not a folder.
        fs::write(scratch.path().join("file"), "").unwrap();
        let error = ResultFolder::open(scratch.path().join("file"), &NAMES).unwrap_err();
        assert!(error.to_string().contains("file/.unfinished:"), "{error}");
    }
}
