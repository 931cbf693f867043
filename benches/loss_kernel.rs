//! The loss kernel, the mixture draw and the weights, at the sizes of digits, faces and latents.

use burn::tensor::{Device, Tensor};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use siss::kernel::weighted_squared_error;
use siss::loss::survivors;
use siss::{DdpmScheduler, SchedulerExt, Stream, importance_weights, mixture_points, normal_noise};

const SHAPES: [(&str, [usize; 4]); 3] = [
    ("digits", [64, 1, 28, 28]),
    ("latents", [16, 4, 64, 64]),
    ("faces256", [8, 3, 256, 256]),
];

fn noise(shape: [usize; 4], seed: u64, device: &Device) -> Tensor<4> {
    normal_noise(shape, seed, 0, 0, Stream::Evaluation, device)
}

/// Reads prediction and target, writes the seed: 12 bytes an element; beside it a copy of as many bytes.
fn loss_kernel(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut group = criterion.benchmark_group("weighted_squared_error");
    for (name, shape) in SHAPES {
        let elements: usize = shape.iter().product();
        group.throughput(Throughput::Bytes(12 * elements as u64));
        let (prediction, target) = (noise(shape, 1, &device), noise(shape, 2, &device));
        let weights = Tensor::<1>::ones([shape[0]], &device);
        group.bench_function(BenchmarkId::new("kernel", name), |bencher| {
            bencher.iter(|| {
                let error = weighted_squared_error(
                    prediction.clone(),
                    target.clone(),
                    weights.clone(),
                    shape[0],
                );
                device.sync().ok();
                error
            });
        });
        let source = vec![1.0f32; 3 * elements / 2];
        let mut copy = vec![0.0f32; 3 * elements / 2];
        group.bench_function(BenchmarkId::new("copy of as many bytes", name), |bencher| {
            bencher.iter(|| {
                std::hint::black_box(&mut copy).copy_from_slice(std::hint::black_box(&source))
            });
        });
    }
    group.finish();
}

fn mixture(criterion: &mut Criterion) {
    let device = Device::flex();
    let scheduler = DdpmScheduler::linear(1000).expect("a legal schedule");
    let mut group = criterion.benchmark_group("mixture_points");
    for (name, shape) in SHAPES {
        let points = [1, 2, 3].map(|seed| noise(shape, seed, &device));
        let timesteps: Vec<f64> = (0..shape[0])
            .map(|row| (row * 1000 / shape[0]) as f64)
            .collect();
        let scales = scheduler.scales(&timesteps).expect("legal timesteps");
        let from_forget: Vec<bool> = (0..shape[0]).map(|row| row % 2 == 0).collect();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || points.clone(),
                |[retain, forget, noise]| {
                    let points = mixture_points(retain, forget, noise, &scales, &from_forget);
                    device.sync().ok();
                    points
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn weights(criterion: &mut Criterion) {
    let log_ratios: Vec<f64> = (0..1024).map(|row| (row as f64 - 512.0) / 16.0).collect();
    criterion.bench_function("importance weights and thinning of 1,024 rows", |bencher| {
        bencher.iter(|| {
            let weights: Vec<f64> = log_ratios
                .iter()
                .map(|&log_ratio| importance_weights(log_ratio, 0.5).forget)
                .collect();
            survivors(&weights, 1.0, 0.3)
        });
    });
}

criterion_group!(benches, loss_kernel, mixture, weights);
criterion_main!(benches);
