//! Non-finite numbers: wherever they come from, a step changes nothing and reports them, and a run
//! with too many of them ends. Each test prints the number of its cases.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{FloatDType, Tensor, TensorData};
use siss::clipper::ClipperSpec;
use siss::draws::{Draws, Stream, TimestepSampling, normal_noise};
use siss::objective::{LossInputs, Siss, importance_weights};
use siss::observer::{StepOutcome, Symptom};
use siss::process::{SchedulerConfig, SchedulerExt};
use siss::steering::HardStop;
use siss::*;
use siss_support::small::*;
use siss_support::way::Way;

/// Rows per batch, and per micro-batch.
const ROWS: usize = 6;
const MICRO_BATCH: usize = 2;

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

/// A fault in a forward pass, or in the backward pass after it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// One element of the output has this value.
    Output(f32),
    /// The output is correct, its derivative is infinite.
    InfiniteGradient,
    /// The output is correct, its derivative is NaN.
    NanGradient,
    /// The square of the error exceeds f32.
    Overflow,
}

const FAULTS: [Fault; 6] = [
    Fault::Output(f32::NAN),
    Fault::Output(f32::INFINITY),
    Fault::Output(f32::NEG_INFINITY),
    Fault::InfiniteGradient,
    Fault::NanGradient,
    Fault::Overflow,
];

/// A model with a single fault, at the forward pass that the test chooses.
#[derive(Module, Debug)]
struct Faulty {
    model: Mlp,
    shift: Linear,
    #[module(skip)]
    calls: Arc<AtomicUsize>,
    #[module(skip)]
    armed: Arc<Mutex<Option<(usize, Fault)>>>,
}

impl Faulty {
    fn new() -> Self {
        Self {
            model: Mlp::new(3, &device()),
            shift: seeded(LinearConfig::new(3, 3).init(&device()), 5),
            calls: Arc::default(),
            armed: Arc::default(),
        }
    }
}

impl Denoiser<2> for Faulty {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let output = self.model.predict(noisy.clone(), timesteps, &()) + self.shift.forward(noisy);
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let armed = *self.armed.lock().unwrap();
        let Some((_, fault)) = armed.filter(|&(at, _)| at == call) else {
            return output;
        };
        match fault {
            Fault::Output(value) => {
                let rows = output.dims()[0];
                let mut fault = vec![0.0; 3 * rows];
                fault[3 * rows - 1] = value;
                output + Tensor::from_data(TensorData::new(fault, [rows, 3]), &device())
            }
            // √0 at a point that depends on the parameters: its derivative is 1/0.
            Fault::InfiniteGradient => output.clone() + (output.clone() - output.detach()).sqrt(),
            Fault::NanGradient => output.clone() + (output * 0.0).sqrt(),
            Fault::Overflow => output * 1e30,
        }
    }
}

fn bits<M: Module>(model: &M) -> Vec<u64> {
    parameters(model).into_iter().map(f64::to_bits).collect()
}

/// A trainer in which everything that can have a state has one: optimiser, average, clipper.
fn trainer(way: Way, retained: &Tensor<2>) -> SissTrainer<Faulty, 2> {
    let mut builder = SissTrainer::builder(Faulty::new(), scheduler())
        .method(way.method().unwrap())
        .retained_points(retained.clone())
        .micro_batch_size(MICRO_BATCH)
        .thin_below(0.0)
        .learning_rate(1e-2)
        .ema(0.9);
    if way.is_predicted() {
        builder = builder.steering(level(1e3));
    }
    builder.build().unwrap()
}

