//! How far the answers of two models are apart at noisy points.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::denoising_loss::residual;
use super::{DenoisingLoss, compared_noises, device_of_both, micro_batch_size};
use crate::data::Points;
use crate::data::points::check_not_empty;
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Result, check_prediction_type};
use crate::host::{squared_norms, sum_elements};
use crate::process::{Scheduler, SchedulerExt};

/// How far a model's answers are from those of a reference, as a model retrained without the point.
///
/// Two models can have the same loss at a point and still answer differently there.
/// With the errors `u = f(m, t) − y` of the model and `r = g(m, t) − y` of the reference, at noisy
/// points `m = γ x + σ ε` with the target `y`, it measures
///
/// ```text
/// distance = Σ ‖u − r‖² / Σ ‖r‖²        over the noises of a point
/// cosine   = mean ⟨u, r⟩ / (‖u‖ ‖r‖)
/// ```
///
/// at each timestep. Both are free of units. The noise is that of [`DenoisingLoss`]: it follows
/// from the seed and the point's number alone and is the same at each timestep, so figures of
/// several models against one reference can be compared.
///
/// | field | [`at`](AnswerDistance::at) | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | given | where the models are compared | of the scheduler's range, one or more |
/// | `noises` | 32 | noises per point | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time; changes memory, not results | ≥ 1 |
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::AnswerDistance;
///
/// # let device = Device::flex();
/// # let model = || {
/// #     let layer = LinearConfig::new(3, 3).init(&device);
/// #     FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy))
/// # };
/// # let (unlearned, retrained) = (model(), model());
/// # let forgotten = Tensor::<2>::ones([1, 3], &device);
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let compare = AnswerDistance::at([100.0, 250.0, 400.0]);
/// let found = compare.measure(&unlearned, &retrained, &scheduler, &forgotten, &())?;
/// for (timestep, of_points) in compare.timesteps.iter().zip(&found) {
///     println!("t = {timestep}: {:.2}, {:.2}", of_points[0].distance, of_points[0].cosine);
/// }
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerDistance {
    /// Where the models are compared.
    pub timesteps: Vec<f64>,
    /// Noises per point.
    #[serde(default = "compared_noises")]
    pub noises: usize,
    /// Key of the noises.
    #[serde(default)]
    pub seed: u64,
    /// Rows run at a time.
    #[serde(default = "micro_batch_size")]
    pub micro_batch_size: usize,
}

/// How a model's answers at one point and timestep compare with a reference's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AnswerComparison {
    /// Power of the difference of the answers, divided by the power of the reference's error: 0 for
    /// the same answers. Not finite for a reference without error.
    pub distance: f64,
    /// Cosine of the two errors, mean over noises, from −1 to 1. NaN if a model has no error.
    pub cosine: f64,
}

impl AnswerDistance {
    /// At these timesteps, with 32 noises per point.
    pub fn at(timesteps: impl Into<Vec<f64>>) -> Self {
        Self {
            timesteps: timesteps.into(),
            noises: compared_noises(),
            seed: 0,
            micro_batch_size: micro_batch_size(),
        }
    }

