//! Ancestral sampling of denoising diffusion probabilistic models.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Sampler;
use super::reverse::{ReverseProcess, Settings};
use crate::error::{Error, Result};
use crate::process::config::{TimestepSpacing, VarianceType};
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig};

/// The least variance of a step, as diffusers has it.
const LEAST_VARIANCE: f64 = 1e-20;

/// Settings of [`DdpmSampler`].
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_inference_steps` | 1000 | steps from noise to a sample | 1 to `T` |
/// | `variance_type` | fixed small | noise that a step adds | |
/// | `clip_sample` | `Some(1.0)` | clamps the predicted clean point to `[−c, c]` | > 0 |
/// | `prediction_type` | `Epsilon` | what the model predicts | |
/// | `timestep_spacing` | leading | which of the `T` steps are visited | |
/// | `steps_offset` | 0 | added to them where spacing is leading | so that all visited steps are below `T` |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DdpmConfig {
    /// Steps from noise to a sample.
    pub num_inference_steps: usize,
    /// Variance of the noise that a step adds.
    pub variance_type: VarianceType,
    /// Half-width of the clamp of the predicted clean point, `None` for no clamp.
    pub clip_sample: Option<f64>,
    /// What the model predicts: the same as the trainer is told.
    pub prediction_type: PredictionType,
    /// Which of the training steps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the visited steps where spacing is leading.
    pub steps_offset: usize,
}

impl Default for DdpmConfig {
    fn default() -> Self {
        Self::from_scheduler(&SchedulerConfig::default(), 1000)
    }
}

impl DdpmConfig {
    /// The settings that a diffusers scheduler configuration implies.
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Self {
        Self {
            num_inference_steps,
            variance_type: config.variance_type,
            clip_sample: config.clip_sample.then_some(config.clip_sample_range),
            prediction_type: config.prediction_type,
            timestep_spacing: config.timestep_spacing,
            steps_offset: config.steps_offset,
        }
    }
}

/// Denoising diffusion probabilistic models: ancestral sampling, by [`Sampler::sample`]. It adds noise in every step, and
/// wants many of them; [`DdimSampler`](super::DdimSampler) needs fewer.
///
/// The numbers are those of diffusers' `DDPMScheduler`. A step from `ᾱ` to `ᾱ'`, with `α = ᾱ / ᾱ'` and `β = 1 − α`:
///
/// `x' = (√ᾱ' β x̂_0 + √α (1 − ᾱ') x) / (1 − ᾱ) + √v z`
///
/// `v` is that of [`VarianceType`], at least 1e-20 where that is the small one. The step from timestep 0 adds no noise.
/// The last step goes to `ᾱ' = 1`; from a timestep above 0, as `steps_offset` and trailing spacing have it, it adds noise
/// as any other, which is next to nothing unless the variance is the large one.
///
/// # Example
/// ```
/// use siss::DdpmScheduler;
/// use siss::sampling::{DdpmConfig, DdpmSampler, Sampler};
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let sampler = DdpmSampler::new(&scheduler, DdpmConfig::default())?;
/// assert_eq!(sampler.timesteps().len(), 1000);
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, Eq. 6, 7 and Algorithm 2.
#[derive(Debug, Clone)]
pub struct DdpmSampler {
    process: ReverseProcess,
    config: DdpmConfig,
}

impl DdpmSampler {
    /// A sampler over the steps of `scheduler`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range; [`Error::InvalidSetting`] where a timestep without signal
    /// would be visited with a model that predicts noise.
    pub fn new(scheduler: &DdpmScheduler, config: DdpmConfig) -> Result<Self> {
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
    pub fn config(&self) -> &DdpmConfig {
        &self.config
    }

    /// One step from `timestep` to the next visited one, as diffusers takes it.
    ///
    /// # Shapes
    /// - `noisy`, `model_output`, `noise` and the result: `[batch, …]`; `noise` is used unless `timestep` is 0
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`], [`Error::ShapeMismatch`]; [`Error::MissingPart`] for a timestep above 0 without
    /// noise.
    pub fn step<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let previous = self.process.visited_below(timestep);
        self.step_to(noisy, model_output, timestep, previous, noise)
    }
}

impl Sampler for DdpmSampler {
    fn scheduler(&self) -> &DdpmScheduler {
        &self.process.scheduler
    }

    fn timesteps(&self) -> &[usize] {
        &self.process.timesteps
    }

    fn needs_noise(&self, timestep: usize) -> bool {
        timestep > 0
    }

    fn step_to<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let (process, current) = (&self.process, noisy.clone());
        let step = process.step(noisy, model_output, timestep, previous, noise.as_ref())?;
        let alpha_bar = step.alpha_bar;
        let previous_alpha_bar = step.previous_alpha_bar.unwrap_or(1.0);
        let alpha = alpha_bar / previous_alpha_bar;
        let beta = 1.0 - alpha;
        // The mean of x_{t−1} given x_t and x_0 (Eq. 7).
        let clean_share = previous_alpha_bar.sqrt() * beta / (1.0 - alpha_bar);
        let noisy_share = alpha.sqrt() * (1.0 - previous_alpha_bar) / (1.0 - alpha_bar);
        let mean = step.clean * clean_share + current * noisy_share;
        if !self.needs_noise(timestep) {
            return Ok(mean);
        }
        let variance = match self.config.variance_type {
            VarianceType::FixedSmall => {
                let posterior = (1.0 - previous_alpha_bar) / (1.0 - alpha_bar) * beta;
                posterior.max(LEAST_VARIANCE)
            }
            VarianceType::FixedLarge => beta,
        };
        let Some(noise) = noise else {
            return Err(Error::MissingPart {
                owner: format!("the step from timestep {timestep}"),
                missing: "noise",
                remedy: "give standard normal noise: DDPM adds some in every step but the one from timestep 0",
            });
        };
        Ok(mean + noise * variance.sqrt())
    }
}
