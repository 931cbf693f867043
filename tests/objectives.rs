//! Every objective with every prediction type and process.

use burn::tensor::{Device, Tensor};
use siss::clipper::ConstantScale;
use siss::draws::{Draws, ExtraDraws, Stream, normal_noise};
use siss::objective::{LossInputs, LossTerm, LossTerms};
use siss::observer::StepOutcome;
use siss::process::SchedulerConfig;
use siss::*;
use siss_support::small::*;
use siss_support::way::Way;

const KINDS: [PredictionType; 4] = [
    PredictionType::Epsilon,
    PredictionType::Sample,
    PredictionType::Velocity,
    PredictionType::FlowVelocity,
];
const ROWS: usize = 8;

fn ddpm() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn without_terminal_signal(prediction_type: PredictionType) -> DdpmScheduler {
    let config = SchedulerConfig {
        prediction_type,
        zero_terminal_snr: true,
        ..SchedulerConfig::default()
    };
    DdpmScheduler::from_config(&config).unwrap()
}

/// All random numbers that an objective may need, at given timesteps.
fn draws(timesteps: &[f64], device: &Device) -> Draws<2> {
    let noise = |seed| normal_noise([ROWS, 3], seed, 0, 0, Stream::Noise, device);
    let from_forget = (0..ROWS).map(|row| row % 2 == 1).collect();
    let reversed = timesteps.iter().rev().copied().collect();
    Draws::new(timesteps.to_vec(), noise(1), from_forget, 0.5)
        .unwrap()
        .with_timesteps(Stream::ForgetTimesteps, reversed)
        .unwrap()
        .with_numbers(Stream::ForgetNoise, noise(2))
        .unwrap()
        .with_numbers(Stream::Uniform, noise(3).abs() * 0.3)
        .unwrap()
}

fn points(device: &Device) -> UnlearningBatch<2> {
    batch(ROWS, 0.4, 9, device)
        .with_forget_ids((0..ROWS as u64).collect())
        .unwrap()
}

fn loss(method: Method, batch: &UnlearningBatch<2>) -> Box<dyn SissLoss<2>> {
    method.loss(Some(batch.retain())).unwrap()
}

fn terms(
    method: Method,
    kind: PredictionType,
    scheduler: &dyn Scheduler,
    timesteps: &[f64],
    device: &Device,
) -> LossTerms<2> {
    let (batch, draws) = (points(device), draws(timesteps, device));
    let inputs = LossInputs::new(&batch, &draws, scheduler, kind).unwrap();
    loss(method, &batch).terms(&inputs).unwrap()
}

/// The noise that corresponds to a target at its noisy point, element by element in f64, from the
/// definition of the prediction type and `m = γ x + σ ε`.
fn implied_noise(term: &LossTerm<2>, kind: PredictionType, scheduler: &dyn Scheduler) -> Vec<f64> {
    let (noisy, target) = (host(term.noisy.clone()), host(term.target.clone()));
    let elements = noisy.iter().zip(target).enumerate();
    elements
        .map(|(index, (m, target))| {
            let t = term.timesteps[index / 3];
            let (gamma, sigma) = (scheduler.signal_scale(t), scheduler.noise_scale(t));
            match kind {
                PredictionType::Epsilon => target,
                PredictionType::Sample => (m - gamma * target) / sigma,
                // v = γ ε − σ x and m = γ x + σ ε
                PredictionType::Velocity => {
                    (gamma * target + sigma * m) / (gamma * gamma + sigma * sigma)
                }
                // v = ε − x
                PredictionType::FlowVelocity => (m + gamma * target) / (gamma + sigma),
                other => panic!("{other:?} is not tested"),
            }
        })
        .collect()
}