    /// Compares the answers of `model` with those of `reference`: `result[i][j]` is the comparison
    /// for point `j` at `timesteps[i]`.
    ///
    /// Both models run in their plain form. Memory is that of one micro-batch and of the result.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// Those of [`DenoisingLoss::measure`], of either model;
    /// [`Error::PredictionTypeDiffers`](crate::Error::PredictionTypeDiffers) for models that do not
    /// predict the same.
    pub fn measure<const D: usize, M, R>(
        &self,
        model: &M,
        reference: &R,
        scheduler: &dyn Scheduler,
        points: &dyn Points<D>,
        condition: &M::Condition,
    ) -> Result<Vec<Vec<AnswerComparison>>>
    where
        M: Denoiser<D>,
        R: Denoiser<D, Condition = M::Condition>,
    {
        let count = points.dims()[0];
        let rows = self.rows();
        rows.check(count)?;
        check_not_empty(points, "the set of points to measure")?;
        condition.check_rows("the condition", count)?;
        let kind = model.prediction_type();
        check_prediction_type(kind, "the scheduler", scheduler.prediction_type())?;
        let of_reference = Some(reference.prediction_type());
        check_prediction_type(kind, "the reference model", of_reference)?;
        let scales = scheduler.scales(&self.timesteps)?;
        let (model, reference) = (model.valid(), reference.valid());
        model.check_input(points.dims())?;
        model.check_condition(condition)?;
        reference.check_input(points.dims())?;
        reference.check_condition(condition)?;
        let device = device_of_both(&model, &reference, points)?;

        let mut sums = vec![vec![Sums::default(); count]; self.timesteps.len()];
        let compare = |timestep, scales: &_, clean: &_, noise: &_, condition: &_| {
            let own = residual(&model, timestep, scales, clean, noise, condition)?;
            let other = residual(&reference, timestep, scales, clean, noise, condition)?;
            Ok(products(own, other))
        };
        let take = |points: &[usize], products: &[f32]| {
            let rows = points.len();
            for (sums, products) in sums.iter_mut().zip(products.chunks(PRODUCTS * rows)) {
                for (row, &point) in points.iter().enumerate() {
                    let product = |index: usize| f64::from(products[index * rows + row]);
                    sums[point].add([0, 1, 2, 3].map(product));
                }
            }
        };
        let noise = |shape, first, device: &_| rows.noise(shape, first, device);
        rows.each_part_with(compare, noise, &scales, (points, condition), &device, take)?;
        let compared = |sums: &Vec<Sums>| {
            let sums = sums.iter();
            sums.map(|sums| sums.compared(self.noises)).collect()
        };
        Ok(sums.iter().map(compared).collect())
    }

    /// The points with their noises.
    fn rows(&self) -> DenoisingLoss {
        DenoisingLoss {
            noises: self.noises,
            seed: self.seed,
            micro_batch_size: self.micro_batch_size,
            ..DenoisingLoss::at(self.timesteps.as_slice())
        }
    }
}

/// Numbers per row that the comparison is made from.
const PRODUCTS: usize = 4;

/// `‖u − r‖²`, `‖r‖²`, `‖u‖²` and `⟨u, r⟩` of each row, one after the other: `[4 · rows]`.
fn products<const D: usize>(own: Tensor<D>, other: Tensor<D>) -> Tensor<1> {
    let products = [
        squared_norms(own.clone() - other.clone()),
        squared_norms(other.clone()),
        squared_norms(own.clone()),
        sum_elements(own * other),
    ];
    Tensor::cat(products.to_vec(), 0)
}

/// Sums over the noises of a point at a timestep.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    difference: f64,
    reference: f64,
    cosines: f64,
}

impl Sums {
    fn add(&mut self, [difference, reference, own, inner]: [f64; PRODUCTS]) {
        self.difference += difference;
        self.reference += reference;
        self.cosines += inner / (reference * own).sqrt();
    }

    fn compared(&self, noises: usize) -> AnswerComparison {
        AnswerComparison {
            distance: self.difference / self.reference,
            cosine: self.cosines / noises as f64,
        }
    }
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

    fn noise(seed: u64, rows: usize) -> Tensor<2> {
        let (stream, device) = (Stream::Evaluation, Device::flex());
        normal_noise([rows, 3], seed, 0, 0, stream, &device)
    }

    /// Says `scale · noisy + shift`, whatever the time.
    fn says(scale: f64, shift: f64) -> impl Denoiser<2, Condition = ()> {
        predicts(PredictionType::Epsilon, scale, shift)
    }

