//! Tar shards, as WebDataset has them: where each member is, and its bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType, PaxExtensions};

use super::unread::UnreadFile;
use crate::error::{Error, Result};
use crate::files::{invalid, open};

/// The ending of a shard.
const ENDING: &str = "tar";
/// Longest extension of a header, which holds a long name: names have at most 4 KiB on Linux.
const LONGEST_EXTENSION: u64 = 64 << 10;
/// Most shards that a pattern may name.
const MOST_SHARDS: u64 = 1_000_000;
/// Size of a header, and the unit in which members are laid out.
const BLOCK: u64 = 512;

/// The members of shards, by path: that of the shard, followed by the name in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    shards: Vec<PathBuf>,
    places: HashMap<PathBuf, Place>,
}

/// Where the bytes of a member are.
#[derive(Debug, Clone, Copy)]
struct Place {
    shard: usize,
    offset: u64,
    size: u64,
}

impl Members {
    /// Lists the members of a shard, and returns their paths.
    ///
    /// Nothing is read except headers, so the time does not depend on the sizes of members.
    ///
    /// # Errors
    /// The shard, or the member in it, that is malformed.
    pub(super) fn add(&mut self, shard: PathBuf) -> std::result::Result<Vec<PathBuf>, UnreadFile> {
        let mut paths = Vec::new();
        for Listed { name, offset, size } in list(&shard)? {
            let path = shard.join(name);
            let place = Place {
                shard: self.shards.len(),
                offset,
                size,
            };
            if self.places.insert(path.clone(), place).is_some() {
                let reason = "the shard has two members of this name; pack it again".into();
                return Err(UnreadFile { path, reason });
            }
            paths.push(path);
        }
        self.shards.push(shard);
        Ok(paths)
    }

    /// Whether a path is that of a member.
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.places.contains_key(path)
    }

    /// Opens a file, or a member of a shard, and returns its length.
    ///
    /// # Errors
    /// Those of [`open`]; [`Error::Io`] with the path of the member.
    pub(super) fn open(&self, path: &Path) -> Result<(Take<File>, u64)> {
        let Some(&Place {
            shard,
            offset,
            size,
        }) = self.places.get(path)
        else {
            let (file, length) = open(path)?;
            return Ok((file.take(u64::MAX), length));
        };
        let reading = || Error::io("reading", path);
        let mut file = File::open(&self.shards[shard]).map_err(reading())?;
        file.seek(SeekFrom::Start(offset)).map_err(reading())?;
        Ok((file.take(size), size))
    }

    /// The text of a short member, such as a caption.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a long one, and for one that is not in UTF-8; [`Error::Io`].
    pub(super) fn text(&self, path: &Path) -> Result<String> {
        let (mut file, size) = self.open(path)?;
        if size > LONGEST_EXTENSION {
            return Err(invalid(
                path,
                format!("it has {size} bytes; at most 64 KiB are read"),
            ));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)
            .map_err(Error::io("reading", path))?;
        Ok(text)
    }
}

/// Whether a file's name has the ending of a shard.
pub(super) fn is_shard(path: &Path) -> bool {
    let ending = path.extension();
    ending.is_some_and(|ending| ending.eq_ignore_ascii_case(ENDING))
}

/// The shards that a pattern such as `shard-{000..009}.tar` names; `None` for any other path.
///
/// # Errors
/// [`Error::InvalidFile`] for a pattern that counts down, or too far.
pub(super) fn expanded(pattern: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(parts) = parts(pattern) else {
        return Ok(None);
    };
    let [before, first, last, after] = parts;
    let ends = [first, last].map(str::parse::<u64>);
    let [Ok(low), Ok(high)] = ends else {
        return Err(invalid(pattern, "its numbers are too large"));
    };
    if low > high || high - low >= MOST_SHARDS {
        let message = format!(
            "it names no shards, or more than {MOST_SHARDS}; write a pattern such as shard-{{000..009}}.tar"
        );
        return Err(invalid(pattern, message));
    }
    let width = first.len();
    let shard = |number| pattern.with_file_name(format!("{before}{number:0width$}{after}"));
    Ok(Some((low..=high).map(shard).collect()))
}

/// Whether a path is a pattern of shards, such as `shard-{000..009}.tar`.
pub fn is_shard_pattern(path: &Path) -> bool {
    parts(path).is_some()
}

/// The text before the numbers of a pattern, the first and the last number, and the text after.
fn parts(pattern: &Path) -> Option<[&str; 4]> {
    let (before, rest) = pattern.file_name()?.to_str()?.split_once('{')?;
    let (numbers, after) = rest.split_once('}')?;
    let (first, last) = numbers.split_once("..")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_pattern = is_number(first) && is_number(last) && after.ends_with(".tar");
    is_pattern.then_some([before, first, last, after])
}

/// A member as its shard has it.
struct Listed {
    name: String,
    offset: u64,
    size: u64,
}

