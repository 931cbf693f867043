//! diffusers' `scheduler_config.json`: what of it concerns training and sampling.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::denoiser::PredictionType;
use crate::error::{Error, Result};
use crate::files::{invalid, read_configuration, shortened};
use crate::schedule::BetaSchedule;

/// Which of the training steps a sampler visits (diffusers' `timestep_spacing`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// `0, k, 2k, …` with `k = ⌊T / n⌋`, plus an offset. The default of diffusers.
    #[default]
    Leading,
    /// `T − 1, T − 1 − T/n, …`, rounded.
    Trailing,
    /// From `0` to `T − 1` inclusive, evenly, rounded.
    Linspace,
}

/// Variance of the noise that a step of DDPM adds (diffusers' `variance_type`).
///
/// A step goes from `ᾱ` to an earlier `ᾱ'`; `β = 1 − ᾱ / ᾱ'`.
///
/// # Reference
/// Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, section 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// `(1 − ᾱ') / (1 − ᾱ) β`, right for data that is one point. The default of diffusers.
    #[default]
    FixedSmall,
    /// `β`, right for standard normal data.
    FixedLarge,
}

/// The settings of a diffusers `scheduler_config.json` that concern training and sampling.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_timesteps` | 1000 | steps of the process | ≥ 2 |
/// | `beta_schedule` | linear, 1e-4 to 0.02 | variance of each step | `β ∈ (0, 1)` |
/// | `zero_terminal_snr` | false | shift the schedule to end without signal | |
/// | `prediction_type` | `Epsilon` | what the model predicts | |
/// | `clip_sample` | true | clamp the predicted clean point while sampling | |
/// | `clip_sample_range` | 1 | … to `[−range, range]` | > 0 |
/// | `timestep_spacing` | leading | steps a sampler visits | |
/// | `steps_offset` | 0 | added to them where spacing is leading | so that all visited steps are below `T` |
/// | `set_alpha_to_one` | true | DDIM ends at `ᾱ = 1` instead of `ᾱ_0` | |
/// | `variance_type` | fixed small | noise that a step of DDPM adds | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Number of steps of the process.
    pub num_timesteps: usize,
    /// Variance of each step.
    pub beta_schedule: BetaSchedule,
    /// Whether the schedule is shifted so that its last step carries no signal.
    pub zero_terminal_snr: bool,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Whether a sampler clamps the predicted clean point.
    pub clip_sample: bool,
    /// Half-width of the clamp.
    pub clip_sample_range: f64,
    /// Which steps a sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the visited steps where spacing is leading.
    pub steps_offset: usize,
    /// Whether DDIM's last step goes to `ᾱ = 1` rather than to `ᾱ_0`.
    pub set_alpha_to_one: bool,
    /// Variance of the noise that a step of DDPM adds.
    pub variance_type: VarianceType,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_timesteps: 1000,
            beta_schedule: BetaSchedule::linear(),
            zero_terminal_snr: false,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            variance_type: VarianceType::FixedSmall,
        }
    }
}

/// The keys of the file that matter here; diffusers adds many that do not.
#[derive(Deserialize)]
#[serde(default)]
struct DiffusersSchedulerFile {
    _class_name: String,
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f64>>,
    prediction_type: String,
    rescale_betas_zero_snr: bool,
    clip_sample: bool,
    clip_sample_range: f64,
    thresholding: bool,
    timestep_spacing: String,
    steps_offset: usize,
    set_alpha_to_one: bool,
    // Null in the files of other samplers.
    variance_type: Option<String>,
}

impl Default for DiffusersSchedulerFile {
    fn default() -> Self {
        Self {
            _class_name: "DDPMScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: "linear".into(),
            trained_betas: None,
            prediction_type: "epsilon".into(),
            rescale_betas_zero_snr: false,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            timestep_spacing: "leading".into(),
            steps_offset: 0,
            set_alpha_to_one: true,
            variance_type: None,
        }
    }
}

