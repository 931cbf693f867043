//! Pictures and curves of a run.

use std::path::Path;

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::report::{ImageGrid, Panel, Plot, Series};

use crate::evaluate::{DENOISE_FROM, Evaluated, Examiner, TIMESTEPS};
use crate::job::{Retrained, StepRecord};

/// Generated images shown.
const SHOWN: usize = 128;

pub fn save(
    out: &Path,
    before: &Evaluated,
    after: &Evaluated,
    examiner: &Examiner,
    records: &[StepRecord],
    retrained: &Retrained,
) -> Result<()> {
    generated(before)?.save(out.join("before.png"))?;
    generated(after)?.save(out.join("after.png"))?;
    let tshirt = ImageGrid::new(examiner.tshirt.clone())?
        .title("T-shirt")
        .scale(3);
    tshirt
        .beside(copies("before", &before.denoised)?)
        .beside(copies("after", &after.denoised)?)
        .beside(copies("retrained", &retrained.denoised)?)
        .save(out.join("denoised.png"))?;
    curves(before, records, retrained).save(out.join("curves.svg"))
}

fn generated(model: &Evaluated) -> Result<ImageGrid> {
    let shown = SHOWN.min(model.generated.dims()[0]);
    Ok(ImageGrid::new(model.generated.clone().narrow(0, 0, shown))?
        .columns(16)
        .scale(2))
}

fn copies(title: &str, images: &Tensor<4>) -> Result<ImageGrid> {
    Ok(ImageGrid::new(images.clone())?
        .title(format!("{title}, from t = {DENOISE_FROM}"))
        .columns(4)
        .scale(3))
}

fn curves(before: &Evaluated, records: &[StepRecord], retrained: &Retrained) -> Plot {
    let series = |label: &str, value: &dyn Fn(&StepRecord) -> Option<f64>| {
        let point = |record: &StepRecord| Some(((record.report.step + 1) as f64, value(record)?));
        Series::new(label, records.iter().filter_map(point))
    };
    let panel = |title: &str, y_label: &str| Panel::new(title).x_label("step").y_label(y_label);

    let losses = panel("Losses of the step", "squared error an element")
        .log_y()
        .series(series("retain", &|r| {
            Some(r.report.retain.as_ref()?.mean_squared_error)
        }))
        .series(series("forget", &|r| {
            Some(r.report.forget.as_ref()?.mean_squared_error)
        }));
    let norms = panel("Gradient norms", "norm")
        .log_y()
        .series(series("retain", &|r| {
            r.report.retain.as_ref().map(|_| r.report.norms.retain)
        }))
        .series(series("forget", &|r| {
            r.report.forget.as_ref().map(|_| r.report.norms.forget)
        }))
        .series(series("combined", &|r| Some(r.report.combined_norm)));
    let scale = panel("Forget scale", "factor of the forget gradient")
        .log_y()
        .series(series("forget scale", &|r| {
            r.report
                .forget
                .as_ref()
                .map(|_| r.report.coefficients.forget)
        }));
    let weights = panel("Weights of the step", "weight")
        .series(series("retain, mean", &|r| {
            Some(r.report.retain.as_ref()?.weights.mean)
        }))
        .series(series("forget, mean", &|r| {
            Some(r.report.forget.as_ref()?.weights.mean)
        }))
        .series(series("rows run a sample", &|r| {
            Some(r.report.rows_per_sample())
        }));
    let distance = panel("Denoised T-shirt", "L2 from the T-shirt")
        .series(with_start(
            before.figures.tshirt_denoise_l2,
            records,
            &|r| r.tshirt_denoise_l2,
            "denoised copies",
        ))
        .reference("retrained", retrained.tshirt_denoise_l2);
    let mut tshirt_loss = panel("The T-shirt's loss", "squared error an element").log_y();
    for timestep in TIMESTEPS {
        let key = timestep.to_string();
        let at_start = before.figures.tshirt_loss[&key];
        let value = |r: &StepRecord| r.tshirt_loss.as_ref().map(|loss| loss[&key]);
        tshirt_loss = tshirt_loss
            .series(with_start(
                at_start,
                records,
                &value,
                &format!("t = {timestep}"),
            ))
            .reference(
                format!("retrained, t = {timestep}"),
                retrained.tshirt_loss[&key],
            );
    }
    Plot::new()
        .columns(2)
        .panel(losses)
        .panel(norms)
        .panel(scale)
        .panel(weights)
        .panel(distance)
        .panel(tshirt_loss)
}

/// A series that begins, at step 0, with the value before unlearning.
fn with_start(
    start: f64,
    records: &[StepRecord],
    value: &dyn Fn(&StepRecord) -> Option<f64>,
    label: &str,
) -> Series {
    let along = records
        .iter()
        .filter_map(|record| Some(((record.report.step + 1) as f64, value(record)?)));
    Series::new(label, std::iter::once((0.0, start)).chain(along))
}
