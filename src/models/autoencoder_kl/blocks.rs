//! The encoder and the decoder.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor};

use super::AutoencoderKlConfig;
use crate::models::layers::{
    AttentionBlock, AttentionBlockConfig, Downsampler, ResnetBlock, ResnetBlockConfig,
    TimeConditioning, Upsampler, same_convolution,
};
use crate::models::ops;

/// `ε` of all normalisations, which diffusers fixes.
const EPSILON: f64 = 1e-6;

/// Pictures to the moments of latents.
#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// Latents to pictures.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

#[derive(Module, Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsamplers: Vec<Downsampler>,
}

#[derive(Module, Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<AttentionBlock>,
}

#[derive(Module, Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsamplers: Vec<Upsampler>,
}

impl Encoder {
    pub(super) fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let (outermost, innermost) = (channels[0], channels[channels.len() - 1]);
        let block = |stage: usize| DownBlock {
            resnets: resnets(
                config,
                [channels[stage.saturating_sub(1)], channels[stage]],
                config.layers_per_block,
                device,
            ),
            // Only right and bottom are padded, as in the first latent diffusion models.
            downsamplers: (stage + 1 < channels.len())
                .then(|| Downsampler::new(channels[stage], false, device))
                .into_iter()
                .collect(),
        };
        Self {
            conv_in: same_convolution(config.in_channels, outermost, device),
            down_blocks: (0..channels.len()).map(block).collect(),
            mid_block: MidBlock::new(config, innermost, device),
            conv_norm_out: norm(config, innermost, device),
            conv_out: same_convolution(innermost, 2 * config.latent_channels, device),
        }
    }

    /// # Shapes
    /// - `images`: `[rows, in_channels, height, width]`
    /// - the result: `[rows, 2 · latent_channels, …]`, means and then logarithms of variances
    pub(super) fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut features = ops::convolve(&self.conv_in, images);
        for block in &self.down_blocks {
            features = through(&block.resnets, features);
            for downsampler in &block.downsamplers {
                features = downsampler.forward(features);
            }
        }
        let features = self.mid_block.forward(features);
        ops::convolve(
            &self.conv_out,
            ops::group_norm_silu(&self.conv_norm_out, features),
        )
    }
}

impl Decoder {
    pub(super) fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (innermost, outermost) = (channels[0], channels[channels.len() - 1]);
        let block = |stage: usize| UpBlock {
            resnets: resnets(
                config,
                [channels[stage.saturating_sub(1)], channels[stage]],
                config.layers_per_block + 1,
                device,
            ),
            upsamplers: (stage + 1 < channels.len())
                .then(|| Upsampler::new(channels[stage], device))
                .into_iter()
                .collect(),
        };
        Self {
            conv_in: same_convolution(config.latent_channels, innermost, device),
            mid_block: MidBlock::new(config, innermost, device),
            up_blocks: (0..channels.len()).map(block).collect(),
            conv_norm_out: norm(config, outermost, device),
            conv_out: same_convolution(outermost, config.out_channels, device),
        }
    }

    /// # Shapes
    /// - `latents`: `[rows, latent_channels, height, width]`
    /// - the result: `[rows, out_channels, …]`
    pub(super) fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let features = ops::convolve(&self.conv_in, latents);
        let mut features = self.mid_block.forward(features);
        for block in &self.up_blocks {
            features = through(&block.resnets, features);
            for upsampler in &block.upsamplers {
                let [_, _, height, width] = features.dims();
                features = upsampler.forward(features, [2 * height, 2 * width]);
            }
        }
        ops::convolve(
            &self.conv_out,
            ops::group_norm_silu(&self.conv_norm_out, features),
        )
    }
}

impl MidBlock {
    fn new(config: &AutoencoderKlConfig, channels: usize, device: &Device) -> Self {
        let attention = AttentionBlockConfig {
            channels,
            head_size: channels,
            groups: Some(config.norm_num_groups),
            epsilon: EPSILON,
            scale_factor: 1.0,
        };
        Self {
            resnets: resnets(config, [channels; 2], 2, device),
            attentions: config
                .mid_block_add_attention
                .then(|| attention.init(device))
                .into_iter()
                .collect(),
        }
    }

    fn forward(&self, mut features: Tensor<4>) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            features = resnet.forward(features, None);
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features);
            }
        }
        features
    }
}

fn through(resnets: &[ResnetBlock], features: Tensor<4>) -> Tensor<4> {
    let forward = |features, resnet: &ResnetBlock| resnet.forward(features, None);
    resnets.iter().fold(features, forward)
}

fn norm(config: &AutoencoderKlConfig, channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(config.norm_num_groups, channels)
        .with_epsilon(EPSILON)
        .init(device)
}

/// Residual blocks without time, the first of which changes the channels.
fn resnets(
    config: &AutoencoderKlConfig,
    [inputs, outputs]: [usize; 2],
    count: usize,
    device: &Device,
) -> Vec<ResnetBlock> {
    let block = |index: usize| {
        let config = ResnetBlockConfig {
            inputs: if index == 0 { inputs } else { outputs },
            outputs,
            embedding: None,
            conditioning: TimeConditioning::Shift,
            resize: None,
            groups: config.norm_num_groups,
            epsilon: EPSILON,
            scale_factor: 1.0,
        };
        config.init(device)
    };
    (0..count).map(block).collect()
}