/// A fault in the first, a middle or the last micro-batch changes neither model nor average nor
/// optimiser: the next step equals that of a trainer that had no fault.
#[test]
fn a_fault_in_any_micro_batch_changes_nothing() {
    let points = batch(ROWS, 0.4, 3, &device());
    let mut cases = 0;
    for method in Way::methods() {
        let (mut hurt, mut whole) = (
            trainer(method, points.retain()),
            trainer(method, points.retain()),
        );
        let draws = whole.draw(&points).unwrap();
        for trainer in [&mut hurt, &mut whole] {
            trainer.step_with(&points, &draws).unwrap();
        }
        for fault in FAULTS {
            let started = whole.model().calls.load(Ordering::SeqCst);
            whole.step_with(&points, &draws).unwrap();
            let calls = whole.model().calls.load(Ordering::SeqCst) - started;
            assert!(
                calls >= 3,
                "{method}: a step has {calls} micro-batches only"
            );

            for place in [0, calls / 2, calls - 1] {
                let before = (bits(hurt.model()), bits(&hurt.ema_model().unwrap()));
                let step = hurt.next_step();
                let at = hurt.model().calls.load(Ordering::SeqCst) + place;
                *hurt.model().armed.lock().unwrap() = Some((at, fault));
                let report = hurt.step_with(&points, &draws).unwrap();
                let case = format!("{method}, {fault:?} in micro-batch {place} of {calls}");
                assert_eq!(report.outcome, StepOutcome::SkippedNonFinite, "{case}");
                let text = report.to_string();
                assert!(
                    text.contains("SKIPPED: the ")
                        && (text.contains("NaN") || text.contains("inf")),
                    "{case}: {text}"
                );
                assert_eq!(hurt.next_step(), step + 1, "{case}");
                let after = (bits(hurt.model()), bits(&hurt.ema_model().unwrap()));
                assert_eq!(before, after, "{case}");
                cases += 1;
            }
            *hurt.model().armed.lock().unwrap() = None;
            hurt.step_with(&points, &draws).unwrap();
            assert_eq!(
                bits(hurt.model()),
                bits(whole.model()),
                "{method} {fault:?}"
            );
            let averages = [&hurt, &whole].map(|trainer| bits(&trainer.ema_model().unwrap()));
            assert_eq!(averages[0], averages[1], "{method} {fault:?}");
        }
    }
    println!("{cases} faults in outputs and gradients, each changed nothing");
    assert!(cases >= 60);
}

/// The row is named, the step is not counted, and nothing changes.
#[test]
fn a_point_that_is_not_finite_is_named_wherever_it_is() {
    let clean = batch(ROWS, 0.4, 3, &device());
    let mut cases = 0;
    for method in Way::methods() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for row in [0, ROWS / 2, ROWS - 1] {
                for side in [Side::Retain, Side::Forget] {
                    if method == Method::NaiveDeletion.into() && side == Side::Forget
                        || method == Method::NegGrad.into() && side == Side::Retain
                    {
                        continue; // The method does not use the point.
                    }
                    let mut trainer = trainer(method, clean.retain());
                    let spoilt = |points: &Tensor<2>, is_spoilt: bool| {
                        let mut data = points.to_data().try_to_vec::<f32>().unwrap();
                        if is_spoilt {
                            data[3 * row + 1] = value;
                        }
                        Tensor::<2>::from_data(TensorData::new(data, [ROWS, 3]), &device())
                    };
                    let retain = spoilt(clean.retain(), side == Side::Retain);
                    let forget = spoilt(clean.forget(), side == Side::Forget);
                    let batch = UnlearningBatch::new(retain, forget)
                        .unwrap()
                        .with_forget_ids((0..ROWS as u64).collect())
                        .unwrap();
                    let before = bits(trainer.model());
                    let case = format!("{method}, {value} in row {row} of {side}");
                    match trainer.step(batch) {
                        Err(Error::NonFiniteData {
                            side: found,
                            row: at,
                            ..
                        }) => assert_eq!((found, at), (side, row), "{case}"),
                        // Bernoulli uses each row on one side only.
                        Ok(report) if method == Method::Bernoulli.into() => {
                            assert_eq!(report.outcome, StepOutcome::Applied, "{case}");
                            let parameters = parameters(trainer.model());
                            assert!(parameters.iter().all(|p| p.is_finite()), "{case}");
                            continue;
                        }
                        other => panic!("{case}: {other:?}"),
                    }
                    assert_eq!(bits(trainer.model()), before, "{case}");
                    assert_eq!(trainer.next_step(), 0, "{case}");
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} points that are not finite, each named");
    assert!(cases >= 60);
}

/// Sets one number of the model's parameters; the index counts over all of them.
fn with_parameter(model: Faulty, index: usize, value: f32) -> Faulty {
    struct Set {
        left: Option<usize>,
        value: f32,
    }
    impl ModuleMapper for Set {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let elements = param.val().shape().num_elements();
            let Some(left) = self.left else { return param };
            self.left = left.checked_sub(elements);
            if left >= elements {
                return param;
            }
            let value = self.value;
            param.map(|tensor| {
                let mut data = tensor.to_data().try_to_vec::<f32>().unwrap();
                data[left] = value;
                Tensor::from_data(TensorData::new(data, tensor.shape()), &tensor.device())
            })
        }
    }
    let left = Some(index);
    model.map(&mut Set { left, value })
}

