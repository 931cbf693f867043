//! How close an unlearned model is to a retrained one, in units that a reader can judge.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, check_finite_numbers, check_samples, mean_and_deviation};
use crate::denoiser::Denoiser;
use crate::error::{Result, check_range, check_shape};
use crate::evaluate::DenoisingLoss;
use crate::process::Scheduler;

/// The mean distance of an unlearned from a retrained model, divided by that of two retrained
/// models: 1 is as close as retraining comes to itself.
///
/// Each list holds a distance per point, of the same points in the same order. The interval is
/// normal, with the variance of the ratio of two means to first order, for points that are a
/// sample; it does not contain the spread between retrained models.
///
/// # Errors
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for lists of different lengths;
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points or a floor whose mean
/// is not positive; [`Error::NonFiniteNumber`](crate::Error::NonFiniteNumber).
///
/// # Example
/// ```
/// use siss::metrics::ratio_to_floor;
///
/// let ratio = ratio_to_floor("answers", &[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0])?;
/// assert_eq!((ratio.value, ratio.low, ratio.high), (2.0, 2.0, 2.0));
/// # Ok::<(), siss::Error>(())
/// ```
pub fn ratio_to_floor(name: &str, distances: &[f64], floor: &[f64]) -> Result<Estimate> {
    check_samples(distances.len())?;
    let remedy = "measure both at the same points";
    check_shape(
        "the list of distances",
        &[floor.len()],
        &[distances.len()],
        remedy,
    )?;
    check_finite_numbers("the list of distances", distances)?;
    check_finite_numbers("the list of distances of retrained models", floor)?;
    let (mean, (least, _)) = (mean_and_deviation(distances).0, mean_and_deviation(floor));
    let requirement = "above 0: two models that answer alike are no floor";
    check_range(
        "the mean distance of retrained models",
        least,
        least > 0.0,
        requirement,
    )?;
    let ratio = mean / least;
    let residuals = distances
        .iter()
        .zip(floor)
        .map(|(distance, floor)| distance - ratio * floor);
    let residuals: Vec<f64> = residuals.collect();
    let (count, spread) = (residuals.len(), mean_and_deviation(&residuals).1);
    let error = spread / (count as f64).sqrt() / least;
    let name = format!("{name}, divided by the distance of two retrained models");
    Ok(Estimate::normal(name, ratio, error, vec![count]))
}

/// The losses of two models on samples of each other.
///
/// With samples `x` of each model and losses `ℓ`,
///
/// ```text
/// on_unlearned = E_{x of unlearned} ℓ_retrained(x) − ℓ_unlearned(x)
/// on_retrained = E_{x of retrained} ℓ_unlearned(x) − ℓ_retrained(x)
/// ```
///
/// Up to the weights of the timesteps and the gap of the bound, these are the two divergences of
/// the models' distributions in nats per element; both are 0 for the same model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BidirectionalLoss {
    /// On samples of the unlearned model: large if it generates what the retrained one would not.
    pub on_unlearned: Estimate,
    /// On samples of the retrained model: large if the unlearned one lost something.
    pub on_retrained: Estimate,
    /// The sum of both.
    pub sum: Estimate,
}

