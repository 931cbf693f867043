//! Runs that teach answers: `objective::Answers` in the trainer.

use siss::answer::{Answer, Asked, PredictedAnswer, PredictedAnswerConfig, Surrogate};
use siss::burn::module::Module;
use siss::burn::nn::{Initializer, Linear, LinearConfig};
use siss::burn::tensor::Tensor;
use siss::clipper::ConstantScale;
use siss::draws::{Draws, Stream, TimestepSampling, normal_noise};
use siss::objective::{Answers, NaiveDeletion};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, Levels};
use siss::trainer::SissTrainerBuilder;
use siss::{DdpmScheduler, Denoiser, Result, SissTrainer, Steering};
use siss_support::small::{Mlp, batch, device, host, parameters};

fn process() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn builder() -> SissTrainerBuilder<Mlp, 2> {
    SissTrainer::builder(Mlp::new(3, &device()), process())
}

fn surrogate() -> Answers<2> {
    let points = batch(8, 0.5, 9, &device()).retain().clone();
    Answers::new(Surrogate::new(points).unwrap())
}

fn random(seed: u64, rows: usize) -> Tensor<2> {
    normal_noise([rows, 3], seed, 0, 0, Stream::Evaluation, &device())
}

/// A bounded target, which is learnt as far as the model can.
#[test]
fn the_model_comes_to_give_the_answer() {
    let mut trainer = builder()
        .loss(surrogate())
        .clipper(ConstantScale::new(1.0).unwrap())
        .learning_rate(1e-2)
        .timestep_sampling(TimestepSampling::Window {
            low: 300.0,
            high: 900.0,
        })
        .build()
        .unwrap();
    let mut error = || {
        let report = trainer.step(batch(8, 2.0, 4, &device())).unwrap();
        report.forget.unwrap().mean_squared_error
    };
    let mut mean = |steps: usize| (0..steps).map(|_| error()).sum::<f64>() / steps as f64;
    let first = mean(10);
    mean(400);
    let last = mean(50);
    assert!(last < 0.5 * first, "{first} {last}");
}

#[test]
fn a_predicted_answer_is_taught_to_a_quarter_of_the_batch() {
    let (retained, controls) = (random(1, 200) * 0.5, random(2, 40) * 0.5);
    let forgotten = batch(8, 2.0, 4, &device()).forget().clone();
    let model = Mlp::new(3, &device());
    let data = CounterfactualData::new(&retained, &controls, &forgotten);
    let losses = CounterfactualConfig {
        noises: 4,
        ..CounterfactualConfig::default()
    };
    let losses = Counterfactual::fit(&model, &process(), data, losses).unwrap();
    let config = PredictedAnswerConfig::default();
    let answer = PredictedAnswer::fit(&model, &process(), &data, &losses, &config).unwrap();
    let objective = Answers::new(answer);
    let clipper = objective.clipper();
    let mut trainer = builder().loss(objective).clipper(clipper).build().unwrap();
    for _ in 0..3 {
        let report = trainer.step(batch(8, 2.0, 4, &device())).unwrap();
        let forget = report.forget.unwrap();
        assert_eq!((forget.rows, forget.weights.mean), (2, 4.0));
        assert!(!forget.weights.ascends);
        assert!((report.norms.forget_weight - 1.0).abs() < 1e-9);
        assert!(report.coefficients.forget <= 1.0);
    }
}

/// Answers 0.
#[derive(Module, Debug)]
struct Silent {
    layer: Linear,
}

impl Denoiser<2> for Silent {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.layer.forward(noisy)
    }
}

/// The point's own target with the other sign.
#[derive(Debug)]
struct Reversed;

impl Answer<2, ()> for Reversed {
    fn name(&self) -> &'static str {
        "reversed"
    }

    fn answers(&mut self, asked: &Asked<'_, 2, ()>) -> Result<Tensor<2>> {
        Ok(-asked.own_target())
    }
}

