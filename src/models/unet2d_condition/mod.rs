//! diffusers' `UNet2DConditionModel`: the denoising network of Stable Diffusion 1, 2 and XL.

mod config;

pub use config::{
    AdditionEmbedType, ConditionDownBlockType, ConditionUpBlockType, UNet2dConditionConfig,
};

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Tensor};

use super::condition::TextCondition;
use super::layers::{
    DownBlock, MidBlock, ResnetBlockConfig, Stage, StageAttention, StageEnd, TimeConditioning,
    TimestepEmbedding, Told, TransformerConfig, UpBlock, network_timesteps, same_convolution,
    sinusoidal_embedding, up_inputs,
};
use super::unet2d::prediction_type;
use super::{LoadNote, folder, location, ops, settings};
use crate::denoiser::Denoiser;
use crate::error::{Result, check_shape};
use crate::process::PredictionType;

/// The denoiser of Stable Diffusion 1, 2 and XL: diffusers' `UNet2DConditionModel`, which is told
/// encoded prompts.
///
/// Its folder is that of a published checkpoint: `config.json` and the weights, in one file, in
/// parts, or as a variant. Both libraries can read and write it.
///
/// # Shapes
/// Input and output `[rows, in_channels, height, width]`, of any height and width.
///
/// # Example
/// ```
/// use siss::Denoiser;
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::{
///     ConditionDownBlockType, ConditionUpBlockType, TextCondition, UNet2dConditionConfig,
/// };
///
/// let device = Device::flex();
/// let unet = UNet2dConditionConfig {
///     block_out_channels: vec![32, 32],
///     down_block_types: vec![ConditionDownBlockType::Attention, ConditionDownBlockType::Resnet],
///     up_block_types: vec![ConditionUpBlockType::Resnet, ConditionUpBlockType::Attention],
///     layers_per_block: 1,
///     cross_attention_dim: 16,
///     ..UNet2dConditionConfig::default()
/// }
/// .init(&device)?;
/// let prompts = TextCondition::new(Tensor::zeros([2, 77, 16], &device));
/// let noisy = Tensor::zeros([2, 4, 8, 8], &device);
/// let timesteps = Tensor::from_data([0.0, 999.0], &device);
/// assert_eq!(unet.predict(noisy, timesteps, &prompts).dims(), [2, 4, 8, 8]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct UNet2dCondition {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: UNet2dConditionConfig,
    #[module(skip)]
    prediction_type: PredictionType,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

impl UNet2dCondition {
    /// Reads a diffusers folder: the network's own, or one in which
    /// [`ModelFolder::find`](super::ModelFolder::find) finds a network. Files of weights are chosen
    /// as by [`UNet2d::load`](super::UNet2d::load).
    ///
    /// # Errors
    /// Those of [`UNet2d::load`](super::UNet2d::load).
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let location::Network {
            root,
            folder,
            mut notes,
        } = location::network(folder.as_ref())?;
        let prediction_type = prediction_type(&root, &folder, &mut notes)?;
        let config = UNet2dConditionConfig::from_file(folder.join(location::CONFIG))?;
        let unet = config.init(device)?.with_prediction_type(prediction_type);
        let (mut unet, read) = folder::load_weights(unet, &folder)?;
        unet.notes = notes;
        unet.notes.extend(read);
        if config.dropout > 0.0 {
            let probability = config.dropout;
            unet.notes.push(LoadNote::Dropout { probability });
        }
        Ok(unet)
    }

    /// Sets what the network predicts: for one made by [`UNet2dConditionConfig::init`], or read
    /// without its scheduler's file. A note that it was assumed is dropped.
    ///
    /// Times of flow matching are counted as by
    /// [`UNet2d::with_prediction_type`](super::UNet2d::with_prediction_type).
    pub fn with_prediction_type(mut self, prediction_type: PredictionType) -> Self {
        let is_kept = |note: &LoadNote| !matches!(note, LoadNote::NoiseAssumed { .. });
        self.notes.retain(is_kept);
        Self {
            prediction_type,
            ..self
        }
    }

    /// Replaces the notes, by those of another reader.
    pub(super) fn with_notes(self, notes: Vec<LoadNote>) -> Self {
        Self { notes, ..self }
    }

    /// The decisions made while the network was read, to be shown to the user.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// Writes a folder that [`load`](UNet2dCondition::load) and diffusers read, as
    /// [`UNet2d::save`](super::UNet2d::save) does.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`](super::UNet2d::save).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, &settings::to_text(&self.config), folder.as_ref())
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &UNet2dConditionConfig {
        &self.config
    }

    /// Builds the network of a validated configuration.
    fn build(config: &UNet2dConditionConfig, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let outermost = channels.first().copied().unwrap_or_default();
        let embedding = config.embedding_size();
        let addition = config
            .projection_class_embeddings_input_dim
            .filter(|_| config.addition_embed_type.is_some());
        Self {
            conv_in: same_convolution(config.in_channels, outermost, device),
            time_embedding: TimestepEmbedding::new(outermost, embedding, device),
            add_embedding: addition.map(|size| TimestepEmbedding::new(size, embedding, device)),
            down_blocks: down_blocks(config, device),
            mid_block: mid_block(config, device),
            up_blocks: up_blocks(config, device),
            conv_norm_out: GroupNormConfig::new(config.norm_num_groups, outermost)
                .with_epsilon(config.norm_eps)
                .init(device),
            conv_out: same_convolution(outermost, config.out_channels, device),
            config: config.clone(),
            prediction_type: PredictionType::Epsilon,
            notes: Vec::new(),
        }
    }

    fn told(&self, timesteps: Tensor<1>, condition: &TextCondition, dtype: DType) -> Told {
        let channels = self.config.block_out_channels.first().copied();
        let sinusoids = self.sinusoids(timesteps, channels.unwrap_or_default());
        let time = self.time_embedding.forward(sinusoids);
        let embedding = match self.addition(condition) {
            Some(addition) => time + addition,
            None => time,
        };
        let prompts = condition.hidden_states.clone().swap_dims(1, 2);
        Told {
            embedding: silu(embedding),
            context: Some(ops::in_type(prompts, dtype)),
        }
    }

    fn sinusoids(&self, numbers: Tensor<1>, size: usize) -> Tensor<2> {
        let config = &self.config;
        sinusoidal_embedding(numbers, size, config.flip_sin_to_cos, config.freq_shift)
    }

    /// The embedding of pooled prompt and sizes, `[rows, size]`.
    fn addition(&self, condition: &TextCondition) -> Option<Tensor<2>> {
        let layers = self.add_embedding.as_ref()?;
        let (pooled, time_ids) = (condition.pooled.clone()?, condition.time_ids.clone()?);
        let size = self.config.addition_time_embed_dim?;
        let [rows, ids] = time_ids.dims();
        let sinusoids = self.sinusoids(time_ids.reshape([rows * ids]), size);
        let sinusoids = sinusoids.reshape([rows, ids * size]).cast(pooled.dtype());
        Some(layers.forward(Tensor::cat(vec![pooled, sinusoids], 1)))
    }
}

