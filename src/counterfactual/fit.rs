//! Fitting a [`CounterfactualLoss`] to a model and its data.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::ideal::Ideal;
use super::{CounterfactualLoss, check_timesteps};
use crate::batch::check_finite;
use crate::denoiser::{Condition, Denoiser, PredictionType};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, Side, check_device, check_range, check_shape};
use crate::host::{read_f32, select_rows, squared_norms, to_f32, vector};
use crate::scheduler::{Scales, Scheduler, SchedulerExt};

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
        let probe = Probe {
            model: model.valid(),
            timesteps: &timesteps,
            scales: &scales,
            data,
            config,
        };
        let (noises, control_noises) = (config.noises, config.control_noises);
        let mut progress = Progress {
            tell: &mut progress,
            done: 0,
            total: forgotten.shape()[0] * noises + 2 * controls.shape()[0] * control_noises,
        };
        let ideal = probe.ideal_errors(&controls, control_noises, &mut progress)?;
        let losses = probe.control_losses(&mut progress)?;
        let mut gains = Vec::with_capacity(timesteps.len());
        for (index, &timestep) in timesteps.iter().enumerate() {
            gains.push(gain(losses[index], mean(&ideal[index]), timestep)?);
        }
        let errors = probe.ideal_errors(&forgotten, noises, &mut progress)?;
        let level = |point: usize, index: usize| {
            let level = errors[index][point] * gains[index];
            check_range("a predicted loss", level, level > 0.0, "a positive number")
        };
        let levels = |point| {
            (0..timesteps.len())
                .map(|index| level(point, index))
                .collect()
        };
        let levels: Result<_> = (0..forgotten.shape()[0]).map(levels).collect();
        Ok(Self {
            levels: levels?,
            gains,
            timesteps,
            prediction_type: Some(config.prediction_type),
        })
    }
}

/// Tells the share of the rows that are done.
struct Progress<'a> {
    tell: &'a mut dyn FnMut(f64),
    done: usize,
    total: usize,
}

impl Progress<'_> {
    fn add(&mut self, rows: usize) {
        self.done += rows;
        (self.tell)(self.done as f64 / self.total as f64);
    }
}

/// A model and its data on the grid. A row has the same noise at every timestep, so it is drawn once for all.
struct Probe<'a, const D: usize, M: Denoiser<D>> {
    model: M,
    timesteps: &'a [f64],
    /// Of each timestep.
    scales: &'a Scales,
    data: CounterfactualData<'a, D, M::Condition>,
    config: &'a CounterfactualConfig,
}

impl<const D: usize, M: Denoiser<D>> Probe<'_, D, M> {
    /// The ideal denoiser's error by timestep and point, mean over noises and elements.
    fn ideal_errors(
        &self,
        ideal: &Ideal<'_>,
        noises: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let [points, elements] = ideal.shape();
        let mut means = vec![vec![0.0; points]; self.timesteps.len()];
        for (first, rows) in self.parts(points, noises) {
            let noise = self.noise([rows.len(), elements], first);
            let errors = (self.scales.ratios().into_iter())
                .map(|ratio| ideal.errors(&rows, noise.clone(), ratio));
            let errors = Tensor::cat(errors.collect(), 0);
            let errors = read_f32(errors, "the ideal denoiser's errors")?;
            for (means, errors) in means.iter_mut().zip(errors.chunks(rows.len())) {
                for (&row, &error) in rows.iter().zip(errors) {
                    means[row] += f64::from(error) / noises as f64;
                }
            }
            progress.add(rows.len());
        }
        Ok(means)
    }

    /// The model's loss on the control points by timestep, mean over all.
    fn control_losses(&self, progress: &mut Progress<'_>) -> Result<Vec<f64>> {
        let (points, noises) = (self.data.controls, self.config.control_noises);
        let total = (points.dims()[0] * noises) as f64;
        let mut means = vec![0.0; self.timesteps.len()];
        for (first, rows) in self.parts(points.dims()[0], noises) {
            let clean = to_f32(select_rows(points, &rows).inner());
            let noise = self.noise(clean.dims(), first);
            let condition = self.data.control_condition.select(&rows);
            let losses: Result<Vec<Tensor<1>>> = (0..means.len())
                .map(|index| self.losses(&clean, &noise, &condition, index))
                .collect();
            let losses = read_f32(Tensor::cat(losses?, 0), "the model's losses")?;
            for (mean, losses) in means.iter_mut().zip(losses.chunks(rows.len())) {
                let sum: f64 = losses.iter().copied().map(f64::from).sum();
                *mean += sum / total;
            }
            progress.add(rows.len());
        }
        Ok(means)
    }

    /// The model's loss on each row at one timestep of the grid, mean over elements.
    fn losses(
        &self,
        clean: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        index: usize,
    ) -> Result<Tensor<1>> {
        let (rows, kind) = (clean.dims()[0], self.config.prediction_type);
        let scales = Scales {
            signal: vec![self.scales.signal[index]; rows],
            noise: vec![self.scales.noise[index]; rows],
        };
        let timesteps = vector(vec![self.timesteps[index]; rows], &clean.device());
        let output = self
            .model
            .predict(scales.noisy(clean, noise), timesteps, condition);
        let target = scales.target(kind, clean, noise);
        let (shape, remedy) = (
            target.dims(),
            "the model must predict one value for every element",
        );
        check_shape("the model's prediction", &shape, &output.dims(), remedy)?;
        let elements: usize = shape[1..].iter().product();
        Ok(squared_norms(to_f32(output) - target) / elements as f64)
    }

    /// The point of each row, point after point with its noises, in parts of a micro-batch, each with the number of its first row.
    fn parts(&self, points: usize, noises: usize) -> Vec<(usize, Vec<usize>)> {
        let size = self.config.micro_batch_size;
        let total = points * noises;
        let part = |first| {
            (
                first,
                (first..total.min(first + size))
                    .map(|row| row / noises)
                    .collect(),
            )
        };
        (0..total).step_by(size).map(part).collect()
    }

    fn noise<const R: usize>(&self, shape: [usize; R], first_row: usize) -> Tensor<R> {
        let (seed, device) = (self.config.seed, self.data.retained.device());
        let (first_row, stream) = (first_row as u64, Stream::Evaluation);
        normal_noise(shape, seed, 0, first_row, stream, &device)
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

/// How much better than the ideal denoiser the model is.
fn gain(loss: f64, ideal: f64, timestep: f64) -> Result<f64> {
    let gain = loss / ideal;
    if gain.is_finite() && gain > 0.0 {
        return Ok(gain);
    }
    Err(Error::InvalidSetting {
        what: format!(
            "at timestep {timestep} the ideal denoiser's error on the control points is {ideal}, and the model's loss {loss}"
        ),
        remedy: "give control points that differ from the retained ones, and a model whose output is finite",
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
    fn what_cannot_be_predicted_from_is_refused() {
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
