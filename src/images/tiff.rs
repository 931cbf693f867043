//! The number of pictures in a TIFF file.

/// The pages of a TIFF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    One,
    Several,
    /// The first is a smaller version of another picture, as in raw files of cameras.
    PreviewFirst,
}

/// Most directories that are followed: a file may link them in a circle.
const MOST: usize = 64;
/// The tag whose lowest bit says that the picture is a smaller version of another.
const SUBFILE_TYPE: u64 = 254;
/// The tag that holds the version of Adobe's digital negative.
const DIGITAL_NEGATIVE: u64 = 50_706;

/// Follows the directories of a TIFF or BigTIFF file. Anything that cannot be followed is left to
/// the decoder.
pub(super) fn pages(bytes: &[u8]) -> Pages {
    let file = File::new(bytes);
    let mut offset = file.first();
    let mut full = 0;
    for page in 0..MOST {
        let Some(directory) = offset.and_then(|offset| file.directory(offset)) else {
            break;
        };
        if page == 0 && (directory.is_preview || directory.is_raw) {
            return Pages::PreviewFirst;
        }
        full += usize::from(!directory.is_preview);
        offset = directory.next;
    }
    if full > 1 { Pages::Several } else { Pages::One }
}

struct Directory {
    is_preview: bool,
    is_raw: bool,
    /// Position of the next directory.
    next: Option<u64>,
}

struct File<'a> {
    bytes: &'a [u8],
    is_little: bool,
    is_big: bool,
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let is_little = bytes.starts_with(b"II");
        let mut file = Self {
            bytes,
            is_little,
            is_big: false,
        };
        file.is_big = file.number(2, 2) == Some(43);
        file
    }

    /// An unsigned number of `length` bytes.
    fn number(&self, at: u64, length: u64) -> Option<u64> {
        let start = usize::try_from(at).ok()?;
        let end = usize::try_from(at.checked_add(length)?).ok()?;
        let bytes = self.bytes.get(start..end)?;
        let join = |sum: u64, &byte: &u8| 256 * sum + u64::from(byte);
        Some(match self.is_little {
            true => bytes.iter().rev().fold(0, join),
            false => bytes.iter().fold(0, join),
        })
    }

    /// Number of bytes of an offset.
    fn offset(&self) -> u64 {
        if self.is_big { 8 } else { 4 }
    }

    fn first(&self) -> Option<u64> {
        self.number(self.offset(), self.offset())
    }

    fn directory(&self, at: u64) -> Option<Directory> {
        let (count_length, entry_length) = if self.is_big { (8, 20) } else { (2, 12) };
        if at == 0 {
            return None;
        }
        let count = self.number(at, count_length)?;
        let first = at.checked_add(count_length)?;
        let end = first.checked_add(count.checked_mul(entry_length)?)?;
        if end > self.bytes.len() as u64 {
            return None;
        }
        let mut directory = Directory {
            is_preview: false,
            is_raw: false,
            next: self.number(end, self.offset()),
        };
        for entry in (first..end).step_by(entry_length as usize) {
            match self.number(entry, 2)? {
                SUBFILE_TYPE => {
                    // The value field ends the entry, and the value is at the field's beginning.
                    // Two bytes contain the bit in either byte order.
                    let length = if self.number(entry + 2, 2)? == 3 {
                        2
                    } else {
                        4
                    };
                    let value = self.number(entry + entry_length - self.offset(), length)?;
                    directory.is_preview = value & 1 == 1;
                }
                DIGITAL_NEGATIVE => directory.is_raw = true,
                _ => {}
            }
        }
        Some(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian TIFF whose directories have one entry each.
    fn file(tags: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = b"II*\0\x08\0\0\0".to_vec();
        for (index, &(tag, value)) in tags.iter().enumerate() {
            let next = if index + 1 < tags.len() {
                bytes.len() as u32 + 18
            } else {
                0
            };
            bytes.extend([1, 0]);
            bytes.extend(tag.to_le_bytes());
            bytes.extend([4, 0, 1, 0, 0, 0]);
            bytes.extend(value.to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn pages_are_counted_and_previews_are_none() {
        assert_eq!(pages(&file(&[(256, 4)])), Pages::One);
        assert_eq!(pages(&file(&[(256, 4), (254, 1)])), Pages::One);
        assert_eq!(pages(&file(&[(256, 4), (256, 4)])), Pages::Several);
        assert_eq!(pages(&file(&[(254, 1), (256, 4)])), Pages::PreviewFirst);
        assert_eq!(pages(&file(&[(50_706, 1)])), Pages::PreviewFirst);
        let mut circle = file(&[(254, 0)]);
        let end = circle.len();
        circle[end - 4..].copy_from_slice(&8u32.to_le_bytes());
        assert_eq!(pages(&circle), Pages::Several);
        for length in 0..circle.len() {
            pages(&circle[..length]);
        }
    }
}
