//! The exact likelihood of points under a model, in bits per dimension.

mod runge_kutta;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use self::runge_kutta::{RungeKutta, Tolerances};
use super::estimate::mean_and_deviation;
use crate::data::Points;
use crate::data::finite::first_non_finite;
use crate::data::points::{check_not_empty, load};
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_positive, check_range, check_shape};
use crate::host::{column, read_f32, select_rows, sum_elements, tensor, to_f32, vector};
use crate::parameters::as_constants;
use crate::process::Scales;

/// The likelihood of points by the probability-flow equation of the variance-preserving process.
///
/// A point is moved along
///
/// ```text
/// dx/dt = −½ β(t) (x − ε̂(x, (T − 1) t) / σ(t)),      β(t) = β₀ + t (β₁ − β₀)
/// ```
///
/// from `first_time` to 1, where it has a standard normal density; the logarithm of the density
/// changes by the divergence of the right side, estimated by `⟨v, J v⟩` with random signs `v`. The
/// result is divided by `d ln 2` for points of `d` elements, and `bits_offset` is added: 7 for
/// pictures of 256 levels that are scaled to `[−1, 1]`.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `noise_scale` | `Discrete` | `σ(t)`, see [`NoiseScale`] | |
/// | `beta_min`, `beta_max` | 0.1, 20 | `β₀`, `β₁`: the betas of `DdpmScheduler::linear` times `T` | 0 < β₀ ≤ β₁ |
/// | `num_timesteps` | 1000 | `T` | ≥ 2 |
/// | `first_time` | 1e-5 | where the equation begins | in (0, 1) |
/// | `relative_tolerance`, `absolute_tolerance` | 1e-5 | local error of a step | > 0 |
/// | `probes` | 1 | random sign vectors per point | ≥ 1 |
/// | `bits_offset` | 7 | added to each result | |
/// | `seed` | 0 | key of the signs | |
/// | `micro_batch_size` | 64 | rows run at a time; changes memory, not results | ≥ 1 |
///
/// Steps are those of SciPy's `RK45`, for each point on its own, so a result does not depend on the
/// other points. The model must have been trained with the linear betas and take times between its
/// timesteps.
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Tensor};
/// # use siss::FnDenoiser;
/// use siss::metrics::{Estimate, Likelihood};
///
/// # let device = Device::flex();
/// # let layer = LinearConfig::new(1, 1).init(&device);
/// # let model = FnDenoiser::new(layer, |_: &Linear, noisy: Tensor<2>, _, _: &()| noisy * 0.1);
/// # let unseen = Tensor::<2>::ones([3, 4], &device);
/// let found = Likelihood::default().measure(&model, &unseen, &())?;
/// let bits: Vec<f64> = found.iter().map(|point| point.bits_per_dimension).collect();
/// println!("{}", Estimate::mean("bits per dimension", &bits)?);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Song et al. 2021, *Score-Based Generative Modeling through Stochastic Differential Equations*,
/// Section 4.3 and Appendix D.2; Grathwohl et al. 2019, *FFJORD* (the trace).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Likelihood {
    /// The model's noise scale between its timesteps.
    pub noise_scale: NoiseScale,
    /// `β` at time 0.
    pub beta_min: f64,
    /// `β` at time 1.
    pub beta_max: f64,
    /// Number of timesteps that the model was trained with.
    pub num_timesteps: usize,
    /// Where the equation begins.
    pub first_time: f64,
    /// Local error of a step, relative to the state.
    pub relative_tolerance: f64,
    /// Local error of a step.
    pub absolute_tolerance: f64,
    /// Random sign vectors per point.
    pub probes: usize,
    /// Added to each result, in bits.
    pub bits_offset: f64,
    /// Key of the signs.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
}

/// The noise scale `σ(t)` by which a predicted noise is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseScale {
    /// `√(1 − ᾱ)` at the timestep `⌊(T − 1) t⌋`, as the released code has it: the published
    /// protocol.
    #[default]
    Discrete,
    /// `√(1 − exp(−½ t² (β₁ − β₀) − t β₀))`.
    Continuous,
}

