//! Several devices take the step that one takes. On the CPU each replica has a thread of its own;
//! where two cards are available, `SISS_TEST_DEVICES=cuda:0,cuda:1` runs the same on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use siss::backend::DeviceSpec;
use siss::draws::Draws;
use siss::observer::StepOutcome;
use siss::steering::HardStop;
use siss::trainer::{AllReduce, Reduce, SumOnFirst};
use siss::*;
use siss_support::small::*;
use siss_support::way::Way;

const ROWS: usize = 7;

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

/// The devices of `count` replicas beside the model's own.
fn further(count: usize) -> Vec<Device> {
    let names = std::env::var("SISS_TEST_DEVICES").unwrap_or_default();
    let named = names.split(',').skip(1).filter(|name| !name.is_empty());
    let named: Vec<Device> = named
        .map(|name| name.parse::<DeviceSpec>().unwrap().device().unwrap())
        .collect();
    let own = vec![device()];
    let devices = if named.is_empty() { own } else { named };
    devices.into_iter().cycle().take(count).collect()
}

fn assert_near(case: &str, left: &[f64], right: &[f64]) {
    let difference: Vec<f64> = left.iter().zip(right).map(|(a, b)| a - b).collect();
    let off = norm(&difference) / norm(right).max(1e-12);
    assert!(off <= 1e-6, "{case}: off by {off:.1e}");
    assert_eq!(left.len(), right.len(), "{case}");
}

/// Every method, with and without thinning that leaves devices without rows of a side, in
/// micro-batches and without, steered by a rule with a memory.
#[test]
fn several_devices_take_the_step_of_one() {
    let points = batch(ROWS, 0.4, 3, &device());
    let mut cases = 0;
    for way in Way::methods() {
        for (thin_below, micro_batch) in [(0.0, ROWS), (1.0, 2), (6.0, 3)] {
            let run = |replicas: usize| {
                let mut builder = SissTrainer::builder(Mlp::new(3, &device()), scheduler())
                    .method(way.method().unwrap())
                    .retained_points(points.retain().clone())
                    .thin_below(thin_below)
                    .micro_batch_size(micro_batch)
                    .learning_rate(1e-2)
                    .ema(0.9)
                    .replicas(further(replicas));
                if way.is_predicted() {
                    builder = builder.steering(level(0.5).with_rule(HardStop));
                }
                let mut trainer = builder.build().unwrap();
                let reports: Vec<StepReport> = (0..4)
                    .map(|_| trainer.step(points.clone()).unwrap())
                    .collect();
                (parameters(trainer.model()), reports)
            };
            let (expected, reports) = run(0);
            for replicas in 1..3 {
                let case = format!("{way}, τ {thin_below}, {replicas} replicas");
                let (found, again) = run(replicas);
                assert_near(&case, &found, &expected);
                for (report, again) in reports.iter().zip(&again) {
                    assert_eq!(again.outcome, StepOutcome::Applied, "{case}");
                    let rows = |report: &StepReport| {
                        [&report.retain, &report.forget]
                            .map(|term| term.as_ref().map(|term| term.rows))
                    };
                    assert_eq!(rows(report), rows(again), "{case}");
                    let figures = |report: &StepReport| {
                        let losses = [&report.retain, &report.forget];
                        let losses = losses
                            .into_iter()
                            .flatten()
                            .map(|term| term.mean_squared_error);
                        let norms = [report.norms.retain, report.norms.forget];
                        losses.chain(norms).collect::<Vec<f64>>()
                    };
                    assert_near(&case, &figures(again), &figures(report));
                }
                cases += 1;
            }
        }
    }
    println!("{cases} cases");
}

/// A model whose rows have a class each, and a layer that is never used.
#[derive(Module, Debug)]
struct Conditional {
    model: Mlp,
    class: Linear,
    unused: Linear,
    /// The number of the call that panics, counted down.
    #[module(skip)]
    left: Arc<AtomicUsize>,
}

