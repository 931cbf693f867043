//! Results as lines of a CSV file.

use std::error::Error;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The lines of a file; none where there is no file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lines = csv::Reader::from_path(path)?.into_deserialize();
    Ok(lines.collect::<std::result::Result<_, _>>()?)
}

/// Writes a file anew, with its folder where there is none.
pub fn write<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut writer = csv::Writer::from_path(path)?;
    for line in lines {
        writer.serialize(line)?;
    }
    Ok(writer.flush()?)
}
