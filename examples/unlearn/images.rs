//! Folders of images, as the model takes them.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, Rgb, RgbImage};
use serde::Serialize;
use siss::burn::tensor::{Device, Tensor, TensorData};
use siss::{Error, Result};

const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];
/// Longest file that is read, in bytes.
const LONGEST_FILE: u64 = 256 << 20;
/// Largest image that is decoded, against files that would fill the memory.
const LONGEST_SIDE: u32 = 16_384;
const MOST_PIXELS: u64 = 1 << 26;
/// Most memory for a decoded image: four bytes for each of the most pixels.
const MOST_MEMORY: u64 = 4 * MOST_PIXELS;

/// The images that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Format {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// Whether the model's configuration gives height and width. Otherwise the images do, and must agree.
    pub is_configured: bool,
}

impl Format {
    /// Numbers in an image.
    pub fn values(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Images in a model's format.
#[derive(Debug)]
pub struct Images {
    pub format: Format,
    pub files: Vec<PathBuf>,
    /// How many had another size.
    pub resized: usize,
    /// Image after image, channel after channel.
    pixels: Vec<u8>,
}

/// The image files of a folder and its subfolders, in the order of their paths; a file stands for itself. Hidden ones,
/// those of other kinds and links to folders are passed over.
///
/// # Errors
/// [`Error::Io`] where a folder cannot be read, [`Error::InvalidFile`] where none has an image.
pub fn find(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    match path.is_file() {
        true => files.push(path.into()),
        false => collect(path, &mut files)?,
    }
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => {
            let kinds = EXTENSIONS.join(", ");
            Err(invalid(path, format!("there is no image in it ({kinds})")))
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(reading(folder))? {
        let entry = entry.map_err(reading(folder))?;
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        match entry.file_type().map_err(reading(&path))?.is_dir() {
            _ if is_hidden => {}
            true => collect(&path, files)?,
            false if is_image(&path) => files.push(path),
            false => {}
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()) && path.is_file()
}

/// Height and width of an image.
///
/// # Errors
/// As [`Images::read`].
pub fn size(file: &Path) -> Result<[usize; 2]> {
    let picture = decode(file)?;
    Ok([picture.height() as usize, picture.width() as usize])
}

impl Images {
    /// Reads files; `progress` is told how many have been read.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InvalidFile`] for a file that is no image, a damaged or a huge one, and one of another
    /// size where sizes must agree.
    pub fn read(files: &[PathBuf], format: Format, progress: impl Fn(usize)) -> Result<Self> {
        let mut images = Self {
            format,
            files: files.to_vec(),
            resized: 0,
            pixels: Vec::with_capacity(files.len() * format.values()),
        };
        for (index, file) in files.iter().enumerate() {
            progress(index);
            images.add(decode(file)?, file)?;
        }
        Ok(images)
    }

    fn add(&mut self, picture: RgbImage, file: &Path) -> Result<()> {
        let Format { height, width, .. } = self.format;
        let found = [picture.height() as usize, picture.width() as usize];
        let picture = match found == [height, width] {
            true => picture,
            false if self.format.is_configured => {
                self.resized += 1;
                fit(&picture, height as u32, width as u32)
            }
            false => {
                let [found_height, found_width] = found;
                let message = format!(
                    "it has {found_height}x{found_width} pixels, others {height}x{width}; the model's configuration has no \
                     `sample_size`, so all images must have the size it was trained with"
                );
                return Err(invalid(file, message));
            }
        };
        match self.format.channels {
            1 => self.pixels.extend(picture.pixels().map(grey)),
            _ => (0..3).for_each(|channel| {
                let plane = picture.pixels().map(|pixel| pixel.0[channel]);
                self.pixels.extend(plane);
            }),
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Some of the images, `[count, channels, height, width]`, with `0, …, 255` mapped onto `[-1, 1]`.
    pub fn tensor(&self, range: Range<usize>, device: &Device) -> Tensor<4> {
        let Format {
            channels,
            height,
            width,
            ..
        } = self.format;
        let size = self.format.values();
        let pixels = &self.pixels[range.start * size..range.end * size];
        let values: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 127.5 - 1.0).collect();
        let shape = [range.len(), channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &PathBuf)> {
        self.pixels
            .chunks_exact(self.format.values())
            .zip(&self.files)
    }
}

/// Refuses an image that is on both sides, pixel by pixel in the model's format.
///
/// # Errors
/// [`Error::InvalidFile`] with both files.
pub fn refuse_common(forget: &Images, retain: &Images) -> Result<()> {
    let forgotten: HashMap<&[u8], &PathBuf> = forget.iter().collect();
    for (pixels, file) in retain.iter() {
        if let Some(forgotten) = forgotten.get(pixels) {
            let message = format!(
                "the same image is to be forgotten, {}: take it out of the retained images, with all its copies",
                forgotten.display()
            );
            return Err(invalid(file, message));
        }
    }
    Ok(())
}

/// Reads a picture, upright, in RGB; what shines through is white.
fn decode(path: &Path) -> Result<RgbImage> {
    let bytes = fs::metadata(path).map_err(reading(path))?.len();
    if bytes > LONGEST_FILE {
        let (megabytes, most) = (bytes >> 20, LONGEST_FILE >> 20);
        return Err(invalid(
            path,
            format!("it has {megabytes} MiB; at most {most} MiB are read"),
        ));
    }
    let unreadable = |error: image::ImageError| invalid(path, format!("not read: {error}"));
    // By the content, whatever the name says.
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(reading(path))?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(LONGEST_SIDE), Some(LONGEST_SIDE));
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MOST_PIXELS {
        let message =
            format!("it has {height}x{width} pixels; from 1 to {MOST_PIXELS} pixels are read");
        return Err(invalid(path, message));
    }
    let bytes = decoder.total_bytes();
    if bytes > MOST_MEMORY {
        let (megabytes, most) = (bytes >> 20, MOST_MEMORY >> 20);
        let message =
            format!("it would take {megabytes} MiB of memory; at most {most} MiB are used");
        return Err(invalid(path, message));
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    picture.apply_orientation(orientation);
    Ok(over_white(picture))
}

fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [colour @ .., alpha] = picture.get_pixel(x, y).0.map(u32::from);
        Rgb(colour.map(|c| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

/// The middle of a picture in the given aspect, resized with the filter of diffusers' training scripts, bilinear over all
/// pixels that fall together.
fn fit(picture: &RgbImage, height: u32, width: u32) -> RgbImage {
    let (found_width, found_height) = picture.dimensions();
    let [h, w, fh, fw] = [height, width, found_height, found_width].map(u64::from);
    // The largest part with its sides as height to width.
    let part_width = (fh * w / h).clamp(1, fw) as u32;
    let part_height = (fw * h / w).clamp(1, fh) as u32;
    let left = (found_width - part_width) / 2;
    let top = (found_height - part_height) / 2;
    let part = imageops::crop_imm(picture, left, top, part_width, part_height).to_image();
    imageops::resize(&part, width, height, FilterType::Triangle)
}

/// Luma as PIL has it (ITU-R 601), exact for grey.
fn grey(&Rgb(colour): &Rgb<u8>) -> u8 {
    let [red, green, blue] = colour.map(u32::from);
    ((19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16) as u8
}

fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |source| Error::Io {
        action: "reading",
        path: path.into(),
        source,
    }
}

fn invalid(path: &Path, message: String) -> Error {
    Error::InvalidFile {
        path: path.into(),
        message,
    }
}
