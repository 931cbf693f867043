//! The guarantees of the trainer: micro-batches, reproducibility, refusals, steps that change
//! nothing.

use std::sync::{Arc, Mutex};

use burn::module::{Module, ParamGroup};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::tensor::Tensor;
use siss::clipper::{ConstantScale, RescaleToNorm};
use siss::draws::{Draws, Stream, TimestepSampling, normal_noise};
use siss::objective::{LossInputs, LossTerm, NegGrad, Siss, SissNoIs};
use siss::observer::{JsonLog, StepOutcome};
use siss::process::{SchedulerConfig, SchedulerExt};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, HardStop, Levels};
use siss::trainer::SissTrainerBuilder;
use siss::*;
use siss_support::small::*;
use siss_support::way::Way;

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn builder(seed: u64) -> SissTrainerBuilder<Mlp, 2> {
    SissTrainer::builder(Mlp::new(seed, &device()), scheduler()).seed(seed)
}

/// 64 rows at once and 4 × 16 rows give the same step, within the rounding of f32.
#[test]
fn micro_batches_change_nothing() {
    let batch = batch(64, 0.5, 3, &device());
    let step = |micro_batch: usize| {
        let mut trainer = builder(1).micro_batch_size(micro_batch).build().unwrap();
        let draws = trainer.draw(&batch).unwrap();
        let gradients = trainer.gradients(&batch, &draws).unwrap();
        let combined = flat(trainer.model(), &gradients.combine(trainer.model(), 1.0));
        let report = trainer.step_with(&batch, &draws).unwrap();
        (combined, report)
    };
    let (whole, whole_report) = step(64);
    for micro_batch in [16, 7, 1] {
        let (parts, report) = step(micro_batch);
        let error = norm(&difference(&whole, &parts)) / norm(&whole);
        assert!(error < 1e-6, "micro-batch {micro_batch}: {error}");
        assert!((report.coefficients.forget / whole_report.coefficients.forget - 1.0).abs() < 1e-5);
        let loss = |report: &StepReport| report.forget.as_ref().unwrap().loss;
        assert!((loss(&report) / loss(&whole_report) - 1.0).abs() < 1e-6);
    }
}

/// A rehearsal runs rows of the next step, and leaves it bit for bit what it was; ReTrack has a
/// state that its terms change.
#[test]
fn a_rehearsal_runs_the_first_rows_and_changes_nothing() {
    let batch = batch(64, 0.5, 3, &device());
    for method in [Method::Siss, Method::SissNoIs, Method::ReTrack] {
        let build = || with_method(builder(1), method, batch.retain()).build();
        let (mut plain, mut rehearsed) = (build().unwrap(), build().unwrap());
        let seen = [1, 7, 1000].map(|rows| rehearsed.rehearse(&batch, rows).unwrap());
        let expected = plain.step(batch.clone()).unwrap();
        assert_eq!(rehearsed.step(batch.clone()).unwrap(), expected);
        let rows = [&expected.retain, &expected.forget].map(|term| term.as_ref().unwrap().rows);
        let (of_side, of_step) = (rows[0].max(rows[1]), rows[0] + rows[1]);
        for (seen, rows) in seen.into_iter().zip([1, 7, of_side]) {
            assert_eq!(
                (seen.rows, seen.of_side, seen.of_step),
                (rows, of_side, of_step)
            );
        }
    }
    let other = batch.clone().to_device(&burn::tensor::Device::flex());
    assert!(builder(1).build().unwrap().rehearse(&other, 1).is_ok());
}

/// The reported norms and losses agree with those of the weighted loss, computed by autodiff in one
/// graph.
#[test]
fn gradients_are_those_of_the_weighted_loss() {
    let device = device();
    let batch = batch(16, 0.5, 4, &device);
    let mut trainer = builder(2).thin_below(0.0).build().unwrap();
    let draws = trainer.draw(&batch).unwrap();
    let gradients = trainer.gradients(&batch, &draws).unwrap();

    let process = scheduler();
    let inputs = LossInputs::new(&batch, &draws, &process, PredictionType::Epsilon).unwrap();
    let terms = Siss.terms(&inputs).unwrap();
    for (term, got, report) in [
        (
            terms.retain.unwrap(),
            &gradients.retain,
            gradients.report.retain.as_ref().unwrap(),
        ),
        (
            terms.forget.unwrap(),
            &gradients.forget,
            gradients.report.forget.as_ref().unwrap(),
        ),
    ] {
        let model = trainer.model();
        let timesteps: Vec<f32> = term.timesteps.iter().map(|&t| t as f32).collect();
        let prediction = model.predict(
            term.noisy.clone(),
            Tensor::from_data(timesteps.as_slice(), &device),
            &(),
        );
        let error = prediction - term.target.clone();
        let rows: Tensor<1> = (error.clone() * error).sum_dim(1).squeeze_dim(1);
        let weights: Vec<f32> = term.weights.iter().map(|&weight| weight as f32).collect();
        let loss = (rows * Tensor::from_data(weights.as_slice(), &device)).sum() / 16.0;
        let value = loss.clone().into_scalar::<f32>().abs();
        let expected = burn::optim::GradientsParams::from_grads(loss.backward(), model);
        let (got, expected) = (flat(model, got), flat(model, &expected));
        assert!(norm(&difference(&got, &expected)) < 1e-5 * norm(&expected));
        assert!((report.loss / f64::from(value) - 1.0).abs() < 1e-5);
    }
    let norms = gradients.report.norms;
    let (retain, forget) = (
        flat(trainer.model(), &gradients.retain),
        flat(trainer.model(), &gradients.forget),
    );
    assert!((norms.retain / norm(&retain) - 1.0).abs() < 1e-6);
    assert!((norms.forget / norm(&forget) - 1.0).abs() < 1e-6);
    let inner: f64 = retain.iter().zip(&forget).map(|(r, f)| r * f).sum();
    assert!((norms.inner_product - inner).abs() < 1e-6 * norms.retain * norms.forget);
}

