//! The stages of a [`UNet2d`](super::UNet2d): downward, middle, upward.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::UNet2dConfig;
use crate::models::layers::{
    AttentionBlock, AttentionBlockConfig, Downsampler, ResnetBlock, ResnetBlockConfig, Upsampler,
};

/// Residual blocks with or without attention, then a halving of the size, except in the innermost
/// stage.
#[derive(Module, Debug)]
pub(super) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<AttentionBlock>,
    downsamplers: Vec<Downsampler>,
}

/// Two residual blocks, with or without attention between them.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<AttentionBlock>,
}

/// Residual blocks that receive the features of the downward path, then a doubling of the size,
/// except in the outermost stage.
#[derive(Module, Debug)]
pub(super) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<AttentionBlock>,
    upsamplers: Vec<Upsampler>,
}

/// The shape of one stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stage<'a> {
    /// Input channels of each residual block.
    pub(super) inputs: &'a [usize],
    /// Channels of the stage.
    pub(super) channels: usize,
    /// Whether each residual block is followed by attention.
    pub(super) attention: bool,
    /// Whether the stage ends in a change of size.
    pub(super) resample: bool,
}

impl Stage<'_> {
    pub(super) fn down(self, config: &UNet2dConfig, device: &Device) -> DownBlock {
        let downsampler =
            || Downsampler::new(self.channels, config.downsample_padding == 1, device);
        DownBlock {
            resnets: self.resnets(config, device),
            attentions: self.attentions(config, device),
            downsamplers: self.resample.then(downsampler).into_iter().collect(),
        }
    }

    pub(super) fn up(self, config: &UNet2dConfig, device: &Device) -> UpBlock {
        let upsampler = || Upsampler::new(self.channels, device);
        UpBlock {
            resnets: self.resnets(config, device),
            attentions: self.attentions(config, device),
            upsamplers: self.resample.then(upsampler).into_iter().collect(),
        }
    }

    fn resnets(&self, config: &UNet2dConfig, device: &Device) -> Vec<ResnetBlock> {
        let block = |&inputs: &usize| resnet(config, inputs, self.channels, 1.0).init(device);
        self.inputs.iter().map(block).collect()
    }

    fn attentions(&self, config: &UNet2dConfig, device: &Device) -> Vec<AttentionBlock> {
        let groups = config.norm_num_groups;
        let block = |_: &usize| attention(config, self.channels, groups, 1.0).init(device);
        let inputs = if self.attention { self.inputs } else { &[] };
        inputs.iter().map(block).collect()
    }
}

fn resnet(
    config: &UNet2dConfig,
    inputs: usize,
    outputs: usize,
    scale_factor: f64,
) -> ResnetBlockConfig {
    ResnetBlockConfig {
        inputs,
        outputs,
        embedding: config.embedding_size(),
        groups: config.norm_num_groups,
        epsilon: config.norm_eps,
        scale_factor,
    }
}

fn attention(
    config: &UNet2dConfig,
    channels: usize,
    groups: usize,
    scale_factor: f64,
) -> AttentionBlockConfig {
    AttentionBlockConfig {
        channels,
        head_size: config.attention_head_dim.unwrap_or(channels),
        groups,
        epsilon: config.norm_eps,
        scale_factor,
    }
}

impl DownBlock {
    /// Runs the stage, and appends every feature map that the upward path needs to `skips`.
    ///
    /// # Shapes
    /// - `features`: `[rows, channels, height, width]`
    /// - `embedding`: `[rows, embedding]`
    pub(super) fn forward(
        &self,
        mut features: Tensor<4>,
        embedding: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            features = resnet.forward(features, embedding);
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features);
            }
            skips.push(features.clone());
        }
        for downsampler in &self.downsamplers {
            features = downsampler.forward(features);
            skips.push(features.clone());
        }
        features
    }
}

impl MidBlock {
    pub(super) fn new(config: &UNet2dConfig, channels: usize, device: &Device) -> Self {
        let scale_factor = config.mid_block_scale_factor;
        let groups = config
            .attn_norm_num_groups
            .unwrap_or(config.norm_num_groups);
        let resnet = || resnet(config, channels, channels, scale_factor).init(device);
        let attention = || attention(config, channels, groups, scale_factor).init(device);
        Self {
            resnets: vec![resnet(), resnet()],
            attentions: config.add_attention.then(attention).into_iter().collect(),
        }
    }

    /// # Shapes
    /// - `features` and the result: `[rows, channels, height, width]`
    /// - `embedding`: `[rows, embedding]`
    pub(super) fn forward(&self, mut features: Tensor<4>, embedding: &Tensor<2>) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            features = resnet.forward(features, embedding);
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features);
            }
        }
        features
    }
}

impl UpBlock {
    /// Runs the stage, and takes the last feature maps off `skips`, one per residual block.
    ///
    /// # Shapes
    /// - `features`: `[rows, channels, height, width]`
    /// - `embedding`: `[rows, embedding]`
    pub(super) fn forward(
        &self,
        mut features: Tensor<4>,
        embedding: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            let parts = std::iter::once(features).chain(skips.pop()).collect();
            features = resnet.forward(Tensor::cat(parts, 1), embedding);
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features);
            }
        }
        for upsampler in &self.upsamplers {
            let size = enlarged_size(&features, skips.last());
            features = upsampler.forward(features, size);
        }
        features
    }
}

/// The size of the feature map to be joined next, which is twice the current size if sizes are
/// even.
fn enlarged_size(features: &Tensor<4>, next: Option<&Tensor<4>>) -> [usize; 2] {
    let [_, _, height, width] = features.dims();
    next.map_or([2 * height, 2 * width], |skip| {
        let [_, _, height, width] = skip.dims();
        [height, width]
    })
}
