//! Operations of a network on the CPU that are faster than Flex's own, each with its backward pass.
//!
//! Each function here returns `None` where it does not apply: on another device, for another number
//! type, or for a shape that it leaves to burn. Results depend on the processor's vector
//! instructions, but not on the number of threads.

mod activation;
mod attention;
mod attention_gradient;
mod convolution;
mod functions;
mod norm;
mod operations;
mod planes;
mod tile;
mod weight_gradient;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::Dispatch;
use burn::nn::Linear;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Tensor};

use self::attention::AttentionShape;
use self::convolution::ConvolutionShape;
use self::norm::GroupNormShape;
use self::operations::FastOperations;
use super::ops::Activation;

/// Whether the operations of this module are used at all.
static ENABLED: AtomicBool = AtomicBool::new(true);

/// Chooses for the whole process whether networks on the CPU use the crate's own operations or
/// burn's.
///
/// The crate's operations are used by default. Turn them off to compare speeds, or to rule them out
/// as the cause of a difference: outputs and gradients agree within rounding.
pub fn use_flex_kernels(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// Whether the operations accept a tensor.
fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(test)]
    if tests::PLAIN.get() {
        return false;
    }
    let enabled = ENABLED.load(Ordering::Relaxed);
    enabled && tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
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

/// Convolution in two dimensions with a single group.
///
/// # Shapes
/// - `input`: `[rows, inputs, height, width]`
/// - `weight`: `[outputs, inputs, kernel height, kernel width]`
/// - `bias`: `[outputs]`
pub(crate) fn convolve(
    input: &Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    options: &ConvOptions<2>,
) -> Option<Tensor<4>> {
    let [rows, inputs, height, width] = input.dims();
    let [outputs, kernel_inputs, kernel_height, kernel_width] = weight.dims();
    let shape = ConvolutionShape {
        input: [inputs, height, width],
        outputs,
        kernel: [kernel_height, kernel_width],
        stride: options.stride,
        dilation: options.dilation,
        leading: options.padding_begin(),
        trailing: options.padding_end(),
    };
    let bias_fits = bias.is_none_or(|bias| takes(bias) && bias.dims() == [outputs]);
    let one_group = options.groups == 1 && inputs == kernel_inputs && rows > 0;
    if !(takes(input) && takes(weight) && bias_fits && one_group && shape.fits()) {
        return None;
    }
    if let Some([y, x]) = shape.only_tap() {
        let weight = weight.clone().narrow(2, y, 1).narrow(3, x, 1);
        return convolve(
            input,
            &weight,
            bias,
            &ConvOptions::new([1, 1], [0, 0], [1, 1], 1),
        );
    }
    let bias = bias.cloned();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], (&Device::flex(), DType::F32)));
    let [input, weight] = [input, weight].map(|tensor| tensor.clone().into_dispatch());
    let bias = bias.into_dispatch();
    let output = <Dispatch as FastOperations>::convolve(input, weight, bias, shape);
    Some(Tensor::from_dispatch(output))
}

/// A linear layer over the channels of channel-major features: a convolution with one tap.
///
/// # Shapes
/// - `input`: `[rows, inputs, positions]`
/// - the result: `[rows, outputs, positions]`
pub(crate) fn project(layer: &Linear, input: &Tensor<3>) -> Option<Tensor<3>> {
    let weight = layer.weight.val();
    let [inputs, outputs] = weight.dims();
    let weight = weight.transpose().reshape([outputs, inputs, 1, 1]);
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    let input = input.clone().unsqueeze_dim(2);
    let output = convolve(&input, &weight, bias.as_ref(), &options)?;
    Some(output.squeeze_dim(2))
}

/// The activation of a feed-forward layer, over channel-major features.
///
/// # Shapes
/// - `features`: `[rows, channels, positions]`
/// - the result: the same, or half as many channels for GEGLU
pub(crate) fn activate(activation: Activation, features: &Tensor<3>) -> Option<Tensor<3>> {
    let [rows, channels, positions] = features.dims();
    let halves = activation != Activation::Geglu || channels.is_multiple_of(2);
    if !(takes(features) && halves) || rows * channels * positions == 0 {
        return None;
    }
    let features = features.clone().into_dispatch();
    let output = <Dispatch as FastOperations>::activate(features, activation);
    Some(Tensor::from_dispatch(output))
}

/// Scaled dot-product attention over channel-major features, with `heads` heads side by side.
///
/// # Shapes
/// - `query` and the result: `[rows, channels, positions]`
/// - `key` and `value`: `[rows, channels, sources]`
pub(crate) fn attend(
    query: &Tensor<3>,
    key: &Tensor<3>,
    value: &Tensor<3>,
    heads: usize,
) -> Option<Tensor<3>> {
    let [rows, channels, positions] = query.dims();
    let [_, _, sources] = key.dims();
    let fits = key.dims() == [rows, channels, sources] && value.dims() == key.dims();
    let divides = heads > 0 && channels.is_multiple_of(heads);
    let numbers = takes(query) && takes(key) && takes(value);
    if !(fits && divides && numbers) || rows * channels * positions * sources == 0 {
        return None;
    }
    let shape = AttentionShape {
        size: channels / heads,
        positions,
        sources,
    };
    let [query, key, value] = [query, key, value].map(|tensor| tensor.clone().into_dispatch());
    let output = <Dispatch as FastOperations>::attend(query, key, value, shape);
    Some(Tensor::from_dispatch(output))
}
