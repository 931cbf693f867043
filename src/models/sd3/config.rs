//! The configuration of an [`Sd3Transformer`]: diffusers' `config.json`, read strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Sd3Transformer;
use crate::error::Result;
use crate::models::settings::{self, Settings, check_between, check_divides, unsupported};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "Sd3TransformerConfig";
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
/// Most patches of a side.
const MAX_PATCHES: usize = 4096;

/// The settings of an [`Sd3Transformer`], under the names and with the defaults of diffusers'
/// `SD3Transformer2DModel`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `sample_size` | 128 | side of the latents that positions are counted for | a multiple of the patch |
/// | `patch_size` | 2 | side of a patch | 1 to 256 |
/// | `in_channels`, `out_channels` | 16 | channels of the latents | equal, 1 to 65536 |
/// | `num_layers` | 18 | transformer blocks | 1 to 256 |
/// | `num_attention_heads`, `attention_head_dim` | 18, 64 | heads, and channels of each | product a multiple of 4 |
/// | `joint_attention_dim` | 4096 | features of the encoded prompt | 1 to 65536 |
/// | `caption_projection_dim` | 1152 | … after their projection | heads times channels of a head |
/// | `pooled_projection_dim` | 2048 | features of the pooled prompt | 1 to 65536 |
/// | `pos_embed_max_size` | 96 | most patches of a side | 1 to 4096 |
///
/// What version 3.5 adds (`dual_attention_layers`, `qk_norm`) is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The table says what the fields are.
pub struct Sd3TransformerConfig {
    pub sample_size: usize,
    pub patch_size: usize,
    pub in_channels: usize,
    pub num_layers: usize,
    pub attention_head_dim: usize,
    pub num_attention_heads: usize,
    pub joint_attention_dim: usize,
    pub caption_projection_dim: usize,
    pub pooled_projection_dim: usize,
    pub out_channels: usize,
    pub pos_embed_max_size: usize,
}

impl Default for Sd3TransformerConfig {
    fn default() -> Self {
        Self {
            sample_size: 128,
            patch_size: 2,
            in_channels: 16,
            num_layers: 18,
            attention_head_dim: 64,
            num_attention_heads: 18,
            joint_attention_dim: 4096,
            caption_projection_dim: 1152,
            pooled_projection_dim: 2048,
            out_channels: 16,
            pos_embed_max_size: 96,
        }
    }
}

impl Sd3TransformerConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](Sd3TransformerConfig::from_json).
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

    /// A network with fresh parameters, which are drawn when they are first used.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) if a setting is invalid or two
    /// contradict each other.
    pub fn init(&self, device: &Device) -> Result<Sd3Transformer> {
        self.validate(NO_FILE)?;
        Ok(Sd3Transformer::build(self, device))
    }

    /// Features of a position.
    pub(super) fn channels(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

impl Settings for Sd3TransformerConfig {
    const FIXED: &'static [(&'static str, &'static [&'static str])] = &[
        ("_class_name", &["\"SD3Transformer2DModel\""]),
        ("dual_attention_layers", &["[]"]),
        ("qk_norm", &["null"]),
    ];
    const IGNORED: &'static [&'static str] = &[];

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
        check_between(
            file,
            "joint_attention_dim",
            self.joint_attention_dim,
            channels,
        )?;
        check_between(
            file,
            "pooled_projection_dim",
            self.pooled_projection_dim,
            channels,
        )?;
        check_between(file, "num_layers", self.num_layers, [1, MAX_LAYERS])?;
        check_between(file, "patch_size", self.patch_size, [1, MAX_LAYERS])?;
        check_between(file, "sample_size", self.sample_size, channels)?;
        check_between(
            file,
            "pos_embed_max_size",
            self.pos_embed_max_size,
            [1, MAX_PATCHES],
        )?;
        check_divides(file, "patch_size", self.patch_size, &[self.sample_size])?;
        if self.out_channels != self.in_channels {
            let remedy = "it must equal in_channels, since a velocity has the latents' shape";
            return Err(unsupported(file, "out_channels", self.out_channels, remedy));
        }
        let features = self.channels();
        if features > MAX_CHANNELS || !features.is_multiple_of(4) {
            let remedy = "heads times channels of a head must be a multiple of 4, for sines and cosines of two coordinates";
            return Err(unsupported(
                file,
                "attention_head_dim",
                self.attention_head_dim,
                remedy,
            ));
        }
        if self.caption_projection_dim != features {
            let remedy = format!("it must be {features}, heads times channels of a head");
            let found = self.caption_projection_dim;
            return Err(unsupported(file, "caption_projection_dim", found, remedy));
        }
        Ok(())
    }
}
