//! Whether a point was in the training data, from what the model says about it.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use statrs::distribution::ContinuousCDF;

use super::estimate::{check_finite_numbers, check_samples, mean_and_deviation, student};
use crate::data::Points;
use crate::data::finite::first_non_finite;
use crate::data::points::{check_not_empty, load};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_prediction_type, check_range, check_shape};
use crate::host::{as_column, read_f32, squared_norms, sum_elements, to_f32, vector};
use crate::process::{DdpmScheduler, Scheduler, SchedulerExt};

/// A statistic of a point that tends to be smaller for points of the training data.
///
/// With the predicted noise `ε̂(m, t)` and the model's process `γ_t`, `σ_t`:
///
/// | signal | statistic | model calls |
/// |---|---|---|
/// | `Sima` | `Σ ε̂(x, t)⁴`, the point without noise | 1 |
/// | `Pia` | `Σ (ε₀ − ε̂(γ_t x + σ_t ε₀, t))⁴`, with `ε₀ = ε̂(x, 0)` | 2 |
/// | `Pian` | the same, with `ε₀` scaled to the mean modulus of normal noise, `√(2/π)` | 2 |
/// | `SecMi` | `Σ (x̃_t − x_t)²`: DDIM up to `t` in steps of `stride`, one more step up, and down again | `t / stride + 2` |
///
/// The sums run over the elements of a point. The timestep is fixed before the scores are seen: the
/// best of many timesteps, chosen on the tested points, is not a test. The loss, another signal, is
/// [`DenoisingLoss`](crate::evaluate::DenoisingLoss).
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, FnDenoiser};
/// use siss::metrics::{MembershipSignal, Roc};
///
/// # let device = Device::flex();
/// # let layer = LinearConfig::new(3, 3).init(&device);
/// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
/// # let forgotten = Tensor::<2>::random([10, 3], Distribution::Default, &device);
/// # let unseen = Tensor::<2>::random([100, 3], Distribution::Default, &device);
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let signal = MembershipSignal::Pia { timestep: 200 };
/// let of_forgotten = signal.measure(&model, &scheduler, &forgotten, &())?;
/// let of_unseen = signal.measure(&model, &scheduler, &unseen, &())?;
/// let high = |scores: &[f64]| scores.iter().map(|score| -score).collect::<Vec<_>>();
/// println!("{}", Roc::new(&high(&of_forgotten), &high(&of_unseen))?.area());
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Rao et al. 2025, arXiv 2509.25003 (SimA); Kong et al. 2023, arXiv 2305.18355 (PIA, PIAN); Duan
/// et al. 2023, arXiv 2302.01316 (SecMI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum MembershipSignal {
    /// The predicted noise of the point itself.
    Sima {
        /// Where the model is asked.
        timestep: usize,
    },
    /// The change of the predicted noise along the model's own path.
    Pia {
        /// Where the model is asked for the second time.
        timestep: usize,
    },
    /// The same with scaled noise.
    Pian {
        /// Where the model is asked for the second time.
        timestep: usize,
    },
    /// The error of a step of DDIM up and down.
    SecMi {
        /// Where the error is measured.
        timestep: usize,
        /// Timesteps per step.
        stride: usize,
    },
}

/// Rows run at a time.
const ROWS: usize = 64;

