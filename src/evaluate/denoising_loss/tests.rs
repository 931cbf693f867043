use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};

use super::*;
use crate::data::PointLoader;
use crate::denoiser::FnDenoiser;
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig};

/// Returns half its input plus its condition.
#[derive(Module, Debug)]
struct Half {
    #[module(skip)]
    kind: PredictionType,
    /// The number of rows of each call.
    #[module(skip)]
    rows: Arc<Mutex<Vec<usize>>>,
}

fn half(kind: PredictionType) -> Half {
    Half {
        kind,
        rows: Default::default(),
    }
}

impl Denoiser<2> for Half {
    type Condition = Tensor<2>;

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, told: &Tensor<2>) -> Tensor<2> {
        self.rows.lock().unwrap().push(noisy.dims()[0]);
        noisy * 0.5 + told.clone()
    }

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }

    fn check_input(&self, shape: [usize; 2]) -> Result<()> {
        check_shape("the input", &[shape[0], 3], &shape, "give three elements")
    }
}

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn points(rows: usize) -> Tensor<2> {
    normal_noise([rows, 3], 1, 0, 0, Stream::Noise, &Device::flex())
}

fn told(rows: usize) -> Tensor<2> {
    normal_noise([rows, 3], 2, 0, 0, Stream::Noise, &Device::flex())
}

fn host(tensor: Tensor<2>) -> Vec<Vec<f64>> {
    let values: Vec<f64> = tensor.into_data().iter().collect();
    values.chunks(3).map(<[f64]>::to_vec).collect()
}

fn measured(loss: &DenoisingLoss, points: &Tensor<2>, told: &Tensor<2>) -> Vec<Vec<f64>> {
    let model = half(PredictionType::Velocity);
    loss.measure(&model, &scheduler(), points, told).unwrap()
}

/// Given noise is asked for row after row; its own gives the same as without.
#[test]
fn given_noise_takes_the_place_of_its_own() {
    let (clean, told, device) = (points(3), told(3), Device::flex());
    let loss = DenoisingLoss {
        noises: 2,
        first_point: 5,
        micro_batch_size: 4,
        ..DenoisingLoss::at([400.0])
    };
    let model = half(PredictionType::Epsilon);
    let with = |noise: &dyn Fn([usize; 2], u64) -> Tensor<2>| {
        let noise = |shape, first, _: &Device| noise(shape, first);
        loss.measure_with(&model, &scheduler(), &clean, &told, noise)
    };
    let own = |seed: u64| {
        move |shape, first| normal_noise(shape, seed, 0, first, Stream::Evaluation, &Device::flex())
    };
    let plain = loss.measure(&model, &scheduler(), &clean, &told).unwrap();
    assert_eq!(with(&own(0)).unwrap(), plain);
    assert_ne!(with(&own(1)).unwrap(), plain);

    let asked = RefCell::new(Vec::new());
    let zero = |shape: [usize; 2], first| {
        asked.borrow_mut().push((shape[0], first));
        Tensor::zeros(shape, &device)
    };
    let found = with(&zero).unwrap();
    assert_eq!(asked.take(), [(4, 10), (2, 14)]);
    // Without noise the output is half of γ x and what it is told, and the target is 0.
    let gamma = scheduler().signal_scale(400.0);
    let [x, c] = [clean.clone(), told.clone()].map(host);
    for (found, (x, c)) in found[0].iter().zip(x.iter().zip(&c)) {
        let squares = x.iter().zip(c).map(|(x, c)| (0.5 * gamma * x + c).powi(2));
        assert!((found - squares.sum::<f64>() / 3.0).abs() < 1e-5, "{found}");
    }
    let error = with(&|[rows, _], _| Tensor::zeros([rows, 2], &device)).unwrap_err();
    assert!(
        matches!(&error, Error::ShapeMismatch { .. }) && error.to_string().contains("noise"),
        "{error}"
    );
}

