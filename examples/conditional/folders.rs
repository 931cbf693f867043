//! The pictures of a case as folders, for `unlearn`.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;
use siss::burn::tensor::Tensor;
use siss_support::files::{create_folder, write};
use siss_support::unlearn::pictures;

use crate::Result;

/// Writes pictures, and what is said of each in a `metadata.jsonl`.
pub fn save(folder: &Path, pictures: Tensor<4>, key: &str, said: &[Value]) -> Result<()> {
    create_folder(folder)?;
    let (count, mut listing) = (said.len(), String::new());
    let digits = (count - 1).to_string().len().max(3);
    for (number, said) in said.iter().enumerate() {
        let name = format!("{number:0digits$}.png");
        writeln!(
            listing,
            "{}",
            serde_json::json!({"file_name": name, key: said})
        )?;
    }
    pictures::single(folder, 0, pictures, count)?;
    write(&folder.join("metadata.jsonl"), listing)?;
    Ok(())
}
