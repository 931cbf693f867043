//! The configuration of an [`AutoencoderKl`]: diffusers' `config.json`, read strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::AutoencoderKl;
use crate::error::Result;
use crate::models::settings::{
    self, Settings, Size, check_between, check_divides, check_positive, unsupported,
};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "AutoencoderKlConfig";
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_BLOCKS: usize = 16;
const DOWN: &str = "DownEncoderBlock2D";
const UP: &str = "UpDecoderBlock2D";

/// The settings of an [`AutoencoderKl`], under the names of diffusers' `AutoencoderKL`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `in_channels`, `out_channels` | 3 | channels of the pictures | 1 to 65536 |
/// | `down_block_types`, `up_block_types` | one kind | kind of each stage; none: as many as needed | |
/// | `block_out_channels` | 128, 256, 512, 512 | channels of each stage | 1 to 16 stages |
/// | `layers_per_block` | 2 | residual blocks of an encoder's stage; one more in the decoder | 1 to 256 |
/// | `latent_channels` | 4 | channels of the latents | 1 to 65536 |
/// | `norm_num_groups` | 32 | groups of the normalisations | divides the channels |
/// | `sample_size` | 512 | kept for Python | |
/// | `scaling_factor` | 0.18215 | scale of the latents | > 0 |
/// | `shift_factor` | none | shift of the latents before the scale; none: 0 | finite |
/// | `force_upcast` | true | kept for Python: the network is in f32 here | |
/// | `use_quant_conv`, `use_post_quant_conv` | true | whether these convolutions exist | |
/// | `mid_block_add_attention` | true | attention in the middle stages | |
///
/// Means and deviations per channel (`latents_mean`, `latents_std`) are refused, unless null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The table says what the fields are.
pub struct AutoencoderKlConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub latent_channels: usize,
    pub norm_num_groups: usize,
    pub sample_size: Option<Size>,
    pub scaling_factor: f64,
    pub shift_factor: Option<f64>,
    pub force_upcast: Option<bool>,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: Some(Size::Square(512)),
            scaling_factor: 0.18215,
            shift_factor: None,
            force_upcast: Some(true),
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// Reads a diffusers `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](AutoencoderKlConfig::from_json).
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
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) if a setting is invalid.
    pub fn init(&self, device: &Device) -> Result<AutoencoderKl> {
        let config = self.with_block_types();
        config.validate(NO_FILE)?;
        Ok(AutoencoderKl::build(&config, device))
    }

    /// The configuration with the only kind of stage where none is given.
    fn with_block_types(&self) -> Self {
        let mut config = self.clone();
        let stages = self.block_out_channels.len();
        if config.down_block_types.is_empty() {
            config.down_block_types = vec![DOWN.into(); stages];
        }
        if config.up_block_types.is_empty() {
            config.up_block_types = vec![UP.into(); stages];
        }
        config
    }

    /// What is subtracted from the latents before they are scaled.
    pub(super) fn shift(&self) -> f64 {
        self.shift_factor.unwrap_or(0.0)
    }
}

impl Settings for AutoencoderKlConfig {
    const FIXED: &'static [(&'static str, &'static [&'static str])] = &[
        ("_class_name", &["\"AutoencoderKL\""]),
        ("act_fn", &["\"silu\"", "\"swish\""]),
        ("latents_mean", &["null"]),
        ("latents_std", &["null"]),
    ];
    const IGNORED: &'static [&'static str] = &[];

    fn validate(&self, file: &str) -> Result<()> {
        let channels = [1, MAX_CHANNELS];
        check_between(file, "in_channels", self.in_channels, channels)?;
        check_between(file, "out_channels", self.out_channels, channels)?;
        check_between(file, "latent_channels", self.latent_channels, channels)?;
        check_between(
            file,
            "layers_per_block",
            self.layers_per_block,
            [1, MAX_LAYERS],
        )?;
        check_between(file, "norm_num_groups", self.norm_num_groups, channels)?;
        let stages = self.block_out_channels.len();
        check_between(
            file,
            "number of block_out_channels",
            stages,
            [1, MAX_BLOCKS],
        )?;
        for &count in &self.block_out_channels {
            check_between(file, "block_out_channels", count, channels)?;
        }
        let groups = self.norm_num_groups;
        check_divides(file, "norm_num_groups", groups, &self.block_out_channels)?;
        check_positive(file, "scaling_factor", self.scaling_factor)?;
        if !self.shift().is_finite() {
            let remedy = "it must be a finite number";
            return Err(unsupported(file, "shift_factor", self.shift(), remedy));
        }
        self.validate_blocks(file, "down_block_types", &self.down_block_types, DOWN)?;
        self.validate_blocks(file, "up_block_types", &self.up_block_types, UP)
    }
}

impl AutoencoderKlConfig {
    /// Refuses other kinds of stages than the one that is implemented, and another number of them;
    /// an empty list stands for as many as needed.
    fn validate_blocks(&self, file: &str, key: &str, kinds: &[String], only: &str) -> Result<()> {
        if let Some(other) = kinds.iter().find(|kind| *kind != only) {
            let reason = format!("only {only} is implemented");
            let remedy = settings::of_another_network(reason);
            return Err(unsupported(file, key, other, remedy));
        }
        let (stages, found) = (self.block_out_channels.len(), kinds.len());
        match found == 0 || found == stages {
            true => Ok(()),
            false => {
                let remedy = format!("block_out_channels has {stages} entries: make them agree");
                Err(unsupported(file, key, format!("a list of {found}"), remedy))
            }
        }
    }
}
