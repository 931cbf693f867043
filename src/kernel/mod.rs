//! The loss kernel: per-sample losses and the seed of the backward pass, outside the autodiff
//! graph.
//!
//! Also the mixture draw in one pass, on the backends that have it.

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) mod cube;
#[cfg(feature = "flex-kernels")]
pub(crate) mod flex;
#[cfg(any(
    feature = "flex-kernels",
    all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
))]
pub(crate) mod fused;
#[cfg(feature = "flex-kernels")]
pub(crate) mod simd;

use burn::tensor::Tensor;

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub use self::cube::serial::{SerialSums, serial_sums};
use crate::error::{Result, check_device, check_shape};
use crate::host::{as_column, squared_norms, to_f32};
use crate::process::Scales;

/// The result of the mixture draw: noisy point, the noise that explains it from the retained and
/// from the forgotten point; log-ratio.
type Mixture<const D: usize> = ([Tensor<D>; 3], Tensor<1>);

/// The result of the loss kernel for a group of rows.
#[derive(Debug, Clone)]
pub struct WeightedSquaredError<const D: usize> {
    /// `‖ŷ − target‖²` of each row, summed over elements, without the weight, `[rows]`, f32.
    pub losses: Tensor<1>,
    /// `∂L/∂ŷ = 2 w (ŷ − target) / B`, `[rows, …]`, f32.
    pub seed: Tensor<D>,
}

/// Per-sample losses and the derivative of `L = (1/B) Σ w ‖ŷ − target‖²` with respect to the
/// prediction.
///
/// The loss itself needs no autodiff: run the model's backward pass with
/// `(ŷ · seed).sum().backward()`. Losses and seed come from one pass over prediction and target: on
/// the CPU with the feature `flex-kernels`, where the seed replaces the target in memory unless
/// another tensor shares it, and on wgpu and CUDA with `fused`. Otherwise they come from tensor
/// operations.
///
/// # Shapes
/// - `prediction`, `target`: `[rows, …]`; not tracked by autodiff
/// - `weights`: `[rows]`, signed
/// - `batch_size`: `B`, the rows of the whole optimiser step, which may be more than those given
///   here
///
/// # Errors
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) or
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if the arguments do not fit each other
/// or are on different devices.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::kernel::weighted_squared_error;
///
/// let device = Device::flex();
/// let prediction = Tensor::<2>::from_data([[1.0, 3.0]], &device);
/// let target = Tensor::<2>::from_data([[1.0, 1.0]], &device);
/// let weights = Tensor::<1>::from_data([-0.5], &device);
/// let error = weighted_squared_error(prediction, target, weights, 2)?;
/// assert_eq!(error.losses.into_scalar::<f32>(), 4.0);
/// assert_eq!(error.seed.into_data().try_to_vec::<f32>().unwrap(), [0.0, -1.0]);
/// # Ok::<(), siss::Error>(())
/// ```
pub fn weighted_squared_error<const D: usize>(
    prediction: Tensor<D>,
    target: Tensor<D>,
    weights: Tensor<1>,
    batch_size: usize,
) -> Result<WeightedSquaredError<D>> {
    let shape = prediction.dims();
    check_shape(
        "the target",
        &shape,
        &target.dims(),
        "the model must predict one value for every element of its input",
    )?;
    check_shape(
        "the weights",
        &shape[..1],
        &weights.dims(),
        "give one weight for every row",
    )?;
    check_device("targets", &prediction.device(), &target.device())?;
    check_device("weights", &prediction.device(), &weights.device())?;
    let (prediction, target, weights) = (to_f32(prediction), to_f32(target), to_f32(weights));
    let scale = 2.0 / batch_size as f64;
    #[cfg(any(
        feature = "flex-kernels",
        all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
    ))]
    if fused::takes(&prediction) && fused::takes(&target) && fused::takes(&weights) {
        return Ok(fused::weighted_squared_error(
            prediction, target, weights, scale,
        ));
    }
    Ok(in_operations(prediction, target, weights, scale))
}

/// The points of [`mixture_points`](crate::objective::mixture_points) in one pass, or `None` if
/// there is no kernel for these tensors.
#[cfg_attr(
    not(any(
        feature = "flex-kernels",
        all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
    )),
    allow(
        unused_variables,
        reason = "without a kernel there is nothing to pass on"
    )
)]
pub(crate) fn mixture_draw<const D: usize>(
    [retain, forget, noise]: [&Tensor<D>; 3],
    scales: &Scales,
    from_forget: &[f64],
) -> Option<Mixture<D>> {
    #[cfg(any(
        feature = "flex-kernels",
        all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
    ))]
    if [retain, forget, noise].into_iter().all(fused::takes) {
        let numbers = [&scales.signal, &scales.noise, &scales.ratios(), from_forget].concat();
        let rows: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
        let rows = crate::host::tensor(
            rows,
            [fused::ROW_NUMBERS, from_forget.len()],
            &noise.device(),
        );
        let [retain, forget, noise] = [retain, forget, noise].map(Tensor::clone);
        return Some(fused::mixture_draw(retain, forget, noise, rows));
    }
    None
}

/// The portable version, in tensor operations.
fn in_operations<const D: usize>(
    prediction: Tensor<D>,
    target: Tensor<D>,
    weights: Tensor<1>,
    scale: f64,
) -> WeightedSquaredError<D> {
    let difference = prediction - target;
    let factor: Tensor<D> = as_column(weights * scale);
    WeightedSquaredError {
        losses: squared_norms(difference.clone()),
        seed: difference * factor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use crate::host::sum_elements;
    use burn::tensor::Device;

    /// The seed equals the derivative of the weighted loss that autodiff computes.
    #[test]
    fn the_seed_is_the_gradient_that_autodiff_finds() {
        let device = Device::flex();
        let noise = |seed| normal_noise::<3>([4, 3, 5], seed, 0, 0, Stream::Noise, &device);
        let weights = Tensor::<1>::from_data([0.3, -1.7, 2.0, 0.0], &device);
        let (prediction, target) = (noise(1), noise(2));
        let error =
            weighted_squared_error(prediction.clone(), target.clone(), weights.clone(), 8).unwrap();

        let tracked = prediction.autodiff().require_grad();
        let difference = tracked.clone() - target;
        let loss = (sum_elements(difference.clone() * difference) * weights).sum() / 8.0;
        let expected = tracked.grad(&loss.backward()).unwrap();
        let worst = (error.seed - expected).abs().max().into_scalar::<f32>();
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn losses_are_summed_over_elements_and_not_weighted() {
        let device = Device::flex();
        let prediction = Tensor::<2>::from_data([[1.0, 2.0], [0.0, 0.0]], &device);
        let target = Tensor::<2>::from_data([[0.0, 0.0], [3.0, 0.0]], &device);
        let weights = Tensor::<1>::from_data([0.1, 0.2], &device);
        let error = weighted_squared_error(prediction, target, weights, 1).unwrap();
        assert_eq!(
            error.losses.into_data().try_to_vec::<f32>().unwrap(),
            [5.0, 9.0]
        );
    }
}
