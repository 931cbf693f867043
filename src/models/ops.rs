//! The operations that dominate the running time of a network, in one place: faster kernels are
//! used here.

use std::f64::consts::FRAC_1_SQRT_2;

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use super::cube;
#[cfg(feature = "flex-kernels")]
use super::flex;
use super::trace::{Operation, record};
use crate::backend::is_flex;
use crate::host::row_index;
use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, LayerNorm, Linear};
use burn::tensor::activation::{self, gelu_approximate, silu, softmax};
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, Tensor};
#[cfg(any(
    feature = "flex-kernels",
    all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
))]
use burn::{nn::PaddingConfig2d, tensor::ops::ConvOptions};

/// What a network is given, in the type of its weights, in which it computes.
pub(crate) fn in_type_of<const D: usize, const E: usize>(
    given: Tensor<D>,
    weight: &Param<Tensor<E>>,
) -> Tensor<D> {
    in_type(given, weight.val().dtype())
}

/// A tensor in a type; the same if it has it.
pub(crate) fn in_type<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    match tensor.dtype() == dtype {
        true => tensor,
        false => tensor.cast(dtype),
    }
}

/// A convolution with the layer's weights, stride and padding.
///
/// # Shapes
/// - `input`: `[rows, channels, height, width]`
pub(crate) fn convolve(layer: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    record(|| Operation::Convolution {
        layer: layer.clone(),
        input: input.dims(),
    });
    own_convolution(layer, &input).unwrap_or_else(|| layer.forward(input))
}

/// A convolution, and `onto` added to it: a number for each pixel of the result, or for each map.
///
/// # Shapes
/// - `input`: `[rows, channels, height, width]`
/// - `onto`: the result's, or `[rows, channels, 1, 1]`
pub(crate) fn convolve_onto(layer: &Conv2d, input: Tensor<4>, onto: Tensor<4>) -> Tensor<4> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube_convolution(layer, &input, Some(&onto)) {
        record(|| Operation::Convolution {
            layer: layer.clone(),
            input: input.dims(),
        });
        return output;
    }
    let output = convolve(layer, input);
    match onto.dims()[2..] == [1, 1] && output.dims()[2..] != [1, 1] {
        true => shift_maps(output, onto),
        false => output + onto,
    }
}

/// A convolution by an operation of the crate's own, if one applies.
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
fn own_convolution(layer: &Conv2d, input: &Tensor<4>) -> Option<Tensor<4>> {
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::convolve(
        input,
        &layer.weight.val(),
        layer.bias.as_ref().map(|bias| bias.val()).as_ref(),
        &convolution_options(layer)?,
    ) {
        return Some(output);
    }
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube_convolution(layer, input, None) {
        return Some(output);
    }
    None
}

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
fn cube_convolution(
    layer: &Conv2d,
    input: &Tensor<4>,
    onto: Option<&Tensor<4>>,
) -> Option<Tensor<4>> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    let options = convolution_options(layer)?;
    cube::convolve(input, &layer.weight.val(), bias.as_ref(), onto, &options)
}

/// A layer's settings; `None` for a padding that depends on the input.
#[cfg(any(
    feature = "flex-kernels",
    all(feature = "fused", any(feature = "wgpu", feature = "cuda"))
))]
fn convolution_options(layer: &Conv2d) -> Option<ConvOptions<2>> {
    let padding = match layer.padding {
        PaddingConfig2d::Valid => [(0, 0), (0, 0)],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
        PaddingConfig2d::Same => return None,
    };
    let (stride, dilation, groups) = (layer.stride, layer.dilation, layer.groups);
    Some(ConvOptions::new_with_padding(
        stride, padding, dilation, groups,
    ))
}

/// Group normalisation followed by `SiLU`.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
pub(crate) fn group_norm_silu(layer: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    record_group_norm(layer, &input, true);
    own_group_norm(layer, &input, true).unwrap_or_else(|| silu(in_operations(layer, input)))
}

/// Group normalisation, with the division by the deviation and the layer's gain as one
/// multiplication.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
pub(crate) fn group_norm(layer: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    record_group_norm(layer, &input, false);
    own_group_norm(layer, &input, false).unwrap_or_else(|| in_operations(layer, input))
}

fn record_group_norm(layer: &GroupNorm, input: &Tensor<4>, activated: bool) {
    record(|| Operation::GroupNorm {
        layer: layer.clone(),
        input: input.dims(),
        activated,
    });
}

