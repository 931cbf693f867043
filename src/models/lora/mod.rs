//! LoRA files: low-rank changes of a network's weights, `W + (α / r) · B A`.

mod names;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{
    LoraAdapter, Module, ModuleMapper, ModuleVisitor, Param, ParamId, Reparameterizer,
};
use burn::store::burn_pack;
use burn::tensor::{Device, Tensor, TensorData};

use self::names::Spelling;
use self::settings::Scales;
use super::folder::{self, FileMetadata, SafeFile};
use super::single_file::UnetNames;
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_range};
use crate::files::{invalid, replace};
use crate::parameters::{Parameter, parameters};

pub use self::names::LoraPart;

/// The largest rank that is read or made.
const MAX_RANK: usize = 1 << 14;

/// A LoRA: for some layers of a network, two factors whose product is added to the weights.
///
/// It is read in the spellings of kohya's scripts and of peft and diffusers, and written in the
/// one that it came in, with its precision. kohya's files name the layers of a UNet as diffusers
/// does or, as most files for XL, as the first latent diffusion models
/// (`lora_unet_input_blocks_4_1_…`).
///
/// The metadata in the header of the file is kept too, except hashes of the weights: the facts of
/// training in a kohya file (`ss_…`), and the settings in one of diffusers. kohya's facts include
/// the words of the captions (`ss_tag_frequency`) and the names of folders.
///
/// - [`merge`](Lora::merge) adds it to a network's weights: the network can be used, trained and
///   saved as if it had been trained so.
/// - [`attach`](Lora::attach) freezes a network and trains nothing but the factors, and
///   [`trained`](Lora::trained) takes the trained factors back, to be saved: "forget this picture
///   from my LoRA".
///
/// # Scale
/// The product is multiplied by `α / r`. A kohya file holds `α`; without it, or with 0, `α = r`. A
/// file of diffusers has `lora_alpha` in the entry `lora_adapter_metadata` of its header, and a
/// peft folder in `adapter_config.json`, also beside a single file; without both the scale is 1.
///
/// # Example
/// ```no_run
/// use siss::burn::tensor::Device;
/// use siss::models::{Lora, LoraPart, UNet2dCondition};
///
/// let unet = UNet2dCondition::load("stable-diffusion", &Device::flex())?;
/// let lora = Lora::load("portrait.safetensors")?;
/// let trainable = lora.attach(unet, LoraPart::Unet)?;
/// // … train …
/// lora.trained(&trainable, LoraPart::Unet)?.save("portrait-without.safetensors")?;
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Hu et al. 2022, *LoRA: Low-Rank Adaptation of Large Language Models*, Eq. 3.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    layers: Vec<Layer>,
    metadata: FileMetadata,
    /// The settings in the file's header and beside it.
    scales: Scales,
}

/// The factors of one layer.
#[derive(Debug, Clone)]
struct Layer {
    spelling: Spelling,
    /// The layer, as its keys begin.
    stem: String,
    /// `A`: `[rank, inputs]`, or the kernel of a convolution to `rank` channels.
    down: TensorData,
    /// `B`: `[outputs, rank]`, or a 1 × 1 convolution.
    up: TensorData,
    /// `α` as the file holds it.
    alpha: Option<TensorData>,
    /// `α / r`, or what the settings of the file make of it.
    scale: f64,
}

impl Layer {
    fn rank(&self) -> usize {
        self.down.shape().first().copied().unwrap_or_default()
    }
}