/// Measures [`BidirectionalLoss`] at the timesteps of `loss`, with the same noise for both models.
///
/// # Shapes
/// - `samples`: those of the unlearned and of the retrained model, `[n, …]` each
/// - `conditions`: those that the samples were drawn with, `n` rows each
///
/// # Errors
/// Those of [`DenoisingLoss::measure`]; [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer
/// than two samples; [`Error::NonFiniteNumber`](crate::Error::NonFiniteNumber) for a model whose
/// loss is not finite.
///
/// # Reference
/// The bidirectional likelihood of arXiv 2510.12981 (FADE), here with the loss of diffusion models.
pub fn bidirectional_loss<const D: usize, M, R>(
    (unlearned, retrained): (&M, &R),
    scheduler: &dyn Scheduler,
    samples: [&Tensor<D>; 2],
    conditions: [&M::Condition; 2],
    loss: &DenoisingLoss,
) -> Result<BidirectionalLoss>
where
    M: Denoiser<D>,
    R: Denoiser<D, Condition = M::Condition>,
{
    let [of_unlearned, of_retrained] = [0, 1].map(|side| -> Result<Vec<f64>> {
        let (samples, condition) = (samples[side], conditions[side]);
        let own = loss.measure(unlearned, scheduler, samples, condition)?;
        let other = loss.measure(retrained, scheduler, samples, condition)?;
        // What the other model loses on samples of this one.
        let sign = if side == 0 { 1.0 } else { -1.0 };
        let steps = own.len() as f64;
        let difference = |point: usize| {
            let pairs = own.iter().zip(&other);
            sign * pairs
                .map(|(own, other)| other[point] - own[point])
                .sum::<f64>()
                / steps
        };
        Ok((0..samples.dims()[0]).map(difference).collect())
    });
    let (of_unlearned, of_retrained) = (of_unlearned?, of_retrained?);
    let on_unlearned = Estimate::mean("loss on samples of the unlearned model", &of_unlearned)?;
    let on_retrained = Estimate::mean("loss on samples of the retrained model", &of_retrained)?;
    let variance = |list: &[f64]| mean_and_deviation(list).1.powi(2) / list.len() as f64;
    let error = (variance(&of_unlearned) + variance(&of_retrained)).sqrt();
    let (value, counts) = (
        on_unlearned.value + on_retrained.value,
        vec![of_unlearned.len(), of_retrained.len()],
    );
    let sum = Estimate::normal("bidirectional loss", value, error, counts);
    Ok(BidirectionalLoss {
        on_unlearned,
        on_retrained,
        sum,
    })
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::normal;
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::draws::{Stream, normal_noise};
    use crate::error::Error;
    use crate::process::DdpmScheduler;

    #[test]
    fn ratios_are_those_of_the_means_and_their_intervals_cover() {
        const RUNS: u64 = 300;
        let covers = |run: &u64| {
            let values: Vec<f64> = normal(*run, 40, 2).into_data().iter().collect();
            let pairs: Vec<_> = values.chunks(2).map(|it| (it[0], it[1])).collect();
            let floor: Vec<f64> = pairs.iter().map(|(a, _)| 4.0 + a).collect();
            let distances: Vec<f64> = pairs.iter().map(|(a, b)| 12.0 + 2.0 * a + b).collect();
            let found = ratio_to_floor("losses", &distances, &floor).unwrap();
            assert!(
                (found.value - mean_and_deviation(&distances).0 / mean_and_deviation(&floor).0)
                    .abs()
                    < 1e-12
            );
            found.low <= 3.0 && 3.0 <= found.high
        };
        let covered = (0..RUNS).filter(covers).count() as f64 / RUNS as f64;
        assert!((0.89..=0.99).contains(&covered), "{covered}");
    }

    #[test]
    fn lists_without_a_ratio_are_refused() {
        let refused = |a: &[f64], b: &[f64]| ratio_to_floor("losses", a, b).unwrap_err();
        assert!(matches!(
            refused(&[1.0, 2.0], &[1.0]),
            Error::ShapeMismatch { .. }
        ));
        assert!(matches!(refused(&[1.0], &[1.0]), Error::OutOfRange { .. }));
        assert!(matches!(
            refused(&[1.0, 2.0], &[0.0, 0.0]),
            Error::OutOfRange { .. }
        ));
        assert!(matches!(
            refused(&[1.0, f64::NAN], &[1.0, 1.0]),
            Error::NonFiniteNumber { .. }
        ));
    }

    fn says(shift: f64) -> impl Denoiser<2, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        FnDenoiser::new(layer, move |_: &Linear, noisy: Tensor<2>, _, _: &()| {
            noisy * 0.5 + shift
        })
    }

    /// A model that errs by a constant `s` more has the loss `2 s E r + s²` more, with the error
    /// `r = m / 2 − ε` of the other. Samples that lie `c` higher under the same noise have an `E r`
    /// that is `γ c / 2` larger.
    #[test]
    fn both_directions_are_those_of_a_constant_error() {
        const TIMESTEPS: [f64; 2] = [100.0, 500.0];
        const NOISES: usize = 4;
        let (error, higher) = (3.0, 0.7);
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let samples = normal(1, 50, 3);
        let loss = DenoisingLoss {
            noises: NOISES,
            ..DenoisingLoss::at(TIMESTEPS)
        };
        let measure = |one: f64, other: f64, of_unlearned: &Tensor<2>| {
            let samples = [of_unlearned, &samples];
            let models = (&says(one), &says(other));
            bidirectional_loss(models, &scheduler, samples, [&(), &()], &loss).unwrap()
        };
        let same = measure(0.2, 0.2, &samples);
        assert_eq!((same.sum.value, same.sum.high), (0.0, 0.0));

        let apart = measure(0.0, error, &(samples.clone() + higher));
        let device = Device::flex();
        let noise = normal_noise([50 * NOISES, 3], 0, 0, 0, Stream::Evaluation, &device);
        let mean = |values: Tensor<2>| values.mean().into_scalar::<f32>() as f64;
        let (of_samples, of_noise) = (mean(samples.clone()), mean(noise));
        let over_timesteps = |of: &dyn Fn(f64) -> f64| TIMESTEPS.map(of).iter().sum::<f64>() / 2.0;
        let gamma = over_timesteps(&|t| scheduler.signal_scale(t));
        let sigma = over_timesteps(&|t| scheduler.noise_scale(t));
        let residual = |mean: f64| gamma * mean / 2.0 + (sigma / 2.0 - 1.0) * of_noise;
        let excess = |mean: f64| 2.0 * error * residual(mean) + error * error;
        for (found, expected) in [
            (apart.on_unlearned.value, excess(of_samples + higher)),
            (apart.on_retrained.value, -excess(of_samples)),
            (apart.sum.value, error * gamma * higher),
        ] {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        assert_eq!(apart.sum.samples, [50, 50]);
    }
}