impl Conditional {
    fn new() -> Self {
        let layer = |seed| seeded(LinearConfig::new(1, 3).init(&device()), seed);
        Self {
            model: Mlp::new(3, &device()),
            class: layer(4),
            unused: layer(5),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }
}

impl Denoiser<2> for Conditional {
    type Condition = Tensor<2>;

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, class: &Tensor<2>) -> Tensor<2> {
        assert!(
            self.left.fetch_sub(1, Ordering::SeqCst) > 1,
            "out of memory"
        );
        self.model.predict(noisy, timesteps, &()) + self.class.forward(class.clone())
    }
}

fn conditional_batch() -> UnlearningBatch<2, Tensor<2>> {
    let points = batch(ROWS, 0.4, 3, &device());
    let class = |shift: f64| {
        let numbers = (0..ROWS).map(|row| row as f32).collect::<Vec<_>>();
        Tensor::<1>::from_data(numbers.as_slice(), &device()).reshape([ROWS, 1]) * 0.2 + shift
    };
    let (retain, forget) = (points.retain().clone(), points.forget().clone());
    UnlearningBatch::with_conditions(retain, forget, class(0.0), class(-1.0)).unwrap()
}

/// Each row keeps its own condition, and a parameter without a gradient stays without one.
#[test]
fn conditions_go_with_their_rows() {
    let run = |replicas: usize| {
        let mut trainer = SissTrainer::builder(Conditional::new(), scheduler())
            .thin_below(0.0)
            .learning_rate(1e-2)
            .replicas(further(replicas))
            .build()
            .unwrap();
        let report = trainer.step(conditional_batch()).unwrap();
        (report.without_gradient, parameters(trainer.model()))
    };
    let (unused, expected) = run(0);
    assert_eq!(unused, ["unused.weight", "unused.bias"]);
    for replicas in [1, 2, 9] {
        let (found, parameters) = run(replicas);
        assert_eq!(found, unused);
        assert_near(&format!("{replicas} replicas"), &parameters, &expected);
    }
}

/// A device that panics is named, nothing is changed, and the next step is taken. On the CPU all
/// devices have one name.
#[test]
fn a_device_that_fails_is_named_and_loses_nothing() {
    let points = conditional_batch();
    let mut trainer = SissTrainer::builder(Conditional::new(), scheduler())
        .replicas(further(2))
        .build()
        .unwrap();
    trainer.step(points.clone()).unwrap();
    let draws: Draws<2> = trainer.draw(&points).unwrap();
    let before = parameters(trainer.model());
    let devices = std::iter::once(device()).chain(further(2));
    let names: Vec<String> = devices.map(|device| format!("{device:?}")).collect();
    for call in 1..4 {
        trainer.model().left.store(call, Ordering::SeqCst);
        let error = trainer.step_with(&points, &draws).unwrap_err();
        trainer.model().left.store(usize::MAX, Ordering::SeqCst);
        let Error::DeviceFailed { device: failed, .. } = &error else {
            panic!("{error}");
        };
        assert!(names.contains(failed), "{error}");
        let text = error.to_string();
        assert!(text.contains(failed.as_str()), "{text}");
        assert!(text.contains("out of memory"), "{text}");
        assert!(text.contains("the last checkpoint"), "{text}");
        assert_eq!(parameters(trainer.model()), before);
        assert_eq!(trainer.next_step(), 1);
    }
    trainer.step_with(&points, &draws).unwrap();
    assert_ne!(parameters(trainer.model()), before);
}

