//! Files and folders. What comes from elsewhere and is no ordinary file is refused before it is opened, for a pipe would wait
//! for ever and a device never ends. What is written appears as a whole, with the mode that the umask gives.

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

/// What Git leaves in the place of a large file until it is asked for it: a text that begins like this.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// A pointer is shorter than this.
const LONGEST_POINTER: u64 = 1024;

/// Opens a file and says how long it is.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a folder, a pipe or a device, and for a pointer of Git LFS.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let reading = || Error::io("reading", path);
    let metadata = std::fs::metadata(path).map_err(reading())?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is no ordinary file"));
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
/// As [`open`]; [`Error::InvalidFile`] for more than 1 MiB or what is no UTF-8.
pub(crate) fn read_configuration(path: &Path) -> Result<String> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST_CONFIGURATION + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("reading", path))?;
    if bytes.len() as u64 > LONGEST_CONFIGURATION {
        let message = format!("it has {length} bytes; a configuration of at most 1 MiB is read");
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

/// A text that quotes a file, cut where it goes on for too long: a name may have megabytes.
pub(crate) fn shortened(text: String) -> String {
    cut(text, LONGEST_QUOTE)
}

/// A text of at most `longest` bytes and an ellipsis.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
        text.push('…');
    }
    text
}

/// Writes a file that is there as a whole or as it was before, with the mode of a new file.
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
    // What a killed process of the same number left.
    let _ = fs::remove_file(&scratch);
    let written = File::create_new(&scratch).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&scratch, path)
    });
    if let Err(error) = written {
        // Not there if it could not be made.
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

/// Makes the names in a folder last, where the file system can. Only Unix lets a folder be opened for it.
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

/// Makes what is in a file last.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    // Windows syncs what may be written alone.
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(cfg!(windows)).open(path);
    where_supported(opened.and_then(|file| file.sync_all()))
        .map(|_| ())
        .map_err(Error::io("writing", path))
}

/// Whether something was done. A file system that does not know the operation, as some over a network do not, is no error.
fn where_supported(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a file system says that it does not do this: ENOSYS, ENOTSUP, EINVAL, ENOTTY or ENOLCK.
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

/// A folder's lock against other writers, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    is_held: bool,
}

impl Lock {
    /// Makes the file if there is none, and locks it. `None` if another has it.
    ///
    /// # Errors
    /// [`Error::Io`]. A file system without locks is no error.
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

    /// Whether the file system keeps others out.
    pub fn is_held(&self) -> bool {
        self.is_held
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a process that another thread has just started still holds a copy of the handle.
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

/// Whether something is at a path, be it a link that leads nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a file, or a folder and what is in it, if it is there. Folders that are read-only are made writable for it.
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

/// Lets the owner change a folder and those in it. What cannot be changed is met again when it is removed.
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

/// The paths in a folder, in the order of their names.
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

    /// A file is new whatever was in its place, so that a private or a read-only one leaves no mode behind.
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
