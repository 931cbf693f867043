//! Reading one picture.

use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage,
};

use super::Transparency;
use super::kind::{Kind, kind};
use super::shards::Members;
use super::tiff::{Pages, pages};
use crate::error::Error;
use crate::files::shortened;

/// Longest file that is read, in bytes.
const LONGEST_FILE: u64 = 256 << 20;
/// Longest side of an image that is decoded: a guard against files that would fill the memory.
const LONGEST_SIDE: u32 = 16_384;
const MOST_PIXELS: u64 = 1 << 26;
/// Most memory for a decoded image: four bytes for each of the most pixels.
const MOST_MEMORY: u64 = 4 * MOST_PIXELS;

/// A picture that was read.
pub(super) struct Decoded {
    /// Upright, without transparency.
    pub(super) picture: RgbImage,
    /// Whether a pixel was transparent.
    pub(super) is_transparent: bool,
    /// Whether it is the first of several pictures in its file: the frames of an animation, the
    /// pages of a document.
    pub(super) is_first_of_several: bool,
}

/// Reads a picture by its content, whatever its file name says. The error says why it is not read.
///
/// The picture is a file, or one of the `members` of shards.
pub(super) fn decode(
    path: &Path,
    members: &Members,
    transparency: Transparency,
) -> Result<Decoded, String> {
    let bytes = contents(path, members)?;
    let format = match kind(&bytes[..bytes.len().min(super::kind::TELLING)]) {
        Kind::Picture(format) => format,
        other => return Err(other.refusal().unwrap_or_default()),
    };
    if format == ImageFormat::Jpeg && !is_whole_jpeg(&bytes) {
        return Err("the JPEG is cut off; download it again or remove it".into());
    }
    let mut decoder = ImageReader::with_format(Cursor::new(&bytes), format);
    decoder.limits(limits());
    let mut decoder = decoder.into_decoder().map_err(unreadable)?;
    check_size(&decoder)?;
    let is_first_of_several = holds_several(&bytes, format)?;
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    picture.apply_orientation(orientation);
    let (picture, is_transparent) = without_transparency(picture, transparency);
    Ok(Decoded {
        picture,
        is_transparent,
        is_first_of_several,
    })
}

fn unreadable(error: ImageError) -> String {
    shortened(format!("not read: {error}"))
}

fn contents(path: &Path, members: &Members) -> Result<Vec<u8>, String> {
    let (file, length) = members.open(path).map_err(|error| match error {
        Error::Io { source, .. } => format!("not read: {source}"),
        Error::InvalidFile { message, .. } => message,
        other => other.to_string(),
    })?;
    let too_long = |length: u64| {
        let (megabytes, most) = (length >> 20, LONGEST_FILE >> 20);
        format!("it has {megabytes} MiB; at most {most} MiB are read")
    };
    if length > LONGEST_FILE {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(LONGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("not read: {error}"))?;
    match bytes.len() as u64 {
        length if length > LONGEST_FILE => Err(too_long(length)),
        _ => Ok(bytes),
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(LONGEST_SIDE), Some(LONGEST_SIDE));
    limits.max_alloc = Some(MOST_MEMORY);
    limits
}

fn check_size(decoder: &impl ImageDecoder) -> Result<(), String> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MOST_PIXELS {
        return Err(format!(
            "it has {height}x{width} pixels; from 1 to {MOST_PIXELS} pixels are read"
        ));
    }
    let bytes = decoder.total_bytes();
    if bytes > MOST_MEMORY {
        let (megabytes, most) = (bytes >> 20, MOST_MEMORY >> 20);
        return Err(format!(
            "it would take {megabytes} MiB of memory; at most {most} MiB are used"
        ));
    }
    Ok(())
}

/// Whether a JPEG reaches its end-of-image marker.
///
/// The decoder fills in missing data without reporting it. Segments state their length, so the end
/// of a thumbnail inside a segment is not taken for the end of the picture. Bytes after the end
/// marker do not belong to the picture.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut rest = bytes;
    // Between segments lies entropy-coded data, where FF is followed by 00, a restart marker or
    // more FF.
    while let Some(at) = rest.iter().position(|&byte| byte == 0xff) {
        rest = &rest[at + 1..];
        let Some(&marker) = rest.first() else {
            return false;
        };
        match marker {
            END => return true,
            0xff => {}
            0x00 | 0x01 | 0xd0..=0xd8 => rest = &rest[1..],
            _ => {
                let Some(&[high, low]) = rest.get(1..3) else {
                    return false;
                };
                let length = usize::from(u16::from_be_bytes([high, low]));
                match rest.get(1 + length..) {
                    Some(after) => rest = after,
                    None => return false,
                }
            }
        }
    }
    false
}