#[test]
fn the_forget_gradient_is_scaled_to_a_tenth_and_the_whole_is_clipped() {
    let batch = batch(32, 0.5, 5, &device());
    let mut trainer = builder(3).max_grad_norm(Some(0.5)).build().unwrap();
    let draws = trainer.draw(&batch).unwrap();
    let gradients = trainer.gradients(&batch, &draws).unwrap();
    let report = gradients.report.clone();
    let ratio = report.coefficients.forget * report.norms.forget / report.norms.retain;
    assert!((ratio - 0.1).abs() < 1e-12);
    assert!(
        report.combined_norm > 0.5,
        "the test needs a gradient to clip"
    );
    let clipped = gradients.combine(trainer.model(), report.clip_factor);
    assert!((norm(&flat(trainer.model(), &clipped)) - 0.5).abs() < 1e-5);
}

/// Without momentum, a step is the clipped gradient times the step's learning rate.
#[test]
fn a_step_is_as_long_as_the_clip_and_its_learning_rate_say() {
    let points = batch(32, 0.5, 5, &device());
    let falling = LinearLrSchedulerConfig::new(0.1, 0.01, 3).init().unwrap();
    let mut trainer = builder(3)
        .optimizer(SgdConfig::new().init())
        .learning_rate(falling)
        .max_grad_norm(Some(0.5))
        .build()
        .unwrap();
    for rate in [0.1, 0.07, 0.04] {
        let before = parameters(trainer.model());
        let report = trainer.step(points.clone()).unwrap();
        assert!((report.learning_rate - rate).abs() < 1e-12, "{report}");
        assert!(
            report.clip_factor < 1.0,
            "the test needs a gradient to clip"
        );
        let length = norm(&difference(&parameters(trainer.model()), &before));
        assert!((length / (rate * 0.5) - 1.0).abs() < 1e-4, "{length}");
    }
}

#[test]
fn the_reported_weights_are_those_before_thinning() {
    let points = batch(16, 0.4, 9, &device());
    let terms = |threshold: f64| {
        let mut trainer = builder(5).thin_below(threshold).build().unwrap();
        let report = trainer.step(points.clone()).unwrap();
        [report.retain.unwrap(), report.forget.unwrap()]
    };
    for (whole, thinned) in terms(0.0).iter().zip(terms(4.0)) {
        assert!(thinned.rows < whole.rows);
        assert_eq!(thinned.weights, whole.weights);
    }
}

/// At `τ = 1/λ = 2` each row survives on exactly one side: it is run once.
#[test]
fn at_the_bernoulli_limit_every_row_is_run_once() {
    let batch = batch(16, 0.4, 9, &device());
    let mut trainer = builder(5).thin_below(2.0).build().unwrap();
    for _ in 0..20 {
        let report = trainer.step(batch.clone()).unwrap();
        assert_eq!(report.rows_per_sample(), 1.0, "{report}");
    }
}

/// With a forget scale of 0, SISS (No IS) is naive deletion.
#[test]
fn without_a_forget_scale_no_is_is_naive_deletion() {
    let batch = batch(16, 0.5, 6, &device());
    let run = |method: Method| {
        let mut trainer = builder(4)
            .method(method)
            .clipper(ConstantScale::new(0.0).unwrap())
            .build()
            .unwrap();
        for _ in 0..3 {
            trainer.step(batch.clone()).unwrap();
        }
        parameters(&trainer.into_model())
    };
    assert_eq!(run(Method::SissNoIs), run(Method::NaiveDeletion));
    assert_ne!(
        run(Method::NaiveDeletion),
        parameters(&Mlp::new(4, &device()))
    );
}

