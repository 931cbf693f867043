//! The forward process `x_t = γ_t x + σ_t ε`: which timesteps there are, and how much signal and
//! noise each holds.

mod config;

use std::fmt;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::denoiser::PredictionType;
use crate::error::{Error, Result, check_range, check_shape};
use crate::host::column;
use crate::schedule::{BetaSchedule, alpha_bars, rescale_to_zero_terminal_snr};

pub use config::{SchedulerConfig, TimestepSpacing, VarianceType};

/// The timesteps on which a scheduler is defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeRange {
    /// The whole numbers `0, 1, …, num_timesteps − 1`; 0 is the cleanest.
    Discrete {
        /// Number of steps `T`.
        num_timesteps: usize,
    },
    /// Every real number from `min` to `max`; `min` is the cleanest.
    Continuous {
        /// The smallest time, with `σ_min > 0`.
        min: f64,
        /// The largest time.
        max: f64,
    },
}

impl TimeRange {
    /// Whether `timestep` is one of the range's.
    pub fn contains(&self, timestep: f64) -> bool {
        match *self {
            TimeRange::Discrete { num_timesteps } => {
                timestep.fract() == 0.0 && timestep >= 0.0 && timestep < num_timesteps as f64
            }
            TimeRange::Continuous { min, max } => (min..=max).contains(&timestep),
        }
    }

    /// Maps `u ∈ [0, 1)` onto the range, so that a uniform `u` gives a uniform timestep.
    pub fn at(&self, u: f64) -> f64 {
        match *self {
            TimeRange::Discrete { num_timesteps } => (u * num_timesteps as f64)
                .floor()
                .min(num_timesteps as f64 - 1.0),
            TimeRange::Continuous { min, max } => min + u * (max - min),
        }
    }

    /// Maps `u ∈ [0, 1)` onto the timesteps from `low` up to, but not including, `high`, evenly.
    pub fn at_within(&self, low: f64, high: f64, u: f64) -> f64 {
        match *self {
            TimeRange::Discrete { .. } => {
                let (first, end) = (low.ceil(), high.ceil());
                first + (u * (end - first)).floor()
            }
            TimeRange::Continuous { .. } => low + u * (high - low),
        }
    }
}

impl fmt::Display for TimeRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeRange::Discrete { num_timesteps } => {
                write!(formatter, "0, 1, …, {}", num_timesteps.saturating_sub(1))
            }
            TimeRange::Continuous { min, max } => write!(formatter, "[{min}, {max}]"),
        }
    }
}

/// A forward process, known by its signal and noise scales. Plain numbers on the host, in `f64`.
///
/// Implement the three methods for a process of your own; [`SchedulerExt`] adds what works on
/// tensors. Timesteps outside [`time_range`](Scheduler::time_range) may give any number, NaN
/// included: the checked way in is [`SchedulerExt::scales`].
pub trait Scheduler: Send + Sync + fmt::Debug {
    /// The timesteps on which the scheduler is defined. The noise scale is positive on all of it.
    fn time_range(&self) -> TimeRange;

    /// `γ_t`, the factor of the clean point in `x_t = γ_t x + σ_t ε`. Dimensionless, usually in `[0, 1]`.
    fn signal_scale(&self, timestep: f64) -> f64;

    /// `σ_t > 0`, the factor of the noise in `x_t = γ_t x + σ_t ε`. Dimensionless, usually in `(0, 1]`.
    fn noise_scale(&self, timestep: f64) -> f64;
}

impl Scheduler for Box<dyn Scheduler> {
    fn time_range(&self) -> TimeRange {
        self.as_ref().time_range()
    }

    fn signal_scale(&self, timestep: f64) -> f64 {
        self.as_ref().signal_scale(timestep)
    }

    fn noise_scale(&self, timestep: f64) -> f64 {
        self.as_ref().noise_scale(timestep)
    }
}

/// Signal and noise scales of the rows of a batch, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// `γ` of each row.
    pub signal: Vec<f64>,
    /// `σ > 0` of each row.
    pub noise: Vec<f64>,
}

