//! Pictures that are decoded when they are asked for.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::{Account, Decoder, Format, ImageReader, Images, Read, UnreadFile, no_image};
use crate::error::{Error, Result, check_range};

/// Pictures of folders or tar shards by number, each decoded when it is asked for, on any thread:
/// for data that do not fit in memory.
///
/// In memory are the paths of the pictures: in shards, with short names, 0.2 GB for a million. Made
/// by [`ImageReader::into_store`].
///
/// A picture that cannot be read, or equals one that is left out, is found when it is decoded. The
/// next one takes its place, so the picture of a number depends on nothing but the files. By
/// default a picture that cannot be read is an error.
///
/// # Example
/// ```
/// use siss::images::{Format, ImageFiles, ImageReader, Transparency};
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// std::fs::write(folder.join("a.pgm"), "P2 2 1 255 0 255").unwrap();
/// std::fs::write(folder.join("b.pgm"), "P2 2 1 255 255 0").unwrap();
/// let format = Format {
///     channels: 1,
///     height: 1,
///     width: 2,
///     is_configured: true,
///     range: [-1.0, 1.0],
///     transparency: Transparency::Drop,
/// };
/// let store = ImageReader::new(ImageFiles::find(folder)?, format).into_store();
/// let images = store.load(&[1, 0, 1])?; // for `PairStream`
/// let values: Vec<f32> = images.all(&burn::tensor::Device::flex()).into_data().iter().collect();
/// assert_eq!(values, [1.0, -1.0, -1.0, 1.0, 1.0, -1.0]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct ImageStore {
    decoder: Decoder,
    root: PathBuf,
    pictures: Vec<PathBuf>,
    has_mirrors: bool,
    skips_unread: bool,
    seen: Mutex<Seen>,
}

/// What was found out so far.
#[derive(Debug)]
struct Seen {
    account: Account,
    /// Pictures that are not read or are left out.
    passed_over: HashSet<usize>,
}

impl ImageStore {
    pub(super) fn new(reader: ImageReader) -> Self {
        Self {
            decoder: reader.decoder,
            root: reader.root,
            pictures: reader.waiting.collect(),
            has_mirrors: false,
            skips_unread: false,
            seen: Mutex::new(Seen {
                account: reader.account,
                passed_over: HashSet::new(),
            }),
        }
    }

    /// Puts the mirror image of each picture, left for right, after it, also for symmetric ones.
    pub fn with_mirrors(mut self) -> Self {
        self.has_mirrors = true;
        self
    }

    /// Passes over pictures that cannot be read, and names them in the
    /// [account](Self::account).
    pub fn skipping_unread(mut self) -> Self {
        self.skips_unread = true;
        self
    }

    /// Number of pictures, with mirror images, as far as is known without decoding them.
    pub fn len(&self) -> usize {
        self.pictures.len() * self.mirroring()
    }

    /// Number of pictures without mirror images.
    pub fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// Whether there are no pictures.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The format of the images.
    pub fn format(&self) -> Format {
        self.decoder.format
    }

    /// The pictures with these numbers, in this order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a number from [`len`](Self::len) on; [`Error::UnreadFiles`] with
    /// the picture that cannot be read, unless they are [passed over](Self::skipping_unread);
    /// [`Error::InvalidFile`] if none can be read.
    pub fn load(&self, numbers: &[usize]) -> Result<Images> {
        let mut images = Images::empty(self.format());
        for &number in numbers {
            check_range(
                "the number of a picture",
                number as f64,
                number < self.len(),
                "below the number of pictures",
            )?;
            let (index, read) = self.readable_from(number / self.mirroring())?;
            let file = self.pictures[index].clone();
            match number % self.mirroring() {
                0 => images.add(&read.pixels, file, false),
                _ => images.add(&images.mirror(&read.pixels), file, true),
            }
        }
        Ok(images)
    }

    /// The first `count` pictures that can be read, or fewer if there are no more, without mirror
    /// images. They are counted in the [account](Self::account). `progress` receives their number.
    ///
    /// # Errors
    /// As [`load`](Self::load), for a picture that cannot be read.
    pub fn first(&self, count: usize, mut progress: impl FnMut(usize)) -> Result<Images> {
        let mut images = Images::empty(self.format());
        for index in 0..self.pictures.len() {
            if images.len() == count {
                break;
            }
            progress(images.len());
            if let Some(read) = self.read(index)? {
                images.add(&read.pixels, self.pictures[index].clone(), false);
                self.seen().account.add(&read);
            }
        }
        Ok(images)
    }

    /// The account of the files, as far as they were read.
    pub fn account(&self) -> Account {
        self.seen().account.clone()
    }

