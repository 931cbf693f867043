//! The configuration of a [`ClipTextEncoder`]: `config.json` of the library transformers, read
//! strictly.

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::ClipTextEncoder;
use crate::error::Result;
use crate::models::settings::{
    self, Settings, check_between, check_divides, check_positive, unsupported,
};

/// Stands for the file name in errors about a configuration that was not read from a file.
const NO_FILE: &str = "ClipTextConfig";
const MAX_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 256;
const PLAIN: &str = "CLIPTextModel";
const WITH_PROJECTION: &str = "CLIPTextModelWithProjection";

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x Φ(x)`.
    Gelu,
    /// `x σ(1.702 x)`.
    #[default]
    QuickGelu,
}

/// The settings of a [`ClipTextEncoder`], under the names and with the defaults of transformers'
/// `CLIPTextConfig`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `architectures` | `CLIPTextModel` | without or with projection (`CLIPTextModelWithProjection`) | one of these |
/// | `vocab_size` | 49408 | tokens of the vocabulary | 1 to 1048576 |
/// | `hidden_size`, `intermediate_size` | 512, 2048 | features, and those inside of feed-forward layers | |
/// | `projection_dim` | 512 | features of the projection | |
/// | `num_hidden_layers`, `num_attention_heads` | 12, 8 | layers, and heads of each | 1 to 256 |
/// | `max_position_embeddings` | 77 | most tokens of a prompt | |
/// | `hidden_act` | quick GELU | the activation | |
/// | `layer_norm_eps` | 1e-5 | added to the variance in the normalisations | > 0 |
/// | `bos_token_id`, `eos_token_id`, `pad_token_id` | 49406, 49407, 1 | tokens with a meaning; 2 as the end-of-text token stands for the largest id | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The table says what the fields are.
pub struct ClipTextConfig {
    pub architectures: Vec<String>,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: ClipActivation,
    pub layer_norm_eps: f64,
    pub bos_token_id: Option<usize>,
    pub eos_token_id: usize,
    pub pad_token_id: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            architectures: vec![PLAIN.into()],
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: ClipActivation::QuickGelu,
            layer_norm_eps: 1e-5,
            bos_token_id: Some(49406),
            eos_token_id: 49407,
            pad_token_id: Some(1),
        }
    }
}

impl ClipTextConfig {
    /// Reads a `config.json` of the library transformers.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) for more
    /// than 1 MiB, and those of [`from_json`](ClipTextConfig::from_json).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        settings::from_file(path.as_ref())
    }

    /// Reads the text of a `config.json`; `file` names it in errors.
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
    pub fn init(&self, device: &Device) -> Result<ClipTextEncoder> {
        self.validate(NO_FILE)?;
        Ok(ClipTextEncoder::build(self, device))
    }

    /// Whether the encoder projects the state of the end-of-text token.
    pub(super) fn has_projection(&self) -> bool {
        self.architectures
            .iter()
            .any(|name| name == WITH_PROJECTION)
    }
}

impl Settings for ClipTextConfig {
    const FIXED: &'static [(&'static str, &'static [&'static str])] =
        &[("model_type", &["\"clip_text_model\""])];
    // Of training, of the file's type, and of transformers itself.
    const IGNORED: &'static [&'static str] = &[
        "attention_dropout",
        "dropout",
        "dtype",
        "initializer_factor",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
    ];

    fn validate(&self, file: &str) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("projection_dim", self.projection_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, value) in sizes {
            check_between(file, key, value, [1, MAX_SIZE])?;
        }
        check_between(
            file,
            "num_hidden_layers",
            self.num_hidden_layers,
            [1, MAX_LAYERS],
        )?;
        let (heads, size) = (self.num_attention_heads, self.hidden_size);
        check_divides(file, "num_attention_heads", heads, &[size])?;
        check_positive(file, "layer_norm_eps", self.layer_norm_eps)?;
        let known = |name: &String| name == PLAIN || name == WITH_PROJECTION;
        match self.architectures.as_slice() {
            [name] if known(name) => Ok(()),
            others => {
                let remedy = format!("only {PLAIN} or {WITH_PROJECTION} is implemented");
                Err(unsupported(
                    file,
                    "architectures",
                    others.join(", "),
                    remedy,
                ))
            }
        }
    }
}
