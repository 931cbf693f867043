//! A network's `config.json`, read strictly and written as diffusers writes it.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::json::python_object;
use crate::files::refusals::Refusals;
use crate::files::{invalid, path_text, read_configuration, shortened};

/// The version of diffusers whose layout is written.
pub(super) const DIFFUSERS_VERSION: &str = "0.42.1";
/// Keys that say where a file comes from.
const ORIGINS: [&str; 2] = ["_diffusers_version", "_name_or_path"];
/// Keys that diffusers' `EMAModel` adds to the configuration of the network that it averages.
pub(super) const OF_AVERAGES: [&str; 7] = [
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
];
/// Advice where the weights belong to a computation that is not implemented, so that changing the
/// setting would not help.
const OTHER_NETWORK: &str = "to unlearn another kind of network, implement `siss::Denoiser` for it, as in examples/custom_model.rs";

/// The settings of a network. With serde, its fields have the names of the file's keys.
pub(super) trait Settings: Default + Serialize + DeserializeOwned {
    /// Keys with the only values that are implemented, as JSON; the first one is written.
    const FIXED: &'static [(&'static str, &'static [&'static str])];
    /// Keys that do not change the computation; they are not written.
    const IGNORED: &'static [&'static str];

    /// Checks everything that building and running the network relies on.
    fn validate(&self, file: &str) -> Result<()>;
}

/// Reads a configuration file.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`], [`Error::UnsupportedConfig`] with all keys that are
/// refused.
pub(super) fn from_file<S: Settings>(path: &Path) -> Result<S> {
    let text = read_configuration(path)?;
    from_text(&text, &path_text(path))
}

/// Reads the text of a configuration; `file` names it in errors.
///
/// # Errors
/// Those of [`from_file`], except I/O errors.
pub(super) fn from_text<S: Settings>(text: &str, file: &str) -> Result<S> {
    let object = python_object(text).map_err(|error| {
        let message = format!("not the configuration of a model: {error}");
        invalid(file.as_ref(), message)
    })?;
    let mut known = fields(&S::default());
    let mut refusals = Refusals::of(file);
    for (key, value) in &object {
        let name = key.as_str();
        if ORIGINS.contains(&name) || S::IGNORED.contains(&name) {
            continue;
        }
        if let Some((_, values)) = S::FIXED.iter().find(|(fixed, _)| *fixed == name) {
            if !values.iter().any(|fixed| is_same(fixed, value)) {
                let reason = format!("only {} is implemented", values.join(" or "));
                refusals.add(name, value, of_another_network(reason));
            }
        } else if let Some(default) = known.get(name).cloned() {
            known.insert(key.clone(), value.clone());
            if let Err(error) = S::deserialize(Value::Object(known.clone())) {
                refusals.add(name, value, format!("the value cannot be read: {error}"));
                known.insert(key.clone(), default);
            }
        } else {
            refusals.add_unknown(key, value);
        }
    }
    refusals.into_result()?;
    let settings = S::deserialize(Value::Object(known))
        .map_err(|error| invalid(file.as_ref(), format!("not a configuration: {error}")))?;
    settings.validate(file)?;
    Ok(settings)
}

/// The text of a configuration file.
pub(super) fn to_text<S: Settings>(settings: &S) -> String {
    let mut object = fields(settings);
    for (key, values) in S::FIXED {
        let value = values.first().map(|text| parsed(text));
        object.insert((*key).into(), value.unwrap_or_default());
    }
    if object.contains_key("_class_name") {
        object.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
    }
    format!("{:#}\n", Value::Object(object))
}

fn fields<S: Serialize>(settings: &S) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Whether a value is the one of this text; `1` is `1.0`.
fn is_same(text: &str, value: &Value) -> bool {
    let fixed = parsed(text);
    match (fixed.as_f64(), value.as_f64()) {
        (Some(fixed), Some(value)) => fixed == value,
        _ => fixed == *value,
    }
}

pub(super) fn of_another_network(reason: String) -> String {
    format!("{reason}; {OTHER_NETWORK}")
}

/// The error for one setting.
pub(super) fn unsupported(
    file: &str,
    key: &str,
    value: impl ToString,
    remedy: impl Into<String>,
) -> Error {
    Error::UnsupportedConfig {
        file: file.into(),
        key: shortened(key.into()),
        value: format!("`{}`", shortened(value.to_string())),
        remedy: shortened(remedy.into()),
    }
}

/// Refuses a whole number outside of a range.
pub(super) fn check_between(
    file: &str,
    key: &str,
    value: usize,
    [least, most]: [usize; 2],
) -> Result<()> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => {
            let remedy = format!("it must be from {least} to {most}");
            Err(unsupported(file, key, value, remedy))
        }
    }
}

/// Refuses a number that is not finite and positive.
pub(super) fn check_positive(file: &str, key: &str, value: f64) -> Result<()> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(unsupported(
            file,
            key,
            value,
            "it must be a finite number above 0",
        )),
    }
}

/// Refuses a number that does not divide each number of channels that it applies to.
pub(super) fn check_divides(
    file: &str,
    key: &str,
    divisor: usize,
    channels: &[usize],
) -> Result<()> {
    let undivided = channels
        .iter()
        .find(|channels| divisor == 0 || !channels.is_multiple_of(divisor));
    match undivided {
        Some(channels) => {
            let remedy = format!(
                "it must divide every number of channels it applies to, {channels} among them"
            );
            Err(unsupported(file, key, divisor, remedy))
        }
        None => Ok(()),
    }
}

/// A setting that is the same in all stages, or one value per stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage<T> {
    /// One value for all stages.
    Same(T),
    /// A value for each stage, outermost first.
    Each(Vec<T>),
}

impl<T: Copy> PerStage<T> {
    /// The value of a stage; `None` if there are not so many.
    pub fn get(&self, stage: usize) -> Option<T> {
        match self {
            Self::Same(value) => Some(*value),
            Self::Each(values) => values.get(stage).copied(),
        }
    }

    /// The values of `stages` stages; `None` unless there is one for each.
    pub(super) fn of_stages(&self, stages: usize) -> Option<Vec<T>> {
        match self {
            Self::Same(value) => Some(vec![*value; stages]),
            Self::Each(values) => (values.len() == stages).then(|| values.clone()),
        }
    }
}

/// Height and width, or one number for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Height and width are equal.
    Square(usize),
    /// Height, then width.
    Rectangle([usize; 2]),
}

impl Size {
    /// Height and width.
    pub fn sides(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side; 2],
            Self::Rectangle(sides) => sides,
        }
    }
}
