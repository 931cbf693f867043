//! Tables in Markdown pages, written by programs.

use std::error::Error;
use std::path::Path;

/// Puts a table between its marks in the page, `<!-- begin table: NAME -->` and `<!-- end table: NAME -->`.
pub fn write(page: &Path, name: &str, table: &str) -> Result<(), Box<dyn Error>> {
    let begin = format!("<!-- begin table: {name} -->");
    let end = format!("<!-- end table: {name} -->");
    let text =
        std::fs::read_to_string(page).map_err(|error| format!("{}: {error}", page.display()))?;
    let parts = text.split_once(&begin).zip(text.split_once(&end));
    let ((head, _), (_, tail)) = parts.ok_or_else(|| {
        format!(
            "{}: there is no place for the table, between `{begin}` and `{end}`",
            page.display()
        )
    })?;
    Ok(std::fs::write(
        page,
        format!("{head}{begin}\n{table}{end}{tail}"),
    )?)
}
