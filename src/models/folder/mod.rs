//! Reads and writes the folder of a network: its configuration and its weights.

#[cfg(feature = "pytorch")]
mod pickled;
mod safe;
mod weights;

#[cfg(feature = "metrics")]
pub(crate) use safe::tensors as safe_tensors;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::store::burn_pack;
use burn::store::{
    ApplyError, BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot,
    PyTorchToBurnAdapter,
};
use burn::tensor::{DType, Shape, Tensor, TensorData};

use super::LoadNote;
use super::location::CONFIG;
use crate::error::{Error, Result};
use crate::files::{invalid, replace, shortened};
use crate::parameters::{has_name, non_finite_parameter};

/// The file that holds the weights of a network of diffusers.
pub(super) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The index of weights in parts.
#[cfg(test)]
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
/// The older file for weights, read if there is no other.
#[cfg(test)]
const PICKLED: &str = "diffusion_pytorch_model.bin";
/// The beginning of the names of a text encoder's tensors, except those of its projection.
const TEXT_MODEL: &str = "text_model.";
/// The end of the name of a buffer of text encoders in old files: the numbers 0, 1, 2, ….
pub(super) const POSITION_IDS: &str = ".position_ids";
/// The container of the only weights that burn stores transposed.
const LINEAR: &str = "Struct:Linear";
/// Prefixes that PyTorch's compiler and its data parallelism add to the names of all tensors.
const WRAPPERS: [&str; 2] = ["_orig_mod.", "module."];

/// The library whose names a folder's files of weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// `diffusion_pytorch_model.safetensors` or `.bin`.
    Diffusers,
    /// `model.safetensors` or `pytorch_model.bin`.
    Transformers,
}

impl Files {
    fn weights(self) -> &'static str {
        match self {
            Self::Diffusers => WEIGHTS,
            Self::Transformers => "model.safetensors",
        }
    }
}

/// Writes weights and configuration, and creates the folder if necessary.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] if the folder holds weights in parts, which diffusers
/// would read instead.
pub(super) fn save<M: Module>(module: &M, config: &str, folder: &Path) -> Result<()> {
    save_files(module, config, folder, Files::Diffusers)
}

/// Like [`save`], with the names of one of the libraries.
///
/// # Errors
/// Those of [`save`].
pub(super) fn save_files<M: Module>(
    module: &M,
    config: &str,
    folder: &Path,
    files: Files,
) -> Result<()> {
    let metadata = FileMetadata::new();
    save_tensors(collect(module), &metadata, config, folder, files)
}

/// Like [`save`], with each tensor in the type that it has in the folder `original`, and with the
/// metadata of the weights there; in f32 and without if no weights can be read there.
///
/// # Errors
/// Those of [`save`].
pub(super) fn save_like<M: Module>(
    module: &M,
    config: &str,
    [original, folder]: [&Path; 2],
) -> Result<()> {
    let stored = weights::read(original, Files::Diffusers).and_then(|stored| {
        let prefix = common_prefix(&stored.tensors);
        let tensors = by_name(stored.tensors, prefix.len(), &stored.path)?;
        Ok((tensors, stored.metadata))
    });
    let (stored, metadata) = stored.unwrap_or_default();
    let tensors = collect(module).into_iter();
    let tensors = tensors.map(|tensor| match stored.get(&tensor.name) {
        Some(earlier) => like(tensor, &earlier.tensor),
        None => tensor,
    });
    let tensors = tensors.collect();
    save_tensors(tensors, &metadata, config, folder, Files::Diffusers)
}

fn save_tensors(
    tensors: Vec<burn_pack::Tensor>,
    metadata: &FileMetadata,
    config: &str,
    folder: &Path,
    files: Files,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    // The index of weights in parts, which both libraries prefer to a single file.
    let index = folder.join(format!("{}.index.json", files.weights()));
    if index.exists() {
        let message = "it names the parts of other weights, which diffusers reads instead of the file that would be written next to it; \
                       write into another folder, or remove it and its parts";
        return Err(invalid(&index, message));
    }
    replace(&folder.join(files.weights()), |file| {
        safe::write(tensors, metadata, file)
    })?;
    replace(&folder.join(CONFIG), |file| {
        file.write_all(config.as_bytes())
    })
}