#[test]
fn the_same_seed_gives_the_same_model_and_another_seed_another() {
    let batch = batch(16, 0.5, 7, &device());
    let run = |seed: u64| {
        let mut trainer = SissTrainer::builder(Mlp::new(1, &device()), scheduler())
            .seed(seed)
            .build()
            .unwrap();
        for _ in 0..4 {
            trainer.step(batch.clone()).unwrap();
        }
        parameters(&trainer.into_model())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_step_is_a_function_of_its_draws() {
    let batch = batch(16, 0.5, 8, &device());
    let (mut stepped, mut replayed) = (
        builder(9).build().unwrap(),
        builder(9).seed(1234).build().unwrap(),
    );
    for _ in 0..3 {
        let draws = stepped.draw(&batch).unwrap();
        let report = stepped.step(batch.clone()).unwrap();
        assert_eq!(report, replayed.step_with(&batch, &draws).unwrap());
    }
    assert_eq!(stepped.next_step(), 3);
    assert_eq!(
        parameters(&stepped.into_model()),
        parameters(&replayed.into_model())
    );
}

#[test]
fn the_model_comes_back_plain() {
    let model = Mlp::new(1, &device());
    let mut trainer = SissTrainer::builder(model, scheduler()).build().unwrap();
    trainer.step(batch(4, 0.5, 1, &device())).unwrap();
    let model = trainer.into_model();
    let output = model.predict(
        Tensor::zeros([1, 3], &device()),
        Tensor::zeros([1], &device()),
        &(),
    );
    assert!(!output.is_autodiff());
}

/// A model whose output is NaN from its second step on.
#[derive(Module, Debug)]
struct Explodes {
    linear: Linear,
    #[module(skip)]
    limit: f64,
}

impl Denoiser<2> for Explodes {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let output = self.linear.forward(noisy);
        if timesteps.max().into_scalar::<f32>() > self.limit as f32 {
            output / 0.0
        } else {
            output
        }
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_says_so() {
    let device = device();
    let model = Explodes {
        linear: LinearConfig::new(3, 3).init(&device),
        limit: 500.0,
    };
    let mut trainer = SissTrainer::builder(model, scheduler())
        .optimizer(SgdConfig::new().init())
        .build()
        .unwrap();
    let batch = batch(2, 0.5, 1, &device);
    let draws = |t: f64| {
        let noise = normal_noise([2, 3], 1, 0, 0, Stream::Noise, &device);
        Draws::new(vec![t; 2], noise, vec![false, true], 0.5).unwrap()
    };
    trainer.step_with(&batch, &draws(100.0)).unwrap();
    let before = parameters(trainer.model());
    let report = trainer.step_with(&batch, &draws(900.0)).unwrap();
    assert_eq!(report.outcome, StepOutcome::SkippedNonFinite);
    assert!(report.to_string().contains("SKIPPED"), "{report}");
    assert_eq!(parameters(trainer.model()), before);
    let report = trainer.step_with(&batch, &draws(100.0)).unwrap();
    assert_eq!((report.outcome, report.step), (StepOutcome::Applied, 2));
    assert_ne!(parameters(trainer.model()), before);
}

#[test]
fn data_that_is_not_finite_is_an_error_that_names_the_row_and_costs_no_step() {
    let device = device();
    for way in Way::methods() {
        for bad in [f32::NAN, f32::INFINITY] {
            let retained = Tensor::<2>::ones([12, 3], &device);
            let mut trainer = with_method(builder(1), way, &retained).build().unwrap();
            let before = parameters(trainer.model());
            let dirty = || Tensor::<2>::from_data([[0.0, 0.0, 0.0], [0.0, bad, 0.0]], &device);
            let batch = UnlearningBatch::new(dirty(), dirty()).unwrap();
            let batch = batch.with_forget_ids(vec![0, 1]).unwrap();
            let error = trainer.step(batch).unwrap_err();
            assert!(
                matches!(error, Error::NonFiniteData { row: 1, .. }),
                "{way}: {error}"
            );
            assert_eq!(parameters(trainer.model()), before);
            assert_eq!(trainer.next_step(), 0);
        }
    }
}

#[derive(Module, Debug)]
struct Normalised {
    linear: Linear,
    norm: BatchNorm,
}

impl Denoiser<2> for Normalised {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.norm.forward::<2>(self.linear.forward(noisy))
    }
}

#[derive(Module, Debug)]
struct Dropping {
    linear: Linear,
    dropout: Dropout,
}

impl Denoiser<2> for Dropping {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.dropout.forward(self.linear.forward(noisy))
    }
}

/// A model that mixes the rows of a batch itself, without a layer whose name would reveal it.
#[derive(Module, Debug)]
struct Centred {
    linear: Linear,
}

impl Denoiser<2> for Centred {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        let output = self.linear.forward(noisy);
        output.clone() - output.mean_dim(0)
    }
}

fn first_step<M: Denoiser<2, Condition = ()>>(model: M) -> Result<StepReport> {
    let mut trainer = SissTrainer::builder(model, scheduler()).build().unwrap();
    trainer.step(batch(8, 0.5, 1, &device()))
}

