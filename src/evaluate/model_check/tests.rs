//! The model check.

use super::*;
use crate::draws::{Stream, normal_noise};
use crate::host::column;
use crate::process::{DdpmScheduler, PredictionType, SchedulerExt};
use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution};

/// The ideal denoiser of some points: the output of a model that has memorised them.
#[derive(Module, Debug)]
struct Memory {
    points: Param<Tensor<4>>,
    #[module(skip)]
    kind: PredictionType,
}

impl Memory {
    fn of(points: &Tensor<4>) -> Self {
        let (points, kind) = (Param::from_tensor(points.clone()), PredictionType::Epsilon);
        Self { points, kind }
    }
}

impl Denoiser<4> for Memory {
    type Condition = ();

    fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
        let times: Vec<f64> = timesteps.into_data().iter().collect();
        let scales = scheduler().scales(&times).unwrap();
        let (gamma, sigma) = (scales.signal[0], scales.noise[0]);
        let points: Tensor<2> = self.points.val().inner().flatten(1, 3);
        let rows: Tensor<2> = noisy.clone().flatten(1, 3);
        let products = rows.matmul(points.clone().transpose()) * gamma;
        let norms = squared_norms(points.clone()).unsqueeze_dim::<2>(0) * (gamma * gamma / 2.0);
        let weights = burn::tensor::activation::softmax((products - norms) / (sigma * sigma), 1);
        let clean = weights.matmul(points).reshape(noisy.dims());
        let noise = (noisy - clean.clone() * gamma) / sigma;
        scales.target(self.kind, &clean, &noise)
    }

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }
}

/// Always predicts 0.
#[derive(Module, Debug)]
struct Silent {
    factor: Param<Tensor<1>>,
}

impl Denoiser<4> for Silent {
    type Condition = ();

    fn predict(&self, noisy: Tensor<4>, _: Tensor<1>, _: &()) -> Tensor<4> {
        noisy * 0.0
    }
}

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

/// Random images from −1 to 1, whose three channels differ in brightness.
fn pictures(count: usize, seed: u64) -> Tensor<4> {
    let device = Device::flex();
    let noise: Tensor<4> = normal_noise([count, 3, 6, 6], seed, 0, 0, Stream::Noise, &device);
    let brightness: Tensor<4> = column::<4>(&[0.5, -0.3, -0.9], &device).reshape([1, 3, 1, 1]);
    (noise * 0.4 + brightness).clamp(-1.0, 1.0)
}

fn check(range: [f64; 2]) -> ModelCheck {
    ModelCheck {
        range: Some(range),
        ..ModelCheck::default()
    }
}

fn report(
    model: &impl Denoiser<4, Condition = ()>,
    points: &Tensor<4>,
    range: [f64; 2],
) -> ModelReport {
    check(range)
        .run(model, &scheduler(), points, &())
        .unwrap()
        .unwrap()
}

fn better(report: &ModelReport) -> Preprocessing {
    match report.finding {
        Some(ModelFinding::OtherPreprocessing { better, .. }) => better,
        _ => panic!("{report:?}"),
    }
}

#[test]
fn a_model_knows_its_data_under_the_preprocessing_of_its_training_alone() {
    let data = pictures(40, 1);
    let ranges = [[-1.0, 1.0], [0.0, 1.0], [-0.5, 0.5], [-2.3, 1.8]];
    let given = |range| Preprocessing {
        range,
        is_inverted: false,
        are_channels_reversed: false,
    };
    for trained in ranges {
        let model = Memory::of(&given(trained).of(data.clone(), [-1.0, 1.0]));
        let report = report(
            &model,
            &given(trained).of(data.clone(), [-1.0, 1.0]),
            trained,
        );
        assert_eq!(report.finding, None, "{report:?}");
        assert!(report.loss < 0.5 * report.trivial_loss, "{report:?}");
    }
    for trained in &ranges[..3] {
        let model = Memory::of(&given(*trained).of(data.clone(), [-1.0, 1.0]));
        for other in ranges.iter().filter(|range| *range != trained) {
            let report = report(&model, &given(*other).of(data.clone(), [-1.0, 1.0]), *other);
            assert_eq!(better(&report), given(*trained), "{report:?}");
            let text = report.finding.unwrap().to_string();
            let range = format!("values from {} to {}", trained[0], trained[1]);
            assert!(text.contains(&range), "{text}");
        }
    }
}

#[test]
fn inverted_values_and_reversed_channels_are_recognised() {
    let data = pictures(40, 1);
    for (is_inverted, are_channels_reversed) in [(true, false), (false, true)] {
        let trained = Preprocessing {
            range: [-1.0, 1.0],
            is_inverted,
            are_channels_reversed,
        };
        let model = Memory::of(&trained.of(data.clone(), [-1.0, 1.0]));
        assert_eq!(better(&report(&model, &data, [-1.0, 1.0])), trained);
    }
    // Mean 0 and variance 1.
    let (centre, variance) = moments(&data).unwrap();
    let model = Memory::of(&((data.clone() - centre) / variance.sqrt()));
    let found = better(&report(&model, &data, [-1.0, 1.0])).range;
    let expected = [-1.0, 1.0].map(|end| (end - centre) / variance.sqrt());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.2, "{found} {expected}");
    }
}

