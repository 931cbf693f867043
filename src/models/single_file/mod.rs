//! Checkpoints of Stable Diffusion in a single file, under the names of the first latent diffusion
//! models.

mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::burn_pack;
use burn::tensor::{Device, Shape};

use self::names::UnetNames;
use super::folder::{self, StoredTensors};
use super::{
    AdditionEmbedType, AutoencoderKl, AutoencoderKlConfig, ClipActivation, ClipTextConfig,
    ClipTextEncoder, ConditionDownBlockType, ConditionUpBlockType, LoadNote, PerStage,
    UNet2dCondition, UNet2dConditionConfig,
};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::files::{invalid, replace};

const UNET: &str = "model.diffusion_model.";
const AVERAGE: &str = "model_ema.";
const AUTOENCODER: &str = "first_stage_model.";
/// The first text encoder in version 1 and in XL.
const TEXT_ENCODERS: [&str; 2] = [
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
];
/// The weight whose inputs tell version 1 from version 2.
const OF_VERSION: &str = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";
/// A weight that only XL has, and the features that it takes.
const OF_XL: (&str, usize) = ("label_emb.0.0.weight", 2816);

/// A checkpoint of Stable Diffusion 1, 2 or XL in a single `.safetensors` file.
///
/// The version is told by names and shapes, not by the file's name. The file does not say what the
/// network predicts: it is assumed to be the noise, which is wrong for Stable Diffusion 2.1 at 768
/// pixels; see [`UNet2dCondition::with_prediction_type`].
///
/// # Example
/// ```no_run
/// use siss::burn::tensor::Device;
/// use siss::models::SingleFile;
///
/// let file = SingleFile::open("v1-5-pruned-emaonly.safetensors")?;
/// let unet = file.unet(&Device::flex())?;
/// // … unlearn …
/// file.save_with(&unet, "unlearned.safetensors")?;
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct SingleFile {
    path: PathBuf,
    tensors: StoredTensors,
}

