//! Self-attention over the pixels of a feature map.

use burn::module::Module;
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::rescale;
use crate::models::ops;

/// The sizes and settings of an [`AttentionBlock`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionBlockConfig {
    /// Channels of the input and the output.
    pub(crate) channels: usize,
    /// Channels of each head.
    pub(crate) head_size: usize,
    /// Groups of the normalisation; `None` for no normalisation.
    pub(crate) groups: Option<usize>,
    /// Added to the variance in the normalisation.
    pub(crate) epsilon: f64,
    /// Divisor of the output.
    pub(crate) scale_factor: f64,
}

/// diffusers' `Attention` as its image networks use it: with a residual connection, and with
/// normalisation unless the configuration leaves it out.
#[derive(Module, Debug)]
pub(crate) struct AttentionBlock {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    scale_factor: f64,
}

impl AttentionBlockConfig {
    /// A fresh block. `groups` and `head_size` must divide `channels`.
    pub(crate) fn init(&self, device: &Device) -> AttentionBlock {
        let linear = || LinearConfig::new(self.channels, self.channels).init(device);
        let norm = |groups| {
            GroupNormConfig::new(groups, self.channels)
                .with_epsilon(self.epsilon)
                .init(device)
        };
        AttentionBlock {
            group_norm: self.groups.map(norm),
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            to_out: vec![linear()],
            heads: self.channels / self.head_size,
            scale_factor: self.scale_factor,
        }
    }
}

impl AttentionBlock {
    /// # Shapes
    /// - `input` and the result: `[rows, channels, height, width]`
    pub(crate) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let shape = input.dims();
        let [rows, channels, height, width] = shape;
        let features = match &self.group_norm {
            Some(norm) => ops::group_norm(norm, input.clone()),
            None => input.clone(),
        };
        let features = features.reshape([rows, channels, height * width]);
        let query = ops::project(&self.to_q, features.clone());
        let key = ops::project(&self.to_k, features.clone());
        let value = ops::project(&self.to_v, features);
        let attended = ops::attend(query, key, value, self.heads);
        let input = input.reshape([rows, channels, height * width]);
        let output = match self.to_out.as_slice() {
            [layer] => ops::project_onto(layer, attended, input),
            layers => {
                let project = |features, layer| ops::project(layer, features);
                layers.iter().fold(attended, project) + input
            }
        };
        rescale(output.reshape(shape), self.scale_factor)
    }
}
