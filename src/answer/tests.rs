use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int};

use super::posterior::{NoisyRow, References};
use super::*;
use crate::denoiser::{Denoiser, FnDenoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::Error;
use crate::host::read_f32;
use crate::process::{DdpmScheduler, FlowMatching, SchedulerExt};
use crate::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, Groups};

fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
}

fn host<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    read_f32(tensor.clone(), "a tensor").unwrap()
}

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn layer() -> Linear {
    LinearConfig::new(1, 1).init(&Device::flex())
}

/// Retained, control and forgotten points.
struct Points<const D: usize>([Tensor<D>; 3]);

impl<const D: usize> Points<D> {
    fn data(&self) -> CounterfactualData<'_, D> {
        let Points([retained, controls, forgotten]) = self;
        CounterfactualData::new(retained, controls, forgotten)
    }

    fn losses(&self, model: &impl Denoiser<D, Condition = ()>) -> Counterfactual {
        let config = CounterfactualConfig {
            noises: 8,
            timesteps: Some(vec![0.0, 100.0, 300.0, 600.0, 999.0]),
            ..CounterfactualConfig::default()
        };
        Counterfactual::fit(model, &scheduler(), self.data(), config).unwrap()
    }

    fn fit(
        &self,
        model: &impl Denoiser<D, Condition = ()>,
        losses: &Counterfactual,
        config: &PredictedAnswerConfig,
    ) -> Result<PredictedAnswer<D>> {
        PredictedAnswer::fit(model, &scheduler(), &self.data(), losses, config)
    }
}

/// Says half of what it is shown.
fn half<const D: usize>() -> impl Denoiser<D, Condition = ()> {
    FnDenoiser::new(layer(), |_: &Linear, noisy: Tensor<D>, _, _: &()| {
        noisy * 0.5
    })
}

/// What a test asks, without a teacher unless one is given.
fn asked<'a, const D: usize, C>(
    clean: &Tensor<D>,
    timesteps: &[f64],
    ids: &'a [u64],
    [condition, retain_condition]: [C; 2],
    (scheduler, frozen): (&'a dyn Scheduler, &'a Frozen<'a, D, C>),
) -> Asked<'a, D, C> {
    let noise = random(77, clean.dims());
    let scales = scheduler.scales(timesteps).unwrap();
    Asked {
        noisy: scales.noisy(clean, &noise),
        clean: clean.clone(),
        noise,
        timesteps: timesteps.to_vec(),
        scales,
        ids,
        condition,
        retained: random(78, clean.dims()),
        retain_condition,
        scheduler,
        prediction_type: PredictionType::Epsilon,
        frozen,
    }
}

fn silent<const D: usize, C>(noisy: Tensor<D>, _: &[f64], _: &C) -> Result<Tensor<D>> {
    Ok(noisy.zeros_like() + 123.0)
}

/// The ideal denoiser of patches of three is explained by that one alone, at every timestep.
#[test]
fn a_model_that_is_one_of_the_ideal_denoisers_is_fitted_as_such() {
    let points = Points([1, 2, 3].map(|seed| random(seed, [[60, 10, 2][seed as usize - 1], 1, 9])));
    let retained = References::new(&host(&points.0[0]), &[1, 9]);
    let say = move |_: &Linear, noisy: Tensor<3>, timesteps: Tensor<1>, _: &()| {
        let (values, mut said) = (host(&noisy), Vec::new());
        for (noisy, timestep) in values.chunks(9).zip(host(&timesteps)) {
            let timestep = f64::from(timestep);
            let (gamma, sigma) = (
                scheduler().signal_scale(timestep),
                scheduler().noise_scale(timestep),
            );
            let row = NoisyRow {
                references: &retained,
                noisy,
                clean: noisy,
                scales: [gamma, sigma],
                slope: 1.0,
                without_copies: false,
            };
            let means = row.means(&[3]);
            let pairs = noisy.iter().zip(&means[0]);
            said.extend(
                pairs.map(|(m, x)| ((f64::from(*m) - gamma * f64::from(*x)) / sigma) as f32),
            );
        }
        crate::host::tensor(said, noisy.dims(), &noisy.device())
    };
    let model = FnDenoiser::new(layer(), say);
    let config = PredictedAnswerConfig {
        patches: vec![1, 3, 5],
        pieces: false,
        ..PredictedAnswerConfig::default()
    };
    let answer = points.fit(&model, &points.losses(&model), &config).unwrap();
    let combination = answer.combination();
    assert_eq!(combination.retained(), 60);
    // With much noise all ideal denoisers are nearly the mean of the data.
    for at in 0..3 {
        assert!(combination.r_squared()[at] > 0.9999, "{combination:?}");
        let found = &combination.coefficients()[at];
        for (found, expected) in found.iter().zip([0.0, 1.0, 0.0, 0.0]) {
            assert!((found - expected).abs() < 0.02, "{at}: {combination:?}");
        }
    }
}

