//! The `model_index.json` of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::files::json::python_object;
use crate::files::{invalid, path_text, read_configuration};

/// The contents of a pipeline's `model_index.json`: its class and its parts.
///
/// # Example
/// ```
/// use siss::models::PipelineIndex;
///
/// let text = r#"{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
///     "scheduler": ["diffusers", "DDPMScheduler"]}"#;
/// let index = PipelineIndex::from_json(text, "model_index.json")?;
/// assert_eq!(index.class_name.as_deref(), Some("DDPMPipeline"));
/// assert_eq!(index.parts["scheduler"].class_name, "DDPMScheduler");
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineIndex {
    /// The pipeline's class; if the file gives a module and a class, only the class.
    pub class_name: Option<String>,
    /// The parts by name. An optional part that is absent is left out.
    pub parts: BTreeMap<String, PipelinePart>,
}

/// A part of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelinePart {
    /// The Python library with the part's class, or the module in the pipeline's folder.
    pub library: String,
    /// The class of the part.
    pub class_name: String,
}

impl PipelineIndex {
    /// Reads a `model_index.json`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) if the
    /// file is larger than 1 MiB or does not contain such JSON.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_configuration(path)?;
        Self::from_json(&text, &path_text(path))
    }

    /// Reads the text of a `model_index.json`; `file` names it in errors.
    ///
    /// # Errors
    /// Those of [`from_file`](PipelineIndex::from_file), except I/O errors.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let object = python_object(text).map_err(|error| {
            let message = format!("not the index of a diffusers pipeline: {error}");
            invalid(file.as_ref(), message)
        })?;
        let class_name = match object.get("_class_name") {
            Some(Value::Array(module_and_class)) => module_and_class.last(),
            other => other,
        };
        let named = object.iter().filter(|(name, _)| !name.starts_with('_'));
        Ok(Self {
            class_name: class_name.and_then(Value::as_str).map(String::from),
            parts: named
                .filter_map(|(name, value)| Some((name.clone(), part(value)?)))
                .collect(),
        })
    }
}

/// A part of the pipeline; `None` for one of its settings, which are not pairs of names.
fn part(value: &Value) -> Option<PipelinePart> {
    let [library, class_name] = value.as_array()?.as_slice() else {
        return None;
    };
    Some(PipelinePart {
        library: library.as_str()?.into(),
        class_name: class_name.as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_from_settings() {
        let text = r#"{"_class_name": ["pipeline", "Mine"], "_diffusers_version": "0.42.1", "unet": ["diffusers", "UNet2DModel"],
            "safety_checker": [null, null], "guidance": Infinity, "sizes": [1, 2], "vae": ["mine", "Autoencoder"]}"#;
        let index = PipelineIndex::from_json(text, "model_index.json").unwrap();
        assert_eq!(index.class_name.as_deref(), Some("Mine"));
        assert_eq!(index.parts.keys().collect::<Vec<_>>(), ["unet", "vae"]);
        assert_eq!(index.parts["vae"].library, "mine");
    }

    #[test]
    fn text_that_is_no_object_is_an_invalid_file() {
        for text in ["", "[]", "{", "{\"unet\": }"] {
            let error = PipelineIndex::from_json(text, "model_index.json").unwrap_err();
            assert!(matches!(error, crate::Error::InvalidFile { .. }), "{error}");
            assert!(error.to_string().contains("model_index.json"), "{error}");
        }
    }
}
