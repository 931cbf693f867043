//! What the points of a model are: pictures as they are, or the latents of an autoencoder.

use std::path::Path;

use siss::Result as SissResult;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Format, ImageFiles, Images, Transparency};
use siss::models::{AutoencoderKl, LatentCache, ModelFolder};

use super::source::Source;
use super::{Named, Result};
use crate::progress::Progress;

/// Most numbers in images that are kept in memory: 8 GiB of them.
pub const MOST_VALUES: usize = 1 << 31;
/// Numbers of a picture's colours.
const COLOURS: usize = 3;
/// The part of a pipeline that makes latents.
const AUTOENCODER: &str = "vae";
/// Why latents are not streamed: encoding takes the device of the model, and the most memory of
/// all.
pub const NO_STREAM: &str = "--stream is for models of pixels; the latents of these images are held in memory, or fewer steps take fewer images";

/// What a network takes and predicts.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    pub channels: usize,
    pub predicted: usize,
    /// Height and width, if the configuration says them.
    pub size: Option<[usize; 2]>,
}

/// The points of a model.
pub enum Space {
    /// Pictures, with the values of black and white.
    Pixels([f64; 2]),
    Latents(Box<Latents>),
}

/// An autoencoder, with or without a folder of latents.
pub enum Latents {
    /// With the number of pictures that were encoded.
    Plain(AutoencoderKl, usize),
    Cached(LatentCache),
}

impl Latents {
    /// Reads a pipeline's autoencoder.
    pub fn read(
        source: &Source,
        cache: Option<&Path>,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let network = source.autoencoder(device)?;
        for note in network.notes() {
            progress.say(&note.to_string());
        }
        Ok(match cache {
            Some(folder) => Self::Cached(LatentCache::open(network, folder)?),
            None => Self::Plain(network, 0),
        })
    }

    fn network(&self) -> &AutoencoderKl {
        match self {
            Self::Plain(network, _) => network,
            Self::Cached(cache) => cache.autoencoder(),
        }
    }

    /// The latents of pictures: the mode, never a sample.
    fn encode(&mut self, pictures: Tensor<4>) -> SissResult<Tensor<4>> {
        let latents = match self {
            Self::Plain(network, encoded) => {
                *encoded += pictures.dims()[0];
                network.latent(pictures)
            }
            Self::Cached(cache) => cache.latent(pictures),
        };
        Ok(latents?.inner())
    }

    /// The pictures of latents, one after another, because decoding takes the most memory of all.
    fn decode(&self, latents: &Tensor<4>) -> SissResult<Tensor<4>> {
        let rows = 0..latents.dims()[0];
        let pictures = rows.map(|row| {
            let picture = self.network().image(latents.clone().narrow(0, row, 1))?;
            Ok(picture.inner().clamp(-1.0, 1.0))
        });
        Ok(Tensor::cat(pictures.collect::<SissResult<Vec<_>>>()?, 0))
    }

    /// The number of pictures whose latents were read from the cache, and that were encoded.
    fn cached(&self) -> [usize; 2] {
        match self {
            Self::Plain(_, encoded) => [0, *encoded],
            Self::Cached(cache) => [cache.read(), cache.encoded()],
        }
    }

    /// How many times smaller latents are than pictures.
    fn reduction(&self) -> usize {
        let stages = self.network().config().block_out_channels.len();
        1 << stages.saturating_sub(1)
    }

    /// Rejects a network that takes or predicts something else than the latents of RGB pictures.
    fn check(&self, input: Input, folder: &str) -> Result<()> {
        let config = self.network().config();
        let latent = config.latent_channels;
        let Input {
            channels,
            predicted,
            ..
        } = input;
        if channels != latent || predicted != latent || config.in_channels != COLOURS {
            return Err(format!(
                "{folder}: the network takes {channels} channels and predicts {predicted}, and the autoencoder makes {latent} of {} colours; \
                 only networks that take and predict the latents of RGB pictures are unlearned here, and none for inpainting",
                config.in_channels
            )
            .into());
        }
        Ok(())
    }
}

impl Space {
    /// Latents if the pipeline has an autoencoder, and pixels otherwise.
    pub fn read(
        named: &Named<'_>,
        source: &Source,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let cache = named.conditions.cache.as_deref();
        match (has_autoencoder(source.folder())?, cache) {
            (true, _) if named.range != [-1.0, 1.0] => {
                Err("--range: autoencoders take pictures from -1 to 1; leave it out".into())
            }
            (true, cache) => {
                let latents = Latents::read(source, cache, device, progress)?;
                Ok(Self::Latents(Box::new(latents)))
            }
            (false, None) => Ok(Self::Pixels(named.range)),
            (false, Some(_)) => Err(format!(
                "--cache is of no use for the model of {}: it keeps latents, and the points of this model are pixels",
                path_text(named.path)
            )
            .into()),
        }
    }

    /// Whether points are pixels, which any thread makes of an image.
    pub fn is_pixels(&self) -> bool {
        matches!(self, Self::Pixels(_))
    }