/// The likelihood of one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PointLikelihood {
    /// Negative logarithm of the density in bits per dimension, mean over the probes.
    pub bits_per_dimension: f64,
    /// Standard error of that mean; `None` for one probe.
    pub standard_error: Option<f64>,
    /// The value of each probe.
    pub probes: Vec<f64>,
    /// Evaluations of the model, of each probe.
    pub evaluations: Vec<usize>,
}

impl Default for Likelihood {
    fn default() -> Self {
        Self {
            noise_scale: NoiseScale::default(),
            beta_min: 0.1,
            beta_max: 20.0,
            num_timesteps: 1000,
            first_time: 1e-5,
            relative_tolerance: 1e-5,
            absolute_tolerance: 1e-5,
            probes: 1,
            bits_offset: 7.0,
            seed: 0,
            micro_batch_size: 64,
        }
    }
}

impl Likelihood {
    /// The likelihood of each point.
    ///
    /// The model runs with dropout off; only its input is differentiated. Memory is that of one
    /// micro-batch, and of eight copies of its points in f64.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// - [`Error::OutOfRange`] for a setting outside its range
    /// - [`Error::Empty`] without points; [`Error::NonFinitePoint`]; the errors of the set
    /// - [`Error::ShapeMismatch`] if the condition has another number of rows, or the model does
    ///   not accept the points
    /// - [`Error::InvalidSetting`] if the steps vanish, as for a model whose output is NaN
    /// - [`Error::DeviceMismatch`], [`Error::DeviceRead`]
    pub fn measure<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        points: &dyn Points<D>,
        condition: &M::Condition,
    ) -> Result<Vec<PointLikelihood>> {
        let signs = |shape: [usize; D], first: u64, device: &Device| {
            let stream = Stream::Own("signs of the trace");
            normal_noise(shape, self.seed, 0, first, stream, device).sign()
        };
        self.measure_with(model, points, condition, signs)
    }

    /// The same with given vectors for the trace.
    ///
    /// `probes(shape, first, device)` gives the vectors of consecutive rows from `first` on; row
    /// `i · probes + j` is the `j`-th vector of point `i`. Their elements should be independent,
    /// with mean 0 and variance 1.
    ///
    /// # Errors
    /// Those of [`measure`](Likelihood::measure).
    pub fn measure_with<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        points: &dyn Points<D>,
        condition: &M::Condition,
        probes: impl Fn([usize; D], u64, &Device) -> Tensor<D>,
    ) -> Result<Vec<PointLikelihood>> {
        self.check()?;
        check_not_empty(points, "the set of points to measure")?;
        let shape = points.dims();
        condition.check_rows("the condition", shape[0])?;
        model.check_input(shape)?;
        let flow = Flow::new(self, model, points)?;
        let mut values = Vec::new();
        let mut evaluations = Vec::new();
        let total = shape[0] * self.probes;
        for first in (0..total).step_by(self.micro_batch_size) {
            let rows: Vec<usize> = (first..total.min(first + self.micro_batch_size)).collect();
            let of_points: Vec<usize> = rows.iter().map(|row| row / self.probes).collect();
            let mut part = shape;
            part[0] = rows.len();
            let probes = to_f32(probes(part, first as u64, &flow.device));
            let condition = condition.take_rows(&of_points);
            for solution in flow.solve(points, &of_points, probes, &condition)? {
                values.push(self.bits(solution.state()));
                evaluations.push(solution.evaluations());
            }
        }
        let of_points = values
            .chunks(self.probes)
            .zip(evaluations.chunks(self.probes));
        Ok(of_points
            .map(|(values, evaluations)| point(values, evaluations))
            .collect())
    }

    fn check(&self) -> Result<()> {
        check_positive("beta_min", self.beta_min)?;
        let ordered = self.beta_max >= self.beta_min;
        check_range("beta_max", self.beta_max, ordered, "at least beta_min")?;
        let inside = self.first_time > 0.0 && self.first_time < 1.0;
        check_range("first_time", self.first_time, inside, "above 0 and below 1")?;
        check_positive("relative_tolerance", self.relative_tolerance)?;
        check_positive("absolute_tolerance", self.absolute_tolerance)?;
        check_range("bits_offset", self.bits_offset, true, "a finite number")?;
        for (name, value, least) in [
            ("num_timesteps", self.num_timesteps, 2),
            ("probes", self.probes, 1),
            ("micro_batch_size", self.micro_batch_size, 1),
        ] {
            check_range(
                name,
                value as f64,
                value >= least,
                "at least 1; 2 timesteps",
            )?;
        }
        Ok(())
    }

    /// The result from the point at time 1 and, as its last element, the change of the logarithm.
    fn bits(&self, end: &[f64]) -> f64 {
        let (change, point) = end.split_last().unwrap_or((&0.0, &[]));
        let count = point.len() as f64;
        let squares: f64 = point.iter().map(|value| value * value).sum();
        let prior = -0.5 * (count * std::f64::consts::TAU.ln() + squares);
        -(prior + change) / (count * std::f64::consts::LN_2) + self.bits_offset
    }

    fn beta(&self, time: f64) -> f64 {
        self.beta_min + time * (self.beta_max - self.beta_min)
    }

    /// `∫ β` from 0.
    fn total_beta(&self, time: f64) -> f64 {
        time * self.beta_min + 0.5 * time * time * (self.beta_max - self.beta_min)
    }

    /// `ᾱ` of the timesteps.
    fn alpha_bars(&self) -> Vec<f64> {
        let steps = self.num_timesteps as f64;
        let mut product = 1.0;
        let betas =
            (0..self.num_timesteps).map(|step| self.beta(step as f64 / (steps - 1.0)) / steps);
        betas
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect()
    }
}

