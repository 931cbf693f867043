//! Benchmarks of the loss kernel, the mixture draw and the weights, at the sizes of digits, faces
//! and latents.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use siss::DdpmScheduler;
use siss::backend::DeviceSpec;
use siss::draws::{Stream, normal_noise};
use siss::kernel::weighted_squared_error;
use siss::objective::survivors;
use siss::objective::{importance_weights, mixture_points};
use siss::process::SchedulerExt;

const SHAPES: [(&str, [usize; 4]); 3] = [
    ("digits", [64, 1, 28, 28]),
    ("latents", [16, 4, 64, 64]),
    ("faces256", [16, 3, 256, 256]),
];

fn noise(shape: [usize; 4], seed: u64, device: &Device) -> Tensor<4> {
    normal_noise(shape, seed, 0, 0, Stream::Evaluation, device)
}

/// The kernel reads prediction and target and writes the seed over the target: 12 bytes per
/// element. For comparison, a copy over the same memory, 8 bytes per element, with as many threads
/// (`RAYON_NUM_THREADS`).
fn loss_kernel(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut group = criterion.benchmark_group("weighted_squared_error");
    for (name, shape) in SHAPES {
        let elements: usize = shape.iter().product();
        let (prediction, target) = (noise(shape, 1, &device), noise(shape, 2, &device));
        let weights = Tensor::<1>::ones([shape[0]], &device);
        let kernel = |target| {
            weighted_squared_error(prediction.clone(), target, weights.clone(), shape[0])
                .expect("fitting shapes")
        };
        let source = vec![1.0f32; elements];
        let mut copy = source.clone();
        group.throughput(Throughput::Bytes(8 * elements as u64));
        group.bench_function(BenchmarkId::new("copy", name), |bencher| {
            bencher.iter(|| copy_over(black_box(&source), black_box(&mut copy)));
        });
        group.throughput(Throughput::Bytes(12 * elements as u64));
        // As in a step, the kernel owns the target: here the target is the last seed.
        let mut own = target.clone() + 0.0;
        group.bench_function(BenchmarkId::new("kernel", name), |bencher| {
            bencher.iter(|| own = kernel(std::mem::replace(&mut own, target.clone())).seed);
        });
        group.bench_function(BenchmarkId::new("kernel, shared target", name), |bencher| {
            bencher.iter(|| kernel(target.clone()));
        });
        group.bench_function(BenchmarkId::new("burn's operations", name), |bencher| {
            bencher.iter(|| in_operations(prediction.clone(), target.clone(), weights.clone()));
        });
    }
    group.finish();
}

/// Each thread copies its share; a single thread copies everything where waking another takes
/// longer.
fn copy_over(source: &[f32], copy: &mut [f32]) {
    let share = source.len().div_ceil(rayon::current_num_threads());
    if source.len() < 1 << 16 {
        copy.copy_from_slice(source);
    } else {
        let parts = copy.par_chunks_mut(share).zip(source.par_chunks(share));
        parts.for_each(|(copy, source)| copy.copy_from_slice(source));
    }
}

/// The same computation in tensor operations.
fn in_operations(
    prediction: Tensor<4>,
    target: Tensor<4>,
    weights: Tensor<1>,
) -> (Tensor<1>, Tensor<4>) {
    let [rows, channels, height, width] = prediction.dims();
    let difference = prediction - target;
    let squares = difference.clone() * difference.clone();
    let losses = squares
        .reshape([rows, channels * height * width])
        .sum_dim(1);
    let factor = weights * (2.0 / rows as f64);
    (
        losses.reshape([rows]),
        difference * factor.reshape([rows, 1, 1, 1]),
    )
}

/// The draw reads both points and the noise, and writes the noisy point and two explanations: 24
/// bytes per element. For comparison, a copy of as many bytes, into newly allocated memory like the
/// draw's.
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
        let bytes = 24 * shape.iter().product::<usize>();
        group.throughput(Throughput::Bytes(bytes as u64));
        let source = vec![1.0f32; bytes / 8];
        group.bench_function(BenchmarkId::new("copy", name), |bencher| {
            bencher.iter(|| {
                let mut copy = vec![0.0; source.len()];
                copy_over(black_box(&source), &mut copy);
                copy
            });
        });
        // Tensors of an autodiff device are left to burn's operations.
        let tracked = points.clone().map(Tensor::autodiff);
        for (what, points) in [("draw", points), ("burn's operations", tracked)] {
            group.bench_function(BenchmarkId::new(what, name), |bencher| {
                bencher.iter_batched(
                    || points.clone(),
                    |[retain, forget, noise]| {
                        let points = mixture_points(retain, forget, noise, &scales, &from_forget)
                            .expect("fitting shapes");
                        device.sync().ok();
                        points
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

/// Images of 256 x 256 on another device: enough to keep it busy.
const ON_DEVICE: [usize; 4] = [256, 3, 256, 256];

/// Loss kernel and draw on the device of `SISS_BENCH_DEVICE`, such as `cuda:0`. For comparison, an
/// operation that reads and writes each number once: a copy with one addition. Nothing waits for
/// the device until all rounds have been queued.
fn on_device(criterion: &mut Criterion) {
    let Ok(spec) = std::env::var("SISS_BENCH_DEVICE") else {
        return;
    };
    let spec = spec.parse::<DeviceSpec>().expect("a device");
    let device = spec.device().expect("a device that is compiled in");
    let [first, second, third] = [1, 2, 3].map(|seed| noise(ON_DEVICE, seed, &device));
    let [rows, ..] = ON_DEVICE;
    let ones = Tensor::<1>::ones([rows], &device);
    let scheduler = DdpmScheduler::linear(1000).expect("a legal schedule");
    let timesteps: Vec<f64> = (0..rows).map(|row| (3 * row) as f64).collect();
    let scales = scheduler.scales(&timesteps).expect("legal timesteps");
    let from_forget: Vec<bool> = (0..rows).map(|row| row % 2 == 0).collect();
    let kernel = || {
        weighted_squared_error(first.clone(), second.clone(), ones.clone(), rows)
            .expect("fitting shapes");
    };
    let draw = || {
        let points = [&first, &second, &third].map(Tensor::clone);
        let [retain, forget, noise] = points;
        mixture_points(retain, forget, noise, &scales, &from_forget).expect("fitting shapes");
    };
    let copy = || {
        let _ = first.clone() + 1.0;
    };
    let operations = || {
        let _ = in_operations(first.clone(), second.clone(), ones.clone());
    };
    let mut group = criterion.benchmark_group(format!("on {spec}"));
    let variants: [(&str, u64, &dyn Fn()); 4] = [
        ("copy", 8, &copy),
        ("loss kernel", 12, &kernel),
        ("mixture draw", 24, &draw),
        ("the loss in burn's operations", 12, &operations),
    ];
    let elements = ON_DEVICE.iter().product::<usize>() as u64;
    for (name, bytes, run) in variants {
        group.throughput(Throughput::Bytes(bytes * elements));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                device.sync().expect("a device that works");
                let began = Instant::now();
                (0..rounds).for_each(|_| run());
                device.sync().expect("a device that works");
                began.elapsed()
            });
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

criterion_group!(benches, loss_kernel, mixture, weights, on_device);
criterion_main!(benches);
