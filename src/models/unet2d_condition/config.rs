//! The configuration of a [`UNet2dCondition`]: diffusers' `config.json`, read strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::UNet2dCondition;
use crate::error::Result;
use crate::models::settings::{
    self, PerStage, Settings, Size, check_between, check_divides, check_positive, unsupported,
};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "UNet2dConditionConfig";
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_BLOCKS: usize = 16;
/// Size, crop and target size of a picture, each as height and width.
pub(super) const TIME_IDS: usize = 6;

/// A stage of the downward path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionDownBlockType {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D")]
    Resnet,
    /// Residual blocks, each followed by attention among the pixels and to the prompt.
    #[serde(rename = "CrossAttnDownBlock2D")]
    Attention,
}

/// A stage of the upward path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionUpBlockType {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D")]
    Resnet,
    /// Residual blocks, each followed by attention among the pixels and to the prompt.
    #[serde(rename = "CrossAttnUpBlock2D")]
    Attention,
}

/// What a network is told besides the timestep and the encoded prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AdditionEmbedType {
    /// The prompt as one vector, and sizes of pictures: Stable Diffusion XL.
    #[serde(rename = "text_time")]
    TextTime,
}

/// The settings of a [`UNet2dCondition`], under the names and with the defaults of diffusers'
/// `UNet2DConditionModel`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `sample_size` | none | height and width that a pipeline generates, in latent pixels | |
/// | `in_channels`, `out_channels` | 4 | channels of the input and the output | equal, 1 to 65536 |
/// | `center_input_sample` | false | map the input from `[0, 1]` to `[−1, 1]` | |
/// | `flip_sin_to_cos`, `freq_shift` | true, 0 | of the sinusoids of time | |
/// | `down_block_types`, `up_block_types` | those of Stable Diffusion 1 | kind of each stage | one per stage |
/// | `block_out_channels` | 320, 640, 1280, 1280 | channels of each stage | 1 to 16 stages |
/// | `layers_per_block` | 2 | residual blocks of a downward stage; one more upward | 1 to 256 |
/// | `downsample_padding` | 1 | 1: all sides; 0: only right and bottom | 0, 1 |
/// | `mid_block_scale_factor` | 1 | divides the outputs of the middle stage's residual blocks | > 0 |
/// | `dropout` | 0 | kept for Python; not applied | 0 to 1 |
/// | `norm_num_groups`, `norm_eps` | 32, 1e-5 | of the normalisations | |
/// | `cross_attention_dim` | 1280 | features of the encoded prompt | 1 to 65536 |
/// | `transformer_layers_per_block` | 1 | transformer blocks of an attention layer | 1 to 256 |
/// | `reverse_transformer_layers_per_block` | none | … upward; none: those downward, reversed | |
/// | `attention_head_dim` | 8 | the **number** of heads, in spite of its name | divides the channels |
/// | `use_linear_projection` | false | shape of the projections around transformer blocks | |
/// | `upcast_attention` | false | kept for Python: attention is in f32 here | |
/// | `addition_embed_type` | none | what else the network is told | |
/// | `addition_time_embed_dim` | none | sinusoids of each number of `time_ids` | |
/// | `projection_class_embeddings_input_dim` | none | their size, with that of the pooled prompt | |
/// | `time_embedding_dim` | none | size of the timestep embedding; none: four times the first channels | |
/// | `addition_embed_type_num_heads` | 64 | kept for Python | |
///
/// The file's `num_attention_heads` must be null, as in diffusers, where `attention_head_dim` has
/// its meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The table says what the fields are.
pub struct UNet2dConditionConfig {
    pub sample_size: Option<Size>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: usize,
    pub down_block_types: Vec<ConditionDownBlockType>,
    pub up_block_types: Vec<ConditionUpBlockType>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub downsample_padding: usize,
    pub mid_block_scale_factor: f64,
    pub dropout: f64,
    pub norm_num_groups: usize,
    pub norm_eps: f64,
    pub cross_attention_dim: usize,
    pub transformer_layers_per_block: PerStage<usize>,
    pub reverse_transformer_layers_per_block: Option<PerStage<usize>>,
    pub attention_head_dim: PerStage<usize>,
    pub use_linear_projection: bool,
    pub upcast_attention: Option<bool>,
    pub addition_embed_type: Option<AdditionEmbedType>,
    pub addition_time_embed_dim: Option<usize>,
    pub projection_class_embeddings_input_dim: Option<usize>,
    pub time_embedding_dim: Option<usize>,
    pub addition_embed_type_num_heads: usize,
}