/// Whether a file holds more than one picture.
fn holds_several(bytes: &[u8], format: ImageFormat) -> Result<bool, String> {
    let bytes_of = Cursor::new(bytes);
    Ok(match format {
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(bytes_of, limits()).map_err(unreadable)?;
            decoder.is_apng().map_err(unreadable)?
        }
        ImageFormat::WebP => WebPDecoder::new(bytes_of)
            .map_err(unreadable)?
            .has_animation(),
        ImageFormat::Gif => match gif_frames(bytes) {
            Some(frames) => frames > 1,
            None => {
                return Err("the GIF is cut off; download it again or remove it".into());
            }
        },
        ImageFormat::Tiff => match pages(bytes) {
            Pages::One => false,
            Pages::Several => true,
            Pages::PreviewFirst => {
                return Err(
                    "a TIFF that begins with a preview, like a camera's raw file; convert it to PNG"
                        .into(),
                );
            }
        },
        _ => false,
    })
}

/// Number of frames of a GIF, counted up to two; `None` if the file breaks off before its end.
fn gif_frames(bytes: &[u8]) -> Option<usize> {
    // Colour tables take three bytes per colour; the flags give the number of colours.
    let table = |flags: u8| match flags & 0x80 {
        0 => 0,
        _ => 3 << ((flags & 7) + 1),
    };
    let mut at = 13 + table(*bytes.get(10)?);
    let mut frames = 0;
    while frames < 2 {
        at += match *bytes.get(at)? {
            b'!' => 2,
            b',' => {
                frames += 1;
                11 + table(*bytes.get(at + 9)?)
            }
            // The end of the file, or an unknown block.
            _ => break,
        };
        // Blocks of data, each preceded by its length, up to an empty block.
        while let length @ 1.. = usize::from(*bytes.get(at)?) {
            at += 1 + length;
        }
        at += 1;
    }
    Some(frames)
}

/// The picture in RGB, and whether any part of it was transparent.
fn without_transparency(picture: DynamicImage, transparency: Transparency) -> (RgbImage, bool) {
    if !picture.color().has_alpha() {
        return (picture.into_rgb8(), false);
    }
    let picture = picture.into_rgba8();
    let is_transparent = picture.pixels().any(|pixel| pixel.0[3] < 255);
    let over = |ground: u32, colour: u32, alpha: u32| {
        ((colour * alpha + ground * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [colour @ .., alpha] = picture.get_pixel(x, y).0;
        Rgb(match transparency {
            Transparency::Drop => colour,
            Transparency::White => colour.map(|colour| over(255, colour.into(), alpha.into())),
            Transparency::Black => colour.map(|colour| over(0, colour.into(), alpha.into())),
        })
    });
    (rgb, is_transparent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_gif_are_counted_by_its_blocks() {
        let head = b"GIF89a\x02\0\x02\0\x80\0\0RGBrgb!\xf9\x04\0\0\0\0\0";
        let frame = b",\0\0\0\0\x02\0\x02\0\0\x02\x02\x44\x0a\0";
        let one = [&head[..], frame, b";"].concat();
        assert_eq!(gif_frames(&one), Some(1));
        for length in 0..one.len() {
            assert_eq!(gif_frames(&one[..length]), None, "{length}");
        }
        assert_eq!(gif_frames(&[&head[..], frame, frame].concat()), Some(2));
    }

    #[test]
    fn the_end_of_a_jpeg_is_its_own() {
        // A thumbnail with its own end marker, scan data with stuffed bytes and a restart marker,
        // the end marker, and bytes after it.
        let head = b"\xff\xd8\xff\xe1\x00\x06\xff\xd8\xff\xd9\xff\xda\x00\x03\x01";
        let scan = b"\x12\xff\x00\x34\xff\xd0\x56";
        let cut = [&head[..], scan].concat();
        for length in 0..cut.len() {
            assert!(!is_whole_jpeg(&cut[..length]), "{length}");
        }
        assert!(!is_whole_jpeg(&cut));
        let whole = [&cut[..], b"\xff\xff\xd9 more \xff\xe1\x00"].concat();
        assert!(is_whole_jpeg(&whole));
    }
}
