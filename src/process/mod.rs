//! The forward process `x_t = γ_t x + σ_t ε`: its timesteps, and how much signal and noise each
//! has.

pub(crate) mod beta;
pub(crate) mod config;
mod ddpm;
pub(crate) mod flow;
pub(crate) mod prediction;
pub(crate) mod time;

use std::fmt;

use burn::tensor::{Device, Tensor};

use crate::error::{Error, Result, check_range, check_shape};
use crate::host::column;

pub use beta::{BetaSchedule, alpha_bars, rescale_to_zero_terminal_snr};
pub use config::SchedulerConfig;
pub use ddpm::DdpmScheduler;
pub use flow::FlowMatching;
pub use prediction::PredictionType;
pub use time::TimeRange;

/// A forward process, defined by its signal and noise scales: plain numbers on the host, in `f64`.
///
/// For a process of your own, implement the three required methods; [`SchedulerExt`] adds the
/// operations on tensors. For timesteps outside [`time_range`](Scheduler::time_range) the scales
/// may be any number, even NaN; [`SchedulerExt::scales`] checks them.
pub trait Scheduler: Send + Sync + fmt::Debug {
    /// The timesteps on which the scheduler is defined. The noise scale is positive on all of it.
    fn time_range(&self) -> TimeRange;

    /// `γ_t`, the factor of the clean point in `x_t = γ_t x + σ_t ε`. Dimensionless, usually in
    /// `[0, 1]`.
    fn signal_scale(&self, timestep: f64) -> f64;

    /// `σ_t > 0`, the factor of the noise in `x_t = γ_t x + σ_t ε`. Dimensionless, usually in
    /// `(0, 1]`.
    fn noise_scale(&self, timestep: f64) -> f64;

    /// What the model of this process predicts, if the process was read from a file that says so;
    /// `None` by default.
    ///
    /// It is only compared with the model's own statement
    /// ([`Denoiser::prediction_type`](crate::Denoiser::prediction_type)): everything that takes
    /// both refuses a contradiction.
    fn prediction_type(&self) -> Option<PredictionType> {
        None
    }
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

    fn prediction_type(&self) -> Option<PredictionType> {
        self.as_ref().prediction_type()
    }
}

/// Checked signal and noise scales of the rows of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// `γ` of each row.
    pub signal: Vec<f64>,
    /// `σ > 0` of each row.
    pub noise: Vec<f64>,
}

impl Scales {
    /// `γ` as a tensor of shape `[batch, 1, …]`, to be multiplied with a batch of rank `D`.
    pub fn signal_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        column(&self.signal, device)
    }

    /// `σ` as a tensor of shape `[batch, 1, …]`.
    pub fn noise_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        column(&self.noise, device)
    }

    /// `γ / σ` of each row.
    pub fn ratios(&self) -> Vec<f64> {
        let pairs = self.signal.iter().zip(&self.noise);
        pairs.map(|(signal, noise)| signal / noise).collect()
    }

    /// `γ·clean + σ·noise`.
    pub fn noisy<const D: usize>(&self, clean: &Tensor<D>, noise: &Tensor<D>) -> Tensor<D> {
        let device = clean.device();
        clean.clone() * self.signal_tensor(&device) + noise.clone() * self.noise_tensor(&device)
    }

    /// The correct output of a model of this kind at a noisy point made of `clean` and `noise`.
    pub fn target<const D: usize>(
        &self,
        kind: PredictionType,
        clean: &Tensor<D>,
        noise: &Tensor<D>,
    ) -> Tensor<D> {
        let device = clean.device();
        let (signal, sigma) = (self.signal_tensor(&device), self.noise_tensor(&device));
        kind.target(clean.clone(), noise.clone(), signal, sigma)
    }

    /// The scales of one row, repeated for a number of rows.
    pub(crate) fn repeat(&self, row: usize, rows: usize) -> Self {
        Self {
            signal: vec![self.signal[row]; rows],
            noise: vec![self.noise[row]; rows],
        }
    }
}

/// Operations that every [`Scheduler`] has.
pub trait SchedulerExt: Scheduler {
    /// The checked scales of each timestep: the timestep is in range, `γ` is finite, `σ` finite and
    /// positive.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`], or [`Error::NoNoise`] if `σ` is not a positive number.
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_boxed_process_is_the_process() {
        let boxed: Box<dyn Scheduler> = Box::new(FlowMatching::default());
        let scales = (boxed.signal_scale(0.25), boxed.noise_scale(0.25));
        assert_eq!(scales, (0.75, 0.25));
        assert!((boxed.snr(0.25) - 9.0).abs() < 1e-12);
    }
}
