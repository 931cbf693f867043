//! Reading and writing of files and folders.
//!
//! An input that is not an ordinary file is refused before it is opened, because a pipe would block
//! for ever and a device never ends. Outputs appear completely or not at all, with the mode that
//! the umask gives.

pub(crate) mod json;
pub(crate) mod path;
pub(crate) mod refusals;
mod results;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub use path::path_text;
pub use results::ResultFolder;

/// Longest configuration that is read: published ones have a few thousand bytes.
const LONGEST_CONFIGURATION: u64 = 1 << 20;

/// First bytes of the text file that Git LFS puts in place of a large file that has not been
/// fetched.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// A pointer is shorter than this.
const LONGEST_POINTER: u64 = 1024;

/// Opens a file and returns its length.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a folder, a pipe or a device, and for a Git LFS
/// pointer.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let reading = || Error::io("reading", path);
    let metadata = std::fs::metadata(path).map_err(reading())?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is not an ordinary file"));
    }
    let mut file = File::open(path).map_err(reading())?;
    if metadata.len() < LONGEST_POINTER && is_pointer(&mut file).map_err(reading())? {
        let message = "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file";
        return Err(invalid(path, message));
    }
    Ok((file, metadata.len()))
}

fn is_pointer(file: &mut File) -> std::io::Result<bool> {
    let mut beginning = Vec::new();
    let length = POINTER.len() as u64;
    file.take(length).read_to_end(&mut beginning)?;
    file.rewind()?;
    Ok(beginning == POINTER)
}

/// Reads a configuration.
///
/// # Errors
/// Those of [`open`]; [`Error::InvalidFile`] for more than 1 MiB or invalid UTF-8.
pub(crate) fn read_configuration(path: &Path) -> Result<String> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST_CONFIGURATION + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("reading", path))?;
    if bytes.len() as u64 > LONGEST_CONFIGURATION {
        let message = format!("it has {length} bytes; configurations may have at most 1 MiB");
        return Err(invalid(path, message));
    }
    String::from_utf8(bytes)
        .map_err(|error| invalid(path, format!("not a configuration in UTF-8: {error}")))
}

pub(crate) fn invalid(path: &Path, message: impl Into<String>) -> Error {
    Error::InvalidFile {
        path: path.into(),
        message: shortened(message.into()),
    }
}

/// Longest part of a message that comes from a file, in bytes.
const LONGEST_QUOTE: usize = 400;

/// Cuts a text that quotes a file, because a name in the file may have megabytes.
pub(crate) fn shortened(text: String) -> String {
    cut(text, LONGEST_QUOTE)
}

/// Cuts a text to at most `longest` bytes, followed by an ellipsis.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
        text.push('…');
    }
    text
}

/// Writes a file completely or leaves the old one unchanged; the mode is that of a new file.
///
/// # Errors
/// [`Error::Io`] with the path.
#[cfg(any(feature = "models", feature = "report", test))]
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};

    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{number}.tmp", std::process::id()));
    let scratch = path.with_file_name(name);
    // Remains of a killed process with the same process id.
    let _ = fs::remove_file(&scratch);
    let written = File::create_new(&scratch).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&scratch, path)
    });
    if let Err(error) = written {
        // Nothing is there if it could not be created.
        let _ = fs::remove_file(&scratch);
        return Err(Error::io("writing", path)(error));
    }
    sync_folder(folder_of(path))
}

/// The folder that a file is in.
#[cfg(any(feature = "models", feature = "report", test))]
fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    parent.unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable, if the file system supports it.
///
/// Only Unix lets a folder be opened for this.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    where_supported(synced)
        .map(|_| ())
        .map_err(Error::io("writing", folder))
}

/// Makes the contents of a file durable.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    // Windows syncs only files that are open for writing.
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(cfg!(windows)).open(path);
    where_supported(opened.and_then(|file| file.sync_all()))
        .map(|_| ())
        .map_err(Error::io("writing", path))
}

/// Whether an operation was done.
///
/// It is not an error if the file system does not support it, as with some network file systems.
fn where_supported(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the file system reports that it does not support the operation: ENOSYS, ENOTSUP, EINVAL,
/// ENOTTY or ENOLCK.
fn is_unsupported(error: &io::Error) -> bool {
    const NOT_A_TERMINAL: i32 = 25;
    let no_locks = match cfg!(target_vendor = "apple") {
        true => 77,
        false => 37,
    };
    let numbered = error.raw_os_error();
    matches!(
        error.kind(),
        ErrorKind::Unsupported | ErrorKind::InvalidInput
    ) || (cfg!(unix) && numbered.is_some_and(|number| [NOT_A_TERMINAL, no_locks].contains(&number)))
}

/// A lock on a folder against other writers, held while this value exists.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    is_held: bool,
}

impl Lock {
    /// Creates the file if it does not exist, and locks it.
    ///
    /// Returns `None` if another holds the lock.
    ///
    /// # Errors
    /// [`Error::Io`]. A file system without locks is not an error.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io("creating", path))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        };
        let is_held = where_supported(locked).map_err(Error::io("locking", path))?;
        Ok(Some(Self { file, is_held }))
    }

    /// Whether the file system enforces the lock.
    pub fn is_held(&self) -> bool {
        self.is_held
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread has just started may still
        // hold a copy of the handle.
        let _ = self.file.unlock();
    }
}

