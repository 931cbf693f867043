//! Which kind a model is, by the classes that its files name, and which kinds are unlearned.

use std::error::Error;

use serde_json::{Map, Value};
use siss::files::path_text;
use siss::models::ModelFolder;

use super::source::Source;
use super::{Named, Result, Subject};
use crate::files;

/// What is supported, in words.
const SUPPORTED: &str = "diffusers' UNet2DModel (with or without classes), DiT, and Stable Diffusion 1, 2, XL and 3 are supported here";

/// The kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `UNet2DModel` without a condition.
    Unconditional,
    /// A `UNet2DModel` with classes.
    Classes,
    /// A `DiTTransformer2DModel`.
    Dit,
    /// A `UNet2DConditionModel`: Stable Diffusion 1, 2 and XL.
    Text,
    /// An `SD3Transformer2DModel`.
    Sd3,
}

impl Kind {
    /// The kind of a model, by the configuration of its network.
    pub fn of(source: &Source) -> Result<Self> {
        let kind = Self::of_folder(source.folder())?;
        match source.file() {
            Some(file) if kind != Self::Text => Err(format!(
                "{}: single files are read of Stable Diffusion 1, 2 and XL, but the network of --config is of another kind; give the folder of its pipeline instead",
                path_text(file)
            )
            .into()),
            _ => Ok(kind),
        }
    }

    fn of_folder(origin: &ModelFolder) -> Result<Self> {
        let path = origin.network().join("config.json");
        let text = files::read_text(&path)?;
        // What is wrong with a configuration, the network says when it is read.
        let config: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        let is_given = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
        let is_modulated =
            || config.get("norm_type").and_then(Value::as_str) == Some("ada_norm_zero");
        match config.get("_class_name").and_then(Value::as_str) {
            Some("UNet2DModel") | None => Ok(
                match is_given("num_class_embeds") || is_given("class_embed_type") {
                    true => Self::Classes,
                    false => Self::Unconditional,
                },
            ),
            Some("UNet2DConditionModel") => Ok(Self::Text),
            Some("SD3Transformer2DModel") => Ok(Self::Sd3),
            Some("DiTTransformer2DModel") => Ok(Self::Dit),
            // The name of several transformers before diffusers 0.30.
            Some("Transformer2DModel") if is_modulated() => Ok(Self::Dit),
            Some(class) => Err(format!(
                "{}: the network is a {class}{}; {SUPPORTED}",
                path_text(&path),
                of_pipeline(origin)?
            )
            .into()),
        }
    }
}

/// The pipeline's class, if the index names it.
fn of_pipeline(origin: &ModelFolder) -> siss::Result<String> {
    let class = origin.index()?.and_then(|index| index.class_name);
    Ok(class.map_or_else(String::new, |class| format!(" of a {class}")))
}

/// Adds what the model is and what is unlearned to an error about a setting of its network that is
/// not supported.
pub fn explained(error: Box<dyn Error>, origin: &ModelFolder) -> Box<dyn Error> {
    match error.downcast_ref::<siss::Error>() {
        Some(siss::Error::UnsupportedConfig { .. }) => {
            let pipeline = of_pipeline(origin).unwrap_or_default();
            format!("{error}; the network is one{pipeline}; {SUPPORTED}").into()
        }
        _ => error,
    }
}

/// Rejects options that the kind of model has no use for, and pipelines with other parts.
pub fn check<S: Subject>(named: &Named<'_>, origin: &ModelFolder) -> Result<()> {
    check_options::<S>(named)?;
    let (Some(path), Some(index)) = (origin.index_file(), origin.index()?) else {
        return Ok(());
    };
    let mut parts = index.parts.keys();
    match parts.find(|part| !S::PARTS.contains(&part.as_str())) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{}: the pipeline{} has a `{part}`; {SUPPORTED}, with no other parts than {}",
            path_text(path),
            of_pipeline(origin)?,
            S::PARTS.join(", ")
        )
        .into()),
    }
}

/// Whether the option for a folder of latents is of use depends on the points, not on the kind.
fn check_options<S: Subject>(named: &Named<'_>) -> Result<()> {
    let given = named.conditions.given();
    let mut refused = given.filter(|(option, is_given)| *is_given && !S::OPTIONS.contains(option));
    match refused.find(|(option, _)| *option != "cache") {
        None => Ok(()),
        Some((option, _)) => Err(format!(
            "--{option} is of no use for the model of {}: {}",
            path_text(named.path),
            match S::OPTIONS {
                [] => "it has no condition".into(),
                options => {
                    let options = options.iter().copied();
                    let known = options.filter(|option| named.takes.contains(option));
                    format!("it takes --{}", known.collect::<Vec<_>>().join(", --"))
                }
            }
        )
        .into()),
    }
}
