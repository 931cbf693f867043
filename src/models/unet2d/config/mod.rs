//! The configuration of a [`UNet2d`]: diffusers' `config.json`, read strictly.

mod checks;
mod json;

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::UNet2d;
use crate::error::Result;
use crate::files::{path_text, read_configuration};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "UNet2dConfig";

/// A stage of the downward path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D", alias = "UNetResDownBlock2D")]
    Resnet,
    /// Residual blocks, each followed by self-attention.
    #[serde(rename = "AttnDownBlock2D", alias = "UNetResAttnDownBlock2D")]
    Attention,
    /// Residual blocks, the last of which halves the size.
    #[serde(rename = "ResnetDownsampleBlock2D")]
    ResnetDownsample,
}

/// A stage of the upward path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D", alias = "UNetResUpBlock2D")]
    Resnet,
    /// Residual blocks, each followed by self-attention.
    #[serde(rename = "AttnUpBlock2D", alias = "UNetResAttnUpBlock2D")]
    Attention,
    /// Residual blocks, the last of which doubles the size.
    #[serde(rename = "ResnetUpsampleBlock2D")]
    ResnetUpsample,
}

/// How the stages with self-attention change the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResampleType {
    /// A convolution.
    #[default]
    Conv,
    /// A residual block.
    Resnet,
}

/// How the residual blocks are told the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// A shift before the second normalisation.
    #[default]
    Default,
    /// A scale and a shift after the second normalisation.
    ScaleShift,
}

/// What a class embedding is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassEmbedType {
    /// Numbers that are embedded as timesteps are.
    Timestep,
    /// Embeddings of the timestep embedding's size, which are added to it.
    Identity,
}

/// The settings of a [`UNet2d`], under the names and with the defaults of diffusers' `UNet2DModel`.
///
/// With serde it is the object of a `config.json`, read as strictly as by
/// [`from_json`](UNet2dConfig::from_json).
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `sample_size` | none | height and width that a pipeline generates | multiples of 2^(stages − 1) |
/// | `in_channels`, `out_channels` | 3 | channels of the input and the output | 1 to 65536 |
/// | `center_input_sample` | false | map the input from `[0, 1]` to `[−1, 1]` | |
/// | `time_embedding_dim` | none | size of the timestep embedding; none: four times the first channels | 1 to 65536 |
/// | `freq_shift` | 0 | shift of the timestep frequencies | < half the first channels |
/// | `flip_sin_to_cos` | true | cosines before sines | |
/// | `class_embed_type` | none | what classes are given as; none: labels, if there are `num_class_embeds` | |
/// | `num_class_embeds` | none | number of classes | 1 to 65536 |
/// | `down_block_types`, `up_block_types` | attention in all but the outermost | kind of each stage | one per stage |
/// | `block_out_channels` | 224, 448, 672, 896 | channels of each stage | 1 to 16 stages |
/// | `layers_per_block` | 2 | residual blocks of a downward stage; one more upward | 1 to 256 |
/// | `mid_block_scale_factor` | 1 | divides the outputs of the middle stage | > 0 |
/// | `has_mid_block` | true | whether there is a middle stage | |
/// | `add_attention` | true | attention in the middle stage | |
/// | `resnet_time_scale_shift` | shift only | how residual blocks are told the time | |
/// | `downsample_type`, `upsample_type` | convolution | how stages with attention change the size | |
/// | `downsample_padding` | 1 | 1: all sides; 0: only right and bottom | 0, 1 |
/// | `attention_head_dim` | 8 | channels of an attention head; none: one head | divides the channels |
/// | `norm_num_groups` | 32 | groups of the normalisations | divides the channels |
/// | `attn_norm_num_groups` | none | … of the middle stage's attention; none: like the others | divides the channels |
/// | `norm_eps` | 1e-5 | added to the variance in the normalisations | > 0 |
/// | `dropout` | 0 | kept for Python; not applied, because both gradients of a step must see the same network | 0 to 1 |
/// | `num_train_timesteps` | none | kept for Python; the network does not use it | |
///
/// # Example
/// ```
/// use siss::models::{DownBlockType, UNet2dConfig, UpBlockType};
///
/// let config = UNet2dConfig {
///     in_channels: 1,
///     out_channels: 1,
///     block_out_channels: vec![32, 64],
///     down_block_types: vec![DownBlockType::Resnet, DownBlockType::Attention],
///     up_block_types: vec![UpBlockType::Attention, UpBlockType::Resnet],
///     ..UNet2dConfig::default()
/// };
/// let unet = config.init(&siss::burn::tensor::Device::flex())?;
/// assert_eq!(unet.config(), &config);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
pub struct UNet2dConfig {
    /// Height and width that a pipeline generates.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input is mapped from `[0, 1]` to `[−1, 1]`.
    pub center_input_sample: bool,
    /// Size of the timestep embedding; `None` for four times the first channels.
    pub time_embedding_dim: Option<usize>,
    /// Shift of the timestep frequencies.
    pub freq_shift: usize,
    /// Whether the timestep's cosines come before its sines.
    pub flip_sin_to_cos: bool,
    /// What classes are given as; `None` for labels, if there are `num_class_embeds`.
    pub class_embed_type: Option<ClassEmbedType>,
    /// Number of classes.
    pub num_class_embeds: Option<usize>,
    /// Kind of each stage on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// Kind of each stage on the way up.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each stage, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a downward stage; an upward stage has one more.
    pub layers_per_block: usize,
    /// Divides the outputs of the middle stage.
    pub mid_block_scale_factor: f64,
    /// Whether there is a middle stage.
    pub has_mid_block: bool,
    /// How the residual blocks are told the time.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// How downward stages with attention halve the size.
    pub downsample_type: ResampleType,
    /// How upward stages with attention double the size.
    pub upsample_type: ResampleType,
    /// Whether the middle stage has attention.
    pub add_attention: bool,
    /// 1 pads a downsampling convolution on all sides, 0 only right and bottom.
    pub downsample_padding: usize,
    /// Channels of an attention head; `None` for a single head.
    pub attention_head_dim: Option<usize>,
    /// Groups of the normalisations.
    pub norm_num_groups: usize,
    /// Groups of the normalisation in the middle stage's attention; `None` for `norm_num_groups`.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in the normalisations.
    pub norm_eps: f64,
    /// Probability of dropout in Python's training; the network runs without dropout here.
    pub dropout: f64,
    /// Number of steps of the process that the network was trained for; not used by the network.
    pub num_train_timesteps: Option<usize>,
}