impl Scales {
    /// `γ` as a tensor of shape `[batch, 1, …]`, to multiply a batch of rank `D` with.
    pub fn signal_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        column(&self.signal, device)
    }

    /// `σ` as a tensor of shape `[batch, 1, …]`.
    pub fn noise_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        column(&self.noise, device)
    }

    /// `γ / σ` of each row.
    pub(crate) fn ratios(&self) -> Vec<f64> {
        let pairs = self.signal.iter().zip(&self.noise);
        pairs.map(|(signal, noise)| signal / noise).collect()
    }

    /// `γ·clean + σ·noise`.
    pub(crate) fn noisy<const D: usize>(&self, clean: &Tensor<D>, noise: &Tensor<D>) -> Tensor<D> {
        let device = clean.device();
        clean.clone() * self.signal_tensor(&device) + noise.clone() * self.noise_tensor(&device)
    }

    /// What a model of this kind should say where a noisy point is explained by `clean` and `noise`.
    pub(crate) fn target<const D: usize>(
        &self,
        kind: PredictionType,
        clean: &Tensor<D>,
        noise: &Tensor<D>,
    ) -> Tensor<D> {
        let device = clean.device();
        let (signal, sigma) = (self.signal_tensor(&device), self.noise_tensor(&device));
        kind.target(clean.clone(), noise.clone(), signal, sigma)
    }
}

/// What every [`Scheduler`] can do.
pub trait SchedulerExt: Scheduler {
    /// The scales of each timestep, checked: each timestep is in range, `γ` finite, `σ` finite and positive.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`], or [`Error::NoNoise`] where `σ` is not a positive number.
    fn scales(&self, timesteps: &[f64]) -> Result<Scales> {
        let range = self.time_range();
        let mut scales = Scales {
            signal: Vec::with_capacity(timesteps.len()),
            noise: Vec::with_capacity(timesteps.len()),
        };
        for &timestep in timesteps {
            if !range.contains(timestep) {
                return Err(Error::TimestepOutOfRange { timestep, range });
            }
            let (signal, noise) = (self.signal_scale(timestep), self.noise_scale(timestep));
            if !(noise.is_finite() && noise > 0.0) {
                return Err(Error::NoNoise {
                    timestep,
                    noise_scale: noise,
                });
            }
            check_range("signal_scale", signal, true, "a finite number")?;
            scales.signal.push(signal);
            scales.noise.push(noise);
        }
        Ok(scales)
    }

    /// Signal-to-noise ratio `γ² / σ²`, dimensionless.
    fn snr(&self, timestep: f64) -> f64 {
        (self.signal_scale(timestep) / self.noise_scale(timestep)).powi(2)
    }

    /// The noisy point `x_t = γ_t x + σ_t ε` of each row.
    ///
    /// # Shapes
    /// - `clean`, `noise` and the result: `[batch, …]`; `timesteps`: `[batch]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], and those of [`scales`](SchedulerExt::scales).
    fn add_noise<const D: usize>(
        &self,
        clean: Tensor<D>,
        noise: Tensor<D>,
        timesteps: &[f64],
    ) -> Result<Tensor<D>> {
        let scales = self.scales(timesteps)?;
        let shape = clean.dims();
        let remedy = "draw one value for every element";
        check_shape("the noise", &shape, &noise.dims(), remedy)?;
        let remedy = "give one timestep for every row";
        check_shape(
            "the list of timesteps",
            &shape[..1],
            &[timesteps.len()],
            remedy,
        )?;
        Ok(scales.noisy(&clean, &noise))
    }
}

impl<S: Scheduler + ?Sized> SchedulerExt for S {}

/// The variance-preserving process of DDPM: `γ_t = √ᾱ_t`, `σ_t = √(1 − ᾱ_t)`, `t = 0, …, T − 1`.
///
/// # Example
/// ```
/// use siss::{DdpmScheduler, Scheduler, SchedulerExt};
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
}

impl DdpmScheduler {
    /// A process of `num_timesteps` steps with the betas of `schedule`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or [`Error::ShapeMismatch`], see [`BetaSchedule::betas`].
    pub fn new(schedule: &BetaSchedule, num_timesteps: usize) -> Result<Self> {
        let betas = schedule.betas(num_timesteps)?;
        let alpha_bars = alpha_bars(&betas);
        Ok(Self { betas, alpha_bars })
    }

    /// The linear schedule of DDPM, `β` from 1e-4 to 0.02.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two steps.
    pub fn linear(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::linear(), num_timesteps)
    }

    /// The scaled linear schedule of Stable Diffusion, `β` from 8.5e-4 to 0.012.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two steps.
    pub fn scaled_linear(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::scaled_linear(), num_timesteps)
    }

    /// The cosine schedule of improved DDPM, diffusers' `squaredcos_cap_v2`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two steps.
    pub fn squared_cosine(num_timesteps: usize) -> Result<Self> {
        Self::new(&BetaSchedule::SquaredCosine, num_timesteps)
    }

    /// The process that a diffusers `scheduler_config.json` describes.
    ///
    /// # Errors
    /// As [`DdpmScheduler::new`].
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let mut scheduler = Self::new(&config.beta_schedule, config.num_timesteps)?;
        if config.zero_terminal_snr {
            scheduler.alpha_bars = rescale_to_zero_terminal_snr(&scheduler.alpha_bars);
            let before = std::iter::once(&1.0).chain(&scheduler.alpha_bars);
            scheduler.betas = before
                .zip(&scheduler.alpha_bars)
                .map(|(before, now)| 1.0 - now / before)
                .collect();
        }
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
}

