//! The configuration of a [`UNet2d`]: diffusers' `config.json`, read strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::UNet2d;
use crate::error::{Error, Result};

/// The version of diffusers whose layout is written.
const DIFFUSERS_VERSION: &str = "0.42.1";
/// Stands for the file in errors about a configuration that came from none.
const NO_FILE: &str = "UNet2dConfig";

const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_BLOCKS: usize = 16;

/// A stage of the downward path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D", alias = "UNetResDownBlock2D")]
    Resnet,
    /// Residual blocks, each followed by self-attention.
    #[serde(rename = "AttnDownBlock2D", alias = "UNetResAttnDownBlock2D")]
    Attention,
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
}

/// The settings of a [`UNet2d`], under the names and with the defaults of diffusers' `UNet2DModel`.
///
/// With serde it is the object of a `config.json`, read as strictly as by
/// [`from_json`](UNet2dConfig::from_json).
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `sample_size` | none | height and width that a pipeline generates; the network takes any | |
/// | `in_channels`, `out_channels` | 3 | channels of the input and the output | 1 to 65536 |
/// | `center_input_sample` | false | map the input from `[0, 1]` to `[−1, 1]` | |
/// | `time_embedding_dim` | none | size of the timestep embedding; none: four times the first channels | 1 to 65536 |
/// | `freq_shift` | 0 | shift of the timestep frequencies | < half the first channels |
/// | `flip_sin_to_cos` | true | cosines before sines | |
/// | `down_block_types`, `up_block_types` | attention in all but the outermost | kind of each stage | one a stage |
/// | `block_out_channels` | 224, 448, 672, 896 | channels of each stage | 1 to 16 stages |
/// | `layers_per_block` | 2 | residual blocks of a downward stage; one more upward | 1 to 256 |
/// | `mid_block_scale_factor` | 1 | divides the outputs of the middle stage | > 0 |
/// | `add_attention` | true | attention in the middle stage | |
/// | `downsample_padding` | 1 | 1: all round; 0: right and bottom alone | 0, 1 |
/// | `attention_head_dim` | 8 | channels of an attention head; none: one head | divides the channels |
/// | `norm_num_groups` | 32 | groups of the normalisations | divides the channels |
/// | `attn_norm_num_groups` | none | … of the middle stage's attention; none: as the others | divides the channels |
/// | `norm_eps` | 1e-5 | added to the variance in the normalisations | > 0 |
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
    /// Whether the middle stage has attention.
    pub add_attention: bool,
    /// 1 pads a downsampling convolution all round, 0 pads it right and bottom alone.
    pub downsample_padding: usize,
    /// Channels of an attention head; `None` for a single head.
    pub attention_head_dim: Option<usize>,
    /// Groups of the normalisations.
    pub norm_num_groups: usize,
    /// Groups of the normalisation in the middle stage's attention; `None` for `norm_num_groups`.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in the normalisations.
    pub norm_eps: f64,
    /// Number of steps of the process the network was trained for; it does not use it.
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
            down_block_types: [
                vec![DownBlockType::Resnet],
                vec![DownBlockType::Attention; 3],
            ]
            .concat(),
            up_block_types: [vec![UpBlockType::Attention; 3], vec![UpBlockType::Resnet]].concat(),
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            add_attention: true,
            downsample_padding: 1,
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            num_train_timesteps: None,
        }
    }
}

