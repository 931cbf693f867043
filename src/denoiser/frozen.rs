//! The output of a frozen model.

use burn::tensor::Tensor;

use super::{Condition, Denoiser};
use crate::error::{Result, check_shape};
use crate::host::{select_rows, to_f32, vector};

/// The output of a frozen model, without gradients, `rows` rows at a time.
///
/// # Errors
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if timesteps, condition or output do not
/// have the rows and shape of `noisy`.
pub(crate) fn frozen_output<const D: usize, M: Denoiser<D>>(
    model: &M,
    noisy: Tensor<D>,
    timesteps: &[f64],
    condition: &M::Condition,
    rows: usize,
) -> Result<Tensor<D>> {
    let (shape, device) = (noisy.dims(), noisy.device());
    // An objective of the user's own asks: it may ask for nothing, or ask wrongly.
    let (what, remedy) = (
        "the frozen model's timesteps",
        "give one for every noisy point",
    );
    check_shape(what, &shape[..1], &[timesteps.len()], remedy)?;
    condition.check_rows("the frozen model's condition", shape[0])?;
    if shape[0] == 0 {
        return Ok(noisy);
    }
    let all: Vec<usize> = (0..shape[0]).collect();
    let parts = all.chunks(rows).map(|rows| {
        let times = vector(rows.iter().map(|&row| timesteps[row]), &device);
        model.predict(select_rows(&noisy, rows), times, &condition.take_rows(rows))
    });
    let answered = to_f32(Tensor::cat(parts.collect(), 0).inner());
    let remedy = "the frozen model must predict one value for every element of its input";
    check_shape(
        "the frozen model's output",
        &shape,
        &answered.dims(),
        remedy,
    )?;
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::error::Error;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    #[test]
    fn a_teacher_that_is_asked_wrongly_refuses() {
        let device = Device::flex();
        let layer = LinearConfig::new(3, 3).init(&device);
        let model = FnDenoiser::new(
            layer,
            |layer: &Linear, noisy: Tensor<2>, _, _: &Tensor<2>| layer.forward(noisy),
        );
        let zeros = |rows: usize| Tensor::<2>::zeros([rows, 3], &device);
        let ask = |rows: usize, timesteps: usize, conditions: usize| {
            let times = vec![1.0; timesteps];
            frozen_output(&model, zeros(rows), &times, &zeros(conditions), 2)
        };
        assert_eq!(ask(5, 5, 5).unwrap().dims(), [5, 3]);
        assert_eq!(ask(0, 0, 0).unwrap().dims(), [0, 3]);
        for (timesteps, conditions) in [(4, 5), (6, 5), (5, 4)] {
            let error = ask(5, timesteps, conditions).unwrap_err();
            assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
        }
    }
}