/// What precedes the header of a member and holds for it.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Lists the plain files of a shard.
///
/// An archive from elsewhere may be cut off, may state any size, and may name any place: such ones
/// are refused. Nothing is ever written by these names.
fn list(shard: &Path) -> std::result::Result<Vec<Listed>, UnreadFile> {
    let refused = |reason: String| UnreadFile {
        path: shard.into(),
        reason,
    };
    let (file, length) = open(shard).map_err(|error| refused(error.to_string()))?;
    let mut archive = Archive::new(file);
    let entries = archive
        .entries_with_seek()
        .map_err(|error| refused(error.to_string()))?;
    let (mut members, mut ahead, mut end) = (Vec::new(), Ahead::default(), 0);
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| refused(malformed(end, &error)))?;
        let (kind, offset, size) = (
            entry.header().entry_type(),
            entry.raw_file_position(),
            entry.size(),
        );
        let name = match &ahead.name {
            Some(name) => name.clone(),
            None => entry.path_bytes().into_owned(),
        };
        let of_member = |reason: String| UnreadFile {
            path: shard.join(printable(&name)),
            reason,
        };
        end = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|size| offset.checked_add(size))
            .unwrap_or(u64::MAX);
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(of_member(format!(
                "it has {size} bytes by its header, but the shard ends before; download the shard again"
            )));
        }
        if is_extension(kind) {
            let read = extension(&mut entry, size).and_then(|bytes| ahead.add(kind, bytes));
            read.map_err(of_member)?;
            continue;
        }
        let stated = std::mem::take(&mut ahead).size;
        if kind.is_dir() {
            continue;
        }
        let name = checked(kind, &name, size, stated).map_err(of_member)?;
        members.push(Listed { name, offset, size });
    }
    match end < length || members.is_empty() && length == 0 {
        true => Ok(members),
        // An archive ends with empty blocks.
        false => Err(refused(
            "the shard is cut off after a member; download it again".into(),
        )),
    }
}

fn malformed(end: u64, error: &io::Error) -> String {
    format!(
        "not a tar archive, or damaged, at byte {end} ({error}); a compressed shard must be unpacked, because members are read where they \
         lie"
    )
}

/// Whether an entry says something of the next one.
fn is_extension(kind: EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}

fn extension(entry: &mut impl Read, size: u64) -> std::result::Result<Vec<u8>, String> {
    if size > LONGEST_EXTENSION {
        return Err(format!(
            "an extension of its header has {size} bytes; at most 64 KiB are read"
        ));
    }
    let mut bytes = Vec::new();
    let read = entry.take(LONGEST_EXTENSION).read_to_end(&mut bytes);
    read.map_err(|error| format!("an extension of its header is not read: {error}"))?;
    Ok(bytes)
}

