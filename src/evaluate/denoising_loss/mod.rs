//! The denoising loss of points at some timesteps, always under the same noise.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::micro_batch_size;
use crate::data::Points;
use crate::data::finite::first_non_finite;
use crate::data::points::{check_not_empty, load};
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_prediction_type, check_range, check_shape};
use crate::host::{read_f32, select_rows, squared_norms, to_f32, vector};
use crate::process::{Scales, Scheduler, SchedulerExt};

/// The denoising loss of single points: how well a model knows each of them.
///
/// At a timestep `t` the loss of a point `x` is `‖f(γ x + σ ε, t) − target‖² / d`: the squared
/// error of the model's output, mean over the `d` elements of a point and over noises `ε`. It is in
/// the space of the model's prediction ([`Denoiser::prediction_type`]) and has the square of its
/// unit.
///
/// The noise of a point depends only on the seed and the point's number, and is the same at each
/// timestep. Losses before and after a run, of two models, or of parts of a set therefore use the
/// same noise and can be compared, whatever the micro-batch.
///
/// | field | [`at`](DenoisingLoss::at) | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | given | where the loss is measured | in the scheduler's range, one or more |
/// | `noises` | 1 | noises over which the loss of a point is averaged | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `first_point` | 0 | number of the first point, for a set that is measured in parts | |
/// | `micro_batch_size` | 64 | rows run at a time; changes memory, not results | ≥ 1 |
///
/// A single point needs many noises, such as 64; for the mean over a hundred points, one noise each
/// is enough.
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::DenoisingLoss;
///
/// # let device = Device::flex();
/// # let layer = LinearConfig::new(3, 3).init(&device);
/// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
/// # let forgotten = Tensor::<2>::ones([1, 3], &device);
/// # let unseen = Tensor::<2>::random([100, 3], Distribution::Default, &device);
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let loss = DenoisingLoss { noises: 64, ..DenoisingLoss::at([100.0, 250.0, 400.0]) };
/// let of_forgotten = loss.measure(&model, &scheduler, &forgotten, &())?;
/// assert_eq!((of_forgotten.len(), of_forgotten[0].len()), (3, 1));
///
/// let loss = DenoisingLoss::at([250.0]);
/// let of_unseen = loss.measure(&model, &scheduler, &unseen, &())?;
/// let mean = of_unseen[0].iter().sum::<f64>() / 100.0;
/// println!("t = 250: {:.4}, and {mean:.4} on unseen points", of_forgotten[1][0]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoisingLoss {
    /// The timesteps at which the loss is measured.
    pub timesteps: Vec<f64>,
    /// Noises over which the loss of a point is averaged.
    #[serde(default = "one_noise")]
    pub noises: usize,
    /// Key of the noises.
    #[serde(default)]
    pub seed: u64,
    /// Number of the first point, for a set that is measured in parts.
    #[serde(default)]
    pub first_point: u64,
    /// Rows run at a time.
    #[serde(default = "micro_batch_size")]
    pub micro_batch_size: usize,
}

fn one_noise() -> usize {
    1
}

impl DenoisingLoss {
    /// The loss at these timesteps, one noise per point.
    pub fn at(timesteps: impl Into<Vec<f64>>) -> Self {
        Self {
            timesteps: timesteps.into(),
            noises: one_noise(),
            seed: 0,
            first_point: 0,
            micro_batch_size: micro_batch_size(),
        }
    }

