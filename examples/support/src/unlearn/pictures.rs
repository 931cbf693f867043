//! Pictures and curves of a run of `unlearn`.

use std::path::Path;

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::report::{ImageGrid, Plot};

use crate::curves::{along, panel, step_panels, with_start};
use crate::probe::ByTimestep;
use crate::run::StepRecord;
use crate::subject::Subject;
use crate::unlearn::evaluate::{Along, Evaluated, Examiner};
use crate::unlearn::predicted::Figures;

/// Most generated images shown.
const SHOWN: usize = 128;
/// Most pixels of all images shown.
const MOST_PIXELS: usize = 50_000_000;
/// Small images are enlarged to about this side.
const SIDE: usize = 84;

/// Writes the pictures and the plot of a run into a folder.
pub fn save(
    out: &Path,
    before: &Evaluated,
    after: &Evaluated,
    examiner: &Examiner<'_, impl Subject>,
    (records, start): (&[StepRecord<Along>], &Along),
    predicted: Option<&Figures>,
) -> Result<()> {
    generated(before)?.save(out.join("before.png"))?;
    generated(after)?.save(out.join("after.png"))?;
    denoised(before, after, examiner)?.save(out.join("denoised.png"))?;
    curves(examiner, records, start, predicted).save(out.join("curves.svg"))
}

/// Writes images as single files named by their numbers, with as many digits as the last of `of`
/// images needs.
pub fn single(folder: &Path, first: usize, images: Tensor<4>, of: usize) -> Result<()> {
    let digits = (of - 1).to_string().len().max(3);
    for row in 0..images.dims()[0] {
        let image = images.clone().narrow(0, row, 1);
        let name = format!("{:0digits$}.png", first + row);
        ImageGrid::new(image)?.gap(0).save(folder.join(name))?;
    }
    Ok(())
}

fn generated(model: &Evaluated) -> Result<ImageGrid> {
    grid(&model.generated, 0..SHOWN.min(model.generated.dims()[0]))
}

/// The first forgotten images, each with its copies next to it.
fn denoised(
    before: &Evaluated,
    after: &Evaluated,
    examiner: &Examiner<'_, impl Subject>,
) -> Result<ImageGrid> {
    let (shown, copies) = examiner.shown();
    let [count, ..] = shown.dims();
    // A single image has two rows of copies.
    let columns = if count == 1 { copies / 2 } else { copies };
    let part = |model: &Evaluated, name: &str| {
        let title = format!("{name}, from t = {}", examiner.middle());
        Ok(grid(&model.denoised, 0..count * copies)?
            .columns(columns)
            .title(title))
    };
    Ok(grid(&shown, 0..count)?
        .columns(1)
        .title("forgotten")
        .beside(part(before, "before")?)
        .beside(part(after, "after")?))
}

/// Some images: enlarged if they are small, fewer if they are huge.
fn grid(images: &Tensor<4>, range: std::ops::Range<usize>) -> Result<ImageGrid> {
    let [_, _, height, width] = images.dims();
    let count = range.len().min(MOST_PIXELS / (height * width)).max(1);
    let scale = (SIDE / height.max(width)).max(1);
    Ok(ImageGrid::new(images.clone().narrow(0, range.start, count))?.scale(scale))
}

fn curves(
    examiner: &Examiner<'_, impl Subject>,
    records: &[StepRecord<Along>],
    start: &Along,
    predicted: Option<&Figures>,
) -> Plot {
    let losses = |title: &str, side: &dyn Fn(&Along) -> &ByTimestep| {
        let losses = panel(title, "squared error per element").log_y();
        examiner.timesteps.iter().fold(losses, |panel, timestep| {
            let key = timestep.to_string();
            let later = along(records, |along| side(along)[&key]);
            panel.series(with_start(
                &format!("t = {timestep}"),
                side(start)[&key],
                later,
            ))
        })
    };
    let mut forget = losses("Loss of the forgotten images", &|along| &along.forget_loss);
    for timestep in examiner.timesteps {
        let key = timestep.to_string();
        let name = format!("control before, t = {timestep}");
        forget = forget.reference(name, start.control_loss[&key]);
        if let Some(predicted) = predicted {
            let name = format!("predicted, t = {timestep}");
            forget = forget.reference(name, predicted.forget_loss[&key]);
        }
    }
    let control = losses("Loss of the control images", &|along| &along.control_loss);
    step_panels(records)
        .into_iter()
        .chain([forget, control])
        .fold(Plot::new().columns(2), Plot::panel)
}
