//! The files of a folder: pictures, the files that accompany them, and files that are not read.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::kind::{TELLING, has_picture_ending, kind};
use super::shards::{self, Members};
use super::unread::{UnreadFile, as_text};
use crate::error::{Error, Result};

/// The pictures and other files found below a path.
#[derive(Debug, Clone, Default)]
pub struct ImageFiles {
    /// Files that are pictures by their content or by the ending of their name, in the order of
    /// their paths.
    ///
    /// The content of files with a known ending is checked only when they are read.
    pub pictures: Vec<PathBuf>,
    /// Files that are not read, links to folders, broken links and everything else that is not a
    /// file, in the order of their paths.
    pub unread: Vec<UnreadFile>,
    /// Files that accompany pictures: `metadata.jsonl`, captions next to a picture of the same
    /// name, `README` and `LICENSE`.
    pub companions: Vec<PathBuf>,
    /// Number of files that programs leave in folders, such as `.DS_Store` and `Thumbs.db`, and of
    /// other hidden files that are not pictures.
    pub litter: usize,
    /// Number of members of shards that accompany pictures.
    pub accompanying: usize,
    pub(super) members: Arc<Members>,
    root: PathBuf,
    /// The root with its links resolved.
    real_root: PathBuf,
    /// The target of each picture that is a link.
    links: HashMap<PathBuf, PathBuf>,
    folders: Vec<UnreadFile>,
    pub(super) taken_out: Vec<TakenOut>,
}

/// Files that were left out because they belong to another set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TakenOut {
    /// The folder or file of the other set.
    #[serde(serialize_with = "as_text")]
    pub of: PathBuf,
    /// Number of files left out.
    pub files: usize,
}

