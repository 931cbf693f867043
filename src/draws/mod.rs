//! The random numbers of an optimiser step, all drawn on the host before the step computes
//! anything.
//!
//! A draw depends only on its key (seed, step, row, stream): not on the device, the size of a
//! micro-batch or earlier draws. So a step can be repeated anywhere, and a resumed run draws the
//! same numbers as an uninterrupted one.

mod mixture;
mod timesteps;

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_device, check_probability, check_range, check_shape};
use crate::host::{read_f32, tensor, to_f32};
use crate::process::TimeRange;

pub use mixture::{CoinFlip, FixedAllocation, MixtureSampler};
pub use timesteps::TimestepSampling;

/// What a random stream is used for.
///
/// The streams of one (seed, step, row) are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// Timesteps.
    Timesteps,
    /// The noise of the forward process.
    Noise,
    /// Which component of the mixture a row is drawn from.
    Mixture,
    /// Which rows of small weight survive thinning.
    Thinning,
    /// Which retained point is paired with which forgotten point.
    Pairs,
    /// Noise of the samplers: starting points, and the steps of stochastic samplers.
    Sampling,
    /// Noise for the evaluation of losses.
    Evaluation,
    /// Noise of a forget term that has noise of its own.
    ForgetNoise,
    /// Timesteps of a forget term that has timesteps of its own.
    ForgetTimesteps,
    /// Uniform numbers that serve as a target.
    Uniform,
    /// Numbers of an objective outside this crate, by a name that no other use has.
    Own(&'static str),
}

impl Stream {
    /// Fixed numbers: changing one changes the results of every run.
    fn tag(self) -> u64 {
        match self {
            Stream::Timesteps => 1,
            Stream::Noise => 2,
            Stream::Mixture => 3,
            Stream::Thinning => 4,
            Stream::Pairs => 5,
            Stream::Sampling => 6,
            Stream::Evaluation => 7,
            Stream::ForgetNoise => 8,
            Stream::ForgetTimesteps => 9,
            Stream::Uniform => 10,
            // FNV-1a of the name. The highest bit keeps it apart from the fixed numbers.
            Stream::Own(name) => {
                let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
                hash | 1 << 63
            }
        }
    }
}

/// The random generator of one key.
///
/// Draws for a whole batch use row 0.
///
/// ChaCha, whose 32-byte seed is the key (seed, step, row, stream) in little-endian order.
pub fn keyed_rng(seed: u64, step: u64, row: u64, stream: Stream) -> impl Rng {
    let mut key = [0; 32];
    for (bytes, part) in key.chunks_exact_mut(8).zip([seed, step, row, stream.tag()]) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Standard normal noise, each row generated from its own key.
///
/// # Shapes
/// - `shape` and the result: `[rows, …]`; row `i` of the result has key
///   (seed, step, `first_row + i`, stream)
pub fn normal_noise<const D: usize>(
    shape: [usize; D],
    seed: u64,
    step: u64,
    first_row: u64,
    stream: Stream,
    device: &Device,
) -> Tensor<D> {
    let key = |row| keyed_rng(seed, step, first_row + row, stream);
    numbers(StandardNormal, shape, key, device)
}

/// Random numbers, each row generated from its own key.
fn numbers<const D: usize, R: Rng>(
    distribution: impl Distribution<f32> + Copy,
    shape: [usize; D],
    key: impl Fn(u64) -> R,
    device: &Device,
) -> Tensor<D> {
    let elements: usize = shape[1..].iter().product();
    let mut values = Vec::with_capacity(shape[0] * elements);
    for row in (0..).take(shape[0]) {
        values.extend(key(row).sample_iter(distribution).take(elements));
    }
    tensor(values, shape, device)
}

/// Random numbers that only some objectives need, in addition to those of every step.
///
/// Each kind has a stream of its own.
///
/// # Example
/// ```
/// use siss::draws::{ExtraDraws, Stream};
///
/// const TARGET: Stream = Stream::Own("my objective's target");
/// let extra = ExtraDraws::none().uniform(TARGET);
/// // In the objective: `inputs.draws.numbers_of(TARGET)?`.
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtraDraws {
    wanted: Vec<(Stream, Kind)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Timesteps,
    Normal,
    Uniform,
}

impl ExtraDraws {
    /// No additional numbers.
    pub fn none() -> Self {
        Self::default()
    }

    /// Timesteps, `[batch]`, drawn like those of the step but independent of them.
    pub fn timesteps(self, stream: Stream) -> Self {
        self.with(stream, Kind::Timesteps)
    }

    /// Standard normal numbers of the batch's shape.
    pub fn normal(self, stream: Stream) -> Self {
        self.with(stream, Kind::Normal)
    }

    /// Numbers uniform on `[0, 1)` of the batch's shape.
    pub fn uniform(self, stream: Stream) -> Self {
        self.with(stream, Kind::Uniform)
    }

    fn with(mut self, stream: Stream, kind: Kind) -> Self {
        self.wanted.push((stream, kind));
        self
    }
}

/// The random numbers of one optimiser step.
///
/// Given the batch and the model, they determine the step.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::draws::Draws;
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
    extra_timesteps: Vec<(Stream, Vec<f64>)>,
    extra_numbers: Vec<(Stream, Tensor<D>)>,
}