/// A tensor in the shape and the type of an earlier one.
pub(super) fn like(tensor: burn_pack::Tensor, earlier: &burn_pack::Tensor) -> burn_pack::Tensor {
    let (name, dtype, shape) = (tensor.name.clone(), earlier.dtype, earlier.shape.clone());
    let length = shape.num_elements() * dtype.size();
    let convert = move || {
        let (_, of_value, shape, _, bytes) = tensor.clone().into_parts()?;
        let failed = |error: String| burn_pack::Error::ValidationError(error);
        let data = TensorData::try_from_bytes(bytes, shape, of_value)
            .map_err(|error| failed(error.to_string()))?;
        Ok(data.convert_dtype(dtype).into_bytes())
    };
    burn_pack::Tensor::deferred(name, dtype, shape, None, length, convert)
}

/// A network's tensors with the names and layout of the file.
pub(super) fn collect<M: Module>(module: &M) -> Vec<burn_pack::Tensor> {
    module.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true)
}

/// Fills a network with the weights of a folder, and returns notes about them. No values are read
/// before all tensors are known to fit.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::WeightMismatch`].
pub(super) fn load_weights<M: Module>(module: M, folder: &Path) -> Result<(M, Vec<LoadNote>)> {
    load_files(module, folder, Files::Diffusers)
}

/// Like [`load_weights`], with the names of one of the libraries.
///
/// # Errors
/// Those of [`load_weights`].
pub(super) fn load_files<M: Module>(
    module: M,
    folder: &Path,
    files: Files,
) -> Result<(M, Vec<LoadNote>)> {
    let mut weights = weights::read(folder, files)?;
    if files == Files::Transformers {
        weights.tensors = published_names(weights.tensors);
    }
    let (module, more) = fill(module, weights.tensors, &weights.path)?;
    let mut notes = Vec::from_iter(weights.note);
    notes.extend(more);
    Ok((module, notes))
}

/// Fills a network with tensors of a file, and returns notes about them.
///
/// # Errors
/// [`Error::WeightMismatch`], [`Error::DeviceRead`].
pub(super) fn fill<M: Module>(
    mut module: M,
    tensors: StoredTensors,
    path: &Path,
) -> Result<(M, Vec<LoadNote>)> {
    let mut notes = Vec::new();
    let prefix = common_prefix(&tensors);
    if !prefix.is_empty() {
        let prefix = prefix.clone();
        notes.push(LoadNote::Prefix { prefix });
    }
    let found = by_name(tensors, prefix.len(), path)?;
    check(&expected_shapes(&module), &found, path)?;

    let tensors = found.into_values().map(|found| found.tensor).collect();
    let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
    let result = module.apply(tensors, None, Some(Box::new(adapter)), true);
    if let Some(error) = result.errors.first() {
        return Err(unreadable(error, path));
    }
    match non_finite_parameter(&module)? {
        None => Ok((module, notes)),
        Some(parameter) => {
            let name = prefix + &file_spelling(&parameter);
            let detail = ": it holds NaN or an infinity, in f32; use the weights of an earlier checkpoint, or download the file again";
            Err(mismatch(path, "non-finite", name, detail))
        }
    }
}

/// The tensors of a file, by their names in the file. Values are read when they are needed.
pub(super) type StoredTensors = BTreeMap<String, burn_pack::Tensor>;

pub(super) use safe::{FileMetadata, SafeFile, read, tensors, write};

#[cfg(feature = "pytorch")]
use pickled::tensors as pickled_tensors;

#[cfg(not(feature = "pytorch"))]
fn pickled_tensors(path: &Path) -> Result<StoredTensors> {
    let message = "pickled weights are read with the feature `pytorch` of siss; enable it, or save the model from Python with `safe_serialization=True`";
    Err(invalid(path, message))
}

/// The tensors of a text encoder under the names of the published files.
///
/// Old files hold position ids, which are not weights. transformers 5 leaves out the first name of
/// all tensors of an encoder without projection, and reads both.
fn published_names(tensors: StoredTensors) -> StoredTensors {
    let has_root = tensors.keys().any(|name| name.starts_with(TEXT_MODEL));
    let weights = tensors
        .into_iter()
        .filter(|(name, _)| !name.ends_with(POSITION_IDS));
    weights
        .map(|(name, tensor)| match has_root {
            true => (name, tensor),
            false => (format!("{TEXT_MODEL}{name}"), tensor),
        })
        .collect()
}

/// A tensor of the file, converted to the current layout.
struct FoundTensor {
    spelling: String,
    tensor: burn_pack::Tensor,
}

/// The prefix that wrappers added to the names of all tensors.
fn common_prefix(tensors: &StoredTensors) -> String {
    let mut prefix = String::new();
    let mut names = tensors.keys();
    let Some(first) = names.next() else {
        return prefix;
    };
    while let Some(next) = WRAPPERS
        .iter()
        .find(|next| first[prefix.len()..].starts_with(**next))
    {
        let longer = prefix.clone() + next;
        if !names.clone().all(|name| name.starts_with(&longer)) {
            break;
        }
        prefix = longer;
    }
    prefix
}

