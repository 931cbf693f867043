//! Euler's method along the straight path of flow matching.

mod config;

pub use config::EulerFlowConfig;

use burn::tensor::{Device, Tensor};

use super::check_request;
use crate::denoiser::Denoiser;
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_positive, check_range};
use crate::host::{column, vector};
use crate::process::PredictionType;
use crate::process::flow::shifted;

/// Draws samples of a flow-matching model by Euler's method: `x ← x + (σ' − σ) v`.
///
/// The times that the model is given are those of [`FlowMatching`](crate::FlowMatching): from 1
/// (noise) towards 0 (clean).
///
/// # Example
/// ```
/// use siss::sampling::{EulerFlowConfig, EulerFlowSampler};
///
/// let config = EulerFlowConfig {
///     num_inference_steps: 2,
///     shift: 3.0,
///     ..EulerFlowConfig::default()
/// };
/// let sampler = EulerFlowSampler::new(config)?;
/// assert_eq!(sampler.sigmas().len(), 3);
/// assert_eq!((sampler.sigmas()[0], sampler.sigmas()[2]), (1.0, 0.0));
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Esser et al. 2024, *Scaling Rectified Flow Transformers*, Eq. 23 for the shift.
#[derive(Debug, Clone)]
pub struct EulerFlowSampler {
    config: EulerFlowConfig,
    sigmas: Vec<f64>,
}

impl EulerFlowSampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range.
    pub fn new(config: EulerFlowConfig) -> Result<Self> {
        let (count, total) = (config.num_inference_steps, config.num_train_timesteps);
        check_positive("shift", config.shift)?;
        let requirement = "at least 2";
        check_range("num_train_timesteps", total as f64, total >= 2, requirement)?;
        check_range(
            "num_inference_steps",
            count as f64,
            (1..=total).contains(&count),
            "from 1 to num_train_timesteps",
        )?;
        // As diffusers: the last of the shifted training times is where an evenly spaced path ends,
        // which is then shifted again.
        let least = shifted(1.0 / total as f64, config.shift);
        let stride = (1.0 - least) / (count - 1).max(1) as f64;
        let visited = (0..count).map(|index| shifted(1.0 - index as f64 * stride, config.shift));
        let sigmas = visited.chain([0.0]).collect();
        Ok(Self { config, sigmas })
    }

    /// The settings.
    pub fn config(&self) -> &EulerFlowConfig {
        &self.config
    }

    /// The noise scales from 1 down to 0: where each step begins, and the clean end.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Draws samples, starting from noise.
    ///
    /// The model runs without autodiff.
    ///
    /// # Shapes
    /// - `shape` and the result: `[count, …]`; `condition`: `count` rows
    /// - row `i` starts from the noise with key (`seed`, `first_row + i`)
    ///
    /// # Errors
    /// [`Error::Empty`] if there are no rows; [`Error::ShapeMismatch`] and others if the model does
    /// not accept shape or condition; [`Error::InvalidSetting`] for a model that predicts the
    /// noise, which says nothing about the clean point where a path begins.
    pub fn sample<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        shape: [usize; D],
        seed: u64,
        first_row: u64,
        device: &Device,
    ) -> Result<Tensor<D>> {
        let noise = normal_noise(shape, seed, 0, first_row, Stream::Sampling, device);
        self.denoise(model, condition, noise, 0)
    }

    /// Noises points to the step with this index and denoises them from there, which shows whether
    /// the model has memorised them.
    ///
    /// # Shapes
    /// - `clean` and the result: `[count, …]`; `condition`: `count` rows
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a step that there is not, and those of
    /// [`sample`](EulerFlowSampler::sample).
    pub fn noise_and_denoise<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        clean: Tensor<D>,
        first_step: usize,
        seed: u64,
        first_row: u64,
    ) -> Result<Tensor<D>> {
        let legal = first_step < self.config.num_inference_steps;
        check_range(
            "first_step",
            first_step as f64,
            legal,
            "below the number of steps",
        )?;
        let (shape, device) = (clean.dims(), clean.device());
        let noise = normal_noise(shape, seed, 0, first_row, Stream::Sampling, &device);
        let sigma = self.sigmas[first_step];
        let noisy = clean.mul_scalar(1.0 - sigma) + noise.mul_scalar(sigma);
        self.denoise(model, condition, noisy, first_step)
    }

    /// Follows the path from the step with this index down to the clean end.
    ///
    /// # Errors
    /// Those of [`sample`](EulerFlowSampler::sample).
    pub fn denoise<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        noisy: Tensor<D>,
        first_step: usize,
    ) -> Result<Tensor<D>> {
        let shape = noisy.dims();
        check_request(shape, condition)?;
        let model = model.valid();
        model.check_input(shape)?;
        model.check_condition(condition)?;
        let kind = model.prediction_type();
        if kind == PredictionType::Epsilon {
            return Err(Error::InvalidSetting {
                what: "the path begins at pure noise, where predicted noise says nothing about the clean point".into(),
                remedy: "use a model that predicts FlowVelocity",
            });
        }
        let device = noisy.device();
        let mut noisy = noisy;
        for pair in self.sigmas[first_step.min(self.sigmas.len())..].windows(2) {
            let (sigma, next) = (pair[0], pair[1]);
            let times = vector(vec![sigma; shape[0]], &device);
            let output = model.predict(noisy.clone(), times, condition);
            let scale = |value: f64| column::<D>(&vec![value; shape[0]], &device);
            let (clean, noise) =
                kind.clean_and_noise(noisy.clone(), output, scale(1.0 - sigma), scale(sigma));
            noisy = noisy + (noise - clean).mul_scalar(next - sigma);
        }
        Ok(noisy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sigmas(num_inference_steps: usize, shift: f64) -> Vec<f64> {
        let config = EulerFlowConfig {
            num_inference_steps,
            shift,
            ..EulerFlowConfig::default()
        };
        EulerFlowSampler::new(config).unwrap().sigmas().to_vec()
    }

    #[test]
    fn a_path_goes_from_noise_to_the_clean_end() {
        for (count, shift) in [(1, 1.0), (5, 3.0), (50, 0.5), (1000, 1.0)] {
            let sigmas = sigmas(count, shift);
            assert_eq!(sigmas.len(), count + 1);
            assert_eq!((sigmas[0], sigmas[count]), (1.0, 0.0));
            assert!(
                sigmas.windows(2).all(|pair| pair[0] > pair[1]),
                "{sigmas:?}"
            );
        }
    }

    #[test]
    fn a_shift_moves_steps_towards_the_noise() {
        assert!(sigmas(5, 3.0)[2] > sigmas(5, 1.0)[2]);
        assert!((sigmas(3, 1.0)[1] - 0.5005).abs() < 1e-12);
    }

    #[test]
    fn settings_outside_their_range_are_refused_by_name() {
        for (count, shift, total, name) in [
            (0, 1.0, 1000, "num_inference_steps"),
            (11, 1.0, 10, "num_inference_steps"),
            (1, 0.0, 10, "shift"),
            (1, f64::NAN, 10, "shift"),
            (1, 1.0, 1, "num_train_timesteps"),
        ] {
            let config = EulerFlowConfig {
                num_inference_steps: count,
                shift,
                num_train_timesteps: total,
            };
            let error = EulerFlowSampler::new(config).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