#[test]
fn models_that_mix_rows_or_roll_dice_are_refused() {
    let device = device();
    let linear = || LinearConfig::new(3, 3).init(&device);
    let norm = || BatchNormConfig::new(3).init(&device);
    let error = first_step(Normalised {
        linear: linear(),
        norm: norm(),
    })
    .unwrap_err();
    assert!(
        matches!(error, Error::BatchDependentModel { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("`norm (BatchNorm)` is active"),
        "{error}"
    );

    let error = first_step(Centred { linear: linear() }).unwrap_err();
    assert!(
        matches!(error, Error::BatchDependentModel { .. }),
        "{error}"
    );

    let dropping = |prob| Dropping {
        linear: linear(),
        dropout: DropoutConfig::new(prob).init(),
    };
    let error = first_step(dropping(0.3)).unwrap_err();
    assert!(matches!(error, Error::StochasticModel { .. }), "{error}");
    assert!(error.to_string().contains("dropout (Dropout)"), "{error}");
    assert!(first_step(dropping(0.0)).is_ok());

    let frozen = Normalised {
        linear: linear(),
        norm: norm().freeze(),
    };
    assert!(first_step(frozen).is_ok());
    let error = first_step(Centred {
        linear: linear().freeze(),
    })
    .unwrap_err();
    assert!(matches!(error, Error::NoTrainableParameters), "{error}");
}

#[test]
fn frozen_parameters_stay() {
    let device = device();
    let mut model = Normalised {
        linear: LinearConfig::new(3, 3).init(&device),
        norm: BatchNormConfig::new(3).init(&device),
    };
    model.norm = model.norm.freeze();
    let before = parameters(&model);
    let mut trainer = SissTrainer::builder(model, scheduler()).build().unwrap();
    trainer.step(batch(8, 0.5, 1, &device)).unwrap();
    let after = parameters(&trainer.into_model());
    // 9 + 3 numbers of the linear layer change; gain and offset of the frozen norm do not.
    assert!(
        before[..12]
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after)
    );
    assert_eq!(before[12..], after[12..]);
}

#[derive(Module, Debug)]
struct WrongShape {
    linear: Linear,
}

impl Denoiser<2> for WrongShape {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.linear.forward(noisy)
    }
}