impl MembershipSignal {
    /// The statistic of each point; negate it for [`Roc`](super::Roc), which takes high scores for
    /// members.
    ///
    /// The model runs without autodiff and with dropout off, 64 points at a time.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// - [`Error::Empty`] without points; [`Error::NonFinitePoint`]; the errors of the set
    /// - [`Error::TimestepOutOfRange`]; [`Error::OutOfRange`] if `stride` is 0 or does not divide
    ///   the timestep
    /// - [`Error::ShapeMismatch`] if the condition has another number of rows, or the model does
    ///   not accept the points
    /// - [`Error::PredictionTypeDiffers`], [`Error::DeviceMismatch`], [`Error::DeviceRead`]
    pub fn measure<const D: usize, M: Denoiser<D>>(
        self,
        model: &M,
        scheduler: &DdpmScheduler,
        points: &dyn Points<D>,
        condition: &M::Condition,
    ) -> Result<Vec<f64>> {
        check_not_empty(points, "the set of points to measure")?;
        let shape = points.dims();
        condition.check_rows("the condition", shape[0])?;
        let stated = Scheduler::prediction_type(scheduler);
        check_prediction_type(model.prediction_type(), "the scheduler", stated)?;
        self.check_stride()?;
        let model = model.valid();
        model.check_input(shape)?;
        let device = match model.devices().first() {
            Some(device) => device.clone(),
            None => points.load(0..1)?.device(),
        };
        let mut scores = Vec::with_capacity(shape[0]);
        for first in (0..shape[0]).step_by(ROWS) {
            let rows = first..shape[0].min(first + ROWS);
            let clean = load(points, rows.clone(), &device)?;
            let values = read_f32(clean.clone(), "the points to measure")?;
            if let Some((point, value)) = first_non_finite(&values, first, clean.dims()[0]) {
                return Err(Error::NonFinitePoint { point, value });
            }
            let condition = condition.take_rows(&rows.collect::<Vec<_>>());
            let noise = PredictedNoise {
                model: &model,
                scheduler,
                condition: &condition,
            };
            let of_rows = read_f32(self.of_rows(&noise, clean)?, "the membership scores")?;
            scores.extend(of_rows.into_iter().map(f64::from));
        }
        Ok(scores)
    }

    /// Times that the model is called for a point.
    ///
    /// A `stride` of 0, which [`measure`](Self::measure) refuses, counts as 1.
    pub fn calls(self) -> usize {
        match self {
            MembershipSignal::Sima { .. } => 1,
            MembershipSignal::Pia { .. } | MembershipSignal::Pian { .. } => 2,
            MembershipSignal::SecMi { timestep, stride } => timestep / stride.max(1) + 2,
        }
    }

    fn check_stride(self) -> Result<()> {
        if let MembershipSignal::SecMi { timestep, stride } = self {
            let legal = stride > 0 && timestep.is_multiple_of(stride);
            let requirement = "above 0, and a divisor of the timestep";
            check_range("stride", stride as f64, legal, requirement)?;
        }
        Ok(())
    }

    fn of_rows<const D: usize, M: Denoiser<D>>(
        self,
        noise: &PredictedNoise<'_, D, M>,
        clean: Tensor<D>,
    ) -> Result<Tensor<1>> {
        match self {
            MembershipSignal::Sima { timestep } => Ok(fourth_powers(noise.at(&clean, timestep)?)),
            MembershipSignal::Pia { timestep } => {
                let first = noise.at(&clean, 0)?;
                noise.change(&clean, first, timestep)
            }
            MembershipSignal::Pian { timestep } => {
                let first = noise.at(&clean, 0)?;
                let elements = clean.dims()[1..].iter().product::<usize>() as f64;
                let modulus = as_column(sum_elements(first.clone().abs())) / elements;
                let scaled = first / modulus * std::f64::consts::FRAC_2_PI.sqrt();
                noise.change(&clean, scaled, timestep)
            }
            MembershipSignal::SecMi { timestep, stride } => {
                let mut noisy = clean;
                for from in (0..timestep).step_by(stride) {
                    noisy = noise.step(&noisy, from, from + stride)?;
                }
                let above = noise.step(&noisy, timestep, timestep + stride)?;
                let back = noise.step(&above, timestep + stride, timestep)?;
                Ok(squared_norms(back - noisy))
            }
        }
    }
}

/// `Σ v⁴` of each row.
fn fourth_powers<const D: usize>(values: Tensor<D>) -> Tensor<1> {
    squared_norms(values.square())
}

/// The noise that a model sees in points.
struct PredictedNoise<'a, const D: usize, M: Denoiser<D>> {
    model: &'a M,
    scheduler: &'a DdpmScheduler,
    condition: &'a M::Condition,
}

