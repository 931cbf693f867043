//! The settings of a flow-matching sampler, and the scheduler's file of diffusers that holds them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::json::python_object;
use crate::files::refusals::Refusals;
use crate::files::{invalid, path_text, read_configuration};

const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
/// Keys that are read, besides the class.
const SHIFT: &str = "shift";
const NUM_TRAIN_TIMESTEPS: &str = "num_train_timesteps";
/// Keys that change the path or the steps unless they are null or false.
const SWITCHES: [&str; 7] = [
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
];
/// Keys of dynamic shifting, which mean nothing without it.
const OF_DYNAMIC_SHIFTING: [&str; 5] = [
    "base_image_seq_len",
    "base_shift",
    "max_image_seq_len",
    "max_shift",
    "time_shift_type",
];

/// Settings of [`EulerFlowSampler`](super::EulerFlowSampler).
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_inference_steps` | 28 | steps from noise to a sample | 1 to `num_train_timesteps` |
/// | `shift` | 1 | more steps near the noise: `σ ← sσ / (1 + (s − 1)σ)` | > 0 |
/// | `num_train_timesteps` | 1000 | how finely the path was divided in training | ≥ 2 |
///
/// These are settings of diffusers' `FlowMatchEulerDiscreteScheduler`, whose file
/// [`from_file`](EulerFlowConfig::from_file) reads. Stable Diffusion 3 has a shift of 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EulerFlowConfig {
    /// Steps from noise to a sample.
    pub num_inference_steps: usize,
    /// More steps near the noise if above 1.
    pub shift: f64,
    /// How finely the path was divided in training.
    pub num_train_timesteps: usize,
}

impl Default for EulerFlowConfig {
    fn default() -> Self {
        Self {
            num_inference_steps: 28,
            shift: 1.0,
            num_train_timesteps: 1000,
        }
    }
}

impl EulerFlowConfig {
    /// Reads the `scheduler_config.json` of diffusers' `FlowMatchEulerDiscreteScheduler`, strictly.
    /// The number of steps is not in the file, and is the default.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::InvalidFile`](crate::Error::InvalidFile) if the
    /// file is not such JSON, or longer than 1 MiB;
    /// [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig) for another class, and with
    /// the key and the value for a setting that this crate does not have, such as dynamic shifting.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_configuration(path)?;
        Self::from_json(&text, &path_text(path))
    }

    /// Reads the text of such a file; `file` names it in errors.
    ///
    /// # Errors
    /// Those of [`from_file`](EulerFlowConfig::from_file), except I/O errors.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let object = object(text, file)?;
        let mut refusals = Refusals::of(file);
        let config = read(&object, &mut refusals);
        refusals.into_result()?;
        Ok(config)
    }

    /// Whether a scheduler's file names the class that [`from_file`](EulerFlowConfig::from_file)
    /// reads.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::InvalidFile`](crate::Error::InvalidFile) if the
    /// file is not JSON of a scheduler, or longer than 1 MiB.
    pub fn is_of_file(path: impl AsRef<Path>) -> Result<bool> {
        let path = path.as_ref();
        let object = object(&read_configuration(path)?, &path_text(path))?;
        Ok(object
            .get("_class_name")
            .is_some_and(|class| class == CLASS))
    }
}

fn object(text: &str, file: &str) -> Result<Map<String, Value>> {
    python_object(text).map_err(|error| {
        let message = format!("not a diffusers scheduler configuration: {error}");
        invalid(file.as_ref(), message)
    })
}

/// The settings; what is refused is added to `refusals`.
fn read(object: &Map<String, Value>, refusals: &mut Refusals<'_>) -> EulerFlowConfig {
    let mut config = EulerFlowConfig::default();
    for (key, value) in object {
        match key.as_str() {
            "_class_name" if value == CLASS => {}
            "_class_name" => refusals.add(key, value, format!("only {CLASS} is read")),
            SHIFT => match value.as_f64() {
                Some(shift) => config.shift = shift,
                None => refusals.add(key, value, "it must be a number"),
            },
            NUM_TRAIN_TIMESTEPS => match value.as_u64() {
                Some(count) => config.num_train_timesteps = count as usize,
                None => refusals.add(key, value, "it must be a whole number"),
            },
            switch if SWITCHES.contains(&switch) => {
                if !matches!(value, Value::Null | Value::Bool(false)) {
                    refusals.add(key, value, "only a constant shift is implemented");
                }
            }
            other if OF_DYNAMIC_SHIFTING.contains(&other) || other.starts_with('_') => {}
            _ => refusals.add_unknown(key, value),
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of Stable Diffusion 3.
    #[test]
    fn the_file_of_diffusers_is_read() {
        let text = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0",
            "num_train_timesteps": 1000, "shift": 3.0}"#;
        let config = EulerFlowConfig::from_json(text, "file").unwrap();
        assert_eq!((config.shift, config.num_train_timesteps), (3.0, 1000));
        let saved = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "base_shift": 0.5, "invert_sigmas": false,
            "shift_terminal": null, "time_shift_type": "exponential", "use_dynamic_shifting": false}"#;
        let config = EulerFlowConfig::from_json(saved, "file").unwrap();
        assert_eq!(config, EulerFlowConfig::default());
    }

    #[test]
    fn other_paths_are_refused_by_key() {
        for (text, name) in [
            (r#"{"_class_name": "DDIMScheduler"}"#, "DDIMScheduler"),
            (r#"{"use_dynamic_shifting": true}"#, "use_dynamic_shifting"),
            (r#"{"shift_terminal": 0.1}"#, "shift_terminal"),
            (r#"{"shift": "three"}"#, "shift"),
            (r#"{"num_train_timesteps": 0.5}"#, "num_train_timesteps"),
            (r#"{"new_key": 1}"#, "new_key"),
            ("[]", "not a diffusers"),
        ] {
            let error = EulerFlowConfig::from_json(text, "file").unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
