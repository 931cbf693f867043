//! Weights in half precision: half the size, and precise enough for a trained network.

use std::error::Error;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use siss::burn::tensor::{Bytes, DType, TensorData};
use siss_support::files;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Rewrites the `f32` weights in a network's folder as `f16`.
pub fn halve_network(folder: &Path) -> Result<()> {
    halve(&folder.join("diffusion_pytorch_model.safetensors"))
}

/// Rewrites a file of `f32` weights as `f16`.
fn halve(path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(files::failed("reading", path))?;
    let weights = SafeTensors::deserialize(&bytes)?;
    let mut halves = Vec::new();
    for (name, view) in weights.tensors() {
        let shape = view.shape().to_vec();
        let data = Bytes::from_bytes_vec(view.data().to_vec());
        let data = TensorData::from_bytes(data, shape.clone(), DType::F32);
        halves.push((name, shape, data.convert_dtype(DType::F16)));
    }
    let views = halves.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F16, shape.clone(), data.as_bytes());
        view.map(|view| (name.as_str(), view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>()?;
    files::write(path, safetensors::serialize(views, None)?)?;
    Ok(())
}
