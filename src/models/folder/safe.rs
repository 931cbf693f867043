//! Weights in a safetensors file.
//!
//! The file is read with ordinary reads, tensor by tensor. burn's reader maps the file into memory,
//! so that the process is killed if the file becomes shorter meanwhile; it also parses the header
//! again for each tensor. The file is also written here, because burn's writer creates a temporary
//! file that only its owner may read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::tensor::{BoolStore, Bytes, DType};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize, Serializer};

use super::StoredTensors;
use crate::error::{Error, Result};
use crate::files::{invalid, open, shortened};

/// Size in bytes of the header's length, with which the file begins.
const LENGTH_BYTES: u64 = 8;
/// Longest header that is read: that of Stable Diffusion has 100 kB.
const LONGEST_HEADER: u64 = 8 << 20;
/// The entry of a header that is not a tensor.
const METADATA: &str = "__metadata__";
/// Metadata that is true of the weights of one file only: hashes of them, by which programs find
/// out what a file is.
const HASHES: [&str; 3] = [
    "modelspec.hash_sha256",
    "sshs_legacy_hash",
    "sshs_model_hash",
];

/// What the header of a file says besides the tensors: texts by name.
pub(in crate::models) type FileMetadata = BTreeMap<String, String>;

/// The contents of a file.
pub(in crate::models) struct SafeFile {
    pub(in crate::models) tensors: StoredTensors,
    /// Without hashes of the weights, because a file that is written from it has other weights.
    pub(in crate::models) metadata: FileMetadata,
}

/// The tensors of a file, by name.
///
/// # Errors
/// Those of [`read`].
pub(crate) fn tensors(path: &Path) -> Result<StoredTensors> {
    Ok(read(path)?.tensors)
}

/// The contents of a file. The positions of tensors are checked here, their values are read when
/// they are needed.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::UnsupportedTensorType`].
pub(in crate::models) fn read(path: &Path) -> Result<SafeFile> {
    let (mut file, length) = open(path)?;
    let header = read_header(&mut file, length, path)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        let message = format!("its header does not describe tensors: {error}");
        unknown_type(&header, path).unwrap_or_else(|| damaged(path, message))
    })?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let promised = data_start.checked_add(metadata.data_len() as u64);
    if promised != Some(length) {
        let (needed, message) = (metadata.data_len(), "bytes of values, the file has");
        let found = length - data_start;
        return Err(damaged(
            path,
            format!("its header promises {needed} {message} {found}"),
        ));
    }
    let file = Arc::new(Mutex::new(file));
    let mut tensors = StoredTensors::new();
    for (name, info) in BTreeMap::from_iter(metadata.tensors()) {
        let dtype = burn_type(info.dtype);
        let dtype = dtype.ok_or_else(|| unsupported(path, &name, &format!("{:?}", info.dtype)))?;
        let (first, end) = info.data_offsets;
        let (file, start) = (file.clone(), data_start + first as u64);
        let read = move || read_values(&file, start, end - first);
        let shape = info.shape.clone();
        let tensor = PackTensor::deferred(name.clone(), dtype, shape, None, end - first, read);
        tensors.insert(name, tensor);
    }
    let mut metadata: FileMetadata = metadata.metadata().clone().into_iter().flatten().collect();
    metadata.retain(|name, _| !HASHES.contains(&name.as_str()));
    Ok(SafeFile { tensors, metadata })
}

/// The error about the first tensor of a type that nobody has heard of, if that is what is wrong
/// with a header.
fn unknown_type(header: &[u8], path: &Path) -> Option<Error> {
    #[derive(Deserialize)]
    struct Entry {
        dtype: Option<String>,
    }
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(header).ok()?;
    let is_known = |name: &str| serde_json::from_value::<Dtype>(name.into()).is_ok();
    let mut types = entries
        .iter()
        .filter(|(name, _)| *name != METADATA)
        .filter_map(|(name, entry)| Some((name, entry.dtype.as_deref()?)));
    let (name, dtype) = types.find(|(_, dtype)| !is_known(dtype))?;
    Some(unsupported(path, name, dtype))
}

