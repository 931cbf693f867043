//! The sampler of denoising diffusion implicit models (DDIM).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Sampler;
use super::reverse::{ReverseProcess, Visits};
use crate::error::{Error, Result, check_probability};
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig};

/// Settings of [`DdimSampler`].
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `visits` | 50 steps, clamped to `[−1, 1]` | the timesteps and the clamp | see [`Visits`] |
/// | `eta` | 0 | 0 deterministic, 1 as noisy as DDPM | 0 to 1 |
/// | `set_alpha_to_one` | true | the last step goes to `ᾱ = 1` rather than to `ᾱ_0` | |
///
/// For a model that comes with a scheduler file, use
/// [`from_scheduler`](DdimConfig::from_scheduler): the file says whether the predicted clean point
/// is clamped, and for a latent model it must not be. Settings made by hand clamp to `[−1, 1]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DdimConfig {
    /// Which timesteps are visited, and whether the predicted clean point is clamped.
    pub visits: Visits,
    /// How much noise each step adds: 0 for none, 1 for as much as DDPM.
    pub eta: f64,
    /// Whether the last step goes to `ᾱ = 1` rather than to `ᾱ_0`.
    pub set_alpha_to_one: bool,
}

impl Default for DdimConfig {
    fn default() -> Self {
        Self::new(50)
    }
}

impl DdimConfig {
    /// This many steps, and the defaults for the rest.
    pub fn new(num_inference_steps: usize) -> Self {
        Self::from_scheduler(&SchedulerConfig::default(), num_inference_steps)
    }

    /// The settings that a diffusers scheduler configuration implies, with `eta = 0`.
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Self {
        Self {
            visits: Visits::from_scheduler(config, num_inference_steps),
            eta: 0.0,
            set_alpha_to_one: config.set_alpha_to_one,
        }
    }
}

/// Draws samples in few steps, with [`Sampler::sample`]: denoising diffusion implicit models.
///
/// # Example
/// ```
/// use siss::DdpmScheduler;
/// use siss::sampling::{DdimConfig, DdimSampler, Sampler};
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let sampler = DdimSampler::new(&scheduler, DdimConfig::new(4))?;
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
    /// A sampler of the process of `scheduler`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range.
    pub fn new(scheduler: &DdpmScheduler, config: DdimConfig) -> Result<Self> {
        check_probability("eta", config.eta)?;
        Ok(Self {
            process: ReverseProcess::new(scheduler, &config.visits)?,
            config,
        })
    }

    /// The sampler of a model that comes with a scheduler file: its process and its settings, with
    /// `eta = 0`.
    ///
    /// Sampling refuses a model that predicts something else than the file says.
    ///
    /// # Errors
    /// Those of [`new`](DdimSampler::new) and of [`DdpmScheduler::from_config`].
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let scheduler = DdpmScheduler::from_config(config)?;
        Self::new(
            &scheduler,
            DdimConfig::from_scheduler(config, num_inference_steps),
        )
    }

    /// The settings.
    pub fn config(&self) -> &DdimConfig {
        &self.config
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
        prediction_type: PredictionType,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let process = &self.process;
        let step = process.step(
            noisy,
            model_output,
            prediction_type,
            timestep,
            previous,
            noise.as_ref(),
        )?;
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
