//! diffusers' `scheduler_config.json`: the settings that concern training and sampling.

mod diffusers;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::files::{path_text, read_configuration};
use crate::process::beta::{BetaSchedule, alpha_bars, rescale_to_zero_terminal_snr};
use crate::process::prediction::PredictionType;

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
    /// `(1 − ᾱ') / (1 − ᾱ) β`, right for data that consist of one point. The default of diffusers.
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
/// | `steps_offset` | 0 | added to the steps if spacing is leading | all visited steps below `T` |
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
    /// What the model predicts, according to the file. The model itself decides; a process made
    /// from this configuration only refuses a contradiction.
    pub prediction_type: PredictionType,
    /// Whether a sampler clamps the predicted clean point.
    pub clip_sample: bool,
    /// Half-width of the clamp.
    pub clip_sample_range: f64,
    /// Which steps a sampler visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the visited steps if spacing is leading.
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

impl SchedulerConfig {
    /// `ᾱ_t` of every step of the process.
    pub(crate) fn alpha_bars(&self) -> Result<Vec<f64>> {
        let alpha_bars = alpha_bars(&self.beta_schedule.betas(self.num_timesteps)?);
        Ok(match self.zero_terminal_snr {
            true => rescale_to_zero_terminal_snr(&alpha_bars),
            false => alpha_bars,
        })
    }

    /// Reads a diffusers `scheduler_config.json`, strictly.
    ///
    /// The class must have a discrete process that follows from its betas. A key that is unknown or
    /// would change the process is refused; keys that concern only a sampler are ignored. An absent
    /// key has the default of its class.
    ///
    /// # Errors
    /// - [`Error::Io`](crate::Error::Io)
    /// - [`Error::InvalidFile`](crate::Error::InvalidFile) if the file is not such JSON, or longer
    ///   than 1 MiB
    /// - [`Error::UnsupportedConfig`](crate::Error::UnsupportedConfig), with the key and the value,
    ///   for a setting that this crate does not have
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_configuration(path)?;
        Self::from_json(&text, &path_text(path))
    }

    /// Reads the text of a diffusers `scheduler_config.json`; `file` names it in errors.
    ///
    /// # Errors
    /// Those of [`from_file`](SchedulerConfig::from_file), except I/O errors.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        diffusers::read(text, file)
    }
}
