//! The workloads: networks as in `benches/torch_step.py`, and pairs as far apart as real ones.

use std::error::Error;
use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, FloatDType, Tensor};
use siss::draws::{Stream, normal_noise};
use siss::models::{
    DownBlockType, Size, TextCondition, UNet2d, UNet2dCondition, UNet2dConditionConfig,
    UNet2dConfig, UpBlockType,
};
use siss::{DdpmScheduler, Denoiser, PairSampler};
use siss_support::cast::cast;
use siss_support::digits;
use siss_support::network::three_stages;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens of a prompt, and their features, as CLIP encodes it.
const TOKENS: usize = 77;
const FEATURES: usize = 768;
/// Channels, height and width of a digit.
const DIGIT: [usize; 3] = [1, 28, 28];

/// A network and the data it is for.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// 28×28 digits, the bundled network.
    Digits,
    /// 28×28 digits, the paper's network.
    DigitsPaper,
    /// 32×32×3.
    Emoji32,
    /// 64×64×3.
    Faces64,
    /// 256×256×3, google/ddpm-celebahq-256.
    Faces256,
    /// 4×64×64.
    Latents,
    /// 4×64×64 and a prompt of 77 tokens, Stable Diffusion 1 if `width` is 320.
    Text,
}

impl Workload {
    /// A network with fresh parameters, and the shape of a point.
    pub fn network(
        self,
        width: Option<usize>,
        device: &Device,
    ) -> siss::Result<(Unet, [usize; 3])> {
        let Some(config) = self.config(width) else {
            let unet = text(width.unwrap_or(64)).init(device)?;
            let shape = [1, TOKENS, FEATURES];
            let states = normal_noise(shape, 3, 0, 0, Stream::Evaluation, device);
            return Ok((Unet::Told(Told { unet, states }), [4, 64, 64]));
        };
        let [height, width] = config.sample_size.unwrap_or([28; 2]);
        let shape = [config.in_channels, height, width];
        Ok((Unet::Plain(config.init(device)?), shape))
    }

    /// The configuration of a network that is told nothing.
    fn config(self, width: Option<usize>) -> Option<UNet2dConfig> {
        Some(match self {
            Workload::Digits => three_stages(DIGIT, vec![32, 64, 64]),
            Workload::DigitsPaper => UNet2dConfig {
                layers_per_block: 2,
                norm_num_groups: 32,
                ..three_stages(DIGIT, vec![64, 128, 256])
            },
            Workload::Emoji32 => faces(32, width.unwrap_or(32)),
            Workload::Faces64 => faces(64, width.unwrap_or(32)),
            Workload::Faces256 => faces(256, width.unwrap_or(128)),
            Workload::Latents => latents(width.unwrap_or(32)),
            Workload::Text => return None,
        })
    }

    pub fn scheduler(self) -> siss::Result<DdpmScheduler> {
        match self {
            Workload::Latents | Workload::Text => DdpmScheduler::scaled_linear(1000),
            _ => DdpmScheduler::linear(1000),
        }
    }

    /// `‖x − a‖` of a retained and a forgotten point; `None` if the points are real.
    fn distance(self) -> Option<f64> {
        match self {
            Workload::Digits | Workload::DigitsPaper => None,
            Workload::Emoji32 => Some(45.0),
            Workload::Faces64 => Some(77.0),
            Workload::Faces256 => Some(310.0),
            Workload::Latents | Workload::Text => Some(181.0),
        }
    }

    /// The digits and the T-shirt, or random points at the workload's distance from one forgotten
    /// point.
    pub fn pairs(self, shape: [usize; 4], device: &Device) -> Result<PairSampler<4>> {
        let Some(distance) = self.distance() else {
            let assets = Path::new(digits::ASSETS);
            let digits = digits::load_digits(assets, device)?.retain;
            let tshirt = digits::load_tshirt(assets, device)?;
            return Ok(PairSampler::new(digits, tshirt, 0)?);
        };
        let noise = |seed| normal_noise(shape, seed, 0, 0, Stream::Evaluation, device);
        let forget: Tensor<4> = noise(1).clamp(-1.0, 1.0).narrow(0, 0, 1);
        let directions = noise(2);
        let lengths = directions.clone().square().sum_dims(&[1, 2, 3]).sqrt();
        let retain = forget.clone() + directions / lengths * distance;
        Ok(PairSampler::new(retain, forget, 0)?)
    }
}

/// A network of colour images; google/ddpm-celebahq-256 if `width` is 128.
fn faces(size: usize, width: usize) -> UNet2dConfig {
    let mut down = vec![DownBlockType::Resnet; 6];
    down[4] = DownBlockType::Attention;
    let mut up = vec![UpBlockType::Resnet; 6];
    up[1] = UpBlockType::Attention;
    UNet2dConfig {
        sample_size: Some([size; 2]),
        block_out_channels: [1, 1, 2, 2, 4, 4].map(|factor| factor * width).to_vec(),
        down_block_types: down,
        up_block_types: up,
        norm_num_groups: width.min(32),
        norm_eps: 1e-6,
        downsample_padding: 0,
        flip_sin_to_cos: false,
        freq_shift: 1,
        attention_head_dim: None,
        ..UNet2dConfig::default()
    }
}

/// A stand-in for a network of latents.
fn latents(width: usize) -> UNet2dConfig {
    UNet2dConfig {
        sample_size: Some([64; 2]),
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![width, 2 * width, 4 * width],
        down_block_types: vec![
            DownBlockType::Resnet,
            DownBlockType::Resnet,
            DownBlockType::Attention,
        ],
        up_block_types: vec![
            UpBlockType::Attention,
            UpBlockType::Resnet,
            UpBlockType::Resnet,
        ],
        norm_num_groups: width.min(32),
        ..UNet2dConfig::default()
    }
}

/// The network of Stable Diffusion 1, with these first channels.
fn text(width: usize) -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(Size::Square(64)),
        block_out_channels: [1, 2, 4, 4].map(|factor| factor * width).to_vec(),
        norm_num_groups: width.min(32),
        cross_attention_dim: FEATURES,
        ..UNet2dConditionConfig::default()
    }
}

/// A network of one kind or the other.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A program has one of them.
pub enum Unet {
    Plain(UNet2d),
    Told(Told),
}

/// A network that is told the same prompt in all rows.
#[derive(Module, Debug)]
pub struct Told {
    unet: UNet2dCondition,
    states: Tensor<3>,
}

impl Unet {
    fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>) -> Tensor<4> {
        match self {
            Unet::Plain(unet) => unet.predict(noisy, timesteps, &()),
            Unet::Told(told) => {
                let states = told.states.clone().cast(noisy.dtype());
                let states = states.repeat_dim(0, noisy.dims()[0]);
                let condition = TextCondition::new(states);
                told.unet.predict(noisy, timesteps, &condition)
            }
        }
    }
}

/// A network with f32 weights that is run in f32 or in bf16.
#[derive(Module, Debug)]
pub struct Network {
    pub unet: Unet,
    #[module(skip)]
    pub bf16: bool,
}

impl Denoiser<4> for Network {
    type Condition = ();

    fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
        if !self.bf16 {
            return self.unet.predict(noisy, timesteps);
        }
        // The casts are part of the graph, so the gradients are those of the f32 weights.
        let half = cast(self.unet.clone(), FloatDType::BF16);
        let noisy = noisy.cast(FloatDType::BF16);
        half.predict(noisy, timesteps).cast(FloatDType::F32)
    }
}