/// Written out in f64: noise `point · noises + n` of the seed, the same at every timestep.
#[test]
fn the_loss_is_that_of_its_definition_in_the_space_of_the_prediction() {
    const NOISES: usize = 3;
    let (clean, told) = (points(4), told(4));
    let loss = DenoisingLoss {
        noises: NOISES,
        seed: 7,
        ..DenoisingLoss::at([0.0, 400.0])
    };
    let noise = normal_noise([12, 3], 7, 0, 0, Stream::Evaluation, &Device::flex());
    let [x, c, noise] = [clean.clone(), told.clone(), noise].map(host);
    for kind in [
        PredictionType::Epsilon,
        PredictionType::Sample,
        PredictionType::Velocity,
        PredictionType::FlowVelocity,
    ] {
        let losses = loss.measure(&half(kind), &scheduler(), &clean, &told);
        for (losses, t) in losses.unwrap().iter().zip([0.0, 400.0]) {
            let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
            let squared = |point: usize, n: usize, i: usize| {
                let (x, e) = (x[point][i], noise[point * NOISES + n][i]);
                let target = match kind {
                    PredictionType::Epsilon => e,
                    PredictionType::Sample => x,
                    PredictionType::Velocity => gamma * e - sigma * x,
                    PredictionType::FlowVelocity => e - x,
                };
                (0.5 * (gamma * x + sigma * e) + c[point][i] - target).powi(2)
            };
            for (point, loss) in losses.iter().enumerate() {
                let all = (0..NOISES).flat_map(|n| (0..3).map(move |i| (n, i)));
                let sum: f64 = all.map(|(n, i)| squared(point, n, i)).sum();
                let expected = sum / (3 * NOISES) as f64;
                assert!((loss / expected - 1.0).abs() < 1e-5, "{kind:?} {point}");
            }
        }
    }
}

#[test]
fn losses_do_not_depend_on_what_is_run_at_a_time() {
    let (clean, told) = (points(10), told(10));
    let loss = DenoisingLoss {
        noises: 4,
        ..DenoisingLoss::at([10.0, 500.0])
    };
    let whole = measured(&loss, &clean, &told);
    for micro_batch_size in [1, 3, 7, usize::MAX] {
        let loss = DenoisingLoss {
            micro_batch_size,
            ..loss.clone()
        };
        assert_eq!(measured(&loss, &clean, &told), whole, "{micro_batch_size}");
    }
    // The second half by itself, starting at its own number.
    let loss = DenoisingLoss {
        first_point: 5,
        ..loss
    };
    let [clean, told] = [clean, told].map(|all| all.narrow(0, 5, 5));
    let half = measured(&loss, &clean, &told);
    assert_eq!(half[0], whole[0][5..]);
    assert_eq!(half[1], whole[1][5..]);
}

/// No more than one micro-batch is loaded or run at a time.
#[test]
fn points_are_loaded_a_micro_batch_at_a_time() {
    let (clean, asked) = (points(10), RefCell::new(Vec::new()));
    let loader = PointLoader::new([10, 3], |rows: Range<usize>| {
        asked.borrow_mut().push(rows.clone());
        clean.load(rows)
    });
    let loss = DenoisingLoss {
        micro_batch_size: 4,
        ..DenoisingLoss::at([500.0])
    };
    let model = half(PredictionType::Velocity);
    let losses = loss.measure(&model, &scheduler(), &loader, &told(10));
    assert_eq!(losses.unwrap(), measured(&loss, &clean, &told(10)));
    assert_eq!(*model.rows.lock().unwrap(), [4, 4, 2]);
    // The first read only finds the device: the model has no parameter.
    assert_eq!(asked.into_inner(), [0..1, 0..4, 4..8, 8..10]);
}

