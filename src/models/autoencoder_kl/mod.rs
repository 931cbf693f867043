//! diffusers' `AutoencoderKL`: pictures to latents and back.

mod blocks;
mod config;

pub use config::AutoencoderKlConfig;

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use self::blocks::{Decoder, Encoder};
use super::{LoadNote, folder, location, ops, settings};
use crate::error::{Error, Result, check_shape};

/// The limits between which diffusers clamps the logarithm of the variance.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

/// The autoencoder of Stable Diffusion 1, 2, XL and 3: diffusers' `AutoencoderKL`, with or without
/// quantisation convolutions.
///
/// # Latents
/// A latent diffusion model works on `(z − shift) · scale`, where `z` is the mode of the encoder's
/// Gaussian. Use the mode and not a sample: nearest neighbours, fingerprints and levels need the
/// same latent for the same picture every time.
///
/// # Example
/// ```
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::AutoencoderKlConfig;
///
/// let device = Device::flex();
/// let config = AutoencoderKlConfig {
///     block_out_channels: vec![32, 32],
///     layers_per_block: 1,
///     ..AutoencoderKlConfig::default()
/// };
/// let autoencoder = config.init(&device)?;
/// let latent = autoencoder.latent(Tensor::zeros([1, 3, 16, 16], &device))?;
/// assert_eq!(latent.dims(), [1, 4, 8, 8]);
/// assert_eq!(autoencoder.image(latent)?.dims(), [1, 3, 16, 16]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    #[module(skip)]
    config: AutoencoderKlConfig,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

/// The Gaussian of the latents of pictures.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// Its mean, which is also its mode: `[rows, latent_channels, height, width]`.
    pub mean: Tensor<4>,
    /// The logarithm of its variance, from −30 to 20.
    pub log_variance: Tensor<4>,
}

impl AutoencoderKl {
    /// Reads a diffusers folder: the autoencoder's own, or that of a pipeline, whose `vae` is read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`], [`Error::UnsupportedConfig`] and
    /// [`Error::WeightMismatch`] as for [`UNet2d::load`](super::UNet2d::load).
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = location::part(folder.as_ref(), "vae")?;
        let config = AutoencoderKlConfig::from_file(folder.join(location::CONFIG))?;
        let (mut autoencoder, notes) = folder::load_weights(config.init(device)?, &folder)?;
        autoencoder.notes = notes;
        Ok(autoencoder)
    }

    /// Writes a folder that [`load`](AutoencoderKl::load) and diffusers read.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`](super::UNet2d::save).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, &settings::to_text(&self.config), folder.as_ref())
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The decisions made while the network was read, to be shown to the user.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// Builds the network of a validated configuration.
    fn build(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let channels = config.latent_channels;
        let pointwise = |channels| Conv2dConfig::new([channels; 2], [1, 1]).init(device);
        Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quant_conv: config.use_quant_conv.then(|| pointwise(2 * channels)),
            post_quant_conv: config.use_post_quant_conv.then(|| pointwise(channels)),
            config: config.clone(),
            notes: Vec::new(),
        }
    }

    /// The Gaussian of the latents, before shift and scale.
    ///
    /// # Shapes
    /// - `images`: `[rows, in_channels, height, width]`, from −1 to 1; height and width are
    ///   multiples of `2^(stages − 1)`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for other channels, [`Error::InvalidSetting`] for other sizes.
    pub fn encode(&self, images: Tensor<4>) -> Result<LatentDistribution> {
        self.check_images(images.dims())?;
        let moments = self.encoder.forward(images);
        let moments = match &self.quant_conv {
            Some(convolution) => ops::convolve(convolution, moments),
            None => moments,
        };
        let channels = self.config.latent_channels;
        let (least, most) = LOG_VARIANCE;
        Ok(LatentDistribution {
            mean: moments.clone().narrow(1, 0, channels),
            log_variance: moments.narrow(1, channels, channels).clamp(least, most),
        })
    }

    /// The pictures of latents `z`, without shift and scale.
    ///
    /// # Shapes
    /// - `z`: `[rows, latent_channels, height, width]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for other channels.
    pub fn decode(&self, z: Tensor<4>) -> Result<Tensor<4>> {
        let [rows, channels, height, width] = z.dims();
        check_shape(
            "the latents",
            &[rows, self.config.latent_channels, height, width],
            &[rows, channels, height, width],
            "give latents of the autoencoder's channels",
        )?;
        let z = match &self.post_quant_conv {
            Some(convolution) => ops::convolve(convolution, z),
            None => z,
        };
        Ok(self.decoder.forward(z))
    }

    /// The latents on which the diffusion model works: `(mode − shift) · scale`.
    ///
    /// # Errors
    /// Those of [`encode`](AutoencoderKl::encode).
    pub fn latent(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        Ok(self.scaled(self.encode(images)?.mean))
    }

    /// `(z − shift) · scale`.
    pub(super) fn scaled(&self, z: Tensor<4>) -> Tensor<4> {
        z.sub_scalar(self.config.shift()) * self.config.scaling_factor
    }

    /// The pictures of latents of the diffusion model, the reverse of
    /// [`latent`](AutoencoderKl::latent).
    ///
    /// # Errors
    /// Those of [`decode`](AutoencoderKl::decode).
    pub fn image(&self, latents: Tensor<4>) -> Result<Tensor<4>> {
        self.decode((latents / self.config.scaling_factor).add_scalar(self.config.shift()))
    }

    /// Pixels per latent, along a side.
    fn unit(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    /// The shape of the latents of pictures that [`encode`](AutoencoderKl::encode) takes.
    pub(super) fn latent_shape(&self, [rows, _, height, width]: [usize; 4]) -> [usize; 4] {
        let channels = self.config.latent_channels;
        [rows, channels, height / self.unit(), width / self.unit()]
    }

    fn check_images(&self, [rows, channels, height, width]: [usize; 4]) -> Result<()> {
        check_shape(
            "the pictures",
            &[rows, self.config.in_channels, height, width],
            &[rows, channels, height, width],
            "give pictures of the autoencoder's channels",
        )?;
        let unit = self.unit();
        let works = |side: usize| side > 0 && side.is_multiple_of(unit);
        match works(height) && works(width) {
            true => Ok(()),
            false => Err(Error::InvalidSetting {
                what: format!(
                    "the pictures have {height}x{width} pixels, which is not a multiple of {unit}"
                ),
                remedy: "scale or crop the pictures to a size that the autoencoder halves evenly",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