#[test]
fn a_model_whose_parameters_are_not_finite_is_refused_by_the_parameter() {
    let mut cases = 0;
    // 4 × 8 + 8 + 8 × 3 + 3 + 3 × 3 + 3 numbers.
    for (index, place) in [
        (0, "model.first.weight"),
        (35, "model.first.bias"),
        (50, "model.second.weight"),
        (66, "model.second.bias"),
        (70, "shift.weight"),
        (78, "shift.bias"),
    ] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let model = with_parameter(Faulty::new(), index, value);
            let mut trainer = SissTrainer::builder(model, scheduler()).build().unwrap();
            let before = bits(trainer.model());
            let error = trainer.step(batch(ROWS, 0.4, 3, &device())).unwrap_err();
            assert!(
                matches!(&error, Error::NonFiniteParameter { parameter, .. } if parameter == place),
                "{place} {value}: {error}"
            );
            assert!(error.to_string().contains("reload the model"), "{error}");
            assert_eq!(bits(trainer.model()), before);
            cases += 1;
        }
    }
    println!("{cases} models with parameters that are not finite, each refused");
}

/// With a learning rate beyond f32, every optimiser writes NaN: the trainer keeps the model of the
/// step before.
#[test]
fn parameters_that_the_optimiser_would_spoil_are_not_taken() {
    for optimizer in [None, Some(SgdConfig::new().init())] {
        let mut builder = SissTrainer::builder(Faulty::new(), scheduler())
            .learning_rate(1e39)
            .ema(0.9);
        if let Some(optimizer) = optimizer {
            builder = builder.optimizer(optimizer);
        }
        let mut trainer = builder.build().unwrap();
        let before = (bits(trainer.model()), bits(&trainer.ema_model().unwrap()));
        let error = trainer.step(batch(ROWS, 0.4, 3, &device())).unwrap_err();
        assert!(matches!(error, Error::NonFiniteParameter { .. }), "{error}");
        assert!(error.to_string().contains("learning rate"), "{error}");
        let after = (bits(trainer.model()), bits(&trainer.ema_model().unwrap()));
        assert_eq!(before, after);
        assert_eq!(trainer.next_step(), 0);
        assert!(
            parameters(&trainer.into_model())
                .iter()
                .all(|p| p.is_finite())
        );
    }
}

