//! All randomness of an optimiser step, drawn on the host before anything is computed.
//!
//! A draw is a function of its key (seed, step, row, stream) and of nothing else: not of the device, not of
//! the size of a micro-batch, not of what was drawn before. So a step repeats anywhere, and a resumed run
//! draws what the run would have drawn.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_probability};
use crate::mixture::MixtureSampler;
use crate::scheduler::TimeRange;

/// What a random stream is used for. Streams of one key are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// Timesteps.
    Timesteps,
    /// The noise of the forward process.
    Noise,
    /// Which component of the mixture a row is drawn from.
    Mixture,
    /// Which light rows survive thinning.
    Thinning,
    /// Which retained point meets which forgotten point.
    Pairs,
    /// Noise of the samplers: starting points and the steps of stochastic ones.
    Sampling,
    /// Noise with which losses are evaluated.
    Evaluation,
}

impl Stream {
    /// Fixed numbers: changing one changes every run's results.
    fn tag(self) -> u64 {
        match self {
            Stream::Timesteps => 1,
            Stream::Noise => 2,
            Stream::Mixture => 3,
            Stream::Thinning => 4,
            Stream::Pairs => 5,
            Stream::Sampling => 6,
            Stream::Evaluation => 7,
        }
    }
}

/// The generator of one key. Batch-wide draws use row 0.
///
/// ChaCha with the key (seed, step, row, stream) written little-endian into its 32 bytes.
pub fn keyed_rng(seed: u64, step: u64, row: u64, stream: Stream) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, part) in key.chunks_exact_mut(8).zip([seed, step, row, stream.tag()]) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Standard normal noise, each row from its own key.
///
/// # Shapes
/// - `shape` and the result: `[rows, …]`; row `i` of the result has key (seed, step, `first_row + i`, stream)
pub fn normal_noise<const D: usize>(
    shape: [usize; D],
    seed: u64,
    step: u64,
    first_row: u64,
    stream: Stream,
    device: &Device,
) -> Tensor<D> {
    let elements: usize = shape[1..].iter().product();
    let mut values: Vec<f32> = Vec::with_capacity(shape[0] * elements);
    for row in 0..shape[0] as u64 {
        let rng = keyed_rng(seed, step, first_row + row, stream);
        values.extend(rng.sample_iter::<f32, _>(StandardNormal).take(elements));
    }
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// How the timesteps of a batch are drawn. Each row's timestep is uniform over the scheduler's range either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimestepSampling {
    /// Independent of each other, as the published code draws them.
    Uniform,
    /// One uniform number for the batch and rows at even distances from it, `u + i / B` modulo 1:
    /// the whole range is covered in every step, which lowers the variance (Kingma et al. 2021, Appendix I.1).
    #[default]
    LowDiscrepancy,
}

impl TimestepSampling {
    /// The timesteps of the rows of optimiser step `step`.
    pub fn timesteps(self, range: TimeRange, batch_size: usize, seed: u64, step: u64) -> Vec<f64> {
        let uniform = |row: u64| keyed_rng(seed, step, row, Stream::Timesteps).random::<f64>();
        let shared = uniform(0);
        (0..batch_size)
            .map(|row| match self {
                TimestepSampling::Uniform => uniform(row as u64),
                TimestepSampling::LowDiscrepancy => {
                    (shared + row as f64 / batch_size as f64).fract()
                }
            })
            .map(|u| range.at(u))
            .collect()
    }
}

/// The random numbers of one optimiser step. What follows from them is a pure function of (batch, draws, model).
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::Draws;
///
/// let noise = Tensor::<4>::zeros([2, 1, 8, 8], &Device::flex());
/// let draws = Draws::new(vec![10.0, 500.0], noise, vec![false, true], 0.5)?;
/// assert_eq!(draws.batch_size(), 2);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Draws<const D: usize> {
    pub(crate) timesteps: Vec<f64>,
    pub(crate) noise: Tensor<D>,
    pub(crate) from_forget: Vec<bool>,
    pub(crate) forget_prob: f64,
    pub(crate) thinning_uniform: f64,
}

