//! Paths as text.

use std::fmt::Write as _;
use std::path::Path;

/// A path as text, different for any two different paths: bytes that are not UTF-8 become `\xE9`, a
/// line break `\n`, a backslash `\\`.
///
/// Everything else is unchanged.
///
/// # Example
/// ```
/// # use std::path::Path;
/// assert_eq!(siss::files::path_text(Path::new("faces/été.png")), "faces/été.png");
/// assert_eq!(siss::files::path_text(Path::new("two\nlines")), r"two\nlines");
/// ```
pub fn path_text(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    for chunk in path.as_ref().as_os_str().as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                // On Windows a backslash separates folders and cannot be part of a name.
                '\\' if !cfg!(windows) => text.push_str(r"\\"),
                hidden if is_hidden(hidden) => text.extend(hidden.escape_default()),
                shown => text.push(shown),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, r"\x{byte:02X}");
        }
    }
    text
}

/// Whether a character moves the cursor or changes the direction of writing instead of being
/// visible.
pub(crate) fn is_hidden(character: char) -> bool {
    let turns = ['\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{feff}'];
    character.is_control()
        || turns.contains(&character)
        || ('\u{202a}'..='\u{202e}').contains(&character)
        || ('\u{2066}'..='\u{2069}').contains(&character)
}