/// A model that answers 0 has a quarter of the loss of the answer −ε at a point with the noise ε.
/// So the difference of −2 ε from it is made `√(1 + 3 · 3/4)` times as large.
#[test]
fn an_answer_is_stronger_while_the_model_loses_less_than_it() {
    let zeros = LinearConfig::new(3, 3).with_initializer(Initializer::Zeros);
    let model = Silent {
        layer: zeros.init(&device()),
    };
    let mut trainer = SissTrainer::builder(model, process())
        .loss(Answers::new(Reversed))
        .build()
        .unwrap();
    let batch = || batch(8, 2.0, 4, &device());
    let draws = trainer.draw(&batch()).unwrap();
    let noise = host(draws.numbers_of(Stream::ForgetNoise).unwrap().clone());
    let power = |noise: &[f64]| noise.iter().map(|it| it.powi(2)).sum::<f64>();
    let wanted = (2.0 * 3.25f64.sqrt() - 1.0).powi(2) * power(&noise[..6]) / 6.0;
    let report = trainer.step_with(&batch(), &draws).unwrap();
    let found = report.forget.unwrap().mean_squared_error;
    assert!((found / wanted - 1.0).abs() < 1e-4, "{found} {wanted}");
}

/// The model starts where it is to stay, so only the forgotten point moves it at first.
#[test]
fn retained_points_keep_their_answers() {
    let objective = || surrogate().keeping();
    let refused = builder().loss(objective()).build().unwrap_err().to_string();
    let has = |part| refused.contains(part);
    assert!(has("0 at first") && has("constant:0.05"), "{refused}");

    let mut trainer = builder()
        .loss(objective())
        .clipper(ConstantScale::new(0.1).unwrap())
        .learning_rate(1e-2)
        .timestep_sampling(TimestepSampling::Window {
            low: 300.0,
            high: 600.0,
        })
        .build()
        .unwrap();
    let mut errors = |steps: usize| {
        let mut sums = [0.0; 2];
        for _ in 0..steps {
            let report = trainer.step(batch(8, 2.0, 4, &device())).unwrap();
            assert_eq!(report.coefficients.forget, 0.1);
            let sides = [report.retain, report.forget].map(Option::unwrap);
            for (sum, side) in sums.iter_mut().zip(sides) {
                *sum += side.mean_squared_error / steps as f64;
            }
        }
        sums
    };
    assert_eq!(errors(1)[0], 0.0);
    let early = errors(10);
    errors(400);
    let late = errors(50);
    assert!(late[1] < 0.75 * early[1], "{early:?} {late:?}");
    assert!(late[0] < 0.05 * early[1], "{early:?} {late:?}");
}

/// What other objectives draw stays as it is, and a run follows from its seed.
#[test]
fn answers_have_draws_of_their_own() {
    let draws = |builder: SissTrainerBuilder<Mlp, 2>| -> Draws<2> {
        let trainer = builder.build().unwrap();
        trainer.draw(&batch(8, 2.0, 4, &device())).unwrap()
    };
    let (own, other) = (
        draws(builder().loss(surrogate())),
        draws(builder().loss(NaiveDeletion)),
    );
    assert_eq!(own.timesteps(), other.timesteps());
    assert_eq!(host(own.noise().clone()), host(other.noise().clone()));
    let of_term = own.timesteps_of(Stream::ForgetTimesteps).unwrap();
    assert_ne!(of_term, own.timesteps());

    let run = || {
        let mut trainer = builder().loss(surrogate()).build().unwrap();
        for _ in 0..3 {
            trainer.step(batch(8, 2.0, 4, &device())).unwrap();
        }
        parameters(&trainer.into_model())
    };
    assert_eq!(run(), run());
}

/// Steering looks at the loss of the point itself: far above its level the term is switched off.
#[test]
fn a_steered_run_reports_the_points_own_loss() {
    let steered = |level: f64| {
        let levels = Levels::new(vec![0.0, 999.0], vec![vec![level; 2]; 8]).unwrap();
        let mut trainer = builder()
            .loss(surrogate())
            .steering(Steering::new(levels))
            .build()
            .unwrap();
        let report = trainer.step(batch(8, 2.0, 4, &device())).unwrap();
        report.forget.unwrap().steering.unwrap()
    };
    assert_eq!(steered(1e-6), 0.0);
    assert!(steered(1e6) > 0.9);
}