impl<const D: usize> Draws<D> {
    /// Creates draws from given numbers: for tests, for golden values, or to replay a step.
    ///
    /// The uniform number for thinning is derived from the arguments and the first number of the
    /// noise: it is the same for the same draws, and uniform over the steps of a run.
    /// [`with_thinning_uniform`](Draws::with_thinning_uniform) sets it.
    ///
    /// # Shapes
    /// - `timesteps`, `from_forget`: `[batch]`; `from_forget[i]` says that row `i`'s noisy point is
    ///   drawn from the forgotten point
    /// - `noise`: `[batch, …]`, standard normal
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the lengths differ, [`Error::OutOfRange`] unless
    /// `0 ≤ forget_prob ≤ 1`; [`Error::DeviceRead`].
    pub fn new(
        timesteps: Vec<f64>,
        noise: Tensor<D>,
        from_forget: Vec<bool>,
        forget_prob: f64,
    ) -> Result<Self> {
        let first = first_number(&noise)?;
        let uniform = uniform_of(&timesteps, &from_forget, forget_prob, first);
        Self::with_all(timesteps, noise, from_forget, forget_prob, uniform)
    }

    /// Like [`new`](Draws::new) with a given thinning uniform, so that nothing is read from the
    /// device.
    fn with_all(
        timesteps: Vec<f64>,
        noise: Tensor<D>,
        from_forget: Vec<bool>,
        forget_prob: f64,
        thinning_uniform: f64,
    ) -> Result<Self> {
        let rows = &noise.dims()[..1];
        let remedy = "draw one of each for every row of the noise";
        check_shape("the list of timesteps", rows, &[timesteps.len()], remedy)?;
        check_shape("the list of components", rows, &[from_forget.len()], remedy)?;
        check_probability("forget_prob", forget_prob)?;
        Ok(Self {
            timesteps,
            noise: to_f32(noise.inner()),
            from_forget,
            forget_prob,
            thinning_uniform,
            extra_timesteps: Vec::new(),
            extra_numbers: Vec::new(),
        })
    }

    /// Sets the uniform number in `[0, 1)` that thinning uses.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `0 ≤ uniform < 1`.
    pub fn with_thinning_uniform(mut self, uniform: f64) -> Result<Self> {
        let legal = (0.0..1.0).contains(&uniform);
        self.thinning_uniform =
            check_range("thinning_uniform", uniform, legal, "at least 0 and below 1")?;
        Ok(self)
    }

    /// Adds the timesteps of a stream, for objectives that need them.
    ///
    /// # Shapes
    /// - `timesteps`: `[batch]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is one timestep per row.
    pub fn with_timesteps(mut self, stream: Stream, timesteps: Vec<f64>) -> Result<Self> {
        let (rows, remedy) = (self.batch_size(), "draw one for every row of the noise");
        check_shape("the extra timesteps", &[rows], &[timesteps.len()], remedy)?;
        self.extra_timesteps.retain(|(other, _)| *other != stream);
        self.extra_timesteps.push((stream, timesteps));
        Ok(self)
    }

    /// Adds the numbers of a stream, for objectives that need them.
    ///
    /// # Shapes
    /// - `numbers`: `[batch, …]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if their shape is not that of the noise; [`Error::DeviceMismatch`]
    /// if they are on another device.
    pub fn with_numbers(mut self, stream: Stream, numbers: Tensor<D>) -> Result<Self> {
        let (shape, remedy) = (self.noise.dims(), "draw one number for every element");
        check_shape("the extra numbers", &shape, &numbers.dims(), remedy)?;
        check_device("extra numbers", &self.noise.device(), &numbers.device())?;
        self.extra_numbers.retain(|(other, _)| *other != stream);
        self.extra_numbers.push((stream, to_f32(numbers.inner())));
        Ok(self)
    }

