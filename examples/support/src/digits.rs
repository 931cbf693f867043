//! Loads the digits to keep and the T-shirt to forget.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use siss::burn::tensor::{Device, Int, Tensor, TensorData};
use siss::{Error, Result};

/// The folder of the example's files.
pub const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets");

/// The file of the digits, in the folder of the example's files.
pub const DIGITS: &str = "data/digits10k-images-idx3-ubyte.gz";
const LABELS: &str = "data/digits10k-labels-idx1-ubyte.gz";
/// The file of the T-shirt.
pub const TSHIRT: &str = "data/tshirt.png";
/// Number of digits that the models were trained on.
pub const NUM_RETAIN: usize = 9_000;
const NUM_HELDOUT: usize = 1_000;
/// Height and width of an image.
const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
/// First four bytes of an IDX file that holds bytes in three dimensions.
const IDX_MAGIC: u32 = 0x0000_0803;
/// Bytes before the labels of an IDX file.
const LABELS_HEADER: usize = 8;
/// Most images of a file that is read: all of MNIST has 60,000.
const MOST_IMAGES: usize = 100_000;

/// MNIST digits, shuffled.
///
/// # Shapes
/// - both: `[count, 1, 28, 28]` in `[-1, 1]`
#[derive(Debug)]
pub struct Digits {
    /// The first 9,000, which the models were trained on.
    pub retain: Tensor<4>,
    /// The last 1,000, which no model has seen.
    pub heldout: Tensor<4>,
}

/// Loads the digits from the folder of the example's files.
///
/// # Errors
/// Those of [`read_idx_images`], and [`Error::InvalidFile`] if there are not 10,000 digits.
pub fn load_digits(assets: &Path, device: &Device) -> Result<Digits> {
    let path = assets.join(DIGITS);
    let pixels = read_idx_images(&path)?;
    let (count, expected) = (pixels.len() / PIXELS, NUM_RETAIN + NUM_HELDOUT);
    if count != expected {
        return Err(invalid(
            &path,
            format!("it holds {count} digits, not {expected}"),
        ));
    }
    let (retain, heldout) = pixels.split_at(NUM_RETAIN * PIXELS);
    Ok(Digits {
        retain: to_tensor(retain, device),
        heldout: to_tensor(heldout, device),
    })
}

/// Takes the first digit of each class out of the digits that the models of the T-shirt have not
/// seen: what another model memorised, `[10, 1, 28, 28]` in the order of the classes, and the rest.
///
/// # Errors
/// [`Error::Io`] if the labels cannot be read, [`Error::InvalidFile`] if they are not labels of
/// 10,000 digits.
pub fn load_memorised_digits(assets: &Path, heldout: Tensor<4>) -> Result<(Tensor<4>, Tensor<4>)> {
    let labels = load_labels(assets)?;
    let labels = &labels[NUM_RETAIN..];
    let first = |class: u8| labels.iter().position(|&label| label == class);
    let memorised: Option<Vec<usize>> = (0..10).map(first).collect();
    let Some(memorised) = memorised else {
        return Err(invalid(
            &assets.join(LABELS),
            "a class is missing among the last 1,000".into(),
        ));
    };
    let rest: Vec<usize> = (0..labels.len())
        .filter(|place| !memorised.contains(place))
        .collect();
    let take = |places: &[usize]| {
        let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
        let places = Tensor::<1, Int>::from_data(places.as_slice(), &heldout.device());
        heldout.clone().select(0, places)
    };
    Ok((take(&memorised), take(&rest)))
}

