//! The loss that a model would have on a point it had never seen, predicted without training one.

mod ideal;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::ideal::Ideal;
use crate::batch::check_finite;
use crate::denoiser::{Condition, Denoiser, PredictionType};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, Side, check_device, check_range, check_shape};
use crate::host::{read_f32, select_rows, sum_elements, to_f32, vector};
use crate::scheduler::{Scheduler, SchedulerExt};

/// How a [`CounterfactualLoss`] is fitted.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | 16 of the scheduler's range, denser where it is clean | where losses are compared | ascending, 2 or more |
/// | `noises` | 64 | noises over which a forgotten point's ideal error is averaged | ≥ 1 |
/// | `control_noises` | 1 | noises for each control point | ≥ 1 |
/// | `prediction_type` | `Epsilon` | what the model predicts | |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time | ≥ 1 |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CounterfactualConfig {
    /// Timesteps of the grid, ascending; `None` for 16 of the scheduler's range.
    pub timesteps: Option<Vec<f64>>,
    /// Noises over which a forgotten point's ideal error is averaged.
    pub noises: usize,
    /// Noises for each control point.
    pub control_noises: usize,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
}

impl Default for CounterfactualConfig {
    fn default() -> Self {
        Self {
            timesteps: None,
            noises: 64,
            control_noises: 1,
            prediction_type: PredictionType::Epsilon,
            seed: 0,
            micro_batch_size: 64,
        }
    }
}

/// What the prediction is made from.
#[derive(Debug, Clone, Copy)]
pub struct CounterfactualData<'a, const D: usize, C = ()> {
    /// The data without the forgotten points, `[n, …]`.
    pub retained: &'a Tensor<D>,
    /// Points of the same kind that the model has never seen, `[c, …]`. For want of such points, retained ones: each is left
    /// out of its own ideal denoiser, but the model has seen it, so the prediction comes out too low by what it remembers of it.
    pub controls: &'a Tensor<D>,
    /// What the model is conditioned on at the control points, `c` rows.
    pub control_condition: &'a C,
    /// The points to be forgotten, `[k, …]`; point `i` has id `i`.
    pub forgotten: &'a Tensor<D>,
}

/// The loss `b_a(t)` that a model which never saw a point `a` would have on it, for each forgotten point and timestep.
///
/// $$ b_a(t) = L^*_a(t) \, \frac{L_θ(H, t)}{L^*_H(t)} $$
///
/// `L*` is the error of the *ideal denoiser of the retained data*, the posterior mean `Σ_j p_j x_j` with
/// `p = softmax_j −‖m − γ x_j‖²/2σ²`: what could be known of a point from the others. A network does better than that, for it
/// generalises; how much better is measured where it can be, on control points `H` that it never saw. The same gain
/// is taken to hold on `a`.
///
/// Losses are means over elements and noises, in the space of the model's output. The gain is a ratio of errors of the clean
/// point on one side and of the output on the other, which the forgotten point's own error cancels: any prediction type and
/// `γ = 0` will do.
///
/// # Limits
/// The control points must be like the retained ones, and unseen. The prediction is best at the noise that decides recall:
/// on 64 images that a model of digits never saw it was off by 9 to 22 % on average from `t = 400` to 800 of 1,000, by half to three
/// quarters below 250 and at 900, and by a factor of 5 at worst. See the repository's `docs/results.md`.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{CounterfactualConfig, CounterfactualData, CounterfactualLoss, DdpmScheduler, Denoiser};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// # let random = |rows: usize| Tensor::<2>::random([rows, 3], Distribution::Default, &device);
/// let data = CounterfactualData {
///     retained: &random(100),
///     controls: &random(20),
///     control_condition: &(),
///     forgotten: &Tensor::zeros([1, 3], &device),
/// };
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let config = CounterfactualConfig::default();
/// let predicted = CounterfactualLoss::fit(&model, &scheduler, data, &config, |_| {})?;
/// assert!(predicted.level(0, 250.0)? > 0.0);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct CounterfactualLoss {
    timesteps: Vec<f64>,
    /// `L_θ(H) / L*_H` by timestep; none where the levels are known otherwise.
    gains: Vec<f64>,
    /// `b` by forgotten point and timestep.
    levels: Vec<Vec<f64>>,
    /// In whose space the levels are, where that is known.
    prediction_type: Option<PredictionType>,
}

/// The same as it comes from a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    timesteps: Vec<f64>,
    gains: Vec<f64>,
    levels: Vec<Vec<f64>>,
    prediction_type: Option<PredictionType>,
}

