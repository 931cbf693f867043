//! diffusers' `SD3Transformer2DModel`: the flow-matching transformer of Stable Diffusion 3.

mod blocks;
mod config;

pub use config::Sd3TransformerConfig;

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use self::blocks::JointBlock;
use super::condition::TextCondition;
use super::layers::{
    Modulation, TimestepEmbedding, adaptive_norm, network_timesteps, patch_convolution, positions,
    sinusoidal_embedding, unpatchify,
};
use super::{LoadNote, folder, location, ops, settings};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_shape};
use crate::process::PredictionType;

/// Sinusoids of a timestep.
const SINUSOIDS: usize = 256;

/// The transformer of Stable Diffusion 3: diffusers' `SD3Transformer2DModel` without the
/// additions of version 3.5.
///
/// It predicts the velocity of the straight path, and as a denoiser takes the times of
/// [`FlowMatching`](crate::FlowMatching), from 0 (clean) to 1 (noise).
///
/// # Shapes
/// Input and output `[rows, in_channels, height, width]`; height and width are multiples of the
/// patch, and at most `pos_embed_max_size` patches. The condition has encoded prompts and a pooled
/// prompt.
///
/// # Reference
/// Esser et al. 2024, *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*.
#[derive(Module, Debug)]
pub struct Sd3Transformer {
    pos_embed: Patches,
    time_text_embed: TimeAndText,
    context_embedder: Linear,
    transformer_blocks: Vec<JointBlock>,
    norm_out: Modulation,
    proj_out: Linear,
    #[module(skip)]
    config: Sd3TransformerConfig,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

#[derive(Module, Debug)]
struct Patches {
    proj: Conv2d,
    /// The positions, which the file holds although they are not trained.
    pos_embed: Param<Tensor<3>>,
}

#[derive(Module, Debug)]
struct TimeAndText {
    timestep_embedder: TimestepEmbedding,
    text_embedder: TimestepEmbedding,
}

impl Patches {
    fn new(config: &Sd3TransformerConfig, device: &Device) -> Self {
        let (channels, patch, most) = (
            config.channels(),
            config.patch_size,
            config.pos_embed_max_size,
        );
        let base = config.sample_size / patch;
        let init = move |device: &Device, _| {
            positions(channels, [most, most], base, device).swap_dims(1, 2)
        };
        let shape = [1, most * most, channels];
        Self {
            proj: patch_convolution(config.in_channels, channels, patch, device),
            pos_embed: Param::uninitialized(
                burn::module::ParamId::new(),
                init,
                device.clone(),
                false,
                shape.into(),
            ),
        }
    }

    /// The middle of the grid of positions: `[1, channels, height · width]`.
    fn cropped(&self, [height, width]: [usize; 2], most: usize) -> Tensor<3> {
        let positions = self.pos_embed.val();
        let channels = positions.dims()[2];
        let grid = positions.reshape([most, most, channels]);
        let (top, left) = ((most - height) / 2, (most - width) / 2);
        let middle = grid.narrow(0, top, height).narrow(1, left, width);
        middle
            .reshape([1, height * width, channels])
            .swap_dims(1, 2)
    }
}

impl Sd3Transformer {
    /// Reads a diffusers folder: the network's own, or that of a pipeline, whose `transformer` is
    /// read. Files of weights are chosen as by [`UNet2d::load`](super::UNet2d::load).
    ///
    /// # Errors
    /// Those of [`UNet2d::load`](super::UNet2d::load), except those of schedulers: every such
    /// network predicts the velocity of flow matching.
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = location::part(folder.as_ref(), "transformer")?;
        let config = Sd3TransformerConfig::from_file(folder.join(location::CONFIG))?;
        let (mut transformer, notes) = folder::load_weights(config.init(device)?, &folder)?;
        transformer.notes = notes;
        Ok(transformer)
    }

    /// Writes a folder that [`load`](Sd3Transformer::load) and diffusers read.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`](super::UNet2d::save).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, &settings::to_text(&self.config), folder.as_ref())
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &Sd3TransformerConfig {
        &self.config
    }