/// Group normalisation by burn's operations.
fn in_operations(layer: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    let (Some(gain), Some(offset), DType::F32 | DType::F64) =
        (&layer.gamma, &layer.beta, input.dtype())
    else {
        return layer.forward(input);
    };
    let shape = input.dims();
    let [rows, channels, height, width] = shape;
    let (groups, members, pixels) = (
        layer.num_groups,
        channels / layer.num_groups,
        height * width,
    );

    let grouped = input.reshape([rows, groups, members * pixels]);
    let centred = grouped.clone() - grouped.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let inverse_deviation = variance.add_scalar(layer.epsilon).sqrt().recip();
    let scale = inverse_deviation * gain.val().reshape([1, groups, members]);

    let centred = centred.reshape([rows, groups, members, pixels]);
    let scaled = centred * scale.unsqueeze_dim(3);
    (scaled + offset.val().reshape([1, groups, members, 1])).reshape(shape)
}

/// Group normalisation by an operation of the crate's own, if one applies.
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
fn own_group_norm(layer: &GroupNorm, input: &Tensor<4>, activated: bool) -> Option<Tensor<4>> {
    let (gain, offset) = (layer.gamma.as_ref()?.val(), layer.beta.as_ref()?.val());
    let (groups, epsilon) = (layer.num_groups, layer.epsilon);
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::group_norm(input, &gain, &offset, groups, epsilon, activated) {
        return Some(output);
    }
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube::group_norm(input, &gain, &offset, groups, epsilon, activated) {
        return Some(output);
    }
    None
}

/// Nearest-neighbour enlargement: pixel `i` of an axis of `n` pixels that becomes `m` copies pixel
/// `⌊i n / m⌋`.
///
/// On the CPU by burn's `interpolate`. On other devices burn 0.22 finds the pixels of the gradient
/// by dividing in f32, and a GPU's division may be off by a few units in the last place
/// (docs/upstream.md). There the indices are whole numbers from the host.
///
/// # Shapes
/// - `input`: `[rows, channels, height, width]`
/// - the result: `[rows, channels, size[0], size[1]]`
pub(crate) fn enlarge(input: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    record(|| Operation::Enlargement {
        input: input.dims(),
        size,
    });
    if is_flex(&input.device()) {
        let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size);
        return interpolate(input, options);
    }
    copy_pixels(input, size)
}

/// Enlargement by copies: of whole pixels where the size is a multiple, else of one row and column
/// after another.
fn copy_pixels(input: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [rows, channels, height, width] = input.dims();
    if size[0].is_multiple_of(height) && size[1].is_multiple_of(width) {
        let copies = [size[0] / height, size[1] / width];
        let pixels = input.reshape([rows, channels, height, 1, width, 1]);
        let copied = pixels.expand([rows, channels, height, copies[0], width, copies[1]]);
        return copied.reshape([rows, channels, size[0], size[1]]);
    }
    let device = input.device();
    let sources = |inputs: usize, outputs: usize| {
        let sources: Vec<usize> = (0..outputs).map(|i| i * inputs / outputs).collect();
        row_index(&sources, &device)
    };
    let tall = input.select(2, sources(height, size[0]));
    tall.select(3, sources(width, size[1]))
}

/// What follows the first linear layer of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// GEGLU: `a · gelu(b)` of the two halves of the features.
    Geglu,
    /// `gelu` in its form with the hyperbolic tangent.
    GeluTanh,
}

/// The activation of channel-major features.
///
/// # Shapes
/// - `features`: `[rows, channels, positions]`
/// - the result: the same, or half as many channels for GEGLU
pub(crate) fn activate(activation: Activation, features: Tensor<3>) -> Tensor<3> {
    record(|| Operation::Activation {
        activation,
        input: features.dims(),
    });
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::activate(activation, &features) {
        return output;
    }
    match activation {
        Activation::Geglu => {
            let half = features.dims()[1] / 2;
            let gate = gelu(features.clone().narrow(1, half, half));
            features.narrow(1, 0, half) * gate
        }
        Activation::GeluTanh => gelu_approximate(features),
    }
}

/// `x Φ(x)`, with the distribution function Φ of the normal distribution.
///
/// On the CPU by burn's `gelu`. On other devices burn 0.22 takes the gradient of its form with the
/// hyperbolic tangent, which is off by up to 9e-4 (docs/upstream.md).
pub(crate) fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    if is_flex(&input.device()) {
        return activation::gelu(input);
    }
    let doubled = input
        .clone()
        .mul_scalar(FRAC_1_SQRT_2)
        .erf()
        .add_scalar(1.0);
    input * doubled.mul_scalar(0.5)
}

