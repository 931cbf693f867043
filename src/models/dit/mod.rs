//! diffusers' `DiTTransformer2DModel`: a class-conditional diffusion transformer.

mod config;

pub use config::DitConfig;

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor};

use super::condition::check_labels;
use super::layers::{
    Attention, AttentionConfig, FeedForward, TimestepEmbedding, adaptive_norm, modulate,
    network_timesteps, patch_convolution, positions, sinusoidal_embedding, split, unpatchify,
};
use super::ops::Activation;
use super::unet2d::prediction_type;
use super::{LoadNote, folder, location, ops, settings};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_shape};
use crate::process::PredictionType;

/// Sinusoids of a timestep.
const SINUSOIDS: usize = 256;

/// A class-conditional diffusion transformer: diffusers' `DiTTransformer2DModel`.
///
/// The condition holds the labels, `[rows]`; the label after the last class is the null class of
/// classifier-free guidance, [`null_class`](Dit::null_class).
///
/// # Shapes
/// Input `[rows, in_channels, side, side]`, whose side is a multiple of the patch. If there are
/// twice as many output channels, the second half is a variance: it is a part of
/// [`forward`](Dit::forward), and `predict` drops it.
///
/// # Example
/// ```
/// use siss::Denoiser;
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::DitConfig;
///
/// let device = Device::flex();
/// let config = DitConfig {
///     num_attention_heads: 2,
///     attention_head_dim: 8,
///     num_layers: 2,
///     sample_size: 8,
///     ..DitConfig::default()
/// };
/// let dit = config.init(&device)?;
/// let labels = Tensor::from_data([3, dit.null_class() as i32], &device);
/// let (noisy, timesteps) = (Tensor::zeros([2, 4, 8, 8], &device), Tensor::zeros([2], &device));
/// assert_eq!(dit.predict(noisy, timesteps, &labels).dims(), [2, 4, 8, 8]);
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Peebles and Xie 2023, *Scalable Diffusion Models with Transformers*.
#[derive(Module, Debug)]
pub struct Dit {
    pos_embed: Patches,
    transformer_blocks: Vec<Block>,
    proj_out_1: Linear,
    proj_out_2: Linear,
    #[module(skip)]
    config: DitConfig,
    #[module(skip)]
    prediction_type: PredictionType,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

#[derive(Module, Debug)]
struct Patches {
    proj: Conv2d,
}

/// A transformer block that timestep and class modulate.
#[derive(Module, Debug)]
struct Block {
    norm1: Norm,
    attn1: Attention,
    ff: FeedForward,
}

/// The modulation of a block, which has an embedding of timestep and class of its own.
#[derive(Module, Debug)]
struct Norm {
    emb: TimeAndClass,
    linear: Linear,
}

#[derive(Module, Debug)]
struct TimeAndClass {
    timestep_embedder: TimestepEmbedding,
    class_embedder: Classes,
}

#[derive(Module, Debug)]
struct Classes {
    embedding_table: Embedding,
}

impl TimeAndClass {
    /// # Shapes
    /// - `timesteps`, `labels`: `[rows]`; the result: `[rows, channels]`
    fn forward(&self, timesteps: Tensor<1>, labels: Tensor<1, Int>) -> Tensor<2> {
        let table = &self.class_embedder.embedding_table.weight;
        let sinusoids = sinusoidal_embedding(timesteps, SINUSOIDS, true, 1);
        self.timestep_embedder.forward(sinusoids) + table.val().select(0, labels)
    }
}

impl Block {
    fn new(config: &DitConfig, device: &Device) -> Self {
        let channels = config.channels();
        let attention = AttentionConfig {
            channels,
            context: channels,
            heads: config.num_attention_heads,
            bias: config.attention_bias,
        };
        Self {
            norm1: Norm {
                emb: TimeAndClass {
                    timestep_embedder: TimestepEmbedding::new(SINUSOIDS, channels, device),
                    class_embedder: Classes {
                        embedding_table: EmbeddingConfig::new(
                            config.num_embeds_ada_norm + 1,
                            channels,
                        )
                        .init(device),
                    },
                },
                linear: LinearConfig::new(channels, 6 * channels).init(device),
            },
            attn1: attention.init(device),
            ff: FeedForward::new(channels, Activation::GeluTanh, device),
        }
    }

