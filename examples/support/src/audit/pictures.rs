//! Charts and pictures of the report.

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::report::ImageGrid;
use siss::report::audit::{Chart, Line, Picture};

use crate::audit::attacks::{Generated, losses};
use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::closeness::CURVE;
use crate::probe::mean;
use crate::progress::Progress;
use crate::subject::Subject;

/// Generated images that are shown.
const SHOWN: usize = 48;
const COLUMNS: usize = 12;
/// Fewer are shown of large ones, so that the report stays small.
const MOST_SHOWN_PIXELS: usize = 1 << 19;
const LEAST_SHOWN: usize = 8;
/// Up to this many pixels images are shown enlarged.
const SMALL: usize = 64 * 64;

/// The items' loss over the timesteps, by model.
pub fn levels<S: Subject>(
    material: &Material<S>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Chart> {
    progress.phase("loss over the timesteps");
    let models = &material.models;
    let line = |name: &str, model: &S::Model| -> Result<Line> {
        let point = |timestep: usize| {
            let losses = losses(material, model, &material.items, timestep, options.noises)?;
            Ok((timestep as f64, mean(&losses)))
        };
        let points: Vec<(f64, f64)> = CURVE.into_iter().map(point).collect::<Result<_>>()?;
        Ok(Line {
            name: name.into(),
            points,
        })
    };
    let mut lines = vec![
        line("before", &models.before)?,
        line("after", &models.after)?,
    ];
    if let Some(retrained) = &models.retrained {
        lines.push(line("trained without it", retrained)?);
    }
    Ok(Chart {
        title: "The item's loss".into(),
        caption: "How badly each model predicts the item, mean over the items, against the amount of noise. After unlearning the line should lie on that of a model trained without the item: below it the model still knows the item, above it the model avoids it.".into(),
        x_label: "timestep (amount of noise)".into(),
        y_label: "loss".into(),
        log_y: true,
        lines,
    })
}

/// Generated images before and after, and the items themselves if they may be shown.
pub fn pictures<S: Subject>(
    material: &Material<S>,
    generated: &Generated,
    show: bool,
) -> Result<Vec<Picture>> {
    let pixels = material.format.height * material.format.width;
    let most = (MOST_SHOWN_PIXELS / pixels).clamp(LEAST_SHOWN, SHOWN);
    let scale = |factor| if pixels <= SMALL { factor } else { 1 };
    let grid = |images: &Tensor<4>| -> Result<(ImageGrid, bool)> {
        let shown = images.clone().narrow(0, 0, most.min(images.dims()[0]));
        let shows_subject = material.copies.among(&shown) > 0;
        let grid = ImageGrid::new(shown)?.columns(COLUMNS.min(most));
        Ok((grid.scale(scale(2)), shows_subject))
    };
    let mut pictures = Vec::new();
    if show {
        let items = ImageGrid::new(material.pictures.clone())?.scale(scale(3));
        pictures.push(Picture::new(&items, "What was to be forgotten.", true)?);
    }
    for (images, when) in [(&generated.before, "before"), (&generated.after, "after")] {
        let (grid, shows_subject) = grid(images)?;
        if show || !shows_subject {
            let caption = format!(
                "Pictures generated {when} unlearning; a place in the grid starts from the same noise before and after."
            );
            pictures.push(Picture::new(&grid, caption, shows_subject)?);
        }
    }
    Ok(pictures)
}
