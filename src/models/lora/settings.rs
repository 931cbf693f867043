//! peft's settings, in `adapter_config.json` or in the header of a file: the scale of the products.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::names::Spelling;
use crate::error::Result;
use crate::files::json::python_object;
use crate::files::{invalid, path_text, read_configuration, replace};
use crate::models::folder::FileMetadata;
use crate::models::settings::unsupported;

const CONFIG: &str = "adapter_config.json";
/// The entry of a header in which diffusers writes the settings of each part of a pipeline.
const HEADER: &str = "lora_adapter_metadata";
/// Settings that make the product another one, and the values with which they do not.
const REFUSED: [(&str, &[Value]); 6] = [
    ("use_dora", &[Value::Null, Value::Bool(false)]),
    ("use_qalora", &[Value::Null, Value::Bool(false)]),
    ("alora_invocation_tokens", &[Value::Null]),
    ("lora_bias", &[Value::Null, Value::Bool(false)]),
    ("layer_replication", &[Value::Null]),
    ("megatron_config", &[Value::Null]),
];

/// How the scale of a layer follows from the settings of the factors.
#[derive(Debug, Clone, Default)]
pub(super) struct Scales {
    /// The settings in the header of the file, by the part of a pipeline that they are for. Those
    /// of a single network, which name no part, are under the empty name.
    header: BTreeMap<String, Map<String, Value>>,
    /// Those beside the file.
    config: Option<Map<String, Value>>,
    /// The file as it was read.
    text: String,
}

impl Scales {
    /// The settings beside a file of factors, if there are any.
    pub(super) fn beside(path: &Path) -> Result<Self> {
        let file = path.with_file_name(CONFIG);
        if !file.is_file() {
            return Ok(Self::default());
        }
        let text = read_configuration(&file)?;
        let config = python_object(&text)
            .map_err(|error| invalid(&file, format!("not the settings of a LoRA: {error}")))?;
        check(&config, &file)?;
        Ok(Self {
            config: Some(config),
            text,
            ..Self::default()
        })
    }

    /// Adds the settings in the header of the file, if there are any.
    pub(super) fn with_header(mut self, metadata: &FileMetadata, path: &Path) -> Result<Self> {
        let Some(text) = metadata.get(HEADER) else {
            return Ok(self);
        };
        let settings = python_object(text).map_err(|error| {
            let message = format!("`{HEADER}` in its header does not hold settings: {error}");
            invalid(path, message)
        })?;
        for (key, value) in settings {
            // `unet.r`, or only `r`; no setting of peft has a dot in its name.
            let (part, key) = key.rsplit_once('.').unwrap_or(("", &key));
            let of_part = self.header.entry(part.into()).or_default();
            of_part.insert(key.into(), value);
        }
        for settings in self.header.values() {
            check(settings, path)?;
        }
        Ok(self)
    }

    /// The settings of a layer: those in the header go before those beside the file.
    fn settings(&self, stem: &str) -> Option<&Map<String, Value>> {
        let (part, _) = stem.split_once('.').unwrap_or_default();
        let of_part = self.header.get(part).or(self.header.get(""));
        of_part.or(self.config.as_ref())
    }

    /// Writes the settings beside a file of factors, where they may already be.
    pub(super) fn write_beside(&self, path: &Path) -> Result<()> {
        let Some(config) = &self.config else {
            return Ok(());
        };
        let there = Self::beside(path)?.config;
        if there.as_ref() == Some(config) {
            return Ok(());
        }
        let file = path.with_file_name(CONFIG);
        if there.is_some() {
            let detail = "it holds the scale of other factors: save into another folder";
            return Err(invalid(&file, detail));
        }
        replace(&file, |file| file.write_all(self.text.as_bytes()))
    }

    /// `α / r` of a layer; `stated` is the `α` of the file itself.
    pub(super) fn scale(
        &self,
        spelling: Spelling,
        stem: &str,
        rank: usize,
        stated: Option<f64>,
    ) -> f64 {
        let rank = rank as f64;
        let settings = match (self.settings(stem), stated) {
            // kohya's scripts take an α of 0 as one that is not there.
            (_, Some(alpha)) if alpha != 0.0 => return alpha / rank,
            (Some(settings), _) if spelling != Spelling::Kohya => settings,
            _ => return 1.0,
        };
        let number = |key: &str| settings.get(key).and_then(Value::as_f64);
        let alpha = pattern(settings.get("alpha_pattern"), stem).or(number("lora_alpha"));
        let stabilised = settings.get("use_rslora").and_then(Value::as_bool);
        match (alpha, stabilised) {
            (Some(alpha), Some(true)) => alpha / rank.sqrt(),
            (Some(alpha), _) => alpha / rank,
            (None, _) => 1.0,
        }
    }
}

/// Refuses settings that make the product another one.
fn check(settings: &Map<String, Value>, file: &Path) -> Result<()> {
    for (key, values) in REFUSED {
        if let Some(value) = settings.get(key).filter(|value| !values.contains(value)) {
            let remedy = "the product would be another one: merge it into the model in Python";
            return Err(unsupported(&path_text(file), key, value, remedy));
        }
    }
    Ok(())
}

/// The number of the first entry whose name ends the layer's path.
fn pattern(patterns: Option<&Value>, stem: &str) -> Option<f64> {
    let patterns = patterns?.as_object()?;
    let found = patterns
        .iter()
        .find(|(name, _)| super::names::ends_in(stem, name));
    found?.1.as_f64()
}