    fn forward(
        &self,
        features: Tensor<3>,
        timesteps: Tensor<1>,
        labels: Tensor<1, Int>,
        epsilon: f64,
    ) -> Tensor<3> {
        let condition = silu(self.norm1.emb.forward(timesteps, labels));
        let [shift, scale, gate, shift_after, scale_after, gate_after] =
            split(self.norm1.linear.forward(condition));
        let normed = adaptive_norm(features.clone(), scale, shift);
        let features = features + self.attn1.forward(normed.clone(), normed) * gate;
        let normed = ops::standardise(features.clone(), epsilon);
        let hidden = self.ff.forward(modulate(normed, scale_after, shift_after));
        features + hidden * gate_after
    }
}

impl Dit {
    /// Reads a diffusers folder: the network's own, or that of a pipeline, whose `transformer` is
    /// read. Files of weights are chosen as by [`UNet2d::load`](super::UNet2d::load).
    ///
    /// # Errors
    /// Those of [`UNet2d::load`](super::UNet2d::load).
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let (root, folder) = (
            folder.as_ref(),
            location::part(folder.as_ref(), "transformer")?,
        );
        let mut notes = Vec::new();
        let prediction_type = prediction_type(root, &folder, &mut notes)?;
        let config = DitConfig::from_file(folder.join(location::CONFIG))?;
        let dit = config.init(device)?.with_prediction_type(prediction_type);
        let (mut dit, read) = folder::load_weights(dit, &folder)?;
        dit.notes = notes;
        dit.notes.extend(read);
        Ok(dit)
    }

    /// Sets what the network predicts: for one made by [`DitConfig::init`], or read without its
    /// scheduler's file.
    ///
    /// Times of flow matching are counted as by
    /// [`UNet2d::with_prediction_type`](super::UNet2d::with_prediction_type).
    pub fn with_prediction_type(self, prediction_type: PredictionType) -> Self {
        Self {
            prediction_type,
            ..self
        }
    }

    /// Writes a folder that [`load`](Dit::load) and diffusers read.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`](super::UNet2d::save).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, &settings::to_text(&self.config), folder.as_ref())
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// The decisions made while the network was read, to be shown to the user.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// The label that stands for no class.
    pub fn null_class(&self) -> usize {
        self.config.num_embeds_ada_norm
    }

    /// Builds the network of a validated configuration.
    fn build(config: &DitConfig, device: &Device) -> Self {
        let (channels, patch) = (config.channels(), config.patch_size);
        let outputs = patch * patch * config.outputs();
        let block = |_| Block::new(config, device);
        Self {
            pos_embed: Patches {
                proj: patch_convolution(config.in_channels, channels, patch, device),
            },
            transformer_blocks: (0..config.num_layers).map(block).collect(),
            proj_out_1: LinearConfig::new(channels, 2 * channels).init(device),
            proj_out_2: LinearConfig::new(channels, outputs).init(device),
            config: config.clone(),
            prediction_type: PredictionType::Epsilon,
            notes: Vec::new(),
        }
    }

    /// The whole output, which may hold a variance besides the prediction.
    ///
    /// # Shapes
    /// - `noisy`: `[rows, in_channels, side, side]`; `timesteps`, `labels`: `[rows]`
    /// - the result: `[rows, out_channels, side, side]`
    pub fn forward(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        labels: &Tensor<1, Int>,
    ) -> Tensor<4> {
        let (config, given) = (&self.config, noisy.dtype());
        let noisy = ops::in_type_of(noisy, &self.pos_embed.proj.weight);
        let patches = ops::convolve(&self.pos_embed.proj, noisy);
        let [_, channels, height, width] = patches.dims();
        let base = config.sample_size / config.patch_size;
        let places = positions(channels, [height, width], base, &patches.device());
        let places = ops::in_type(places, patches.dtype());
        let mut features = patches.flatten(2, 3) + places;
        for block in &self.transformer_blocks {
            let (timesteps, labels) = (timesteps.clone(), labels.clone());
            features = block.forward(features, timesteps, labels, config.norm_eps);
        }
        let features = match self.transformer_blocks.first() {
            Some(block) => {
                let condition = silu(block.norm1.emb.forward(timesteps, labels.clone()));
                let [shift, scale] = split(self.proj_out_1.forward(condition));
                adaptive_norm(features, scale, shift)
            }
            None => features,
        };
        let features = ops::project(&self.proj_out_2, features);
        let output = unpatchify(features, [height, width], config.patch_size);
        ops::in_type(output, given)
    }
}

impl Denoiser<4> for Dit {
    type Condition = Tensor<1, Int>;

    fn check_input(&self, [rows, channels, height, width]: [usize; 4]) -> Result<()> {
        check_shape(
            "the input of the transformer",
            &[rows, self.config.in_channels, height, height],
            &[rows, channels, height, width],
            "give square latents of the model's channels",
        )?;
        match height > 0 && height.is_multiple_of(self.config.patch_size) {
            true => Ok(()),
            false => Err(Error::InvalidSetting {
                what: format!(
                    "the input of the transformer has {height}x{width} pixels, its patches {}",
                    self.config.patch_size
                ),
                remedy: "give latents that whole patches cover",
            }),
        }
    }

    fn check_condition(&self, labels: &Tensor<1, Int>) -> Result<()> {
        check_labels(labels, self.config.num_embeds_ada_norm + 1)
    }

    fn predict(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        labels: &Tensor<1, Int>,
    ) -> Tensor<4> {
        let timesteps = network_timesteps(timesteps, self.prediction_type);
        let output = self.forward(noisy, timesteps, labels);
        let channels = self.config.in_channels;
        match self.config.outputs() == 2 * channels {
            true => output.narrow(1, 0, channels),
            false => output,
        }
    }

    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}

#[cfg(test)]
mod tests;