/// The result of a point from those of its probes.
fn point(values: &[f64], evaluations: &[usize]) -> PointLikelihood {
    let (mean, deviation) = mean_and_deviation(values);
    let count = values.len() as f64;
    PointLikelihood {
        bits_per_dimension: mean,
        standard_error: (values.len() > 1).then_some(deviation / count.sqrt()),
        probes: values.to_vec(),
        evaluations: evaluations.to_vec(),
    }
}

/// The right side of the probability-flow equation of a model.
struct Flow<'a, M> {
    settings: &'a Likelihood,
    /// Without dropout; its parameters take part in autodiff and have no gradient.
    model: M,
    device: Device,
    alpha_bars: Vec<f64>,
}

impl<'a, M: Module> Flow<'a, M> {
    fn new<const D: usize>(
        settings: &'a Likelihood,
        model: &M,
        points: &dyn Points<D>,
    ) -> Result<Self> {
        let device = match model.devices().first() {
            Some(device) => device.clone(),
            None => points.load(0..1)?.device(),
        };
        Ok(Self {
            settings,
            model: as_constants(model),
            device,
            alpha_bars: settings.alpha_bars(),
        })
    }

    /// Moves rows to time 1: the points, and the change of the logarithm of their density.
    fn solve<const D: usize>(
        &self,
        points: &dyn Points<D>,
        rows: &[usize],
        probes: Tensor<D>,
        condition: &M::Condition,
    ) -> Result<Vec<RungeKutta>>
    where
        M: Denoiser<D>,
    {
        let (first, last) = (rows[0], rows[rows.len() - 1]);
        let clean = read_f32(
            load(points, first..last + 1, &self.device)?,
            "the points to measure",
        )?;
        let count = last + 1 - first;
        if let Some((point, value)) = first_non_finite(&clean, first, count) {
            return Err(Error::NonFinitePoint { point, value });
        }
        let elements = clean.len() / count;
        let tolerances = Tolerances {
            absolute: self.settings.absolute_tolerance,
            relative: self.settings.relative_tolerance,
        };
        let begin = |row: &usize| {
            let values = &clean[(row - first) * elements..][..elements];
            let state = values.iter().map(|&value| f64::from(value)).chain([0.0]);
            RungeKutta::new(self.settings.first_time, 1.0, state.collect(), tolerances)
        };
        let mut solutions: Vec<RungeKutta> = rows.iter().map(begin).collect();
        loop {
            let asked = solutions.iter().enumerate();
            let asked: Vec<_> = asked
                .filter_map(|(row, solution)| Some((row, solution.wants()?)))
                .collect();
            if asked.is_empty() {
                return Ok(solutions);
            }
            let rows: Vec<usize> = asked.iter().map(|(row, _)| *row).collect();
            let probes = select_rows(&probes, &rows);
            let wanted = asked.into_iter().map(|(_, wanted)| wanted).collect();
            let slopes = self.slopes(wanted, probes, &condition.take_rows(&rows))?;
            for (row, slope) in rows.into_iter().zip(slopes) {
                solutions[row].take(slope)?;
            }
        }
    }