    /// The loss of each point, by timestep and point: `result[i][j]` is that of point `j` at
    /// `timesteps[i]`.
    ///
    /// The model runs without autodiff and with dropout off. Memory holds one micro-batch and the
    /// result. A loss that is not finite is returned unchanged: the model is ruined, or its output
    /// overflows.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// - [`Error::TimestepOutOfRange`] and [`Error::NoNoise`] for a timestep that the scheduler
    ///   does not have
    /// - [`Error::Empty`] without points or timesteps
    /// - [`Error::OutOfRange`] if `noises` or `micro_batch_size` is 0
    /// - [`Error::ShapeMismatch`] if the condition has another number of rows, or the model does
    ///   not accept the points
    /// - [`Error::NonFinitePoint`]
    /// - [`Error::PredictionTypeDiffers`] if the scheduler's configuration names another prediction
    ///   type than the model's
    /// - [`Error::DeviceMismatch`] for points on another device; [`Error::DeviceRead`]
    /// - the errors of the set
    pub fn measure<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &dyn Points<D>,
        condition: &M::Condition,
    ) -> Result<Vec<Vec<f64>>> {
        let noise = |shape, first, device: &Device| self.noise(shape, first, device);
        self.measure_with(model, scheduler, points, condition, noise)
    }

    /// The same with given noise.
    ///
    /// `noise(shape, first, device)` gives the noise of consecutive rows from `first` on; row
    /// `i · noises + j` is the `j`-th noise of point `i`. Points are numbered from `first_point`
    /// on. Its elements should be independent and normal, with mean 0 and variance 1.
    ///
    /// # Errors
    /// Those of [`measure`](Self::measure); [`Error::ShapeMismatch`] for noise of another shape.
    pub fn measure_with<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &dyn Points<D>,
        condition: &M::Condition,
        noise: impl FnMut([usize; D], u64, &Device) -> Tensor<D>,
    ) -> Result<Vec<Vec<f64>>> {
        let count = points.dims()[0];
        self.check(count)?;
        check_not_empty(points, "the set of points to measure")?;
        condition.check_rows("the condition", count)?;
        let (kind, stated) = (model.prediction_type(), scheduler.prediction_type());
        check_prediction_type(kind, "the scheduler", stated)?;
        let scales = scheduler.scales(&self.timesteps)?;
        let model = model.valid();
        model.check_input(points.dims())?;
        model.check_condition(condition)?;
        let device = match model.devices().first() {
            Some(device) => device.clone(),
            None => points.load(0..1)?.device(),
        };
        let mut means = vec![vec![0.0; count]; self.timesteps.len()];
        let take = |rows: &[usize], losses: &[f32]| {
            for (means, losses) in means.iter_mut().zip(losses.chunks(rows.len())) {
                for (&point, &loss) in rows.iter().zip(losses) {
                    means[point] += f64::from(loss) / self.noises as f64;
                }
            }
        };
        let (losses, points) = (of_model(&model), (points, condition));
        self.each_part_with(losses, noise, &scales, points, &device, take)?;
        Ok(means)
    }

    pub(super) fn check(&self, points: usize) -> Result<()> {
        if self.timesteps.is_empty() {
            return Err(Error::Empty {
                what: "the list of timesteps to measure at",
                remedy: "give at least one timestep of the scheduler's range",
            });
        }
        let (noises, rows) = (self.noises, self.micro_batch_size);
        let legal = noises >= 1 && points.checked_mul(noises).is_some();
        let requirement = "at least 1, and small enough that the rows can be counted";
        check_range("noises", noises as f64, legal, requirement)?;
        check_range("micro_batch_size", rows as f64, rows >= 1, "at least 1")?;
        Ok(())
    }

    /// Runs a plain model on the points, point after point with its noises, one micro-batch at a
    /// time.
    ///
    /// `take` gets the point of each row of a part, and the losses of these rows, timestep after
    /// timestep. Row `r` has the noise with key (`seed`, `r`).
    pub(crate) fn each_part<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scales: &Scales,
        points: &dyn Points<D>,
        condition: &M::Condition,
        device: &Device,
        take: impl FnMut(&[usize], &[f32]),
    ) -> Result<()> {
        let noise = |shape, first, device: &Device| self.noise(shape, first, device);
        let (losses, points) = (of_model(model), (points, condition));
        self.each_part_with(losses, noise, scales, points, device, take)
    }

    /// The noise of consecutive rows.
    pub(super) fn noise<const D: usize>(
        &self,
        shape: [usize; D],
        first: u64,
        device: &Device,
    ) -> Tensor<D> {
        normal_noise(shape, self.seed, 0, first, Stream::Evaluation, device)
    }

    /// [`each_part`](Self::each_part) of anything that is measured of rows at a timestep: their
    /// scales, clean points, noise and condition. `noise` gets the shape of rows and the number of
    /// the first.
    pub(super) fn each_part_with<const D: usize, C: Condition>(
        &self,
        measure: impl Fn(f64, &Scales, &Tensor<D>, &Tensor<D>, &C) -> Result<Tensor<1>>,
        mut noise: impl FnMut([usize; D], u64, &Device) -> Tensor<D>,
        scales: &Scales,
        (points, condition): (&dyn Points<D>, &C),
        device: &Device,
        mut take: impl FnMut(&[usize], &[f32]),
    ) -> Result<()> {
        let first_row = self.first_point.wrapping_mul(self.noises as u64);
        let parts = parts(points.dims()[0], self.noises, self.micro_batch_size);
        for (first, rows) in parts {
            let clean = self.clean(points, &rows, device)?;
            let first_row = first_row.wrapping_add(first as u64);
            let shape = clean.dims();
            let noise = noise(shape, first_row, device);
            let remedy = "give each row of each point its noise";
            check_shape("the given noise", &shape, &noise.dims(), remedy)?;
            let condition = condition.take_rows(&rows);
            let losses = self.timesteps.iter().enumerate().map(|(index, &timestep)| {
                let scales = scales.repeat(index, rows.len());
                measure(timestep, &scales, &clean, &noise, &condition)
            });
            let losses = Tensor::cat(losses.collect::<Result<_>>()?, 0);
            take(&rows, &read_f32(losses, "the model's losses")?);
        }
        Ok(())
    }

    /// The points of consecutive rows.
    pub(super) fn clean<const D: usize>(
        &self,
        points: &dyn Points<D>,
        rows: &[usize],
        device: &Device,
    ) -> Result<Tensor<D>> {
        let (first, last) = (rows[0], rows[rows.len() - 1]);
        let loaded = load(points, first..last + 1, device)?;
        let values = read_f32(loaded.clone(), "the points to measure")?;
        if let Some((point, value)) = first_non_finite(&values, first, loaded.dims()[0]) {
            return Err(Error::NonFinitePoint { point, value });
        }
        match self.noises {
            1 => Ok(loaded),
            _ => {
                let local: Vec<usize> = rows.iter().map(|row| row - first).collect();
                Ok(select_rows(&loaded, &local))
            }
        }
    }
}

