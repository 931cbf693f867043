//! The frozen teacher of an objective.

use burn::tensor::Tensor;

use crate::denoiser::{Condition, Denoiser};
use crate::error::{Result, check_shape};
use crate::host::{select_rows, to_f32, vector};

/// The output of a frozen model, `rows` rows at a time.
pub(super) fn answer<const D: usize, M: Denoiser<D>>(
    model: &M,
    noisy: Tensor<D>,
    timesteps: &[f64],
    condition: &M::Condition,
    rows: usize,
) -> Result<Tensor<D>> {
    let (shape, device) = (noisy.dims(), noisy.device());
    let all: Vec<usize> = (0..shape[0]).collect();
    let parts = all.chunks(rows).map(|rows| {
        let times = vector(rows.iter().map(|&row| timesteps[row]), &device);
        model.predict(select_rows(&noisy, rows), times, &condition.take_rows(rows))
    });
    let answered = to_f32(Tensor::cat(parts.collect(), 0).inner());
    let remedy = "the teacher must predict one value for every element of its input";
    check_shape("the teacher's output", &shape, &answered.dims(), remedy)?;
    Ok(answered)
}