#[test]
fn what_was_not_trained_is_told_from_what_was_trained_on_something_else() {
    let data = pictures(40, 1);
    let silent = Silent {
        factor: Param::from_tensor(Tensor::zeros([1], &Device::flex())),
    };
    let found = report(&silent, &data, [-1.0, 1.0]);
    assert!(
        matches!(found.finding, Some(ModelFinding::Untrained { .. })),
        "{found:?}"
    );
    assert!((found.loss - 1.0).abs() < 0.1, "{found:?}");
    let chance = Distribution::Uniform(-1.0, 1.0);
    let others = Tensor::<4>::random([40, 3, 6, 6], chance, &Device::flex());
    let found = report(&Memory::of(&others), &data, [-1.0, 1.0]);
    assert!(
        matches!(found.finding, Some(ModelFinding::KnowsLittle { .. })),
        "{found:?}"
    );
}

#[test]
fn the_losses_are_those_of_the_noise_for_every_kind_of_prediction() {
    let data = pictures(40, 1);
    let losses = [
        PredictionType::Epsilon,
        PredictionType::Sample,
        PredictionType::Velocity,
        PredictionType::FlowVelocity,
    ]
    .map(|kind| {
        let check = ModelCheck {
            micro_batch_size: 5,
            ..ModelCheck::default()
        };
        // Other images than the model has memorised, so that there is a loss.
        let model = Memory {
            kind,
            ..Memory::of(&pictures(40, 2))
        };
        check
            .run(&model, &scheduler(), &data, &())
            .unwrap()
            .unwrap()
            .loss
    });
    assert!(losses[0] > 0.1);
    for loss in losses {
        assert!((loss / losses[0] - 1.0).abs() < 1e-3, "{losses:?}");
    }
}

#[test]
fn as_many_points_as_wanted_are_examined_spread_over_the_set() {
    let data = pictures(40, 1);
    let model = Memory::of(&pictures(40, 2));
    let of = |check: &ModelCheck, points: &Tensor<4>| check.run(&model, &scheduler(), points, &());
    let four = ModelCheck {
        points: 4,
        ..ModelCheck::default()
    };
    let chosen = select_rows(&data, &[0, 10, 20, 30]);
    assert_eq!(
        of(&four, &data).unwrap(),
        of(&ModelCheck::default(), &chosen).unwrap()
    );
    let none = ModelCheck { points: 0, ..four };
    let error = of(&none, &data).unwrap_err().to_string();
    assert!(error.contains("points is 0"), "{error}");
}

#[test]
fn a_scheduler_of_a_model_that_predicts_something_else_is_refused() {
    let data = pictures(4, 1);
    let config = crate::process::SchedulerConfig {
        prediction_type: PredictionType::Sample,
        ..Default::default()
    };
    let other = DdpmScheduler::from_config(&config).unwrap();
    let error = ModelCheck::default().run(&Memory::of(&data), &other, &data, &());
    assert!(
        matches!(error, Err(Error::PredictionTypeDiffers { .. })),
        "{error:?}"
    );
}

#[test]
fn where_nothing_can_be_said_nothing_is() {
    let data = pictures(4, 1);
    let model = Memory::of(&data);
    let same = data.zeros_like();
    assert_eq!(
        ModelCheck::default()
            .run(&model, &scheduler(), &same, &())
            .unwrap(),
        None
    );
    let few = DdpmScheduler::linear(2).unwrap();
    assert_eq!(
        ModelCheck::default()
            .run(
                &Silent {
                    factor: Param::from_tensor(Tensor::zeros([1], &Device::flex())),
                },
                &few,
                &data,
                &()
            )
            .unwrap(),
        None
    );
    let none = check([1.0, 1.0]).run(&model, &scheduler(), &data, &());
    assert!(
        none.unwrap_err()
            .to_string()
            .contains("the range of the data")
    );
    let none = ModelCheck::default().run(&model, &scheduler(), &(data / 0.0), &());
    assert!(matches!(none.unwrap_err(), Error::NonFiniteData { .. }));
}

/// A model that has memorised a point and its mirror image, one that has memorised only the
/// point, and a symmetric point.
#[test]
fn a_mirror_image_that_is_known_as_well_is_told() {
    let (retained, controls) = (pictures(60, 1), pictures(32, 2));
    let (point, symmetric) = (pictures(1, 3), pictures(1, 4));
    let symmetric = (symmetric.clone() + symmetric.flip([3])) / 2.0;
    let forgotten = Tensor::cat(vec![symmetric.clone(), point.clone()], 0);
    let known = |memory: Vec<Tensor<4>>| {
        let model = Memory::of(&Tensor::cat([vec![retained.clone()], memory].concat(), 0));
        let (forget, control) = ((&forgotten, &()), (&controls, &()));
        let known = ModelCheck::default().known_mirrors(&model, &scheduler(), forget, control);
        known
            .unwrap()
            .iter()
            .map(|known| known.forget)
            .collect::<Vec<_>>()
    };
    let mirror = point.clone().flip([3]);
    assert_eq!(known(vec![point.clone(), symmetric.clone(), mirror]), [1]);
    assert_eq!(known(vec![point, symmetric]), [0; 0]);
    assert_eq!(known(vec![]), [0; 0]);
}

#[test]
fn a_loss_that_falls_by_half_is_refused_and_others_are_not() {
    assert!(refuse_relearning(&[0.1, 0.02], &[0.12, 0.0101]).is_ok());
    let error = refuse_relearning(&[0.1, 0.02], &[0.12, 0.0099]).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("from 0.0200 to 0.0099") && error.contains("range"),
        "{error}"
    );
}