    /// The decisions made while the network was read, to be shown to the user.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// Builds the network of a validated configuration.
    fn build(config: &Sd3TransformerConfig, device: &Device) -> Self {
        let channels = config.channels();
        let outputs = config.patch_size * config.patch_size * config.out_channels;
        let block = |index| JointBlock::new(config, index + 1 == config.num_layers, device);
        let embedding = |inputs| TimestepEmbedding::new(inputs, channels, device);
        Self {
            pos_embed: Patches::new(config, device),
            time_text_embed: TimeAndText {
                timestep_embedder: embedding(SINUSOIDS),
                text_embedder: embedding(config.pooled_projection_dim),
            },
            context_embedder: LinearConfig::new(
                config.joint_attention_dim,
                config.caption_projection_dim,
            )
            .init(device),
            transformer_blocks: (0..config.num_layers).map(block).collect(),
            norm_out: Modulation::new(channels, 2, device),
            proj_out: LinearConfig::new(channels, outputs).init(device),
            config: config.clone(),
            notes: Vec::new(),
        }
    }

    /// The velocity at the network's own timesteps, from 0 (clean) to 1000 (noise).
    ///
    /// # Shapes
    /// Those of the network; `timesteps`: `[rows]`.
    pub fn forward(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        condition: &TextCondition,
    ) -> Tensor<4> {
        let given = noisy.dtype();
        let noisy = ops::in_type_of(noisy, &self.pos_embed.proj.weight);
        let patches = ops::convolve(&self.pos_embed.proj, noisy);
        let [_, _, height, width] = patches.dims();
        let places = self
            .pos_embed
            .cropped([height, width], self.config.pos_embed_max_size);
        let places = ops::in_type(places, patches.dtype());
        let mut features = patches.flatten(2, 3) + places;
        let told = self.told(timesteps, condition);
        let prompts = condition.hidden_states.clone().swap_dims(1, 2);
        let mut context = ops::project(
            &self.context_embedder,
            ops::in_type(prompts, features.dtype()),
        );
        for block in &self.transformer_blocks {
            (features, context) = block.forward(features, context, &told);
        }
        let [scale, shift] = self.norm_out.forward(&told);
        let features = ops::project(&self.proj_out, adaptive_norm(features, scale, shift));
        let output = unpatchify(features, [height, width], self.config.patch_size);
        ops::in_type(output, given)
    }

    /// The embedding of timestep and pooled prompt, `[rows, channels]`.
    fn told(&self, timesteps: Tensor<1>, condition: &TextCondition) -> Tensor<2> {
        let embed = &self.time_text_embed;
        let time = embed
            .timestep_embedder
            .forward(sinusoidal_embedding(timesteps, SINUSOIDS, true, 0));
        match &condition.pooled {
            Some(pooled) => time + embed.text_embedder.forward(pooled.clone()),
            None => time,
        }
    }
}

impl Denoiser<4> for Sd3Transformer {
    type Condition = TextCondition;

    fn check_input(&self, [rows, channels, height, width]: [usize; 4]) -> Result<()> {
        check_shape(
            "the input of the transformer",
            &[rows, self.config.in_channels, height, width],
            &[rows, channels, height, width],
            "give latents of the model's channels",
        )?;
        let (patch, most) = (self.config.patch_size, self.config.pos_embed_max_size);
        let works = |side: usize| side > 0 && side.is_multiple_of(patch) && side / patch <= most;
        match works(height) && works(width) {
            true => Ok(()),
            false => Err(Error::InvalidSetting {
                what: format!(
                    "the input of the transformer has {height}x{width} pixels, its patches {patch}, and at most {most} patches fit a side"
                ),
                remedy: "give latents that whole patches cover",
            }),
        }
    }

    fn check_condition(&self, condition: &TextCondition) -> Result<()> {
        condition.check_features(self.config.joint_attention_dim)?;
        let pooled = Some(self.config.pooled_projection_dim);
        TextCondition::check_part(condition.pooled.as_ref(), "pooled prompt", pooled)?;
        TextCondition::check_part(condition.time_ids.as_ref(), "sizes (time_ids)", None)
    }

    fn predict(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        condition: &TextCondition,
    ) -> Tensor<4> {
        let timesteps = network_timesteps(timesteps, self.prediction_type());
        self.forward(noisy, timesteps, condition)
    }

    fn prediction_type(&self) -> PredictionType {
        PredictionType::FlowVelocity
    }
}

#[cfg(test)]
mod tests;
