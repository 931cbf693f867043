//! Operations on the CPU that are faster than Flex's own, each with its backward pass.
//!
//! Each function here answers `None` where it does not apply: on another device, for another type of
//! number, for a shape that it leaves to burn. Results depend on the processor's instructions, not on
//! the number of threads.

mod norm;
mod operations;
mod simd;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};

use self::norm::GroupNormShape;
use self::operations::FastOperations;

/// Whether a tensor is of the kind that the operations take.
fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(test)]
    if tests::PLAIN.get() {
        return false;
    }
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}

/// Group normalisation, followed by `SiLU` where `activated`.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
/// - `gain` and `offset`: `[channels]`
pub(crate) fn group_norm(
    input: &Tensor<4>,
    gain: &Tensor<1>,
    offset: &Tensor<1>,
    groups: usize,
    epsilon: f64,
    activated: bool,
) -> Option<Tensor<4>> {
    let [_, channels, height, width] = input.dims();
    let fits = gain.dims() == [channels] && offset.dims() == [channels];
    let divides = groups > 0 && channels.is_multiple_of(groups);
    let numbers = takes(input) && takes(gain) && takes(offset);
    if !(fits && divides && numbers) || input.shape().num_elements() == 0 {
        return None;
    }
    let shape = GroupNormShape {
        groups,
        members: channels / groups,
        pixels: height * width,
        epsilon,
        activated,
    };
    let [gain, offset] = [gain, offset].map(|tensor| tensor.clone().into_dispatch());
    let input = input.clone().into_dispatch();
    let output = <Dispatch as FastOperations>::normalise_groups(input, gain, offset, shape);
    Some(Tensor::from_dispatch(output))
}