#[test]
fn an_output_of_another_shape_is_a_typed_error() {
    let model = WrongShape {
        linear: LinearConfig::new(3, 2).init(&device()),
    };
    let error = first_step(model).unwrap_err();
    let Error::ShapeMismatch { what, got, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((what, got[1]), ("the model's prediction", 2));
}

#[test]
fn a_clipper_that_the_objective_cannot_use_is_refused_by_name() {
    let error = builder(1).loss(NegGrad).build().unwrap_err().to_string();
    assert!(
        error.contains("FractionOfRetain")
            && error.contains("NegGrad")
            && error.contains("RescaleToNorm"),
        "{error}"
    );
    assert!(builder(1).method(Method::NegGrad).build().is_ok());
    let boxed: Box<dyn GradientClipper> = Box::new(RescaleToNorm::new(5.0).unwrap());
    assert!(builder(1).loss(NegGrad).clipper(boxed).build().is_ok());
}

#[test]
fn settings_out_of_range_are_refused_with_their_value() {
    let refused = |builder: SissTrainerBuilder<Mlp, 2>| builder.build().unwrap_err().to_string();
    assert!(refused(builder(1).thin_below(-1.0)).contains("thin_below is -1"));
    assert!(refused(builder(1).thin_below(f64::NAN)).contains("thin_below is NaN"));
    assert!(refused(builder(1).micro_batch_size(0)).contains("micro_batch_size is 0"));
    assert!(refused(builder(1).max_grad_norm(Some(0.0))).contains("max_grad_norm is 0"));
    assert!(refused(builder(1).learning_rate(-1e-3)).contains("learning_rate is -0.001"));
    assert!(refused(builder(1).ema(1.0)).contains("ema_decay is 1"));
    let timesteps = |sampling| builder(1).timestep_sampling(sampling);
    let window = |low, high| timesteps(TimestepSampling::Window { low, high });
    assert!(refused(window(250.0, 1001.0)).contains("timestep 1000"));
    assert!(refused(window(-1.0, 10.0)).contains("timestep -1"));
    assert!(refused(window(10.2, 10.9)).contains("high end is 10.9"));
    assert!(refused(window(f64::NAN, 10.0)).contains("high end is 10"));
    assert!(refused(timesteps(TimestepSampling::Fixed(3.5))).contains("timestep 3.5"));
    assert!(window(250.0, 1000.0).build().is_ok());
    let group = ParamGroup::from_predicate("third");
    let message = refused(builder(1).train_only(group));
    assert!(
        message.contains("none of the model's 4") && message.contains("`first.weight`"),
        "{message}"
    );
    assert!(refused(builder(1).method(Method::ReTrack)).contains("retained_points"));
}

/// The other parameters stay the same bit for bit, and a model that was trained in part can be
/// trained as a whole again.
#[test]
fn chosen_parameters_alone_are_trained() {
    let device = device();
    let points = batch(16, 0.5, 3, &device);
    let second = builder(1).train_only_matching(r"^second\.").unwrap();
    let mut trainer = second.ema(0.9).build().unwrap();
    let before = parameters(trainer.model());
    for _ in 0..3 {
        let report = trainer.step(points.clone()).unwrap();
        assert_eq!(report.outcome, StepOutcome::Applied);
    }
    let average = trainer.ema_model().unwrap();
    let model = trainer.into_model();
    // The first layer has 4 × 8 weights and 8 biases.
    let (after, first) = (parameters(&model), 40);
    assert_eq!(before[..first], after[..first]);
    assert!(
        before[first..]
            .iter()
            .zip(&after[first..])
            .all(|(before, after)| before != after)
    );
    for model in [model, average] {
        let mut whole = SissTrainer::builder(model, scheduler()).build().unwrap();
        whole.step(points.clone()).unwrap();
        assert_ne!(parameters(whole.model())[..first], before[..first]);
    }
}

#[test]
fn a_pattern_that_is_no_regular_expression_is_refused_with_its_text() {
    let error = builder(1).train_only_matching("second[").unwrap_err();
    assert!(
        matches!(&error, Error::InvalidPattern { pattern, .. } if pattern == "second["),
        "{error}"
    );
}

/// A parameter frozen by the user stays frozen.
#[test]
fn train_only_does_not_wake_what_was_frozen() {
    let device = device();
    let mut model = Mlp::new(1, &device);
    model = model.set_require_grad_group(ParamGroup::from_path("second.bias"), false);
    let group = ParamGroup::from_predicate("second");
    let mut trainer = SissTrainer::builder(model, scheduler())
        .train_only(group)
        .build()
        .unwrap();
    let before = parameters(trainer.model());
    trainer.step(batch(8, 0.5, 3, &device)).unwrap();
    let after = parameters(&trainer.into_model());
    assert_eq!(before[64..], after[64..]);
    assert_ne!(before[40..64], after[40..64]);
}

/// The average has its own weights: the run equals one without an average, and a skipped step does
/// not change it.
#[test]
fn a_moving_average_is_kept_apart_from_the_weights() {
    let device = device();
    let points = batch(16, 0.5, 3, &device);
    let mut plain = builder(1).build().unwrap();
    let mut averaged = builder(1).ema(0.5).build().unwrap();
    assert!(plain.ema_model().is_none());
    let mut expected = parameters(averaged.model());
    for step in 1..=4 {
        plain.step(points.clone()).unwrap();
        averaged.step(points.clone()).unwrap();
        let decay = f64::min(0.5, f64::from(1 + step) / f64::from(10 + step));
        for (average, weight) in expected.iter_mut().zip(parameters(averaged.model())) {
            *average = decay * *average + (1.0 - decay) * weight;
        }
    }
    assert_eq!(parameters(plain.model()), parameters(averaged.model()));
    let average = parameters(&averaged.ema_model().unwrap());
    assert!(norm(&difference(&average, &expected)) < 1e-6 * norm(&expected));
    assert_ne!(average, parameters(averaged.model()));
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    let device = device();
    let points = batch(16, 0.5, 3, &device);
    let gradients = |enabled| {
        let mut trainer = builder(1).gradient_checkpointing(enabled).build().unwrap();
        let draws = trainer.draw(&points).unwrap();
        let gradients = trainer.gradients(&points, &draws).unwrap();
        let flattened = flat(trainer.model(), &gradients.combine(trainer.model(), 1.0));
        // This also holds in the following steps, when the optimiser has replaced the parameters.
        for _ in 0..3 {
            trainer.step(points.clone()).unwrap();
        }
        (flattened, parameters(&trainer.into_model()))
    };
    assert_eq!(gradients(true), gradients(false));
}

#[test]
fn a_window_and_a_fixed_timestep_hold_for_both_terms() {
    let device = device();
    let points = batch(64, 0.5, 3, &device)
        .with_forget_ids((0..64).collect())
        .unwrap();
    for (sampling, low, high) in [
        (
            TimestepSampling::Window {
                low: 250.0,
                high: 253.0,
            },
            250.0,
            252.0,
        ),
        (TimestepSampling::Fixed(999.0), 999.0, 999.0),
    ] {
        let trainer = builder(1)
            .method(Method::ReTrack)
            .retained_points(points.retain().clone())
            .timestep_sampling(sampling)
            .build()
            .unwrap();
        let draws = trainer.draw(&points).unwrap();
        let own = draws.timesteps_of(Stream::ForgetTimesteps).unwrap();
        for timesteps in [draws.timesteps(), own] {
            let (least, most) = timesteps
                .iter()
                .fold((f64::MAX, f64::MIN), |(least, most), &t| {
                    (least.min(t), most.max(t))
                });
            assert_eq!((least, most), (low, high), "{sampling}");
            assert!(timesteps.iter().all(|t| t.fract() == 0.0));
        }
    }
}

#[test]
fn draws_that_do_not_fit_are_refused() {
    let device = device();
    let mut trainer = builder(1).build().unwrap();
    let batch = batch(2, 0.5, 1, &device);
    let draws = |t: f64, rows: usize| {
        let noise = normal_noise([rows, 3], 1, 0, 0, Stream::Noise, &device);
        Draws::new(vec![t; rows], noise, vec![false; rows], 0.5).unwrap()
    };
    let error = trainer.step_with(&batch, &draws(1000.0, 2)).unwrap_err();
    assert!(matches!(error, Error::TimestepOutOfRange { .. }), "{error}");
    let error = trainer.step_with(&batch, &draws(10.0, 3)).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    assert_eq!(trainer.next_step(), 0);
}

#[derive(Debug)]
struct Fails;

impl Observer for Fails {
    fn observe(&mut self, _: &StepReport) -> Result<()> {
        Err(Error::Observer("no space left".into()))
    }
}

#[test]
fn observers_see_every_step_and_their_failure_loses_nothing() {
    let lines = Arc::new(Mutex::new(JsonLog::new(Vec::new())));
    let mut trainer = builder(1)
        .observer(Fails)
        .observer(lines.clone())
        .build()
        .unwrap();
    let before = parameters(trainer.model());
    let error = trainer.step(batch(4, 0.5, 1, &device())).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(trainer.next_step(), 1);
    assert_ne!(parameters(trainer.model()), before);
    drop(trainer);
    let lines = Arc::try_unwrap(lines)
        .unwrap()
        .into_inner()
        .unwrap()
        .into_inner();
    assert_eq!(String::from_utf8(lines).unwrap().lines().count(), 1);
}

/// Conditions stay with their rows: a model that only adds its condition receives each row's own.
#[derive(Module, Debug)]
struct Shifted {
    linear: Linear,
}

impl Denoiser<2> for Shifted {
    type Condition = (Tensor<2>, ());

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, condition: &Self::Condition) -> Tensor<2> {
        self.linear.forward(noisy) + condition.0.clone()
    }
}