impl Default for UNet2dConditionConfig {
    fn default() -> Self {
        use ConditionDownBlockType as Down;
        use ConditionUpBlockType as Up;
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0,
            down_block_types: vec![
                Down::Attention,
                Down::Attention,
                Down::Attention,
                Down::Resnet,
            ],
            up_block_types: vec![Up::Resnet, Up::Attention, Up::Attention, Up::Attention],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: 1280,
            transformer_layers_per_block: PerStage::Same(1),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerStage::Same(8),
            use_linear_projection: false,
            upcast_attention: Some(false),
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_dim: None,
            addition_embed_type_num_heads: 64,
        }
    }
}

impl UNet2dConditionConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](UNet2dConditionConfig::from_json).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        settings::from_file(path.as_ref())
    }

    /// Reads the text of a diffusers `config.json`; `file` names it in errors.
    ///
    /// Absent keys take diffusers' defaults.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](crate::Error::InvalidFile) if the text is not a JSON object;
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) with all keys that are unknown
    /// or have values that are not implemented, or with the first value that is invalid.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        settings::from_text(text, file)
    }

    /// A network with fresh parameters, which are drawn when they are first used. It predicts the
    /// noise, unless [`UNet2dCondition::with_prediction_type`] says otherwise.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) if a setting is invalid or two
    /// contradict each other.
    pub fn init(&self, device: &Device) -> Result<UNet2dCondition> {
        self.validate(NO_FILE)?;
        Ok(UNet2dCondition::build(self, device))
    }

    /// Size of the timestep embedding.
    pub(super) fn embedding_size(&self) -> usize {
        let first = self.block_out_channels.first().copied();
        self.time_embedding_dim
            .unwrap_or(4 * first.unwrap_or_default())
    }

    /// Transformer blocks of each upward stage, innermost first.
    pub(super) fn up_transformer_layers(&self) -> Vec<usize> {
        let stages = self.block_out_channels.len();
        let given = self.reverse_transformer_layers_per_block.as_ref();
        given
            .and_then(|layers| layers.of_stages(stages))
            .unwrap_or_else(|| {
                let down = self.transformer_layers_per_block.of_stages(stages);
                down.unwrap_or_default().into_iter().rev().collect()
            })
    }

    /// Features of the pooled prompt; `None` for a network that takes none.
    pub(super) fn pooled_size(&self) -> Option<usize> {
        let (inputs, sinusoids) = (
            self.projection_class_embeddings_input_dim?,
            self.addition_time_embed_dim?,
        );
        self.addition_embed_type?;
        inputs.checked_sub(TIME_IDS * sinusoids)
    }
}

impl Settings for UNet2dConditionConfig {
    const FIXED: &'static [(&'static str, &'static [&'static str])] = &[
        ("_class_name", &["\"UNet2DConditionModel\""]),
        ("act_fn", &["\"silu\"", "\"swish\""]),
        ("attention_type", &["\"default\""]),
        ("class_embed_type", &["null"]),
        ("class_embeddings_concat", &["false"]),
        ("conv_in_kernel", &["3"]),
        ("conv_out_kernel", &["3"]),
        ("cross_attention_norm", &["null"]),
        ("dual_cross_attention", &["false"]),
        ("encoder_hid_dim", &["null"]),
        ("encoder_hid_dim_type", &["null"]),
        ("mid_block_only_cross_attention", &["null", "false"]),
        ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
        ("num_attention_heads", &["null"]),
        ("num_class_embeds", &["null"]),
        ("only_cross_attention", &["false"]),
        ("resnet_out_scale_factor", &["1.0"]),
        ("resnet_skip_time_act", &["false"]),
        ("resnet_time_scale_shift", &["\"default\""]),
        ("time_cond_proj_dim", &["null"]),
        ("time_embedding_act_fn", &["null"]),
        ("time_embedding_type", &["\"positional\""]),
        ("timestep_post_act", &["null"]),
    ];
    // Keys that `EMAModel` adds to the configuration of the network that it averages.
    const IGNORED: &'static [&'static str] = &settings::OF_AVERAGES;

    fn validate(&self, file: &str) -> Result<()> {
        self.validate_ranges(file)?;
        self.validate_inputs(file)?;
        self.validate_stages(file)?;
        self.validate_addition(file)
    }
}

