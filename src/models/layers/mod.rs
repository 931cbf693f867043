//! The layers of diffusers' networks, with diffusers' names for their parameters.

mod adaptive;
mod attention;
mod resampling;
mod resnet;
mod stage;
mod timestep;
mod transformer;

pub(super) use adaptive::{
    Modulation, adaptive_norm, modulate, patch_convolution, positions, split, unpatchify,
};
pub(super) use attention::{AttentionBlock, AttentionBlockConfig};
pub(super) use resampling::{Downsampler, Upsampler};
pub(super) use resnet::{ResnetBlock, ResnetBlockConfig, TimeConditioning};
pub(super) use stage::{
    DownBlock, MidBlock, Stage, StageAttention, StageEnd, Told, UpBlock, up_inputs,
};
#[cfg(test)]
pub(super) use timestep::assert_path_is_counted_in_thousandths;
pub(super) use timestep::{
    FLOW_TIMESTEPS, TimestepEmbedding, network_timesteps, sinusoidal_embedding,
};
pub(super) use transformer::{
    Attention, AttentionConfig, FeedForward, Transformer2d, TransformerConfig,
};

use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

/// A 3 × 3 convolution that keeps height and width.
pub(super) fn same_convolution(inputs: usize, outputs: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([inputs, outputs], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(device)
}

/// Divides a block's output by its scale factor, unless that is 1.
fn rescale(output: Tensor<4>, scale_factor: f64) -> Tensor<4> {
    if scale_factor == 1.0 {
        output
    } else {
        output.div_scalar(scale_factor)
    }
}