impl Lora {
    /// Reads a `.safetensors` file, or a peft folder with `adapter_config.json` and
    /// `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if it is not a file of factors;
    /// [`Error::UnsupportedTensorType`]; [`Error::UnsupportedConfig`] for settings that change the
    /// product (`use_dora`, …);
    /// [`Error::WeightMismatch`] with the first tensor that is of another method (DoRA, LoHa, LoKr,
    /// differences of biases) or of no part of a pipeline, misshapen, or has no counterpart.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = match path.as_ref().is_dir() {
            true => path.as_ref().join("adapter_model.safetensors"),
            false => path.as_ref().to_path_buf(),
        };
        let SafeFile {
            tensors: stored,
            metadata,
        } = folder::read(&path)?;
        let scales = Scales::beside(&path)?.with_header(&metadata, &path)?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in stored {
            tensors.insert(name, data(tensor, &path)?);
        }
        let mut found: BTreeMap<String, names::Factors> = BTreeMap::new();
        for name in tensors.keys() {
            let key =
                names::key(name).map_err(|detail| mismatch(&path, "unexpected", name, detail))?;
            let factors = found.entry(key.stem.clone()).or_default();
            factors.add(key, name);
        }
        let mut layers = Vec::new();
        for (stem, factors) in found {
            layers.push(layer(stem, factors, &mut tensors, &scales, &path)?);
        }
        if layers.is_empty() {
            return Err(invalid(&path, "it holds no factors"));
        }
        Ok(Self {
            path,
            layers,
            metadata,
            scales,
        })
    }

    /// New factors for those layers of a network whose path ends in one of `targets`, such as
    /// `to_q`: `A` is random, `B` is 0, so that the network is unchanged before training.
    ///
    /// It is written in the spelling of diffusers. Linear layers and convolutions can have factors.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a rank of 0 or above 16384, or a scale that is not a finite number
    /// above 0; [`Error::InvalidSetting`] if no layer has such a path.
    pub fn new<M: Module>(
        network: &M,
        part: LoraPart,
        targets: &[&str],
        rank: usize,
        seed: u64,
    ) -> Result<Self> {
        let legal = (1..=MAX_RANK).contains(&rank);
        check_range("the rank", rank as f64, legal, "from 1 to 16384")?;
        let Some(device) = network.devices().first().cloned() else {
            return Err(invalid(Path::new("the network"), "it has no parameters"));
        };
        let mut layers = Vec::new();
        for (index, target) in targets_of(network).into_iter().enumerate() {
            if !targets
                .iter()
                .any(|ending| names::ends_in(&target.path, ending))
            {
                continue;
            }
            let (down, up) = target.factor_shapes(rank);
            let inputs = down[1..].iter().product();
            let stream = Stream::Own("lora");
            let random = normal_noise([rank, inputs], seed, index as u64, 0, stream, &device);
            let random = random.div_scalar(rank as f64).into_data();
            layers.push(Layer {
                spelling: Spelling::Diffusers,
                stem: format!("{}.{}", part.prefix(Spelling::Diffusers), target.path),
                down: reshaped(random, down)?,
                up: TensorData::zeros::<f32, _>(up),
                alpha: None,
                scale: 1.0,
            });
        }
        match layers.is_empty() {
            false => Ok(Self {
                path: PathBuf::new(),
                layers,
                metadata: FileMetadata::new(),
                scales: Scales::default(),
            }),
            true => Err(Error::InvalidSetting {
                what: format!(
                    "no layer of the network has a path that ends in {}",
                    targets.join(" or ")
                ),
                remedy: "name layers with weights, such as `to_q`",
            }),
        }
    }

    /// The number of layers with factors.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The number of values in the factors of a part of a pipeline.
    pub fn num_params(&self, part: LoraPart) -> usize {
        let own = self.layers.iter();
        let own = own.filter(|layer| part.has(layer.spelling, &layer.stem));
        own.map(|layer| layer.down.num_elements() + layer.up.num_elements())
            .sum()
    }

    /// Whether it has factors for a part of a pipeline.
    pub fn has(&self, part: LoraPart) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| part.has(layer.spelling, &layer.stem))
    }

    /// Adds the products to a network's weights.
    ///
    /// # Errors
    /// [`Error::WeightMismatch`] with the first factors of this part that no layer has, that have
    /// other shapes than its weight, or that are not the only ones of the layer;
    /// [`Error::InvalidFile`] if there are none of this part.
    pub fn merge<M: Module>(&self, network: M, part: LoraPart) -> Result<M> {
        let layers = self.of(&network, part)?;
        Ok(network.map(&mut Merge { layers }))
    }

    /// The network with everything frozen but these factors, which are attached to its layers.
    ///
    /// The factors are parameters of the network: a trainer trains them and nothing else. Take them
    /// back with [`trained`](Lora::trained). The network itself is not saved in this state.
    ///
    /// # Errors
    /// Those of [`merge`](Lora::merge).
    pub fn attach<M: Module>(&self, network: M, part: LoraPart) -> Result<M> {
        let layers = self.of(&network, part)?;
        Ok(network.apply_reparameterization(Attach { layers }))
    }

    /// This LoRA with the factors that a network has now, after
    /// [`attach`](Lora::attach) and training.
    ///
    /// # Errors
    /// [`Error::MissingPart`] for a network without these factors; [`Error::DeviceRead`].
    pub fn trained<M: Module>(&self, network: &M, part: LoraPart) -> Result<Self> {
        let mut factors = Factors::default();
        network.visit(&mut factors);
        let mut lora = self.clone();
        let targets = targets_of(network);
        for layer in &mut lora.layers {
            let Some(target) = part.target(&targets, layer.spelling, &layer.stem) else {
                continue;
            };
            let Some([a, b]) = factors.of(target.id) else {
                return Err(Error::MissingPart {
                    owner: format!("the layer `{}`", target.path),
                    missing: "factors",
                    remedy: "attach the LoRA to the network before training",
                });
            };
            let (down, up) = target.to_file(a, b);
            layer.down = in_place(down, &layer.down)?;
            layer.up = in_place(up, &layer.up)?;
        }
        Ok(lora)
    }

    /// Writes a file in the spelling and the precision of the one that was read, with its metadata.
    ///
    /// If there was an `adapter_config.json` beside that file, which holds the scale, it is written
    /// beside the new one.
    ///
    /// # Errors
    /// [`Error::Io`]; a file that could not be written is unchanged. [`Error::InvalidFile`] if the
    /// folder has an `adapter_config.json` with other settings; nothing is written then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.scales.write_beside(path)?;
        let mut tensors = Vec::new();
        for layer in &self.layers {
            let [down, up, alpha] = layer.spelling.keys(&layer.stem);
            tensors.push(packed(down, &layer.down));
            tensors.push(packed(up, &layer.up));
            tensors.extend(layer.alpha.as_ref().map(|value| packed(alpha, value)));
        }
        replace(path, |file| {
            folder::write(tensors, &self.metadata, file)?;
            file.flush()
        })
    }

    /// The factors of a part of a pipeline, by the weights that they belong to.
    fn of<M: Module>(&self, network: &M, part: LoraPart) -> Result<BTreeMap<ParamId, Prepared>> {
        let targets = targets_of(network);
        let mut layers = BTreeMap::new();
        for layer in &self.layers {
            if !part.has(layer.spelling, &layer.stem) {
                continue;
            }
            let Some(target) = part.target(&targets, layer.spelling, &layer.stem) else {
                let detail = ": the network has no such layer";
                return Err(mismatch(
                    &self.path,
                    "unexpected",
                    &layer.stem,
                    detail.into(),
                ));
            };
            let (down, up) = (layer.down.shape().to_vec(), layer.up.shape().to_vec());
            target
                .check(&down, &up)
                .map_err(|detail| mismatch(&self.path, "misshapen", &layer.stem, detail))?;
            let prepared = Prepared::new(target, layer)?;
            if layers.insert(target.id, prepared).is_some() {
                let detail = ": the file has factors of the same layer under another name too";
                return Err(mismatch(
                    &self.path,
                    "duplicate",
                    &layer.stem,
                    detail.into(),
                ));
            }
        }
        match layers.is_empty() {
            false => Ok(layers),
            true => Err(invalid(
                &self.path,
                format!("it holds no factors of the {part}"),
            )),
        }
    }
}