impl Default for UNet2dConfig {
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_dim: None,
            freq_shift: 0,
            flip_sin_to_cos: true,
            class_embed_type: None,
            num_class_embeds: None,
            down_block_types: [
                vec![DownBlockType::Resnet],
                vec![DownBlockType::Attention; 3],
            ]
            .concat(),
            up_block_types: [vec![UpBlockType::Attention; 3], vec![UpBlockType::Resnet]].concat(),
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            has_mid_block: true,
            resnet_time_scale_shift: TimeScaleShift::Default,
            downsample_type: ResampleType::Conv,
            upsample_type: ResampleType::Conv,
            add_attention: true,
            downsample_padding: 1,
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            dropout: 0.0,
            num_train_timesteps: None,
        }
    }
}

impl UNet2dConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](UNet2dConfig::from_json).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_configuration(path)?;
        Self::from_json(&text, &path_text(path))
    }

    /// Reads the text of a diffusers `config.json`; `file` names it in errors.
    ///
    /// Absent keys take diffusers' defaults. Keys that `EMAModel` adds in the folder of an average
    /// are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](crate::Error::InvalidFile) if the text is not a JSON object;
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) with
    /// all keys and values if a key is unknown or a value is not implemented, or with the first
    /// value that is invalid.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        Self::from_text(text, file)
    }

    /// A network with fresh parameters, which are drawn when they are first used. It predicts the
    /// noise, unless [`UNet2d::with_prediction_type`] says otherwise.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) if a setting is invalid or two
    /// contradict each other.
    pub fn init(&self, device: &Device) -> Result<UNet2d> {
        self.validate(NO_FILE)?;
        Ok(UNet2d::build(self, device))
    }

    /// The text of a `config.json` that diffusers reads.
    pub(in crate::models) fn to_json(&self) -> String {
        format!("{:#}\n", Value::Object(self.clone().into()))
    }

    /// Whether the network is told a class.
    pub(super) fn has_classes(&self) -> bool {
        self.class_embed_type.is_some() || self.num_class_embeds.is_some()
    }

    /// Size of the timestep embedding.
    pub(super) fn embedding_size(&self) -> usize {
        self.time_embedding_dim
            .unwrap_or_else(|| 4 * self.block_out_channels.first().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(in crate::models) use tests::CELEBAHQ;