impl<const D: usize, M: Denoiser<D>> PredictedNoise<'_, D, M> {
    fn at(&self, noisy: &Tensor<D>, timestep: usize) -> Result<Tensor<D>> {
        Ok(self.clean_and_noise(noisy, timestep)?.1)
    }

    fn clean_and_noise(
        &self,
        noisy: &Tensor<D>,
        timestep: usize,
    ) -> Result<(Tensor<D>, Tensor<D>)> {
        let (shape, device) = (noisy.dims(), noisy.device());
        let scales = self.scheduler.scales(&[timestep as f64])?;
        let timesteps = vector(vec![timestep as f64; shape[0]], &device);
        let output = self.model.predict(noisy.clone(), timesteps, self.condition);
        let remedy = "the model must predict one value for every element";
        check_shape("the model's prediction", &shape, &output.dims(), remedy)?;
        let (signal, sigma) = (scales.signal_tensor(&device), scales.noise_tensor(&device));
        let kind = self.model.prediction_type();
        Ok(kind.clean_and_noise(noisy.clone(), to_f32(output), signal, sigma))
    }

    /// `Σ (ε − ε̂(γ x + σ ε, t))⁴`.
    fn change(&self, clean: &Tensor<D>, noise: Tensor<D>, timestep: usize) -> Result<Tensor<1>> {
        let scales = self.scheduler.scales(&[timestep as f64])?;
        let noisy = scales.noisy(clean, &noise);
        Ok(fourth_powers(noise - self.at(&noisy, timestep)?))
    }

    /// A step of DDIM without noise, up or down.
    fn step(&self, noisy: &Tensor<D>, from: usize, to: usize) -> Result<Tensor<D>> {
        let (clean, noise) = self.clean_and_noise(noisy, from)?;
        Ok(self.scheduler.scales(&[to as f64])?.noisy(&clean, &noise))
    }
}

/// How a score lies among those of controls, in both directions.
///
/// With `n` controls that the model never saw, `low` is `(1 + #{control ≤ score}) / (n + 1)` and
/// `high` the same for `≥`: exact p-values if the point is exchangeable with the controls. A loss
/// that is too low shows a member, one that is too high shows a point that was forgotten too hard.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ControlTest {
    /// Probability of so low a score.
    pub low: f64,
    /// Probability of so high a score.
    pub high: f64,
    /// Twice the smaller of both, at most 1.
    pub two_sided: f64,
    /// The number of controls.
    pub controls: usize,
}

impl ControlTest {
    /// Compares a score with those of controls.
    ///
    /// # Errors
    /// [`Error::Empty`] without controls, [`Error::NonFiniteNumber`].
    ///
    /// # Example
    /// ```
    /// use siss::metrics::ControlTest;
    ///
    /// let controls: Vec<f64> = (1..=99).map(f64::from).collect();
    /// let test = ControlTest::new(0.5, &controls)?;
    /// assert_eq!((test.low, test.high, test.two_sided), (0.01, 1.0, 0.02));
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn new(score: f64, controls: &[f64]) -> Result<Self> {
        if controls.is_empty() {
            let what = "the list of controls";
            let remedy = "give the scores of points that the model never saw";
            return Err(Error::Empty { what, remedy });
        }
        check_finite_numbers("the list of scores", &[score])?;
        check_finite_numbers("the controls' scores", controls)?;
        let rank = |within: &dyn Fn(f64) -> bool| {
            let count = controls.iter().filter(|&&control| within(control)).count();
            (1 + count) as f64 / (1 + controls.len()) as f64
        };
        let (low, high) = (rank(&|it| it <= score), rank(&|it| it >= score));
        let (two_sided, controls) = ((2.0 * low.min(high)).min(1.0), controls.len());
        Ok(Self {
            low,
            high,
            two_sided,
            controls,
        })
    }
}

/// How a model's score of a point compares with those of models that never saw the point: the
/// offline likelihood ratio test.
///
/// With `k` such models, the statistic is `(s − mean) / (deviation · √(1 + 1/k))`. It has Student's
/// distribution with `k − 1` degrees of freedom if the model never saw the point either and scores
/// are normal. With a hundred models that is the test of Carlini et al.; two or three models are
/// enough for a valid, weaker test.
///
/// # Reference
/// Carlini et al. 2022, *Membership Inference Attacks From First Principles*, Eq. 4.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LikelihoodRatio {
    /// Student's statistic.
    pub statistic: f64,
    /// Probability of so low a score.
    pub low: f64,
    /// Probability of so high a score.
    pub high: f64,
    /// Probability of a score so far from the mean.
    pub two_sided: f64,
    /// The number of models that never saw the point.
    pub models: usize,
}