    /// The slope of each row's point, and of the logarithm of its density.
    fn slopes<const D: usize>(
        &self,
        wanted: Vec<(f64, Vec<f64>)>,
        probes: Tensor<D>,
        condition: &M::Condition,
    ) -> Result<Vec<Vec<f64>>>
    where
        M: Denoiser<D>,
    {
        let times: Vec<f64> = wanted.iter().map(|(time, _)| *time).collect();
        let values = wanted
            .iter()
            .flat_map(|(_, state)| &state[..state.len() - 1]);
        let values = values.map(|&value| value as f32).collect();
        let shape = probes.dims();
        let noisy = tensor::<D>(values, shape, &self.device)
            .autodiff()
            .require_grad();
        let drift = self.drift(noisy.clone(), &times, condition)?;
        let product = drift.clone() * probes.clone();
        let mut gradients = product.sum().backward();
        let gradient = match noisy.grad_remove(&mut gradients) {
            Some(gradient) => gradient,
            // The drift does not depend on the point.
            None => probes.zeros_like(),
        };
        let divergences = read_f32(sum_elements(gradient * probes), "the trace")?;
        let drift = read_f32(to_f32(drift.inner()), "the model's prediction")?;
        let elements = drift.len() / shape[0];
        let rows = drift.chunks(elements).zip(divergences);
        let slope = |(drift, divergence): (&[f32], f32)| {
            let values = drift.iter().copied().chain([divergence]);
            values.map(f64::from).collect()
        };
        Ok(rows.map(slope).collect())
    }

    fn drift<const D: usize>(
        &self,
        noisy: Tensor<D>,
        times: &[f64],
        condition: &M::Condition,
    ) -> Result<Tensor<D>>
    where
        M: Denoiser<D>,
    {
        let last = (self.settings.num_timesteps - 1) as f64;
        let timesteps = vector(times.iter().map(|time| time * last), &self.device);
        let output = self.model.predict(noisy.clone(), timesteps, condition);
        let remedy = "the model must predict one value for every element";
        check_shape(
            "the model's prediction",
            &noisy.dims(),
            &output.dims(),
            remedy,
        )?;
        let scales = self.scales(times);
        let sigma = scales.noise_tensor(&self.device);
        let gamma = scales.signal_tensor(&self.device);
        let kind = self.model.prediction_type();
        let (_, noise) = kind.clean_and_noise(noisy.clone(), output, gamma, sigma.clone());
        let speeds: Vec<f64> = times
            .iter()
            .map(|&time| -0.5 * self.settings.beta(time))
            .collect();
        let speeds = column::<D>(&speeds, &self.device);
        Ok((noisy - noise / sigma) * speeds)
    }

