//! Latents of pictures on disk, so that a picture is encoded once.

use std::io::Write;
use std::path::{Path, PathBuf};

use burn::store::burn_pack;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use sha2::{Digest, Sha256};

use super::{AutoencoderKl, folder, settings};
use crate::checkpoint::model_fingerprint;
use crate::error::{Error, Result};
use crate::files::{invalid, replace};
use crate::host::read_f32;

/// The name of the only tensor in a file.
const MEAN: &str = "mean";

/// An autoencoder whose latents are kept in a folder.
///
/// The latents are those of [`AutoencoderKl::latent`]: the mode of the distribution, never a sample
/// of it, so that a picture has the same latents in every run. Each picture has a file of its own,
/// named by the SHA-256 of the picture's values, as the encoder is given them, and of the
/// autoencoder's weights and settings. So a picture that was changed, resized or mirrored, and a
/// picture under another autoencoder, has another name and is encoded. Files are never removed.
///
/// # Example
/// ```
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::{AutoencoderKlConfig, LatentCache};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// let device = Device::flex();
/// let config = AutoencoderKlConfig {
///     block_out_channels: vec![32],
///     down_block_types: vec!["DownEncoderBlock2D".into()],
///     up_block_types: vec!["UpDecoderBlock2D".into()],
///     ..AutoencoderKlConfig::default()
/// };
/// let mut cache = LatentCache::open(config.init(&device)?, folder)?;
/// let pictures = Tensor::zeros([1, 3, 8, 8], &device);
/// let first = cache.latent(pictures.clone())?;
/// let again = cache.latent(pictures)?;
/// assert_eq!(first.into_data(), again.into_data());
/// assert_eq!((cache.encoded(), cache.read()), (1, 1));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct LatentCache {
    autoencoder: AutoencoderKl,
    folder: PathBuf,
    network: String,
    encoded: usize,
    read: usize,
}

impl LatentCache {
    /// Keeps the latents in this folder, which is created if necessary.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DeviceRead`].
    pub fn open(autoencoder: AutoencoderKl, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(Error::io("creating", &folder))?;
        let weights = model_fingerprint(&autoencoder)?;
        Ok(Self {
            network: format!("{weights} {}", settings::to_text(autoencoder.config())),
            autoencoder,
            folder,
            encoded: 0,
            read: 0,
        })
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &AutoencoderKl {
        &self.autoencoder
    }

    /// The number of pictures that were encoded.
    pub fn encoded(&self) -> usize {
        self.encoded
    }

    /// The number of pictures whose latents were read from the folder.
    pub fn read(&self) -> usize {
        self.read
    }

    /// The latents of pictures, as [`AutoencoderKl::latent`], from the folder where it has them.
    ///
    /// Pictures are encoded one by one, so that the latents of a picture do not depend on the
    /// others.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, in_channels, height, width]`, from −1 to 1
    ///
    /// # Errors
    /// Those of [`AutoencoderKl::latent`]; [`Error::Io`]; [`Error::InvalidFile`] with the first
    /// file of the folder that is damaged.
    pub fn latent(&mut self, pictures: Tensor<4>) -> Result<Tensor<4>> {
        let rows = 0..pictures.dims()[0];
        let means = rows.map(|row| self.mean(pictures.clone().narrow(0, row, 1)));
        let means = means.collect::<Result<Vec<_>>>()?;
        Ok(self.autoencoder.scaled(Tensor::cat(means, 0)))
    }

    /// The mean of the latents of one picture.
    fn mean(&mut self, picture: Tensor<4>) -> Result<Tensor<4>> {
        let path = self.path(&picture)?;
        if path.exists() {
            let mean = self.stored(&path, &picture)?;
            self.read += 1;
            return Ok(mean);
        }
        let mean = self.autoencoder.encode(picture)?.mean;
        self.encoded += 1;
        store(&mean, &path)?;
        Ok(mean)
    }

    fn path(&self, picture: &Tensor<4>) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        digest.update(format!("{} {:?}\n", self.network, picture.dims()));
        for value in read_f32(picture.clone(), "a picture")? {
            digest.update(value.to_le_bytes());
        }
        Ok(self
            .folder
            .join(format!("{:x}.latents.safetensors", digest.finalize())))
    }

