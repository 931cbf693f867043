//! Denoising diffusion implicit models.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::denoiser::{Condition, Denoiser, PredictionType};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_positive, check_probability, check_range};
use crate::gradients::host_vector;
use crate::scheduler::{DdpmScheduler, SchedulerConfig, SchedulerExt, TimestepSpacing};

/// Settings of [`DdimSampler`].
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `num_inference_steps` | 50 | steps from noise to a sample | 1 to `T` |
/// | `eta` | 0 | 0 deterministic, 1 as noisy as DDPM | 0 to 1 |
/// | `clip_sample` | `Some(1.0)` | clamps the predicted clean point to `[−c, c]` | > 0 |
/// | `prediction_type` | `Epsilon` | what the model predicts | not `FlowVelocity` |
/// | `timestep_spacing` | leading | which of the `T` steps are visited | |
/// | `steps_offset` | 0 | added to them where spacing is leading | so that all visited steps are below `T` |
/// | `set_alpha_to_one` | true | the last step goes to `ᾱ = 1` rather than to `ᾱ_0` | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DdimConfig {
    /// Steps from noise to a sample.
    pub num_inference_steps: usize,
    /// How much noise each step adds: 0 none, 1 as much as DDPM.
    pub eta: f64,
    /// Half-width of the clamp of the predicted clean point, `None` for no clamp.
    pub clip_sample: Option<f64>,
    /// What the model predicts.
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

/// Draws samples in few steps. Noise comes from a seed: row `i` of a run is the same in any batch and on any device.
///
/// # Example
/// ```
/// use siss::{DdpmScheduler, sampling::{DdimConfig, DdimSampler}};
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
    scheduler: DdpmScheduler,
    config: DdimConfig,
    timesteps: Vec<usize>,
}

impl DdimSampler {
    /// A sampler over the steps of `scheduler`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range; [`Error::InvalidSetting`] for `FlowVelocity`.
    pub fn new(scheduler: &DdpmScheduler, config: DdimConfig) -> Result<Self> {
        let (total, count) = (scheduler.num_timesteps(), config.num_inference_steps);
        let legal = (1..=total).contains(&count);
        check_range(
            "num_inference_steps",
            count as f64,
            legal,
            "from 1 to the scheduler's number of steps",
        )?;
        check_probability("eta", config.eta)?;
        if let Some(range) = config.clip_sample {
            check_positive("clip_sample", range)?;
        }
        if config.prediction_type == PredictionType::FlowVelocity {
            return Err(Error::InvalidSetting {
                what: "DDIM runs on discrete steps and cannot use FlowVelocity".into(),
                remedy: "use Epsilon, Sample or Velocity",
            });
        }
        let timesteps = inference_timesteps(total, &config);
        let last = timesteps.first().copied().unwrap_or_default();
        check_range(
            "steps_offset",
            config.steps_offset as f64,
            last < total,
            "small enough that every visited step exists",
        )?;
        let pure_noise = timesteps
            .iter()
            .find(|&&visited| scheduler.alpha_bars()[visited] == 0.0);
        if let (Some(timestep), PredictionType::Epsilon) = (pure_noise, config.prediction_type) {
            return Err(Error::InvalidSetting {
                what: format!(
                    "timestep {timestep} has no signal, so a predicted noise says nothing about the clean point"
                ),
                remedy: "use a model that predicts Sample or Velocity, or a schedule without zero terminal SNR",
            });
        }
        Ok(Self {
            scheduler: scheduler.clone(),
            config,
            timesteps,
        })
    }

    /// The visited timesteps, noisiest first.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The settings.
    pub fn config(&self) -> &DdimConfig {
        &self.config
    }