/// Layer normalisation over the channels of channel-major features.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, positions]`
pub(crate) fn layer_norm(layer: &LayerNorm, epsilon: f64, input: Tensor<3>) -> Tensor<3> {
    let channels = input.dims()[1];
    let normed = standardise(input, epsilon) * layer.gamma.val().reshape([1, channels, 1]);
    match &layer.beta {
        Some(offset) => normed + offset.val().reshape([1, channels, 1]),
        None => normed,
    }
}

/// Features of mean 0 and variance 1 over the channels, `(x − μ) / √(σ² + ε)`.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, positions]`
pub(crate) fn standardise(input: Tensor<3>, epsilon: f64) -> Tensor<3> {
    let centred = input.clone() - input.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred * variance.add_scalar(epsilon).sqrt().recip()
}

/// A linear layer.
///
/// # Shapes
/// - `input`: `[rows, inputs]`
/// - the result: `[rows, outputs]`
pub(crate) fn linear(layer: &Linear, input: Tensor<2>) -> Tensor<2> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube_projection(layer, &input.clone().unsqueeze_dim(2), None) {
        return output.squeeze_dim(2);
    }
    layer.forward(input)
}

/// A linear layer over the channels of channel-major features, without copying a transpose.
///
/// # Shapes
/// - `input`: `[rows, inputs, positions]`
/// - the result: `[rows, outputs, positions]`
pub(crate) fn project(layer: &Linear, input: Tensor<3>) -> Tensor<3> {
    record_projection(layer, &input);
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube_projection(layer, &input, None) {
        return output;
    }
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::project(layer, &input) {
        return output;
    }
    let weight = layer.weight.val().transpose().unsqueeze::<3>();
    let [_, outputs, _] = weight.dims();
    let output = weight.matmul(input);
    let Some(bias) = layer.bias.as_ref().map(|bias| bias.val()) else {
        return output;
    };
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(shifted) = cube::shift(&output, &bias) {
        return shifted;
    }
    output + bias.reshape([1, outputs, 1])
}

/// [`project`], and `onto` added to it.
///
/// # Shapes
/// - `input`: `[rows, inputs, positions]`
/// - `onto` and the result: `[rows, outputs, positions]`
pub(crate) fn project_onto(layer: &Linear, input: Tensor<3>, onto: Tensor<3>) -> Tensor<3> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube_projection(layer, &input, Some(&onto)) {
        record_projection(layer, &input);
        return output;
    }
    project(layer, input) + onto
}

fn record_projection(layer: &Linear, input: &Tensor<3>) {
    record(|| Operation::Projection {
        layer: layer.clone(),
        input: input.dims(),
    });
}

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
fn cube_projection(
    layer: &Linear,
    input: &Tensor<3>,
    onto: Option<&Tensor<3>>,
) -> Option<Tensor<3>> {
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    cube::project(input, &layer.weight.val(), bias.as_ref(), onto)
}

/// Adds a number to each map.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
/// - `numbers`: `[rows, channels, 1, 1]`
fn shift_maps(input: Tensor<4>, numbers: Tensor<4>) -> Tensor<4> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if cube::takes(&input) && cube::takes(&numbers) {
        let shape = input.dims();
        let maps = shape[0] * shape[1];
        let flat = input.clone().reshape([1, maps, shape[2] * shape[3]]);
        if let Some(shifted) = cube::shift(&flat, &numbers.clone().reshape([maps])) {
            return shifted.reshape(shape);
        }
    }
    input + numbers
}

/// Scaled dot-product attention over channel-major features, with `heads` heads side by side.
///
/// # Shapes
/// - `query` and the result: `[rows, channels, positions]`
/// - `key` and `value`: `[rows, channels, sources]`
pub(crate) fn attend(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
) -> Tensor<3> {
    let [rows, channels, positions] = query.dims();
    let [_, _, sources] = key.dims();
    record(|| Operation::Attention {
        query: [rows, channels, positions],
        sources,
        heads,
    });
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::attend(&query, &key, &value, heads) {
        return output;
    }
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(output) = cube::attend(&query, &key, &value, heads) {
        return output;
    }
    let size = channels / heads;

    let query = query.reshape([rows, heads, size, positions]);
    let key = key.reshape([rows, heads, size, sources]);
    let value = value.reshape([rows, heads, size, sources]);

    let scale = (size as f64).sqrt().recip();
    let weights = scaled_softmax(query, key, scale);
    value
        .matmul(weights.transpose())
        .reshape([rows, channels, positions])
}