fn unsupported(path: &Path, tensor: &str, dtype: &str) -> Error {
    Error::UnsupportedTensorType {
        path: path.into(),
        tensor: shortened(tensor.into()),
        dtype: shortened(dtype.into()),
    }
}

fn read_header(file: &mut File, length: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = [0; LENGTH_BYTES as usize];
    if length < LENGTH_BYTES {
        return Err(damaged(path, format!("it has {length} bytes")));
    }
    file.read_exact(&mut bytes)
        .map_err(Error::io("reading", path))?;
    let header_length = u64::from_le_bytes(bytes);
    if header_length > LONGEST_HEADER || header_length > length - LENGTH_BYTES {
        let message = format!(
            "its header should have {header_length} bytes, the file has {length} and at most 8 MiB of header are read"
        );
        return Err(damaged(path, message));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header)
        .map_err(Error::io("reading", path))?;
    Ok(header)
}

/// The bytes of one tensor. `length` does not exceed that of the file.
fn read_values(
    file: &Mutex<File>,
    start: u64,
    length: usize,
) -> std::result::Result<Bytes, PackError> {
    let failed = |error: &dyn std::fmt::Display| PackError::IoError(error.to_string());
    let mut file = file.lock().map_err(|error| failed(&error))?;
    let mut values = vec![0; length];
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.read_exact(&mut values))
        .map_err(|error| failed(&error))?;
    Ok(Bytes::from_bytes_vec(values))
}

/// Writes tensors in the order of PyTorch's safetensors: those of the longest type first, then by
/// name. Without metadata, the header says that they are PyTorch's.
pub(in crate::models) fn write(
    tensors: Vec<PackTensor>,
    metadata: &FileMetadata,
    file: &mut File,
) -> io::Result<()> {
    let mut tensors: Vec<(Dtype, PackTensor)> = tensors
        .into_iter()
        .map(|tensor| match stored_type(tensor.dtype) {
            Some(dtype) => Ok((dtype, tensor)),
            None => Err(io::Error::other(format!(
                "`{}` is of type {:?}, which safetensors files do not have",
                tensor.name, tensor.dtype
            ))),
        })
        .collect::<io::Result<_>>()?;
    tensors.sort_by(|(left_type, left), (right_type, right)| {
        right_type
            .cmp(left_type)
            .then_with(|| left.name.cmp(&right.name))
    });
    let header = header(&tensors, metadata).map_err(io::Error::other)?;
    let mut writer = BufWriter::new(file);
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for (_, tensor) in tensors {
        writer.write_all(&tensor.into_bytes().map_err(io::Error::other)?)?;
    }
    writer.flush()
}

/// An entry of a header.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(&'a FileMetadata),
    Tensor(&'a TensorInfo),
}

/// Metadata, then names, types, shapes and positions, padded with spaces so that the values are
/// aligned. safetensors' own writer has the metadata in another order each time.
fn header(
    tensors: &[(Dtype, PackTensor)],
    metadata: &FileMetadata,
) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut end = 0;
    let infos = tensors.iter().map(|(dtype, tensor)| {
        let start = end;
        end += tensor.byte_len();
        let info = TensorInfo {
            dtype: *dtype,
            shape: tensor.shape.to_vec(),
            data_offsets: (start, end),
        };
        (tensor.name.clone(), info)
    });
    let checked = Metadata::new(None, infos.collect())?;
    let format = FileMetadata::from([("format".into(), "pt".into())]);
    let metadata = if metadata.is_empty() {
        &format
    } else {
        metadata
    };
    let names = tensors.iter().map(|(_, tensor)| tensor.name.as_str());
    let infos = names.filter_map(|name| Some((name, Entry::Tensor(checked.info(name)?))));
    let mut header = Vec::new();
    let first = std::iter::once((METADATA, Entry::Metadata(metadata)));
    serde_json::Serializer::new(&mut header).collect_map(first.chain(infos))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok(header)
}

fn stored_type(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native) => Dtype::BOOL,
        _ => return None,
    })
}

fn burn_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

fn damaged(path: &Path, message: impl std::fmt::Display) -> Error {
    invalid(
        path,
        format!("not a safetensors file, or a damaged one: {message}"),
    )
}