impl Ahead {
    fn add(&mut self, kind: EntryType, mut bytes: Vec<u8>) -> std::result::Result<(), String> {
        if kind.is_gnu_longname() {
            let end = bytes.iter().position(|&byte| byte == 0);
            bytes.truncate(end.unwrap_or(bytes.len()));
            self.name = Some(bytes);
            return Ok(());
        }
        if !kind.is_pax_local_extensions() {
            return Ok(());
        }
        for record in PaxExtensions::new(&bytes) {
            let record = record
                .map_err(|error| format!("an extension of its header is malformed: {error}"))?;
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.unwrap_or(u64::MAX));
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(
                        "a sparse file, which is not read; pack the shard without holes".into(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of a plain file below the shard.
fn checked(
    kind: EntryType,
    name: &[u8],
    size: u64,
    stated: Option<u64>,
) -> std::result::Result<String, String> {
    if !(kind.is_file() || kind.is_contiguous()) {
        return Err("a link, a device or a sparse file; pack plain files only".into());
    }
    // Readers that believe different sizes see different archives.
    if let Some(stated) = stated.filter(|&stated| stated != size) {
        return Err(format!(
            "it has {size} bytes by its header and {stated} by an extension; pack the shard again"
        ));
    }
    let text =
        str::from_utf8(name).map_err(|_| "its name is not in UTF-8; pack the shard again")?;
    let below = text.strip_prefix("./").unwrap_or(text);
    let mut parts = Path::new(below).components();
    let is_plain = parts.all(|part| matches!(part, Component::Normal(_)));
    match is_plain && !below.is_empty() && !below.contains('\0') {
        true => Ok(below.into()),
        false => Err("its name leads out of the shard; pack the shard with relative names".into()),
    }
}

/// A name for a message, whatever its bytes are.
fn printable(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let name = String::from_utf8_lossy(&name[..name.len().min(LONGEST)]);
    name.trim_start_matches('/').replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tar::{Builder, Header};
    use tempfile::TempDir;

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    }

    /// A shard of plain files.
    fn shard(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = header(EntryType::Regular, bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// A shard with one header made by hand, whose checksum is right.
    fn by_hand(kind: EntryType, name: &[u8], size: u64, content: &[u8]) -> Vec<u8> {
        let mut header = header(kind, size);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
        bytes
    }

    fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("shard-000.tar");
        fs::write(&path, bytes).unwrap();
        (place, path)
    }

    fn refusal(bytes: &[u8]) -> String {
        let (_place, path) = written(bytes);
        let refusal = Members::default().add(path).unwrap_err();
        refusal.to_string()
    }

    #[test]
    fn members_are_read_where_they_lie() {
        let long = format!("{}/b.txt", "folder".repeat(40));
        let files: [(&str, &[u8]); 3] =
            [("a.png", &[7; 600]), (&long, b" a hat "), ("x/c.cls", b"3")];
        let (_place, path) = written(&shard(&files));
        let mut members = Members::default();
        let paths = members.add(path.clone()).unwrap();
        assert_eq!(paths, files.map(|(name, _)| path.join(name)));
        for ((_, content), path) in files.iter().zip(&paths) {
            let (mut file, size) = members.open(path).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!((&bytes[..], size), (*content, content.len() as u64));
        }
        assert_eq!(members.text(&paths[1]).unwrap(), " a hat ");
        assert!(!members.contains(&path.join("d.png")));
    }

    /// Wherever it is cut, also between two members.
    #[test]
    fn a_shard_that_is_cut_off_is_refused() {
        let whole = shard(&[("a.png", &[7; 600]), ("b.png", &[8; 512])]);
        // Two headers, three blocks of content, and the empty blocks of the end.
        assert_eq!(whole.len(), 512 * 7);
        for length in (1..512 * 5).step_by(61).chain([512, 1536, 2048, 2560]) {
            let refusal = refusal(&whole[..length]);
            assert!(refusal.contains("shard-000.tar"), "{length}: {refusal}");
        }
        let (_place, path) = written(&whole);
        assert_eq!(Members::default().add(path).unwrap().len(), 2);
    }

    #[test]
    fn hostile_members_are_refused_by_name() {
        let regular = EntryType::Regular;
        let pax = |record: &str| {
            let mut bytes = by_hand(
                EntryType::XHeader,
                b"x",
                record.len() as u64,
                record.as_bytes(),
            );
            bytes.truncate(1024);
            [bytes, by_hand(regular, b"a.png", 3, b"abc")].concat()
        };
        for (bytes, parts) in [
            (
                by_hand(regular, b"../up.png", 3, b"abc"),
                ["up.png", "leads out"],
            ),
            (
                by_hand(regular, b"/etc/up.png", 3, b"abc"),
                ["etc/up.png", "leads out"],
            ),
            (
                by_hand(regular, b"a/../../up.png", 3, b"abc"),
                ["up.png", "leads out"],
            ),
            (
                by_hand(EntryType::Symlink, b"link.png", 0, b""),
                ["link.png", "a link"],
            ),
            (
                by_hand(EntryType::Link, b"hard.png", 0, b""),
                ["hard.png", "a link"],
            ),
            (
                by_hand(EntryType::Char, b"device", 0, b""),
                ["device", "a device"],
            ),
            (
                by_hand(EntryType::GNUSparse, b"holes", 0, b""),
                ["holes", "sparse"],
            ),
            (
                by_hand(regular, b"huge.png", 1 << 40, b"abc"),
                ["huge.png", "1099511627776 bytes"],
            ),
            (
                by_hand(regular, b"most.png", u64::MAX, b"abc"),
                ["shard-000.tar", "byte 0"],
            ),
            (
                by_hand(regular, b"\xff\xfe", 3, b"abc"),
                ["shard-000.tar", "UTF-8"],
            ),
            (
                by_hand(EntryType::GNULongName, b"long", 1 << 20, &[b'a'; 1 << 20]),
                ["long", "64 KiB"],
            ),
            (pax("9 size=9\n"), ["a.png", "9 by an extension"]),
            (pax("99 path=b.png\n"), ["shard-000.tar", "malformed"]),
            (pax("17 path=../b.png\n"), ["b.png", "leads out"]),
            (
                b"\x1f\x8b compressed".repeat(100),
                ["shard-000.tar", "unpacked"],
            ),
        ] {
            let refusal = refusal(&bytes);
            assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal}");
        }
        let twice = shard(&[("a.png", b"1"), ("a.png", b"2")]);
        assert!(refusal(&twice).contains("two members"));
    }

    #[test]
    fn a_pattern_names_shards_with_leading_zeros() {
        let names = |pattern: &str| expanded(Path::new(pattern)).unwrap();
        let expected = ["d/s-08.tar", "d/s-09.tar", "d/s-10.tar"]
            .map(PathBuf::from)
            .to_vec();
        assert_eq!(names("d/s-{08..10}.tar"), Some(expected));
        for other in [
            "d/s-00.tar",
            "d/{a..b}.tar",
            "d/{0..9}.png",
            "d/{0-9}.tar",
            ".",
        ] {
            assert_eq!(names(other), None, "{other}");
        }
        for bad in [
            "s-{9..1}.tar",
            "s-{0..9999999}.tar",
            "s-{0..99999999999999999999}.tar",
        ] {
            assert!(expanded(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