/// `softmax(scale · qᵀ k)` over the sources.
///
/// # Shapes
/// - `query`: `[rows, heads, size, positions]`; `key`: `[rows, heads, size, sources]`
/// - the result: `[rows, heads, positions, sources]`
fn scaled_softmax(query: Tensor<4>, key: Tensor<4>, scale: f64) -> Tensor<4> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if cube::takes(&query) {
        let scores = query.transpose().matmul(key);
        return cube::softmax(scores, scale);
    }
    softmax(query.mul_scalar(scale).transpose().matmul(key), 3)
}

#[cfg(test)]
mod tests {
    use burn::nn::{GroupNormConfig, LinearConfig};
    use burn::tensor::module::attention;
    use burn::tensor::ops::AttentionModuleOptions;
    use burn::tensor::{Device, Distribution, TensorData, Tolerance};

    use super::*;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.5, 2.0), &Device::flex())
    }

    #[test]
    fn group_norm_is_burns() {
        let mut layer = GroupNormConfig::new(2, 6).init(&Device::flex());
        layer.gamma = layer.gamma.map(|gain| gain.map(|_| random([6])));
        layer.beta = layer.beta.map(|offset| offset.map(|_| random([6])));
        let input = random([3, 6, 5, 4]);
        group_norm(&layer, input.clone())
            .into_data()
            .assert_approx_eq::<f32>(&layer.forward(input).into_data(), Tolerance::default());
    }

    fn interpolated(input: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size);
        interpolate(input, options)
    }

    /// Output, and gradient of the input for a random gradient of the output.
    fn with_gradient(
        operation: impl Fn(Tensor<4>, [usize; 2]) -> Tensor<4>,
        input: &Tensor<4>,
        size: [usize; 2],
        seed: &Tensor<4>,
    ) -> [TensorData; 2] {
        let input = input.clone().autodiff().require_grad();
        let output = operation(input.clone(), size);
        let gradients = (output.clone() * seed.clone()).sum().backward();
        [output.inner(), input.grad(&gradients).unwrap()].map(Tensor::into_data)
    }

    #[test]
    fn copied_pixels_and_their_gradient_are_burns_for_every_size() {
        for n in 3..=33 {
            let sizes = [2 * n, 2 * n - 1, 2 * n + 1].map(|m| ([n, n], [m, m]));
            let others = [
                ([n, 5], [2 * n, 10]),
                ([n, 7], [2 * n - 1, 14]),
                ([4, n], [12, n]),
            ];
            for (from, to) in sizes.into_iter().chain(others) {
                let input = random([2, 3, from[0], from[1]]);
                let seed = random([2, 3, to[0], to[1]]);
                let [output, gradient] = with_gradient(copy_pixels, &input, to, &seed);
                let [expected, expected_gradient] = with_gradient(interpolated, &input, to, &seed);
                output.assert_eq(&expected, true);
                let tolerance = Tolerance::absolute(1e-5);
                gradient.assert_approx_eq::<f32>(&expected_gradient, tolerance);
            }
        }
    }

    #[test]
    fn projection_is_a_linear_layer_over_channels() {
        let layer = LinearConfig::new(6, 4).init(&Device::flex());
        let input = random([3, 6, 5]);
        let expected = layer.forward(input.clone().swap_dims(1, 2)).swap_dims(1, 2);
        project(&layer, input)
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::default());
    }

    #[test]
    fn attention_is_burns_for_several_heads_and_other_sources() {
        let (query, key, value) = (random([2, 6, 5]), random([2, 6, 7]), random([2, 6, 7]));
        let split = |features: &Tensor<3>| {
            let [rows, channels, positions] = features.dims();
            let heads = features.clone().reshape([rows, 3, channels / 3, positions]);
            heads.transpose()
        };
        let options = AttentionModuleOptions::default();
        let expected = attention(
            split(&query),
            split(&key),
            split(&value),
            None,
            None,
            options,
        );
        let expected = expected.transpose().reshape([2, 6, 5]);
        attend(query, key, value, 3)
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::default());
    }
}
