//! Layers of diffusion transformers: patches, positions, and normalisations that a condition
//! scales and shifts.
//!
//! Features are channel-major, `[rows, channels, positions]`.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use crate::host::tensor;
use crate::models::ops;

/// `ε` of the adaptive normalisations.
const EPSILON: f64 = 1e-6;
/// Longest period of the positions, divided by 2π.
const MAX_PERIOD: f64 = 10_000.0;

/// `x (1 + scale) + shift`.
///
/// # Shapes
/// - `features` and the result: `[rows, channels, positions]`
/// - `scale`, `shift`: `[rows, channels, 1]`
pub(crate) fn modulate(features: Tensor<3>, scale: Tensor<3>, shift: Tensor<3>) -> Tensor<3> {
    features * scale.add_scalar(1.0) + shift
}

/// A linear layer of the activated condition, whose outputs scale, shift and gate the features:
/// the part of diffusers' `AdaLayerNorm…` classes that has parameters.
#[derive(Module, Debug)]
pub(crate) struct Modulation {
    linear: Linear,
}

impl Modulation {
    /// A fresh layer with `outputs` vectors of `channels`.
    pub(crate) fn new(channels: usize, outputs: usize, device: &Device) -> Self {
        Self {
            linear: LinearConfig::new(channels, outputs * channels).init(device),
        }
    }

    /// The vectors, each `[rows, channels, 1]`.
    ///
    /// # Shapes
    /// - `condition`: `[rows, channels]`, before its activation
    pub(crate) fn forward<const N: usize>(&self, condition: &Tensor<2>) -> [Tensor<3>; N] {
        split(ops::linear(&self.linear, silu(condition.clone())))
    }
}

/// Splits `[rows, N · channels]` into vectors `[rows, channels, 1]`.
pub(crate) fn split<const N: usize>(vectors: Tensor<2>) -> [Tensor<3>; N] {
    let [rows, size] = vectors.dims();
    let channels = size / N;
    std::array::from_fn(|index| {
        let vector = vectors.clone().narrow(1, index * channels, channels);
        vector.reshape([rows, channels, 1])
    })
}

/// `norm(x) (1 + scale) + shift` over the channels, without a gain of its own.
pub(crate) fn adaptive_norm(features: Tensor<3>, scale: Tensor<3>, shift: Tensor<3>) -> Tensor<3> {
    modulate(ops::standardise(features, EPSILON), scale, shift)
}

/// The convolution that turns each patch of a picture into one position.
pub(crate) fn patch_convolution(
    inputs: usize,
    outputs: usize,
    patch: usize,
    device: &Device,
) -> Conv2d {
    Conv2dConfig::new([inputs, outputs], [patch, patch])
        .with_stride([patch, patch])
        .init(device)
}

/// The reverse: a picture from `patch · patch · channels` features of each position.
///
/// # Shapes
/// - `features`: `[rows, patch · patch · channels, height · width]`, the channel fastest
/// - the result: `[rows, channels, height · patch, width · patch]`
pub(crate) fn unpatchify(
    features: Tensor<3>,
    [height, width]: [usize; 2],
    patch: usize,
) -> Tensor<4> {
    let [rows, size, _] = features.dims();
    let channels = size / (patch * patch);
    features
        .reshape([rows, patch, patch, channels, height, width])
        .permute([0, 3, 4, 1, 5, 2])
        .reshape([rows, channels, height * patch, width * patch])
}

/// diffusers' two-dimensional positions: sines and cosines of the column, then of the row.
///
/// # Shapes
/// - `[height, width]`: the grid, whose coordinates run from 0 to about `base`
/// - the result: `[1, channels, height · width]`; `channels` is a multiple of 4
pub(crate) fn positions(
    channels: usize,
    [height, width]: [usize; 2],
    base: usize,
    device: &Device,
) -> Tensor<3> {
    let quarter = channels / 4;
    let value = |channel: usize, row: usize, column: usize| {
        let (half, index) = (channel / (2 * quarter), channel % (2 * quarter));
        let (place, size) = if half == 0 {
            (column, width)
        } else {
            (row, height)
        };
        let place = (place as f32 / (size as f32 / base as f32)) as f64;
        let exponent = (index % quarter) as f64 / quarter as f64;
        let angle = place * MAX_PERIOD.powf(-exponent);
        let value = if index < quarter {
            angle.sin()
        } else {
            angle.cos()
        };
        value as f32
    };
    let mut values = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        for row in 0..height {
            values.extend((0..width).map(|column| value(channel, row, column)));
        }
    }
    tensor(values, [1, channels, height * width], device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_back_where_they_were() {
        let device = Device::flex();
        // Two channels, patches of 2 x 2, a grid of 1 x 2: the feature of (y, x, channel) of a
        // patch.
        let values: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let features = tensor(values, [1, 8, 2], &device);
        let image: Vec<f32> = unpatchify(features, [1, 2], 2)
            .into_data()
            .try_to_vec()
            .unwrap();
        let first_row_of_channel_0 = &image[0..4];
        // Feature (0, 0, 0) is row 0, (0, 1, 0) is row 2; columns alternate with the patch.
        assert_eq!(first_row_of_channel_0, [0.0, 4.0, 1.0, 5.0]);
        assert_eq!(image[8..12], [2.0, 6.0, 3.0, 7.0]);
    }

    #[test]
    fn the_column_comes_before_the_row() {
        let device = Device::flex();
        let values: Vec<f32> = positions(4, [2, 2], 2, &device)
            .into_data()
            .try_to_vec()
            .unwrap();
        let (sine, cosine) = (1f32.sin(), 1f32.cos());
        assert_eq!(values[0..4], [0.0, sine, 0.0, sine]);
        assert_eq!(values[4..8], [1.0, cosine, 1.0, cosine]);
        assert_eq!(values[8..12], [0.0, 0.0, sine, sine]);
        assert_eq!(values[12..16], [1.0, 1.0, cosine, cosine]);
    }
}