/// Ten consecutive faults end a run; each of them is observed and counted.
#[test]
fn too_many_skipped_steps_in_a_row_are_an_error_that_says_what_to_try() {
    assert_eq!(TrainerConfig::default().max_skipped_steps, 10);
    let points = batch(ROWS, 0.4, 3, &device());
    let mut trainer = SissTrainer::builder(Faulty::new(), scheduler())
        .max_skipped_steps(3)
        .build()
        .unwrap();
    trainer.step(points.clone()).unwrap();
    let before = bits(trainer.model());
    let step = |trainer: &mut SissTrainer<Faulty, 2>, fault: Option<Fault>| {
        let call = trainer.model().calls.load(Ordering::SeqCst);
        *trainer.model().armed.lock().unwrap() = fault.map(|fault| (call, fault));
        trainer.step(points.clone())
    };
    let nan = Some(Fault::Output(f32::NAN));
    for _ in 0..2 {
        let report = step(&mut trainer, nan).unwrap();
        assert_eq!(report.outcome, StepOutcome::SkippedNonFinite);
    }
    let error = step(&mut trainer, nan).unwrap_err();
    assert!(
        matches!(error, Error::TooManySkippedSteps { steps: 3, .. }),
        "{error}"
    );
    let text = error.to_string();
    for part in [
        "3 steps",
        "loss is NaN",
        "learning rate",
        "f32",
        "max_grad_norm",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(
        (trainer.next_step(), bits(trainer.model())),
        (4, before.clone())
    );
    let symptom = trainer.findings()[0].symptom;
    assert_eq!(symptom, Symptom::SkippedSteps);
    // A fourth step gives the same error; a successful step resets the count.
    let error = step(&mut trainer, nan).unwrap_err();
    assert!(
        matches!(error, Error::TooManySkippedSteps { steps: 4, .. }),
        "{error}"
    );
    let report = step(&mut trainer, None).unwrap();
    assert_eq!(report.outcome, StepOutcome::Applied);
    assert_ne!(bits(trainer.model()), before);
    assert!(step(&mut trainer, nan).is_ok() && step(&mut trainer, nan).is_ok());
}

/// A level that every loss exceeds stops forgetting completely. Each clipper then uses the retain
/// gradient alone.
#[test]
fn a_forget_gradient_of_zero_is_a_retain_step() {
    let points = batch(ROWS, 0.4, 3, &device());
    let specs = [
        "fraction:0.1",
        "rescale:5",
        "clip:1",
        "constant:1",
        "projected",
        "blend:0.5",
        "erase-diff:0.1",
    ];
    let mut cases = 0;
    for spec in specs {
        let clipper: ClipperSpec = spec.parse().unwrap();
        let hard_stop = level(1e-30).with_rule(HardStop);
        let mut trainer = SissTrainer::builder(Faulty::new(), scheduler())
            .steering(hard_stop)
            .clipper(clipper.build().unwrap())
            .build()
            .unwrap();
        for _ in 0..3 {
            let report = trainer.step(points.clone()).unwrap();
            assert_eq!(report.outcome, StepOutcome::Applied, "{spec}");
            assert_eq!(report.norms.forget, 0.0, "{spec}");
            let kept = report.coefficients.retain * report.norms.retain;
            assert!(
                (report.combined_norm / kept - 1.0).abs() < 1e-9,
                "{spec}: {report}"
            );
        }
        assert!(parameters(trainer.model()).iter().all(|p| p.is_finite()));
        cases += 1;
    }
    println!("{cases} clippers with a forget gradient of zero");
}

/// Every row from the same side, with λ at both ends and in between, for each objective.
#[test]
fn all_samples_on_one_side_are_a_step() {
    let points = batch(ROWS, 0.4, 3, &device());
    let mut cases = 0;
    for method in Way::methods() {
        for from_forget in [false, true] {
            for lambda in [0.0, 0.1, 0.5, 0.9, 1.0] {
                let (mut trainer, case) = (
                    trainer(method, points.retain()),
                    format!("{method}, λ = {lambda}, from_forget = {from_forget}"),
                );
                let drawn = trainer.draw(&points).unwrap();
                let mut draws = Draws::new(
                    drawn.timesteps().to_vec(),
                    drawn.noise().clone(),
                    vec![from_forget; ROWS],
                    lambda,
                )
                .unwrap();
                if let Ok(timesteps) = drawn.timesteps_of(Stream::ForgetTimesteps) {
                    let timesteps = timesteps.to_vec();
                    draws = draws
                        .with_timesteps(Stream::ForgetTimesteps, timesteps)
                        .unwrap();
                }
                for stream in [Stream::ForgetNoise, Stream::Uniform] {
                    if let Ok(numbers) = drawn.numbers_of(stream) {
                        draws = draws.with_numbers(stream, numbers.clone()).unwrap();
                    }
                }
                let report = trainer.step_with(&points, &draws).unwrap();
                // No sampler draws from a side of probability 0, where a likelihood ratio may
                // exceed f32.
                let is_possible = lambda != if from_forget { 0.0 } else { 1.0 };
                if is_possible {
                    assert_eq!(report.outcome, StepOutcome::Applied, "{case}: {report}");
                }
                assert!(
                    parameters(trainer.model()).iter().all(|p| p.is_finite()),
                    "{case}"
                );
                cases += 1;
            }
        }
    }
    println!("{cases} steps with all samples on one side");
}

/// The last step of a process without terminal signal, γ = 0: noisy points are pure noise.
#[test]
fn without_signal_a_step_is_finite() {
    let zero_snr = |prediction_type| {
        let config = SchedulerConfig {
            zero_terminal_snr: true,
            prediction_type,
            ..SchedulerConfig::default()
        };
        DdpmScheduler::from_config(&config).unwrap()
    };
    let points = batch(ROWS, 0.4, 3, &device());
    let mut cases = 0;
    for method in Way::methods() {
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let ddpm = zero_snr(kind);
            assert_eq!(ddpm.scales(&[999.0]).unwrap().signal, [0.0]);
            let model = Mlp::new(1, &device()).predicting(kind);
            let mut builder =
                SissTrainer::builder(model, ddpm).timestep_sampling(TimestepSampling::Fixed(999.0));
            builder = with_method(builder, method, points.retain());
            let mut trainer = builder.build().unwrap();
            for _ in 0..2 {
                let report = trainer.step(points.clone()).unwrap();
                let case = format!("{method} {kind:?}");
                assert_eq!(report.outcome, StepOutcome::Applied, "{case}: {report}");
            }
            cases += 1;
        }
    }
    println!("{cases} steps without signal");
}