/// The posterior mean of standard Gaussian data is `γ m / (γ² + σ²)`; the answer's error points
/// along its error and has the predicted loss.
#[test]
fn the_answer_of_gaussian_data_is_that_of_the_posterior_with_the_predicted_loss() {
    let points = Points([
        random(1, [20_000, 2]),
        random(2, [200, 2]),
        random(3, [2, 2]) * 0.5,
    ]);
    let (model, scheduler) = (half(), scheduler());
    let mut losses = points.losses(&model);
    losses.predicted = vec![vec![25.0; 5], vec![36.0; 5]];
    let config = PredictedAnswerConfig {
        retained: 20_000,
        ..PredictedAnswerConfig::default()
    };
    let mut answer = points.fit(&model, &losses, &config).unwrap();
    assert!(answer.combination().patches().is_empty());
    let ids = [1, 0, 1];
    let clean = crate::host::select_rows(&points.0[2], &[1, 0, 1]);
    let timesteps = [300.0, 600.0, 450.0];
    let half = |noisy: Tensor<2>, _: &[f64], _: &()| Ok(noisy * 0.5);
    let asked = asked(&clean, &timesteps, &ids, [(); 2], (&scheduler, &half));
    let answers = host(&answer.answers(&asked).unwrap());
    let (own, noisy, clean) = (host(&asked.own_target()), host(&asked.noisy), host(&clean));
    for (row, wanted) in [36.0, 25.0, 36.0].into_iter().enumerate() {
        let (gamma, sigma) = (asked.scales.signal[row], asked.scales.noise[row]);
        let values = |all: &[f32]| [0, 1].map(|i| f64::from(all[row * 2 + i]));
        let (answer, own, m, a) = (
            values(&answers),
            values(&own),
            values(&noisy),
            values(&clean),
        );
        let error = [0, 1].map(|i| answer[i] - own[i]);
        let found = (error[0].powi(2) + error[1].powi(2)) / 2.0;
        assert!((found / wanted - 1.0).abs() < 1e-3, "{found} {wanted}");
        let ideal = [0, 1].map(|i| gamma * m[i] / (gamma * gamma + sigma * sigma) - a[i]);
        let norm = |v: [f64; 2]| v[0].hypot(v[1]);
        let inner = error[0] * ideal[0] + error[1] * ideal[1];
        assert!(
            inner.abs() / (norm(error) * norm(ideal)) > 0.99,
            "row {row}"
        );
    }
}

