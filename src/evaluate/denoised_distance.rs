//! How far the copies that two models denoise from the same noisy points are apart.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::denoising_loss::parts;
use super::{DenoisingLoss, compared_noises, device_of_both, micro_batch_size};
use crate::data::Points;
use crate::data::points::check_not_empty;
use crate::denoiser::{Condition, Denoiser};
use crate::error::Result;
use crate::host::{read_f32, squared_norms, to_f32};
use crate::sampling::Sampler;

/// How far a model's denoised copies of points are from those of a reference, as a model retrained
/// without the points.
///
/// [`AnswerDistance`](super::AnswerDistance) compares single answers.
/// Here both models follow the sampler from the same noisy point `γ x + σ ε` down to the clean end,
/// so it compares what they make of the point. With the copies `a` of the model and `b` of the
/// reference it measures
///
/// ```text
/// to_reference = mean ‖a − b‖        over the noises of a point
/// to_point     = mean ‖a − x‖
/// ```
///
/// from each timestep, in the unit of the points. A model that still knows a point has a small
/// `to_point`; a model that answers as the reference has a small `to_reference`. The noise follows
/// from the seed and the point's number alone and is the same from each timestep, so figures of
/// several models against one reference can be compared.
///
/// | field | [`at`](DenoisedDistance::at) | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | given | from where the copies are denoised | of the scheduler's range, one or more |
/// | `noises` | 32 | copies of each point | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time; changes memory, not results | ≥ 1 |
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::DenoisedDistance;
/// use siss::sampling::{DdimConfig, DdimSampler};
///
/// # let device = Device::flex();
/// # let model = || {
/// #     let layer = LinearConfig::new(3, 3).init(&device);
/// #     FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy))
/// # };
/// # let (unlearned, retrained) = (model(), model());
/// # let forgotten = Tensor::<2>::ones([1, 3], &device);
/// let sampler = DdimSampler::new(&DdpmScheduler::linear(1000)?, DdimConfig::new(25))?;
/// let compare = DenoisedDistance::at([250, 400]);
/// let found = compare.measure(&unlearned, &retrained, &sampler, &forgotten, &())?;
/// for (timestep, of_points) in compare.timesteps.iter().zip(&found) {
///     println!("from t = {timestep}: {:.2}", of_points[0].to_reference);
/// }
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoisedDistance {
    /// From where the copies are denoised.
    pub timesteps: Vec<usize>,
    /// Copies of each point.
    #[serde(default = "compared_noises")]
    pub noises: usize,
    /// Key of the noises.
    #[serde(default)]
    pub seed: u64,
    /// Rows run at a time.
    #[serde(default = "micro_batch_size")]
    pub micro_batch_size: usize,
}

/// Where a model's denoised copies of one point from one timestep are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DenoisedComparison {
    /// Mean Euclidean distance from the reference's copy of the same noise.
    pub to_reference: f64,
    /// Mean Euclidean distance from the point.
    pub to_point: f64,
}

impl DenoisedDistance {
    /// From these timesteps, with 32 copies of each point.
    pub fn at(timesteps: impl Into<Vec<usize>>) -> Self {
        Self {
            timesteps: timesteps.into(),
            noises: compared_noises(),
            seed: 0,
            micro_batch_size: micro_batch_size(),
        }
    }

    /// Compares the copies of `model` with those of `reference`: `result[i][j]` is the comparison
    /// for point `j` from `timesteps[i]`.
    ///
    /// The models need not predict the same. Both run in their plain form. Memory is that of one
    /// micro-batch and of the result.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// Those of [`Sampler::noise_and_denoise`], of either model, and
    /// - [`Error::Empty`](crate::Error::Empty) without points or timesteps
    /// - [`Error::OutOfRange`](crate::Error::OutOfRange) if `noises` or `micro_batch_size` is 0
    /// - [`Error::NonFinitePoint`](crate::Error::NonFinitePoint)
    /// - [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) for models or points on different
    ///   devices; [`Error::DeviceRead`](crate::Error::DeviceRead)
    /// - the errors of the set
    pub fn measure<const D: usize, M, R>(
        &self,
        model: &M,
        reference: &R,
        sampler: &impl Sampler,
        points: &dyn Points<D>,
        condition: &M::Condition,
    ) -> Result<Vec<Vec<DenoisedComparison>>>
    where
        M: Denoiser<D>,
        R: Denoiser<D, Condition = M::Condition>,
    {
        let count = points.dims()[0];
        let rows = self.rows();
        rows.check(count)?;
        check_not_empty(points, "the set of points to measure")?;
        condition.check_rows("the condition", count)?;
        let (model, reference) = (model.valid(), reference.valid());
        let device = device_of_both(&model, &reference, points)?;

        let mut means = vec![vec![DenoisedComparison::default(); count]; self.timesteps.len()];
        for (first, of_rows) in parts(count, self.noises, self.micro_batch_size) {
            let clean = rows.clean(points, &of_rows, &device)?;
            let condition = condition.take_rows(&of_rows);
            let first = first as u64;
            for (means, &timestep) in means.iter_mut().zip(&self.timesteps) {
                let noisy = (clean.clone(), timestep);
                let own = self.denoised(&model, sampler, noisy.clone(), &condition, first)?;
                let other = self.denoised(&reference, sampler, noisy, &condition, first)?;
                let to_reference = distances(&own, &other)?;
                let to_point = distances(&own, &clean)?;
                for ((&point, to_reference), to_point) in
                    of_rows.iter().zip(to_reference).zip(to_point)
                {
                    means[point].to_reference += to_reference / self.noises as f64;
                    means[point].to_point += to_point / self.noises as f64;
                }
            }
        }
        Ok(means)
    }