/// Noisy points and weights are the same for every prediction type, and the targets correspond to
/// the same noise.
#[test]
fn every_objective_teaches_the_same_noise_in_every_prediction_type() {
    let device = device();
    let flow = FlowMatching::default();
    let ddpm = ddpm();
    let cases: [(&dyn Scheduler, [f64; ROWS]); 2] = [
        (
            &ddpm,
            [80.0, 150.0, 300.0, 450.0, 600.0, 750.0, 900.0, 980.0],
        ),
        (&flow, [0.1, 0.2, 0.3, 0.5, 0.6, 0.75, 0.9, 0.98]),
    ];
    let mut compared = 0;
    for (scheduler, timesteps) in cases {
        for method in Method::ALL {
            let reference = terms(
                method,
                PredictionType::Epsilon,
                scheduler,
                &timesteps,
                &device,
            );
            for kind in KINDS {
                let terms = terms(method, kind, scheduler, &timesteps, &device);
                for (term, reference) in [
                    (&terms.retain, &reference.retain),
                    (&terms.forget, &reference.forget),
                ] {
                    let (Some(term), Some(reference)) = (term, reference) else {
                        assert!(term.is_none() && reference.is_none());
                        continue;
                    };
                    assert_eq!(
                        (&term.rows, &term.weights),
                        (&reference.rows, &reference.weights)
                    );
                    assert_eq!(host(term.noisy.clone()), host(reference.noisy.clone()));
                    let expected = host(reference.target.clone());
                    let error = difference(&implied_noise(term, kind, scheduler), &expected);
                    let error = norm(&error) / norm(&expected);
                    assert!(error < 2e-5, "{method} {kind:?} {scheduler:?}: {error}");
                    compared += 1;
                }
            }
        }
    }
    // Two processes, four prediction types, five methods with two terms and two with one.
    assert_eq!(compared, 2 * 4 * 12);
}

/// A step of every objective with every prediction type under every process changes the model.
#[test]
fn every_objective_steps_with_every_prediction_type() {
    let device = device();
    let processes: [fn(PredictionType) -> Box<dyn Scheduler>; 3] = [
        |_| Box::new(ddpm()),
        |kind| Box::new(without_terminal_signal(kind)),
        |_| Box::new(FlowMatching::default()),
    ];
    for process in processes {
        for way in Way::methods() {
            for kind in KINDS {
                let batch = points(&device);
                let model = Mlp::new(3, &device).predicting(kind);
                let builder = SissTrainer::builder(model, process(kind));
                let mut trainer = with_method(builder, way, batch.retain()).build().unwrap();
                let before = parameters(trainer.model());
                let report = trainer.step(batch).unwrap();
                assert_eq!(report.outcome, StepOutcome::Applied, "{way} {kind:?}");
                assert_ne!(before, parameters(trainer.model()));
            }
        }
    }
}

/// Zero terminal SNR: at `γ = 0` both points explain the noisy point equally well, and EraseDiff
/// omits the rows that it cannot map.
#[test]
fn every_objective_steps_where_there_is_no_signal() {
    let device = device();
    let last = [999.0; ROWS];
    for kind in [PredictionType::Sample, PredictionType::Velocity] {
        let scheduler = without_terminal_signal(kind);
        let siss = terms(Method::Siss, kind, &scheduler, &last, &device);
        assert_eq!(siss.retain.unwrap().weights, [1.0; ROWS]);
        assert_eq!(siss.forget.unwrap().weights, [-1.0; ROWS]);
        let erase_diff = terms(Method::EraseDiff, kind, &scheduler, &last, &device);
        assert!(erase_diff.forget.unwrap().rows.is_empty());
        for way in Way::methods() {
            let batch = points(&device);
            let model = Mlp::new(3, &device).predicting(kind);
            let builder = SissTrainer::builder(model, scheduler.clone());
            let mut trainer = with_method(builder, way, batch.retain()).build().unwrap();
            let report = trainer.step_with(&batch, &draws(&last, &device)).unwrap();
            assert_eq!(report.outcome, StepOutcome::Applied, "{way} {kind:?}");
        }
    }
}

/// An objective from outside the crate works like those of the crate: two terms, one with rows left
/// out.
#[test]
fn an_objective_of_ones_own_steps() {
    #[derive(Debug)]
    struct TowardsZero;
    impl SissLoss<2> for TowardsZero {
        fn name(&self) -> &'static str {
            "towards zero"
        }
        fn has_term(&self, side: Side) -> bool {
            side == Side::Forget
        }
        fn terms(&mut self, inputs: &LossInputs<'_, 2>) -> Result<LossTerms<2>> {
            let mut forget = inputs.plain_term(Side::Forget, 1.0);
            forget.target = Tensor::zeros_like(&forget.target);
            (forget.rows, forget.weights) = (vec![1, 3], vec![1.0, 2.0]);
            Ok(LossTerms {
                retain: None,
                forget: Some(forget),
            })
        }
    }
    let device = device();
    let mut trainer = SissTrainer::builder(Mlp::new(3, &device), ddpm())
        .loss(TowardsZero)
        .clipper(ConstantScale::new(1.0).unwrap())
        .thin_below(0.0)
        .build()
        .unwrap();
    let report = trainer.step(points(&device)).unwrap();
    assert_eq!(report.forget.unwrap().rows, 2);
    assert!(report.retain.is_none());
}

