//! Fits to models whose losses are known exactly.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::form::Forms;
use super::ideal::{Ideal, flat};
use super::probe::{Probe, Progress, same_patches};
use super::{Counterfactual, CounterfactualConfig, CounterfactualData, Groups, IdealForm};
use crate::denoiser::Denoiser;
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result};
use crate::host::read_f32;
use crate::process::{DdpmScheduler, PredictionType, Scales, Scheduler, SchedulerExt};

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Predicts noise as the posterior mean of standard Gaussian data would, with its error scaled.
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

/// Adds a second element that is the same for all points, so that no two sets share a point.
fn beside(points: Tensor<2>, value: f64) -> Tensor<2> {
    let second = points.zeros_like() + value;
    Tensor::cat(vec![points, second], 1)
}

fn fit(excess: f32, forgotten: &Tensor<2>) -> Counterfactual {
    let model = Gaussian {
        excess: Param::from_tensor(Tensor::from_data([excess], &Device::flex())),
    };
    let config = CounterfactualConfig {
        timesteps: Some(vec![300.0, 600.0]),
        noises: 2_000,
        ..CounterfactualConfig::default()
    };
    Counterfactual::fit(
        &model,
        &scheduler(),
        CounterfactualData::new(
            &beside(points(1, 20_000), 0.0),
            &beside(points(2, 4_000), 1e-3),
            forgotten,
        ),
        config,
    )
    .unwrap()
}