/// Losses and gradients of a step in half precision agree with those in f64 within the rounding of
/// the model's arithmetic. The weights are equal, because they do not depend on the model.
#[test]
fn half_precision_keeps_losses_and_gradients() {
    let points = batch(64, 0.4, 3, &device());
    let step = |dtype| {
        let model = Narrow::new(3, dtype, &device());
        let builder = SissTrainer::builder(model, scheduler()).thin_below(0.0);
        let mut trainer = builder.build().unwrap();
        let draws = trainer.draw(&points).unwrap();
        let gradients = trainer.gradients(&points, &draws).unwrap();
        let sides = [&gradients.retain, &gradients.forget].map(|side| flat(trainer.model(), side));
        (gradients.report, sides)
    };
    let (expected, expected_sides) = step(FloatDType::F64);
    for (dtype, loss_tolerance, cosine_tolerance) in [
        (FloatDType::F32, 1e-6, 1e-9),
        (FloatDType::F16, 2e-3, 1e-5),
        (FloatDType::BF16, 1e-2, 5e-4),
    ] {
        let (report, sides) = step(dtype);
        for (side, (got, expected)) in [
            (&report.retain, &expected.retain),
            (&report.forget, &expected.forget),
        ]
        .into_iter()
        .enumerate()
        {
            let (got, expected) = (got.as_ref().unwrap(), expected.as_ref().unwrap());
            let error = (got.loss / expected.loss - 1.0).abs();
            let (a, b) = (&sides[side], &expected_sides[side]);
            let inner: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            let cosine = 1.0 - inner / (norm(a) * norm(b));
            println!(
                "{dtype:?}, side {side}: loss off by {error:.1e}, cosine of the gradients 1 - {cosine:.1e}"
            );
            assert!(error < loss_tolerance, "{dtype:?}: {error}");
            assert!(cosine < cosine_tolerance, "{dtype:?}: {cosine}");
            assert_eq!(got.weights, expected.weights, "{dtype:?}");
        }
    }
}