    /// The values of black and white in points, if these are pictures.
    pub fn range(&self) -> Option<[f64; 2]> {
        match self {
            Self::Pixels(range) => Some(*range),
            Self::Latents(_) => None,
        }
    }

    fn reduction(&self) -> usize {
        match self {
            Self::Pixels(_) => 1,
            Self::Latents(latents) => latents.reduction(),
        }
    }

    /// The height and width of the pictures, if the network's configuration says them.
    pub fn picture_size(&self, input: Input) -> Option<[usize; 2]> {
        let larger = |side: usize| side.saturating_mul(self.reduction());
        input.size.map(|sides| sides.map(larger))
    }

    /// The format of the pictures; those of a folder determine the size if the model in `model`
    /// does not.
    pub fn format(
        &self,
        input: Input,
        found: &ImageFiles,
        transparency: Transparency,
        model: &Path,
    ) -> Result<Format> {
        let folder = path_text(model);
        let channels = match self {
            Self::Pixels(_) => colours(input, &folder)?,
            Self::Latents(latents) => {
                latents.check(input, &folder)?;
                COLOURS
            }
        };
        let configured = self.picture_size(input);
        // If none can be read, reading all of them will say why.
        let [height, width] = configured.or_else(|| found.first_size()).unwrap_or([1, 1]);
        check_size([height, width], &folder)?;
        Ok(Format {
            channels,
            height,
            width,
            is_configured: configured.is_some(),
            range: self.range().unwrap_or([-1.0, 1.0]),
            transparency,
        })
    }

    /// The shape of a point, without rows.
    pub fn shape(&self, input: Input, format: Format) -> [usize; 3] {
        let reduction = self.reduction();
        [
            input.channels,
            format.height / reduction,
            format.width / reduction,
        ]
    }

    /// What is kept besides the network: names and numbers of values.
    pub fn kept(&self, shape: [usize; 3], images: usize) -> Vec<(&'static str, usize)> {
        match self {
            Self::Pixels(_) => Vec::new(),
            Self::Latents(latents) => vec![
                ("the autoencoder", latents.network().num_params()),
                ("latents", images * shape.iter().product::<usize>()),
            ],
        }
    }

    /// The points of pictures.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, channels, height, width]`, in the range of [`format`](Self::format)
    pub fn encode(&mut self, pictures: Tensor<4>) -> SissResult<Tensor<4>> {
        match self {
            Self::Pixels(_) => Ok(pictures),
            Self::Latents(latents) => latents.encode(pictures),
        }
    }

    /// The points of images.
    pub fn points(
        &mut self,
        images: &Images,
        device: &Device,
        progress: &dyn Progress,
    ) -> SissResult<Tensor<4>> {
        let Self::Latents(latents) = self else {
            return Ok(images.all(device));
        };
        let rows = (0..images.len()).map(|index| {
            progress.phase(&format!("encoding images: {index} of {}", images.len()));
            latents.encode(images.tensor(index..index + 1, device))
        });
        Ok(Tensor::cat(rows.collect::<SissResult<Vec<_>>>()?, 0))
    }

    /// The pictures of points, with values from −1 to 1.
    pub fn pictures(&self, points: &Tensor<4>) -> SissResult<Tensor<4>> {
        match self {
            Self::Pixels(range) => Ok(from_range(points, *range)),
            Self::Latents(latents) => latents.decode(points),
        }
    }

    /// The number of pictures whose latents were read from the cache, and that were encoded.
    pub fn cached(&self) -> Option<[usize; 2]> {
        match self {
            Self::Pixels(_) => None,
            Self::Latents(latents) => Some(latents.cached()),
        }
    }
}

/// Whether the index names an autoencoder, or there is one without an index.
fn has_autoencoder(origin: &ModelFolder) -> Result<bool> {
    Ok(match origin.index()? {
        Some(index) => index.parts.contains_key(AUTOENCODER),
        None => origin.pipeline().join(AUTOENCODER).is_dir(),
    })
}

/// The values of pictures from −1 for black to 1 for white.
pub fn from_range(images: &Tensor<4>, [black, white]: [f64; 2]) -> Tensor<4> {
    match [black, white] {
        [-1.0, 1.0] => images.clone(),
        _ => (images.clone() - black) * (2.0 / (white - black)) - 1.0,
    }
}

/// The channels of a network of pixels.
fn colours(input: Input, folder: &str) -> Result<usize> {
    match (input.channels, input.predicted) {
        (1, 1) | (COLOURS, COLOURS) => Ok(input.channels),
        (channels, out) => Err(format!(
            "{folder}: the model takes {channels} channels and predicts {out}; only models of 1 (grey) or 3 (RGB) on both sides are unlearned here, \
             and none that also learn the variance"
        )
        .into()),
    }
}

/// Rejects a size that no image has.
fn check_size([height, width]: [usize; 2], folder: &str) -> Result<()> {
    let pixels = height.saturating_mul(width);
    match (1..=MOST_VALUES / 128).contains(&pixels) {
        true => Ok(()),
        false => Err(format!(
            "{folder}: `sample_size` is {height}x{width}, which is not a valid image size"
        )
        .into()),
    }
}