/// Rows are thinned and run in micro-batches. With the condition equal to the target, and a linear
/// layer whose weights are 0, every loss is zero only if each row received its own condition.
#[test]
fn each_row_meets_its_own_condition_on_both_sides() {
    let device = device();
    let mut linear = LinearConfig::new(3, 3).init(&device);
    linear.weight = burn::module::Param::from_tensor(Tensor::zeros([3, 3], &device));
    linear.bias = Some(burn::module::Param::from_tensor(Tensor::zeros(
        [3],
        &device,
    )));
    let points = batch(16, 0.2, 1, &device);
    let draws = {
        let trainer = builder(6).build().unwrap();
        trainer.draw(&points).unwrap()
    };
    let process = scheduler();
    let inputs = LossInputs::new(&points, &draws, &process, PredictionType::Epsilon).unwrap();
    let terms = Siss.terms(&inputs).unwrap();
    let condition = |term: Option<LossTerm<2>>| (term.unwrap().target, ());
    let batch = UnlearningBatch::with_conditions(
        points.retain().clone(),
        points.forget().clone(),
        condition(terms.retain),
        condition(terms.forget),
    )
    .unwrap();
    let mut trainer = SissTrainer::builder(Shifted { linear }, scheduler())
        .micro_batch_size(3)
        .build()
        .unwrap();
    let report = trainer.step_with(&batch, &draws).unwrap();
    assert_eq!(report.retain.as_ref().unwrap().loss, 0.0);
    assert_eq!(report.forget.as_ref().unwrap().loss, 0.0);
    assert!(report.retain.unwrap().rows > 0 && report.forget.unwrap().rows > 0);
}

/// The gradient of a steered term is that of `½ (b − L)²/b` of each row, times the row's weight;
/// checked by central differences.
#[test]
fn a_steered_gradient_is_that_of_the_squared_distance_to_the_level() {
    let device = device();
    let points = batch(8, 0.4, 5, &device);
    let trainer = |model| {
        SissTrainer::builder(model, scheduler())
            .loss(SissNoIs)
            .thin_below(0.0)
            .steering(level(1.5))
            .build()
            .unwrap()
    };
    let mut steered = trainer(Mlp::new(7, &device));
    let draws = steered.draw(&points).unwrap();
    let gradients = steered.gradients(&points, &draws).unwrap();
    let gradient = flat(steered.model(), &gradients.forget);
    // L in [0, 2b], where the factor is not clipped.
    let factors = gradients.report.forget.as_ref().unwrap().steering.unwrap();
    assert!(factors.abs() < 0.9, "{factors}");

    let process = scheduler();
    let inputs = LossInputs::new(&points, &draws, &process, PredictionType::Epsilon).unwrap();
    let term = SissNoIs.terms(&inputs).unwrap().forget.unwrap();
    // Σ_i ½ (b − L_i)²/b · elements / B, whose gradient is −Σ_i (b − L_i)/b ∇‖ŷ − target‖² / B.
    let distance = |model: &Mlp| -> f64 {
        let timesteps: Vec<f32> = term.timesteps.iter().map(|&t| t as f32).collect();
        let timesteps = Tensor::<1>::from_data(timesteps.as_slice(), &device);
        let output = model.predict(term.noisy.clone(), timesteps, &());
        let errors = difference(&host(output), &host(term.target.clone()));
        let losses = errors
            .chunks(3)
            .map(|row| row.iter().map(|e| e * e).sum::<f64>() / 3.0);
        losses
            .map(|loss| 0.5 * (1.5 - loss).powi(2) / 1.5 * 3.0 / 8.0)
            .sum()
    };
    let plain = Mlp::new(7, &device);
    let size = norm(&gradient) / (gradient.len() as f64).sqrt();
    for index in (0..gradient.len()).step_by(3) {
        let slope = |h: f64| {
            (distance(&nudged(&plain, index, h)) - distance(&nudged(&plain, index, -h))) / (2.0 * h)
        };
        let expected = (4.0 * slope(4e-3) - slope(8e-3)) / 3.0;
        let error = (gradient[index] - expected).abs() / expected.abs().max(size);
        assert!(error < 2e-3, "{index}: {} {expected}", gradient[index]);
    }
}