impl UNet2dConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`from_json`](UNet2dConfig::from_json).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io("reading", path))?;
        Self::from_json(
            &String::from_utf8_lossy(&bytes),
            &path.display().to_string(),
        )
    }

    /// Reads the text of a diffusers `config.json`; `file` names it in errors.
    ///
    /// Keys that are absent have diffusers' defaults.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is no JSON object; [`Error::UnsupportedConfig`] with key and
    /// value where a key is unknown, or a value is illegal or not implemented.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let object = serde_json::from_str(text).map_err(|error| Error::InvalidFile {
            path: file.into(),
            message: format!("not a diffusers model configuration: {error}"),
        })?;
        Self::from_object(&object, file)
    }

    /// A network with fresh parameters, which are drawn when they are first used.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] where a setting is illegal or two contradict each other.
    pub fn init(&self, device: &Device) -> Result<UNet2d> {
        self.validate(NO_FILE)?;
        Ok(UNet2d::build(self, device))
    }

    /// The text of a `config.json` that diffusers reads.
    pub(super) fn to_json(&self) -> String {
        format!("{:#}\n", Value::Object(self.clone().into()))
    }

    /// Size of the timestep embedding.
    pub(super) fn embedding_size(&self) -> usize {
        self.time_embedding_dim
            .unwrap_or_else(|| 4 * self.block_out_channels.first().copied().unwrap_or(0))
    }

    fn from_object(object: &Map<String, Value>, file: &str) -> Result<Self> {
        let mut config = Self::default();
        for (key, value) in object {
            config
                .read_key(key, value)
                .map_err(|remedy| unsupported(file, key, value, remedy))?;
        }
        config.validate(file)?;
        Ok(config)
    }

    /// Takes over the value of one key, or says what would be supported instead.
    fn read_key(&mut self, key: &str, value: &Value) -> std::result::Result<(), String> {
        match key {
            "_class_name" => only(value, &["UNet2DModel"])?,
            "_diffusers_version" | "_name_or_path" => {}
            "sample_size" => self.sample_size = read_size(value)?,
            "in_channels" => self.in_channels = read(value)?,
            "out_channels" => self.out_channels = read(value)?,
            "center_input_sample" => self.center_input_sample = read(value)?,
            "time_embedding_type" => only(value, &["positional"])?,
            "time_embedding_dim" => self.time_embedding_dim = read(value)?,
            "freq_shift" => self.freq_shift = read(value)?,
            "flip_sin_to_cos" => self.flip_sin_to_cos = read(value)?,
            "down_block_types" => self.down_block_types = read(value)?,
            "mid_block_type" => only(value, &["UNetMidBlock2D"])?,
            "up_block_types" => self.up_block_types = read(value)?,
            "block_out_channels" => self.block_out_channels = read(value)?,
            "layers_per_block" => self.layers_per_block = read(value)?,
            "mid_block_scale_factor" => self.mid_block_scale_factor = read(value)?,
            "add_attention" => self.add_attention = read(value)?,
            "downsample_padding" => self.downsample_padding = read(value)?,
            "downsample_type" | "upsample_type" => only(value, &["conv"])?,
            "dropout" if value.as_f64() == Some(0.0) => {}
            "dropout" => {
                return Err(
                    "set it to 0: both gradients of an unlearning step must see the same network"
                        .into(),
                );
            }
            "act_fn" => only(value, &["silu", "swish"])?,
            "attention_head_dim" => self.attention_head_dim = read(value)?,
            "norm_num_groups" => self.norm_num_groups = read(value)?,
            "attn_norm_num_groups" => self.attn_norm_num_groups = read(value)?,
            "norm_eps" => self.norm_eps = read(value)?,
            "resnet_time_scale_shift" => only(value, &["default"])?,
            "class_embed_type" | "num_class_embeds" if value.is_null() => {}
            "class_embed_type" | "num_class_embeds" => {
                return Err("class conditioning is not implemented: set it to null".into());
            }
            "num_train_timesteps" => self.num_train_timesteps = read(value)?,
            _ => {
                return Err(
                    "the key is unknown: remove it if it does not change the computation".into(),
                );
            }
        }
        Ok(())
    }

    /// Checks everything that building and running the network relies on.
    fn validate(&self, file: &str) -> Result<()> {
        self.validate_ranges(file)?;
        self.validate_stages(file)?;
        self.validate_divisors(file)
    }

    fn validate_ranges(&self, file: &str) -> Result<()> {
        let whole_numbers = [
            ("in_channels", self.in_channels, 1, MAX_CHANNELS),
            ("out_channels", self.out_channels, 1, MAX_CHANNELS),
            (
                "time_embedding_dim",
                self.time_embedding_dim.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
            ("layers_per_block", self.layers_per_block, 1, MAX_LAYERS),
            ("downsample_padding", self.downsample_padding, 0, 1),
            ("norm_num_groups", self.norm_num_groups, 1, MAX_CHANNELS),
            (
                "attn_norm_num_groups",
                self.attn_norm_num_groups.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
            (
                "attention_head_dim",
                self.attention_head_dim.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
        ];
        for (key, value, least, most) in whole_numbers {
            if !(least..=most).contains(&value) {
                let remedy = format!("it must be from {least} to {most}");
                return Err(unsupported(file, key, value, remedy));
            }
        }
        let numbers = [
            ("norm_eps", self.norm_eps),
            ("mid_block_scale_factor", self.mid_block_scale_factor),
        ];
        for (key, value) in numbers {
            if !(value.is_finite() && value > 0.0) {
                return Err(unsupported(
                    file,
                    key,
                    value,
                    "it must be a finite number above 0",
                ));
            }
        }
        Ok(())
    }

    fn validate_stages(&self, file: &str) -> Result<()> {
        let channels = &self.block_out_channels;
        let refuse = |remedy| {
            Err(unsupported(
                file,
                "block_out_channels",
                format!("{channels:?}"),
                remedy,
            ))
        };
        if !(1..=MAX_BLOCKS).contains(&channels.len()) {
            return refuse(format!("it must have from 1 to {MAX_BLOCKS} entries"));
        }
        if channels
            .iter()
            .any(|channels| !(1..=MAX_CHANNELS).contains(channels))
        {
            return refuse(format!("every entry must be from 1 to {MAX_CHANNELS}"));
        }
        let half = channels.first().map_or(0, |first| first / 2);
        if half <= self.freq_shift {
            let remedy = format!("it must be below {half}, half the first of block_out_channels");
            return Err(unsupported(file, "freq_shift", self.freq_shift, remedy));
        }
        let lists = [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ];
        for (key, length) in lists {
            if length != channels.len() {
                let value = format!("a list of {length}");
                let remedy = format!(
                    "block_out_channels has {} entries: make them agree",
                    channels.len()
                );
                return Err(unsupported(file, key, value, remedy));
            }
        }
        Ok(())
    }

    fn validate_divisors(&self, file: &str) -> Result<()> {
        let channels = &self.block_out_channels;
        check_divides(file, "norm_num_groups", self.norm_num_groups, channels)?;
        if let (Some(groups), true) = (self.attn_norm_num_groups, self.add_attention) {
            let last = &channels[channels.len().saturating_sub(1)..];
            check_divides(file, "attn_norm_num_groups", groups, last)?;
        }
        match self.attention_head_dim {
            Some(size) => {
                check_divides(file, "attention_head_dim", size, &self.attended_channels())
            }
            None => Ok(()),
        }
    }

    /// Channels of every stage that has attention.
    fn attended_channels(&self) -> Vec<usize> {
        let channels = &self.block_out_channels;
        let down = self.down_block_types.iter().zip(channels);
        let up = self.up_block_types.iter().zip(channels.iter().rev());
        let down = down.filter(|(kind, _)| **kind == DownBlockType::Attention);
        let up = up.filter(|(kind, _)| **kind == UpBlockType::Attention);
        let middle = channels.last().filter(|_| self.add_attention);
        let all = down
            .map(|(_, channels)| channels)
            .chain(up.map(|(_, channels)| channels));
        all.chain(middle).copied().collect()
    }
}

impl From<UNet2dConfig> for Map<String, Value> {
    fn from(config: UNet2dConfig) -> Self {
        let object = json!({
            "_class_name": "UNet2DModel",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "add_attention": config.add_attention,
            "attention_head_dim": config.attention_head_dim,
            "attn_norm_num_groups": config.attn_norm_num_groups,
            "block_out_channels": config.block_out_channels,
            "center_input_sample": config.center_input_sample,
            "class_embed_type": null,
            "down_block_types": config.down_block_types,
            "downsample_padding": config.downsample_padding,
            "downsample_type": "conv",
            "dropout": 0.0,
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
            "in_channels": config.in_channels,
            "layers_per_block": config.layers_per_block,
            "mid_block_scale_factor": config.mid_block_scale_factor,
            "mid_block_type": "UNetMidBlock2D",
            "norm_eps": config.norm_eps,
            "norm_num_groups": config.norm_num_groups,
            "num_class_embeds": null,
            "num_train_timesteps": config.num_train_timesteps,
            "out_channels": config.out_channels,
            "resnet_time_scale_shift": "default",
            "sample_size": write_size(config.sample_size),
            "time_embedding_dim": config.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": config.up_block_types,
            "upsample_type": "conv",
        });
        match object {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }
}

impl TryFrom<Map<String, Value>> for UNet2dConfig {
    type Error = Error;

    fn try_from(object: Map<String, Value>) -> Result<Self> {
        Self::from_object(&object, NO_FILE)
    }
}

fn unsupported(file: &str, key: &str, value: impl ToString, remedy: impl Into<String>) -> Error {
    Error::UnsupportedConfig {
        file: file.into(),
        key: key.into(),
        value: format!("`{}`", value.to_string()),
        remedy: remedy.into(),
    }
}

fn check_divides(file: &str, key: &str, divisor: usize, channels: &[usize]) -> Result<()> {
    match channels
        .iter()
        .find(|channels| !channels.is_multiple_of(divisor))
    {
        Some(channels) => {
            let remedy = format!(
                "it must divide every number of channels it applies to, {channels} among them"
            );
            Err(unsupported(file, key, divisor, remedy))
        }
        None => Ok(()),
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> std::result::Result<T, String> {
    T::deserialize(value).map_err(|error| format!("the value cannot be read: {error}"))
}

/// Accepts a key whose computation is implemented in one form only.
fn only(value: &Value, supported: &[&str]) -> std::result::Result<(), String> {
    match value.as_str() {
        Some(text) if supported.contains(&text) => Ok(()),
        _ => Err(format!("only {} is implemented", supported.join(" or "))),
    }
}

/// A side length, height and width, or null.
fn read_size(value: &Value) -> std::result::Result<Option<[usize; 2]>, String> {
    match value {
        Value::Number(_) => read(value).map(|side| Some([side, side])),
        _ => read(value),
    }
}

fn write_size(size: Option<[usize; 2]>) -> Value {
    match size {
        Some([height, width]) if height == width => json!(height),
        size => json!(size),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(in crate::models) use tests::CELEBAHQ;
