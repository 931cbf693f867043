//! The text encoders of Stable Diffusion: `CLIPTextModel` and `CLIPTextModelWithProjection` of the
//! library transformers.

mod config;
mod layers;
#[cfg(feature = "text")]
mod tokenizer;
mod variation;

pub use config::{ClipActivation, ClipTextConfig};
#[cfg(feature = "text")]
pub use tokenizer::ClipTokenizer;
pub use variation::PromptVariation;

use std::path::Path;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};

use self::layers::TextModel;
use super::{LoadNote, folder, location, settings};
use crate::error::{Error, Result, check_shape};
use crate::host::read_f32;

/// A text encoder of CLIP, with or without projection: those of Stable Diffusion 1, 2, XL and 3.
///
/// | model | encoder | what the network is told |
/// |---|---|---|
/// | Stable Diffusion 1 | `text_encoder` | `last_hidden_state` |
/// | Stable Diffusion 2 | `text_encoder`, stored without its last layer | `last_hidden_state` |
/// | Stable Diffusion XL | `text_encoder` and `text_encoder_2` | `penultimate_hidden_state` of both, `projected` of the second |
///
/// # Example
/// ```
/// use siss::burn::tensor::{Device, Int, Tensor};
/// use siss::models::ClipTextConfig;
///
/// let device = Device::flex();
/// let config = ClipTextConfig {
///     vocab_size: 100,
///     hidden_size: 8,
///     intermediate_size: 16,
///     num_attention_heads: 2,
///     num_hidden_layers: 2,
///     ..ClipTextConfig::default()
/// };
/// let encoder = config.init(&device)?;
/// let tokens = Tensor::<2, Int>::zeros([3, 77], &device);
/// assert_eq!(encoder.encode(tokens)?.last_hidden_state.dims(), [3, 77, 8]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct ClipTextEncoder {
    text_model: TextModel,
    text_projection: Option<Linear>,
    #[module(skip)]
    config: ClipTextConfig,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

/// Encoded prompts.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// After the last layer and the final normalisation: `[rows, tokens, features]`.
    pub last_hidden_state: Tensor<3>,
    /// Before the last layer, without the final normalisation: `[rows, tokens, features]`.
    pub penultimate_hidden_state: Tensor<3>,
    /// The projection of the state at the end-of-text token, `[rows, projected]`; `None` for an
    /// encoder without projection.
    pub projected: Option<Tensor<2>>,
}

impl ClipTextEncoder {
    /// Reads a folder of the library transformers: `config.json` and `model.safetensors`, in one
    /// file, in parts, or as a variant; or that of a pipeline, whose `text_encoder` is read.
    ///
    /// Position ids in old files are ignored, and the names of transformers 5, which lack
    /// `text_model.`, are read too; the names of the published files are written.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`], [`Error::UnsupportedConfig`] and
    /// [`Error::WeightMismatch`] as for [`UNet2d::load`](super::UNet2d::load).
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = location::part(folder.as_ref(), "text_encoder")?;
        let config = ClipTextConfig::from_file(folder.join(location::CONFIG))?;
        let files = folder::Files::Transformers;
        let (mut encoder, notes) = folder::load_files(config.init(device)?, &folder, files)?;
        encoder.notes = notes;
        Ok(encoder)
    }

    /// Writes a folder that [`load`](ClipTextEncoder::load) and transformers read.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`](super::UNet2d::save).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let config = settings::to_text(&self.config);
        folder::save_files(self, &config, folder.as_ref(), folder::Files::Transformers)
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The decisions made while the network was read, to be shown to the user.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// Builds the network of a validated configuration.
    fn build(config: &ClipTextConfig, device: &Device) -> Self {
        let projection = || {
            LinearConfig::new(config.hidden_size, config.projection_dim)
                .with_bias(false)
                .init(device)
        };
        Self {
            text_model: TextModel::new(config, device),
            text_projection: config.has_projection().then(projection),
            config: config.clone(),
            notes: Vec::new(),
        }
    }

    /// Encodes prompts.
    ///
    /// # Shapes
    /// - `tokens`: `[rows, tokens]`, at most `max_position_embeddings` of them
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for too many tokens, [`Error::InvalidSetting`] for one that is not
    /// in the vocabulary, [`Error::DeviceRead`].
    pub fn encode(&self, tokens: Tensor<2, Int>) -> Result<EncodedText> {
        let ends = self.ends(&tokens)?;
        let [last, penultimate] = self.text_model.forward(tokens);
        let projected = self.text_projection.as_ref().map(|projection| {
            let device = last.device();
            let state = |(row, &end): (usize, &usize)| {
                let row = Tensor::from_data([row as i32], &device);
                last.clone()
                    .select(0, row)
                    .narrow(1, end, 1)
                    .flatten::<2>(1, 2)
            };
            let states = ends.iter().enumerate().map(state).collect();
            projection.forward(Tensor::cat(states, 0))
        });
        Ok(EncodedText {
            last_hidden_state: last,
            penultimate_hidden_state: penultimate,
            projected,
        })
    }

    /// The place of the end-of-text token in each row.
    ///
    /// Configurations of the published encoders say 2 for it, and transformers then takes the
    /// largest id, which is the end-of-text token of the published vocabulary.
    fn ends(&self, tokens: &Tensor<2, Int>) -> Result<Vec<usize>> {
        let [rows, count] = tokens.dims();
        let most = self.config.max_position_embeddings;
        check_shape(
            "the prompts' tokens",
            &[rows, count.clamp(1, most)],
            &[rows, count],
            "cut the prompts to the encoder's length",
        )?;
        let ids = read_f32(tokens.clone().float(), "the prompts' tokens")?;
        let legal = 0.0..self.config.vocab_size as f32;
        if let Some(id) = ids.iter().find(|id| !legal.contains(*id)) {
            return Err(Error::InvalidSetting {
                what: format!("token {id} is not among the {} of the encoder", legal.end),
                remedy: "use the tokenizer of this encoder",
            });
        }
        let end = |row: &[f32]| match self.config.eos_token_id {
            2 => (0..count).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])),
            end => row.iter().position(|&id| id == end as f32),
        };
        let ends = ids.chunks(count).map(end);
        Ok(ends.map(Option::unwrap_or_default).collect())
    }
}

#[cfg(test)]
mod tests;
