//! Paths as text.

use std::fmt::Write as _;
use std::path::Path;

/// A path as text that tells any two paths apart: what is no UTF-8 becomes `\xE9`, a line break `\n`, a backslash `\\`. Everything
/// else stays as it is.
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
                // Windows separates folders by it, and has it in no name.
                '\\' if !cfg!(windows) => text.push_str(r"\\"),
                hidden if is_hidden(hidden) => text.extend(hidden.escape_default()),
                shown => text.push(shown),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a text does not fail.
            let _ = write!(text, r"\x{byte:02X}");
        }
    }
    text
}

/// What moves the cursor or the direction of writing instead of showing a character.
pub(crate) fn is_hidden(character: char) -> bool {
    let turns = ['\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{feff}'];
    character.is_control()
        || turns.contains(&character)
        || ('\u{202a}'..='\u{202e}').contains(&character)
        || ('\u{2066}'..='\u{2069}').contains(&character)
}
