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
use burn::tensor::{DType, Shape, Tensor};

use super::LoadNote;
use super::location::CONFIG;
use crate::error::{Error, Result};
use crate::files::{invalid, replace, shortened};
use crate::parameters::non_finite_parameter;

/// The file that holds a network's weights.
pub(super) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The index of weights in parts, which diffusers prefers to a single file.
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
/// The older file for weights, read if there is no other.
#[cfg(test)]
const PICKLED: &str = "diffusion_pytorch_model.bin";
/// Prefixes that PyTorch's compiler and its data parallelism add to the names of all tensors.
const WRAPPERS: [&str; 2] = ["_orig_mod.", "module."];

/// Writes weights and configuration, and creates the folder if necessary.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] if the folder holds weights in parts, which diffusers
/// would read instead.
pub(super) fn save<M: Module>(module: &M, config: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    let index = folder.join(INDEX);
    if index.exists() {
        let message = "it names the parts of other weights, which diffusers reads instead of the file that would be written next to it; \
                       write into another folder, or remove it and its parts";
        return Err(invalid(&index, message));
    }
    save_weights(module, &folder.join(WEIGHTS))?;
    replace(&folder.join(CONFIG), |file| {
        file.write_all(config.as_bytes())
    })
}

fn save_weights<M: Module>(module: &M, path: &Path) -> Result<()> {
    let tensors = module.collect(None, Some(Box::new(BurnToPyTorchAdapter)), false);
    replace(path, |file| safe::write(tensors, file))
}

/// Fills a network with the weights of a folder, and returns notes about them. No values are read
/// before all tensors are known to fit.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::WeightMismatch`].
pub(super) fn load_weights<M: Module>(mut module: M, folder: &Path) -> Result<(M, Vec<LoadNote>)> {
    let weights = weights::read(folder)?;
    let mut notes = Vec::from_iter(weights.note);
    let path = weights.path;
    let prefix = common_prefix(&weights.tensors);
    if !prefix.is_empty() {
        let prefix = prefix.clone();
        notes.push(LoadNote::Prefix { prefix });
    }
    let found = by_name(weights.tensors, prefix.len(), &path)?;
    let mut expected = ExpectedTensors::default();
    module.visit(&mut expected);
    check(&expected.shapes, &found, &path)?;

    let tensors = found.into_values().map(|found| found.tensor).collect();
    let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
    let result = module.apply(tensors, None, Some(Box::new(adapter)), false);
    if let Some(error) = result.errors.first() {
        return Err(unreadable(error, &path));
    }
    match non_finite_parameter(&module)? {
        None => Ok((module, notes)),
        Some(parameter) => {
            let name = prefix + &file_spelling(&parameter);
            let detail = ": it holds NaN or an infinity, in f32; use the weights of an earlier checkpoint, or download the file again";
            Err(mismatch(&path, "non-finite", name, detail))
        }
    }
}

/// The tensors of a file, by their names in the file. Values are read when they are needed.
type StoredTensors = BTreeMap<String, burn_pack::Tensor>;

#[cfg(feature = "pytorch")]
use pickled::tensors as pickled_tensors;

#[cfg(not(feature = "pytorch"))]
fn pickled_tensors(path: &Path) -> Result<StoredTensors> {
    let message = "pickled weights are read with the feature `pytorch` of siss; enable it, or save the model from Python with `safe_serialization=True`";
    Err(invalid(path, message))
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

fn mismatch(
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

/// The tensors that a network expects, with the names and layout of the file. Parameters are not
/// initialised.
#[derive(Default)]
struct ExpectedTensors {
    path: Vec<String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for ExpectedTensors {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if D == 2 {
            shape.reverse();
        }
        self.shapes
            .insert(file_spelling(&self.path.join(".")), shape);
    }
}

#[cfg(test)]
mod tests;
