//! Drawing samples from a model: the DDIM and DDPM samplers, Euler's method for flow matching,
//! classifier-free guidance, and noising a point and denoising it again.

mod ddim;
mod ddpm;
mod flow;
mod guidance;
mod reverse;

use std::fmt;

use burn::tensor::{Device, Tensor};

use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_prediction_type};
use crate::host::vector;
use crate::process::{DdpmScheduler, PredictionType, Scheduler, SchedulerExt};

pub use crate::process::config::{TimestepSpacing, VarianceType};
pub use ddim::{DdimConfig, DdimSampler};
pub use ddpm::{DdpmConfig, DdpmSampler};
pub use flow::{EulerFlowConfig, EulerFlowSampler};
pub use guidance::Guided;
pub use reverse::Visits;

/// Goes from noise to samples, step by step.
///
/// The model says what its output is ([`Denoiser::prediction_type`]).
///
/// A sampler of your own defines which timesteps it visits and what one step does. Noise comes from
/// a seed: row `i` of a run is the same in any batch and on any device.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::sampling::{DdpmConfig, DdpmSampler, Sampler};
/// use siss::{DdpmScheduler, Denoiser};
///
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # #[derive(Module, Debug)]
/// # struct Model { layer: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.layer.forward(noisy) }
/// # }
/// fn samples(model: &Model, sampler: &impl Sampler) -> siss::Result<Tensor<2>> {
///     sampler.sample(model, &(), [4, 3], 0, 0, &Device::flex())
/// }
///
/// let sampler = DdpmSampler::new(&DdpmScheduler::linear(1000)?, DdpmConfig::new(10))?;
/// # let model = Model { layer: LinearConfig::new(3, 3).init(&Device::flex()) };
/// assert_eq!(samples(&model, &sampler)?.dims(), [4, 3]);
/// # Ok::<(), siss::Error>(())
/// ```
pub trait Sampler: Send + Sync + fmt::Debug {
    /// The forward process whose steps are reversed.
    fn scheduler(&self) -> &DdpmScheduler;

    /// The visited timesteps, noisiest first.
    fn timesteps(&self) -> &[usize];

    /// Whether a step from `timestep` needs noise.
    fn needs_noise(&self, timestep: usize) -> bool;

    /// Takes one step from `timestep` to `previous`, which is cleaner; `None` is the clean end.
    ///
    /// # Shapes
    /// - `noisy`, `model_output`, `noise` and the result: `[batch, …]`
    /// - `prediction_type`: what `model_output` is
    /// - `noise`: standard normal; required if [`needs_noise`](Sampler::needs_noise) returns true
    ///
    /// # Errors
    /// - [`Error::TimestepOutOfRange`], [`Error::ShapeMismatch`]
    /// - [`Error::OutOfRange`] unless `previous` is below `timestep`
    /// - [`Error::MissingPart`] if the step needs noise and none is given
    /// - [`Error::InvalidSetting`] if the model predicts noise at a timestep without signal: that
    ///   noise says nothing about the clean point
    fn step_to<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        prediction_type: PredictionType,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<Tensor<D>>,
    ) -> Result<Tensor<D>>;

    /// Draws samples, starting from noise.
    ///
    /// The model runs without autodiff and with dropout off.
    ///
    /// # Shapes
    /// - `shape` and the result: `[count, …]`; `condition`: `count` rows
    /// - row `i` starts from the noise with key (`seed`, `first_row + i`)
    ///
    /// # Errors
    /// - [`Error::Empty`] if there are no rows
    /// - [`Error::ShapeMismatch`] if the condition has another number of rows, or the model does
    ///   not accept the shape
    /// - [`Error::PredictionTypeDiffers`] if the process was made from a configuration that names
    ///   another prediction type than the model's
    /// - [`Error::InvalidSetting`] if a visited timestep has no signal and the model predicts noise
    fn sample<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        condition: &M::Condition,
        shape: [usize; D],
        seed: u64,
        first_row: u64,
        device: &Device,
    ) -> Result<Tensor<D>> {
        let start = normal_noise(shape, seed, 0, first_row, Stream::Sampling, device);
        let path = self.timesteps();
        go_down(self, model, condition, start, path, [seed, first_row])
    }

    /// Noises points to `timestep` and denoises them from there, which shows whether the model has
    /// memorised them.
    ///
    /// # Shapes
    /// - `clean` and the result: `[count, …]`; `condition`: `count` rows
    /// - row `i` uses the noise with key (`seed`, `first_row + i`)
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`], and the errors of [`sample`](Sampler::sample).
    fn noise_and_denoise<const D: usize, M: Denoiser<D>>(
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
        let timesteps = vec![timestep as f64; shape[0]];
        let noisy = self.scheduler().add_noise(clean, noise, &timesteps)?;
        let visited = self.timesteps().iter().copied();
        let below = visited.filter(|&visited| visited < timestep);
        let path: Vec<usize> = std::iter::once(timestep).chain(below).collect();
        go_down(self, model, condition, noisy, &path, [seed, first_row])
    }
}

/// Follows a path of timesteps down to the clean end.
fn go_down<const D: usize, S: Sampler + ?Sized, M: Denoiser<D>>(
    sampler: &S,
    model: &M,
    condition: &M::Condition,
    start: Tensor<D>,
    path: &[usize],
    [seed, first_row]: [u64; 2],
) -> Result<Tensor<D>> {
    let (shape, device) = (start.dims(), start.device());
    check_request(shape, condition)?;
    let model = model.valid();
    model.check_input(shape)?;
    model.check_condition(condition)?;
    let kind = model.prediction_type();
    let scheduler = sampler.scheduler();
    check_prediction_type(kind, "the sampler's scheduler", scheduler.prediction_type())?;
    for &timestep in path {
        reverse::check_signal(scheduler, kind, timestep)?;
    }
    let mut noisy = start;
    for (index, &timestep) in path.iter().enumerate() {
        let timesteps = vector(vec![timestep as f64; shape[0]], &device);
        let output = model.predict(noisy.clone(), timesteps, condition);
        let noise = sampler.needs_noise(timestep).then(|| {
            let step = 1 + index as u64;
            normal_noise(shape, seed, step, first_row, Stream::Sampling, &device)
        });
        let previous = path.get(index + 1).copied();
        noisy = sampler.step_to(noisy, output, kind, timestep, previous, noise)?;
    }
    Ok(noisy)
}

fn check_request<const D: usize>(shape: [usize; D], condition: &impl Condition) -> Result<()> {
    if shape.contains(&0) {
        return Err(Error::Empty {
            what: "the batch to denoise",
            remedy: "ask for at least one sample of at least one element",
        });
    }
    condition.check_rows("the condition", shape[0])
}

#[cfg(test)]
mod tests;
