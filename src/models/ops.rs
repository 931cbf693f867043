//! The operations that dominate the running time of a network, in one place: faster kernels are
//! used here.

#[cfg(feature = "flex-kernels")]
use super::flex;
#[cfg(feature = "flex-kernels")]
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, LayerNorm, Linear};
use burn::tensor::activation::{silu, softmax};
#[cfg(feature = "flex-kernels")]
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Tensor};

/// A convolution with the layer's weights, stride and padding.
///
/// # Shapes
/// - `input`: `[rows, channels, height, width]`
pub(crate) fn convolve(layer: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = own_convolution(layer, &input) {
        return output;
    }
    layer.forward(input)
}

/// A convolution by the crate's own operation, if that applies.
#[cfg(feature = "flex-kernels")]
fn own_convolution(layer: &Conv2d, input: &Tensor<4>) -> Option<Tensor<4>> {
    let padding = match layer.padding {
        PaddingConfig2d::Valid => [(0, 0), (0, 0)],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
        PaddingConfig2d::Same => return None,
    };
    let options =
        ConvOptions::new_with_padding(layer.stride, padding, layer.dilation, layer.groups);
    let bias = layer.bias.as_ref().map(|bias| bias.val());
    flex::convolve(input, &layer.weight.val(), bias.as_ref(), &options)
}

/// Group normalisation followed by `SiLU`.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
pub(crate) fn group_norm_silu(layer: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = own_group_norm(layer, &input, true) {
        return output;
    }
    silu(group_norm(layer, input))
}

/// Group normalisation, with the division by the deviation and the layer's gain as one
/// multiplication.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
pub(crate) fn group_norm(layer: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = own_group_norm(layer, &input, false) {
        return output;
    }
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

/// Group normalisation by the crate's own operation, if that applies.
#[cfg(feature = "flex-kernels")]
fn own_group_norm(layer: &GroupNorm, input: &Tensor<4>, activated: bool) -> Option<Tensor<4>> {
    let (gain, offset) = (layer.gamma.as_ref()?.val(), layer.beta.as_ref()?.val());
    let (groups, epsilon) = (layer.num_groups, layer.epsilon);
    flex::group_norm(input, &gain, &offset, groups, epsilon, activated)
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

/// A linear layer over the channels of channel-major features, without copying a transpose.
///
/// # Shapes
/// - `input`: `[rows, inputs, positions]`
/// - the result: `[rows, outputs, positions]`
pub(crate) fn project(layer: &Linear, input: Tensor<3>) -> Tensor<3> {
    let weight = layer.weight.val().transpose().unsqueeze::<3>();
    let [_, outputs, _] = weight.dims();
    let output = weight.matmul(input);
    match &layer.bias {
        Some(bias) => output + bias.val().reshape([1, outputs, 1]),
        None => output,
    }
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
    #[cfg(feature = "flex-kernels")]
    if let Some(output) = flex::attend(&query, &key, &value, heads) {
        return output;
    }
    let [rows, channels, positions] = query.dims();
    let [_, _, sources] = key.dims();
    let size = channels / heads;

    let query = query.mul_scalar((size as f64).sqrt().recip());
    let query = query.reshape([rows, heads, size, positions]);
    let key = key.reshape([rows, heads, size, sources]);
    let value = value.reshape([rows, heads, size, sources]);

    let weights = softmax(query.transpose().matmul(key), 3);
    value
        .matmul(weights.transpose())
        .reshape([rows, channels, positions])
}

#[cfg(test)]
mod tests {
    use burn::nn::{GroupNormConfig, LinearConfig};
    use burn::tensor::module::attention;
    use burn::tensor::ops::AttentionModuleOptions;
    use burn::tensor::{Device, Distribution, Tolerance};

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
