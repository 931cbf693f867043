//! Results stored as lines of a CSV file.

use std::error::Error;
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

/// Writes a file, replacing an existing one, and creates its folder if necessary.
pub fn write<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_folder(folder)?;
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    for line in lines {
        writer.serialize(line)?;
    }
    Ok(files::write(path, writer.into_inner()?)?)
}