    /// One step from `timestep` to the one `⌊T / num_inference_steps⌋` lower, as diffusers takes it. On grids that
    /// are not even, [`sample`](DdimSampler::sample) goes from each visited timestep to the next instead.
    ///
    /// # Shapes
    /// - `noisy`, `model_output`, `noise` and the result: `[batch, …]`; `noise` is used where `eta > 0`
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`].
    pub fn step<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let stride = self.scheduler.num_timesteps() / self.config.num_inference_steps;
        self.step_to(
            noisy,
            model_output,
            timestep,
            timestep.checked_sub(stride),
            noise,
        )
    }

    /// One step from `timestep` to `previous`; `None` is the clean end.
    fn step_to<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let scales = self.scheduler.scales(&[timestep as f64])?;
        let (gamma, sigma) = (scales.signal[0], scales.noise[0]);
        // x_0 and ε that the output stands for.
        let (clean, epsilon) = match self.config.prediction_type {
            PredictionType::Sample => {
                let epsilon = (noisy - model_output.clone() * gamma) / sigma;
                (model_output, epsilon)
            }
            PredictionType::Velocity => {
                let clean = noisy.clone() * gamma - model_output.clone() * sigma;
                (clean, model_output * gamma + noisy * sigma)
            }
            _ => ((noisy - model_output.clone() * sigma) / gamma, model_output),
        };
        let clean = match self.config.clip_sample {
            Some(range) => clean.clamp(-range, range),
            None => clean,
        };
        // x_{t−1} = √ᾱ_{t−1} x_0 + √(1 − ᾱ_{t−1} − s²) ε + s z  (Eq. 12), s from Eq. 16.
        let alpha_bar = self.scheduler.alpha_bars()[timestep];
        let previous_alpha_bar = self.alpha_bar_before(previous);
        let variance =
            (1.0 - previous_alpha_bar) / (1.0 - alpha_bar) * (1.0 - alpha_bar / previous_alpha_bar);
        let deviation = self.config.eta * variance.max(0.0).sqrt();
        let direction = (1.0 - previous_alpha_bar - deviation * deviation)
            .max(0.0)
            .sqrt();
        let mean = clean * previous_alpha_bar.sqrt() + epsilon * direction;
        Ok(match noise {
            Some(noise) if deviation > 0.0 => mean + noise * deviation,
            _ => mean,
        })
    }

    fn alpha_bar_before(&self, previous: Option<usize>) -> f64 {
        match previous {
            Some(previous) => self.scheduler.alpha_bars()[previous],
            None if self.config.set_alpha_to_one => 1.0,
            None => self.scheduler.alpha_bars()[0],
        }
    }

    /// Draws samples from noise.
    ///
    /// Give the model in its plain form (`model.valid()`): nothing here is to be differentiated.
    ///
    /// # Shapes
    /// - `shape` and the result: `[count, …]`; `condition`: `count` rows
    /// - row `i` starts from noise of key (`seed`, `first_row + i`)
    ///
    /// # Errors
    /// [`Error::Empty`] for no rows.
    pub fn sample<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        shape: [usize; D],
        seed: u64,
        first_row: u64,
        device: &Device,
    ) -> Result<Tensor<D>> {
        if shape.contains(&0) {
            return Err(Error::Empty {
                what: "the shape of the samples",
                remedy: "ask for at least one sample of at least one element",
            });
        }
        let start = normal_noise(shape, seed, 0, first_row, Stream::Sampling, device);
        self.denoise(model, condition, start, &self.timesteps, seed, first_row)
    }

    /// Noises points to `timestep` and denoises them from there: how a memorised point betrays itself.
    ///
    /// # Shapes
    /// - `clean` and the result: `[count, …]`; `condition`: `count` rows
    /// - row `i` uses noise of key (`seed`, `first_row + i`)
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`].
    pub fn noise_and_denoise<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        clean: Tensor<D>,
        timestep: usize,
        seed: u64,
        first_row: u64,
    ) -> Result<Tensor<D>> {
        let (shape, device) = (clean.dims(), clean.device());
        let noise = normal_noise(shape, seed, 0, first_row, Stream::Sampling, &device);
        let noisy = self
            .scheduler
            .add_noise(clean, noise, &vec![timestep as f64; shape[0]])?;
        let below = self
            .timesteps
            .iter()
            .copied()
            .filter(|&visited| visited < timestep);
        let path: Vec<usize> = std::iter::once(timestep).chain(below).collect();
        self.denoise(model, condition, noisy, &path, seed, first_row)
    }

    /// Goes down a path of timesteps to the clean end.
    fn denoise<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        start: Tensor<D>,
        path: &[usize],
        seed: u64,
        first_row: u64,
    ) -> Result<Tensor<D>> {
        let (shape, device) = (start.dims(), start.device());
        let rows: Vec<usize> = (0..shape[0]).collect();
        condition
            .check_rows(shape[0])
            .map_err(|got| Error::ShapeMismatch {
                what: "the condition",
                expected: vec![shape[0]],
                got: vec![got],
                remedy: "give one condition for every sample",
            })?;
        let mut noisy = start;
        for (index, &timestep) in path.iter().enumerate() {
            let timesteps = host_vector(rows.iter().map(|_| timestep as f64), &device);
            let output = model.predict(noisy.clone(), timesteps, condition);
            if output.dims() != shape {
                return Err(Error::ShapeMismatch {
                    what: "the model's prediction",
                    expected: shape.to_vec(),
                    got: output.dims().to_vec(),
                    remedy: "the model must predict one value for every element of its input",
                });
            }
            let noise = (self.config.eta > 0.0).then(|| {
                let step = 1 + index as u64;
                normal_noise(shape, seed, step, first_row, Stream::Sampling, &device)
            });
            noisy = self.step_to(noisy, output, timestep, path.get(index + 1).copied(), noise)?;
        }
        Ok(noisy)
    }
}

/// diffusers' `set_timesteps`, noisiest first.
fn inference_timesteps(total: usize, config: &DdimConfig) -> Vec<usize> {
    let count = config.num_inference_steps;
    match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = total / count;
            let visited = (0..count).rev();
            visited
                .map(|index| index * stride + config.steps_offset)
                .collect()
        }
        TimestepSpacing::Trailing => {
            let stride = total as f64 / count as f64;
            let visited = (0..count).map(|index| total as f64 - index as f64 * stride);
            visited.map(|end| round_half_even(end) - 1).collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (count - 1).max(1) as f64;
            let visited = (0..count).rev();
            visited
                .map(|index| round_half_even(index as f64 * stride))
                .collect()
        }
    }
}

