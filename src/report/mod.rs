//! Pictures, plots and intervals for the report on a run: [`ImageGrid`] (PNG), [`Plot`] (SVG) and
//! the statistics an audit needs; and [`audit`], the record of a request to be forgotten.
//!
//! # Example
//! ```
//! use siss::report::{ImageGrid, Panel, Plot, Series, binomial_interval};
//! use siss::burn::tensor::{Device, Tensor};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let samples = Tensor::<4>::zeros([8, 1, 28, 28], &Device::flex());
//! ImageGrid::new(samples.clone())?
//!     .title("before")
//!     .scale(2)
//!     .beside(ImageGrid::new(samples)?.title("after").scale(2))
//!     .save(folder.join("before-after.png"))?;
//!
//! let losses = (0..100).map(|step| (f64::from(step), 0.5 / f64::from(step + 1)));
//! let panel = Panel::new("Loss").x_label("step").log_y().series(Series::new("retain", losses));
//! Plot::new().panel(panel).save(folder.join("losses.svg"))?;
//!
//! let (low, high) = binomial_interval(3, 1000, 0.95)?;
//! assert!(low < 0.003 && 0.003 < high);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod audit;
mod axis;
mod grid;
mod plot;

pub use crate::quantile::quantile;
pub use crate::statistics::{binomial_interval, percentile_rank};
pub use grid::ImageGrid;
pub use plot::{Panel, Plot, Series};

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::replace;

/// Writes a file, and creates missing folders on its path.
fn write_file(path: &Path, contents: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("creating folder", folder))?;
    }
    replace(path, |file| file.write_all(contents))
}
