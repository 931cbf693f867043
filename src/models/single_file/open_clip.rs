//! The layout of OpenCLIP's text encoders, which single files of Stable Diffusion 2 and XL have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::store::burn_pack;
use burn::tensor::Bytes;

use crate::error::Result;
use crate::models::folder::{self, StoredTensors};

/// The beginning of the names of an encoder's layers in transformers.
const LAYERS: &str = "text_model.encoder.layers.";
/// That of OpenCLIP's layers.
const BLOCKS: &str = "transformer.resblocks.";
/// Tensors outside the layers.
const OUTSIDE: [(&str, &str); 4] = [
    (
        "text_model.embeddings.token_embedding.weight",
        "token_embedding.weight",
    ),
    (
        "text_model.embeddings.position_embedding.weight",
        "positional_embedding",
    ),
    ("text_model.final_layer_norm.weight", "ln_final.weight"),
    ("text_model.final_layer_norm.bias", "ln_final.bias"),
];
/// Layers inside of a layer.
const INSIDE: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];
/// The layers whose tensors are packed into one, from above.
const PACKED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
/// The projection, in transformers and in OpenCLIP, where it is transposed.
const PROJECTION: [&str; 2] = ["text_projection.weight", "text_projection"];
/// The scale of the similarity of texts and pictures.
const SIMILARITY: &str = "logit_scale";

/// Where a tensor of transformers is in a file of OpenCLIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it is.
    Plain,
    /// The third of the rows with this number.
    Third(usize),
    Transposed,
}

