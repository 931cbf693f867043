//! The forward process of a model, as its scheduler's file says, and the sampler that reverses it.

use std::path::Path;

use serde::Serialize;
use siss::burn::tensor::{Device, Tensor};
use siss::draws::TimestepSampling;
use siss::process::{PredictionType, SchedulerConfig};
use siss::sampling::{DdimSampler, DdpmSampler, EulerFlowConfig, EulerFlowSampler, Sampler};
use siss::{DdpmScheduler, Denoiser, Error, FlowMatching, Result, Scheduler};

/// A forward process.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Process {
    /// Noise that is added in steps.
    Steps(SchedulerConfig),
    /// The straight path of flow matching.
    Flow(EulerFlowConfig),
}

impl Process {
    /// Reads a scheduler's file.
    pub fn from_file(path: &Path) -> Result<Self> {
        Ok(match EulerFlowConfig::is_of_file(path)? {
            true => Self::Flow(EulerFlowConfig::from_file(path)?),
            false => Self::Steps(SchedulerConfig::from_file(path)?),
        })
    }

    /// The same for points without a range, which no sampler may clamp; and whether that changes
    /// anything.
    pub fn without_clamp(self) -> (Self, bool) {
        match self {
            Self::Steps(config) if config.clip_sample => {
                let config = SchedulerConfig {
                    clip_sample: false,
                    ..config
                };
                (Self::Steps(config), true)
            }
            other => (other, false),
        }
    }

    /// Number of timesteps that the process is divided into.
    pub fn num_timesteps(&self) -> usize {
        match self {
            Self::Steps(config) => config.num_timesteps,
            Self::Flow(config) => config.num_train_timesteps,
        }
    }

    /// A timestep as the scheduler counts it.
    pub fn time(&self, timestep: usize) -> f64 {
        match self {
            Self::Steps(_) => timestep as f64,
            Self::Flow(config) => timestep as f64 / config.num_train_timesteps as f64,
        }
    }

    /// What its models predict.
    pub fn prediction_type(&self) -> PredictionType {
        match self {
            Self::Steps(config) => config.prediction_type,
            Self::Flow(_) => PredictionType::FlowVelocity,
        }
    }

    /// How timesteps are drawn in training: for flow matching as Stable Diffusion 3 was trained.
    pub fn timesteps(&self) -> TimestepSampling {
        match self {
            Self::Steps(_) => TimestepSampling::LowDiscrepancy,
            Self::Flow(config) => TimestepSampling::LogitNormal {
                mean: 0.0,
                scale: 1.0,
                shift: config.shift,
            },
        }
    }

    /// The scheduler, for training and losses.
    pub fn scheduler(&self) -> Result<Box<dyn Scheduler>> {
        Ok(match self {
            Self::Steps(config) => Box::new(DdpmScheduler::from_config(config)?),
            Self::Flow(_) => Box::new(FlowMatching::default()),
        })
    }

    /// The sampler without noise of its own, in this number of steps or in as many as there are.
    pub fn reverse(&self, steps: usize) -> Result<Reverse> {
        let steps = steps.min(self.num_timesteps());
        Ok(match self {
            Self::Steps(config) => Reverse::Ddim(DdimSampler::from_scheduler(config, steps)?),
            Self::Flow(config) => Reverse::Euler(EulerFlowSampler::new(EulerFlowConfig {
                num_inference_steps: steps,
                ..config.clone()
            })?),
        })
    }

    /// The sampler that adds noise of its own in every step, for a process of steps.
    pub fn ancestral(&self, steps: usize) -> Result<DdpmSampler> {
        match self {
            Self::Steps(config) => {
                DdpmSampler::from_scheduler(config, steps.min(config.num_timesteps))
            }
            Self::Flow(_) => Err(no_steps()),
        }
    }
}

fn no_steps() -> Error {
    Error::InvalidSetting {
        what: "the process is the path of flow matching".into(),
        remedy: "give a model whose process has steps",
    }
}

/// A sampler without noise of its own.
#[derive(Debug)]
pub enum Reverse {
    Ddim(DdimSampler),
    Euler(EulerFlowSampler),
}

impl Reverse {
    /// Draws samples, starting from the noise with key (`seed`, `first_row`).
    pub fn sample<M: Denoiser<4>>(
        &self,
        model: &M,
        condition: &M::Condition,
        shape: [usize; 4],
        [seed, first_row]: [u64; 2],
        device: &Device,
    ) -> Result<Tensor<4>> {
        match self {
            Self::Ddim(sampler) => sampler.sample(model, condition, shape, seed, first_row, device),
            Self::Euler(sampler) => {
                sampler.sample(model, condition, shape, seed, first_row, device)
            }
        }
    }

