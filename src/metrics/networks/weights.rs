//! Where the tensors of a network come from: a file, or a formula.

use std::path::{Path, PathBuf};

use burn::store::burn_pack;
use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{Error, Result, check_shape};
use crate::host::tensor;
use crate::models::safe_tensors;

/// Gives the values of a tensor by its name in the published file and its shape, in row-major order.
///
/// [`formula_weights`] is one, wrapped in `Ok`.
pub type TensorSource<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// Weights that follow from a tensor's name and shape, to compare a network with its original
/// without the published weights.
///
/// `u_i` in `[−1, 1)` are the upper 24 bits of splitmix64 of `h + (i + 1) φ`, with `h` the FNV-1a
/// hash of the name and `φ` = 0x9E3779B97F4A7C15. Tensors of two or more dimensions are
/// `u √(6 / fan_in)`, with the product of all dimensions except the first as `fan_in`; vectors named
/// `*.weight` or `*running_var` are `1 + u / 10`, other vectors `u / 10`, scalars 1.
///
/// # Example
/// ```
/// use siss::metrics::networks::formula_weights;
///
/// let bias = formula_weights("fc.bias", &[4]);
/// assert!((bias[0] + 0.00447).abs() < 1e-5);
/// ```
pub fn formula_weights(name: &str, shape: &[usize]) -> Vec<f32> {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let count: usize = shape.iter().product();
    let is_gain = name.ends_with(".weight") || name.ends_with("running_var");
    let scale = match shape {
        [] | [_] => 0.1,
        [_, rest @ ..] => (6.0 / rest.iter().product::<usize>() as f64).sqrt(),
    };
    let number = |index: u64| {
        let bits = splitmix64(hash.wrapping_add((index + 1).wrapping_mul(GOLDEN)));
        let unit = (bits >> 40) as f64 / f64::from(1 << 23) - 1.0;
        match shape {
            [] => 1.0,
            [_] if is_gain => 1.0 + scale * unit,
            _ => scale * unit,
        }
    };
    (0..count as u64)
        .map(|index| number(index) as f32)
        .collect()
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
fn splitmix64(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Builds a network from a file of safetensors: every tensor must be there with its shape, and no
/// other except those that end in one of `ignored`.
pub(super) fn load<T>(
    path: &Path,
    ignored: &[&str],
    build: impl FnOnce(&mut TensorSource<'_>) -> Result<T>,
) -> Result<T> {
    let mut tensors = safe_tensors(path)?;
    let network = build(&mut |name, shape| {
        let Some(found) = tensors.remove(name) else {
            return Err(mismatch(path, "missing", name, ": the network needs it"));
        };
        values(found, shape, path)
    })?;
    let is_ignored = |name: &str| ignored.iter().any(|ending| name.ends_with(ending));
    match tensors.keys().find(|name| !is_ignored(name)) {
        None => Ok(network),
        Some(name) => {
            let detail = ": the network has no place for it; is it the file of another network?";
            Err(mismatch(path, "unexpected", name, detail))
        }
    }
}

/// The values of a stored tensor in f32.
fn values(found: burn_pack::Tensor, shape: &[usize], path: &Path) -> Result<Vec<f32>> {
    let name = found.name.clone();
    if found.shape[..] != *shape {
        let detail = format!(
            ": its shape is {:?}, but {shape:?} is needed",
            &found.shape[..]
        );
        return Err(mismatch(path, "misshapen", &name, detail));
    }
    if !found.dtype.is_float() {
        let detail = format!(
            ": its type is {:?}, but a float type is needed",
            found.dtype
        );
        return Err(mismatch(path, "unreadable", &name, detail));
    }
    let dtype = found.dtype;
    let unreadable =
        |error: &dyn std::fmt::Display| mismatch(path, "unreadable", &name, format!(": {error}"));
    let bytes = found.into_bytes().map_err(|error| unreadable(&error))?;
    let data = TensorData::try_from_bytes(bytes, shape.to_vec(), dtype)
        .map_err(|error| unreadable(&error))?;
    let values: Vec<f32> = data.iter().collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(mismatch(
            path,
            "non-finite",
            &name,
            ": download the file again",
        )),
    }
}

fn mismatch(path: &Path, problem: &'static str, name: &str, detail: impl Into<String>) -> Error {
    Error::WeightMismatch {
        path: PathBuf::from(path),
        problem,
        tensor: name.into(),
        detail: detail.into(),
    }
}

/// Makes the tensors of a network from a source.
pub(super) struct Loader<'a, 'b> {
    source: &'a mut TensorSource<'b>,
    device: &'a Device,
}

impl<'a, 'b> Loader<'a, 'b> {
    pub(super) fn new(source: &'a mut TensorSource<'b>, device: &'a Device) -> Self {
        Self { source, device }
    }

    pub(super) fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = (self.source)(name, shape)?;
        let count = shape.iter().product();
        let remedy = "give one value for every element of the tensor";
        check_shape("the values of a tensor", &[count], &[values.len()], remedy)?;
        Ok(values)
    }

    pub(super) fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>> {
        Ok(tensor(self.values(name, &shape)?, shape, self.device))
    }

    pub(super) fn vector(&self, values: Vec<f32>) -> Tensor<1> {
        let count = values.len();
        tensor(values, [count], self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formula_weights_have_the_spread_of_their_kind() {
        let weight = formula_weights("conv.weight", &[64, 3, 5, 5]);
        let bound = (6.0_f32 / 75.0).sqrt();
        assert!(weight.iter().all(|value| value.abs() <= bound));
        let mean = weight.iter().sum::<f32>() / weight.len() as f32;
        // A uniform mean has the deviation bound / √(3 n).
        assert!(
            mean.abs() < 4.0 * bound / (3.0 * weight.len() as f32).sqrt(),
            "{mean}"
        );
        let gain = formula_weights("bn.weight", &[100]);
        assert!(gain.iter().all(|value| (0.9..=1.1).contains(value)));
        assert_eq!(formula_weights("scale", &[]), [1.0]);
        assert_ne!(
            formula_weights("a.bias", &[4]),
            formula_weights("b.bias", &[4])
        );
    }

    /// Writes tensors of f32 as safetensors.
    fn write(tensors: &[(&str, &[usize], Vec<f32>)]) -> tempfile::NamedTempFile {
        use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            })
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap(),
            )
        });
        serialize_to_file(views, None, file.path()).unwrap();
        file
    }

    #[test]
    fn files_must_hold_the_network_and_nothing_else() {
        let read = |tensors: &[(&str, &[usize], Vec<f32>)]| {
            let file = write(tensors);
            load(file.path(), &["tracked"], |source| source("a", &[2]))
        };
        let good = ("a", &[2_usize][..], vec![1.0, 2.0]);
        let found = read(&[good.clone(), ("x.tracked", &[1], vec![0.0])]).unwrap();
        assert_eq!(found, [1.0, 2.0]);
        let problem = |tensors: &[(&str, &[usize], Vec<f32>)]| match read(tensors).unwrap_err() {
            Error::WeightMismatch { problem, .. } => problem,
            other => panic!("{other}"),
        };
        assert_eq!(problem(&[("b", &[2], vec![1.0, 2.0])]), "missing");
        assert_eq!(problem(&[("a", &[1, 2], vec![1.0, 2.0])]), "misshapen");
        assert_eq!(problem(&[("a", &[2], vec![1.0, f32::NAN])]), "non-finite");
        assert_eq!(problem(&[good, ("b", &[1], vec![0.0])]), "unexpected");
    }
}