    /// Copies of clean rows that are noised to a timestep and denoised from there.
    fn denoised<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        sampler: &impl Sampler,
        (clean, timestep): (Tensor<D>, usize),
        condition: &M::Condition,
        first_row: u64,
    ) -> Result<Tensor<D>> {
        let seed = self.seed;
        let copies =
            sampler.noise_and_denoise(model, condition, clean, timestep, seed, first_row)?;
        Ok(to_f32(copies))
    }

    /// The points with their noises.
    fn rows(&self) -> DenoisingLoss {
        let timesteps: Vec<f64> = self.timesteps.iter().map(|&t| t as f64).collect();
        DenoisingLoss {
            noises: self.noises,
            seed: self.seed,
            micro_batch_size: self.micro_batch_size,
            ..DenoisingLoss::at(timesteps)
        }
    }
}

/// The Euclidean distance of each row from its counterpart.
fn distances<const D: usize>(rows: &Tensor<D>, counterparts: &Tensor<D>) -> Result<Vec<f64>> {
    let squares = squared_norms(rows.clone() - counterparts.clone());
    let squares = read_f32(squares, "the distances of denoised copies")?;
    Ok(squares.into_iter().map(|it| f64::from(it).sqrt()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::draws::{Stream, normal_noise};
    use crate::error::Error;
    use crate::process::{DdpmScheduler, PredictionType};
    use crate::sampling::{DdimConfig, DdimSampler};

    fn points(rows: usize) -> Tensor<2> {
        normal_noise([rows, 3], 1, 0, 0, Stream::Evaluation, &Device::flex()) * 0.3
    }

    fn sampler() -> DdimSampler {
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        DdimSampler::new(&scheduler, DdimConfig::new(10)).unwrap()
    }

    /// Says `scale · noisy + shift`, whatever the time.
    fn says(kind: PredictionType, scale: f64, shift: f64) -> impl Denoiser<2, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let say = move |_: &Linear, noisy: Tensor<2>, _, _: &()| noisy * scale + shift;
        FnDenoiser::new(layer, say).predicting(kind)
    }

    /// A model that takes everything for one point denoises to that point.
    #[test]
    fn distances_are_those_of_known_copies() {
        let (points, kind) = (points(2), PredictionType::Sample);
        let (model, reference) = (says(kind, 0.0, 0.5), says(kind, 0.0, -0.25));
        let compare = DenoisedDistance::at([250, 400]);
        let found = compare.measure(&model, &reference, &sampler(), &points, &());
        let values: Vec<f64> = points.into_data().iter().collect();
        for of_points in found.unwrap() {
            for (found, point) in of_points.iter().zip(values.chunks(3)) {
                let to_point: f64 = point.iter().map(|x| (0.5 - x).powi(2)).sum();
                assert!((found.to_reference - 0.75 * 3.0_f64.sqrt()).abs() < 1e-5);
                assert!((found.to_point - to_point.sqrt()).abs() < 1e-5);
            }
        }
    }

    /// Both models start from the same noise, each copy from its own, whatever is run at a time.
    #[test]
    fn copies_are_those_of_the_sampler() {
        const NOISES: usize = 5;
        let (points, sampler) = (points(2), sampler());
        let kind = PredictionType::Epsilon;
        let (model, reference) = (says(kind, 0.5, 0.1), says(kind, 0.8, -0.3));
        let rows = [0, 1].map(|row| points.clone().narrow(0, row, 1).repeat_dim(0, NOISES));
        let rows = Tensor::cat(rows.to_vec(), 0);
        let own = sampler.noise_and_denoise(&model, &(), rows.clone(), 400, 7, 0);
        let other = sampler.noise_and_denoise(&reference, &(), rows, 400, 7, 0);
        let distances = distances(&own.unwrap(), &other.unwrap()).unwrap();
        for micro_batch_size in [1, 4, 64] {
            let compare = DenoisedDistance {
                noises: NOISES,
                seed: 7,
                micro_batch_size,
                ..DenoisedDistance::at([400])
            };
            let found = compare.measure(&model, &reference, &sampler, &points, &());
            for (found, of_point) in found.unwrap()[0].iter().zip(distances.chunks(NOISES)) {
                let expected = of_point.iter().sum::<f64>() / NOISES as f64;
                assert!(expected > 0.01);
                assert!((found.to_reference / expected - 1.0).abs() < 1e-5);
            }
            let same = compare.measure(&model, &model, &sampler, &points, &());
            assert_eq!(same.unwrap()[0][1].to_reference, 0.0);
        }
    }

    #[test]
    fn settings_and_points_that_give_no_figure_are_refused() {
        let model = || says(PredictionType::Epsilon, 0.5, 0.0);
        let refused = |compare: DenoisedDistance, points: &Tensor<2>| {
            compare
                .measure(&model(), &model(), &sampler(), points, &())
                .unwrap_err()
        };
        let error = refused(DenoisedDistance::at([]), &points(1));
        assert!(matches!(error, Error::Empty { .. }), "{error}");
        let error = refused(DenoisedDistance::at([1000]), &points(1));
        assert!(matches!(error, Error::TimestepOutOfRange { .. }), "{error}");
        let error = refused(DenoisedDistance::at([250]), &(points(2) * f64::NAN));
        assert!(
            matches!(error, Error::NonFinitePoint { point: 0, .. }),
            "{error}"
        );
        let none = DenoisedDistance {
            noises: 0,
            ..DenoisedDistance::at([250])
        };
        let error = refused(none, &points(1));
        assert!(
            matches!(error, Error::OutOfRange { name: "noises", .. }),
            "{error}"
        );
    }
}