    /// SHA-256 of the paths of the pictures below the folder, in order. A resumed run must have the
    /// same. Contents are not read.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for path in &self.pictures {
            let below = path.strip_prefix(&self.root).unwrap_or(path);
            let bytes = below.as_os_str().as_encoded_bytes();
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
        digest.update([u8::from(self.has_mirrors)]);
        format!("{:x}", digest.finalize())
    }

    fn mirroring(&self) -> usize {
        1 + usize::from(self.has_mirrors)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first picture from an index on that can be read, with its index; after the last picture
    /// comes the first.
    fn readable_from(&self, first: usize) -> Result<(usize, Read)> {
        let count = self.pictures.len();
        for index in (first..count).chain(0..first) {
            if let Some(read) = self.read(index)? {
                return Ok((index, read));
            }
        }
        Err(no_image(&self.root))
    }

    /// A picture; `None` if it is passed over.
    fn read(&self, index: usize) -> Result<Option<Read>> {
        if self.seen().passed_over.contains(&index) {
            return Ok(None);
        }
        let path: &Path = &self.pictures[index];
        match self.decoder.read(path) {
            Ok(Some(read)) => return Ok(Some(read)),
            Ok(None) => {
                let mut seen = self.seen();
                let is_new = seen.passed_over.insert(index);
                seen.account.copies_taken_out += usize::from(is_new);
            }
            Err(reason) => {
                let unread = UnreadFile {
                    path: path.into(),
                    reason,
                };
                if !self.skips_unread {
                    return Err(Error::UnreadFiles {
                        path: self.root.clone(),
                        files: vec![unread],
                    });
                }
                let mut seen = self.seen();
                if seen.passed_over.insert(index) {
                    seen.account.unread.push(unread);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{ImageFiles, Transparency};
    use std::fs;
    use tempfile::TempDir;

    const FORMAT: Format = Format {
        channels: 1,
        height: 1,
        width: 2,
        is_configured: true,
        range: [-1.0, 1.0],
        transparency: Transparency::Drop,
    };

    /// Pictures `0.pgm` to `9.pgm`, whose first pixel is their number; some have other contents.
    fn folder(others: &[(usize, &str)]) -> TempDir {
        let place = tempfile::tempdir().unwrap();
        for number in 0..10 {
            let other = others.iter().find(|(other, _)| *other == number);
            let text = other.map_or(format!("P2 2 1 255 {number} 200"), |(_, text)| {
                (*text).into()
            });
            fs::write(place.path().join(format!("{number}.pgm")), text).unwrap();
        }
        place
    }

    fn reader(place: &TempDir) -> ImageReader {
        ImageReader::new(ImageFiles::find(place.path()).unwrap(), FORMAT)
    }

    fn first_pixels(images: &Images) -> Vec<u8> {
        images.iter().map(|pixels| pixels[0]).collect()
    }

    #[test]
    fn pictures_come_in_the_order_asked_for_and_the_reader_goes_before() {
        let place = folder(&[]);
        let mut reader = reader(&place);
        reader.read(2, |_| {});
        let store = reader.into_store();
        assert_eq!(store.len(), 8);
        assert_eq!(first_pixels(&store.load(&[7, 0, 7]).unwrap()), [9, 2, 9]);
        assert_eq!(first_pixels(&store.first(3, |_| {}).unwrap()), [2, 3, 4]);
        assert_eq!(store.account().read, 5);
        assert!(store.load(&[8]).is_err());
        let mirrored = store.with_mirrors();
        assert_eq!(mirrored.len(), 16);
        let images = mirrored.load(&[2, 3]).unwrap();
        assert_eq!(first_pixels(&images), [3, 200]);
        assert_eq!(images.mirrored(), [false, true]);
    }

    /// Broken pictures are refused by name or passed over and counted once; copies of the images
    /// that are left out are passed over in any case.
    #[test]
    fn the_next_picture_takes_the_place_of_one_that_is_not_read() {
        let place = folder(&[
            (3, "P2 2 1 255 3"),
            (4, "no picture"),
            (9, "P2 2 1 255 7 7"),
        ]);
        let left_out = tempfile::tempdir().unwrap();
        fs::write(left_out.path().join("x.pgm"), "P2 2 1 255 7 7").unwrap();
        let found = ImageFiles::find(left_out.path()).unwrap();
        let (left_out, _) = Images::read_all(found, FORMAT, |_| {}).unwrap();
        let store = || reader(&place).without(&left_out).into_store();

        let strict = store();
        let error = strict.load(&[3]).unwrap_err();
        assert!(matches!(error, Error::UnreadFiles { .. }) && error.to_string().contains("3.pgm"));
        assert_eq!(first_pixels(&strict.load(&[9, 2]).unwrap()), [0, 2]);

        let lenient = store().skipping_unread();
        for _ in 0..2 {
            assert_eq!(
                first_pixels(&lenient.load(&[3, 4, 5, 9]).unwrap()),
                [5, 5, 5, 0]
            );
        }
        assert_eq!(
            first_pixels(&lenient.first(5, |_| {}).unwrap()),
            [0, 1, 2, 5, 6]
        );
        let account = lenient.account();
        assert_eq!((account.unread.len(), account.copies_taken_out), (2, 1));
    }

    #[test]
    fn a_folder_without_a_readable_picture_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("0.pgm"), "no picture").unwrap();
        let store = reader(&place).into_store().skipping_unread();
        let error = store.load(&[0]).unwrap_err().to_string();
        assert!(error.contains("no image"), "{error}");
    }

    #[test]
    fn a_fingerprint_is_that_of_the_names_and_their_order() {
        let (place, same) = (folder(&[]), folder(&[]));
        let of = |place: &TempDir| reader(place).into_store().fingerprint();
        assert_eq!(of(&place), of(&same));
        fs::rename(same.path().join("0.pgm"), same.path().join("a.pgm")).unwrap();
        assert_ne!(of(&place), of(&same));
    }
}