/// The tensors by their names in the network, after a prefix of `prefix` bytes is removed.
fn by_name(
    tensors: StoredTensors,
    prefix: usize,
    path: &Path,
) -> Result<BTreeMap<String, FoundTensor>> {
    let mut found = BTreeMap::new();
    for (spelling, mut tensor) in tensors {
        tensor.name = spelling[prefix..].into();
        let (name, tensor) = modernise(tensor);
        let same = FoundTensor {
            spelling: spelling.clone(),
            tensor,
        };
        if let Some(earlier) = found.insert(name, same) {
            let detail = format!(": it is the same as `{}`", earlier.spelling);
            return Err(mismatch(path, "unexpected", spelling, detail));
        }
    }
    Ok(found)
}

/// Gives the attention tensors of old files their current names and shapes.
fn modernise(mut tensor: burn_pack::Tensor) -> (String, burn_pack::Tensor) {
    if let Some(name) = modern_name(&tensor.name) {
        tensor.name = name;
        if let [outputs, inputs, 1, 1] = tensor.shape[..] {
            tensor.shape = Shape::new([outputs, inputs]);
        }
    }
    (tensor.name.clone(), tensor)
}

fn modern_name(name: &str) -> Option<String> {
    let (rest, parameter) = name.rsplit_once('.')?;
    let (block, layer) = rest.rsplit_once('.')?;
    let layer = match layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return None,
    };
    Some(format!("{block}.{layer}.{parameter}"))
}

/// Compares the file with the network by name, shape and type.
fn check(
    expected: &BTreeMap<String, Vec<usize>>,
    found: &BTreeMap<String, FoundTensor>,
    path: &Path,
) -> Result<()> {
    if let Some(name) = expected.keys().find(|name| !found.contains_key(*name)) {
        return Err(mismatch(
            path,
            "missing",
            name,
            ": the configuration asks for it",
        ));
    }
    for (name, FoundTensor { spelling, tensor }) in found {
        let Some(shape) = expected.get(name) else {
            let detail = ": the configuration has no place for it";
            return Err(mismatch(path, "unexpected", spelling, detail));
        };
        if tensor.shape[..] != shape[..] {
            let detail = format!(
                ": its shape is {:?}, but {shape:?} is needed",
                &tensor.shape[..]
            );
            return Err(mismatch(path, "misshapen", spelling, detail));
        }
        if !tensor.dtype.is_float() {
            let detail = format!(
                ": its type is {:?}, but a float type is needed",
                tensor.dtype
            );
            return Err(mismatch(path, "unreadable", spelling, detail));
        }
    }
    Ok(())
}

pub(super) fn mismatch(
    path: &Path,
    problem: &'static str,
    tensor: impl Into<String>,
    detail: impl Into<String>,
) -> Error {
    Error::WeightMismatch {
        path: path.into(),
        problem,
        tensor: shortened(tensor.into()),
        detail: shortened(detail.into()),
    }
}

fn unreadable(error: &ApplyError, path: &Path) -> Error {
    let name = match error {
        ApplyError::ShapeMismatch { path, .. }
        | ApplyError::DTypeMismatch { path, .. }
        | ApplyError::AdapterError { path, .. }
        | ApplyError::LoadError { path, .. } => file_spelling(path),
    };
    mismatch(path, "unreadable", name, format!(": {error}"))
}

/// Converts burn's names for the parameters of a normalisation to those of the file.
fn file_spelling(path: &str) -> String {
    match path.rsplit_once('.') {
        Some((layer, "gamma")) => format!("{layer}.weight"),
        Some((layer, "beta")) => format!("{layer}.bias"),
        _ => path.into(),
    }
}

/// The shapes of the tensors that a network expects in a file, by name.
pub(super) fn expected_shapes<M: Module>(network: &M) -> BTreeMap<String, Vec<usize>> {
    let mut expected = ExpectedTensors::default();
    network.visit(&mut expected);
    expected.shapes
}

/// The tensors that a network expects, with the names and layout of the file. Parameters are not
/// initialised.
#[derive(Default)]
struct ExpectedTensors {
    path: Vec<String>,
    containers: Vec<String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for ExpectedTensors {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.containers.push(container_type.into());
        if has_name(container_type) {
            self.path.push(name.into());
        }
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.containers.pop();
        if has_name(container_type) {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if D == 2 && self.containers.last().is_some_and(|kind| kind == LINEAR) {
            shape.reverse();
        }
        self.shapes
            .insert(file_spelling(&self.path.join(".")), shape);
    }
}

#[cfg(test)]
mod tests;