/// As NumPy rounds.
fn round_half_even(value: f64) -> usize {
    value.round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Scheduler;
    use burn::module::Module;

    /// Knows that every clean point is `0.5`, and says so.
    #[derive(Module, Debug)]
    struct Oracle {
        #[module(skip)]
        kind: PredictionType,
    }

    impl Denoiser<2> for Oracle {
        type Condition = ();

        fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let (gamma, sigma) = (
                scheduler.signal_scale(t[0].into()),
                scheduler.noise_scale(t[0].into()),
            );
            let clean = noisy.zeros_like() + 0.5;
            let epsilon = (noisy - clean.clone() * gamma) / sigma;
            let column = |value: f64| Tensor::<2>::full([1, 1], value, &clean.device());
            self.kind
                .target(clean.clone(), epsilon, column(gamma), column(sigma))
        }
    }

    fn sampler(config: DdimConfig) -> DdimSampler {
        DdimSampler::new(&DdpmScheduler::linear(1000).unwrap(), config).unwrap()
    }

    #[test]
    fn samples_of_a_perfect_model_are_the_clean_point_in_every_prediction_type() {
        let device = Device::flex();
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
        ] {
            for eta in [0.0, 1.0] {
                let config = DdimConfig {
                    num_inference_steps: 25,
                    eta,
                    prediction_type: kind,
                    ..DdimConfig::default()
                };
                let samples = sampler(config)
                    .sample(&Oracle { kind }, &(), [3, 4], 1, 0, &device)
                    .unwrap();
                let worst = (samples - 0.5).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-3, "{kind:?} {eta} {worst}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let (device, model) = (
            Device::flex(),
            Oracle {
                kind: PredictionType::Epsilon,
            },
        );
        let config = DdimConfig {
            num_inference_steps: 1,
            eta: 1.0,
            clip_sample: None,
            ..DdimConfig::default()
        };
        let sampler = sampler(DdimConfig {
            num_inference_steps: 5,
            ..config
        });
        let host = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().unwrap();
        let all = host(sampler.sample(&model, &(), [4, 3], 9, 0, &device).unwrap());
        let tail = host(sampler.sample(&model, &(), [1, 3], 9, 3, &device).unwrap());
        assert_eq!(all[9..], tail);
    }

    #[test]
    fn noising_and_denoising_starts_at_the_timestep_asked_for() {
        let device = Device::flex();
        let model = Oracle {
            kind: PredictionType::Epsilon,
        };
        let clean = Tensor::<2>::zeros([2, 3], &device);
        let sampler = sampler(DdimConfig {
            num_inference_steps: 25,
            ..DdimConfig::default()
        });
        let back = sampler
            .noise_and_denoise(&model, &(), clean.clone(), 250, 3, 0)
            .unwrap();
        assert!((back - 0.5).abs().max().into_scalar::<f32>() < 1e-4);
        assert!(
            sampler
                .noise_and_denoise(&model, &(), clean, 1000, 3, 0)
                .is_err()
        );
    }

    #[test]
    fn visited_timesteps_are_those_of_diffusers() {
        let visited = |spacing, count| {
            let config = DdimConfig {
                num_inference_steps: count,
                timestep_spacing: spacing,
                ..DdimConfig::default()
            };
            sampler(config).timesteps
        };
        assert_eq!(visited(TimestepSpacing::Leading, 3), [666, 333, 0]);
        assert_eq!(visited(TimestepSpacing::Trailing, 3), [999, 666, 332]);
        assert_eq!(visited(TimestepSpacing::Linspace, 3), [999, 500, 0]);
        assert_eq!(visited(TimestepSpacing::Linspace, 1), [0]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let refused = |config| {
            DdimSampler::new(&scheduler, config)
                .unwrap_err()
                .to_string()
        };
        let with = DdimConfig::default;
        assert!(
            refused(DdimConfig {
                num_inference_steps: 0,
                ..with()
            })
            .contains("num_inference_steps is 0")
        );
        assert!(
            refused(DdimConfig {
                num_inference_steps: 1001,
                ..with()
            })
            .contains("1001")
        );
        assert!(
            refused(DdimConfig {
                eta: -0.5,
                ..with()
            })
            .contains("eta is -0.5")
        );
        assert!(
            refused(DdimConfig {
                clip_sample: Some(0.0),
                ..with()
            })
            .contains("clip_sample is 0")
        );
        assert!(
            refused(DdimConfig {
                steps_offset: 20,
                ..with()
            })
            .contains("steps_offset is 20")
        );
        assert!(
            refused(DdimConfig {
                prediction_type: PredictionType::FlowVelocity,
                ..with()
            })
            .contains("FlowVelocity")
        );
    }
}