impl SchedulerConfig {
    /// Reads a diffusers `scheduler_config.json`. Keys that concern other things are ignored.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`] where it is no such JSON or longer than 1 MiB, [`Error::UnsupportedConfig`]
    /// with the key and the value where a setting is not one of this crate's.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_configuration(path)?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads the text of a diffusers `scheduler_config.json`; `file` names it in errors.
    ///
    /// # Errors
    /// As [`from_file`](SchedulerConfig::from_file), without the I/O.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let json: DiffusersSchedulerFile = serde_json::from_str(text).map_err(|error| {
            let message = format!("not a diffusers scheduler configuration: {error}");
            invalid(file.as_ref(), message)
        })?;
        let unsupported = |key: &str, value: &str, remedy: &str| Error::UnsupportedConfig {
            file: file.into(),
            key: key.into(),
            value: format!("`{}`", shortened(value.into())),
            remedy: remedy.into(),
        };
        if ["Flow", "EDM", "ScoreSde", "VQ", "CMStochastic"]
            .iter()
            .any(|kind| json._class_name.contains(kind))
        {
            return Err(unsupported(
                "_class_name",
                &json._class_name,
                "the file must describe a discrete process of betas, as DDPMScheduler's or DDIMScheduler's does",
            ));
        }
        if json.thresholding {
            return Err(unsupported(
                "thresholding",
                "true",
                "dynamic thresholding is not implemented: set it to false",
            ));
        }
        let (start, end) = (json.beta_start, json.beta_end);
        let beta_schedule = match (json.trained_betas, json.beta_schedule.as_str()) {
            (Some(betas), _) => BetaSchedule::Trained(betas),
            (None, "linear") => BetaSchedule::Linear { start, end },
            (None, "scaled_linear") => BetaSchedule::ScaledLinear { start, end },
            (None, "squaredcos_cap_v2") => BetaSchedule::SquaredCosine,
            (None, other) => {
                return Err(unsupported(
                    "beta_schedule",
                    other,
                    "use linear, scaled_linear, squaredcos_cap_v2 or trained_betas",
                ));
            }
        };
        let prediction_type = match json.prediction_type.as_str() {
            "epsilon" => PredictionType::Epsilon,
            "sample" => PredictionType::Sample,
            "v_prediction" => PredictionType::Velocity,
            other => {
                return Err(unsupported(
                    "prediction_type",
                    other,
                    "use epsilon, sample or v_prediction",
                ));
            }
        };
        let timestep_spacing = match json.timestep_spacing.as_str() {
            "leading" => TimestepSpacing::Leading,
            "trailing" => TimestepSpacing::Trailing,
            "linspace" => TimestepSpacing::Linspace,
            other => {
                return Err(unsupported(
                    "timestep_spacing",
                    other,
                    "use leading, trailing or linspace",
                ));
            }
        };
        let variance_type = match json.variance_type.as_deref() {
            // exp(½ ln variance), as the second has it, is the deviation of the first.
            None | Some("fixed_small" | "fixed_small_log") => VarianceType::FixedSmall,
            Some("fixed_large") => VarianceType::FixedLarge,
            Some(other) => {
                return Err(unsupported(
                    "variance_type",
                    other,
                    "use fixed_small or fixed_large; models that learn the variance are not supported",
                ));
            }
        };
        Ok(Self {
            num_timesteps: json.num_train_timesteps,
            beta_schedule,
            zero_terminal_snr: json.rescale_betas_zero_snr,
            prediction_type,
            clip_sample: json.clip_sample,
            clip_sample_range: json.clip_sample_range,
            timestep_spacing,
            steps_offset: json.steps_offset,
            set_alpha_to_one: json.set_alpha_to_one,
            variance_type,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_diffusers_file_is_read_and_unknown_values_are_named() {
        let config = SchedulerConfig::from_json(
            r#"{"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "beta_end": 0.012, "clip_sample": false, "steps_offset": 1, "variance_type": "fixed_large"}"#,
            "scheduler_config.json",
        )
        .unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::scaled_linear());
        assert_eq!((config.clip_sample, config.steps_offset), (false, 1));
        assert_eq!(config.variance_type, VarianceType::FixedLarge);
        for unset in [r#"{"variance_type": null}"#, "{}"] {
            let config = SchedulerConfig::from_json(unset, "f.json").unwrap();
            assert_eq!(config, SchedulerConfig::default());
        }
        for (key, value) in [
            ("_class_name", "\"FlowMatchEulerDiscreteScheduler\""),
            ("beta_schedule", "\"sigmoid\""),
            ("prediction_type", "\"flow\""),
            ("timestep_spacing", "\"other\""),
            ("thresholding", "true"),
            ("variance_type", "\"learned_range\""),
            ("variance_type", "\"fixed_large_log\""),
        ] {
            let text = format!("{{\"{key}\": {value}}}");
            let error = SchedulerConfig::from_json(&text, "f.json")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(key) && error.contains(value.trim_matches('"')),
                "{error}"
            );
        }
    }
}