impl UNet2dConditionConfig {
    fn validate_ranges(&self, file: &str) -> Result<()> {
        let channels = [1, MAX_CHANNELS];
        check_between(file, "in_channels", self.in_channels, channels)?;
        check_between(
            file,
            "cross_attention_dim",
            self.cross_attention_dim,
            channels,
        )?;
        check_between(
            file,
            "layers_per_block",
            self.layers_per_block,
            [1, MAX_LAYERS],
        )?;
        check_between(file, "downsample_padding", self.downsample_padding, [0, 1])?;
        check_between(file, "norm_num_groups", self.norm_num_groups, channels)?;
        let time = self.time_embedding_dim.unwrap_or(1);
        check_between(file, "time_embedding_dim", time, channels)?;
        check_positive(file, "norm_eps", self.norm_eps)?;
        check_positive(file, "mid_block_scale_factor", self.mid_block_scale_factor)?;
        if !(0.0..=1.0).contains(&self.dropout) {
            let remedy = "it must be a probability, from 0 to 1";
            return Err(unsupported(file, "dropout", self.dropout, remedy));
        }
        Ok(())
    }

    /// Refuses the networks that take a picture besides the noisy one.
    fn validate_inputs(&self, file: &str) -> Result<()> {
        let (inputs, outputs) = (self.in_channels, self.out_channels);
        if inputs == outputs {
            return Ok(());
        }
        let kind = match (inputs, outputs) {
            (9, 4) => "the network fills masked parts of a picture (inpainting), which",
            (8, 4) => "the network edits a picture by an instruction (pix2pix), which",
            _ => "the network has other inputs than outputs, which",
        };
        let remedy = settings::of_another_network(format!("{kind} is not implemented"));
        Err(unsupported(file, "in_channels", inputs, remedy))
    }

    fn validate_stages(&self, file: &str) -> Result<()> {
        let channels = &self.block_out_channels;
        let stages = channels.len();
        check_between(
            file,
            "number of block_out_channels",
            stages,
            [1, MAX_BLOCKS],
        )?;
        for &channels in channels {
            check_between(file, "block_out_channels", channels, [1, MAX_CHANNELS])?;
        }
        let half = channels[0] / 2;
        if half <= self.freq_shift {
            let remedy = format!("it must be below {half}, half the first of block_out_channels");
            return Err(unsupported(file, "freq_shift", self.freq_shift, remedy));
        }
        let lists = [
            ("down_block_types", Some(self.down_block_types.len())),
            ("up_block_types", Some(self.up_block_types.len())),
            (
                "transformer_layers_per_block",
                listed(&self.transformer_layers_per_block),
            ),
            (
                "reverse_transformer_layers_per_block",
                self.reverse_transformer_layers_per_block
                    .as_ref()
                    .and_then(listed),
            ),
            ("attention_head_dim", listed(&self.attention_head_dim)),
        ];
        for (key, length) in lists {
            if length.is_some_and(|length| length != stages) {
                let value = format!("a list of {}", length.unwrap_or_default());
                let remedy = format!("block_out_channels has {stages} entries: make them agree");
                return Err(unsupported(file, key, value, remedy));
            }
        }
        check_divides(file, "norm_num_groups", self.norm_num_groups, channels)?;
        for (stage, &channels) in channels.iter().enumerate() {
            let heads = self.attention_head_dim.get(stage).unwrap_or_default();
            check_divides(file, "attention_head_dim", heads, &[channels])?;
        }
        let down = self.transformer_layers_per_block.of_stages(stages);
        let layers = down
            .unwrap_or_default()
            .into_iter()
            .chain(self.up_transformer_layers());
        for layers in layers {
            check_between(
                file,
                "transformer_layers_per_block",
                layers,
                [1, MAX_LAYERS],
            )?;
        }
        Ok(())
    }

    fn validate_addition(&self, file: &str) -> Result<()> {
        if self.addition_embed_type.is_none() {
            return Ok(());
        }
        let sinusoids = self.addition_time_embed_dim.unwrap_or_default();
        let half = sinusoids / 2;
        if half <= self.freq_shift || sinusoids > MAX_CHANNELS {
            let remedy = "it must be even, and more than twice freq_shift";
            return Err(unsupported(
                file,
                "addition_time_embed_dim",
                sinusoids,
                remedy,
            ));
        }
        let inputs = self
            .projection_class_embeddings_input_dim
            .unwrap_or_default();
        if inputs <= TIME_IDS * sinusoids || inputs > MAX_CHANNELS {
            let remedy = format!("it must be above {TIME_IDS} times addition_time_embed_dim");
            return Err(unsupported(
                file,
                "projection_class_embeddings_input_dim",
                inputs,
                remedy,
            ));
        }
        Ok(())
    }
}

fn listed(setting: &PerStage<usize>) -> Option<usize> {
    match setting {
        PerStage::Same(_) => None,
        PerStage::Each(values) => Some(values.len()),
    }
}