/// The straight path of flow matching (rectified flow): `γ_t = 1 − t`, `σ_t = t`, `t ∈ [min, 1]`.
///
/// The clean end `t = 0` has no noise and is left out by `min_time` (default 1e-3). Models of this process can be
/// unlearned; the samplers of this crate are for discrete processes.
///
/// # Reference
/// Lipman et al. 2023, *Flow Matching for Generative Modeling*, with optimal-transport paths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowMatching {
    min_time: f64,
}

impl FlowMatching {
    /// The path from `min_time` to 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 < min_time < 1`.
    pub fn new(min_time: f64) -> Result<Self> {
        let legal = min_time > 0.0 && min_time < 1.0;
        check_range("min_time", min_time, legal, "above 0 and below 1")?;
        Ok(Self { min_time })
    }
}

impl Default for FlowMatching {
    fn default() -> Self {
        Self { min_time: 1e-3 }
    }
}

impl Scheduler for FlowMatching {
    fn time_range(&self) -> TimeRange {
        TimeRange::Continuous {
            min: self.min_time,
            max: 1.0,
        }
    }

    fn signal_scale(&self, timestep: f64) -> f64 {
        1.0 - timestep
    }

    fn noise_scale(&self, timestep: f64) -> f64 {
        timestep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn timesteps_outside_the_range_are_refused_with_their_value() {
        let scheduler = DdpmScheduler::linear(10).unwrap();
        for bad in [-1.0, 10.0, 2.5, f64::NAN] {
            let error = scheduler.scales(&[0.0, bad]).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad}")), "{error}");
            assert!(scheduler.signal_scale(bad).is_nan());
        }
    }

    #[test]
    fn a_timestep_without_noise_is_refused() {
        #[derive(Debug)]
        struct Clean;
        impl Scheduler for Clean {
            fn time_range(&self) -> TimeRange {
                TimeRange::Continuous { min: 0.0, max: 1.0 }
            }
            fn signal_scale(&self, _: f64) -> f64 {
                1.0
            }
            fn noise_scale(&self, timestep: f64) -> f64 {
                timestep
            }
        }
        assert!(matches!(Clean.scales(&[0.0]), Err(Error::NoNoise { .. })));
    }

    #[test]
    fn a_signal_scale_that_is_not_finite_is_refused_with_its_value() {
        #[derive(Debug)]
        struct Signal(f64);
        impl Scheduler for Signal {
            fn time_range(&self) -> TimeRange {
                TimeRange::Continuous { min: 0.0, max: 1.0 }
            }
            fn signal_scale(&self, _: f64) -> f64 {
                self.0
            }
            fn noise_scale(&self, _: f64) -> f64 {
                1.0
            }
        }
        for bad in [f64::NAN, f64::INFINITY] {
            let error = Signal(bad).scales(&[0.5]).unwrap_err().to_string();
            assert!(error.contains(&format!("signal_scale is {bad}")), "{error}");
        }
    }

    #[test]
    fn every_u_maps_into_the_range() {
        for range in [
            TimeRange::Discrete { num_timesteps: 7 },
            TimeRange::Continuous {
                min: 0.01,
                max: 1.0,
            },
        ] {
            for u in [0.0, 0.3, 0.999_999_999_999_999_9] {
                assert!(range.contains(range.at(u)), "{range} at {u}");
            }
        }
        assert_eq!(TimeRange::Discrete { num_timesteps: 10 }.at(0.35), 3.0);
    }

    #[test]
    fn add_noise_is_the_forward_process_at_any_rank() {
        let device = Device::flex();
        let scheduler = FlowMatching::default();
        let clean = Tensor::<3>::from_data([[[1.0, 2.0]], [[3.0, 4.0]]], &device);
        let noise = Tensor::<3>::from_data([[[1.0, 0.0]], [[0.0, 1.0]]], &device);
        let noisy = scheduler.add_noise(clean, noise, &[0.25, 1.0]).unwrap();
        let values: Vec<f32> = noisy.into_data().try_to_vec().unwrap();
        assert_eq!(values, [1.0, 1.5, 0.0, 1.0]);
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

    #[test]
    fn a_boxed_process_is_the_process() {
        let boxed: Box<dyn Scheduler> = Box::new(FlowMatching::default());
        let scales = (boxed.signal_scale(0.25), boxed.noise_scale(0.25));
        assert_eq!(scales, (0.75, 0.25));
        assert!((boxed.snr(0.25) - 9.0).abs() < 1e-12);
    }
}
