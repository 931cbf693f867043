//! Where the optimiser's state is kept, and in which precision parameters are updated.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use siss::checkpoint::model_fingerprint;
use siss::draws::Draws;
use siss::trainer::{FusedAdamW, MasterWeights, Offloaded, SissTrainerBuilder};
use siss::*;
use siss_support::small::*;

const ROWS: usize = 8;

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn steps<M: Denoiser<2, Condition = ()>>(trainer: &mut SissTrainer<M, 2>, count: u64) {
    for _ in 0..count {
        let points = batch(ROWS, 0.4, trainer.next_step(), &device());
        trainer.step(points).unwrap();
    }
}

fn builder() -> SissTrainerBuilder<Mlp, 2> {
    SissTrainer::builder(Mlp::new(3, &device()), scheduler()).learning_rate(1e-2)
}

fn narrow(dtype: FloatDType) -> SissTrainerBuilder<Narrow, 2> {
    SissTrainer::builder(Narrow::new(3, dtype, &device()), scheduler())
}

fn with<M: Denoiser<2>>(
    builder: SissTrainerBuilder<M, 2>,
    is_away: bool,
) -> SissTrainerBuilder<M, 2> {
    match is_away {
        true => builder.optimizer_state_device(Device::flex()),
        false => builder,
    }
}

#[test]
fn a_run_whose_state_is_elsewhere_is_the_same_run() {
    for replicas in 0..3 {
        let run = |is_away| {
            let replicas = (0..replicas).map(|_| device());
            let builder = with(builder().ema(0.9).replicas(replicas), is_away);
            let mut trainer = builder.build().unwrap();
            steps(&mut trainer, 6);
            let average = trainer.ema_model().unwrap();
            [parameters(trainer.model()), parameters(&average)]
        };
        assert_eq!(run(true), run(false), "{replicas} replicas");
    }
}

#[test]
fn an_optimiser_of_ones_own_is_wrapped_and_not_moved() {
    let adam = || FusedAdamW::new([0.9, 0.99], 1e-6, 0.1);
    let run = |optimizer: ModuleOptimizer| {
        let mut trainer = builder().optimizer(optimizer).build().unwrap();
        steps(&mut trainer, 4);
        parameters(trainer.model())
    };
    let expected = run(adam().into());
    assert_eq!(run(Offloaded::new(adam(), Device::flex()).into()), expected);
    assert_eq!(run(MasterWeights::new(adam()).into()), expected);

    let own = || builder().optimizer(AdamWConfig::new().init());
    for (builder, words) in [
        (
            own().optimizer_state_device(Device::flex()),
            ["optimizer_state_device is", "Offloaded::new"],
        ),
        (
            own().master_weights(true),
            ["master_weights is true", "MasterWeights::new"],
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

/// A run of eight steps whose process ends after five: the parameters, and the fingerprint of the
/// model that it returns.
fn interrupted<M: Denoiser<2, Condition = ()>>(
    builder: impl Fn() -> SissTrainerBuilder<M, 2>,
    [before, after]: [bool; 2],
) -> (Vec<f64>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut first = with(builder(), before).build().unwrap();
    steps(&mut first, 5);
    let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
    checkpoints.save(&mut first, &()).unwrap();
    drop(checkpoints);
    let mut second = with(builder(), after).build().unwrap();
    let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
    let resumed = checkpoints.resume(&mut second).unwrap();
    assert_eq!(resumed.unwrap().step, 5);
    steps(&mut second, 3);
    finished(second)
}

fn uninterrupted<M: Denoiser<2, Condition = ()>>(
    builder: SissTrainerBuilder<M, 2>,
) -> (Vec<f64>, String) {
    let mut trainer = builder.build().unwrap();
    steps(&mut trainer, 8);
    finished(trainer)
}

fn finished<M: Denoiser<2>>(trainer: SissTrainer<M, 2>) -> (Vec<f64>, String) {
    let model = trainer.into_model();
    (parameters(&model), model_fingerprint(&model).unwrap())
}

#[test]
fn a_run_goes_on_with_its_state_in_another_place() {
    let expected = uninterrupted(builder().ema(0.9));
    for places in [[false, true], [true, false], [true, true]] {
        let found = interrupted(|| builder().ema(0.9), places);
        assert_eq!(found, expected, "{places:?}");
    }
}

#[test]
fn the_copy_in_f32_goes_on_from_a_checkpoint() {
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        // So small that the parameters alone say little of where the copy is.
        let builder = || narrow(dtype).learning_rate(1e-4).master_weights(true);
        let expected = uninterrupted(builder());
        for places in [[false, false], [false, true], [true, false]] {
            let found = interrupted(builder, places);
            assert_eq!(found, expected, "{dtype:?}, {places:?}");
        }
    }
}

#[test]
fn a_run_does_not_go_on_with_another_precision_of_its_update() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = builder().master_weights(true).build().unwrap();
    steps(&mut first, 1);
    let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
    checkpoints.save(&mut first, &()).unwrap();
    let mut second = builder().build().unwrap();
    let error = checkpoints.resume(&mut second).unwrap_err();
    let said = "master_weights was true and is false";
    assert!(error.to_string().contains(said), "{error}");
}

fn types<M: Module>(model: &M) -> Vec<DType> {
    struct Collect(Vec<DType>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().dtype());
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

/// A thousand steps of plain training at a rate that bf16 rounds away in most numbers.
#[test]
fn small_steps_reach_parameters_in_bf16_by_way_of_a_copy() {
    let points = batch(64, 0.4, 3, &device());
    let run = |dtype, in_f32| {
        let builder = narrow(dtype)
            .method(Method::NaiveDeletion)
            .learning_rate(2e-4)
            .master_weights(in_f32);
        let mut trainer = builder.build().unwrap();
        let draws: Draws<2> = trainer.draw(&points).unwrap();
        for _ in 0..1000 {
            let draws = trainer.draw(&points).unwrap();
            trainer.step_with(&points, &draws).unwrap();
        }
        let last = trainer.gradients(&points, &draws).unwrap();
        let loss = last.report.retain.unwrap().loss;
        let model = trainer.into_model();
        (loss, parameters(&model), types(&model))
    };
    let begin = parameters(&Narrow::new(3, FloatDType::F32, &device()));
    let (loss, wide, _) = run(FloatDType::F32, false);
    let far = |of: &[f64]| norm(&difference(of, &wide));
    let moved = far(&begin);
    let (rounded_loss, rounded, _) = run(FloatDType::BF16, false);
    let (copied_loss, copied, types) = run(FloatDType::BF16, true);
    println!(
        "moved {moved:.3}; off by {:.3} without the copy, {:.3} with it; losses {loss:.4}, {rounded_loss:.4}, {copied_loss:.4}",
        far(&rounded),
        far(&copied)
    );
    assert_eq!(types, [DType::BF16; 4]);
    assert!(far(&rounded) > 0.5 * moved);
    assert!(far(&copied) < 0.05 * moved);
    assert!((copied_loss - loss).abs() < 0.2 * (rounded_loss - loss).abs());
}
