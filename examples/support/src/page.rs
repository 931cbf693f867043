//! Writes tables into Markdown pages.

use std::error::Error;
use std::path::Path;

use siss::files::path_text;

use crate::files;

/// Puts a table between its marks in the page, `<!-- begin table: NAME -->` and
/// `<!-- end table: NAME -->`.
pub fn write(page: &Path, name: &str, table: &str) -> Result<(), Box<dyn Error>> {
    let begin = format!("<!-- begin table: {name} -->");
    let end = format!("<!-- end table: {name} -->");
    let text = files::read_text(page)?;
    let parts = text.split_once(&begin).zip(text.split_once(&end));
    let ((head, _), (_, tail)) = parts.ok_or_else(|| {
        format!(
            "{}: there is no place for the table, between `{begin}` and `{end}`",
            path_text(page)
        )
    })?;
    let text = format!("{head}{begin}\n{table}{end}{tail}");
    Ok(files::write(page, text)?)
}