/// A weight that factors can change: that of a linear layer or a convolution.
#[derive(Debug, Clone)]
pub(super) struct Target {
    id: ParamId,
    /// The path of its layer in the network.
    path: String,
    /// The names that kohya's scripts give to that layer.
    underscored: Vec<String>,
    /// Its shape in the file: `[outputs, inputs, …]`.
    shape: Vec<usize>,
}

impl Target {
    /// The shapes of `A` and `B` in a file.
    fn factor_shapes(&self, rank: usize) -> (Vec<usize>, Vec<usize>) {
        let mut down = self.shape.clone();
        down[0] = rank;
        let mut up = vec![1; self.shape.len()];
        up[0] = self.shape[0];
        up[1] = rank;
        (down, up)
    }

    /// Why factors of these shapes do not fit. A linear layer may be a 1 × 1 convolution in the
    /// file, and the other way round.
    fn check(&self, down: &[usize], up: &[usize]) -> std::result::Result<(), String> {
        let rank = down.first().copied().unwrap_or_default();
        let inner = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
        let fits = (1..=MAX_RANK).contains(&rank)
            && inner(down) == inner(&self.shape)
            && up.first() == self.shape.first()
            && inner(up) == rank
            && up.get(1) == Some(&rank);
        match fits {
            true => Ok(()),
            false => Err(format!(
                ": its factors have the shapes {down:?} and {up:?}, the weight has {:?}",
                self.shape
            )),
        }
    }

