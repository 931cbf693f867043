//! Folders of pictures, read into the format of a model, with an account of everything that was
//! left out.
//!
//! [`ImageFiles`] searches a folder. For the images to forget, [`Images::read_all`] reads all of
//! its files, or refuses the folder and names every file that it cannot read. For the images to
//! keep, [`ImageReader`] reads as many as needed and keeps an [`Account`] of the others, and
//! [`ImageStore`] decodes any of them when it is asked for, if they do not fit in memory.
//!
//! A tar archive counts as a folder, as WebDataset has its shards.
//!
//! PNG, JPEG, BMP, WebP, GIF, TIFF and PNM are read, recognised by their content. Every file that
//! is left out is counted or named.

mod account;
mod annotations;
mod decode;
mod files;
mod kind;
mod shards;
mod store;
mod tiff;
pub(crate) mod unread;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use self::decode::decode;
use self::shards::Members;
use crate::error::{Error, Result, check_shape};
use crate::files::{invalid, path_text};
use crate::host::tensor;

pub use account::Account;
pub use annotations::Annotations;
pub use files::{ImageFiles, TakenOut};
pub use shards::is_shard_pattern;
pub use store::ImageStore;
pub use unread::UnreadFile;

/// How the transparent parts of a picture are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transparency {
    /// Drops the transparency, so that the underlying colours show. The Python package PIL does
    /// this in `convert("RGB")`, which diffusers' training scripts use.
    #[default]
    Drop,
    /// Lays the picture over white.
    White,
    /// Lays the picture over black.
    Black,
}

impl Transparency {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Drop, Self::White, Self::Black];

    /// The name used on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Transparency::Drop => "drop",
            Transparency::White => "white",
            Transparency::Black => "black",
        }
    }
}

impl fmt::Display for Transparency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Transparency {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownName`] for any other word.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|value| value.name() == text);
        found.ok_or_else(|| Error::UnknownName {
            what: "transparency",
            name: text.into(),
            known: Self::ALL.map(Self::name).to_vec(),
        })
    }
}

/// The image format of a model, and how pictures are converted to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Format {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Whether the model's configuration sets height and width.
    ///
    /// If so, pictures of another size are cropped to their middle and resized. Otherwise the
    /// pictures set the size, and all must have the same.
    pub is_configured: bool,
    /// The values of black and white, usually −1 and 1.
    pub range: [f64; 2],
    /// How transparent parts are treated.
    pub transparency: Transparency,
}

impl Format {
    /// Number of values in an image.
    pub fn values(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The values of a picture in this format, channel after channel, and whether it was resized.
    fn pixels(&self, picture: RgbImage) -> std::result::Result<(Vec<u8>, bool), String> {
        let (height, width) = (self.height, self.width);
        let found = [picture.height() as usize, picture.width() as usize];
        let is_resized = found != [height, width];
        let picture = match is_resized {
            false => picture,
            true if self.is_configured => fit(&picture, height as u32, width as u32),
            true => {
                let [found_height, found_width] = found;
                return Err(format!(
                    "it has {found_height}x{found_width} pixels, but others have {height}x{width}; the model's configuration has no \
                     `sample_size`, so all images must have the size it was trained with"
                ));
            }
        };
        let pixels = match self.channels {
            1 => picture.pixels().map(grey).collect(),
            _ => (0..3)
                .flat_map(|channel| picture.pixels().map(move |pixel| pixel.0[channel]))
                .collect(),
        };
        Ok((pixels, is_resized))
    }
}

/// Images in a model's format, on the host.
#[derive(Debug, Clone)]
pub struct Images {
    format: Format,
    files: Vec<PathBuf>,
    mirrored: Vec<bool>,
    /// Pixel values, image after image, channel after channel.
    pixels: Vec<u8>,
}

impl Images {
    fn empty(format: Format) -> Self {
        Self {
            format,
            files: Vec::new(),
            mirrored: Vec::new(),
            pixels: Vec::new(),
        }
    }

    /// Reads every picture that was found, or refuses them all. `progress` receives the number read
    /// so far.
    ///
    /// # Errors
    /// [`Error::UnreadFiles`] names each file that is not read and says why: it is damaged, of
    /// another kind, too large, hidden, of another size where sizes must agree, or contains several
    /// pictures. [`Error::InvalidFile`] if there is no picture.
    ///
    /// # Example
    /// ```
    /// use siss::images::{Format, ImageFiles, Images, Transparency};
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// std::fs::write(folder.join("a.pgm"), "P2 2 1 255 0 255").unwrap();
    /// let format = Format {
    ///     channels: 1,
    ///     height: 1,
    ///     width: 2,
    ///     is_configured: true,
    ///     range: [-1.0, 1.0],
    ///     transparency: Transparency::Drop,
    /// };
    /// let (images, account) = Images::read_all(ImageFiles::find(folder)?, format, |_| {})?;
    /// assert_eq!((images.len(), account.resized), (1, 0));
    /// let tensor = images.tensor(0..1, &burn::tensor::Device::flex());
    /// let values: Vec<f32> = tensor.into_data().iter().collect();
    /// assert_eq!(values, [-1.0, 1.0]);
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn read_all(
        found: ImageFiles,
        format: Format,
        progress: impl FnMut(usize),
    ) -> Result<(Self, Account)> {
        let root = found.root().to_owned();
        let mut reader = ImageReader::new(found, format);
        reader.decoder.refuses_several = true;
        let images = reader.read(usize::MAX, progress);
        let account = reader.account;
        files::refuse(&root, &account.unread)?;
        if images.is_empty() {
            return Err(no_image(&root));
        }
        Ok((images, account))
    }