/// An objective from outside the crate whose first term does not fit the batch.
#[test]
fn a_term_that_does_not_fit_the_batch_is_refused_by_name() {
    type Change = fn(&mut LossTerm<2>);
    #[derive(Debug)]
    struct Changed(Change);
    impl SissLoss<2> for Changed {
        fn name(&self) -> &'static str {
            "changed"
        }
        fn has_term(&self, side: Side) -> bool {
            side == Side::Retain
        }
        fn terms(&mut self, inputs: &LossInputs<'_, 2>) -> Result<LossTerms<2>> {
            let mut retain = inputs.plain_term(Side::Retain, 1.0);
            (self.0)(&mut retain);
            Ok(LossTerms {
                retain: Some(retain),
                forget: None,
            })
        }
    }
    fn short(points: &Tensor<2>) -> Tensor<2> {
        points.clone().narrow(0, 0, ROWS - 1)
    }
    let cases: [(&str, Change); 6] = [
        ("a term's row is 8", |term| term.rows[ROWS - 1] = ROWS),
        ("a term's weights", |term| term.weights.truncate(ROWS - 1)),
        ("a term's timesteps", |term| {
            term.timesteps.truncate(ROWS - 1);
        }),
        ("a term's noisy points", |term| {
            term.noisy = short(&term.noisy);
        }),
        ("a term's targets", |term| term.target = short(&term.target)),
        ("a term's own targets", |term| {
            term.own_target = Some(short(&term.target));
        }),
    ];
    let device = device();
    for (says, change) in cases {
        let mut trainer = SissTrainer::builder(Mlp::new(3, &device), ddpm())
            .loss(Changed(change))
            .clipper(ConstantScale::new(1.0).unwrap())
            .build()
            .unwrap();
        let error = trainer.step(points(&device)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Each method of a boxed objective is that of the objective, those with a default among them.
#[test]
fn a_boxed_objective_is_the_objective() {
    #[derive(Debug, Default)]
    struct Unusual(f64);
    impl SissLoss<2> for Unusual {
        fn name(&self) -> &'static str {
            "unusual"
        }
        fn has_term(&self, side: Side) -> bool {
            side == Side::Forget
        }
        fn uses_mixture(&self) -> bool {
            true
        }
        fn ignores_condition(&self) -> bool {
            true
        }
        fn uses_teacher(&self) -> bool {
            true
        }
        fn extra_draws(&self) -> ExtraDraws {
            ExtraDraws::none().normal(Stream::Own("unusual"))
        }
        fn terms(&mut self, inputs: &LossInputs<'_, 2>) -> Result<LossTerms<2>> {
            self.0 += 1.0;
            Ok(LossTerms {
                retain: None,
                forget: Some(inputs.plain_term(Side::Forget, -1.0)),
            })
        }
        fn settings(&self) -> String {
            "unusual, very".into()
        }
        fn state(&self) -> Vec<f64> {
            vec![self.0]
        }
        fn restore(&mut self, state: &[f64]) -> Result<()> {
            self.0 = state[0];
            Ok(())
        }
    }
    let boxed: Box<dyn SissLoss<2>> = Box::new(Unusual::default());
    let mut twice: Box<dyn SissLoss<2>> = Box::new(boxed);
    assert_eq!(
        (twice.name(), twice.settings().as_str()),
        ("unusual", "unusual, very")
    );
    assert!(twice.has_term(Side::Forget) && !twice.has_term(Side::Retain));
    assert!(twice.uses_mixture() && twice.ignores_condition() && twice.uses_teacher());
    assert_eq!(twice.extra_draws(), Unusual(0.0).extra_draws());
    twice.restore(&[4.0]).unwrap();
    let device = device();
    let (batch, draws, process) = (points(&device), draws(&[300.0; ROWS], &device), ddpm());
    let inputs = LossInputs::new(&batch, &draws, &process, PredictionType::Epsilon).unwrap();
    assert!(twice.terms(&inputs).unwrap().retain.is_none());
    assert_eq!(twice.state(), [5.0]);
}