    /// `A` and `B` of the file as burn's adapter has them: `base + scale · a b`, where the base is
    /// transposed for a linear layer.
    fn to_adapter(&self, down: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match self.shape.len() {
            2 => (down.transpose(), up.transpose()),
            _ => (up, down),
        }
    }

    /// The reverse of [`to_adapter`](Target::to_adapter).
    fn to_file(&self, a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match self.shape.len() {
            2 => (a.transpose(), b.transpose()),
            _ => (b, a),
        }
    }
}

/// The weights of a network's linear layers and convolutions.
fn targets_of<M: Module>(network: &M) -> Vec<Target> {
    let all = parameters(network);
    let names = UnetNames::of_tensors(all.iter().map(|parameter| parameter.name.as_str()));
    let target = |parameter: Parameter| {
        let path = parameter.name.strip_suffix(".weight")?.to_string();
        let mut shape = parameter.shape().to_vec();
        match shape.len() {
            // burn keeps the weights of linear layers transposed. Tables of embeddings have rank 2
            // too, but no LoRA names them.
            2 => shape.reverse(),
            4 => {}
            _ => return None,
        }
        let of_first = names.of(&parameter.name);
        let of_first = of_first.and_then(|name| Some(name.strip_suffix(".weight")?.to_string()));
        let paths = [Some(path.clone()), of_first].into_iter().flatten();
        Some(Target {
            id: parameter.id,
            path,
            underscored: paths.map(|path| path.replace('.', "_")).collect(),
            shape,
        })
    };
    let is_base = |parameter: &Parameter| !parameter.name.contains(".weight.");
    all.into_iter().filter(is_base).filter_map(target).collect()
}

/// Factors that fit a weight.
struct Prepared {
    target: Target,
    /// `A`, as a matrix, `[rank, inputs · kernel]`.
    down: TensorData,
    /// `B`, as a matrix, `[outputs, rank]`.
    up: TensorData,
    scale: f64,
}

impl Prepared {
    fn new(target: &Target, layer: &Layer) -> Result<Self> {
        let (rank, outputs) = (layer.rank(), target.shape[0]);
        let inputs = target.shape[1..].iter().product();
        Ok(Self {
            target: target.clone(),
            down: reshaped(layer.down.clone().convert::<f32>(), vec![rank, inputs])?,
            up: reshaped(layer.up.clone().convert::<f32>(), vec![outputs, rank])?,
            scale: layer.scale,
        })
    }

    /// Burn's factors on a device.
    fn factors(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let down = Tensor::from_data(self.down.clone(), device);
        let up = Tensor::from_data(self.up.clone(), device);
        self.target.to_adapter(down, up)
    }
}

struct Merge {
    layers: BTreeMap<ParamId, Prepared>,
}

impl ModuleMapper for Merge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(layer) = self.layers.remove(&param.id) else {
            return param;
        };
        param.map(|weight| {
            let (a, b) = layer.factors(&weight.device());
            let change = a.matmul(b).mul_scalar(layer.scale);
            let change = change.reshape(weight.shape()).cast(weight.dtype());
            weight + change
        })
    }
}

struct Attach {
    layers: BTreeMap<ParamId, Prepared>,
}

impl Reparameterizer for Attach {
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let layer = self.layers.remove(&param.id);
        let base = param.set_require_grad(false);
        let adapter = layer.map(|layer| {
            let (a, b) = layer.factors(&base.lazy_device());
            LoraAdapter {
                a: Param::from_tensor(a),
                b: Param::from_tensor(b),
                scale: layer.scale,
            }
        });
        (base, adapter)
    }
}

/// The factors attached to a network's weights.
#[derive(Default)]
struct Factors {
    found: BTreeMap<ParamId, Vec<Tensor<2>>>,
    last: Option<ParamId>,
    is_inside: bool,
}

impl Factors {
    fn of(&mut self, id: ParamId) -> Option<[Tensor<2>; 2]> {
        self.found.remove(&id)?.try_into().ok()
    }
}