    /// Moves the draws to another device, to replay a step there.
    pub fn to_device(mut self, device: &Device) -> Self {
        self.noise = self.noise.to_device(device);
        for (_, numbers) in &mut self.extra_numbers {
            *numbers = numbers.clone().to_device(device);
        }
        self
    }

    /// Number of rows.
    pub fn batch_size(&self) -> usize {
        self.timesteps.len()
    }

    /// The timestep of each row.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Standard normal noise, `[batch, …]`.
    pub fn noise(&self) -> &Tensor<D> {
        &self.noise
    }

    /// Whether each row's noisy point is drawn from the forgotten point.
    pub fn from_forget(&self) -> &[bool] {
        &self.from_forget
    }

    /// The uniform number in `[0, 1)` that thinning uses.
    pub fn thinning_uniform(&self) -> f64 {
        self.thinning_uniform
    }

    /// The timesteps of a stream that the objective needs in addition, `[batch]`.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if none were drawn.
    pub fn timesteps_of(&self, stream: Stream) -> Result<&[f64]> {
        let found = self.extra_timesteps.iter().find(|(it, _)| *it == stream);
        let found = found.map(|(_, timesteps)| timesteps.as_slice());
        found.ok_or_else(|| not_drawn(stream, "timesteps", ASK_FOR_TIMESTEPS))
    }

    /// The numbers of a stream that the objective needs in addition, `[batch, …]`.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if none were drawn.
    pub fn numbers_of(&self, stream: Stream) -> Result<&Tensor<D>> {
        let found = self.extra_numbers.iter().find(|(it, _)| *it == stream);
        let found = found.map(|(_, numbers)| numbers);
        found.ok_or_else(|| not_drawn(stream, "numbers", ASK_FOR_NUMBERS))
    }

    /// The mixture probability `λ` with which `from_forget` was drawn.
    pub fn forget_prob(&self) -> f64 {
        self.forget_prob
    }
}

const ASK_FOR_TIMESTEPS: &str =
    "ask for them in `SissLoss::extra_draws`, or add them with `Draws::with_timesteps`";
const ASK_FOR_NUMBERS: &str =
    "ask for them in `SissLoss::extra_draws`, or add them with `Draws::with_numbers`";

fn not_drawn(stream: Stream, missing: &'static str, remedy: &'static str) -> Error {
    Error::MissingPart {
        owner: format!("the stream {stream:?} of the draws"),
        missing,
        remedy,
    }
}

/// The first number of the noise; 0 if the noise is empty.
fn first_number<const D: usize>(noise: &Tensor<D>) -> Result<f32> {
    if noise.dims().contains(&0) {
        return Ok(0.0);
    }
    let corner: [Range<usize>; D] = std::array::from_fn(|_| 0..1);
    let first = noise.clone().inner().slice(corner);
    Ok(read_f32(first, "the noise")?[0])
}

/// A hash of the draws as a uniform number in `[0, 1)`.
///
/// Since the noise is different in every step, so is the number.
fn uniform_of(timesteps: &[f64], from_forget: &[bool], forget_prob: f64, first: f32) -> f64 {
    let components = from_forget.iter().map(|&from| u64::from(from));
    let parts = timesteps.iter().map(|timestep| timestep.to_bits());
    let parts = parts.chain(components);
    let parts = parts.chain([forget_prob.to_bits(), u64::from(first.to_bits())]);
    let hash = parts.fold(0, |hash, part| mixed(hash ^ part).wrapping_add(GOLDEN));
    keyed_rng(hash, 0, 0, Stream::Thinning).random()
}

/// The golden ratio in 64 bits: its multiples take long to repeat.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes the bits of a number, so that every bit of the result depends on every bit of the input:
/// the last lines of SplitMix64.
pub(crate) fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Makes the [`Draws`] of each step from a seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DrawSource {
    /// The run's seed.
    pub seed: u64,
    /// How timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
}