    fn predicts(kind: PredictionType, scale: f64, shift: f64) -> impl Denoiser<2, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let say = move |_: &Linear, noisy: Tensor<2>, _, _: &()| noisy * scale + shift;
        FnDenoiser::new(layer, say).predicting(kind)
    }

    fn host(tensor: Tensor<2>) -> Vec<Vec<f64>> {
        let values: Vec<f64> = tensor.into_data().iter().collect();
        values.chunks(3).map(<[f64]>::to_vec).collect()
    }

    /// Written out in f64, whatever is run at a time.
    #[test]
    fn distance_and_cosine_are_those_of_their_definition() {
        const NOISES: usize = 5;
        let (points, scheduler) = (noise(1, 3), DdpmScheduler::linear(1000).unwrap());
        let (x, e) = (host(points.clone()), host(noise(7, 3 * NOISES)));
        for micro_batch_size in [1, 4, 64] {
            let compare = AnswerDistance {
                noises: NOISES,
                seed: 7,
                micro_batch_size,
                ..AnswerDistance::at([50.0, 400.0])
            };
            let (model, reference) = (says(0.5, 0.1), says(0.8, -0.3));
            let found = compare
                .measure(&model, &reference, &scheduler, &points, &())
                .unwrap();
            for (found, t) in found.iter().zip([50.0, 400.0]) {
                let (gamma, sigma) = (scheduler.signal_scale(t), scheduler.noise_scale(t));
                for (point, found) in found.iter().enumerate() {
                    let (mut difference, mut power, mut cosine) = (0.0, 0.0, 0.0);
                    for e in &e[point * NOISES..][..NOISES] {
                        let error = |scale: f64, shift: f64| -> Vec<f64> {
                            let pairs = x[point].iter().zip(e);
                            pairs
                                .map(|(x, e)| scale * (gamma * x + sigma * e) + shift - e)
                                .collect()
                        };
                        let (u, r) = (error(0.5, 0.1), error(0.8, -0.3));
                        let dot = |a: &[f64], b: &[f64]| -> f64 {
                            a.iter().zip(b).map(|(a, b)| a * b).sum()
                        };
                        difference += dot(&u, &u) + dot(&r, &r) - 2.0 * dot(&u, &r);
                        power += dot(&r, &r);
                        let norms = (dot(&u, &u) * dot(&r, &r)).sqrt();
                        cosine += dot(&u, &r) / norms / NOISES as f64;
                    }
                    assert!((found.distance / (difference / power) - 1.0).abs() < 1e-4);
                    assert!((found.cosine - cosine).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_model_answers_as_itself_and_not_as_the_opposite_error() {
        let (points, scheduler) = (noise(1, 2), DdpmScheduler::linear(1000).unwrap());
        let compare = AnswerDistance::at([250.0]);
        let of = |scale: f64, shift: f64| {
            let (model, reference) = (says(scale, shift), says(0.5, 0.2));
            let found = compare.measure(&model, &reference, &scheduler, &points, &());
            found.unwrap()[0][1]
        };
        let same = of(0.5, 0.2);
        assert_eq!(same.distance, 0.0);
        assert!((same.cosine - 1.0).abs() < 1e-6);
        assert!(of(0.9, 0.2).distance > 0.01);
    }

    #[test]
    fn models_that_do_not_fit_each_other_are_refused() {
        let (points, scheduler) = (noise(1, 2), DdpmScheduler::linear(1000).unwrap());
        let compare = AnswerDistance::at([250.0]);
        let velocity = predicts(PredictionType::Velocity, 0.5, 0.0);
        let error = compare
            .measure(&says(0.5, 0.0), &velocity, &scheduler, &points, &())
            .unwrap_err();
        assert!(
            matches!(error, Error::PredictionTypeDiffers { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("the reference model"), "{error}");
        let none = AnswerDistance {
            noises: 0,
            ..compare
        };
        let error = none
            .measure(&says(0.5, 0.0), &says(0.5, 0.0), &scheduler, &points, &())
            .unwrap_err();
        assert!(
            matches!(error, Error::OutOfRange { name: "noises", .. }),
            "{error}"
        );
    }
}