/// Renames a file or folder.
///
/// # Errors
/// [`Error::Io`] with the new path.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("renaming to", to))
}

/// Whether there is anything at a path, including a broken link.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file, or a folder with its contents, if it exists.
///
/// Read-only folders are made writable first.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn remove_all(path: &Path) -> Result<()> {
    let remove = || match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    let mut removed = remove();
    if matches!(&removed, Err(error) if error.kind() == ErrorKind::PermissionDenied) {
        make_writable(path);
        removed = remove();
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a folder and the folders in it writable for the owner.
///
/// A folder that cannot be changed causes an error later, when it is removed.
fn make_writable(folder: &Path) {
    let Ok(metadata) = fs::symlink_metadata(folder) else {
        return;
    };
    if !metadata.is_dir() {
        return;
    }
    let mut permissions = metadata.permissions();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(permissions.mode() | 0o700);
    }
    #[cfg(not(unix))]
    #[allow(
        clippy::permissions_set_readonly_false,
        reason = "an attribute there, and not for all"
    )]
    permissions.set_readonly(false);
    let _ = fs::set_permissions(folder, permissions);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        make_writable(&entry.path());
    }
}

/// The paths in a folder, sorted by name.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || Error::io("reading", folder);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading())? {
        paths.push(entry.map_err(reading())?.path());
    }
    paths.sort();
    Ok(paths)
}

/// SHA-256 as 64 hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Length and SHA-256 of a file; `look` is called with its contents part by part.
pub(crate) fn length_and_sha256(
    path: &Path,
    mut look: impl FnMut(&[u8]),
) -> io::Result<(u64, String)> {
    let (mut file, mut digest, mut length) = (File::open(path)?, Sha256::new(), 0);
    let mut part = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut part)?;
        if read == 0 {
            return Ok((length, format!("{:x}", digest.finalize())));
        }
        digest.update(&part[..read]);
        look(&part[..read]);
        length += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[cfg(unix)]
    #[test]
    fn any_two_names_are_told_apart() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let text = |bytes: &[u8]| path_text(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(text(b"caf\xe9.png"), r"caf\xE9.png");
        assert_eq!(text("café/日本.png".as_bytes()), "café/日本.png");
        assert_eq!(text(b"a\nb\tc\x1b[2J"), r"a\nb\tc\u{1b}[2J");
        assert_eq!(text("a\u{202e}gnp".as_bytes()), r"a\u{202e}gnp");
        // A name that looks like an escaped one.
        assert_eq!(text(br"caf\xE9.png"), r"caf\\xE9.png");
        let names: [&[u8]; 8] = [
            b"a\xe9",
            b"a\xe8",
            br"a\xE9",
            br"a\\xE9",
            b"a\n",
            br"a\n",
            b"a\xff\xfe",
            "a\u{fffd}".as_bytes(),
        ];
        let texts: std::collections::HashSet<_> = names.map(text).into();
        assert_eq!(texts.len(), names.len());
    }

    /// A replaced file is a new file, so it does not inherit the mode of a private or read-only
    /// one.
    #[cfg(unix)]
    #[test]
    fn a_replaced_file_has_the_mode_of_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("ordinary"), "").unwrap();
        for before in [0o600, 0o444, 0o777] {
            fs::write(path("file"), "old").unwrap();
            fs::set_permissions(path("file"), fs::Permissions::from_mode(before)).unwrap();
            replace(&path("file"), |file| io::Write::write_all(file, b"new")).unwrap();
            assert_eq!(fs::read(path("file")).unwrap(), b"new");
            assert_eq!(mode(&path("file")), mode(&path("ordinary")));
            fs::remove_file(path("file")).unwrap();
        }
        fs::write(path("file"), "old").unwrap();
        let error = replace(&path("file"), |_| Err(io::Error::other("disk full"))).unwrap_err();
        assert!(error.to_string().contains("/file: disk full"), "{error}");
        assert_eq!(fs::read(path("file")).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_file_system_does_not_do_is_no_error_and_what_fails_is() {
        // EINVAL, ENOSYS, EOPNOTSUPP, ENOTTY, ENOLCK.
        for number in [22, 38, 95, 25, 37] {
            let done = where_supported(Err(io::Error::from_raw_os_error(number)));
            assert!(!done.unwrap(), "{number}");
        }
        // EIO, ENOSPC, EACCES, EROFS, EDQUOT.
        for number in [5, 28, 13, 30, 122] {
            assert!(where_supported(Err(io::Error::from_raw_os_error(number))).is_err());
        }
        assert!(where_supported(Ok(())).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn read_only_folders_are_removed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("model");
        fs::create_dir_all(top.join("unet")).unwrap();
        fs::write(top.join("unet/config.json"), "{}").unwrap();
        for path in ["model/unet/config.json", "model/unet", "model"] {
            let path = folder.path().join(path);
            fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
        }
        remove_all(&top).unwrap();
        assert!(!is_there(&top));
        remove_all(&top).unwrap();
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        assert_eq!(shortened("a".repeat(400)).len(), 400);
        let cut = shortened(format!("a{}", "ü".repeat(400)));
        assert_eq!(cut, format!("a{}…", "ü".repeat(199)));
    }
}