/// Steering without effect leaves every number unchanged, and a level far below the loss reverses
/// the gradient.
#[test]
fn a_level_out_of_reach_changes_nothing_and_one_far_below_turns_round() {
    let device = device();
    let points = batch(16, 0.4, 5, &device);
    let gradient = |steering: Option<Steering>, micro_batch: usize| {
        let mut builder = builder(1).micro_batch_size(micro_batch);
        if let Some(steering) = steering {
            builder = builder.steering(steering);
        }
        let mut trainer = builder.build().unwrap();
        let draws = trainer.draw(&points).unwrap();
        let gradients = trainer.gradients(&points, &draws).unwrap();
        let steering = gradients.report.forget.as_ref().unwrap().steering;
        (flat(trainer.model(), &gradients.forget), steering)
    };
    let (plain, none) = gradient(None, 16);
    let (free, forward) = gradient(Some(level(1e30)), 16);
    let (turned, back) = gradient(Some(level(1e-30)), 16);
    assert_eq!((none, forward, back), (None, Some(1.0), Some(-1.0)));
    assert_eq!(plain, free);
    let negated: Vec<f64> = plain.iter().map(|value| -value).collect();
    assert!(norm(&difference(&negated, &turned)) < 1e-6 * norm(&plain));
    let (stopped, rest) = gradient(Some(level(1e-30).with_rule(HardStop)), 16);
    assert_eq!((norm(&stopped), rest), (0.0, Some(0.0)));
    // Micro-batches change nothing here either.
    let (whole, factor) = gradient(Some(level(0.8)), 16);
    let (parts, same) = gradient(Some(level(0.8)), 5);
    assert!(norm(&difference(&whole, &parts)) < 1e-6 * norm(&whole));
    assert!((factor.unwrap() - same.unwrap()).abs() < 1e-6);
}

/// The factor of a row depends on the level of its id and the loss of its own point, whatever the
/// row's target is.
#[test]
fn each_row_is_steered_by_the_loss_and_the_level_of_its_own_point() {
    let device = device();
    let ids: Vec<u64> = (0..16).rev().collect();
    let points = batch(16, 0.4, 5, &device);
    let points = points.with_forget_ids(ids.clone()).unwrap();
    let level = |id: u64| 0.5 + 0.2 * id as f64;
    let levels = (0..16).map(|id| vec![level(id); 2]).collect();
    let levels = Levels::new(vec![0.0, 999.0], levels).unwrap();
    for method in [Method::EraseDiff, Method::ReTrack] {
        let builder = with_method(builder(1), method, points.retain()).micro_batch_size(5);
        let steering = Steering::new(levels.clone());
        let mut trainer = builder.steering(steering).build().unwrap();
        let draws = trainer.draw(&points).unwrap();
        let (timesteps, noise) = match method {
            Method::ReTrack => (
                draws.timesteps_of(Stream::ForgetTimesteps).unwrap(),
                draws.numbers_of(Stream::ForgetNoise).unwrap(),
            ),
            _ => (draws.timesteps(), draws.noise()),
        };
        let noisy = scheduler()
            .add_noise(points.forget().clone(), noise.clone(), timesteps)
            .unwrap();
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let timesteps = Tensor::from_data(timesteps.as_slice(), &device);
        let output = Mlp::new(1, &device).predict(noisy, timesteps, &());
        let errors = difference(&host(output), &host(noise.clone()));
        let factors = errors.chunks(3).zip(&ids).map(|(errors, &id)| {
            let loss = errors.iter().map(|e| e * e).sum::<f64>() / 3.0;
            (1.0 - loss / level(id)).max(0.0)
        });
        let expected = factors.sum::<f64>() / 16.0;
        let report = trainer.gradients(&points, &draws).unwrap().report;
        let got = report.forget.unwrap().steering.unwrap();
        assert!((got - expected).abs() < 1e-5, "{method}: {got} {expected}");
    }
}

/// Objectives with another target are switched off above the level, according to the point's own
/// loss, and never ascend.
#[test]
fn terms_that_descend_are_switched_off_above_the_level() {
    let device = device();
    let points = batch(16, 0.4, 5, &device)
        .with_forget_ids((0..16).collect())
        .unwrap();
    for method in [Method::EraseDiff, Method::ReTrack] {
        let forget_norm = |level_of: f64| {
            let builder =
                with_method(builder(1), method, points.retain()).steering(level(level_of));
            let mut trainer = builder.build().unwrap();
            let draws = trainer.draw(&points).unwrap();
            trainer
                .gradients(&points, &draws)
                .unwrap()
                .report
                .norms
                .forget
        };
        assert!(forget_norm(1e30) > 0.0, "{method}");
        assert_eq!(forget_norm(1e-30), 0.0, "{method}");
    }
}