impl TryFrom<Unchecked> for CounterfactualLoss {
    type Error = Error;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        let Unchecked {
            timesteps,
            gains,
            levels,
            prediction_type,
        } = unchecked;
        if !gains.is_empty() {
            let remedy = "give a gain at every timestep, or none";
            check_shape("the gains", &[timesteps.len()], &[gains.len()], remedy)?;
        }
        let checked = Self::from_levels(timesteps, levels)?;
        Ok(Self {
            gains,
            prediction_type,
            ..checked
        })
    }
}

impl CounterfactualLoss {
    /// Predicts from the model as it is now. `progress` is told the share that is done.
    ///
    /// The retained data are gone through in chunks: memory is that of the data, of a few chunks, and of one number for each pair of
    /// a retained point with a control or a forgotten point.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::OutOfRange`] and [`Error::TimestepOutOfRange`] for what does not fit;
    /// [`Error::NonFiniteData`] for data with NaN or infinities; [`Error::ForgottenPointRetained`];
    /// [`Error::InvalidSetting`] if the model's loss on the control points is no positive number, or if model and data are on
    /// different devices.
    pub fn fit<const D: usize, M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: CounterfactualData<'_, D, M::Condition>,
        config: &CounterfactualConfig,
        mut progress: impl FnMut(f64),
    ) -> Result<Self> {
        check_data(&data)?;
        check_config(config)?;
        let timesteps = match &config.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => default_timesteps(scheduler),
        };
        check_timesteps(&timesteps)?;
        let scales = scheduler.scales(&timesteps)?;
        if let Some(device) = model.devices().first() {
            check_device("points", device, &data.retained.device())?;
        }
        model.check_input(data.controls.dims())?;
        let retained = flat(data.retained);
        let forgotten = Ideal::new(&retained, flat(data.forgotten));
        if let Some((forget, retain)) = forgotten.first_duplicate()? {
            return Err(Error::ForgottenPointRetained { forget, retain });
        }
        let controls = Ideal::new(&retained, flat(data.controls)).without_duplicates();
        let forgotten_count = data.forgotten.dims()[0];
        let probe = Probe {
            model: model.valid(),
            scheduler,
            data,
            config,
        };
        let mut predicted = Self {
            gains: Vec::with_capacity(timesteps.len()),
            levels: vec![Vec::with_capacity(timesteps.len()); forgotten_count],
            timesteps: timesteps.clone(),
            prediction_type: Some(config.prediction_type),
        };
        for (index, &timestep) in timesteps.iter().enumerate() {
            let ratio = scales.signal[index] / scales.noise[index];
            let ideal = mean(&probe.ideal_errors(&controls, config.control_noises, ratio)?);
            let gain = probe.control_loss(timestep)? / ideal;
            check_gain(gain, ideal, timestep)?;
            predicted.gains.push(gain);
            let errors = probe.ideal_errors(&forgotten, config.noises, ratio)?;
            for (levels, error) in predicted.levels.iter_mut().zip(errors) {
                let level = error * gain;
                check_range("a predicted loss", level, level > 0.0, "a positive number")?;
                levels.push(level);
            }
            progress((index + 1) as f64 / timesteps.len() as f64);
        }
        Ok(predicted)
    }

    /// Levels that are known otherwise: for tests, for the losses of a retrained model, for a level set by hand.
    ///
    /// # Shapes
    /// - `timesteps`: ascending; `levels`: for each forgotten point a level at each timestep, positive
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::ShapeMismatch`].
    pub fn from_levels(timesteps: Vec<f64>, levels: Vec<Vec<f64>>) -> Result<Self> {
        check_timesteps(&timesteps)?;
        for of_point in &levels {
            let remedy = "give a level at every timestep";
            check_shape(
                "a point's levels",
                &[timesteps.len()],
                &[of_point.len()],
                remedy,
            )?;
            for &level in of_point {
                check_range("a level", level, level > 0.0, "a positive number")?;
            }
        }
        Ok(Self {
            gains: Vec::new(),
            timesteps,
            levels,
            prediction_type: None,
        })
    }

    /// The predicted loss of a forgotten point at a timestep, mean over elements: linear in the logarithm between
    /// the timesteps of the grid, constant beyond its ends.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for an id without a prediction.
    pub fn level(&self, forget_id: u64, timestep: f64) -> Result<f64> {
        let found = usize::try_from(forget_id)
            .ok()
            .and_then(|id| self.levels.get(id));
        let levels = found.ok_or_else(|| Error::InvalidSetting {
            what: format!(
                "the forgotten point of id {forget_id} has no predicted loss, only ids below {} have",
                self.levels.len()
            ),
            remedy: "fit the prediction to every forgotten point, in the order of their ids",
        })?;
        let above = self.timesteps.partition_point(|&t| t < timestep);
        let (low, high) = (above.saturating_sub(1), above.min(levels.len() - 1));
        let (from, to) = (self.timesteps[low], self.timesteps[high]);
        let share = if to > from {
            (timestep - from) / (to - from)
        } else {
            0.0
        };
        let share = share.clamp(0.0, 1.0);
        Ok((levels[low].ln() * (1.0 - share) + levels[high].ln() * share).exp())
    }

    /// The timesteps of the grid, ascending.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// `L_θ(H) / L*_H` at each timestep of the grid: below 1 where the network knows more than the ideal denoiser. None for
    /// levels that are known otherwise.
    pub fn gains(&self) -> &[f64] {
        &self.gains
    }

    /// In the space of which prediction type the levels are; `None` for levels that are known otherwise.
    pub fn prediction_type(&self) -> Option<PredictionType> {
        self.prediction_type
    }

    /// The predicted losses of each forgotten point at the timesteps of the grid.
    pub fn levels(&self) -> &[Vec<f64>] {
        &self.levels
    }
}

/// The parts of a fit that every timestep shares.
struct Probe<'a, const D: usize, M: Denoiser<D>> {
    model: M,
    scheduler: &'a dyn Scheduler,
    data: CounterfactualData<'a, D, M::Condition>,
    config: &'a CounterfactualConfig,
}

impl<const D: usize, M: Denoiser<D>> Probe<'_, D, M> {
    /// The ideal denoiser's error on each point, mean over noises and elements.
    fn ideal_errors(&self, ideal: &Ideal<'_>, noises: usize, ratio: f64) -> Result<Vec<f64>> {
        let [points, elements] = ideal.shape();
        let rows: Vec<usize> = (0..points * noises).map(|row| row / noises).collect();
        let mut sums = vec![0.0; points];
        for (part, rows) in rows.chunks(self.config.micro_batch_size).enumerate() {
            let first = part * self.config.micro_batch_size;
            let noise = self.noise([rows.len(), elements], first);
            let errors = read_f32(
                ideal.errors(rows, noise, ratio),
                "the ideal denoiser's errors",
            )?;
            for (&row, error) in rows.iter().zip(errors) {
                sums[row] += f64::from(error) / noises as f64;
            }
        }
        Ok(sums)
    }

    /// The model's loss on the control points, mean over all.
    fn control_loss(&self, timestep: f64) -> Result<f64> {
        let (points, noises) = (self.data.controls, self.config.control_noises);
        let rows: Vec<usize> = (0..points.dims()[0] * noises)
            .map(|row| row / noises)
            .collect();
        let mut losses = Vec::with_capacity(rows.len());
        for (part, rows) in rows.chunks(self.config.micro_batch_size).enumerate() {
            let clean = to_f32(select_rows(points, rows).inner());
            let first = part * self.config.micro_batch_size;
            let noise = self.noise(clean.dims(), first);
            losses.extend(self.losses(clean, noise, rows, timestep)?);
        }
        Ok(mean(&losses))
    }

    fn losses(
        &self,
        clean: Tensor<D>,
        noise: Tensor<D>,
        rows: &[usize],
        timestep: f64,
    ) -> Result<Vec<f64>> {
        let device = clean.device();
        let timesteps = vec![timestep; rows.len()];
        let scales = self.scheduler.scales(&timesteps)?;
        let (signal, sigma) = (scales.signal_tensor(&device), scales.noise_tensor(&device));
        let noisy = clean.clone() * signal.clone() + noise.clone() * sigma.clone();
        let target = self
            .config
            .prediction_type
            .target(clean, noise, signal, sigma);
        let condition = self.data.control_condition.select(rows);
        let output = self
            .model
            .predict(noisy, vector(timesteps, &device), &condition);
        let (shape, remedy) = (
            target.dims(),
            "the model must predict one value for every element",
        );
        check_shape("the model's prediction", &shape, &output.dims(), remedy)?;
        let difference = to_f32(output) - target;
        let elements = shape[1..].iter().product::<usize>() as f64;
        let losses = read_f32(
            sum_elements(difference.clone() * difference),
            "the model's losses",
        )?;
        Ok(losses
            .into_iter()
            .map(|loss| f64::from(loss) / elements)
            .collect())
    }

    /// Row `first_row + i` has the same noise at every timestep and for every model.
    fn noise<const R: usize>(&self, shape: [usize; R], first_row: usize) -> Tensor<R> {
        let (seed, device) = (self.config.seed, self.data.retained.device());
        normal_noise(
            shape,
            seed,
            0,
            first_row as u64,
            Stream::Evaluation,
            &device,
        )
    }
}

/// All elements of a point in one dimension.
fn flat<const D: usize>(points: &Tensor<D>) -> Tensor<2> {
    let elements: usize = points.dims()[1..].iter().product();
    to_f32(points.clone().inner()).reshape([points.dims()[0], elements])
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Shares of the time range: losses change fastest where it is clean.
const GRID: [f64; 16] = [
    0.005, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.995,
];

fn default_timesteps(scheduler: &dyn Scheduler) -> Vec<f64> {
    let range = scheduler.time_range();
    let mut timesteps: Vec<f64> = GRID.iter().map(|&share| range.at(share)).collect();
    timesteps.dedup();
    timesteps
}

fn check_timesteps(timesteps: &[f64]) -> Result<()> {
    let remedy = "two or more timesteps";
    check_range(
        "the number of timesteps",
        timesteps.len() as f64,
        timesteps.len() >= 2,
        remedy,
    )?;
    for pair in timesteps.windows(2) {
        let requirement = "above the timestep before it";
        check_range(
            "a timestep of the grid",
            pair[1],
            pair[0] < pair[1],
            requirement,
        )?;
    }
    Ok(())
}

fn check_config(config: &CounterfactualConfig) -> Result<()> {
    for (name, value) in [
        ("noises", config.noises),
        ("control_noises", config.control_noises),
        ("micro_batch_size", config.micro_batch_size),
    ] {
        check_range(name, value as f64, value >= 1, "at least 1")?;
    }
    Ok(())
}

fn check_data<const D: usize, C: Condition>(data: &CounterfactualData<'_, D, C>) -> Result<()> {
    let shape = data.retained.dims();
    for (what, points, side) in [
        ("the retained set", data.retained, Side::Retain),
        ("the control set", data.controls, Side::Retain),
        ("the forget set", data.forgotten, Side::Forget),
    ] {
        if points.dims().contains(&0) {
            return Err(Error::Empty {
                what,
                remedy: "give at least one point",
            });
        }
        let remedy = "bring all points to the model's input shape";
        check_shape(what, &shape[1..], &points.dims()[1..], remedy)?;
        check_device("points", &data.retained.device(), &points.device())?;
        check_finite(points, side)?;
    }
    let rows = data.controls.dims()[0];
    let found = data
        .control_condition
        .check_rows(rows)
        .err()
        .unwrap_or(rows);
    let remedy = "give one condition for every control point";
    check_shape("the control condition", &[rows], &[found], remedy)
}

fn check_gain(gain: f64, ideal: f64, timestep: f64) -> Result<()> {
    if gain.is_finite() && gain > 0.0 && ideal > 0.0 {
        return Ok(());
    }
    Err(Error::InvalidSetting {
        what: format!(
            "at timestep {timestep} the ideal denoiser's error on the control points is {ideal}, and the model's over it {gain}"
        ),
        remedy: "give control points that are neither retained nor forgotten, and a model whose output is finite",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::DdpmScheduler;
    use burn::module::{Module, Param};
    use burn::tensor::Device;

    /// Predicts noise as the posterior mean of standard Gaussian data would, times a factor on the error it leaves.
    #[derive(Module, Debug)]
    struct Gaussian {
        excess: Param<Tensor<1>>,
    }

    impl Denoiser<2> for Gaussian {
        type Condition = ();

        fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
            // With unit variance in every direction, E[ε | m] = σ m.
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let sigma = scheduler().noise_scale(t[0].into());
            noisy * sigma + self.excess.val().inner().reshape([1, 1])
        }
    }

    fn scheduler() -> DdpmScheduler {
        DdpmScheduler::linear(1000).unwrap()
    }

    fn points(seed: u64, rows: usize) -> Tensor<2> {
        normal_noise([rows, 1], seed, 0, 0, Stream::Noise, &Device::flex())
    }

    /// The points with a second element that is the same for all: no two sets have a point in common.
    fn beside(points: Tensor<2>, value: f64) -> Tensor<2> {
        let second = points.zeros_like() + value;
        Tensor::cat(vec![points, second], 1)
    }

    fn fit(excess: f32, forgotten: &Tensor<2>) -> CounterfactualLoss {
        let model = Gaussian {
            excess: Param::from_tensor(Tensor::from_data([excess], &Device::flex())),
        };
        let data = CounterfactualData {
            retained: &beside(points(1, 20_000), 0.0),
            controls: &beside(points(2, 4_000), 1e-3),
            control_condition: &(),
            forgotten,
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![300.0, 600.0]),
            noises: 2_000,
            ..CounterfactualConfig::default()
        };
        CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap()
    }

    /// One dimension, many points: everything is known. The ideal denoiser says `x̂ = γ m`, so its error on `a` is
    /// `E (γ(γ a + σ ε) − a)² = σ⁴ a² + γ² σ²`, on the data `σ²`; the network's loss on the data is `γ²` in noise. In the second
    /// element, which is 0, the ideal denoiser has no error, and the network that of `σ² ε` for `ε`, `γ⁴`.
    #[test]
    fn the_prediction_for_gaussian_data_is_the_closed_form() {
        let a = 1.7f64;
        let forgotten = Tensor::<2>::from_data([[a as f32, 1e-3]], &Device::flex());
        for excess in [0.0f64, 0.5] {
            let predicted = fit(excess as f32, &forgotten);
            for t in [300.0, 600.0] {
                let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
                let network = (gamma.powi(2) + gamma.powi(4)) / 2.0 + excess * excess;
                let ideal = sigma.powi(4) * a * a + gamma * gamma * sigma * sigma;
                let expected = ideal * network / (sigma * sigma);
                let level = predicted.level(0, t).unwrap();
                assert!(
                    (level / expected - 1.0).abs() < 0.06,
                    "{t}: {level} {expected}"
                );
            }
        }
    }

    #[test]
    fn levels_lie_on_a_line_in_the_logarithm_and_are_constant_beyond() {
        let levels =
            CounterfactualLoss::from_levels(vec![10.0, 20.0], vec![vec![1.0, 100.0]]).unwrap();
        let at = |t| levels.level(0, t).unwrap();
        for (t, expected) in [
            (0.0, 1.0),
            (10.0, 1.0),
            (15.0, 10.0),
            (20.0, 100.0),
            (900.0, 100.0),
        ] {
            assert!((at(t) / expected - 1.0).abs() < 1e-12, "{t}: {}", at(t));
        }
        let text = serde_json::to_string(&levels).unwrap();
        assert_eq!(
            serde_json::from_str::<CounterfactualLoss>(&text).unwrap(),
            levels
        );
        for bad in [
            r#"{"timesteps":[],"gains":[],"levels":[[]]}"#,
            r#"{"timesteps":[0,100],"gains":[],"levels":[[0.1]]}"#,
            r#"{"timesteps":[0,100],"gains":[1],"levels":[[0.1,0.2]]}"#,
            r#"{"timesteps":[100,0],"gains":[],"levels":[[0.1,0.2]]}"#,
            r#"{"timesteps":[0,100],"gains":[],"levels":[[0.1,-0.2]]}"#,
        ] {
            assert!(
                serde_json::from_str::<CounterfactualLoss>(bad).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_cannot_be_predicted_from_is_refused() {
        let from = CounterfactualLoss::from_levels;
        assert!(from(vec![1.0], vec![]).is_err());
        assert!(
            from(vec![2.0, 1.0], vec![])
                .unwrap_err()
                .to_string()
                .contains("is 1;")
        );
        assert!(from(vec![1.0, 2.0], vec![vec![1.0]]).is_err());
        assert!(
            from(vec![1.0, 2.0], vec![vec![1.0, 0.0]])
                .unwrap_err()
                .to_string()
                .contains("a level is 0")
        );

        let (retained, forgotten) = (points(1, 50), points(3, 2));
        let model = Gaussian {
            excess: Param::from_tensor(Tensor::from_data([0.0], &Device::flex())),
        };
        let predict = |controls: &Tensor<2>, config: &CounterfactualConfig| {
            let data = CounterfactualData {
                retained: &retained,
                controls,
                control_condition: &(),
                forgotten: &forgotten,
            };
            CounterfactualLoss::fit(&model, &scheduler(), data, config, |_| {})
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![0.0, 1.0]),
            ..CounterfactualConfig::default()
        };
        let own = retained.clone().narrow(0, 5, 3);
        assert!(predict(&own, &config).is_ok());
        let others = points(2, 3);
        let data = CounterfactualData {
            retained: &retained,
            controls: &others,
            control_condition: &(),
            forgotten: &retained.clone().narrow(0, 9, 1),
        };
        let error =
            CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ForgottenPointRetained {
                    forget: 0,
                    retain: 9
                }
            ),
            "{error}"
        );
        assert!(predict(&(own.clone() / 0.0), &config).is_err());
        let none = CounterfactualConfig {
            noises: 0,
            ..config
        };
        let error = predict(&own, &none).unwrap_err().to_string();
        assert!(error.contains("noises is 0"), "{error}");
    }
}