impl Denoiser<4> for UNet2dCondition {
    type Condition = TextCondition;

    fn check_input(&self, [rows, channels, height, width]: [usize; 4]) -> Result<()> {
        check_shape(
            "the input of the UNet",
            &[rows, self.config.in_channels, height.max(1), width.max(1)],
            &[rows, channels, height, width],
            "give latents of the model's channels",
        )
    }

    fn check_condition(&self, condition: &TextCondition) -> Result<()> {
        let pooled = self.config.pooled_size();
        condition.check_features(self.config.cross_attention_dim)?;
        TextCondition::check_part(condition.pooled.as_ref(), "pooled prompt", pooled)?;
        let ids = pooled.map(|_| config::TIME_IDS);
        TextCondition::check_part(condition.time_ids.as_ref(), "sizes (time_ids)", ids)
    }

    fn predict(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        condition: &TextCondition,
    ) -> Tensor<4> {
        let given = noisy.dtype();
        let noisy = ops::in_type_of(noisy, &self.conv_in.weight);
        let timesteps = network_timesteps(timesteps, self.prediction_type);
        let told = self.told(timesteps, condition, noisy.dtype());
        let sample = match self.config.center_input_sample {
            true => noisy.mul_scalar(2.0).sub_scalar(1.0),
            false => noisy,
        };
        let mut features = ops::convolve(&self.conv_in, sample);
        let mut skips = vec![features.clone()];
        for block in &self.down_blocks {
            features = block.forward(features, &told, &mut skips);
        }
        features = self.mid_block.forward(features, &told);
        for block in &self.up_blocks {
            features = block.forward(features, &told, &mut skips);
        }
        let output = ops::convolve(
            &self.conv_out,
            ops::group_norm_silu(&self.conv_norm_out, features),
        );
        ops::in_type(output, given)
    }

    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}

