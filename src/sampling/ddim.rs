//! Denoising diffusion implicit models.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Sampler;
use super::reverse::{ReverseProcess, Settings};
use crate::error::{Error, Result, check_probability};
use crate::process::config::TimestepSpacing;
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig};

/// Settings of [`DdimSampler`].
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_inference_steps` | 50 | steps from noise to a sample | 1 to `T` |
/// | `eta` | 0 | 0 deterministic, 1 as noisy as DDPM | 0 to 1 |
/// | `clip_sample` | `Some(1.0)` | clamps the predicted clean point to `[−c, c]` | > 0 |
/// | `prediction_type` | `Epsilon` | what the model predicts | |
/// | `timestep_spacing` | leading | which of the `T` steps are visited | |
/// | `steps_offset` | 0 | added to them where spacing is leading | so that all visited steps are below `T` |
/// | `set_alpha_to_one` | true | the last step goes to `ᾱ = 1` rather than to `ᾱ_0` | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DdimConfig {
    /// Steps from noise to a sample.
    pub num_inference_steps: usize,
    /// How much noise each step adds: 0 none, 1 as much as DDPM.
    pub eta: f64,
    /// Half-width of the clamp of the predicted clean point, `None` for no clamp.
    pub clip_sample: Option<f64>,
    /// What the model predicts: the same as the trainer is told.
    pub prediction_type: PredictionType,
    /// Which of the training steps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the visited steps where spacing is leading.
    pub steps_offset: usize,
    /// Whether the last step goes to `ᾱ = 1` rather than to `ᾱ_0`.
    pub set_alpha_to_one: bool,
}

impl Default for DdimConfig {
    fn default() -> Self {
        Self::from_scheduler(&SchedulerConfig::default(), 50)
    }
}

impl DdimConfig {
    /// The settings that a diffusers scheduler configuration implies, with `eta = 0`.
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Self {
        Self {
            num_inference_steps,
            eta: 0.0,
            clip_sample: config.clip_sample.then_some(config.clip_sample_range),
            prediction_type: config.prediction_type,
            timestep_spacing: config.timestep_spacing,
            steps_offset: config.steps_offset,
            set_alpha_to_one: config.set_alpha_to_one,
        }
    }
}

/// Denoising diffusion implicit models: draws samples in few steps, by [`Sampler::sample`].
///
/// # Example
/// ```
/// use siss::DdpmScheduler;
/// use siss::sampling::{DdimConfig, DdimSampler, Sampler};
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let config = DdimConfig { num_inference_steps: 4, ..DdimConfig::default() };
/// let sampler = DdimSampler::new(&scheduler, config)?;
/// assert_eq!(sampler.timesteps(), [750, 500, 250, 0]);
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Song et al. 2021, *Denoising Diffusion Implicit Models*, Eq. 12 and 16.
#[derive(Debug, Clone)]
pub struct DdimSampler {
    process: ReverseProcess,
    config: DdimConfig,
}

impl DdimSampler {
    /// A sampler over the steps of `scheduler`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range; [`Error::InvalidSetting`] where a timestep without signal
    /// would be visited with a model that predicts noise.
    pub fn new(scheduler: &DdpmScheduler, config: DdimConfig) -> Result<Self> {
        check_probability("eta", config.eta)?;
        let settings = Settings {
            num_inference_steps: config.num_inference_steps,
            clip_sample: config.clip_sample,
            prediction_type: config.prediction_type,
            timestep_spacing: config.timestep_spacing,
            steps_offset: config.steps_offset,
        };
        Ok(Self {
            process: ReverseProcess::new(scheduler, settings)?,
            config,
        })
    }

    /// The settings.
    pub fn config(&self) -> &DdimConfig {
        &self.config
    }

    /// One step from `timestep` to the one `⌊T / num_inference_steps⌋` lower, as diffusers takes it. On grids that
    /// are not even, [`sample`](Sampler::sample) goes from each visited timestep to the next instead.
    ///
    /// # Shapes
    /// - `noisy`, `model_output`, `noise` and the result: `[batch, …]`; `noise` is used where `eta > 0`
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`], [`Error::ShapeMismatch`]; [`Error::MissingPart`] for `eta > 0` without noise.
    pub fn step<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let stride = self.scheduler().num_timesteps() / self.config.num_inference_steps;
        let previous = timestep.checked_sub(stride);
        self.step_to(noisy, model_output, timestep, previous, noise)
    }

    /// `ᾱ` where the last step ends.
    fn final_alpha_bar(&self) -> f64 {
        match self.scheduler().alpha_bars().first() {
            Some(&first) if !self.config.set_alpha_to_one => first,
            _ => 1.0,
        }
    }
}

impl Sampler for DdimSampler {
    fn scheduler(&self) -> &DdpmScheduler {
        &self.process.scheduler
    }

    fn timesteps(&self) -> &[usize] {
        &self.process.timesteps
    }

    fn needs_noise(&self, _timestep: usize) -> bool {
        self.config.eta > 0.0
    }

    fn step_to<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let process = &self.process;
        let step = process.step(noisy, model_output, timestep, previous, noise.as_ref())?;
        let alpha_bar = step.alpha_bar;
        let previous_alpha_bar = step.previous_alpha_bar.unwrap_or(self.final_alpha_bar());
        // x_{t−1} = √ᾱ_{t−1} x_0 + √(1 − ᾱ_{t−1} − s²) ε + s z  (Eq. 12), s from Eq. 16.
        let variance =
            (1.0 - previous_alpha_bar) / (1.0 - alpha_bar) * (1.0 - alpha_bar / previous_alpha_bar);
        let deviation = self.config.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - previous_alpha_bar - deviation * deviation)
            .max(0.0)
            .sqrt();
        let mean = step.clean * previous_alpha_bar.sqrt() + step.epsilon * direction;
        match noise {
            Some(noise) => Ok(mean + noise * deviation),
            None if deviation == 0.0 => Ok(mean),
            None => Err(Error::MissingPart {
                owner: format!("the step with eta {}", self.config.eta),
                missing: "noise",
                remedy: "give standard normal noise, or set eta to 0",
            }),
        }
    }
}
