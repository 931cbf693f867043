//! Ancestral sampling of denoising diffusion probabilistic models (DDPM).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Sampler;
use super::reverse::{ReverseProcess, Visits};
use crate::error::{Error, Result};
use crate::process::config::VarianceType;
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig};

/// The smallest variance of a step, as in diffusers.
const LEAST_VARIANCE: f64 = 1e-20;

/// Settings of [`DdpmSampler`].
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `visits` | 1000 steps, clamped to `[−1, 1]` | the timesteps and the clamp | see [`Visits`] |
/// | `variance_type` | fixed small | noise that a step adds | |
///
/// For a model that comes with a scheduler file, use
/// [`from_scheduler`](DdpmConfig::from_scheduler): the file says whether the predicted clean point
/// is clamped, and for a latent model it must not be. Settings made by hand clamp to `[−1, 1]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DdpmConfig {
    /// Which timesteps are visited, and whether the predicted clean point is clamped.
    pub visits: Visits,
    /// Variance of the noise that a step adds.
    pub variance_type: VarianceType,
}

impl Default for DdpmConfig {
    fn default() -> Self {
        Self::new(1000)
    }
}

impl DdpmConfig {
    /// This many steps, and the defaults for the rest.
    pub fn new(num_inference_steps: usize) -> Self {
        Self::from_scheduler(&SchedulerConfig::default(), num_inference_steps)
    }

    /// The settings that a diffusers scheduler configuration implies.
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Self {
        Self {
            visits: Visits::from_scheduler(config, num_inference_steps),
            variance_type: config.variance_type,
        }
    }
}

/// Draws samples by ancestral sampling, with [`Sampler::sample`]: denoising diffusion probabilistic
/// models.
///
/// Each step adds noise, so many steps are needed; [`DdimSampler`](super::DdimSampler) needs fewer.
///
/// The numbers are those of diffusers' `DDPMScheduler`. A step from `ᾱ` to `ᾱ'`, with `α = ᾱ / ᾱ'`
/// and `β = 1 − α`:
///
/// `x' = (√ᾱ' β x̂_0 + √α (1 − ᾱ') x) / (1 − ᾱ) + √v z`
///
/// `v` is the variance of the [`VarianceType`], at least 1e-20 for the small one. The step from
/// timestep 0 adds no noise. The last step goes to `ᾱ' = 1`. With `steps_offset` or trailing
/// spacing it starts from a timestep above 0 and adds noise like any other step: next to nothing,
/// unless the variance is the large one.
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
    /// A sampler of the process of `scheduler`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range.
    pub fn new(scheduler: &DdpmScheduler, config: DdpmConfig) -> Result<Self> {
        Ok(Self {
            process: ReverseProcess::new(scheduler, &config.visits)?,
            config,
        })
    }

    /// The sampler of a model that comes with a scheduler file: its process and its settings.
    ///
    /// Sampling refuses a model that predicts something else than the file says.
    ///
    /// # Errors
    /// Those of [`new`](DdpmSampler::new) and of [`DdpmScheduler::from_config`].
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let scheduler = DdpmScheduler::from_config(config)?;
        Self::new(
            &scheduler,
            DdpmConfig::from_scheduler(config, num_inference_steps),
        )
    }

    /// The settings.
    pub fn config(&self) -> &DdpmConfig {
        &self.config
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
        prediction_type: PredictionType,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let (process, current) = (&self.process, noisy.clone());
        let step = process.step(
            noisy,
            model_output,
            prediction_type,
            timestep,
            previous,
            noise.as_ref(),
        )?;
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
                remedy: "give standard normal noise: DDPM adds noise in every step except the one from timestep 0",
            });
        };
        Ok(mean + noise * variance.sqrt())
    }
}