/// The point of each row, point after point with its noises, in parts of a given number of rows.
///
/// Each part comes with the number of its first row.
pub(crate) fn parts(
    points: usize,
    noises: usize,
    size: usize,
) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let total = points * noises;
    (0..total).step_by(size).map(move |first| {
        let rows = first..total.min(first.saturating_add(size));
        (first, rows.map(|row| row / noises).collect())
    })
}

/// [`row_losses`] of a model.
fn of_model<const D: usize, M: Denoiser<D>>(
    model: &M,
) -> impl Fn(f64, &Scales, &Tensor<D>, &Tensor<D>, &M::Condition) -> Result<Tensor<1>> {
    |timestep, scales, clean, noise, condition| {
        row_losses(model, timestep, scales, clean, noise, condition)
    }
}

/// The loss of each row at a timestep, mean over elements.
pub(crate) fn row_losses<const D: usize, M: Denoiser<D>>(
    model: &M,
    timestep: f64,
    scales: &Scales,
    clean: &Tensor<D>,
    noise: &Tensor<D>,
    condition: &M::Condition,
) -> Result<Tensor<1>> {
    let residual = residual(model, timestep, scales, clean, noise, condition)?;
    let elements: usize = clean.dims()[1..].iter().product();
    Ok(squared_norms(residual) / elements as f64)
}

/// The model's output minus its target, at a timestep with its scales for each row.
pub(crate) fn residual<const D: usize, M: Denoiser<D>>(
    model: &M,
    timestep: f64,
    scales: &Scales,
    clean: &Tensor<D>,
    noise: &Tensor<D>,
    condition: &M::Condition,
) -> Result<Tensor<D>> {
    let timesteps = vector(vec![timestep; clean.dims()[0]], &clean.device());
    let output = model.predict(scales.noisy(clean, noise), timesteps, condition);
    let target = scales.target(model.prediction_type(), clean, noise);
    let remedy = "the model must predict one value for every element";
    let (shape, found) = (target.dims(), output.dims());
    check_shape("the model's prediction", &shape, &found, remedy)?;
    Ok(to_f32(output) - target)
}

#[cfg(test)]
mod tests;