impl<const D: usize> Draws<D> {
    /// Draws made elsewhere: for tests, for golden values, for replaying a step.
    ///
    /// The thinning uniform is ½; see [`with_thinning_uniform`](Draws::with_thinning_uniform).
    ///
    /// # Shapes
    /// - `timesteps`, `from_forget`: `[batch]`; `from_forget[i]` says that row `i`'s noisy point is drawn from
    ///   the forgotten point
    /// - `noise`: `[batch, …]`, standard normal
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the lengths differ, [`Error::OutOfRange`] unless `0 ≤ forget_prob ≤ 1`.
    pub fn new(
        timesteps: Vec<f64>,
        noise: Tensor<D>,
        from_forget: Vec<bool>,
        forget_prob: f64,
    ) -> Result<Self> {
        let batch_size = noise.dims()[0];
        for (what, length) in [
            ("timesteps", timesteps.len()),
            ("from_forget", from_forget.len()),
        ] {
            if length != batch_size {
                return Err(Error::ShapeMismatch {
                    what,
                    expected: vec![batch_size],
                    got: vec![length],
                    remedy: "draw one of each for every row of the noise",
                });
            }
        }
        check_probability("forget_prob", forget_prob)?;
        Ok(Self {
            timesteps,
            noise,
            from_forget,
            forget_prob,
            thinning_uniform: 0.5,
        })
    }

    /// Sets the one uniform number in `[0, 1)` that thinning uses.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 ≤ uniform < 1`.
    pub fn with_thinning_uniform(mut self, uniform: f64) -> Result<Self> {
        let legal = (0.0..1.0).contains(&uniform);
        self.thinning_uniform = crate::error::check_range(
            "thinning_uniform",
            uniform,
            legal,
            "at least 0 and below 1",
        )?;
        Ok(self)
    }

    /// Number of rows.
    pub fn batch_size(&self) -> usize {
        self.timesteps.len()
    }

    /// Timestep of each row.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Standard normal noise, `[batch, …]`.
    pub fn noise(&self) -> &Tensor<D> {
        &self.noise
    }

    /// Whether a row's noisy point is drawn from the forgotten point.
    pub fn from_forget(&self) -> &[bool] {
        &self.from_forget
    }

    /// The uniform number in `[0, 1)` that thinning uses.
    pub fn thinning_uniform(&self) -> f64 {
        self.thinning_uniform
    }

    /// The mixture's `λ` with which `from_forget` was drawn.
    pub fn forget_prob(&self) -> f64 {
        self.forget_prob
    }
}

/// Makes the [`Draws`] of each step from a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawSource {
    /// The run's seed.
    pub seed: u64,
    /// How timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
}

