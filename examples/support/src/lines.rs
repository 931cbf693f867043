//! Results stored as lines of a CSV file.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use siss::files::path_text;

use crate::files;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Reads the lines of a file; empty if there is no file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = files::read_text(path)?;
    let lines = csv::Reader::from_reader(text.as_bytes()).into_deserialize();
    let lines: std::result::Result<_, csv::Error> = lines.collect();
    Ok(lines.map_err(|error| format!("{}: {error}", path_text(path)))?)
}

/// Writes a file, replacing an existing one as a whole, and creates its folder if necessary.
pub fn write<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_folder(folder)?;
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    for line in lines {
        writer.serialize(line)?;
    }
    let partial = path.with_added_extension("partial");
    files::write(&partial, writer.into_inner()?)?;
    Ok(fs::rename(&partial, path).map_err(files::failed("replacing", path))?)
}

/// Adds a line to a file at once, below a heading if it is the first. Creates file and folder if
/// necessary.
pub fn append<T: Serialize>(path: &Path, line: &T) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_folder(folder)?;
    }
    let opened = OpenOptions::new().append(true).create(true).open(path);
    let mut file = opened.map_err(files::failed("opening", path))?;
    let size = file
        .metadata()
        .map_err(files::failed("reading", path))?
        .len();
    let mut writer = csv::WriterBuilder::new()
        .has_headers(size == 0)
        .from_writer(Vec::new());
    writer.serialize(line)?;
    let bytes = writer.into_inner()?;
    Ok(file
        .write_all(&bytes)
        .map_err(files::failed("writing", path))?)
}

/// A number with four significant digits: as many as are read in a file.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Line {
        name: String,
        copies: Option<usize>,
    }

    fn line(name: &str, copies: Option<usize>) -> Line {
        Line {
            name: name.into(),
            copies,
        }
    }

    #[test]
    fn lines_that_are_added_one_by_one_are_read_back_below_one_heading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/lines.csv");
        let lines = [line("a, b", None), line("c", Some(3)), line("d", Some(0))];
        for (count, line) in lines.iter().enumerate() {
            assert_eq!(read::<Line>(&path).unwrap(), lines[..count]);
            append(&path, line).unwrap();
        }
        assert_eq!(read::<Line>(&path).unwrap(), lines);
        let text = files::read_text(&path).unwrap();
        assert_eq!(text, "name,copies\n\"a, b\",\nc,3\nd,0\n");
        write(&folder.path().join("whole.csv"), &lines).unwrap();
        let whole = files::read_text(&folder.path().join("whole.csv")).unwrap();
        assert_eq!(text, whole);
    }

    #[test]
    fn a_line_that_was_cut_off_is_refused_by_the_files_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.csv");
        files::write(&path, "name,copies\nc,3\nd").unwrap();
        let error = read::<Line>(&path).unwrap_err().to_string();
        assert!(error.contains("lines.csv"), "{error}");
    }

    #[test]
    fn numbers_keep_four_digits() {
        for (value, kept) in [
            (0.123_456, "0.1235"),
            (-12_345.6, "-12350"),
            (3.0, "3"),
            (0.000_123_456, "0.0001235"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(rounded(value).to_string(), kept);
        }
        assert!(rounded(f64::NAN).is_nan());
    }
}
