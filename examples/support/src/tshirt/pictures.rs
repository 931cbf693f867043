//! Pictures and curves of a run of `mnist_tshirt`.

use std::path::Path;

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::report::{ImageGrid, Panel, Plot, Series};

use crate::closeness::{CURVE, DENOISED};
use crate::curves::{along, panel, step_panels, with_start};
use crate::probe::ByTimestep;
use crate::run::StepRecord;
use crate::tshirt::evaluate::{COPIES, Copies, Evaluated, TIMESTEPS};
use crate::tshirt::job::{Along, Job, Retrained};

/// Number of generated images shown.
const SHOWN: usize = 128;

/// Writes all pictures and plots of a run into a folder.
pub fn save(
    job: &Job,
    out: &Path,
    before: &Evaluated,
    after: &Evaluated,
    records: &[StepRecord<Along>],
) -> Result<()> {
    let retrained = &job.retrained;
    generated(before)?.save(out.join("before.png"))?;
    generated(after)?.save(out.join("after.png"))?;
    let copies = [&before.denoised, &after.denoised, &retrained.denoised];
    denoised(&job.examiner.tshirt, copies)?.save(out.join("denoised.png"))?;
    levels(job, before, after).save(out.join("levels.svg"))?;
    curves(before, records, retrained).save(out.join("curves.svg"))
}

/// The T-shirt's loss at each timestep: before, after, and the target.
fn levels(job: &Job, before: &Evaluated, after: &Evaluated) -> Plot {
    let series = |label: &str, losses: &ByTimestep| {
        let point = |timestep: usize| (timestep as f64, losses[&timestep.to_string()]);
        Series::new(label, CURVE.map(point))
    };
    let mut panel = Panel::new("The T-shirt's loss")
        .x_label("timestep")
        .y_label("squared error per element")
        .log_y()
        .series(series("before", &before.figures.tshirt_loss))
        .series(series("after", &after.figures.tshirt_loss))
        .series(series("retrained without it", &job.retrained.tshirt_loss));
    if let Some(predicted) = &job.predicted {
        panel = panel.series(series("predicted, without retraining", predicted));
    }
    Plot::new().panel(panel)
}

fn generated(model: &Evaluated) -> Result<ImageGrid> {
    let shown = SHOWN.min(model.generated.dims()[0]);
    Ok(ImageGrid::new(model.generated.clone().narrow(0, 0, shown))?
        .columns(16)
        .scale(2))
}

/// The T-shirt, and its copies by the models before, after, and retrained, one column for each
/// noise.
fn denoised(tshirt: &Tensor<4>, [before, after, retrained]: [&Copies; 3]) -> Result<ImageGrid> {
    let mut grid = ImageGrid::new(tshirt.clone())?.title("T-shirt").scale(3);
    for (index, timestep) in DENOISED.into_iter().enumerate() {
        let copies = [before, after, retrained].map(|copies| copies[index].clone());
        let copies = ImageGrid::new(Tensor::cat(copies.to_vec(), 0))?
            .title(format!("denoised from t = {timestep}"))
            .row_captions(["before", "after", "retrained"])
            .columns(COPIES)
            .scale(3);
        grid = grid.beside(copies);
    }
    Ok(grid)
}

fn curves(before: &Evaluated, records: &[StepRecord<Along>], retrained: &Retrained) -> Plot {
    let along = |value: &dyn Fn(&Along) -> f64| along(records, value);
    let distance = panel("Denoised T-shirt", "L2 from the T-shirt")
        .series(with_start(
            "denoised copies",
            before.figures.tshirt_denoise_l2,
            along(&|along| along.tshirt_denoise_l2),
        ))
        .reference("retrained", retrained.tshirt_denoise_l2);
    let mut tshirt_loss = panel("The T-shirt's loss", "squared error per element").log_y();
    for timestep in TIMESTEPS {
        let key = timestep.to_string();
        tshirt_loss = tshirt_loss
            .series(with_start(
                &format!("t = {timestep}"),
                before.figures.tshirt_loss[&key],
                along(&|along| along.tshirt_loss[&key]),
            ))
            .reference(
                format!("retrained, t = {timestep}"),
                retrained.tshirt_loss[&key],
            );
    }
    step_panels(records)
        .into_iter()
        .chain([distance, tshirt_loss])
        .fold(Plot::new().columns(2), Plot::panel)
}