impl ImageFiles {
    /// Searches a folder and its subfolders; a path to a file finds that file.
    ///
    /// Links to files are followed, links to folders are not. Every file that is not among
    /// [`pictures`](Self::pictures) is counted or named.
    ///
    /// A tar archive, as WebDataset writes its shards, counts as a folder: its members have the
    /// path of the archive followed by their name. Its headers are read here, and members where
    /// they lie when they are asked for. `path` may also be a pattern such as
    /// `shard-{000..009}.tar`. An archive that is cut off or damaged, or has links, sparse files or
    /// names that lead out of it, is among the [`unread`](Self::unread), with the member.
    ///
    /// # Errors
    /// [`Error::Io`] if the path does not exist or is not readable; [`Error::InvalidFile`] for a
    /// pattern that counts down.
    ///
    /// # Example
    /// ```
    /// use siss::images::ImageFiles;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// std::fs::write(folder.join("a.png"), "").unwrap();
    /// std::fs::write(folder.join("notes"), "what I saw").unwrap();
    /// let found = ImageFiles::find(folder)?;
    /// assert_eq!(found.pictures, [folder.join("a.png")]);
    /// assert_eq!(found.unread[0].path, folder.join("notes"));
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn find(path: &Path) -> Result<Self> {
        let pattern = shards::expanded(path)?;
        let root = match (&pattern, path.parent()) {
            (Some(_), Some(folder)) if folder.as_os_str().is_empty() => Path::new("."),
            (Some(_), Some(folder)) => folder,
            _ => path,
        };
        let reading = || Error::io("reading", root);
        let mut found = Self {
            root: root.into(),
            real_root: root.canonicalize().map_err(reading())?,
            ..Self::default()
        };
        if let Some(shards) = pattern {
            shards.into_iter().for_each(|shard| found.shard(shard));
        } else if fs::metadata(path).map_err(reading())?.is_dir() {
            fs::read_dir(path).map_err(reading())?;
            found.folder(path, false);
        } else if shards::is_shard(path) {
            found.shard(path.into());
        } else {
            found.pictures.push(path.into());
        }
        found.pictures.sort();
        found.companions.sort();
        found.unread.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// # Errors
    /// [`Error::UnreadFiles`] if a subfolder or an archive cannot be opened, because its content is
    /// then unknown.
    pub fn check_folders(&self) -> Result<()> {
        refuse(&self.root, &self.folders)
    }

    /// Removes the pictures that also belong to `others`, under whatever path, and returns their
    /// number.
    pub fn take_out(&mut self, others: &ImageFiles) -> usize {
        let paths = others.pictures.iter();
        let theirs: HashSet<PathBuf> = paths.map(|path| others.real_path(path)).collect();
        let before = self.pictures.len();
        let mut pictures = std::mem::take(&mut self.pictures);
        pictures.retain(|path| !theirs.contains(&self.real_path(path)));
        self.pictures = pictures;
        let files = before - self.pictures.len();
        if files > 0 {
            let of = others.root.clone();
            self.taken_out.push(TakenOut { of, files });
        }
        files
    }

    /// The path that was searched.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path with links resolved. Folders below the root are not links, so only the root and
    /// files need resolving.
    fn real_path(&self, path: &Path) -> PathBuf {
        match (self.links.get(path), path.strip_prefix(&self.root)) {
            (Some(real), _) => real.clone(),
            (None, Ok(below)) if below.as_os_str().is_empty() => self.real_root.clone(),
            (None, Ok(below)) => self.real_root.join(below),
            (None, Err(_)) => path.into(),
        }
    }

    /// Sorts the entries of a folder.
    fn folder(&mut self, folder: &Path, is_hidden: bool) {
        let entries: std::io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                let unread = UnreadFile {
                    path: folder.into(),
                    reason: format!("the folder cannot be opened: {error}"),
                };
                self.folders.push(unread.clone());
                self.unread.push(unread);
                return;
            }
        };
        let mut others = Vec::new();
        let mut stems = HashSet::new();
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let is_hidden = is_hidden || name.starts_with('.');
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.folder(&path, is_hidden),
                Ok(kind) if kind.is_symlink() => match self.link(&path) {
                    Ok(real) => {
                        self.links.insert(path.clone(), real);
                        others.extend(self.file(path, is_hidden, &mut stems));
                    }
                    Err(_) if is_hidden => self.litter += 1,
                    Err(reason) => self.unread.push(UnreadFile { path, reason }),
                },
                Ok(kind) if kind.is_file() => {
                    others.extend(self.file(path, is_hidden, &mut stems));
                }
                Ok(_) => self.unread.push(UnreadFile {
                    path,
                    reason: SPECIAL.into(),
                }),
                Err(error) => self.unread.push(UnreadFile {
                    path,
                    reason: error.to_string(),
                }),
            }
        }
        for (path, reason) in others {
            match is_companion(&path, &stems) {
                true => self.companions.push(path),
                false => self.unread.push(UnreadFile { path, reason }),
            }
        }
    }

    /// Sorts the members of a shard.
    fn shard(&mut self, shard: PathBuf) {
        let paths = match Arc::make_mut(&mut self.members).add(shard) {
            Ok(paths) => paths,
            Err(unread) => {
                self.folders.push(unread.clone());
                self.unread.push(unread);
                return;
            }
        };
        let lower = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase()
        };
        let (pictures, others): (Vec<_>, Vec<_>) = paths
            .into_iter()
            .partition(|path| has_picture_ending(&lower(path)));
        let is_hidden = |path: &PathBuf| lower(path).starts_with('.');
        let (hidden, pictures): (Vec<_>, Vec<_>) = pictures.into_iter().partition(is_hidden);
        self.litter += hidden.len();
        let samples: HashSet<PathBuf> = pictures.iter().map(|path| sample(path)).collect();
        self.pictures.extend(pictures);
        for path in others {
            if is_hidden(&path) {
                self.litter += 1;
            } else if samples.contains(&sample(&path)) {
                self.accompanying += 1;
            } else {
                let reason =
                    "a member that is neither a picture nor goes with one of the same name";
                self.unread.push(UnreadFile {
                    path,
                    reason: reason.into(),
                });
            }
        }
    }

    /// The target of a link to a file.
    fn link(&self, path: &Path) -> std::result::Result<PathBuf, String> {
        let metadata = fs::metadata(path)
            .map_err(|error| format!("a broken link ({error}); remove or repair it"))?;
        match metadata.file_type() {
            kind if kind.is_dir() => {
                Err("a link to a folder, which is not followed; put the folder itself there".into())
            }
            kind if !kind.is_file() => Err(SPECIAL.into()),
            _ => path.canonicalize().map_err(|error| error.to_string()),
        }
    }

    /// Sorts a file. If it is not a picture, returns it with its kind. Names of pictures are
    /// collected without their endings.
    fn file(
        &mut self,
        path: PathBuf,
        is_hidden: bool,
        stems: &mut HashSet<PathBuf>,
    ) -> Option<(PathBuf, String)> {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if !is_hidden && shards::is_shard(&path) {
            self.shard(path);
            return None;
        }
        if !is_hidden && has_picture_ending(&name) {
            stems.insert(path.with_extension(""));
            self.pictures.push(path);
            return None;
        }
        let kind = match first_bytes(&path) {
            Ok(start) => kind(&start),
            Err(error) => {
                let reason = format!("the file cannot be opened: {error}");
                self.unread.push(UnreadFile { path, reason });
                return None;
            }
        };
        match kind.refusal() {
            _ if is_hidden && kind.is_picture() => {
                let reason = "a hidden picture, which is not read; rename it without the leading dot, or remove it".into();
                self.unread.push(UnreadFile { path, reason });
                None
            }
            _ if is_hidden || LITTER.contains(&name.as_str()) && !kind.is_picture() => {
                self.litter += 1;
                None
            }
            None => {
                stems.insert(path.with_extension(""));
                self.pictures.push(path);
                None
            }
            Some(reason) if kind.is_picture() => {
                stems.insert(path.with_extension(""));
                self.unread.push(UnreadFile { path, reason });
                None
            }
            Some(reason) => Some((path, reason)),
        }
    }
}

