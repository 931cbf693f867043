//! The kind of a file, recognised by its first bytes.

use image::ImageFormat;

/// Number of bytes needed to recognise a kind.
pub(super) const TELLING: usize = 64;

/// The kinds of pictures that are read.
pub(super) const READ: [ImageFormat; 7] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::Bmp,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Tiff,
    ImageFormat::Pnm,
];

/// Endings of pictures of these kinds. A file with another ending is opened to find its kind.
const ENDINGS: [&str; 14] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pgm", "pbm",
    "pnm",
];

pub(super) fn has_picture_ending(name: &str) -> bool {
    let (_, ending) = name.rsplit_once('.').unwrap_or_default();
    ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A picture that is read.
    Picture(ImageFormat),
    /// A picture of a kind that is not read, with the name of the kind.
    Foreign(&'static str),
    /// Another known kind, and what to do about it.
    Known(&'static str, &'static str),
    /// An empty file.
    Empty,
    /// Any other kind.
    Other,
}

impl Kind {
    /// Whether the file holds a picture, read or not.
    pub(super) fn is_picture(self) -> bool {
        matches!(self, Kind::Picture(_) | Kind::Foreign(_))
    }

    /// Why a file of this kind is not read; `None` for kinds that are read.
    pub(super) fn refusal(self) -> Option<String> {
        match self {
            Kind::Picture(_) => None,
            Kind::Foreign(name) => Some(format!(
                "a picture in {name}, which is not read; convert it to PNG"
            )),
            Kind::Known(name, remedy) => Some(format!("{name}, not a picture; {remedy}")),
            Kind::Empty => Some("the file is empty: 0 bytes".into()),
            Kind::Other => Some("not a picture of a known kind".into()),
        }
    }
}

const CONVERT: &str = "save what it shows as PNG";

/// First bytes and the kind that they identify. Where two begin alike, the longer comes first.
const FOREIGN: [(&[u8], &str); 15] = [
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop's format"),
    (b"gimp xcf", "GIMP's format"),
    (b"\x00\x00\x01\x00", "the format of Windows icons"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"FUJIFILMCCD-RAW", "a camera's raw format"),
    (b"IIU\x00", "a camera's raw format"),
    (b"IIRO", "a camera's raw format"),
];

const KNOWN: [(&[u8], &str, &str); 10] = [
    (b"%PDF", "a PDF", CONVERT),
    (b"\x1f\x8b", "an archive", "unpack it"),
    (b"PK\x03\x04", "an archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "an archive", "unpack it"),
    (b"Rar!", "an archive", "unpack it"),
    (b"PAR1", "a table", "save its pictures as files"),
    (
        b"\x1a\x45\xdf\xa3",
        "a video",
        "save its frames as pictures",
    ),
    (b"\x00\x05\x16\x07", "data of macOS", "remove it"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer to a file that was not downloaded",
        "run `git lfs pull`",
    ),
    (b"\xd0\xcf\x11\xe0", "data of Windows or Office", CONVERT),
];

/// Beginnings of texts, in lower case, after white space.
const TEXTS: [(&str, &str, &str); 4] = [
    (
        "<!doctype html",
        "a web page",
        "download the picture again: the download failed",
    ),
    (
        "<html",
        "a web page",
        "download the picture again: the download failed",
    ),
    ("<svg", "an SVG drawing", CONVERT),
    ("<?xml", "XML", CONVERT),
];

/// The kind of a file with these first bytes.
pub(super) fn kind(start: &[u8]) -> Kind {
    if start.is_empty() {
        return Kind::Empty;
    }
    if let Some(kind) = container(start) {
        return kind;
    }
    // Camera raw files are TIFF files with their own mark.
    if start.starts_with(b"II*\0") && start.get(8..10) == Some(b"CR") {
        return Kind::Foreign("a camera's raw format");
    }
    if let Some(&(_, name)) = FOREIGN.iter().find(|(mark, _)| start.starts_with(mark)) {
        return Kind::Foreign(name);
    }
    if let Some(&(_, name, remedy)) = KNOWN.iter().find(|(mark, ..)| start.starts_with(mark)) {
        return Kind::Known(name, remedy);
    }
    if let Ok(format) = image::guess_format(start)
        && READ.contains(&format)
    {
        return Kind::Picture(format);
    }
    text(start)
}

/// Recognises files of the MP4 family by their brands: HEIC, AVIF, videos.
fn container(start: &[u8]) -> Option<Kind> {
    if start.get(4..8) != Some(b"ftyp") {
        return None;
    }
    let length = start[..4]
        .iter()
        .fold(0, |sum, &byte| 256 * sum + usize::from(byte));
    let end = length.clamp(12.min(start.len()), start.len());
    // The major brand, a version, and the compatible brands.
    let brands: Vec<&[u8]> = start[8..end].chunks_exact(4).collect();
    let has = |names: &[&[u8]]| brands.iter().any(|brand| names.contains(brand));
    Some(if has(&[b"avif", b"avis"]) {
        Kind::Foreign("AVIF")
    } else if has(&[
        b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"mif2",
    ]) {
        Kind::Foreign("HEIC")
    } else if has(&[b"crx "]) {
        Kind::Foreign("a camera's raw format")
    } else {
        Kind::Known("a video", "save its frames as pictures")
    })
}

fn text(start: &[u8]) -> Kind {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    // The last character may be cut off.
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if start.len() - error.valid_up_to() < 4 => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return Kind::Other,
    };
    if valid.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return Kind::Other;
    }
    let lower = valid.trim_start().to_ascii_lowercase();
    match TEXTS.iter().find(|(mark, ..)| lower.starts_with(mark)) {
        Some(&(_, name, remedy)) => Kind::Known(name, remedy),
        None => Kind::Known("text", "remove it, or download the picture again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let cases: [(&[u8], Kind); 16] = [
            (b"", Kind::Empty),
            (b"\x89PNG\r\n\x1a\n", Kind::Picture(ImageFormat::Png)),
            (b"\xff\xd8\xff\xe0", Kind::Picture(ImageFormat::Jpeg)),
            (b"GIF89a", Kind::Picture(ImageFormat::Gif)),
            (b"MM\x00*\0\0\0\x08", Kind::Picture(ImageFormat::Tiff)),
            (b"P6 2 2 255\n", Kind::Picture(ImageFormat::Pnm)),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Kind::Foreign("HEIC")),
            (
                b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf",
                Kind::Foreign("AVIF"),
            ),
            (b"\0\0\0\x20ftypavif\0\0\0\0avif", Kind::Foreign("AVIF")),
            (b"\xff\x0a\xfa\x7f", Kind::Foreign("JPEG XL")),
            (
                b"II*\0\x10\0\0\0CR\x02\0",
                Kind::Foreign("a camera's raw format"),
            ),
            (
                b"\0\0\0\x18ftypisom",
                Kind::Known("a video", "save its frames as pictures"),
            ),
            (
                b"\n <!DOCTYPE HTML><p>",
                Kind::Known(
                    "a web page",
                    "download the picture again: the download failed",
                ),
            ),
            (
                "caf\u{e9}".as_bytes(),
                Kind::Known("text", "remove it, or download the picture again"),
            ),
            (
                &"caf\u{e9}".as_bytes()[..4],
                Kind::Known("text", "remove it, or download the picture again"),
            ),
            (b"\x01\x02\x03\x04\xff\xff\xff\xff", Kind::Other),
        ];
        for (start, expected) in cases {
            assert_eq!(kind(start), expected, "{start:?}");
        }
        assert!(has_picture_ending("a.JFIF") && has_picture_ending("b.c.tif"));
        assert!(!has_picture_ending("png") && !has_picture_ending("a.heic"));
    }
}