impl SingleFile {
    /// Opens a file, and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if it is not safetensors, or holds no network of this
    /// kind.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let tensors = folder::tensors(&path)?;
        match tensors.keys().any(|name| name.starts_with(UNET)) {
            true => Ok(Self { path, tensors }),
            false => Err(invalid(
                &path,
                format!(
                    "no tensor's name begins with `{UNET}`, as in a checkpoint of Stable Diffusion 1, 2 or XL"
                ),
            )),
        }
    }

    /// The UNet, of the version that the file holds. If the file also holds a moving average of its
    /// weights, the weights themselves are taken, and a note says so.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] for inpainting and other inputs; [`Error::InvalidFile`] for the
    /// refiner of XL and other networks; [`Error::WeightMismatch`] as for
    /// [`UNet2d::load`](super::UNet2d::load).
    pub fn unet(&self, device: &Device) -> Result<UNet2dCondition> {
        self.unet_with(&self.unet_config()?, device)
    }

    /// The UNet of a file with another configuration than the published ones.
    ///
    /// # Errors
    /// Those of [`unet`](SingleFile::unet).
    pub fn unet_with(
        &self,
        config: &UNet2dConditionConfig,
        device: &Device,
    ) -> Result<UNet2dCondition> {
        let unet = config.init(device)?;
        let names = unet_names(config);
        let tensors = self.renamed(&unet, UNET, |name| names.of(name))?;
        let mut notes = vec![LoadNote::NoiseAssumed { scheduler: None }];
        if self.tensors.keys().any(|name| name.starts_with(AVERAGE)) {
            let file = self.path.clone();
            notes.push(LoadNote::AverageInside { file });
        }
        let (unet, read) = folder::fill(unet, tensors, &self.path)?;
        notes.extend(read);
        Ok(unet.with_notes(notes))
    }

    /// The autoencoder, with the scale of the version that the file holds.
    ///
    /// # Errors
    /// [`Error::WeightMismatch`] as for [`UNet2d::load`](super::UNet2d::load).
    pub fn autoencoder(&self, device: &Device) -> Result<AutoencoderKl> {
        let mut config = AutoencoderKlConfig::default();
        if self.is_xl() {
            config.scaling_factor = 0.13025;
        }
        self.autoencoder_with(&config, device)
    }

    /// The autoencoder of a file with another configuration than the published ones.
    ///
    /// # Errors
    /// Those of [`autoencoder`](SingleFile::autoencoder).
    pub fn autoencoder_with(
        &self,
        config: &AutoencoderKlConfig,
        device: &Device,
    ) -> Result<AutoencoderKl> {
        let autoencoder = config.init(device)?;
        let stages = config.block_out_channels.len();
        let name = |name: &str| names::autoencoder(name, stages);
        let tensors = self.renamed(&autoencoder, AUTOENCODER, name)?;
        Ok(folder::fill(autoencoder, tensors, &self.path)?.0)
    }

    /// The text encoder of version 1, or the first one of XL.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a file without such an encoder
    /// ([`has_text_encoder`](SingleFile::has_text_encoder)); [`Error::WeightMismatch`] as for
    /// [`UNet2d::load`](super::UNet2d::load).
    pub fn text_encoder(&self, device: &Device) -> Result<ClipTextEncoder> {
        let config = ClipTextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 768,
            num_attention_heads: 12,
            hidden_act: ClipActivation::QuickGelu,
            eos_token_id: 2,
            ..ClipTextConfig::default()
        };
        self.text_encoder_with(&config, device)
    }

    /// Whether [`text_encoder`](SingleFile::text_encoder) can be read. In version 2, and the second
    /// one of XL, it has the layout of OpenCLIP, which is not read.
    pub fn has_text_encoder(&self) -> bool {
        self.text_encoder_prefix().is_some()
    }

    fn text_encoder_prefix(&self) -> Option<&'static str> {
        let has = |prefix: &&str| self.tensors.keys().any(|name| name.starts_with(*prefix));
        TEXT_ENCODERS.into_iter().find(has)
    }

    /// The text encoder of a file with another configuration than the published ones.
    ///
    /// # Errors
    /// Those of [`text_encoder`](SingleFile::text_encoder).
    pub fn text_encoder_with(
        &self,
        config: &ClipTextConfig,
        device: &Device,
    ) -> Result<ClipTextEncoder> {
        let Some(prefix) = self.text_encoder_prefix() else {
            let message = "its text encoder is not in the layout of transformers; give the folder of the encoder in the diffusers layout";
            return Err(invalid(&self.path, message));
        };
        let encoder = config.init(device)?;
        let tensors = self.renamed(&encoder, prefix, |name| Some(name.into()))?;
        Ok(folder::fill(encoder, tensors, &self.path)?.0)
    }

    /// Writes the file with another UNet of its configuration, in the types of the original.
    ///
    /// The moving average of the weights is left out, since it still knows what was unlearnt.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::WeightMismatch`] for a UNet with other tensors than the file's.
    pub fn save_with(&self, unet: &UNet2dCondition, path: impl AsRef<Path>) -> Result<()> {
        let names = unet_names(unet.config());
        let mut new = BTreeMap::new();
        for mut tensor in folder::collect(unet) {
            let place = names.of(&tensor.name).map(|name| format!("{UNET}{name}"));
            let earlier = place.and_then(|name| Some((name.clone(), self.tensors.get(&name)?)));
            let Some((place, earlier)) = earlier else {
                let detail = ": the file that was read has no place for it".to_string();
                return Err(folder::mismatch(
                    &self.path,
                    "unexpected",
                    tensor.name,
                    detail,
                ));
            };
            tensor.name = place.clone();
            new.insert(place, folder::like(tensor, earlier));
        }
        let kept = self
            .tensors
            .iter()
            .filter(|(name, _)| !name.starts_with(AVERAGE) && !new.contains_key(*name));
        let kept: Vec<burn_pack::Tensor> = kept.map(|(_, tensor)| tensor.clone()).collect();
        let tensors = new.into_values().chain(kept).collect();
        replace(path.as_ref(), |file| {
            folder::write(tensors, &folder::FileMetadata::new(), file)?;
            file.flush()
        })
    }

    /// Writes a checkpoint of version 1 from its parts, in f32.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(
        path: impl AsRef<Path>,
        unet: &UNet2dCondition,
        autoencoder: &AutoencoderKl,
        text_encoder: &ClipTextEncoder,
    ) -> Result<()> {
        let names = unet_names(unet.config());
        let stages = autoencoder.config().block_out_channels.len();
        let of_unet = named(unet, UNET, |name| names.of(name));
        let of_autoencoder = named(autoencoder, AUTOENCODER, |name| {
            names::autoencoder(name, stages)
        });
        let of_encoder = named(text_encoder, TEXT_ENCODERS[0], |name| Some(name.into()));
        let tensors = [
            of_unet,
            of_autoencoder.into_iter().map(as_convolution).collect(),
            of_encoder,
        ];
        replace(path.as_ref(), |file| {
            folder::write(tensors.concat(), &folder::FileMetadata::new(), file)?;
            file.flush()
        })
    }

    /// Whether the file is one of Stable Diffusion XL.
    fn is_xl(&self) -> bool {
        let (name, features) = OF_XL;
        let shape = self.shape(&format!("{UNET}{name}"));
        shape.is_some_and(|shape| shape.last() == Some(&features))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.to_vec())
    }

    /// The published configuration that the file's names and shapes belong to.
    fn unet_config(&self) -> Result<UNet2dConditionConfig> {
        let features = self.shape(&format!("{UNET}{OF_VERSION}"));
        let features = features.and_then(|shape| shape.last().copied());
        let mut config = match features {
            _ if self.is_xl() => xl(),
            Some(768) => version_1(),
            Some(1024) => version_2(),
            other => {
                let found = other.map_or("none".into(), |features| features.to_string());
                let message = format!(
                    "it is not a checkpoint of Stable Diffusion 1, 2 or XL: `{UNET}{OF_VERSION}` takes {found} features; the refiner of XL is not read either"
                );
                return Err(invalid(&self.path, message));
            }
        };
        let inputs = self.shape(&format!("{UNET}input_blocks.0.0.weight"));
        if let Some([_, channels, _, _]) = inputs.as_deref() {
            config.in_channels = *channels;
        }
        Ok(config)
    }

    /// The tensors of a network under its own names. All tensors that begin with `prefix` must be
    /// its.
    fn renamed<M: Module>(
        &self,
        network: &M,
        prefix: &str,
        name_in_file: impl Fn(&str) -> Option<String>,
    ) -> Result<StoredTensors> {
        let mut own = BTreeMap::new();
        for (name, shape) in folder::expected_shapes(network) {
            if let Some(place) = name_in_file(&name) {
                own.insert(format!("{prefix}{place}"), (name, shape));
            }
        }
        let mut renamed = StoredTensors::new();
        for (name, tensor) in self
            .tensors
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
        {
            let Some((own, shape)) = own.get(name) else {
                if name.ends_with(folder::POSITION_IDS) {
                    continue;
                }
                let detail = ": the network has no place for it";
                return Err(folder::mismatch(
                    &self.path,
                    "unexpected",
                    name.as_str(),
                    detail,
                ));
            };
            let mut tensor = tensor.clone();
            tensor.name = own.clone();
            // Attention of an autoencoder is stored as 1 × 1 convolutions.
            if let ([outputs, inputs, 1, 1], [_, _]) = (&tensor.shape[..], &shape[..]) {
                tensor.shape = Shape::new([*outputs, *inputs]);
            }
            renamed.insert(own.clone(), tensor);
        }
        Ok(renamed)
    }
}