/// # Errors
/// [`Error::UnreadFiles`] if there are any.
pub(super) fn refuse(path: &Path, files: &[UnreadFile]) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    Err(Error::UnreadFiles {
        path: path.into(),
        files: files.to_vec(),
    })
}

const SPECIAL: &str = "neither a file nor a folder, but a socket, a pipe or a device; remove it";

/// Files that programs leave in folders under names that are not hidden.
const LITTER: [&str; 5] = [
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "picasa.ini",
];

/// Metadata files of image data sets, see `imagefolder` of the Python package `datasets`.
const METADATA: [&str; 3] = ["metadata.jsonl", "metadata.csv", "metadata.parquet"];

/// Names, without ending, of files that describe a whole data set.
const PAPERS: [&str; 4] = ["readme", "license", "licence", "copying"];

/// Endings of files that accompany a picture of the same name.
const CAPTIONS: [&str; 10] = [
    "txt", "caption", "captions", "cls", "tags", "json", "yaml", "yml", "xmp", "aae",
];

/// Whether a file that is not a picture accompanies pictures: it has a known name, or the name of a
/// picture next to it, such as `a.txt` and `a.png.txt` for `a.png`.
fn is_companion(path: &Path, stems: &HashSet<PathBuf>) -> bool {
    let lower = |text: &std::ffi::OsStr| text.to_string_lossy().to_ascii_lowercase();
    let (name, ending) = (path.file_name(), path.extension());
    if name.is_some_and(|name| METADATA.contains(&lower(name).as_str())) {
        return true;
    }
    let stem = path.with_extension("");
    if stem
        .file_name()
        .is_some_and(|stem| PAPERS.contains(&lower(stem).as_str()))
    {
        return true;
    }
    ending.is_some_and(|ending| CAPTIONS.contains(&lower(ending).as_str()))
        && (stems.contains(&stem) || stems.contains(&stem.with_extension("")))
}

/// What the members of a sample have in common: the path up to the first dot of the name.
fn sample(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = name.split('.').next().unwrap_or_default();
    path.with_file_name(key)
}

/// The first bytes of a file, enough to tell its kind.
pub(super) fn first_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(TELLING);
    File::open(path)?
        .take(TELLING as u64)
        .read_to_end(&mut start)?;
    Ok(start)
}
