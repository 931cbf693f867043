//! Finds and opens the files of a folder that hold a network's weights: plain files, variants such
//! as `fp16`, and files in parts with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{FileMetadata, Files, SafeFile, StoredTensors, mismatch, pickled_tensors, safe};
use crate::error::{Error, Result};
use crate::files::json::python_object;
use crate::files::{invalid, read_configuration, shortened};
use crate::models::LoadNote;
use crate::models::location::{listed, names};

/// The beginning of the names of diffusers' files.
const DIFFUSERS: &str = "diffusion_pytorch_model.";
/// The beginnings of the names of transformers' files, with the format that they stand for.
const TRANSFORMERS: [(&str, Format); 2] = [
    ("model.", Format::Safe),
    ("pytorch_model.", Format::Pickled),
];
/// Most parts of a file. All are open while the weights are read.
const MOST_PARTS: usize = 256;
/// Variants in the order of preference: the most precise first.
const VARIANTS: [&str; 3] = ["fp32", "fp16", "bf16"];
/// Names of other weight formats, and what to do about them.
const OTHER_FORMATS: [(&str, &str); 9] = [
    (".msgpack", "Flax: load it in Python with `from_flax=True`"),
    (".onnx", "ONNX, from which no weights are taken"),
    (".gguf", "GGUF, which is quantised"),
    (".h5", "TensorFlow"),
    (
        ".ckpt",
        "a checkpoint of another layout: convert it to diffusers' in Python",
    ),
    (".pt", "PyTorch"),
    (".pth", "PyTorch"),
    (".safetensors", "safetensors by another name"),
    (".bin", "PyTorch by another name"),
];

/// A network's weights and where they were read from.
pub(super) struct Weights {
    /// The file, or the index of its parts.
    pub(super) path: PathBuf,
    pub(super) tensors: StoredTensors,
    /// What the header of a safetensors file says besides; that of several files together.
    pub(super) metadata: FileMetadata,
    /// A note about the choice, if it was not obvious.
    pub(super) note: Option<LoadNote>,
}

/// Finds and opens a folder's weights.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::WeightMismatch`].
pub(super) fn read(folder: &Path, files: Files) -> Result<Weights> {
    let names = names(folder)?;
    let mut candidates: Vec<_> = names
        .iter()
        .filter_map(|name| Candidate::of(name, files))
        .collect();
    candidates.sort_by_key(Candidate::rank);
    let Some((chosen, others)) = candidates.split_first() else {
        return Err(none(folder, files, &names));
    };
    let path = folder.join(chosen.name);
    let SafeFile { tensors, metadata } = match chosen.is_index {
        true => parts(&path, chosen.format)?,
        false => chosen.format.read(&path)?,
    };
    let is_plain = chosen.variant.is_none() && !chosen.is_index;
    let note = (!is_plain || !others.is_empty()).then(|| LoadNote::Weights {
        read: path.clone(),
        passed_over: others.iter().map(|other| other.name.into()).collect(),
    });
    Ok(Weights {
        path,
        tensors,
        metadata,
        note,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Safe,
    Pickled,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Safe => "safetensors",
            Format::Pickled => "bin",
        }
    }

    fn read(self, path: &Path) -> Result<SafeFile> {
        match self {
            Format::Safe => safe::read(path),
            Format::Pickled => Ok(SafeFile {
                tensors: pickled_tensors(path)?,
                metadata: FileMetadata::new(),
            }),
        }
    }
}

/// A file that holds all weights, or the index of several that do so together.
#[derive(Debug)]
struct Candidate<'a> {
    name: &'a str,
    format: Format,
    variant: Option<&'a str>,
    is_index: bool,
}

impl<'a> Candidate<'a> {
    /// Recognises `diffusion_pytorch_model[.variant].safetensors`, or
    /// `diffusion_pytorch_model.safetensors.index[.variant].json`, where older versions put the
    /// variant before `index`. The same with `bin`, and with the names of transformers.
    fn of(name: &'a str, files: Files) -> Option<Self> {
        if files == Files::Diffusers {
            return Self::after(name, name.strip_prefix(DIFFUSERS)?);
        }
        let mut named = TRANSFORMERS.into_iter().filter_map(|(begin, format)| {
            let candidate = Self::after(name, name.strip_prefix(begin)?)?;
            (candidate.format == format).then_some(candidate)
        });
        named.next()
    }

    /// Recognises a name by what comes after its beginning.
    fn after(name: &'a str, rest: &'a str) -> Option<Self> {
        let mut format = None;
        let mut variant = None;
        let (mut ends_in_json, mut says_index) = (false, false);
        for part in rest.split('.') {
            match part {
                "safetensors" if format.is_none() => format = Some(Format::Safe),
                "bin" if format.is_none() => format = Some(Format::Pickled),
                "index" => says_index = true,
                "json" => ends_in_json = true,
                // One of several parts, which the index names.
                other if other.contains("-of-") => return None,
                other if variant.is_none() && !other.is_empty() => variant = Some(other),
                _ => return None,
            }
        }
        let last = rest.rsplit('.').next()?;
        let ends_right = match says_index {
            true => last == "json",
            false => last == format?.extension(),
        };
        (ends_right && says_index == ends_in_json).then_some(Self {
            name,
            format: format?,
            variant,
            is_index: says_index,
        })
    }

