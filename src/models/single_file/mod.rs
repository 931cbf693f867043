//! Checkpoints of Stable Diffusion in a single file, under the names of the first latent diffusion
//! models.

mod names;
mod open_clip;
#[cfg(test)]
mod tests;
mod versions;

pub(super) use self::names::UnetNames;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::burn_pack;
use burn::tensor::{Device, Shape};

use self::versions::{
    OF_XL, encoder_of_version_1, encoder_of_version_2, second_encoder_of_xl, version_1, version_2,
    xl,
};
use super::folder::{self, FileMetadata, SafeFile, StoredTensors};
use super::{
    AutoencoderKl, AutoencoderKlConfig, ClipTextConfig, ClipTextEncoder, LoadNote, UNet2dCondition,
    UNet2dConditionConfig,
};
use crate::error::{Error, Result};
use crate::files::{invalid, replace};

const UNET: &str = "model.diffusion_model.";
const AVERAGE: &str = "model_ema.";
const AUTOENCODER: &str = "first_stage_model.";
/// The text encoders of each version, by their places in a pipeline.
const TEXT_ENCODERS: [&[EncoderPlace]; 2] = [
    &[
        EncoderPlace {
            prefix: "cond_stage_model.transformer.",
            layout: EncoderLayout::Transformers,
        },
        EncoderPlace {
            prefix: "conditioner.embedders.0.transformer.",
            layout: EncoderLayout::Transformers,
        },
        EncoderPlace {
            prefix: "cond_stage_model.model.",
            layout: EncoderLayout::OpenClipWithLast,
        },
    ],
    &[EncoderPlace {
        prefix: "conditioner.embedders.1.model.",
        layout: EncoderLayout::OpenClip,
    }],
];
/// The weight whose inputs tell version 1 from version 2.
const OF_VERSION: &str = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";

/// Where a version has a text encoder.
#[derive(Debug, Clone, Copy)]
struct EncoderPlace {
    prefix: &'static str,
    layout: EncoderLayout,
}

/// How a file holds a text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EncoderLayout {
    /// As the library transformers does.
    Transformers,
    OpenClip,
    /// As OpenCLIP does, with a last layer that the network does not have.
    OpenClipWithLast,
}

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
    metadata: FileMetadata,
}