/// The run ends when a device fails, and goes on from the last checkpoint as if nothing had
/// happened: with the failed device, or without.
#[test]
fn a_run_goes_on_from_its_checkpoint_after_a_device_failed() {
    let builder = |replicas: usize| {
        let builder = SissTrainer::builder(Conditional::new(), scheduler());
        builder.learning_rate(1e-2).replicas(further(replicas))
    };
    let whole = |replicas: usize| {
        let mut trainer = builder(replicas).build().unwrap();
        (0..5).for_each(|_| drop(trainer.step(conditional_batch()).unwrap()));
        parameters(trainer.model())
    };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = builder(2).build().unwrap();
    let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
    (0..3).for_each(|_| drop(trainer.step(conditional_batch()).unwrap()));
    checkpoints.save(&mut trainer, &()).unwrap();
    // A step is lost that was taken after the checkpoint.
    trainer.step(conditional_batch()).unwrap();
    trainer.model().left.store(2, Ordering::SeqCst);
    let error = trainer.step(conditional_batch()).unwrap_err();
    assert!(matches!(error, Error::DeviceFailed { .. }), "{error}");
    drop((trainer, checkpoints));

    for replicas in [2, 0] {
        let mut trainer = builder(replicas).build().unwrap();
        let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
        let resumed = checkpoints.resume(&mut trainer).unwrap().unwrap();
        assert_eq!((resumed.step, trainer.next_step()), (3, 3));
        (0..2).for_each(|_| drop(trainer.step(conditional_batch()).unwrap()));
        let found = parameters(trainer.model());
        match replicas {
            0 => assert_near("without the device", &found, &whole(2)),
            _ => assert_eq!(found, whole(2)),
        }
    }
}

/// Counts the sums.
#[derive(Debug)]
struct Counting(Arc<AtomicUsize>);

impl Reduce for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }

    fn sum(&self, parts: Vec<Tensor<1>>) -> Result<Tensor<1>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        SumOnFirst.sum(parts)
    }
}

/// One sum per term and step, whatever the number of devices and of micro-batches.
#[test]
fn each_term_is_added_up_once_in_a_step() {
    const STEPS: usize = 3;
    for (method, terms) in [(Method::Siss, 2), (Method::NaiveDeletion, 1)] {
        for (replicas, micro_batch) in [(1, ROWS), (3, 1), (0, ROWS)] {
            let count = Arc::new(AtomicUsize::new(0));
            let mut trainer = SissTrainer::builder(Mlp::new(3, &device()), scheduler())
                .method(method)
                .thin_below(0.0)
                .micro_batch_size(micro_batch)
                .replicas(further(replicas))
                .reduce(Counting(count.clone()))
                .build()
                .unwrap();
            for _ in 0..STEPS {
                trainer.step(batch(ROWS, 0.4, 3, &device())).unwrap();
            }
            // One device has nothing to add up.
            let expected = if replicas == 0 { 0 } else { terms * STEPS };
            let counted = count.load(Ordering::SeqCst);
            assert_eq!(counted, expected, "{method}, {replicas} replicas");
        }
    }
}

/// An all-reduce is between different GPUs: on the CPU it says why it is not possible.
#[test]
fn an_all_reduce_on_the_cpu_is_refused() {
    let twice = AllReduce::new(vec![Device::flex(); 2]).unwrap_err();
    assert!(matches!(twice, Error::InvalidSetting { .. }), "{twice}");
    let one = AllReduce::new(vec![Device::flex()]).unwrap_err();
    assert!(matches!(one, Error::InvalidSetting { .. }), "{one}");
}

#[derive(Debug)]
struct Unplugged;

impl Reduce for Unplugged {
    fn name(&self) -> &'static str {
        "Unplugged"
    }

    fn sum(&self, parts: Vec<Tensor<1>>) -> Result<Tensor<1>> {
        Err(Error::DeviceFailed {
            device: format!("device {}", parts.len() - 1),
            reason: "no cable".into(),
        })
    }
}

/// A reduction of one's own is used, and its error ends the step.
#[test]
fn a_reduction_that_fails_ends_the_step() {
    let points = batch(ROWS, 0.4, 3, &device());
    let mut trainer = SissTrainer::builder(Mlp::new(3, &device()), scheduler())
        .replicas(further(2))
        .reduce(Unplugged)
        .build()
        .unwrap();
    let before = parameters(trainer.model());
    let error = trainer.step(points).unwrap_err().to_string();
    assert!(error.contains("device 2 failed: no cable"), "{error}");
    assert_eq!(parameters(trainer.model()), before);
}