    /// Noises points to a timestep and denoises them from there; along a path of few steps, from
    /// the noisiest step that is not beyond it.
    ///
    /// `time` is the timestep as the scheduler counts it.
    pub fn noise_and_denoise<M: Denoiser<4>>(
        &self,
        model: &M,
        condition: &M::Condition,
        clean: Tensor<4>,
        time: f64,
        [seed, first_row]: [u64; 2],
    ) -> Result<Tensor<4>> {
        match self {
            Self::Ddim(sampler) => {
                let timestep = time as usize;
                sampler.noise_and_denoise(model, condition, clean, timestep, seed, first_row)
            }
            Self::Euler(sampler) => {
                let first = first_step(sampler, time);
                sampler.noise_and_denoise(model, condition, clean, first, seed, first_row)
            }
        }
    }

    /// Number of times that a model is run to draw a sample, and to denoise from a time.
    pub fn calls(&self, time: f64) -> [usize; 2] {
        match self {
            Self::Ddim(sampler) => {
                let timesteps = sampler.timesteps();
                let below = timesteps.iter().filter(|&&below| (below as f64) < time);
                [timesteps.len(), 1 + below.count()]
            }
            Self::Euler(sampler) => {
                let steps = sampler.config().num_inference_steps;
                [steps, steps - first_step(sampler, time)]
            }
        }
    }

    /// The sampler of a process of steps.
    pub fn ddim(&self) -> Result<&DdimSampler> {
        match self {
            Self::Ddim(sampler) => Ok(sampler),
            Self::Euler(_) => Err(no_steps()),
        }
    }
}

/// The noisiest step of a path that is not beyond a time.
fn first_step(sampler: &EulerFlowSampler, time: f64) -> usize {
    let starts = &sampler.sigmas()[..sampler.config().num_inference_steps];
    let first = starts.iter().position(|&sigma| sigma <= time);
    first.unwrap_or(starts.len() - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use siss::FnDenoiser;
    use siss::burn::nn::LinearConfig;

    use super::*;

    /// Half of the times of Stable Diffusion 3 are below `3 ½ / (1 + 2 ½)`.
    #[test]
    fn times_of_a_path_are_shifted_as_its_file_says() {
        let process = Process::Flow(EulerFlowConfig {
            shift: 3.0,
            ..EulerFlowConfig::default()
        });
        let range = process.scheduler().unwrap().time_range();
        let mut times = process.timesteps().timesteps(range, 1001, 0, 0);
        times.sort_by(f64::total_cmp);
        assert!((times[500] - 0.75).abs() < 0.03, "{}", times[500]);
        let even = Process::Steps(SchedulerConfig::default()).timesteps();
        assert_eq!(even, TimestepSampling::LowDiscrepancy);
    }

    /// Half of ten steps start below the middle of a path without shift.
    #[test]
    fn a_path_is_joined_where_its_noise_is_not_beyond_the_timestep() {
        let process = Process::Flow(EulerFlowConfig::default());
        assert_eq!(process.time(250), 0.25);
        let Reverse::Euler(sampler) = process.reverse(10).unwrap() else {
            panic!("a path has a sampler of its own");
        };
        let first = first_step(&sampler, 0.5);
        assert!((4..=6).contains(&first), "{first}");
    }

    #[test]
    fn calls_of_the_model_are_counted() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let device = Device::flex();
        let module = LinearConfig::new(1, 1).init(&device);
        for process in [
            Process::Steps(SchedulerConfig::default()),
            Process::Flow(EulerFlowConfig::default()),
        ] {
            let model = FnDenoiser::new(module.clone(), |_, noisy: Tensor<4>, _, _: &()| {
                CALLS.fetch_add(1, Relaxed);
                noisy
            })
            .predicting(process.prediction_type());
            let reverse = process.reverse(10).unwrap();
            let time = process.time(250);
            let (shape, key) = ([1, 1, 2, 2], [0, 0]);
            let sampled = reverse.sample(&model, &(), shape, key, &device);
            let sampling = CALLS.swap(0, Relaxed);
            reverse
                .noise_and_denoise(&model, &(), sampled.unwrap(), time, key)
                .unwrap();
            let counted = [sampling, CALLS.swap(0, Relaxed)];
            assert_eq!(reverse.calls(time), counted, "{process:?}");
            assert!(
                counted[0] == 10 && (2..5).contains(&counted[1]),
                "{counted:?}"
            );
        }
    }
}