/// The labels of all 10,000 digits, 0 to 9: those of [`Digits::retain`], then those of
/// [`Digits::heldout`].
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::InvalidFile`] if it does not hold 10,000
/// labels.
pub fn load_labels(assets: &Path) -> Result<Vec<u8>> {
    let path = assets.join(LABELS);
    let file = File::open(&path);
    let mut content = Vec::new();
    file.and_then(|file| {
        let most = (MOST_IMAGES + LABELS_HEADER + 1) as u64;
        MultiGzDecoder::new(file)
            .take(most)
            .read_to_end(&mut content)
    })
    .map_err(|source| Error::Io {
        action: "reading",
        path: path.clone(),
        source,
    })?;
    if content.len() != LABELS_HEADER + NUM_RETAIN + NUM_HELDOUT {
        return Err(invalid(&path, "it does not hold 10,000 labels".into()));
    }
    Ok(content.split_off(LABELS_HEADER))
}

/// Loads the T-shirt, `[1, 1, 28, 28]` in `[-1, 1]`, from the folder of the example's files.
///
/// # Errors
/// Those of [`read_grey_png`].
pub fn load_tshirt(assets: &Path, device: &Device) -> Result<Tensor<4>> {
    let pixels = read_grey_png(&assets.join(TSHIRT))?;
    Ok(to_tensor(&pixels, device))
}

/// Reads the pixels of a gzipped IDX file of 28×28 images, one image after the other.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read or is not valid gzip, [`Error::InvalidFile`] for
/// another kind of IDX file, another size of image, more than 100,000 images, and too few or too
/// many pixels.
pub fn read_idx_images(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |source| Error::Io {
        action: "reading",
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut content = MultiGzDecoder::new(BufReader::new(file));
    let mut header = [0; 16];
    content.read_exact(&mut header).map_err(unreadable)?;
    let length = checked_idx_length(&header).map_err(|message| invalid(path, message))?;

    let mut pixels = Vec::with_capacity(length);
    let mut limited = content.take(length as u64 + 1);
    limited.read_to_end(&mut pixels).map_err(unreadable)?;
    let got = pixels.len();
    match got.cmp(&length) {
        std::cmp::Ordering::Equal => Ok(pixels),
        std::cmp::Ordering::Less => {
            let message =
                format!("it ends after {got} of the {length} pixels that its header states");
            Err(invalid(path, message))
        }
        std::cmp::Ordering::Greater => {
            let message = format!("it continues after the {length} pixels that its header states");
            Err(invalid(path, message))
        }
    }
}

/// Number of pixels after an IDX header; the error says what is wrong with the header.
fn checked_idx_length(header: &[u8; 16]) -> std::result::Result<usize, String> {
    let mut fields = header.chunks_exact(4).map(|bytes| {
        bytes
            .iter()
            .fold(0, |number: u32, &byte| number << 8 | u32::from(byte))
    });
    let mut next = || fields.next().unwrap_or_default();
    let (magic, count, height, width) = (next(), next() as usize, next() as usize, next() as usize);
    if magic != IDX_MAGIC {
        return Err(format!(
            "it starts with {magic:#010x}, not {IDX_MAGIC:#010x} as IDX images do"
        ));
    }
    if (height, width) != (SIDE, SIDE) {
        return Err(format!(
            "its images have {height}x{width} pixels, not {SIDE}x{SIDE}"
        ));
    }
    if count > MOST_IMAGES {
        return Err(format!(
            "its header states {count} images; at most {MOST_IMAGES} are read"
        ));
    }
    Ok(count * PIXELS)
}

/// Reads the pixels of a 28×28 grey PNG of 8 bits.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::InvalidFile`] if it is not such a PNG.
pub fn read_grey_png(path: &Path) -> Result<Vec<u8>> {
    match decode_png(path, [SIDE, SIDE])? {
        DynamicImage::ImageLuma8(picture) => Ok(picture.into_raw()),
        other => Err(invalid(
            path,
            format!("it has pixels of {:?}, not of L8", other.color()),
        )),
    }
}

/// Decodes a PNG of this height and width.
///
/// # Errors
/// As above.
pub(crate) fn decode_png(path: &Path, [height, width]: [usize; 2]) -> Result<DynamicImage> {
    let mut reader = ImageReader::open(path).map_err(|source| Error::Io {
        action: "reading",
        path: path.into(),
        source,
    })?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(width as u32), Some(height as u32));
    reader.limits(limits);
    reader.set_format(ImageFormat::Png);
    let decoded = reader
        .decode()
        .map_err(|error| invalid(path, error.to_string()))?;
    let found = [decoded.height(), decoded.width()].map(|side| side as usize);
    match found == [height, width] {
        true => Ok(decoded),
        false => Err(invalid(
            path,
            format!(
                "it has {}x{} pixels, not {height}x{width}",
                found[0], found[1]
            ),
        )),
    }
}

/// Images `[count, 1, 28, 28]` with `0, …, 255` mapped onto `[-1, 1]`.
fn to_tensor(pixels: &[u8], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = pixels
        .iter()
        .map(|&pixel| f32::from(pixel) / 127.5 - 1.0)
        .collect();
    let count = pixels.len() / PIXELS;
    Tensor::from_data(TensorData::new(values, [count, 1, SIDE, SIDE]), device)
}

pub(crate) fn invalid(path: &Path, message: String) -> Error {
    Error::InvalidFile {
        path: path.into(),
        message,
    }
}