    /// Sort key: the plain file comes first. Not every build reads pickles.
    fn rank(&self) -> (bool, bool, Format, usize, bool, &'a str) {
        let is_unread = self.format == Format::Pickled && !cfg!(feature = "pytorch");
        let variant = self.variant.unwrap_or_default();
        let place = VARIANTS.iter().position(|known| *known == variant);
        (
            is_unread,
            self.variant.is_some(),
            self.format,
            place.unwrap_or(VARIANTS.len()),
            self.is_index,
            self.name,
        )
    }
}

/// The error for a folder without weights, which says what it holds instead.
fn none(folder: &Path, files: Files, names: &[String]) -> Error {
    let weights = files.weights();
    let kind = |name: &String| {
        let lower = name.to_lowercase();
        let mut formats = OTHER_FORMATS.iter();
        formats.find(|(ending, _)| lower.ends_with(ending))
    };
    let parts: Vec<_> = names.iter().filter(|name| name.contains("-of-")).collect();
    let first = names.iter().find_map(|name| Some((name, kind(name)?.1)));
    let found = match (parts.first(), first) {
        (Some(part), _) => format!(
            "the folder holds {}, {part}, but no index: download the .index.json next to {}",
            if parts.len() == 1 {
                "a part of the weights"
            } else {
                "parts of the weights, such as"
            },
            if parts.len() == 1 { "it" } else { "them" }
        ),
        (None, Some((name, what))) => {
            format!(
                "the folder holds {name} ({what}); save the model from Python with `save_pretrained`"
            )
        }
        (None, None) => {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Error::io("reading", folder.join(weights))(missing);
        }
    };
    invalid(
        folder,
        format!("it has no {weights}, nor a variant or parts of it; {found}"),
    )
}

/// The tensors of all parts named by an index.
fn parts(index: &Path, format: Format) -> Result<SafeFile> {
    let text = read_configuration(index)?;
    let map = weight_map(&text, index, format)?;
    let files: BTreeSet<&str> = map.values().map(String::as_str).collect();
    if files.len() > MOST_PARTS {
        let message = format!(
            "it names {} files; at most {MOST_PARTS} are read",
            files.len()
        );
        return Err(invalid(index, message));
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    let missing = files.iter().filter(|file| !folder.join(file).exists());
    let missing: Vec<_> = missing.map(|file| file.to_string()).collect();
    if !missing.is_empty() {
        let message = format!(
            "it names parts that are not there: {}; download them again",
            listed(&missing)
        );
        return Err(invalid(index, message));
    }
    let mut read = Vec::with_capacity(files.len());
    let mut metadata = FileMetadata::new();
    for file in files {
        let path = folder.join(file);
        let SafeFile {
            tensors,
            metadata: own,
        } = format.read(&path)?;
        metadata.extend(own);
        let mut of_part = map.iter().filter(|(_, place)| *place == file);
        if let Some((name, _)) = of_part.find(|(name, _)| !tensors.contains_key(*name)) {
            let detail = ": the index says that it is there";
            return Err(mismatch(&path, "missing", name, detail));
        }
        read.push((file, path, tensors));
    }
    let mut all = StoredTensors::new();
    for (file, path, tensors) in read {
        for (name, tensor) in tensors {
            match map.get(&name) {
                Some(place) if place == file => drop(all.insert(name, tensor)),
                Some(place) => {
                    let detail =
                        format!(": the index assigns it to {place}, which also contains it");
                    return Err(mismatch(&path, "duplicate", name, detail));
                }
                None => {
                    let detail = ": the index does not name it";
                    return Err(mismatch(&path, "unexpected", name, detail));
                }
            }
        }
    }
    Ok(SafeFile {
        tensors: all,
        metadata,
    })
}

/// The file of each tensor. All files are in the same folder.
fn weight_map(text: &str, index: &Path, format: Format) -> Result<BTreeMap<String, String>> {
    let refuse = |message: String| Err(invalid(index, message));
    let object = match python_object(text) {
        Ok(object) => object,
        Err(error) => return refuse(format!("not the index of weights in parts: {error}")),
    };
    let Some(Value::Object(map)) = object.get("weight_map") else {
        return refuse("not the index of weights in parts: it has no `weight_map`".into());
    };
    let mut places = BTreeMap::new();
    for (name, place) in map {
        let Some(place) = place.as_str() else {
            return refuse(format!(
                "it places `{name}` in {place}, which is not a file name"
            ));
        };
        if !is_file_name(place) || !place.ends_with(format.extension()) {
            let extension = format.extension();
            return refuse(format!(
                "each part must be the name of a .{extension} file in the same folder; `{}` is in `{place}`",
                shortened(name.clone())
            ));
        }
        places.insert(name.clone(), place.into());
    }
    if places.is_empty() {
        return refuse("its `weight_map` names no tensor".into());
    }
    Ok(places)
}

/// Whether a text is a plain file name on every system, so that it cannot lead to another folder.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one = matches!(components.next(), Some(Component::Normal(_)));
    is_one && components.next().is_none() && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests;
