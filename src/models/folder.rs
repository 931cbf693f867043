//! Reading and writing the folder of a network: its configuration and its weights.

#[cfg(feature = "pytorch")]
mod pickled;
mod safe;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::store::burn_pack::{self, AtomicFile};
use burn::store::{
    ApplyError, BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot,
    PyTorchToBurnAdapter, SafetensorsStore, SafetensorsStoreError,
};
use burn::tensor::{DType, Shape, Tensor};

use crate::error::{Error, Result};
use crate::files::shortened;

/// The file that holds a network's configuration.
pub(super) const CONFIG: &str = "config.json";
/// The file that holds a network's weights.
pub(super) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The file that held them before; read where there is none of the other kind.
const PICKLED: &str = "diffusion_pytorch_model.bin";

/// The folder of a network: `folder` itself, or its subfolder `name` in the folder of a pipeline.
pub(super) fn component(folder: &Path, name: &str) -> PathBuf {
    let inside = folder.join(name);
    if !folder.join(CONFIG).exists() && inside.join(CONFIG).exists() {
        inside
    } else {
        folder.to_path_buf()
    }
}

/// Writes weights and configuration, creating the folder.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save<M: Module>(module: &M, config: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    save_weights(module, &folder.join(WEIGHTS))?;
    save_text(config, &folder.join(CONFIG))
}

fn save_weights<M: Module>(module: &M, path: &Path) -> Result<()> {
    let mut store = SafetensorsStore::from_file(path)
        .clear_metadata()
        .metadata("format", "pt")
        .with_to_adapter(BurnToPyTorchAdapter)
        .overwrite(true);
    module.save_into(&mut store).map_err(|error| {
        Error::io("writing", path)(match error {
            SafetensorsStoreError::Io(source) => source,
            other => std::io::Error::other(other.to_string()),
        })
    })
}

fn save_text(text: &str, path: &Path) -> Result<()> {
    let other = |error: burn_pack::Error| std::io::Error::other(error.to_string());
    let write = || {
        let (scratch, mut file) = AtomicFile::create(path).map_err(other)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        scratch.commit().map_err(other)
    };
    write().map_err(Error::io("writing", path))
}

/// Fills a network with the weights of a folder. No values are read before all tensors are known to fit.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::WeightMismatch`].
pub(super) fn load_weights<M: Module>(mut module: M, folder: &Path) -> Result<M> {
    let (path, tensors) = stored_tensors(folder)?;
    let found = by_name(tensors, &path)?;
    let mut expected = ExpectedTensors::default();
    module.visit(&mut expected);
    check(&expected.shapes, &found, &path)?;

    let tensors = found.into_values().map(|found| found.tensor).collect();
    let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
    let result = module.apply(tensors, None, Some(Box::new(adapter)), false);
    match result.errors.first() {
        None => Ok(module),
        Some(error) => Err(unreadable(error, &path)),
    }
}

/// The tensors of a file, by their names there. Values are read when they are needed.
type StoredTensors = BTreeMap<String, burn_pack::Tensor>;

/// The file with a network's weights, and its tensors.
fn stored_tensors(folder: &Path) -> Result<(PathBuf, StoredTensors)> {
    let (path, pickled) = (folder.join(WEIGHTS), folder.join(PICKLED));
    if pickled.exists() && !path.exists() {
        let tensors = pickled_tensors(&pickled)?;
        return Ok((pickled, tensors));
    }
    let tensors = safe::tensors(&path)?;
    Ok((path, tensors))
}

#[cfg(feature = "pytorch")]
use pickled::tensors as pickled_tensors;

#[cfg(not(feature = "pytorch"))]
fn pickled_tensors(path: &Path) -> Result<StoredTensors> {
    Err(Error::InvalidFile {
        path: path.into(),
        message: "pickled weights are read with the feature `pytorch` of siss; enable it, or save the model from Python with `safe_serialization=True`".into(),
    })
}

/// A tensor of the file, under the name of today's layout.
struct FoundTensor {
    spelling: String,
    tensor: burn_pack::Tensor,
}

fn by_name(tensors: StoredTensors, path: &Path) -> Result<BTreeMap<String, FoundTensor>> {
    let mut found = BTreeMap::new();
    for (spelling, tensor) in tensors {
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

/// Gives the attention tensors of old files their present names and shapes.
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

/// Compares the file with the network, by name, shape and type.
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
                ": its shape is {:?}, {shape:?} is needed",
                &tensor.shape[..]
            );
            return Err(mismatch(path, "misshapen", spelling, detail));
        }
        if !tensor.dtype.is_float() {
            let detail = format!(": its type is {:?}, a float type is needed", tensor.dtype);
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

/// burn names the parameters of a normalisation differently.
fn file_spelling(path: &str) -> String {
    match path.rsplit_once('.') {
        Some((layer, "gamma")) => format!("{layer}.weight"),
        Some((layer, "beta")) => format!("{layer}.bias"),
        _ => path.into(),
    }
}

/// The tensors a network wants, in the file's spelling and layout. Parameters are not initialised.
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
