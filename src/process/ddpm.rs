//! The variance-preserving process of DDPM.

use super::PredictionType;
use super::Scheduler;
use super::beta::{BetaSchedule, alpha_bars};
use super::config::SchedulerConfig;
use super::time::TimeRange;
use crate::error::Result;

/// The variance-preserving process of DDPM: `γ_t = √ᾱ_t`, `σ_t = √(1 − ᾱ_t)`, `t = 0, …, T − 1`.
///
/// # Example
/// ```
/// use siss::{DdpmScheduler, Scheduler};
/// use siss::process::SchedulerExt;
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let scales = scheduler.scales(&[0.0, 999.0])?;
/// assert!(scales.signal[0] > 0.99 && scales.signal[1] < 0.01);
/// assert!(scheduler.scales(&[1000.0]).is_err());
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, Eq. 4.
#[derive(Debug, Clone, PartialEq)]
pub struct DdpmScheduler {
    betas: Vec<f64>,
    alpha_bars: Vec<f64>,
    /// The prediction type in the configuration that the process was made from.
    prediction_type: Option<PredictionType>,
}

impl DdpmScheduler {
    /// A process of `num_timesteps` steps with the betas of `schedule`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) or
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), see [`BetaSchedule::betas`].
    pub fn new(schedule: &BetaSchedule, num_timesteps: usize) -> Result<Self> {
        let betas = schedule.betas(num_timesteps)?;
        let alpha_bars = alpha_bars(&betas);
        Ok(Self {
            betas,
            alpha_bars,
            prediction_type: None,
        })
    }

    /// The linear schedule of DDPM, `β` from 1e-4 to 0.02.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two steps.
    pub fn linear(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::linear(), num_timesteps)
    }

    /// The scaled linear schedule of Stable Diffusion, `β` from 8.5e-4 to 0.012.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two steps.
    pub fn scaled_linear(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::scaled_linear(), num_timesteps)
    }

    /// The cosine schedule of improved DDPM, diffusers' `squaredcos_cap_v2`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two steps.
    pub fn squared_cosine(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::SquaredCosine, num_timesteps)
    }

    /// The process that a diffusers `scheduler_config.json` describes.
    ///
    /// It remembers what the model predicts according to that file; a model that predicts something
    /// else is refused.
    ///
    /// # Errors
    /// Those of [`DdpmScheduler::new`].
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let mut scheduler = Self::new(&config.beta_schedule, config.num_timesteps)?;
        if config.zero_terminal_snr {
            scheduler.alpha_bars = config.alpha_bars()?;
            let before = std::iter::once(&1.0).chain(&scheduler.alpha_bars);
            scheduler.betas = before
                .zip(&scheduler.alpha_bars)
                .map(|(before, now)| 1.0 - now / before)
                .collect();
        }
        scheduler.prediction_type = Some(config.prediction_type);
        Ok(scheduler)
    }

    /// `ᾱ_t` of every step, from almost 1 down to almost 0.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// `β_t` of every step.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// Number of steps `T`.
    pub fn num_timesteps(&self) -> usize {
        self.alpha_bars.len()
    }

    fn alpha_bar(&self, timestep: f64) -> f64 {
        if self.time_range().contains(timestep) {
            self.alpha_bars[timestep as usize]
        } else {
            f64::NAN
        }
    }
}

impl Scheduler for DdpmScheduler {
    fn time_range(&self) -> TimeRange {
        TimeRange::Discrete {
            num_timesteps: self.num_timesteps(),
        }
    }

    fn signal_scale(&self, timestep: f64) -> f64 {
        self.alpha_bar(timestep).sqrt()
    }

    fn noise_scale(&self, timestep: f64) -> f64 {
        (1.0 - self.alpha_bar(timestep)).sqrt()
    }

    fn prediction_type(&self) -> Option<PredictionType> {
        self.prediction_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::SchedulerExt;

    #[test]
    fn scales_preserve_the_variance() {
        let scheduler = DdpmScheduler::squared_cosine(100).unwrap();
        for t in 0..100 {
            let (gamma, sigma) = (
                scheduler.signal_scale(t as f64),
                scheduler.noise_scale(t as f64),
            );
            assert!((gamma * gamma + sigma * sigma - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn zero_terminal_snr_ends_without_signal() {
        let config = SchedulerConfig {
            zero_terminal_snr: true,
            ..SchedulerConfig::default()
        };
        let scheduler = DdpmScheduler::from_config(&config).unwrap();
        assert_eq!(scheduler.signal_scale(999.0), 0.0);
        assert_eq!(scheduler.snr(999.0), 0.0);
        assert!(scheduler.scales(&[999.0]).is_ok());
    }

    #[test]
    fn a_process_says_what_its_configuration_says_of_the_model() {
        let config = SchedulerConfig {
            prediction_type: PredictionType::Velocity,
            ..SchedulerConfig::default()
        };
        let scheduler: Box<dyn Scheduler> = Box::new(DdpmScheduler::from_config(&config).unwrap());
        assert_eq!(scheduler.prediction_type(), Some(PredictionType::Velocity));
        let by_hand = DdpmScheduler::linear(1000).unwrap();
        assert_eq!(by_hand.prediction_type(), None);
    }

    #[test]
    fn the_betas_of_a_rescaled_process_lead_to_its_alpha_bars() {
        let config = SchedulerConfig {
            zero_terminal_snr: true,
            ..SchedulerConfig::default()
        };
        let scheduler = DdpmScheduler::from_config(&config).unwrap();
        let mut product = 1.0;
        for (beta, alpha_bar) in scheduler.betas().iter().zip(scheduler.alpha_bars()) {
            product *= 1.0 - beta;
            assert!((product - alpha_bar).abs() < 1e-12, "{product} {alpha_bar}");
        }
    }
}
