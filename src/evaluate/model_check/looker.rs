//! Losses at ratios of signal to noise, for the model check.

use burn::tensor::Tensor;

use super::ModelCheck;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::Result;
use crate::evaluate::row_losses;
use crate::host::read_f32;
use crate::process::{PredictionType, Scales, Scheduler, SchedulerExt};

/// Logarithms of the ratio of signal to noise at which losses are compared.
pub(super) const LOG_RATIOS: [f64; 6] = [-4.0, -2.5, -1.0, 0.5, 2.0, 3.5];
/// How far the ratio of a timestep may be from one of them, as a logarithm.
const SLACK: f64 = 0.3;
/// How much better another preprocessing must be: as a share of the loss, and in standard errors.
const CLEARLY: f64 = 0.1;
const STANDARD_ERRORS: f64 = 3.0;

/// Losses of some points at some timesteps, in the space of the noise.
pub(super) struct Losses {
    /// By timestep, noisiest first, and point.
    pub(super) values: Vec<Vec<f64>>,
}

impl Losses {
    pub(super) fn mean(&self) -> f64 {
        mean(self.values.iter().flatten().copied())
    }

    pub(super) fn noisiest(&self) -> f64 {
        self.values
            .first()
            .map_or(f64::INFINITY, |losses| mean(losses.iter().copied()))
    }

    /// The mean over the timesteps for each point.
    pub(super) fn of_points(&self) -> Vec<f64> {
        let points = self.values.first().map_or(0, Vec::len);
        let of_point = |point: usize| mean(self.values.iter().map(|losses| losses[point]));
        (0..points).map(of_point).collect()
    }

    /// Whether these losses are below others by a clear share, and by more than chance.
    pub(super) fn is_clearly_below(&self, others: &Self) -> bool {
        let (own, others) = (self.of_points(), others.of_points());
        let gains: Vec<f64> = others
            .iter()
            .zip(&own)
            .map(|(other, own)| other - own)
            .collect();
        let gain = mean(gains.iter().copied());
        let square = mean(gains.iter().map(|one| (one - gain).powi(2)));
        let standard_error = (square / gains.len() as f64).sqrt();
        gain > CLEARLY * mean(others.iter().copied()) && gain > STANDARD_ERRORS * standard_error
    }
}

/// A model and its process, as the check examines them.
pub(super) struct Looker<'a, M> {
    pub(super) model: M,
    pub(super) scheduler: &'a dyn Scheduler,
    pub(super) check: &'a ModelCheck,
}

impl<M> Looker<'_, M> {
    /// A timestep for each of the ratios, for data with this variance; `None` if the process lacks
    /// the ratio.
    pub(super) fn timesteps(&self, variance: f64) -> Vec<Option<f64>> {
        let range = self.scheduler.time_range();
        let log_ratio = |timestep| (self.scheduler.snr(timestep) * variance).ln();
        let timestep = |wanted: f64| {
            // The ratio falls with time.
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..50 {
                let middle = 0.5 * (low + high);
                match log_ratio(range.at(middle)) > wanted {
                    true => low = middle,
                    false => high = middle,
                }
            }
            let ends = [low, high].map(|share| range.at(share));
            let off = |timestep: &f64| (log_ratio(*timestep) - wanted).abs();
            let nearest = ends.into_iter().min_by(|a, b| off(a).total_cmp(&off(b)));
            nearest.filter(|timestep| off(timestep) < SLACK)
        };
        LOG_RATIOS.map(timestep).to_vec()
    }

    pub(super) fn losses<const D: usize>(
        &self,
        points: &Tensor<D>,
        condition: &M::Condition,
        timesteps: &[f64],
    ) -> Result<Losses>
    where
        M: Denoiser<D>,
    {
        let noise = self.noise(points.dims(), &points.device());
        self.losses_under(points, &noise, condition, timesteps)
    }

    pub(super) fn losses_under<const D: usize>(
        &self,
        points: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        timesteps: &[f64],
    ) -> Result<Losses>
    where
        M: Denoiser<D>,
    {
        let values = timesteps
            .iter()
            .map(|&timestep| self.losses_at(points, noise, condition, timestep));
        Ok(Losses {
            values: values.collect::<Result<_>>()?,
        })
    }

    pub(super) fn noise<const D: usize>(
        &self,
        shape: [usize; D],
        device: &burn::tensor::Device,
    ) -> Tensor<D> {
        normal_noise(shape, self.check.seed, 0, 0, Stream::Evaluation, device)
    }

    /// The loss of each row at a timestep, mean over elements.
    pub(super) fn losses_at<const D: usize>(
        &self,
        points: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        timestep: f64,
    ) -> Result<Vec<f64>>
    where
        M: Denoiser<D>,
    {
        let count = points.dims()[0];
        let kind = self.model.prediction_type();
        let mut losses = Vec::with_capacity(count);
        for first in (0..count).step_by(self.check.micro_batch_size) {
            let rows = self.check.micro_batch_size.min(count - first);
            let indices: Vec<usize> = (first..first + rows).collect();
            let part = |all: &Tensor<D>| all.clone().narrow(0, first, rows);
            let (clean, noise) = (part(points), part(noise));
            let scales = self.scheduler.scales(&vec![timestep; rows])?;
            let condition = condition.take_rows(&indices);
            let of_rows = row_losses(&self.model, timestep, &scales, &clean, &noise, &condition)?;
            // The change of the output for one unit of noise, together with the clean point that
            // compensates for it.
            let unit = unit_of_noise(kind, &scales);
            let of_rows = read_f32(of_rows, "the model's losses")?;
            let in_noise = |loss: f32| f64::from(loss) / (unit * unit);
            losses.extend(of_rows.into_iter().map(in_noise));
        }
        Ok(losses)
    }
}

/// The change of the output if the noise in a given noisy point is larger by 1, and its clean point
/// smaller by `σ/γ`.
pub(super) fn unit_of_noise(kind: PredictionType, scales: &Scales) -> f64 {
    let (gamma, sigma) = (scales.signal[0], scales.noise[0]);
    match kind {
        PredictionType::Epsilon => 1.0,
        PredictionType::Sample => sigma / gamma,
        PredictionType::Velocity => gamma + sigma * sigma / gamma,
        PredictionType::FlowVelocity => 1.0 + sigma / gamma,
    }
}

/// At most `most` row numbers, spread evenly.
pub(super) fn spread(count: usize, most: usize) -> Vec<usize> {
    let chosen = count.min(most);
    (0..chosen).map(|index| index * count / chosen).collect()
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

pub(super) fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

/// Mean and variance of all elements.
pub(super) fn moments<const D: usize>(points: &Tensor<D>) -> Result<(f64, f64)> {
    let values = read_f32(points.clone(), "the data")?;
    let values = || values.iter().copied().map(f64::from);
    let centre = mean(values());
    Ok((centre, mean(values().map(|value| (value - centre).powi(2)))))
}
