//! Halving and doubling the size of a feature map.

use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use super::same_convolution;
use crate::models::ops;

/// A 3 × 3 convolution of stride 2.
#[derive(Module, Debug)]
pub(crate) struct Downsampler {
    conv: Conv2d,
}

impl Downsampler {
    /// A fresh layer. `symmetric` pads by 1 on all sides; otherwise only right and bottom are
    /// padded.
    pub(crate) fn new(channels: usize, symmetric: bool, device: &Device) -> Self {
        let leading = usize::from(symmetric);
        let conv = Conv2dConfig::new([channels, channels], [3, 3])
            .with_stride([2, 2])
            .with_padding(PaddingConfig2d::Explicit(leading, leading, 1, 1))
            .init(device);
        Self { conv }
    }

    /// # Shapes
    /// - `input`: `[rows, channels, height, width]`
    /// - the result: height and width halved; rounded up if `symmetric`, down otherwise
    pub(crate) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        ops::convolve(&self.conv, input)
    }
}

/// Nearest-neighbour enlargement, then a 3 × 3 convolution.
#[derive(Module, Debug)]
pub(crate) struct Upsampler {
    conv: Conv2d,
}

impl Upsampler {
    /// A fresh layer.
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        Self {
            conv: same_convolution(channels, channels, device),
        }
    }

    /// # Shapes
    /// - `input`: `[rows, channels, height, width]`
    /// - the result: `[rows, channels, size[0], size[1]]`
    pub(crate) fn forward(&self, input: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        ops::convolve(&self.conv, ops::enlarge(input, size))
    }
}