impl SingleFile {
    /// Opens a file, and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if it is not safetensors, or holds no network of this
    /// kind; [`Error::UnsupportedTensorType`] for floats of eight bits.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let SafeFile { tensors, metadata } = folder::read(&path)?;
        match tensors.keys().any(|name| name.starts_with(UNET)) {
            true => Ok(Self {
                path,
                tensors,
                metadata,
            }),
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
        let names = unet_names(&unet);
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

    /// The text encoder of version 1 or 2, or the first one of XL.
    ///
    /// That of version 2 is the network of the published folders: without the last layer of the
    /// file, and without its projection, which the version does not use.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a file without such an encoder
    /// ([`has_text_encoder`](SingleFile::has_text_encoder)); [`Error::WeightMismatch`] as for
    /// [`UNet2d::load`](super::UNet2d::load).
    pub fn text_encoder(&self, device: &Device) -> Result<ClipTextEncoder> {
        let config = match self.encoder(0)?.layout {
            EncoderLayout::Transformers => encoder_of_version_1(),
            _ => encoder_of_version_2(),
        };
        self.text_encoder_with(&config, device)
    }

    /// The second text encoder of XL, with its projection.
    ///
    /// # Errors
    /// Those of [`text_encoder`](SingleFile::text_encoder), where
    /// [`has_text_encoder_2`](SingleFile::has_text_encoder_2) tells whether the file has it.
    pub fn text_encoder_2(&self, device: &Device) -> Result<ClipTextEncoder> {
        self.text_encoder_2_with(&second_encoder_of_xl(), device)
    }

    /// Whether the file has the encoder that [`text_encoder`](SingleFile::text_encoder) reads. Some
    /// hold the UNet alone.
    pub fn has_text_encoder(&self) -> bool {
        self.encoder(0).is_ok()
    }

    /// Whether the file has the encoder that [`text_encoder_2`](SingleFile::text_encoder_2) reads.
    pub fn has_text_encoder_2(&self) -> bool {
        self.encoder(1).is_ok()
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
        self.read_encoder(self.encoder(0)?, config, device)
    }

    /// The second text encoder of a file with another configuration than the published one.
    ///
    /// # Errors
    /// Those of [`text_encoder_2`](SingleFile::text_encoder_2).
    pub fn text_encoder_2_with(
        &self,
        config: &ClipTextConfig,
        device: &Device,
    ) -> Result<ClipTextEncoder> {
        self.read_encoder(self.encoder(1)?, config, device)
    }

    /// Where the file has the encoder of a place in the pipeline, counted from 0.
    fn encoder(&self, place: usize) -> Result<EncoderPlace> {
        let has = |it: &&EncoderPlace| self.tensors.keys().any(|name| name.starts_with(it.prefix));
        let mut places = TEXT_ENCODERS.get(place).into_iter().copied().flatten();
        places.find(has).copied().ok_or_else(|| {
            let message = format!(
                "it does not hold {} text encoder(s); take the others from a folder in the diffusers layout",
                place + 1
            );
            invalid(&self.path, message)
        })
    }

    fn read_encoder(
        &self,
        EncoderPlace { prefix, layout }: EncoderPlace,
        config: &ClipTextConfig,
        device: &Device,
    ) -> Result<ClipTextEncoder> {
        let encoder = config.init(device)?;
        let last = match layout {
            EncoderLayout::Transformers => {
                let tensors = self.renamed(&encoder, prefix, |name| Some(name.into()))?;
                return Ok(folder::fill(encoder, tensors, &self.path)?.0);
            }
            EncoderLayout::OpenClip => None,
            EncoderLayout::OpenClipWithLast => Some(config.num_hidden_layers),
        };
        let expected = folder::expected_shapes(&encoder);
        let (tensors, taken) = open_clip::unpacked(&self.tensors, prefix, &expected, &self.path)?;
        let mut others = self.tensors.keys().filter(|name| !taken.contains(*name));
        let is_unexpected = |name: &&String| {
            let inner = name.strip_prefix(prefix);
            inner.is_some_and(|name| !open_clip::is_unused(name, last))
        };
        match others.find(is_unexpected) {
            None => Ok(folder::fill(encoder, tensors, &self.path)?.0),
            Some(name) => Err(self.without_place(name)),
        }
    }

    /// Writes the file with another UNet of its configuration, in the types of the original, with
    /// everything else that it holds and the metadata of its header, except hashes of the weights.
    ///
    /// The moving average of the weights is left out, since it still knows what was unlearnt.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::WeightMismatch`] for a UNet with other tensors than the file's.
    pub fn save_with(&self, unet: &UNet2dCondition, path: impl AsRef<Path>) -> Result<()> {
        self.save_with_encoders(unet, &[], path)
    }

    /// Like [`save_with`](SingleFile::save_with), with other text encoders too, in the order of the
    /// pipeline and each in the layout that it has in the file.
    ///
    /// # Errors
    /// Those of [`save_with`](SingleFile::save_with); [`Error::InvalidFile`] for more encoders than
    /// the file has.
    pub fn save_with_encoders(
        &self,
        unet: &UNet2dCondition,
        encoders: &[&ClipTextEncoder],
        path: impl AsRef<Path>,
    ) -> Result<()> {
        let names = unet_names(unet);
        let mut new = named(unet, UNET, |name| names.of(name));
        for (place, encoder) in encoders.iter().enumerate() {
            let EncoderPlace { prefix, layout } = self.encoder(place)?;
            new.extend(match layout {
                EncoderLayout::Transformers => named(*encoder, prefix, |name| Some(name.into())),
                _ => open_clip::packed(folder::collect(*encoder), prefix),
            });
        }
        let new = new.into_iter().map(|tensor| self.in_place(tensor));
        let mut tensors = new.collect::<Result<Vec<_>>>()?;
        let replaced: BTreeSet<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        for tensor in self.tensors.values() {
            let name = &tensor.name;
            match replaced.contains(name) || name.starts_with(AVERAGE) {
                true => {}
                // It would be of the model before.
                false if name.starts_with(UNET) => {
                    let detail = ": the UNet has no such tensor";
                    return Err(folder::mismatch(&self.path, "missing", name, detail));
                }
                false => tensors.push(tensor.clone()),
            }
        }
        replace(path.as_ref(), |file| {
            folder::write(tensors, &self.metadata, file)?;
            file.flush()
        })
    }

    /// A new tensor in the shape and the type of the one that the file has under its name.
    fn in_place(&self, tensor: burn_pack::Tensor) -> Result<burn_pack::Tensor> {
        let Some(earlier) = self.tensors.get(&tensor.name) else {
            return Err(folder::mismatch(
                &self.path,
                "unexpected",
                tensor.name,
                ": the file that was read has no place for it",
            ));
        };
        // Linear layers may be 1 × 1 convolutions.
        let sizes = |shape: &Shape| Vec::from_iter(shape.iter().copied().filter(|size| *size != 1));
        if sizes(&tensor.shape) != sizes(&earlier.shape) {
            let (new, old) = (&tensor.shape[..], &earlier.shape[..]);
            let detail = format!(": its shape is {new:?}, that in the file {old:?}");
            return Err(folder::mismatch(
                &self.path,
                "misshapen",
                tensor.name,
                detail,
            ));
        }
        Ok(folder::like(tensor, earlier))
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
        let names = unet_names(unet);
        let stages = autoencoder.config().block_out_channels.len();
        let of_unet = named(unet, UNET, |name| names.of(name));
        let of_autoencoder = named(autoencoder, AUTOENCODER, |name| {
            names::autoencoder(name, stages)
        });
        let of_encoder = named(text_encoder, TEXT_ENCODERS[0][0].prefix, |name| {
            Some(name.into())
        });
        let tensors = [
            of_unet,
            of_autoencoder.into_iter().map(as_convolution).collect(),
            of_encoder,
        ];
        replace(path.as_ref(), |file| {
            folder::write(tensors.concat(), &FileMetadata::new(), file)?;
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
                return Err(self.without_place(name));
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

    fn without_place(&self, name: &str) -> Error {
        let detail = ": the network has no place for it";
        folder::mismatch(&self.path, "unexpected", name, detail)
    }
}

/// The tensors of a network under the names of a single file.
fn named<M: Module>(
    network: &M,
    prefix: &str,
    name_in_file: impl Fn(&str) -> Option<String>,
) -> Vec<burn_pack::Tensor> {
    let tensors = folder::collect(network).into_iter();
    let tensors = tensors.map(|mut tensor| {
        let name = name_in_file(&tensor.name).unwrap_or(tensor.name);
        tensor.name = format!("{prefix}{name}");
        tensor
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

fn unet_names(unet: &UNet2dCondition) -> UnetNames {
    let shapes = folder::expected_shapes(unet);
    UnetNames::of_tensors(shapes.keys().map(String::as_str))
}
