//! The configuration of a [`Dit`]: diffusers' `config.json`, read strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Dit;
use crate::error::Result;
use crate::models::settings::{
    self, Settings, check_between, check_divides, check_positive, unsupported,
};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "DitConfig";
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;

/// The settings of a [`Dit`], under the names and with the defaults of diffusers'
/// `DiTTransformer2DModel`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_attention_heads`, `attention_head_dim` | 16, 72 | heads, and channels of each | product a multiple of 4 |
/// | `in_channels` | 4 | channels of the input | 1 to 65536 |
/// | `out_channels` | none | channels of the output; none: those of the input | 1 to 65536 |
/// | `num_layers` | 28 | transformer blocks | 1 to 256 |
/// | `patch_size` | 2 | side of a patch | 1 to 256 |
/// | `sample_size` | 32 | side of the latents that positions are counted for | a multiple of the patch |
/// | `num_embeds_ada_norm` | 1000 | classes, without the null class | 1 to 65535 |
/// | `attention_bias` | true | whether queries, keys and values have a bias | |
/// | `norm_eps` | 1e-5 | added to the variance in the second normalisation of a block | > 0 |
/// | `dropout` | 0 | kept for Python; not applied | 0 to 1 |
/// | `norm_num_groups`, `upcast_attention` | 32, false | kept for Python; not used | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The table says what the fields are.
pub struct DitConfig {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub in_channels: usize,
    pub out_channels: Option<usize>,
    pub num_layers: usize,
    pub dropout: f64,
    pub norm_num_groups: Option<usize>,
    pub attention_bias: bool,
    pub sample_size: usize,
    pub patch_size: usize,
    pub num_embeds_ada_norm: usize,
    pub upcast_attention: Option<bool>,
    pub norm_eps: f64,
}

impl Default for DitConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 4,
            out_channels: None,
            num_layers: 28,
            dropout: 0.0,
            norm_num_groups: Some(32),
            attention_bias: true,
            sample_size: 32,
            patch_size: 2,
            num_embeds_ada_norm: 1000,
            upcast_attention: Some(false),
            norm_eps: 1e-5,
        }
    }
}

impl DitConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](DitConfig::from_json).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        settings::from_file(path.as_ref())
    }

    /// Reads the text of a diffusers `config.json`; `file` names it in errors.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](crate::Error::InvalidFile) if the text is not a JSON object;
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) with all keys that are unknown
    /// or have values that are not implemented, or with the first value that is invalid.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        settings::from_text(text, file)
    }

    /// A network with fresh parameters, which are drawn when they are first used. It predicts the
    /// noise, unless [`Dit::with_prediction_type`] says otherwise.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) if a setting is invalid.
    pub fn init(&self, device: &Device) -> Result<Dit> {
        self.validate(NO_FILE)?;
        Ok(Dit::build(self, device))
    }

    /// Features of a position.
    pub(super) fn channels(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the whole output.
    pub(super) fn outputs(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }
}

impl Settings for DitConfig {
    const FIXED: &'static [(&'static str, &'static [&'static str])] = &[
        (
            "_class_name",
            &["\"DiTTransformer2DModel\"", "\"Transformer2DModel\""],
        ),
        ("activation_fn", &["\"gelu-approximate\""]),
        ("norm_elementwise_affine", &["false"]),
        ("norm_type", &["\"ada_norm_zero\""]),
    ];
    // Settings of the class that older files name, `Transformer2DModel`, which `DiT` left null.
    const IGNORED: &'static [&'static str] = &[
        "attention_type",
        "caption_channels",
        "cross_attention_dim",
        "double_self_attention",
        "num_vector_embeds",
        "only_cross_attention",
        "use_linear_projection",
    ];

    fn validate(&self, file: &str) -> Result<()> {
        let channels = [1, MAX_CHANNELS];
        check_between(
            file,
            "num_attention_heads",
            self.num_attention_heads,
            channels,
        )?;
        check_between(
            file,
            "attention_head_dim",
            self.attention_head_dim,
            channels,
        )?;
        check_between(file, "in_channels", self.in_channels, channels)?;
        check_between(file, "out_channels", self.outputs(), channels)?;
        check_between(file, "num_layers", self.num_layers, [1, MAX_LAYERS])?;
        check_between(file, "patch_size", self.patch_size, [1, MAX_LAYERS])?;
        check_between(file, "sample_size", self.sample_size, channels)?;
        let classes = [1, MAX_CHANNELS - 1];
        check_between(
            file,
            "num_embeds_ada_norm",
            self.num_embeds_ada_norm,
            classes,
        )?;
        check_positive(file, "norm_eps", self.norm_eps)?;
        check_divides(file, "patch_size", self.patch_size, &[self.sample_size])?;
        match self.channels() <= MAX_CHANNELS && self.channels().is_multiple_of(4) {
            true => Ok(()),
            false => {
                let remedy = "heads times channels of a head must be a multiple of 4, for sines and cosines of two coordinates";
                Err(unsupported(
                    file,
                    "attention_head_dim",
                    self.attention_head_dim,
                    remedy,
                ))
            }
        }
    }
}