    fn scales(&self, times: &[f64]) -> Scales {
        let last = self.settings.num_timesteps - 1;
        let alpha_bar = |&time: &f64| match self.settings.noise_scale {
            NoiseScale::Continuous => (-self.settings.total_beta(time)).exp(),
            // The product is rounded as in the published code, which multiplies in f32.
            NoiseScale::Discrete => {
                let step = (time as f32 * last as f32) as usize;
                self.alpha_bars[step.min(last)]
            }
        };
        let alpha_bars: Vec<f64> = times.iter().map(alpha_bar).collect();
        Scales {
            signal: alpha_bars.iter().map(|it| it.sqrt()).collect(),
            noise: alpha_bars.iter().map(|it| (1.0 - it).sqrt()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};

    use crate::denoiser::FnDenoiser;
    use crate::process::PredictionType;

    /// The exact predicted noise for normal data of a deviation: `σ m / (γ² s² + σ²)`.
    fn of_normal_data(deviation: f64, settings: Likelihood) -> impl Denoiser<2, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let predict = move |_: &Linear, noisy: Tensor<2>, times: Tensor<1>, _: &()| {
            let device = noisy.device();
            let times: Vec<f64> = times.into_data().iter().collect();
            let factor = times.iter().map(|timestep| {
                let alpha_bar = (-settings.total_beta(timestep / 999.0)).exp();
                let variance = alpha_bar * deviation * deviation + 1.0 - alpha_bar;
                (1.0 - alpha_bar).sqrt() / variance
            });
            let factors: Vec<f64> = factor.collect();
            noisy * column::<2>(&factors, &device)
        };
        FnDenoiser::new(layer, predict)
    }

    fn continuous() -> Likelihood {
        Likelihood {
            noise_scale: NoiseScale::Continuous,
            bits_offset: 0.0,
            ..Likelihood::default()
        }
    }

    fn points(rows: usize) -> Tensor<2> {
        normal_noise([rows, 5], 3, 0, 0, Stream::Evaluation, &Device::flex())
    }

    /// The negative logarithm of a normal density, in bits per dimension.
    fn bits(values: &[f64], deviation: f64) -> f64 {
        let squares: f64 = values.iter().map(|it| (it / deviation).powi(2)).sum();
        let normal = 0.5 * (std::f64::consts::TAU.ln() + squares / values.len() as f64);
        (normal + deviation.ln()) / std::f64::consts::LN_2
    }

    /// The trace of a multiple of the identity is exact for any signs.
    #[test]
    fn normal_data_have_their_density() {
        let points = points(4);
        let values: Vec<f64> = points.clone().into_data().iter().collect();
        for deviation in [0.4, 1.0] {
            let settings = continuous();
            let model = of_normal_data(deviation, settings.clone());
            let found = settings.measure(&model, &points, &()).unwrap();
            for (found, values) in found.iter().zip(values.chunks(5)) {
                let error = found.bits_per_dimension - bits(values, deviation);
                assert!(error.abs() < 2e-3, "{deviation}: {error}");
            }
        }
    }

    /// Rows take their own steps, so nothing depends on what is run together.
    #[test]
    fn a_result_does_not_depend_on_the_micro_batch_and_probes_are_averaged() {
        let settings = Likelihood {
            probes: 3,
            ..continuous()
        };
        let model = of_normal_data(0.7, settings.clone());
        let whole = settings.measure(&model, &points(3), &()).unwrap();
        let parts = Likelihood {
            micro_batch_size: 2,
            ..settings
        };
        let parts = parts.measure(&model, &points(3), &()).unwrap();
        for (whole, part) in whole.iter().zip(&parts) {
            assert_eq!(
                (whole.probes.len(), &whole.evaluations),
                (3, &part.evaluations)
            );
            assert!((whole.bits_per_dimension - part.bits_per_dimension).abs() < 1e-9);
            assert!(whole.standard_error.unwrap() < 1e-4);
        }
    }

    #[test]
    fn settings_and_points_that_give_no_figure_are_refused() {
        let model = of_normal_data(1.0, continuous());
        let refused = |settings: Likelihood, points: &Tensor<2>| {
            settings.measure(&model, points, &()).unwrap_err()
        };
        let changes: [fn(&mut Likelihood); 5] = [
            |it| it.beta_min = 0.0,
            |it| it.beta_max = 0.01,
            |it| it.first_time = 1.0,
            |it| it.probes = 0,
            |it| it.relative_tolerance = f64::NAN,
        ];
        for change in changes {
            let mut settings = continuous();
            change(&mut settings);
            let error = refused(settings, &points(1));
            assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        }
        let error = refused(continuous(), &(points(1) * f64::NAN));
        assert!(matches!(error, Error::NonFinitePoint { .. }), "{error}");
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let nothing = FnDenoiser::new(layer, |_: &Linear, m: Tensor<2>, _, _: &()| m * f64::NAN)
            .predicting(PredictionType::Sample);
        let error = continuous().measure(&nothing, &points(1), &()).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
}