/// Importance weights of points in half precision, compared with the formula in f64 for the same
/// points.
#[test]
fn weights_of_points_in_half_precision_are_those_of_f64() {
    let process = scheduler();
    let timesteps = [0.0, 1.0, 10.0, 100.0, 500.0, 999.0];
    let (mut cases, mut worst) = (0, 0.0f64);
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        for lambda in [0.0, 0.1, 0.5, 0.9, 1.0] {
            for seed in 0..4 {
                let points = batch(timesteps.len(), 0.2, seed, &device());
                let narrow = |points: &Tensor<2>| points.clone().cast(dtype);
                let (retain, forget) = (narrow(points.retain()), narrow(points.forget()));
                let batch = UnlearningBatch::new(retain.clone(), forget.clone()).unwrap();
                let noise = normal_noise([6, 3], seed, 0, 0, Stream::Noise, &device());
                let from_forget: Vec<bool> = (0..6).map(|row| (row + seed) % 2 == 0).collect();
                let draws = Draws::new(
                    timesteps.to_vec(),
                    noise.clone(),
                    from_forget.clone(),
                    lambda,
                )
                .unwrap();
                let inputs =
                    LossInputs::new(&batch, &draws, &process, PredictionType::Epsilon).unwrap();
                let terms = Siss.terms(&inputs).unwrap();
                let scales = process.scales(&timesteps).unwrap();
                let (x, a, noise) = (host(retain), host(forget), host(noise));
                for (row, &is_forgotten) in from_forget.iter().enumerate() {
                    let ratio = scales.signal[row] / scales.noise[row];
                    let log_ratio: f64 = (3 * row..3 * row + 3)
                        .map(|i| {
                            let r = ratio * (a[i] - x[i]);
                            let sign = if is_forgotten { 1.0 } else { -1.0 };
                            // ½⟨ε_x + ε_a, r⟩, where one of them is ε and the other ε ± r.
                            0.5 * (2.0 * noise[i] + sign * r) * r
                        })
                        .sum();
                    let expected = importance_weights(log_ratio, lambda);
                    for (term, expected) in [
                        (&terms.retain, expected.retain),
                        (&terms.forget, -expected.forget),
                    ] {
                        let got = term.as_ref().unwrap().weights[row];
                        let error = (got - expected).abs() / expected.abs().max(1.0);
                        worst = worst.max(error);
                        cases += 1;
                        assert!(error < 1e-3, "{dtype:?} λ {lambda}: {got} {expected}");
                    }
                }
            }
        }
    }
    println!("{cases} weights, the worst off by {worst:.1e}");
}

/// In f16 AdamW's ε of 1e-8 is 0, so its first step divides 0 by 0 wherever a gradient is too small
/// to be squared: the trainer reports this and keeps the model.
#[test]
fn an_optimiser_that_half_precision_defeats_costs_no_model() {
    let points = batch(64, 0.4, 3, &device());
    let run = |dtype, steps: usize| -> Result<Vec<f64>> {
        let mut trainer =
            SissTrainer::builder(Narrow::new(3, dtype, &device()), scheduler()).build()?;
        for _ in 0..steps {
            trainer.step(points.clone())?;
        }
        Ok(parameters(&trainer.into_model()))
    };
    for dtype in [FloatDType::BF16, FloatDType::F16] {
        match run(dtype, 20) {
            Ok(parameters) => {
                println!("{dtype:?}: 20 steps of AdamW, all finite");
                assert!(parameters.iter().all(|parameter| parameter.is_finite()));
            }
            Err(error) => {
                println!("{dtype:?}: {error}");
                assert!(matches!(error, Error::NonFiniteParameter { .. }), "{error}");
            }
        }
    }
}