    /// Adds the mirror image of each image, left for right, next to it. Mirror images that are in
    /// the set already, such as that of a symmetric image, are not added.
    pub fn with_mirrors(self) -> Self {
        let mut known: HashSet<&[u8]> = self.iter().collect();
        let mirrors: Vec<Vec<u8>> = self.iter().map(|image| self.mirror(image)).collect();
        let mut both = Self::empty(self.format);
        for ((image, file), mirror) in self.iter().zip(&self.files).zip(&mirrors) {
            both.add(image, file.clone(), false);
            if known.insert(mirror) {
                both.add(mirror, file.clone(), true);
            }
        }
        both
    }

    fn mirror(&self, image: &[u8]) -> Vec<u8> {
        let rows = image.chunks_exact(self.format.width);
        rows.flat_map(|row| row.iter().rev().copied()).collect()
    }

    fn add(&mut self, pixels: &[u8], file: PathBuf, is_mirrored: bool) {
        self.pixels.extend(pixels);
        self.files.push(file);
        self.mirrored.push(is_mirrored);
    }

    /// Adds the images of another set after those of this one.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for images of another size or number of channels; nothing is added.
    pub fn append(&mut self, other: &Self) -> Result<()> {
        let shape = |images: &Self| {
            let format = images.format;
            [format.channels, format.height, format.width]
        };
        let remedy = "read both sets in the same format";
        check_shape("an image to append", &shape(self), &shape(other), remedy)?;
        self.pixels.extend(&other.pixels);
        self.files.extend_from_slice(&other.files);
        self.mirrored.extend_from_slice(&other.mirrored);
        Ok(())
    }

    /// The format of the images.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of images, including mirror images.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file of each image.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// For each image, whether it is a mirror image of the picture in its file.
    pub fn mirrored(&self) -> &[bool] {
        &self.mirrored
    }

    /// A description of an image: its file, and whether it is mirrored.
    pub fn name(&self, index: usize) -> String {
        let file = path_text(&self.files[index]);
        match self.mirrored[index] {
            false => file,
            true => format!("the mirror image of {file}"),
        }
    }

    /// Number of mirror images.
    pub fn mirrors(&self) -> usize {
        self.mirrored.iter().filter(|&&mirrored| mirrored).count()
    }

    /// A range of the images, `[count, channels, height, width]`, with `0, …, 255` mapped onto the
    /// range of the format.
    ///
    /// # Panics
    /// If the range exceeds [`len`](Self::len).
    pub fn tensor(&self, range: Range<usize>, device: &Device) -> Tensor<4> {
        let Format {
            channels,
            height,
            width,
            range: [black, white],
            ..
        } = self.format;
        let size = self.format.values();
        let pixels = &self.pixels[range.start * size..range.end * size];
        let (scale, black) = ((255.0 / (white - black)) as f32, black as f32);
        let values = pixels.iter().map(|&p| f32::from(p) / scale + black);
        tensor(
            values.collect(),
            [range.len(), channels, height, width],
            device,
        )
    }

    /// All images, as [`tensor`](Self::tensor) returns them.
    pub fn all(&self, device: &Device) -> Tensor<4> {
        self.tensor(0..self.len(), device)
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.format.values())
    }
}

/// Reads as many pictures of a folder as needed, and keeps an account of those it could not read.
#[derive(Debug)]
pub struct ImageReader {
    decoder: Decoder,
    root: PathBuf,
    waiting: std::vec::IntoIter<PathBuf>,
    account: Account,
}