impl DrawSource {
    /// The draws of optimiser step `step` for a batch of this shape.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::OutOfRange`] if the sampler breaks its contract.
    pub fn draw<const D: usize>(
        &self,
        step: u64,
        shape: [usize; D],
        range: TimeRange,
        sampler: &dyn MixtureSampler,
        device: &Device,
    ) -> Result<Draws<D>> {
        let batch_size = shape[0];
        let timesteps = self
            .timestep_sampling
            .timesteps(range, batch_size, self.seed, step);
        let noise = normal_noise(shape, self.seed, step, 0, Stream::Noise, device);
        let mixture_rng: &mut dyn Rng = &mut keyed_rng(self.seed, step, 0, Stream::Mixture);
        let from_forget = sampler.choose_forget(batch_size, mixture_rng);
        let thinning = keyed_rng(self.seed, step, 0, Stream::Thinning).random();
        Draws::new(timesteps, noise, from_forget, sampler.forget_prob())?
            .with_thinning_uniform(thinning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixture::{CoinFlip, FixedAllocation};

    /// Timesteps, noise, mixture and thinning of step 3 under seed 7.
    const VALUE_STABILITY: ([f64; 4], [f32; 8], [bool; 4], f64) = (
        [438.0, 161.0, 151.0, 423.0],
        [
            0.5664838,
            1.0125533,
            0.103957705,
            0.16476458,
            0.048960797,
            0.4536057,
            0.063801624,
            -0.12149822,
        ],
        [false, true, false, true],
        0.6131253827216209,
    );

    const RANGE: TimeRange = TimeRange::Discrete {
        num_timesteps: 1000,
    };

    fn source(timestep_sampling: TimestepSampling) -> DrawSource {
        DrawSource {
            seed: 7,
            timestep_sampling,
        }
    }

    /// A changed stream changes every published result: it must be a visible decision.
    #[test]
    fn value_stability() {
        let device = Device::flex();
        let sampler = FixedAllocation::new(0.5).unwrap();
        let draws = source(TimestepSampling::Uniform)
            .draw(3, [4, 1, 1, 2], RANGE, &sampler, &device)
            .unwrap();
        assert_eq!(draws.timesteps, VALUE_STABILITY.0);
        assert_eq!(
            draws.noise.into_data().try_to_vec::<f32>().unwrap(),
            VALUE_STABILITY.1
        );
        assert_eq!(draws.from_forget, VALUE_STABILITY.2);
        assert_eq!(draws.thinning_uniform, VALUE_STABILITY.3);
    }

    fn draw_at<const D: usize>(source: DrawSource, step: u64, shape: [usize; D]) -> Draws<D> {
        let sampler = CoinFlip::new(0.5).unwrap();
        source
            .draw(step, shape, RANGE, &sampler, &Device::flex())
            .unwrap()
    }

    #[test]
    fn a_row_does_not_depend_on_the_batch_around_it() {
        let device = Device::flex();
        let all: Vec<f32> = normal_noise([8, 3], 1, 2, 0, Stream::Noise, &device)
            .into_data()
            .try_to_vec()
            .unwrap();
        let tail: Vec<f32> = normal_noise([2, 3], 1, 2, 6, Stream::Noise, &device)
            .into_data()
            .try_to_vec()
            .unwrap();
        assert_eq!(all[18..], tail);
    }

    #[test]
    fn keys_that_differ_anywhere_draw_different_numbers() {
        let first = |seed, step, row, stream| keyed_rng(seed, step, row, stream).next_u64();
        let base = first(1, 2, 3, Stream::Noise);
        assert_eq!(base, first(1, 2, 3, Stream::Noise));
        for other in [
            first(2, 2, 3, Stream::Noise),
            first(1, 3, 3, Stream::Noise),
            first(1, 2, 4, Stream::Noise),
            first(1, 2, 3, Stream::Timesteps),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn low_discrepancy_timesteps_hit_every_stratum_in_every_step() {
        let source = source(TimestepSampling::LowDiscrepancy);
        for step in 0..50 {
            let mut timesteps = draw_at(source, step, [10, 1]).timesteps;
            timesteps.sort_by(f64::total_cmp);
            for pair in timesteps.windows(2) {
                assert!(
                    (99.0..=101.0).contains(&(pair[1] - pair[0])),
                    "{timesteps:?}"
                );
            }
        }
    }

    /// The mean over many steps of each row's timestep is that of the uniform distribution, 499.5 (sd 288.7).
    #[test]
    fn every_row_is_uniform_under_both_policies() {
        for policy in [TimestepSampling::Uniform, TimestepSampling::LowDiscrepancy] {
            let steps = 4000;
            let mut sums = [0.0; 4];
            for step in 0..steps {
                for (sum, t) in sums.iter_mut().zip(policy.timesteps(RANGE, 4, 11, step)) {
                    *sum += t;
                }
            }
            for sum in sums {
                let error = (sum / steps as f64 - 499.5) / (288.7 / (steps as f64).sqrt());
                assert!(error.abs() < 4.0, "{policy:?}: {error} standard errors");
            }
        }
    }

    #[test]
    fn noise_is_standard_normal() {
        let noise = draw_at(source(TimestepSampling::Uniform), 0, [400, 100]).noise;
        let (variance, mean) = noise.reshape([40_000]).var_mean(0);
        let (variance, mean) = (variance.into_scalar::<f32>(), mean.into_scalar::<f32>());
        assert!(
            mean.abs() < 4.0 * 0.005 && (variance - 1.0).abs() < 4.0 * 0.0071,
            "{mean} {variance}"
        );
    }

    #[test]
    fn wrong_lengths_and_probabilities_are_refused() {
        let noise = || Tensor::<2>::zeros([2, 3], &Device::flex());
        assert!(Draws::new(vec![1.0], noise(), vec![true; 2], 0.5).is_err());
        assert!(Draws::new(vec![1.0; 2], noise(), vec![true; 3], 0.5).is_err());
        for bad in [-0.1, 1.1, f64::NAN] {
            let error = Draws::new(vec![1.0; 2], noise(), vec![true; 2], bad).unwrap_err();
            assert!(
                error.to_string().contains(&format!("forget_prob is {bad}")),
                "{error}"
            );
        }
        let draws = Draws::new(vec![1.0; 2], noise(), vec![true; 2], 0.5).unwrap();
        assert!(draws.with_thinning_uniform(1.0).is_err());
    }
}
