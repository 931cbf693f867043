//! Fitting a [`CounterfactualLoss`] to a model and its data.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::form::{Forms, IdealForm};
use super::ideal::Ideal;
use super::probe::{PROBES, Probe, Progress, same_patches};
use super::{CounterfactualLoss, check_timesteps};
use crate::batch::check_finite;
use crate::denoiser::{Condition, Denoiser, PredictionType};
use crate::error::{Error, Result, Side, check_device, check_range, check_shape};
use crate::host::{read_f32, to_f32};
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
/// | `form` | `Whole` | which ideal denoiser the prediction starts from | |
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
    /// Which ideal denoiser the prediction starts from.
    pub form: IdealForm,
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
            form: IdealForm::Whole,
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
        config.form.check(D)?;
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
        let host = match config.form {
            IdealForm::Whole => Vec::new(),
            IdealForm::Patches { .. } => read_f32(retained.clone(), "the retained points")?,
        };
        let forgotten = Ideal::new(&retained, flat(data.forgotten));
        if let Some((forget, retain)) = forgotten.first_duplicate()? {
            return Err(Error::ForgottenPointRetained { forget, retain });
        }
        let controls = Ideal::new(&retained, flat(data.controls)).without_duplicates();
        let shape = &data.retained.dims()[1..];
        let forgotten = Forms::new(forgotten, &config.form, &host, shape)?;
        let controls = Forms::new(controls, &config.form, &host, shape)?;
        let probe = Probe {
            model: model.valid(),
            timesteps: &timesteps,
            scales: &scales,
            data,
            config,
        };
        let (noises, control_noises) = (config.noises, config.control_noises);
        let [points, probes] = [&forgotten, &controls].map(|forms| forms.ideal.shape()[0]);
        let mut progress = Progress {
            tell: &mut progress,
            done: 0,
            total: points * noises
                + 2 * probes * control_noises
                + config.form.sizes().len() * probes.min(PROBES),
        };
        let patches = probe.choose_patches(&controls, &mut progress)?;
        let parts = same_patches(&patches, timesteps.len());
        let ideal = probe.ideal_errors(&controls, &parts, control_noises, &mut progress)?;
        let losses = probe.control_losses(&mut progress)?;
        let mut gains = Vec::with_capacity(timesteps.len());
        for (index, &timestep) in timesteps.iter().enumerate() {
            gains.push(gain(losses[index], mean(&ideal[index]), timestep)?);
        }
        let cut_error = probe.cut_error(&controls, &parts)?;
        let errors = probe.ideal_errors(&forgotten, &parts, noises, &mut progress)?;
        let level = |point: usize, index: usize| {
            let level = errors[index][point] * gains[index];
            check_range("a predicted loss", level, level > 0.0, "a positive number")
        };
        let levels = |point| {
            (0..timesteps.len())
                .map(|index| level(point, index))
                .collect()
        };
        let levels: Result<_> = (0..points).map(levels).collect();
        Ok(Self {
            levels: levels?,
            gains,
            timesteps,
            prediction_type: Some(config.prediction_type),
            patches,
            cut_error,
        })
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
    use crate::draws::{Stream, normal_noise};
    use crate::scheduler::{DdpmScheduler, Scales};
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

    /// The ideal denoiser of patches of three pixels, as a model.
    #[derive(Module, Debug)]
    struct Patches {
        retained: Param<Tensor<4>>,
        #[module(skip)]
        kind: PredictionType,
    }

    impl Denoiser<4> for Patches {
        type Condition = ();

        fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let scales = scheduler().scales(&[t[0].into()]).unwrap();
            let (shape, retained) = (noisy.dims(), flat(&self.retained.val()));
            let host = retained.to_data().try_to_vec().unwrap();
            // At the point `m/γ` without noise.
            let points = flat(&noisy) / scales.signal[0];
            let ideal = Ideal::new(&retained, points.clone());
            let form = IdealForm::patches();
            let forms = Forms::new(ideal, &form, &host, &shape[1..]).unwrap();
            let rows: Vec<usize> = (0..shape[0]).collect();
            let noise = points.zeros_like();
            let means = forms.posterior(Some(3));
            let mean = means
                .means(&rows, &noise, &scales.ratios())
                .unwrap()
                .remove(0);
            let clean = mean.reshape(shape);
            let noise = (noisy - clean.clone() * scales.signal[0]) / scales.noise[0];
            let scales = Scales {
                signal: vec![scales.signal[0]; shape[0]],
                noise: vec![scales.noise[0]; shape[0]],
            };
            scales.target(self.kind, &clean, &noise)
        }
    }

    fn images(seed: u64, rows: usize) -> Tensor<4> {
        let shape = [rows, 1, 6, 6];
        normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
    }

    /// Fits to the model of patches of three pixels, which chooses from patches of these sizes.
    fn fit_patches(
        kind: PredictionType,
        sizes: Vec<usize>,
        nearest: usize,
    ) -> Result<CounterfactualLoss> {
        let retained = images(1, 300);
        let model = Patches {
            retained: Param::from_tensor(retained.clone()),
            kind,
        };
        let data = CounterfactualData {
            retained: &retained,
            controls: &images(2, 40),
            control_condition: &(),
            forgotten: &images(3, 2),
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![200.0, 400.0, 600.0]),
            prediction_type: kind,
            form: IdealForm::Patches { sizes, nearest },
            ..CounterfactualConfig::default()
        };
        CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {})
    }

    /// A model that is the ideal denoiser of patches of a size: that size is found, and nothing is gained over it but the size
    /// of an error of the output that belongs to one of the clean point.
    #[test]
    fn the_patch_is_that_of_the_model_whatever_it_predicts() {
        let scale = |kind, t| {
            let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
            match kind {
                PredictionType::Epsilon => gamma / sigma,
                PredictionType::Sample => 1.0,
                PredictionType::Velocity => 1.0 / sigma,
                PredictionType::FlowVelocity => (gamma + sigma) / sigma,
            }
        };
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let predicted = fit_patches(kind, vec![1, 5, 3, 9], 300).unwrap();
            assert_eq!(predicted.patches(), [3, 3, 3], "{kind:?}");
            for (gain, &t) in predicted.gains().iter().zip(predicted.timesteps()) {
                let expected = f64::powi(scale(kind, t), 2);
                assert!((gain / expected - 1.0).abs() < 1e-3, "{kind:?} {gain}");
            }
        }
    }

    #[test]
    fn patches_are_saved_and_their_cut_is_measured() {
        let fit = |sizes, nearest| fit_patches(PredictionType::Sample, sizes, nearest);
        let predicted = fit(vec![3], 300).unwrap();
        assert_eq!(predicted.cut_error(), 0.0);
        let text = serde_json::to_string(&predicted).unwrap();
        let read: CounterfactualLoss = serde_json::from_str(&text).unwrap();
        assert_eq!(read.patches(), predicted.patches());

        let cut = fit(vec![3], 100).unwrap();
        assert!(cut.cut_error() > 0.01, "{}", cut.cut_error());
        for (sizes, nearest, expected) in [
            (vec![], 10, "the number of patch sizes is 0"),
            (vec![3, 4], 10, "a patch size is 4"),
            (vec![3], 0, "nearest is 0"),
        ] {
            let error = fit(sizes, nearest).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(IdealForm::patches().check(3).is_err());
    }

    /// Against the errors over the nearest images and over all, where the cut raises the one and lowers the other.
    #[test]
    fn the_cut_error_is_the_largest_change_over_the_grid_in_either_direction() {
        let (retained, controls) = (images(1, 300), images(2, 8));
        let flattened = flat(&retained);
        let host = flattened.to_data().try_to_vec().unwrap();
        let forms = |nearest| {
            let (sizes, ideal) = (vec![3, 9], Ideal::new(&flattened, flat(&controls)));
            let form = IdealForm::Patches { sizes, nearest };
            Forms::new(ideal, &form, &host, &[1, 6, 6]).unwrap()
        };
        let timesteps = [200.0, 400.0];
        let probe = Probe {
            model: Patches {
                retained: Param::from_tensor(retained.clone()),
                kind: PredictionType::Sample,
            },
            timesteps: &timesteps,
            scales: &scheduler().scales(&timesteps).unwrap(),
            data: CounterfactualData {
                retained: &retained,
                controls: &controls,
                control_condition: &(),
                forgotten: &controls,
            },
            config: &CounterfactualConfig::default(),
        };
        let parts = same_patches(&[3, 9], 2);
        let errors = |nearest| {
            let mut progress = Progress {
                tell: &mut |_| {},
                done: 0,
                total: 1,
            };
            let errors = probe.ideal_errors(&forms(nearest), &parts, 1, &mut progress);
            errors.unwrap()
        };
        let (cut, uncut) = (errors(20), errors(300));
        let change = |index: usize| (mean(&uncut[index]) / mean(&cut[index])).ln();
        let changes = [0, 1].map(change);
        assert!(-changes[0] > changes[1] && changes[1] > 0.0, "{changes:?}");
        let got = probe.cut_error(&forms(20), &parts).unwrap();
        assert!((got / -changes[0] - 1.0).abs() < 1e-4, "{got} {changes:?}");
    }

    /// Says what it is told, and a share of what it sees.
    #[derive(Module, Debug)]
    struct Told {
        #[module(skip)]
        share: f64,
    }

    impl Denoiser<2> for Told {
        type Condition = Tensor<2>;

        fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, told: &Tensor<2>) -> Tensor<2> {
            noisy * self.share + told.clone()
        }
    }

    #[test]
    fn a_fit_does_not_depend_on_the_micro_batch_and_its_progress_ends_at_one() {
        let fit = |micro_batch_size| {
            let mut shares = Vec::new();
            let data = CounterfactualData {
                retained: &points(1, 50),
                controls: &points(2, 10),
                control_condition: &points(4, 10),
                forgotten: &points(3, 2),
            };
            let config = CounterfactualConfig {
                noises: 8,
                control_noises: 2,
                micro_batch_size,
                ..CounterfactualConfig::default()
            };
            let model = Told { share: 0.5 };
            let progress = |share| shares.push(share);
            let fitted = CounterfactualLoss::fit(&model, &scheduler(), data, &config, progress);
            assert!(
                shares.windows(2).all(|pair| pair[0] < pair[1]),
                "{shares:?}"
            );
            assert_eq!(shares.last(), Some(&1.0));
            fitted.unwrap()
        };
        let [whole, parts] = [64, 3].map(fit);
        let pairs = whole.levels().iter().zip(parts.levels());
        for (whole, parts) in pairs.flat_map(|(whole, parts)| whole.iter().zip(parts)) {
            assert!((whole / parts - 1.0).abs() < 1e-5, "{whole} {parts}");
        }
    }

    #[test]
    fn a_condition_without_a_control_point_is_refused() {
        let data = CounterfactualData {
            retained: &points(1, 50),
            controls: &points(2, 10),
            control_condition: &points(4, 11),
            forgotten: &points(3, 2),
        };
        let (model, config) = (Told { share: 0.5 }, CounterfactualConfig::default());
        let error = CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("the control condition"), "{error}");
    }

    /// With the control points as the forgotten ones, and as many noises, the levels' mean is the model's loss on them.
    #[test]
    fn levels_are_scaled_to_the_models_loss_on_the_control_points() {
        let controls = beside(points(2, 10), 1e-3);
        let data = CounterfactualData {
            retained: &beside(points(1, 50), 0.0),
            controls: &controls,
            control_condition: &(controls.clone() + 3.0),
            forgotten: &controls,
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![300.0, 600.0]),
            noises: 4,
            control_noises: 4,
            prediction_type: PredictionType::Sample,
            ..CounterfactualConfig::default()
        };
        let model = Told { share: 0.0 };
        let fitted = CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap();
        for index in 0..2 {
            let levels: Vec<f64> = fitted.levels().iter().map(|levels| levels[index]).collect();
            // Wrong by 3 in each element.
            assert!((mean(&levels) / 9.0 - 1.0).abs() < 1e-5, "{levels:?}");
        }
    }

    #[test]
    fn a_process_of_few_timesteps_has_each_once_in_its_grid() {
        let few = DdpmScheduler::linear(4).unwrap();
        assert_eq!(default_timesteps(&few), [0.0, 1.0, 2.0, 3.0]);
    }
}