/// A model in training is measured as it will be used: dropout off, and nothing recorded for
/// gradients.
#[test]
fn the_model_runs_in_its_plain_form() {
    #[derive(Module, Debug)]
    struct Network {
        layer: Linear,
        dropout: Dropout,
    }
    let network = Network {
        layer: LinearConfig::new(3, 3).init(&Device::flex()),
        dropout: DropoutConfig::new(0.5).init(),
    };
    let recorded = Arc::new(Mutex::new(0));
    let seen = recorded.clone();
    let model = FnDenoiser::new(
        network,
        move |network: &Network, noisy: Tensor<2>, _, _: &()| {
            *seen.lock().unwrap() += usize::from(network.layer.weight.val().is_require_grad());
            network.dropout.forward(network.layer.forward(noisy))
        },
    );
    let loss = DenoisingLoss::at([500.0]);
    let clean = points(5);
    let plain = loss.measure(&model, &scheduler(), &clean, &()).unwrap();
    let trained = model.train();
    let again = loss.measure(&trained, &scheduler(), &clean, &()).unwrap();
    assert_eq!(plain, again);
    assert_eq!(*recorded.lock().unwrap(), 0);
}

#[test]
fn a_ruined_model_has_a_loss_that_is_not_finite() {
    let loss = DenoisingLoss::at([500.0]);
    let losses = measured(&loss, &points(2), &(told(2) / 0.0));
    assert!(losses[0].iter().all(|loss| !loss.is_finite()), "{losses:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_its_value() {
    let at = || DenoisingLoss::at([500.0]);
    let of = |loss: DenoisingLoss, points: Tensor<2>, rows: usize| {
        let model = half(PredictionType::Epsilon);
        let losses = loss.measure(&model, &scheduler(), &points, &told(rows));
        losses.unwrap_err()
    };
    let error = of(DenoisingLoss::at([500.0, 1000.0]), points(2), 2);
    assert!(
        matches!(
            error,
            Error::TimestepOutOfRange {
                timestep: 1000.0,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        of(DenoisingLoss::at([]), points(2), 2),
        Error::Empty { .. }
    ));
    let none = Tensor::zeros([0, 3], &Device::flex());
    assert!(matches!(of(at(), none, 0), Error::Empty { .. }));
    let error = of(at(), points(3), 2);
    assert!(
        error.to_string().contains("the condition has shape [2]"),
        "{error}"
    );
    let error = of(at(), Tensor::zeros([2, 4], &Device::flex()), 2);
    assert!(
        error.to_string().contains("the input has shape [2, 4]"),
        "{error}"
    );
    for bad in [f32::NAN, f32::INFINITY] {
        let torn = Tensor::cat(vec![points(70), points(1) * bad, points(1)], 0);
        let error = of(at(), torn, 72);
        assert!(
            matches!(error, Error::NonFinitePoint { point: 70, .. }),
            "{error}"
        );
    }
    for noises in [0, usize::MAX] {
        let error = of(DenoisingLoss { noises, ..at() }, points(2), 2);
        assert!(
            matches!(error, Error::OutOfRange { name: "noises", .. }),
            "{error}"
        );
    }
    let error = of(
        DenoisingLoss {
            micro_batch_size: 0,
            ..at()
        },
        points(2),
        2,
    );
    assert!(
        error.to_string().contains("micro_batch_size is 0"),
        "{error}"
    );
}

#[test]
fn a_scheduler_of_a_model_that_predicts_something_else_is_refused() {
    let config = SchedulerConfig {
        prediction_type: PredictionType::Velocity,
        ..SchedulerConfig::default()
    };
    let scheduler = DdpmScheduler::from_config(&config).unwrap();
    let measure =
        |kind| DenoisingLoss::at([500.0]).measure(&half(kind), &scheduler, &points(2), &told(2));
    assert!(measure(PredictionType::Velocity).is_ok());
    let error = measure(PredictionType::Epsilon).unwrap_err();
    assert!(
        matches!(
            error,
            Error::PredictionTypeDiffers {
                model: PredictionType::Epsilon,
                stated: PredictionType::Velocity,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_says_the_timesteps_and_nothing_unknown() {
    let read = |text: &str| serde_json::from_str::<DenoisingLoss>(text);
    let loss = read(r#"{"timesteps": [100, 250]}"#).unwrap();
    assert_eq!(loss, DenoisingLoss::at([100.0, 250.0]));
    assert!(read(r#"{"timesteps": [100], "noise": 2}"#).is_err());
    assert!(read("{}").is_err());
}