impl LikelihoodRatio {
    /// Compares a score with those of models that never saw the point.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two models, or if they all score the same;
    /// [`Error::NonFiniteNumber`].
    pub fn offline(score: f64, of_retrained: &[f64]) -> Result<Self> {
        check_samples(of_retrained.len())?;
        check_finite_numbers("the list of scores", &[score])?;
        check_finite_numbers("the retrained models' scores", of_retrained)?;
        let models = of_retrained.len();
        let (mean, deviation) = mean_and_deviation(of_retrained);
        let (name, requirement) = (
            "the deviation of the scores",
            "above 0: train with other seeds",
        );
        check_range(name, deviation, deviation > 0.0, requirement)?;
        let statistic = (score - mean) / (deviation * (1.0 + 1.0 / models as f64).sqrt());
        let student = student((models - 1) as f64)?;
        Ok(Self {
            statistic,
            low: student.cdf(statistic),
            high: student.cdf(-statistic),
            two_sided: 2.0 * student.cdf(-statistic.abs()),
            models,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::draws::{Stream, normal_noise};
    use crate::process::PredictionType;

    fn points(rows: usize) -> Tensor<2> {
        normal_noise([rows, 3], 1, 0, 0, Stream::Evaluation, &Device::flex())
    }

    /// Sees the noise `scale · m`.
    fn sees(scale: f64) -> impl Denoiser<2, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        FnDenoiser::new(layer, move |_: &Linear, noisy: Tensor<2>, _, _: &()| {
            noisy * scale
        })
    }

    fn scores(signal: MembershipSignal, points: &Tensor<2>) -> Result<Vec<f64>> {
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        signal.measure(&sees(0.5), &scheduler, points, &())
    }

    /// More points than are run at a time.
    #[test]
    fn signals_of_a_linear_model_are_those_of_their_definition() {
        let (rows, scheduler) = (ROWS + 3, DdpmScheduler::linear(1000).unwrap());
        let points = points(rows);
        let values: Vec<f64> = points.clone().into_data().iter().collect();
        let (gamma, sigma) = (scheduler.signal_scale(200.0), scheduler.noise_scale(200.0));
        let sima = scores(MembershipSignal::Sima { timestep: 200 }, &points).unwrap();
        let pia = scores(MembershipSignal::Pia { timestep: 200 }, &points).unwrap();
        let pian = scores(MembershipSignal::Pian { timestep: 200 }, &points).unwrap();
        for (row, x) in values.chunks(3).enumerate() {
            let sum = |of: &dyn Fn(f64) -> f64| x.iter().map(|&x| of(x)).sum::<f64>();
            let modulus = sum(&|x| (0.5 * x).abs()) / 3.0;
            let scale = (2.0 / std::f64::consts::PI).sqrt() / modulus;
            let change = |x: f64, noise: f64| noise - 0.5 * (gamma * x + sigma * noise);
            let expected = [
                sum(&|x| (0.5 * x).powi(4)),
                sum(&|x| change(x, 0.5 * x).powi(4)),
                sum(&|x| change(x, 0.5 * x * scale).powi(4)),
            ];
            for (found, expected) in [sima[row], pia[row], pian[row]].iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
            }
        }
    }

    /// The step from `s` to `u` multiplies a point by `(γ_u / γ_s) (1 − σ_s / 2) + σ_u / 2`.
    #[test]
    fn steps_up_and_down_are_those_of_ddim() {
        let (points, scheduler) = (points(2), DdpmScheduler::linear(1000).unwrap());
        let factor = |from: f64, to: f64| {
            let clean = (1.0 - 0.5 * scheduler.noise_scale(from)) / scheduler.signal_scale(from);
            scheduler.signal_scale(to) * clean + 0.5 * scheduler.noise_scale(to)
        };
        let up = factor(0.0, 100.0) * factor(100.0, 200.0);
        let error = up * (factor(200.0, 300.0) * factor(300.0, 200.0) - 1.0);
        let signal = MembershipSignal::SecMi {
            timestep: 200,
            stride: 100,
        };
        let found = scores(signal, &points).unwrap();
        let norms: Vec<f64> = squared_norms(points).into_data().iter().collect();
        for (found, norm) in found.iter().zip(norms) {
            assert!(
                (found / (error * error * norm) - 1.0).abs() < 1e-2,
                "{found}"
            );
        }
    }

    #[test]
    fn calls_of_the_model_are_counted() {
        static ROWS_RUN: AtomicUsize = AtomicUsize::new(0);
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let model = FnDenoiser::new(layer, |_: &Linear, noisy: Tensor<2>, _, _: &()| {
            ROWS_RUN.fetch_add(noisy.dims()[0], Relaxed);
            noisy
        });
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let (timestep, stride) = (200, 40);
        for signal in [
            MembershipSignal::Sima { timestep },
            MembershipSignal::Pia { timestep },
            MembershipSignal::Pian { timestep },
            MembershipSignal::SecMi { timestep, stride },
        ] {
            signal.measure(&model, &scheduler, &points(3), &()).unwrap();
            assert_eq!(ROWS_RUN.swap(0, Relaxed), 3 * signal.calls(), "{signal:?}");
        }
    }

    /// A model that predicts the clean point says the same as one that predicts the noise.
    #[test]
    fn signals_do_not_depend_on_what_the_model_predicts() {
        let (points, scheduler) = (points(4), DdpmScheduler::linear(1000).unwrap());
        let (process, device) = (scheduler.clone(), Device::flex());
        let layer = LinearConfig::new(1, 1).init(&device);
        let clean = FnDenoiser::new(
            layer,
            move |_: &Linear, noisy: Tensor<2>, times: Tensor<1>, _: &()| {
                let times: Vec<f64> = times.into_data().iter().collect();
                let scales = process.scales(&times).unwrap();
                let (signal, sigma) = (
                    scales.signal_tensor(&noisy.device()),
                    scales.noise_tensor(&noisy.device()),
                );
                (noisy.clone() - noisy * 0.5 * sigma) / signal
            },
        );
        let signal = MembershipSignal::Pia { timestep: 300 };
        let clean = clean.predicting(PredictionType::Sample);
        let found = signal.measure(&clean, &scheduler, &points, &()).unwrap();
        for (found, expected) in found.iter().zip(scores(signal, &points).unwrap()) {
            assert!((found / expected - 1.0).abs() < 1e-2, "{found} {expected}");
        }
    }

    #[test]
    fn settings_that_give_no_score_are_refused() {
        let signal = |timestep, stride| MembershipSignal::SecMi { timestep, stride };
        for (timestep, stride) in [(100, 0), (100, 30)] {
            let error = scores(signal(timestep, stride), &points(1)).unwrap_err();
            assert!(
                matches!(error, Error::OutOfRange { name: "stride", .. }),
                "{error}"
            );
        }
        let error = scores(signal(990, 10), &points(1)).unwrap_err();
        assert!(matches!(error, Error::TimestepOutOfRange { .. }), "{error}");
        let sima = MembershipSignal::Sima { timestep: 10 };
        let error = scores(sima, &(points(2) * f64::NAN)).unwrap_err();
        assert!(
            matches!(error, Error::NonFinitePoint { point: 0, .. }),
            "{error}"
        );
    }

    /// With one degree of freedom, Student's distribution is Cauchy's.
    #[test]
    fn two_retrained_models_give_the_test_of_cauchy() {
        let ratio = LikelihoodRatio::offline(3.0, &[0.0, 2.0]).unwrap();
        let statistic = 2.0 / 3.0_f64.sqrt();
        assert!((ratio.statistic - statistic).abs() < 1e-12);
        let high = 0.5 - statistic.atan() / std::f64::consts::PI;
        assert!((ratio.high - high).abs() < 1e-9, "{} {high}", ratio.high);
        assert!((ratio.low + ratio.high - 1.0).abs() < 1e-9);
        assert!((ratio.two_sided - 2.0 * high).abs() < 1e-9);
        for scores in [&[1.0][..], &[1.0, 1.0]] {
            let error = LikelihoodRatio::offline(3.0, scores).unwrap_err();
            assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        }
    }

    #[test]
    fn controls_judge_in_both_directions() {
        let controls: Vec<f64> = (1..=99).map(f64::from).collect();
        let [low, middle, high] =
            [-5.0, 50.0, 200.0].map(|it| ControlTest::new(it, &controls).unwrap());
        assert_eq!(
            (low.two_sided, middle.two_sided, high.two_sided),
            (0.02, 1.0, 0.02)
        );
        assert_eq!((middle.low, middle.high), (0.51, 0.51));
        assert!(matches!(
            ControlTest::new(0.0, &[]),
            Err(Error::Empty { .. })
        ));
    }
}