impl DrawSource {
    /// The draws of optimiser step `step` for a batch of this shape, with the additional ones that
    /// the objective needs ([`SissLoss::extra_draws`](crate::SissLoss::extra_draws)).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::OutOfRange`] if the mixture sampler breaks its
    /// contract; those of [`TimestepSampling::check`].
    pub fn draw<const D: usize>(
        &self,
        step: u64,
        shape: [usize; D],
        range: TimeRange,
        sampler: &dyn MixtureSampler,
        extra: &ExtraDraws,
        device: &Device,
    ) -> Result<Draws<D>> {
        self.timestep_sampling.check(range)?;
        let (seed, rows) = (self.seed, shape[0]);
        let key = |stream| move |row| keyed_rng(seed, step, row, stream);
        let timesteps = |stream| {
            self.timestep_sampling
                .stream(range, rows, seed, step, stream)
        };
        let mixture_rng: &mut dyn Rng = &mut key(Stream::Mixture)(0);
        let mut draws = Draws::with_all(
            timesteps(Stream::Timesteps),
            numbers(StandardNormal, shape, key(Stream::Noise), device),
            sampler.choose_forget(rows, mixture_rng),
            sampler.forget_prob(),
            key(Stream::Thinning)(0).random(),
        )?;
        for &(stream, kind) in &extra.wanted {
            draws = match kind {
                Kind::Timesteps => draws.with_timesteps(stream, timesteps(stream))?,
                Kind::Normal => {
                    let normal = numbers(StandardNormal, shape, key(stream), device);
                    draws.with_numbers(stream, normal)?
                }
                Kind::Uniform => {
                    let uniform = numbers(StandardUniform, shape, key(stream), device);
                    draws.with_numbers(stream, uniform)?
                }
            };
        }
        Ok(draws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{CoinFlip, FixedAllocation};

    /// Timesteps, noise, mixture and thinning of step 3 with seed 7.
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

    /// A row of weight 0.3, thinned at 1, is run in three of ten steps, even if only the noise
    /// differs between the steps. With a uniform number of ½ in every step it was never run.
    #[test]
    fn draws_made_elsewhere_thin_without_bias() {
        let steps = 4_000;
        for fixed in [true, false] {
            let mut kept = [0; 2];
            for step in 0..steps {
                let device = Device::flex();
                let noise: Tensor<2> = normal_noise([2, 3], 9, step, 0, Stream::Noise, &device);
                let timesteps = match fixed {
                    true => vec![500.0; 2],
                    false => TimestepSampling::LowDiscrepancy.timesteps(RANGE, 2, 9, step),
                };
                let draws = Draws::new(timesteps, noise, vec![true, false], 0.5).unwrap();
                let uniform = draws.thinning_uniform();
                for row in crate::objective::survivors(&[0.3, 0.1], 1.0, uniform).positions {
                    kept[row] += 1;
                }
            }
            for (kept, probability) in kept.into_iter().zip([0.3, 0.1]) {
                let expected = probability * steps as f64;
                let deviation = (expected * (1.0 - probability)).sqrt();
                let error = (f64::from(kept) - expected) / deviation;
                assert!(error.abs() < 4.0, "{kept} of {steps}, {error}");
            }
        }
    }

    #[test]
    fn the_same_draws_thin_alike() {
        let draws = |first: f64| {
            let noise = Tensor::<2>::ones([2, 3], &Device::flex()) * first;
            Draws::new(vec![1.0, 2.0], noise, vec![true, false], 0.5).unwrap()
        };
        let uniform = draws(0.25).thinning_uniform();
        assert_eq!(uniform, draws(0.25).thinning_uniform());
        assert_ne!(uniform, draws(0.5).thinning_uniform());
    }

    /// A changed stream changes every published result, so it must be a visible decision.
    #[test]
    fn value_stability() {
        let device = Device::flex();
        let sampler = FixedAllocation::new(0.5).unwrap();
        let draws = source(TimestepSampling::Uniform)
            .draw(
                3,
                [4, 1, 1, 2],
                RANGE,
                &sampler,
                &ExtraDraws::none(),
                &device,
            )
            .unwrap();
        assert_eq!(draws.timesteps, VALUE_STABILITY.0);
        assert_eq!(
            draws.noise.into_data().try_to_vec::<f32>().unwrap(),
            VALUE_STABILITY.1
        );
        assert_eq!(draws.from_forget, VALUE_STABILITY.2);
        assert_eq!(draws.thinning_uniform, VALUE_STABILITY.3);
    }

    /// The streams that other modules draw from: pairs, samples, and the default timesteps.
    #[test]
    fn value_stability_of_the_other_streams() {
        let lowdiscrepancy = TimestepSampling::LowDiscrepancy.timesteps(RANGE, 4, 7, 3);
        assert_eq!(lowdiscrepancy, [438.0, 688.0, 938.0, 188.0]);
        let device = Device::flex();
        let pairs = crate::data::Pairing::new(1000, 1, 7).unwrap().pairs(0, 5);
        assert_eq!(pairs.unwrap().retain, PAIRS);
        let noise: Tensor<2> = normal_noise([1, 3], 7, 0, 2, Stream::Sampling, &device);
        assert_eq!(noise.into_data().try_to_vec::<f32>().unwrap(), SAMPLING);
    }

    const PAIRS: [usize; 5] = [75, 25, 877, 626, 871];
    const SAMPLING: [f32; 3] = [-1.6162187, -1.0104249, -1.5862929];

    fn draw_at<const D: usize>(source: DrawSource, step: u64, shape: [usize; D]) -> Draws<D> {
        let sampler = CoinFlip::new(0.5).unwrap();
        source
            .draw(
                step,
                shape,
                RANGE,
                &sampler,
                &ExtraDraws::none(),
                &Device::flex(),
            )
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

    /// The forget term's own draws and the uniform numbers are independent of the shared ones,
    /// repeatable, and in range.
    #[test]
    fn extra_draws_have_streams_of_their_own() {
        let (device, sampler) = (Device::flex(), FixedAllocation::new(0.5).unwrap());
        let own = Stream::Own("a target");
        let extra = ExtraDraws::none()
            .timesteps(Stream::ForgetTimesteps)
            .normal(Stream::ForgetNoise)
            .uniform(Stream::Uniform)
            .uniform(own);
        let draw = |extra: &ExtraDraws| {
            source(TimestepSampling::Uniform)
                .draw(3, [4, 500], RANGE, &sampler, extra, &device)
                .unwrap()
        };
        let host = |t: &Tensor<2>| t.to_data().try_to_vec::<f32>().unwrap();
        let (plain, all) = (draw(&ExtraDraws::none()), draw(&extra));
        let error = plain.numbers_of(own).unwrap_err().to_string();
        assert!(error.contains("a target"), "{error}");
        assert!(plain.timesteps_of(Stream::ForgetTimesteps).is_err());
        assert_eq!(host(plain.noise()), host(all.noise()));
        let timesteps = all.timesteps_of(Stream::ForgetTimesteps).unwrap();
        let noise = all.numbers_of(Stream::ForgetNoise).unwrap();
        assert_eq!(timesteps, FORGET_TIMESTEPS);
        assert_ne!(timesteps, all.timesteps());
        let correlation = (noise.clone() * all.noise.clone())
            .mean()
            .into_scalar::<f32>();
        assert!(correlation.abs() < 4.0 / 2000f32.sqrt(), "{correlation}");
        let uniform = host(all.numbers_of(Stream::Uniform).unwrap());
        assert_ne!(uniform, host(all.numbers_of(own).unwrap()));
        assert_eq!(uniform[..2], UNIFORM);
        assert!(uniform.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = uniform.iter().sum::<f32>() / 2000.0;
        assert!((mean - 0.5).abs() < 4.0 * 0.2887 / 2000f32.sqrt(), "{mean}");
    }

    const FORGET_TIMESTEPS: [f64; 4] = [78.0, 317.0, 406.0, 323.0];
    const UNIFORM: [f32; 2] = [0.932235, 0.98249817];

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

    #[test]
    fn each_row_and_each_step_has_uniform_numbers_of_its_own() {
        let (device, sampler) = (Device::flex(), FixedAllocation::new(0.5).unwrap());
        let extra = ExtraDraws::none().uniform(Stream::Uniform);
        let uniform = |step, rows| -> Vec<f32> {
            let source = source(TimestepSampling::Uniform);
            let draws = source.draw(step, [rows, 3], RANGE, &sampler, &extra, &device);
            let uniform = draws
                .unwrap()
                .numbers_of(Stream::Uniform)
                .unwrap()
                .to_data();
            uniform.try_to_vec().unwrap()
        };
        let all = uniform(3, 4);
        assert_eq!(all[..6], uniform(3, 2));
        assert_ne!(all, uniform(4, 4));
        for pair in [[0, 3], [3, 6], [6, 9]] {
            let [one, other] = pair.map(|first| &all[first..first + 3]);
            assert_ne!(one, other);
        }
    }
}