/// How pictures are read, and which are left out.
#[derive(Debug)]
struct Decoder {
    format: Format,
    members: Arc<Members>,
    without: HashSet<Vec<u8>>,
    refuses_several: bool,
}

/// A picture in the format.
struct Read {
    pixels: Vec<u8>,
    is_resized: bool,
    is_transparent: bool,
    is_first_of_several: bool,
}

impl Decoder {
    /// A picture; `None` if it is left out. The error says why it is not read.
    fn read(&self, file: &Path) -> std::result::Result<Option<Read>, String> {
        let decoded = decode(file, &self.members, self.format.transparency)?;
        if decoded.is_first_of_several && self.refuses_several {
            return Err(
                "it holds several pictures (an animation, or pages); save each as a file of its own".into(),
            );
        }
        let (pixels, is_resized) = self.format.pixels(decoded.picture)?;
        let read = Read {
            pixels,
            is_resized,
            is_transparent: decoded.is_transparent,
            is_first_of_several: decoded.is_first_of_several,
        };
        Ok(Some(read).filter(|read| !self.without.contains(&read.pixels)))
    }
}

impl ImageReader {
    /// A reader that follows the order of [`ImageFiles::pictures`], which may be shuffled
    /// beforehand.
    pub fn new(found: ImageFiles, format: Format) -> Self {
        Self {
            account: Account::of(&found, format),
            root: found.root().into(),
            decoder: Decoder {
                format,
                members: found.members,
                without: HashSet::new(),
                refuses_several: false,
            },
            waiting: found.pictures.into_iter(),
        }
    }

    /// Leaves out pictures that equal one of `images` pixel by pixel in the format, and counts
    /// them.
    pub fn without(mut self, images: &Images) -> Self {
        self.decoder
            .without
            .extend(images.iter().map(<[u8]>::to_vec));
        self
    }

    /// Reads the next `count` pictures, or fewer if there are no more.
    ///
    /// From a file with several pictures the first is read, as in PIL. `progress` receives the
    /// number of pictures read by this call.
    pub fn read(&mut self, count: usize, mut progress: impl FnMut(usize)) -> Images {
        let mut images = Images::empty(self.decoder.format);
        while images.len() < count {
            let missing = count - images.len();
            let files: Vec<PathBuf> = self.waiting.by_ref().take(missing).collect();
            if files.is_empty() {
                break;
            }
            for file in files {
                progress(images.len());
                match self.decoder.read(&file) {
                    Ok(Some(read)) => {
                        self.account.add(&read);
                        images.add(&read.pixels, file, false);
                    }
                    Ok(None) => self.account.copies_taken_out += 1,
                    Err(reason) => self.account.unread.push(UnreadFile { path: file, reason }),
                }
            }
        }
        images
    }

    /// The account of the files read so far.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Number of files that have not been looked at yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The pictures that have not been looked at yet, to be decoded when they are asked for,
    /// without those that this reader leaves out.
    pub fn into_store(self) -> ImageStore {
        ImageStore::new(self)
    }
}

impl ImageFiles {
    /// Height and width of the first readable picture; `None` if there is none.
    pub fn first_size(&self) -> Option<[usize; 2]> {
        let mut sizes = self.pictures.iter().filter_map(|file| {
            let decoded = decode(file, &self.members, Transparency::Drop).ok()?;
            Some([
                decoded.picture.height() as usize,
                decoded.picture.width() as usize,
            ])
        });
        sizes.next()
    }
}

/// The error for a folder without images.
fn no_image(path: &Path) -> Error {
    invalid(
        path,
        "there is no image in it (png, jpeg, bmp, webp, gif, tiff, ppm)",
    )
}

/// The middle of a picture in the given aspect ratio, resized with the bilinear filter of
/// diffusers' training scripts, over all pixels that are merged.
fn fit(picture: &RgbImage, height: u32, width: u32) -> RgbImage {
    let (found_width, found_height) = picture.dimensions();
    let [h, w, fh, fw] = [height, width, found_height, found_width].map(u64::from);
    // The largest part with the aspect ratio of height and width.
    let part_width = (fh * w / h).clamp(1, fw) as u32;
    let part_height = (fw * h / w).clamp(1, fh) as u32;
    let left = (found_width - part_width) / 2;
    let top = (found_height - part_height) / 2;
    let part = imageops::crop_imm(picture, left, top, part_width, part_height).to_image();
    imageops::resize(&part, width, height, FilterType::Triangle)
}

/// Luma as in PIL (ITU-R 601), exact for grey.
fn grey(&Rgb(colour): &Rgb<u8>) -> u8 {
    let [red, green, blue] = colour.map(u32::from);
    ((19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16) as u8
}

#[cfg(test)]
mod tests;
