//! The same seed gives the same bytes on the CPU, for any number of threads.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::tensor::Tensor;
use siss::draws::{Stream, normal_noise};
use siss::models::UNet2d;
use siss::observer::{JsonLog, StepOutcome};
use siss::*;
use siss_support::small::*;

const STEPS: u64 = 4;

/// The settings of one of twenty runs.
#[derive(Debug, Clone, Copy)]
struct Setting {
    method: Method,
    thin_below: f64,
    micro_batch: Option<usize>,
    ema: bool,
    steered: bool,
    kind: PredictionType,
    is_unet: bool,
}

/// Each method at least twice; thinning, micro-batches, average, steering and prediction type
/// alternate with different periods.
fn settings() -> Vec<Setting> {
    let kinds = [
        PredictionType::Epsilon,
        PredictionType::Velocity,
        PredictionType::Sample,
        PredictionType::FlowVelocity,
    ];
    (0..20)
        .map(|index| {
            let method = Method::ALL[index % Method::ALL.len()];
            let forgets = method != Method::NaiveDeletion;
            Setting {
                method,
                thin_below: [1.0, 0.0, 2.0][index % 3],
                micro_batch: [None, Some(5), Some(2)][(index / 2) % 3],
                ema: index % 2 == 0,
                steered: forgets && index % 5 == 4,
                kind: kinds[(index / 3) % 4],
                is_unet: index >= 15,
            }
        })
        .collect()
}

/// A UNet with convolutions, attention and group normalisation, loaded from a file: fresh
/// parameters would come from a generator that the whole process shares.
fn unet() -> UNet2d {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/conformance/unet_tshirt_tiny"
    );
    UNet2d::load(folder, &device()).unwrap()
}

fn images(rows: usize) -> UnlearningBatch<4> {
    let points =
        |part| normal_noise([rows, 1, 12, 12], 1, part, 0, Stream::Evaluation, &device()) * 0.4;
    let batch = UnlearningBatch::new(points(1), points(2)).unwrap();
    batch.with_forget_ids((0..rows as u64).collect()).unwrap()
}

/// The results of a run: parameters, their average, and the log.
fn run<M: Denoiser<D, Condition = ()>, const D: usize>(
    model: M,
    batch: &UnlearningBatch<D>,
    setting: Setting,
) -> Vec<u8> {
    let lines = Arc::new(Mutex::new(JsonLog::new(Vec::new())));
    let mut builder = SissTrainer::builder(model, DdpmScheduler::linear(1000).unwrap())
        .method(setting.method)
        .retained_points(batch.retain().clone())
        .thin_below(setting.thin_below)
        .learning_rate(1e-3)
        .observer(lines.clone())
        .seed(17);
    if let Some(rows) = setting.micro_batch {
        builder = builder.micro_batch_size(rows);
    }
    if setting.ema {
        builder = builder.ema(0.9);
    }
    if setting.steered {
        builder = builder.steering(level(1.2));
    }
    let mut trainer = builder.build().unwrap();
    for _ in 0..STEPS {
        let report = trainer.step(batch.clone()).unwrap();
        assert_eq!(
            report.outcome,
            StepOutcome::Applied,
            "{setting:?}: {report}"
        );
    }
    let mut bytes = trainer
        .ema_model()
        .map_or(Vec::new(), |model| bytes(&model));
    bytes.extend(self::bytes(&trainer.into_model()));
    let lines = Arc::try_unwrap(lines).unwrap().into_inner().unwrap();
    bytes.extend(lines.into_inner());
    bytes
}

fn bytes<M: Module>(model: &M) -> Vec<u8> {
    let parameters = parameters(model).into_iter();
    parameters.flat_map(|p| (p as f32).to_le_bytes()).collect()
}

fn bytes_of(setting: Setting) -> Vec<u8> {
    if setting.is_unet {
        let unet = unet().with_prediction_type(setting.kind);
        run(unet, &images(8), setting)
    } else {
        run(
            Mlp::new(3, &device()).predicting(setting.kind),
            &batch(16, 0.4, 5, &device()),
            setting,
        )
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn the_same_seed_twice_is_equal_byte_by_byte_in_twenty_settings() {
    let mut hashes = Vec::new();
    for setting in settings() {
        let (first, again) = (bytes_of(setting), bytes_of(setting));
        assert!(first == again, "{setting:?}");
        hashes.push(hash(&first));
    }
    println!("20 settings, each equal: {hashes:x?}");
    let mut different = hashes.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(
        different.len(),
        20,
        "the settings must differ from each other"
    );
}

/// Names the file in which the children of the next test write their results.
const OUT: &str = "SISS_DETERMINISM_OUT";

/// A run that is large enough to be split between threads: 32 × 32 pixels, and at least as many
/// rows as threads.
fn many_threads_run() -> Vec<u8> {
    let points = |part| {
        let shape = [12, 1, 32, 32];
        normal_noise(shape, 2, part, 0, Stream::Evaluation, &device()) * 0.4
    };
    let batch: UnlearningBatch<4> = UnlearningBatch::new(points(1), points(2)).unwrap();
    let setting = Setting {
        thin_below: 0.0,
        is_unet: true,
        ..settings()[0]
    };
    run(unet(), &batch, setting)
}

/// Children of this process with 1, 2, 4 and 7 threads write the same bytes: parameters and log.
#[test]
fn the_number_of_threads_changes_nothing() {
    if let Ok(path) = std::env::var(OUT) {
        std::fs::write(path, many_threads_run()).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let with_threads = |threads: usize| {
        let path = folder.path().join(threads.to_string());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_number_of_threads_changes_nothing", "--exact"])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .env(OUT, &path)
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        std::fs::read(path).unwrap()
    };
    let one = with_threads(1);
    for threads in [2, 4, 7] {
        let more = with_threads(threads);
        println!(
            "{threads} threads: hash {:x}, 1 thread: {:x}",
            hash(&more),
            hash(&one)
        );
        assert!(more == one, "{threads} threads");
    }
}

/// The random draws of a step do not depend on the device's generator either.
#[test]
fn the_generator_of_the_process_has_no_part_in_a_run() {
    let setting = settings()[0];
    device().seed(1);
    let first = bytes_of(setting);
    device().seed(2);
    Tensor::<1>::random([100], burn::tensor::Distribution::Default, &device());
    assert!(first == bytes_of(setting));
}