/// The tensors of a network under the names of a single file.
fn named<M: Module>(
    network: &M,
    prefix: &str,
    name_in_file: impl Fn(&str) -> Option<String>,
) -> Vec<burn_pack::Tensor> {
    let tensors = folder::collect(network).into_iter();
    let tensors = tensors.filter_map(|mut tensor| {
        tensor.name = format!("{prefix}{}", name_in_file(&tensor.name)?);
        Some(tensor)
    });
    tensors.collect()
}

/// An autoencoder's tensor: attention is stored as 1 × 1 convolutions.
fn as_convolution(mut tensor: burn_pack::Tensor) -> burn_pack::Tensor {
    if let [outputs, inputs] = tensor.shape[..] {
        tensor.shape = Shape::new([outputs, inputs, 1, 1]);
    }
    tensor
}

fn unet_names(config: &UNet2dConditionConfig) -> UnetNames {
    let has_attention = |kind: &ConditionUpBlockType| *kind == ConditionUpBlockType::Attention;
    UnetNames {
        layers_per_block: config.layers_per_block,
        up_attention: config.up_block_types.iter().map(has_attention).collect(),
    }
}

fn version_1() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(super::Size::Square(64)),
        cross_attention_dim: 768,
        ..UNet2dConditionConfig::default()
    }
}

fn version_2() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(super::Size::Square(96)),
        cross_attention_dim: 1024,
        attention_head_dim: PerStage::Each(vec![5, 10, 20, 20]),
        use_linear_projection: true,
        upcast_attention: Some(true),
        ..UNet2dConditionConfig::default()
    }
}

fn xl() -> UNet2dConditionConfig {
    use ConditionDownBlockType as Down;
    use ConditionUpBlockType as Up;
    UNet2dConditionConfig {
        sample_size: Some(super::Size::Square(128)),
        block_out_channels: vec![320, 640, 1280],
        down_block_types: vec![Down::Resnet, Down::Attention, Down::Attention],
        up_block_types: vec![Up::Attention, Up::Attention, Up::Resnet],
        cross_attention_dim: 2048,
        attention_head_dim: PerStage::Each(vec![5, 10, 20]),
        transformer_layers_per_block: PerStage::Each(vec![1, 2, 10]),
        use_linear_projection: true,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(256),
        projection_class_embeddings_input_dim: Some(OF_XL.1),
        ..UNet2dConditionConfig::default()
    }
}