#[derive(Module, Debug)]
struct Shared {
    first: Linear,
    again: Linear,
}

impl Denoiser<2> for Shared {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.again.forward(self.first.forward(noisy))
    }
}

/// burn would otherwise train only one of the two copies.
#[test]
fn a_parameter_that_is_held_twice_is_refused_by_name() {
    let first = LinearConfig::new(3, 3).init(&device());
    let again = first.clone();
    let error = first_step(Shared { first, again }).unwrap_err().to_string();
    assert!(
        error.contains("`again.weight`") && error.contains("`first.weight`"),
        "{error}"
    );
}

/// A model with a tensor that is not a parameter.
#[derive(Module, Debug)]
struct WithTensor {
    linear: Linear,
    shift: Tensor<1>,
}

impl Denoiser<2> for WithTensor {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.linear.forward(noisy + self.shift.clone().unsqueeze())
    }
}

#[test]
fn gradient_checkpointing_takes_models_with_other_tensors() {
    let device = device();
    let model = || WithTensor {
        linear: LinearConfig::new(3, 3)
            .with_initializer(burn::nn::Initializer::Ones)
            .init(&device),
        shift: Tensor::from_data([0.1, 0.2, 0.3], &device),
    };
    let run = |enabled| {
        let builder = SissTrainer::builder(model(), scheduler());
        let mut trainer = builder.gradient_checkpointing(enabled).build().unwrap();
        for _ in 0..2 {
            trainer.step(batch(8, 0.5, 3, &device)).unwrap();
        }
        parameters(&trainer.into_model())
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn steering_that_cannot_mean_anything_is_refused() {
    let device = device();
    let refused = |builder: SissTrainerBuilder<Mlp, 2>| builder.build().unwrap_err().to_string();
    let nothing = builder(1)
        .method(Method::NaiveDeletion)
        .steering(level(1.0));
    assert!(refused(nothing).contains("naive deletion has no forget term"));

    let points = || normal_noise([20, 3], 5, 0, 0, Stream::Evaluation, &device);
    let (retained, controls) = (points(), points() * 0.5);
    let forgotten = points().narrow(0, 0, 2) + 3.0;
    let data = CounterfactualData::new(&retained, &controls, &forgotten);
    let (model, config) = (Mlp::new(1, &device), CounterfactualConfig::default());
    let fit = Counterfactual::fit(&model, &scheduler(), data, config).unwrap();
    let levels = fit.levels;
    let velocity = Mlp::new(1, &device).predicting(PredictionType::Velocity);
    let other = SissTrainer::builder(velocity, scheduler());
    let error = other.steering(Steering::new(levels.clone())).build();
    assert!(
        matches!(
            error.unwrap_err(),
            Error::PredictionTypeDiffers {
                model: PredictionType::Velocity,
                stated: PredictionType::Epsilon,
                ..
            }
        ),
        "levels of a model that predicts something else"
    );

    let mut trainer = builder(1).steering(Steering::new(levels)).build().unwrap();
    let unnamed = UnlearningBatch::new(points(), points() + 3.0).unwrap();
    let error = trainer.step(unnamed).unwrap_err().to_string();
    assert!(error.contains("which of several points"), "{error}");
}

/// A model says once what it predicts; a scheduler's file that says otherwise is refused, and so is
/// a resumed run.
#[test]
fn a_model_that_predicts_something_else_than_its_scheduler_says_is_refused() {
    let config = SchedulerConfig {
        prediction_type: PredictionType::Velocity,
        ..SchedulerConfig::default()
    };
    let scheduler = || DdpmScheduler::from_config(&config).unwrap();
    let built = |kind| {
        let model = Mlp::new(1, &device()).predicting(kind);
        SissTrainer::builder(model, scheduler()).build()
    };
    let error = built(PredictionType::Epsilon).unwrap_err();
    let Error::PredictionTypeDiffers { model, stated, .. } = error else {
        panic!("{error}");
    };
    let (epsilon, velocity) = (PredictionType::Epsilon, PredictionType::Velocity);
    assert_eq!((model, stated), (epsilon, velocity));
    built(PredictionType::Velocity).unwrap();
    let model = |kind| Mlp::new(1, &device()).predicting(kind);
    let builder = SissTrainer::builder(model(PredictionType::Velocity), scheduler());
    let error = builder.teacher(model(PredictionType::Sample)).build();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the teacher says Sample"), "{error}");
}

/// What the model predicts decides the targets, whoever built the trainer.
#[test]
fn a_step_learns_what_the_model_says_that_it_predicts() {
    let device = device();
    let losses = |kind| {
        let model = Mlp::new(1, &device).predicting(kind);
        let mut trainer = SissTrainer::builder(model, scheduler()).build().unwrap();
        let report = trainer.step(batch(8, 0.5, 3, &device)).unwrap();
        report.retain.unwrap().mean_squared_error
    };
    let [epsilon, sample] = [PredictionType::Epsilon, PredictionType::Sample].map(losses);
    assert!((epsilon - sample).abs() > 1e-3, "{epsilon} {sample}");
}
