//! Benchmarks of a whole optimiser step on the network of the digits: each objective, and naive
//! deletion, which is a plain training step.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use siss::draws::{Stream, normal_noise};
use siss::models::UNet2d;
use siss::{DdpmScheduler, Method, SissTrainer, UnlearningBatch};

const ROWS: usize = 16;

fn step(criterion: &mut Criterion) {
    let device = Device::flex();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/base");
    let model = UNet2d::load(folder, &device).expect("the bundled model");
    // As far apart as a digit and the T-shirt, ‖x − a‖ ≈ 29.
    let retain: Tensor<4> = normal_noise([ROWS, 1, 28, 28], 1, 0, 0, Stream::Evaluation, &device);
    let forget = retain.clone() + 29.0 / 28.0;
    let mut group = criterion.benchmark_group("step of 16 rows");
    group.sample_size(10);
    for (name, method, thin_below) in [
        ("naive deletion", Method::NaiveDeletion, 1.0),
        ("SISS", Method::Siss, 1.0),
        ("SISS, exact", Method::Siss, 0.0),
        ("SISS (No IS)", Method::SissNoIs, 1.0),
    ] {
        let scheduler = DdpmScheduler::linear(1000).expect("a legal schedule");
        let mut trainer = SissTrainer::builder(model.clone(), scheduler)
            .method(method)
            .thin_below(thin_below)
            .build()
            .expect("legal settings");
        let batch = UnlearningBatch::new(retain.clone(), forget.clone()).expect("a legal batch");
        group.bench_function(name, |bencher| {
            bencher.iter(|| trainer.step(batch.clone()).expect("a step"));
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