fn resnet(config: &UNet2dConditionConfig, channels: usize, scale_factor: f64) -> ResnetBlockConfig {
    ResnetBlockConfig {
        inputs: channels,
        outputs: channels,
        embedding: Some(config.embedding_size()),
        conditioning: TimeConditioning::Shift,
        resize: None,
        groups: config.norm_num_groups,
        epsilon: config.norm_eps,
        scale_factor,
    }
}

/// The attention of a stage, counted from outside.
fn attention(config: &UNet2dConditionConfig, stage: usize, layers: usize) -> StageAttention {
    StageAttention::Context(TransformerConfig {
        channels: config.block_out_channels[stage],
        context: config.cross_attention_dim,
        heads: config.attention_head_dim.get(stage).unwrap_or(1),
        layers,
        groups: config.norm_num_groups,
        linear: config.use_linear_projection,
    })
}

fn end(config: &UNet2dConditionConfig, is_last: bool) -> StageEnd {
    match is_last {
        true => StageEnd::Keep,
        false => StageEnd::Convolution {
            symmetric: config.downsample_padding == 1,
        },
    }
}

/// The downward stages, outermost first.
fn down_blocks(config: &UNet2dConditionConfig, device: &Device) -> Vec<DownBlock> {
    let channels = &config.block_out_channels;
    let block = |(index, kind): (usize, &ConditionDownBlockType)| {
        let here = channels[index];
        let mut inputs = vec![here; config.layers_per_block];
        inputs[0] = channels[index.saturating_sub(1)];
        let layers = config.transformer_layers_per_block.get(index).unwrap_or(1);
        let stage = Stage {
            resnet: resnet(config, here, 1.0),
            inputs,
            attention: match kind {
                ConditionDownBlockType::Resnet => StageAttention::Without,
                ConditionDownBlockType::Attention => attention(config, index, layers),
            },
            end: end(config, index + 1 == channels.len()),
        };
        stage.down(device)
    };
    let stages = config.down_block_types.iter().enumerate();
    stages.map(block).collect()
}

fn mid_block(config: &UNet2dConditionConfig, device: &Device) -> MidBlock {
    let innermost = config.block_out_channels.len().saturating_sub(1);
    let channels = config.block_out_channels[innermost];
    let layers = config.transformer_layers_per_block.get(innermost);
    let stage = Stage {
        resnet: resnet(config, channels, config.mid_block_scale_factor),
        inputs: vec![channels; 2],
        attention: attention(config, innermost, layers.unwrap_or(1)),
        end: StageEnd::Keep,
    };
    stage.middle(device)
}

/// The upward stages, innermost first.
fn up_blocks(config: &UNet2dConditionConfig, device: &Device) -> Vec<UpBlock> {
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let layers = config.up_transformer_layers();
    let block = |(index, kind): (usize, &ConditionUpBlockType)| {
        let stage = channels.len() - 1 - index;
        let stage = Stage {
            resnet: resnet(config, channels[index], 1.0),
            inputs: up_inputs(&channels, index, config.layers_per_block),
            attention: match kind {
                ConditionUpBlockType::Resnet => StageAttention::Without,
                ConditionUpBlockType::Attention => attention(config, stage, layers[index]),
            },
            end: end(config, index + 1 == channels.len()),
        };
        stage.up(device)
    };
    config
        .up_block_types
        .iter()
        .enumerate()
        .map(block)
        .collect()
}

#[cfg(test)]
mod tests;