pub(super) fn place(name: &str) -> Option<Place> {
    let plain = |name: String| Place {
        name,
        kind: Kind::Plain,
    };
    if name == PROJECTION[0] {
        return Some(Place {
            name: PROJECTION[1].into(),
            kind: Kind::Transposed,
        });
    }
    if let Some((_, outside)) = OUTSIDE.iter().find(|(own, _)| *own == name) {
        return Some(plain((*outside).into()));
    }
    let (layer, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
    let (inner, parameter) = rest.rsplit_once('.')?;
    if let Some((_, inside)) = INSIDE.iter().find(|(own, _)| *own == inner) {
        return Some(plain(format!("{BLOCKS}{layer}.{inside}.{parameter}")));
    }
    let inner = inner.strip_prefix("self_attn.")?;
    let third = PACKED.iter().position(|packed| *packed == inner)?;
    Some(Place {
        name: format!("{BLOCKS}{layer}.attn.in_proj_{parameter}"),
        kind: Kind::Third(third),
    })
}

/// What an encoder of the file may have that the network does not: in version 2, which takes the
/// state before the last layer, the projection and that layer, with this number.
pub(super) fn is_unused(name: &str, last_layer: Option<usize>) -> bool {
    let of_last = |layer| {
        let begin = format!("{BLOCKS}{layer}.");
        name == PROJECTION[1] || name.starts_with(&begin)
    };
    name == SIMILARITY || last_layer.is_some_and(of_last)
}

/// The tensors of a network with these names and shapes, under its own names, and the names of
/// those of the file that they come from.
///
/// # Errors
/// [`Error::WeightMismatch`](crate::Error::WeightMismatch) for a tensor that is missing, or packed
/// and of a shape that cannot be.
pub(super) fn unpacked(
    stored: &StoredTensors,
    prefix: &str,
    expected: &BTreeMap<String, Vec<usize>>,
    path: &Path,
) -> Result<(StoredTensors, BTreeSet<String>)> {
    let (mut tensors, mut taken) = (StoredTensors::new(), BTreeSet::new());
    for own in expected.keys() {
        let Some(Place { name, kind }) = place(own) else {
            continue;
        };
        let name = format!("{prefix}{name}");
        let Some(tensor) = stored.get(&name) else {
            let detail = ": the configuration asks for it";
            return Err(folder::mismatch(path, "missing", name, detail));
        };
        let found = match kind {
            Kind::Plain => Some(tensor.clone()),
            Kind::Third(third) => rows(tensor, third),
            Kind::Transposed => transposed(tensor.clone()),
        };
        let Some(mut found) = found else {
            let detail = format!(": its shape is {:?}", &tensor.shape[..]);
            return Err(folder::mismatch(path, "misshapen", name, detail));
        };
        found.name = own.clone();
        tensors.insert(own.clone(), found);
        taken.insert(name);
    }
    Ok((tensors, taken))
}

/// The tensors of a network under the names and in the layout of OpenCLIP.
pub(super) fn packed(tensors: Vec<burn_pack::Tensor>, prefix: &str) -> Vec<burn_pack::Tensor> {
    let mut whole = Vec::new();
    let mut thirds: BTreeMap<String, BTreeMap<usize, burn_pack::Tensor>> = BTreeMap::new();
    for mut tensor in tensors {
        let Some(Place { name, kind }) = place(&tensor.name) else {
            continue;
        };
        tensor.name = format!("{prefix}{name}");
        match kind {
            Kind::Plain => whole.push(tensor),
            Kind::Transposed => whole.extend(transposed(tensor)),
            Kind::Third(third) => {
                let of_name = thirds.entry(tensor.name.clone()).or_default();
                of_name.insert(third, tensor);
            }
        }
    }
    let joined = thirds.into_values().map(BTreeMap::into_values);
    whole.extend(joined.filter_map(|thirds| above_each_other(thirds.collect())));
    whole
}

/// A third of the rows of a tensor; `None` unless there are as many in each.
fn rows(tensor: &burn_pack::Tensor, third: usize) -> Option<burn_pack::Tensor> {
    let mut shape = tensor.shape.to_vec();
    let all = *shape.first()?;
    if all % PACKED.len() != 0 {
        return None;
    }
    shape[0] = all / PACKED.len();
    let length = tensor.byte_len() / PACKED.len();
    let (name, dtype, tensor) = (tensor.name.clone(), tensor.dtype, tensor.clone());
    let read = move || {
        let bytes = tensor.to_bytes()?;
        let third = bytes[third * length..][..length].to_vec();
        Ok(Bytes::from_bytes_vec(third))
    };
    let tensor = burn_pack::Tensor::deferred(name, dtype, shape, None, length, read);
    Some(tensor)
}

/// Tensors of one shape joined along the first axis, under the name of the first.
fn above_each_other(parts: Vec<burn_pack::Tensor>) -> Option<burn_pack::Tensor> {
    let first = parts.first()?;
    let (name, dtype, mut shape) = (first.name.clone(), first.dtype, first.shape.to_vec());
    *shape.first_mut()? *= parts.len();
    let length = parts.iter().map(burn_pack::Tensor::byte_len).sum();
    let read = move || {
        let bytes = parts.iter().map(burn_pack::Tensor::to_bytes);
        let bytes = bytes.collect::<std::result::Result<Vec<_>, _>>()?;
        let bytes: Vec<u8> = bytes.iter().flat_map(|part| part.iter().copied()).collect();
        Ok(Bytes::from_bytes_vec(bytes))
    };
    let tensor = burn_pack::Tensor::deferred(name, dtype, shape, None, length, read);
    Some(tensor)
}

/// A transposed matrix; `None` for another tensor.
fn transposed(tensor: burn_pack::Tensor) -> Option<burn_pack::Tensor> {
    let [rows, columns] = tensor.shape[..] else {
        return None;
    };
    let (name, dtype, length) = (tensor.name.clone(), tensor.dtype, tensor.byte_len());
    let read = move || {
        let (bytes, size) = (tensor.to_bytes()?, tensor.dtype.size());
        let places = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
        let values = places.map(|(row, column)| &bytes[(row * columns + column) * size..][..size]);
        Ok(Bytes::from_bytes_vec(values.flatten().copied().collect()))
    };
    let shape = [columns, rows];
    let tensor = burn_pack::Tensor::deferred(name, dtype, shape, None, length, read);
    Some(tensor)
}