/// Point 1 is known no better than predicted; between the grid's timesteps losses are compared
/// there.
#[test]
fn a_point_that_the_model_does_not_know_keeps_the_models_own_answer() {
    let points = Points([random(1, [50, 4]), random(2, [10, 4]), random(3, [2, 4])]);
    let (model, scheduler) = (half(), scheduler());
    let mut losses = points.losses(&model);
    losses.predicted = vec![vec![1e3; 5], vec![1e-9; 5]];
    let config = PredictedAnswerConfig::default();
    let mut answer = points.fit(&model, &losses, &config).unwrap();
    let clean = crate::host::select_rows(&points.0[2], &[1, 0, 1]);
    let ids = [1, 0, 1];
    let asked = asked(
        &clean,
        &[150.0, 150.0, 600.0],
        &ids,
        [(); 2],
        (&scheduler, &silent),
    );
    let answers = host(&answer.answers(&asked).unwrap());
    assert!(Answer::<2>::uses_teacher(&answer));
    assert_eq!(answers[..4], [123.0; 4]);
    assert_eq!(answers[8..], [123.0; 4]);
    let own = host(&asked.own_target());
    let squares = (4..8).map(|i| f64::from(answers[i] - own[i]).powi(2));
    let found = squares.sum::<f64>() / 4.0;
    let wanted = losses.predicted[0][1];
    assert!((found / wanted - 1.0).abs() < 1e-3, "{found} {wanted}");
}

/// At the ends: a point that the model answers nearly as badly as predicted keeps the direction of
/// its error, one that is memorised does not, and both get the predicted loss.
#[test]
fn the_worse_a_point_is_known_the_more_of_the_models_own_error_is_kept() {
    let points = Points([random(1, [50, 8]), random(2, [10, 8]), random(3, [2, 8])]);
    let (model, scheduler) = (half(), scheduler());
    let mut losses = points.losses(&model);
    let own_losses = losses.levels.own_losses().to_vec();
    let of = |point: usize, factor: f64| own_losses[point].iter().map(move |own| factor * own);
    losses.predicted = vec![of(0, 1.0001).collect(), of(1, 1e4).collect()];
    let config = PredictedAnswerConfig::default();
    let mut answer = points.fit(&model, &losses, &config).unwrap();
    let (grid, ids) = (losses.levels.timesteps().to_vec(), [0, 1]);
    let teacher = |noisy: Tensor<2>, _: &[f64], _: &()| Ok(noisy.flip([1]) * 0.5 - 0.3);
    let asked = asked(
        &points.0[2],
        &[grid[2]; 2],
        &ids,
        [(); 2],
        (&scheduler, &teacher),
    );
    let target = asked.own_target();
    let error = host(&(answer.answers(&asked).unwrap() - target.clone()));
    let own = teacher(asked.noisy.clone(), &[], &()).unwrap() - target;
    let own = host(&own);
    let inner = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut cosines = Vec::new();
    for (point, (error, own)) in error.chunks(8).zip(own.chunks(8)).enumerate() {
        let found = inner(error, error) / 8.0;
        let wanted = losses.predicted[point][2];
        assert!((found / wanted - 1.0).abs() < 1e-3, "{found} {wanted}");
        cosines.push(inner(error, own) / (inner(error, error) * inner(own, own)).sqrt());
    }
    assert!(cosines[0] > 0.9999 && cosines[1] < 0.99, "{cosines:?}");
}

