//! Which kind a model is, by the classes that its files name, and which kinds are unlearned.

use serde_json::{Map, Value};
use siss::files::path_text;
use siss::models::ModelFolder;

use super::{Result, Subject};
use crate::files;
use crate::unlearn::options::Options;

/// What is unlearned, in words.
const SUPPORTED: &str = "diffusers' UNet2DModel (with or without classes), DiT, and Stable Diffusion 1, 2 and XL are unlearned here";

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
}

impl Kind {
    /// The kind of the model in a folder, by the configuration of its network.
    pub fn of(origin: &ModelFolder) -> Result<Self> {
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

/// Rejects options that the kind of model has no use for, and pipelines with other parts.
pub fn check<S: Subject>(options: &Options, origin: &ModelFolder) -> Result<()> {
    check_options::<S>(options)?;
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
fn check_options<S: Subject>(options: &Options) -> Result<()> {
    let given = options.conditions.given().into_iter();
    let mut refused = given.filter(|(option, is_given)| *is_given && !S::OPTIONS.contains(option));
    match refused.find(|(option, _)| *option != "cache") {
        None => Ok(()),
        Some((option, _)) => Err(format!(
            "--{option} is of no use for the model of {}: {}",
            path_text(&options.model),
            match S::OPTIONS {
                [] => "it has no condition".into(),
                options => format!("it takes --{}", options.join(", --")),
            }
        )
        .into()),
    }
}