    /// The mean of a picture's latents in a file.
    fn stored(&self, path: &Path, picture: &Tensor<4>) -> Result<Tensor<4>> {
        let broken = |reason: String| {
            invalid(
                path,
                format!("{reason}; remove the file, and the picture is encoded again"),
            )
        };
        let mut tensors = folder::tensors(path).map_err(|error| match error {
            Error::InvalidFile { message, .. } => broken(message),
            other => other,
        })?;
        let shape = self.autoencoder.latent_shape(picture.dims());
        let mean = tensors
            .remove(MEAN)
            .filter(|mean| mean.dtype == DType::F32 && mean.shape[..] == shape);
        let mean =
            mean.ok_or_else(|| broken("it does not hold the latents of a picture".into()))?;
        let unreadable = |error: String| broken(format!("its values cannot be read: {error}"));
        let (_, dtype, shape, _, bytes) = mean
            .into_parts()
            .map_err(|error| unreadable(error.to_string()))?;
        let data = TensorData::try_from_bytes(bytes, shape, dtype)
            .map_err(|error| unreadable(error.to_string()))?;
        match data.clone().iter::<f32>().all(f32::is_finite) {
            true => Ok(Tensor::from_data(data, &picture.device())),
            false => Err(broken("it holds NaN or an infinity".into())),
        }
    }
}

fn store(mean: &Tensor<4>, path: &Path) -> Result<()> {
    let shape = Shape::new(mean.dims());
    let values = read_f32(mean.clone(), "latents")?;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let length = bytes.len();
    let read = move || Ok(burn::tensor::Bytes::from_bytes_vec(bytes.clone()));
    let mean = burn_pack::Tensor::deferred(MEAN.into(), DType::F32, shape, None, length, read);
    replace(path, |file| {
        folder::write(vec![mean], &folder::FileMetadata::new(), file)?;
        file.flush()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use crate::models::AutoencoderKlConfig;
    use burn::tensor::Device;
    use std::fs;

    fn autoencoder() -> AutoencoderKl {
        let config = AutoencoderKlConfig {
            block_out_channels: vec![8, 8],
            down_block_types: vec!["DownEncoderBlock2D".into(); 2],
            up_block_types: vec!["UpDecoderBlock2D".into(); 2],
            layers_per_block: 1,
            norm_num_groups: 4,
            scaling_factor: 0.5,
            shift_factor: Some(0.25),
            ..AutoencoderKlConfig::default()
        };
        config.init(&Device::flex()).unwrap()
    }

    fn pictures(rows: usize) -> Tensor<4> {
        normal_noise(
            [rows, 3, 8, 8],
            1,
            0,
            0,
            Stream::Evaluation,
            &Device::flex(),
        )
    }

    fn bits(latents: Tensor<4>) -> Vec<u32> {
        let values: Vec<f32> = latents.into_data().try_to_vec().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// The second run reads what the first one encoded, bit by bit, and encodes what is new.
    #[test]
    fn a_picture_is_encoded_once() {
        let place = tempfile::tempdir().unwrap();
        let autoencoder = autoencoder();
        let open = || LatentCache::open(autoencoder.clone(), place.path()).unwrap();
        let mut first = open();
        let latents = first.latent(pictures(3)).unwrap();
        assert_eq!((first.encoded(), first.read()), (3, 0));
        let plain = autoencoder.latent(pictures(3)).unwrap();
        let difference = (plain - latents.clone()).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");
        let mut second = open();
        let again = second.latent(pictures(4)).unwrap();
        assert_eq!((second.encoded(), second.read()), (1, 3));
        assert_eq!(bits(latents), bits(again.narrow(0, 0, 3)));
    }

    #[test]
    fn another_network_or_picture_is_another_key() {
        let place = tempfile::tempdir().unwrap();
        let (one, other) = (autoencoder(), autoencoder());
        LatentCache::open(one, place.path())
            .unwrap()
            .latent(pictures(1))
            .unwrap();
        let mut cache = LatentCache::open(other, place.path()).unwrap();
        cache.latent(pictures(1)).unwrap();
        cache.latent(pictures(1).flip([3])).unwrap();
        assert_eq!((cache.encoded(), cache.read()), (2, 0));
    }

    #[test]
    fn a_broken_file_is_named_with_what_to_do() {
        let place = tempfile::tempdir().unwrap();
        let autoencoder = autoencoder();
        let mut cache = LatentCache::open(autoencoder, place.path()).unwrap();
        cache.latent(pictures(1)).unwrap();
        let file = fs::read_dir(place.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let whole = fs::read(&file).unwrap();
        let renamed = String::from_utf8_lossy(&whole)
            .replace("mean", "mode")
            .into_bytes();
        // The latents of a picture of another size, such as those of an edited cache.
        let larger = pictures(1).repeat_dim(3, 2);
        let path = cache.path(&larger).unwrap();
        cache.latent(larger).unwrap();
        let other_size = fs::read(&path).unwrap();
        let mut infinite = whole.clone();
        let end = infinite.len();
        infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        for broken in [
            &whole[..whole.len() / 2],
            b"",
            &renamed[..],
            &infinite[..],
            &other_size[..],
        ] {
            fs::write(&file, broken).unwrap();
            let error = cache.latent(pictures(1)).unwrap_err().to_string();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(
                error.contains(&name) && error.contains("remove the file"),
                "{error}"
            );
        }
        fs::remove_file(&file).unwrap();
        cache.latent(pictures(1)).unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
}