#[test]
fn a_combination_is_read_back_with_its_retained_points_and_no_others() {
    let points = Points([
        random(1, [50, 1, 4]),
        random(2, [10, 1, 4]),
        random(3, [1, 1, 4]),
    ]);
    let (model, scheduler, device) = (half(), scheduler(), Device::flex());
    let config = PredictedAnswerConfig {
        retained: 20,
        ..PredictedAnswerConfig::default()
    };
    let mut answer = points.fit(&model, &points.losses(&model), &config).unwrap();
    assert_eq!(answer.combination().retained(), 20);
    let text = serde_json::to_string(answer.combination()).unwrap();
    let read = |text: &str| serde_json::from_str::<Combination>(text);
    let combination = read(&text).unwrap();
    assert_eq!(combination.used(), answer.combination().used());
    let mut again = PredictedAnswer::new(combination.clone(), &points.0[0], &device).unwrap();
    let asked = asked(&points.0[2], &[400.0], &[0], [(); 2], (&scheduler, &silent));
    let [first, second] = [&mut answer, &mut again].map(|answer| answer.answers(&asked).unwrap());
    assert_eq!(host(&first), host(&second));
    let settings = |answer: &PredictedAnswer<3>| Answer::<3>::settings(answer);
    assert_eq!(settings(&answer), settings(&again));

    for other in [random(9, [50, 1, 4]), random(1, [10, 1, 4])] {
        let error = PredictedAnswer::new(combination.clone(), &other, &device).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
    let broken = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        read(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    assert!(broken("[1,3,5,7,11]", "[1,3,5,7]").contains("one for every patch width"));
    assert!(broken("[1,3,5,7,11]", "[1,3,5,7,8]").contains("a patch width is 8"));
    assert!(broken("\"groups\":[0]", "\"groups\":[7]").contains("of group 7"));
    assert!(broken("\"groups\":[0]", "\"groups\":[0,0]").contains("groups of the forgotten"));
    assert!(broken("\"groups\"", "\"shoes\":1,\"groups\"").contains("shoes"));
}

#[test]
fn points_are_explained_by_their_group() {
    let (retained, controls) = (random(1, [40, 3]), random(2, [6, 3]));
    let forgotten = random(3, [2, 3]);
    let keys = |count: usize| (0..count as u64).map(|row| row % 2).collect::<Vec<_>>();
    let (of_retained, of_controls) = (keys(40), keys(6));
    let model = FnDenoiser::new(
        layer(),
        |_: &Linear, noisy: Tensor<2>, _, _: &Tensor<1, Int>| noisy * 0.5,
    );
    let classes = |count: i64| Tensor::<1, Int>::arange(0..count, &Device::flex()) % 2;
    let conditions = [classes(6), classes(2)];
    let data = CounterfactualData::new(&retained, &controls, &forgotten)
        .with_conditions(&conditions[0], &conditions[1])
        .with_groups(Groups {
            retained: &of_retained,
            controls: &of_controls,
            forgotten: &[1, 0],
        });
    let losses = CounterfactualConfig {
        noises: 2,
        ..CounterfactualConfig::default()
    };
    let losses = Counterfactual::fit(&model, &scheduler(), data, losses).unwrap();
    let config = PredictedAnswerConfig {
        retained: 5,
        ..PredictedAnswerConfig::default()
    };
    let answer = PredictedAnswer::fit(&model, &scheduler(), &data, &losses, &config).unwrap();
    let combination = answer.combination();
    for (point, group) in [(0, 1), (1, 0)] {
        let used = &combination.used()[combination.group(point)];
        assert_eq!((used.group, used.rows.len()), (group, 5));
        assert!(used.rows.iter().all(|&row| of_retained[row] == group));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let points = Points([random(1, [50, 3]), random(2, [10, 3]), random(3, [1, 3])]);
    let model = half();
    let losses = points.losses(&model);
    let config = PredictedAnswerConfig::default;
    for (config, name) in [
        (
            PredictedAnswerConfig {
                retained: 0,
                ..config()
            },
            "retained",
        ),
        (
            PredictedAnswerConfig {
                controls: 0,
                ..config()
            },
            "controls",
        ),
        (
            PredictedAnswerConfig {
                ridge: 0.0,
                ..config()
            },
            "ridge",
        ),
        (
            PredictedAnswerConfig {
                patches: vec![3, 1],
                ..config()
            },
            "a patch width",
        ),
        (
            PredictedAnswerConfig {
                patches: vec![4],
                ..config()
            },
            "a patch width",
        ),
    ] {
        let error = points.fit(&model, &losses, &config).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfRange { name: found, .. } if *found == name),
            "{error}"
        );
    }
    let more = Points([random(1, [50, 3]), random(2, [10, 3]), random(3, [2, 3])]);
    let error = more.fit(&model, &losses, &config()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the prediction of losses has shape"),
        "{error}"
    );

    let mut answer = points.fit(&model, &losses, &config()).unwrap();
    let mut refused = |points: &Tensor<2>, ids: &[u64], scheduler: &dyn Scheduler, time: f64| {
        let asked = asked(points, &[time], ids, [(); 2], (scheduler, &silent));
        answer.answers(&asked).unwrap_err()
    };
    let forgotten = &points.0[2];
    let error = refused(forgotten, &[1], &scheduler(), 300.0);
    assert!(
        matches!(
            error,
            Error::UnknownPoint {
                id: 1,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    let error = refused(&random(3, [1, 4]), &[0], &scheduler(), 300.0);
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    let error = refused(
        forgotten,
        &[0],
        &DdpmScheduler::linear(2000).unwrap(),
        300.0,
    );
    assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    let error = refused(forgotten, &[0], &FlowMatching::default(), 0.5);
    assert!(matches!(error, Error::TimestepOutOfRange { .. }), "{error}");
}

/// The noise that explains the noisy point by the surrogate, in several prediction types.
#[test]
fn a_surrogate_explains_the_noisy_point() {
    let (clean, surrogates) = (random(1, [3, 1, 4]), random(2, [2, 1, 4]));
    let mut answer = Surrogate::new(surrogates.clone()).unwrap();
    let (scheduler, ids) = (scheduler(), [1, 0, 1]);
    let timesteps = [100.0, 500.0, 900.0];
    let mut asked = asked(&clean, &timesteps, &ids, [(); 2], (&scheduler, &silent));
    let (m, s) = (host(&asked.noisy), host(&surrogates));
    for kind in [PredictionType::Epsilon, PredictionType::Velocity] {
        asked.prediction_type = kind;
        let answers = host(&answer.answers(&asked).unwrap());
        for (index, &found) in answers.iter().enumerate() {
            let (row, element) = (index / 4, index % 4);
            let (gamma, sigma) = (asked.scales.signal[row], asked.scales.noise[row]);
            let s = f64::from(s[ids[row] as usize * 4 + element]);
            let noise = (f64::from(m[index]) - gamma * s) / sigma;
            let expected = match kind {
                PredictionType::Epsilon => noise,
                _ => gamma * noise - sigma * s,
            };
            let error = (f64::from(found) - expected).abs();
            assert!(error < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
        }
    }
    asked.ids = &[0, 1, 2];
    let error = Answer::<3>::answers(&mut answer, &asked).unwrap_err();
    assert!(
        matches!(
            error,
            Error::UnknownPoint {
                id: 2,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    let mut other = Surrogate::new(random(2, [2, 1, 5])).unwrap();
    let error = Answer::<3>::answers(&mut other, &asked).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    let error = Surrogate::new(surrogates / 0.0).unwrap_err();
    assert!(matches!(error, Error::NonFiniteData { .. }), "{error}");
}

/// The teacher is asked under the other condition, row by row.
#[test]
fn the_other_condition_is_that_of_the_id_or_of_the_retained_point() {
    let classes = |classes: &[i32]| Tensor::<1, Int>::from_data(classes, &Device::flex());
    let teacher = |noisy: Tensor<2>, _: &[f64], class: &Tensor<1, Int>| {
        Ok(noisy.zeros_like() + class.clone().float().unsqueeze_dim::<2>(1))
    };
    let (scheduler, ids) = (scheduler(), [1, 0, 1]);
    let conditions = [classes(&[1, 1, 1]), classes(&[7, 8, 9])];
    let asked = asked(
        &random(1, [3, 1]),
        &[1.0, 2.0, 3.0],
        &ids,
        conditions,
        (&scheduler, &teacher),
    );
    let mut given = OtherCondition::given(classes(&[4, 5]), 2).unwrap();
    assert_eq!(host(&given.answers(&asked).unwrap()), [5.0, 4.0, 5.0]);
    let mut of_retained = OtherCondition::of_retained().unwrap();
    assert_eq!(host(&of_retained.answers(&asked).unwrap()), [7.0, 8.0, 9.0]);
    let settings = |answer: &OtherCondition<Tensor<1, Int>>| Answer::<2, _>::settings(answer);
    let other = OtherCondition::given(classes(&[4, 6]), 2).unwrap();
    assert_ne!(settings(&given), settings(&other));

    let mut one = OtherCondition::given(classes(&[4]), 1).unwrap();
    let error = one.answers(&asked).unwrap_err();
    assert!(
        matches!(error, Error::UnknownPoint { id: 1, .. }),
        "{error}"
    );
    let error = OtherCondition::given(classes(&[4]), 2).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    assert!(OtherCondition::<()>::of_retained().is_err());
    assert!(OtherCondition::given((), 1).is_err());
}

/// The model recognises one point as a whole, and denoises all else by its own lights.
#[test]
fn a_model_that_recognises_a_point_answers_pieces_of_it_as_it_does_all_else() {
    let points =
        Points([1, 2, 3].map(|seed| random(seed, [[60, 10, 1][seed as usize - 1], 1, 12])));
    let memorised = host(&points.0[2]);
    let say = |noisy: &[f32], gamma: f64, sigma: f64| -> Vec<f32> {
        let distance: f64 = (noisy.iter().zip(&memorised))
            .map(|(m, a)| (f64::from(*m) - gamma * f64::from(*a)).powi(2))
            .sum();
        let is_known = distance < 2.0 * 12.0 * sigma * sigma;
        let values = noisy.iter().zip(&memorised).map(|(m, a)| {
            let m = f64::from(*m);
            let known = (m - gamma * f64::from(*a)) / sigma;
            (if is_known { known } else { 0.7 * m }) as f32
        });
        values.collect()
    };
    let said = |noisy: Tensor<3>, timesteps: &[f64]| {
        let values = host(&noisy);
        let rows = values
            .chunks(12)
            .zip(timesteps)
            .flat_map(|(noisy, &timestep)| {
                let scales = scheduler().scales(&[timestep]).unwrap();
                say(noisy, scales.signal[0], scales.noise[0])
            });
        crate::host::tensor(rows.collect(), noisy.dims(), &noisy.device())
    };
    let model = FnDenoiser::new(
        layer(),
        move |_: &Linear, noisy: Tensor<3>, t: Tensor<1>, _: &()| {
            let timesteps: Vec<f64> = host(&t).into_iter().map(f64::from).collect();
            said(noisy, &timesteps)
        },
    );
    let mut losses = points.losses(&model);
    losses.predicted = vec![vec![4.0; 5]];
    let config = PredictedAnswerConfig {
        patches: Vec::new(),
        ..PredictedAnswerConfig::default()
    };
    let mut answer = points.fit(&model, &losses, &config).unwrap();
    let combination = answer.combination();
    let [of_whole, of_pieces] = combination.coefficients()[1][..] else {
        panic!("two predictors");
    };
    assert!(
        of_whole.abs() < 0.05 && (of_pieces - 1.0).abs() < 0.05,
        "{combination:?}"
    );
    // With much noise the ideal denoiser knows more than the model, and no piece is shown.
    assert_eq!(combination.coefficients()[4][1], 0.0);
    assert!(combination.r_squared()[4] < 0.9, "{combination:?}");
    let shown = std::cell::Cell::new(0);
    let teacher = |noisy: Tensor<3>, timesteps: &[f64], _: &()| {
        shown.set(shown.get() + timesteps.len());
        Ok(said(noisy, timesteps))
    };
    let scheduler = scheduler();
    let at = |timestep| {
        let frozen = (&scheduler as &dyn Scheduler, &teacher as &Frozen<'_, 3, ()>);
        asked(&points.0[2], timestep, &[0], [(); 2], frozen)
    };
    answer.answers(&at(&[999.0])).unwrap();
    assert_eq!(shown.replace(0), 1);
    let asked = at(&[100.0]);
    answer.answers(&asked).unwrap();
    assert_eq!(shown.get(), 1 + 3);
    let error = host(&(answer.answers(&asked).unwrap() - asked.own_target()));
    let unknown = host(&(asked.noisy.clone() * 0.7 - asked.own_target()));
    let inner = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine =
        inner(&error, &unknown) / (inner(&error, &error) * inner(&unknown, &unknown)).sqrt();
    assert!(cosine > 0.99, "{cosine}");
}
