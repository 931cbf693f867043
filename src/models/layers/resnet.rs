//! The residual block.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::{rescale, same_convolution};
use crate::models::ops;

/// The sizes and settings of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetBlockConfig {
    /// Channels of the input.
    pub(crate) inputs: usize,
    /// Channels of the output.
    pub(crate) outputs: usize,
    /// Size of the timestep embedding.
    pub(crate) embedding: usize,
    /// Groups of both normalisations.
    pub(crate) groups: usize,
    /// Added to the variance in both normalisations.
    pub(crate) epsilon: f64,
    /// Divisor of the output.
    pub(crate) scale_factor: f64,
}

/// diffusers' `ResnetBlock2D`, with the timestep added between its convolutions.
#[derive(Module, Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    scale_factor: f64,
}

impl ResnetBlockConfig {
    /// A fresh block. `groups` must divide both numbers of channels.
    pub(crate) fn init(&self, device: &Device) -> ResnetBlock {
        let Self {
            inputs,
            outputs,
            groups,
            epsilon,
            ..
        } = *self;
        let norm = |channels| {
            GroupNormConfig::new(groups, channels)
                .with_epsilon(epsilon)
                .init(device)
        };
        ResnetBlock {
            norm1: norm(inputs),
            conv1: same_convolution(inputs, outputs, device),
            time_emb_proj: LinearConfig::new(self.embedding, outputs).init(device),
            norm2: norm(outputs),
            conv2: same_convolution(outputs, outputs, device),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2dConfig::new([inputs, outputs], [1, 1]).init(device)),
            scale_factor: self.scale_factor,
        }
    }
}

impl ResnetBlock {
    /// # Shapes
    /// - `input`: `[rows, inputs, height, width]`
    /// - `embedding`: `[rows, embedding]`, after its activation
    /// - the result: `[rows, outputs, height, width]`
    pub(crate) fn forward(&self, input: Tensor<4>, embedding: &Tensor<2>) -> Tensor<4> {
        let shift = self.time_emb_proj.forward(embedding.clone());
        let [rows, channels] = shift.dims();
        let hidden = ops::group_norm_silu(&self.norm1, input.clone());
        let hidden = ops::convolve(&self.conv1, hidden) + shift.reshape([rows, channels, 1, 1]);
        let hidden = ops::group_norm_silu(&self.norm2, hidden);
        let hidden = ops::convolve(&self.conv2, hidden);
        let shortcut = match &self.conv_shortcut {
            Some(convolution) => ops::convolve(convolution, input),
            None => input,
        };
        rescale(shortcut + hidden, self.scale_factor)
    }
}