impl ModuleVisitor for Factors {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.is_inside |= container_type == "Reparameterization";
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.is_inside &= container_type != "Reparameterization";
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.last {
            Some(base) if self.is_inside => {
                let factor = param.val().inner();
                let shape: [usize; 2] = match factor.dims()[..] {
                    [rows, columns] => [rows, columns],
                    _ => return,
                };
                self.found
                    .entry(base)
                    .or_default()
                    .push(factor.reshape(shape));
            }
            _ => self.last = Some(param.id),
        }
    }
}

/// The factors of one layer of a file, which are taken out of `tensors`.
fn layer(
    stem: String,
    factors: names::Factors,
    tensors: &mut BTreeMap<String, TensorData>,
    scales: &Scales,
    path: &Path,
) -> Result<Layer> {
    let spelling = factors.spelling;
    if LoraPart::ALL.iter().all(|part| !part.has(spelling, &stem)) {
        let detail = ": it belongs to no part of a pipeline that is read; remove its factors, or merge the file into the model, in Python";
        return Err(mismatch(path, "unexpected", &stem, detail.into()));
    }
    let mut take = |key: &Option<String>| key.as_ref().and_then(|key| tensors.remove(key));
    let (down, up, alpha) = (take(&factors.down), take(&factors.up), take(&factors.alpha));
    let (Some(down), Some(up)) = (down, up) else {
        let detail = ": one of its two factors is missing";
        return Err(mismatch(path, "missing", &stem, detail.into()));
    };
    let rank = down.shape().first().copied().unwrap_or_default();
    let stated = alpha.as_ref().and_then(|alpha| {
        let values = alpha.clone().convert::<f32>().try_to_vec::<f32>().ok()?;
        values.first().map(|&value| f64::from(value))
    });
    let scale = scales.scale(spelling, &stem, rank, stated);
    if !scale.is_finite() {
        let detail = format!(": its scale is {scale}");
        return Err(mismatch(path, "non-finite", &stem, detail));
    }
    Ok(Layer {
        spelling,
        stem,
        down,
        up,
        alpha,
        scale,
    })
}

/// The values of a tensor of the file, which must be of a float type.
fn data(tensor: burn_pack::Tensor, path: &Path) -> Result<TensorData> {
    let name = tensor.name.clone();
    if !tensor.dtype.is_float() {
        let detail = format!(
            ": its type is {:?}, but a float type is needed",
            tensor.dtype
        );
        return Err(mismatch(path, "unreadable", &name, detail));
    }
    let unreadable = |error: String| mismatch(path, "unreadable", &name, format!(": {error}"));
    let (_, dtype, shape, _, bytes) = tensor
        .into_parts()
        .map_err(|error| unreadable(error.to_string()))?;
    TensorData::try_from_bytes(bytes, shape, dtype).map_err(|error| unreadable(error.to_string()))
}

fn packed(name: String, data: &TensorData) -> burn_pack::Tensor {
    let (bytes, shape, dtype) = data.clone().into_parts();
    burn_pack::Tensor::new(name, dtype, shape, None, bytes)
}

/// New values with the shape and the type of earlier ones.
fn in_place(values: Tensor<2>, earlier: &TensorData) -> Result<TensorData> {
    let data = values.try_into_data().map_err(|error| Error::DeviceRead {
        what: "the factors of a LoRA",
        message: error.to_string(),
    })?;
    reshaped(
        data.convert_dtype(earlier.dtype()),
        earlier.shape().to_vec(),
    )
}

/// The same values in another shape.
///
/// # Errors
/// [`Error::InvalidSetting`] unless it has as many elements.
fn reshaped(data: TensorData, shape: Vec<usize>) -> Result<TensorData> {
    let (bytes, earlier, dtype) = data.into_parts();
    let shaped = TensorData::try_from_bytes(bytes, shape.clone(), dtype);
    shaped.map_err(|_| Error::InvalidSetting {
        what: format!(
            "factors of the shape {:?} do not fit {shape:?}",
            &earlier[..]
        ),
        remedy: "take the factors of the network that this LoRA was attached to",
    })
}

fn mismatch(path: &Path, problem: &'static str, tensor: &str, detail: String) -> Error {
    folder::mismatch(path, problem, tensor, detail)
}
