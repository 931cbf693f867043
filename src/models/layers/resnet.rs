//! The residual block.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Device, Tensor};

use super::{rescale, same_convolution};
use crate::models::ops;

/// How a [`ResnetBlock`] is told the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeConditioning {
    /// `h + b(t)` before the second normalisation.
    Shift,
    /// `norm(h) (1 + a(t)) + b(t)`.
    ScaleShift,
}

/// A change of size inside of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resize {
    /// Means of 2 × 2 pixels.
    Halve,
    /// Each pixel four times.
    Double,
}

/// The sizes and settings of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetBlockConfig {
    /// Channels of the input.
    pub(crate) inputs: usize,
    /// Channels of the output.
    pub(crate) outputs: usize,
    /// Size of the timestep embedding; `None` for a block that knows no time.
    pub(crate) embedding: Option<usize>,
    /// What the timestep embedding does.
    pub(crate) conditioning: TimeConditioning,
    /// Change of size before the first convolution.
    pub(crate) resize: Option<Resize>,
    /// Groups of both normalisations.
    pub(crate) groups: usize,
    /// Added to the variance in both normalisations.
    pub(crate) epsilon: f64,
    /// Divisor of the output.
    pub(crate) scale_factor: f64,
}

/// diffusers' `ResnetBlock2D`.
#[derive(Module, Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    conditioning: TimeConditioning,
    #[module(skip)]
    resize: Option<Resize>,
    #[module(skip)]
    scale_factor: f64,
}

impl ResnetBlockConfig {
    /// A fresh block. `groups` must divide both numbers of channels.
    pub(crate) fn init(&self, device: &Device) -> ResnetBlock {
        let Self {
            inputs, outputs, ..
        } = *self;
        let norm = |channels| {
            GroupNormConfig::new(self.groups, channels)
                .with_epsilon(self.epsilon)
                .init(device)
        };
        let embedded = match self.conditioning {
            TimeConditioning::Shift => outputs,
            TimeConditioning::ScaleShift => 2 * outputs,
        };
        let project = |size| LinearConfig::new(size, embedded).init(device);
        ResnetBlock {
            norm1: norm(inputs),
            conv1: same_convolution(inputs, outputs, device),
            time_emb_proj: self.embedding.map(project),
            norm2: norm(outputs),
            conv2: same_convolution(outputs, outputs, device),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2dConfig::new([inputs, outputs], [1, 1]).init(device)),
            conditioning: self.conditioning,
            resize: self.resize,
            scale_factor: self.scale_factor,
        }
    }
}

impl ResnetBlock {
    /// # Shapes
    /// - `input`: `[rows, inputs, height, width]`
    /// - `embedding`: `[rows, embedding]`, after its activation; ignored by a block without time
    /// - the result: `[rows, outputs, height, width]`, height and width resized
    pub(crate) fn forward(&self, input: Tensor<4>, embedding: Option<&Tensor<2>>) -> Tensor<4> {
        let hidden = ops::group_norm_silu(&self.norm1, input.clone());
        let (input, hidden) = match self.resize {
            None => (input, hidden),
            Some(resize) => (resize.apply(input), resize.apply(hidden)),
        };
        let hidden = self.convolve_with_time(hidden, embedding);
        let shortcut = match &self.conv_shortcut {
            Some(convolution) => ops::convolve(convolution, input),
            None => input,
        };
        let output = ops::convolve_onto(&self.conv2, hidden, shortcut);
        rescale(output, self.scale_factor)
    }

    /// The first convolution, and the second normalisation and its activation, with the time.
    fn convolve_with_time(&self, hidden: Tensor<4>, embedding: Option<&Tensor<2>>) -> Tensor<4> {
        let (Some(project), Some(embedding)) = (&self.time_emb_proj, embedding) else {
            let hidden = ops::convolve(&self.conv1, hidden);
            return ops::group_norm_silu(&self.norm2, hidden);
        };
        let time = ops::linear(project, embedding.clone());
        let [rows, size] = time.dims();
        let time = time.reshape([rows, size, 1, 1]);
        match self.conditioning {
            TimeConditioning::Shift => {
                let hidden = ops::convolve_onto(&self.conv1, hidden, time);
                ops::group_norm_silu(&self.norm2, hidden)
            }
            TimeConditioning::ScaleShift => {
                let hidden = ops::convolve(&self.conv1, hidden);
                let scale = time.clone().narrow(1, 0, size / 2).add_scalar(1.0);
                let shift = time.narrow(1, size / 2, size / 2);
                silu(ops::group_norm(&self.norm2, hidden) * scale + shift)
            }
        }
    }
}

impl Resize {
    fn apply(self, input: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        match self {
            Self::Halve => avg_pool2d(input, AvgPoolOptions::new([2, 2])),
            Self::Double => ops::enlarge(input, [2 * height, 2 * width]),
        }
    }
}