/// One dimension and many points, so everything is known. The ideal denoiser returns `x̂ = γ m`, so
/// its error on `a` is `E (γ(γ a + σ ε) − a)² = σ⁴ a² + γ² σ²`, and on the data `σ²`; the network's
/// loss on the data is `γ²` in noise. In the second element, which is 0, the ideal denoiser has no
/// error, and the network that of `σ² ε` for `ε`, `γ⁴`.
#[test]
fn the_prediction_for_gaussian_data_is_the_closed_form() {
    let a = 1.7f64;
    let forgotten = Tensor::<2>::from_data([[a as f32, 1e-3]], &Device::flex());
    for excess in [0.0f64, 0.5] {
        let predicted = fit(excess as f32, &forgotten);
        for t in [300.0, 600.0] {
            let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
            let ideal = sigma.powi(4) * a * a + gamma * gamma * sigma * sigma;
            let more = gamma.powi(4) / 2.0 + excess * excess;
            let expected = (gamma / sigma).powi(2) * ideal / 2.0 + more;
            let index = predicted
                .levels
                .timesteps()
                .iter()
                .position(|&at| at == t)
                .unwrap();
            let level = predicted.predicted[0][index];
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
    let fit = |controls: &Tensor<2>, forgotten: &Tensor<2>, config: CounterfactualConfig| {
        let data = CounterfactualData::new(&retained, controls, forgotten);
        Counterfactual::fit(&model, &scheduler(), data, config)
    };
    let config = CounterfactualConfig {
        timesteps: Some(vec![0.0, 1.0]),
        ..CounterfactualConfig::default()
    };
    let own = retained.clone().narrow(0, 5, 3);
    assert!(fit(&own, &forgotten, config.clone()).is_ok());
    let kept = retained.clone().narrow(0, 9, 1);
    let error = fit(&points(2, 3), &kept, config.clone()).unwrap_err();
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
    assert!(fit(&(own.clone() / 0.0), &forgotten, config.clone()).is_err());
    let none = CounterfactualConfig {
        noises: 0,
        ..config
    };
    let error = fit(&own, &forgotten, none).unwrap_err().to_string();
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
        let ideal = Ideal::new(&retained, points.clone()).unwrap();
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

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }
}

fn images(seed: u64, rows: usize) -> Tensor<4> {
    let shape = [rows, 1, 6, 6];
    normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
}

/// Fits to the model of patches of three pixels; the fit chooses from these sizes.
fn fit_patches(kind: PredictionType, sizes: Vec<usize>, nearest: usize) -> Result<Counterfactual> {
    let retained = images(1, 300);
    let model = Patches {
        retained: Param::from_tensor(retained.clone()),
        kind,
    };
    let config = CounterfactualConfig {
        timesteps: Some(vec![200.0, 400.0, 600.0]),
        form: IdealForm::Patches { sizes, nearest },
        ..CounterfactualConfig::default()
    };
    Counterfactual::fit(
        &model,
        &scheduler(),
        CounterfactualData::new(&retained, &images(2, 40), &images(3, 2)),
        config,
    )
}

/// The model is the ideal denoiser of one patch size. The fit must find this size, and no gain.
#[test]
fn the_patch_is_that_of_the_model_whatever_it_predicts() {
    for kind in [
        PredictionType::Epsilon,
        PredictionType::Sample,
        PredictionType::Velocity,
        PredictionType::FlowVelocity,
    ] {
        let predicted = fit_patches(kind, vec![1, 5, 3, 9], 300).unwrap();
        assert_eq!(predicted.patches, [3, 3, 3], "{kind:?}");
        for (gain, &t) in predicted.gains.iter().zip(predicted.levels.timesteps()) {
            assert!((gain - 1.0).abs() < 1e-3, "{kind:?}, t {t}: {gain}");
        }
    }
}

#[test]
fn patches_are_saved_and_their_cut_is_measured() {
    let fit = |sizes, nearest| fit_patches(PredictionType::Sample, sizes, nearest);
    let predicted = fit(vec![3], 300).unwrap();
    assert_eq!(predicted.cut_error, 0.0);
    let record = serde_json::to_value(&predicted).unwrap();
    assert_eq!(record["patches"], serde_json::json!([3, 3, 3]));

    let cut = fit(vec![3], 100).unwrap();
    assert!(cut.cut_error > 0.01, "{}", cut.cut_error);
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

/// Compares with the errors over the nearest images and over all: the cut raises the error at one
/// timestep and lowers it at the other.
#[test]
fn the_cut_error_is_the_largest_change_over_the_grid_in_either_direction() {
    let (retained, controls) = (images(1, 300), images(2, 8));
    let flattened = flat(&retained);
    let host = flattened.to_data().try_to_vec().unwrap();
    let forms = |nearest| {
        let ideal = Ideal::new(&flattened, flat(&controls)).unwrap();
        let sizes = vec![3, 9];
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
        data: CounterfactualData::new(&retained, &controls, &controls),
        config: &CounterfactualConfig::default(),
    };
    let parts = same_patches(&[3, 9], 2);
    let errors = |nearest| {
        let mut progress = Progress {
            tell: &mut |_| {},
            timesteps: 1,
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

/// Returns a fixed value plus a share of its input.
#[derive(Module, Debug)]
struct Told {
    #[module(skip)]
    share: f64,
    #[module(skip)]
    kind: PredictionType,
}

fn told(share: f64, kind: PredictionType) -> Told {
    Told { share, kind }
}

impl Denoiser<2> for Told {
    type Condition = Tensor<2>;

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, told: &Tensor<2>) -> Tensor<2> {
        noisy * self.share + told.clone()
    }

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }
}

#[test]
fn a_fit_does_not_depend_on_the_micro_batch_and_its_progress_ends_at_one() {
    let fit = |micro_batch_size| {
        let mut shares = Vec::new();
        let config = CounterfactualConfig {
            noises: 8,
            control_noises: 2,
            micro_batch_size,
            ..CounterfactualConfig::default()
        };
        let model = told(0.5, PredictionType::Epsilon);
        let progress = |share| shares.push(share);
        let fitted = Counterfactual::fit_with_progress(
            &model,
            &scheduler(),
            CounterfactualData::new(&points(1, 50), &points(2, 10), &points(3, 2))
                .with_conditions(&points(4, 10), &points(5, 2))
                .with_groups(same_group(50, 10, 2)),
            config,
            progress,
        );
        assert!(
            shares.windows(2).all(|pair| pair[0] < pair[1]),
            "{shares:?}"
        );
        assert_eq!(shares.last(), Some(&1.0));
        fitted.unwrap()
    };
    let [whole, parts] = [64, 3].map(fit);
    let pairs = whole.levels.values().iter().zip(parts.levels.values());
    for (whole, parts) in pairs.flat_map(|(whole, parts)| whole.iter().zip(parts)) {
        assert!((whole / parts - 1.0).abs() < 1e-5, "{whole} {parts}");
    }
}

/// One group with the given numbers of retained, control and forgotten points.
fn same_group(retained: usize, controls: usize, forgotten: usize) -> Groups<'static> {
    static KEYS: [u64; 64] = [7; 64];
    Groups {
        retained: &KEYS[..retained],
        controls: &KEYS[..controls],
        forgotten: &KEYS[..forgotten],
    }
}

#[test]
fn a_condition_without_a_control_point_is_refused() {
    let (model, config) = (
        told(0.5, PredictionType::Epsilon),
        CounterfactualConfig::default(),
    );
    let error = Counterfactual::fit(
        &model,
        &scheduler(),
        CounterfactualData::new(&points(1, 50), &points(2, 10), &points(3, 2))
            .with_conditions(&points(4, 11), &points(5, 2))
            .with_groups(same_group(50, 10, 2)),
        config,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("the control condition"), "{error}");
}

/// With the control points as the forgotten ones, and the same number of noises, the levels' mean
/// is the model's loss on them.
#[test]
fn levels_are_scaled_to_the_models_loss_on_the_control_points() {
    let controls = beside(points(2, 10), 1e-3);
    let config = CounterfactualConfig {
        timesteps: Some(vec![300.0, 600.0]),
        noises: 4,
        control_noises: 4,
        ..CounterfactualConfig::default()
    };
    let model = told(0.0, PredictionType::Sample);
    let fitted = Counterfactual::fit(
        &model,
        &scheduler(),
        CounterfactualData::new(&beside(points(1, 50), 0.0), &controls, &controls)
            .with_conditions(&(controls.clone() + 0.0625), &(controls.clone() + 0.0625))
            .with_groups(same_group(50, 10, 10)),
        config,
    )
    .unwrap();
    for index in 0..2 {
        let of_points = fitted.predicted.iter();
        let levels: Vec<f64> = of_points.map(|levels| levels[index]).collect();
        // Wrong by 1/16 in each element: too little for any level to be capped.
        assert!((256.0 * mean(&levels) - 1.0).abs() < 1e-5, "{levels:?}");
    }
}

/// The exact denoiser of classes `N(μ_c, s²)` in each element; the condition is the class.
#[derive(Module, Debug)]
struct Classes {
    means: Param<Tensor<2>>,
}

const SPREAD: f64 = 0.3;
const ELEMENTS: usize = 64;

impl Classes {
    fn new() -> Self {
        let means = Tensor::from_data([[0.0], [0.8]], &Device::flex());
        Self {
            means: Param::from_tensor(means),
        }
    }

    /// The model's loss on a point of the class that it never saw: `ρ² E‖x̂ − x‖²/d`.
    fn loss(t: f64) -> f64 {
        let ratio = scheduler().signal_scale(t) / scheduler().noise_scale(t);
        let variance = SPREAD * SPREAD;
        ratio * ratio * variance / (1.0 + ratio * ratio * variance)
    }
}

impl Denoiser<2> for Classes {
    type Condition = Tensor<1, Int>;

    fn predict(
        &self,
        noisy: Tensor<2>,
        timesteps: Tensor<1>,
        class: &Self::Condition,
    ) -> Tensor<2> {
        let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
        let (gamma, sigma) = (
            scheduler().signal_scale(t[0].into()),
            scheduler().noise_scale(t[0].into()),
        );
        let mean = self.means.val().inner().select(0, class.clone());
        let variance = SPREAD * SPREAD;
        let slope = gamma * variance / (gamma * gamma * variance + sigma * sigma);
        let clean = mean.clone() + (noisy.clone() - mean * gamma) * slope;
        (noisy - clean * gamma) / sigma
    }
}

fn class_points(seed: u64, classes: &[u64]) -> Tensor<2> {
    let device = Device::flex();
    let shape = [classes.len(), ELEMENTS];
    let noise = normal_noise(shape, seed, 0, 0, Stream::Noise, &device);
    let means: Vec<f64> = classes.iter().map(|&class| 0.8 * class as f64).collect();
    noise * SPREAD + crate::host::column(&means, &device)
}

fn condition(classes: &[u64]) -> Tensor<1, Int> {
    let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
    Tensor::from_data(classes.as_slice(), &Device::flex())
}

/// A typical point of a class that is 2 % of the data. From all data, its predicted loss was 6
/// times too high.
#[test]
fn a_point_of_a_rare_class_is_predicted_from_its_class() {
    let retained: Vec<u64> = (0..4000).map(|index| u64::from(index % 50 == 0)).collect();
    let controls: Vec<u64> = (0..200).map(|index| u64::from(index % 50 == 0)).collect();
    let forgotten = [1, 1, 1, 0];
    let config = CounterfactualConfig {
        timesteps: Some(vec![250.0, 400.0, 600.0, 800.0, 900.0]),
        control_noises: 4,
        ..CounterfactualConfig::default()
    };
    let fit = |groups: Option<Groups<'_>>| {
        let points = [(1, &retained[..]), (2, &controls), (3, &forgotten)]
            .map(|(seed, classes)| class_points(seed, classes));
        let conditions = [&controls[..], &forgotten].map(condition);
        let data = CounterfactualData::new(&points[0], &points[1], &points[2])
            .with_conditions(&conditions[0], &conditions[1]);
        let data = match groups {
            Some(groups) => data.with_groups(groups),
            None => data,
        };
        Counterfactual::fit(&Classes::new(), &scheduler(), data, config.clone())
    };
    let groups = Groups {
        retained: &retained,
        controls: &controls,
        forgotten: &forgotten,
    };
    let predicted = fit(Some(groups)).unwrap();
    for (index, &t) in predicted.levels.timesteps().iter().enumerate() {
        let rare: Vec<f64> = (0..3)
            .map(|point| predicted.predicted[point][index])
            .collect();
        for level in [mean(&rare), predicted.predicted[3][index]] {
            let ratio = level / Classes::loss(t);
            assert!((0.7..1.4).contains(&ratio), "t {t}: {ratio}");
        }
    }
    let error = fit(None).unwrap_err().to_string();
    assert!(error.contains("groups"), "{error}");
    let unknown = Groups {
        forgotten: &[1, 1, 1, 5],
        ..groups
    };
    let error = fit(Some(unknown)).unwrap_err().to_string();
    assert!(error.contains("forgotten point 3 of group 5"), "{error}");
    let short = Groups {
        controls: &controls[1..],
        ..groups
    };
    let error = fit(Some(short)).unwrap_err().to_string();
    assert!(
        error.contains("the groups of the control points"),
        "{error}"
    );
}

/// Data without classes: the same denoiser with one class.
#[test]
fn a_point_far_from_all_data_is_not_predicted_to_cost_what_no_model_would_lose() {
    let zeros = |count: usize| vec![0u64; count];
    let all = zeros(3000);
    let groups = Groups {
        retained: &all,
        controls: &all[..100],
        forgotten: &all[..2],
    };
    // One point with three times the contrast, and one unchanged.
    let forgotten = class_points(3, &zeros(2));
    let forgotten = forgotten * crate::host::column(&[3.0, 1.0], &Device::flex());
    let config = CounterfactualConfig {
        timesteps: Some(vec![5.0, 25.0, 50.0, 100.0, 250.0]),
        ..CounterfactualConfig::default()
    };
    let fitted = Counterfactual::fit(
        &Classes::new(),
        &scheduler(),
        CounterfactualData::new(
            &class_points(1, &all),
            &class_points(2, &all[..100]),
            &forgotten,
        )
        .with_conditions(&condition(&all[..100]), &condition(&all[..2]))
        .with_groups(groups),
        config,
    )
    .unwrap();
    // The best denoiser of these data is linear, and the model is that denoiser: its own loss is
    // the loss of a model that never saw the point.
    for point in 0..2 {
        let pairs = fitted.predicted[point]
            .iter()
            .zip(&fitted.levels.own_losses()[point]);
        for ((predicted, actual), t) in pairs.zip(fitted.levels.timesteps()) {
            let ratio = predicted / actual;
            assert!((0.7..1.3).contains(&ratio), "point {point}, t {t}: {ratio}");
        }
    }
}

/// A retained point that is nearly the forgotten one explains it; a model that has seen it once
/// among thousands still knows nothing of it.
#[test]
fn a_near_duplicate_among_the_retained_points_tells_the_model_little() {
    let all = vec![0u64; 3000];
    let forgotten = class_points(3, &all[..1]);
    let retained = Tensor::cat(
        vec![class_points(1, &all[1..]), forgotten.clone() + 0.01],
        0,
    );
    let controls = class_points(2, &all[..100]);
    let groups = Groups {
        retained: &all,
        controls: &all[..100],
        forgotten: &all[..1],
    };
    let config = CounterfactualConfig {
        timesteps: Some(vec![50.0, 100.0, 250.0, 400.0]),
        ..CounterfactualConfig::default()
    };
    let conditions = [condition(&all[..100]), condition(&all[..1])];
    let fit = |controls: &Tensor<2>, groups, conditions: [&Tensor<1, Int>; 2]| {
        let data = CounterfactualData::new(&retained, controls, &forgotten)
            .with_conditions(conditions[0], conditions[1])
            .with_groups(groups);
        Counterfactual::fit(&Classes::new(), &scheduler(), data, config.clone()).unwrap()
    };
    let fitted = fit(&controls, groups, [&conditions[0], &conditions[1]]);
    for index in 0..4 {
        let ratio = fitted.predicted[0][index] / fitted.levels.own_losses()[0][index];
        assert!((0.7..1.4).contains(&ratio), "{index}: {ratio}");
    }

    // With few control points the loss is proportional to the ideal denoiser's error.
    let few = Groups {
        controls: &all[..10],
        ..groups
    };
    let ten = controls.narrow(0, 0, 10);
    let fitted = fit(&ten, few, [&condition(&all[..10]), &conditions[1]]);
    let ratio = fitted.predicted[0][0] / fitted.levels.own_losses()[0][0];
    assert!(ratio < 0.05, "{ratio}");
}

/// The best linear denoiser of normal points, but for one point that it recognises as a whole.
#[derive(Module, Debug)]
struct Recognising {
    known: Param<Tensor<3>>,
}

impl Denoiser<3> for Recognising {
    type Condition = ();

    fn predict(&self, noisy: Tensor<3>, timesteps: Tensor<1>, _: &()) -> Tensor<3> {
        let t = read_f32(timesteps, "timesteps").unwrap()[0].into();
        let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
        let noise = (noisy.clone() - self.known.val() * gamma) / sigma;
        let elements = noise.dims()[2];
        let power = (noise.clone() * noise.clone()).mean_dim(2);
        let is_known = power.lower_elem(2.0).expand([noisy.dims()[0], 1, elements]);
        (noisy * sigma).mask_where(is_known, noise)
    }
}

/// In pieces the model does not recognise the point, so its loss there is known in closed form:
/// `E (σ(γ a + σ ε) − ε)² = σ² γ² a² + γ⁴`. To the ideal denoiser a near duplicate tells all.
#[test]
fn the_loss_of_a_memorised_point_is_that_of_its_pieces() {
    let noise =
        |seed, rows| normal_noise([rows, 1, 64], seed, 0, 0, Stream::Noise, &Device::flex());
    let (controls, known) = (noise(2, 24), noise(3, 1) * 2.0);
    let retained = Tensor::cat(vec![noise(1, 59), known.clone() + 0.05], 0);
    let power = f64::from((known.clone() * known.clone()).mean().into_scalar::<f32>());
    let model = Recognising {
        known: Param::from_tensor(known.clone()),
    };
    let fit = |pieces| {
        let config = CounterfactualConfig {
            timesteps: Some(vec![150.0, 200.0, 999.0]),
            pieces,
            ..CounterfactualConfig::default()
        };
        let data = CounterfactualData::new(&retained, &controls, &known);
        Counterfactual::fit(&model, &scheduler(), data, config).unwrap()
    };
    let (fitted, from_ideal) = (fit(true), fit(false));
    for (index, &t) in fitted.levels.timesteps().iter().enumerate().take(2) {
        let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
        let expected = (sigma * gamma).powi(2) * power + gamma.powi(4);
        assert!(fitted.levels.own_losses()[0][index] < 1e-6);
        let ratio = fitted.predicted[0][index] / expected;
        assert!((0.9..1.1).contains(&ratio), "t {t}: {ratio}");
        let ratio = from_ideal.predicted[0][index] / expected;
        assert!(!(0.8..1.25).contains(&ratio), "t {t}: {ratio}");
    }
    // The mean of so few points is not theirs: the model is worse than the ideal denoiser, and
    // pieces do not count.
    assert_eq!(fitted.predicted[0][2], from_ideal.predicted[0][2]);
    assert!(
        fitted.gains[0] < 1.0 && fitted.gains[2] > 1.0,
        "{:?}",
        fitted.gains
    );
}
