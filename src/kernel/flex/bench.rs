//! How fast the operations are beside burn's: `cargo test --release --lib flex::bench -- --ignored
//! --nocapture --test-threads 1`.

use std::time::Instant;

use burn::nn::conv::Conv2dConfig;
use burn::nn::{GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, Tensor};

use super::tests::PLAIN;
use crate::Denoiser;
use crate::models::UNet2d;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Seconds that the processor spent on this program, all threads together: a busy machine does not
/// count.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = tasks.filter_map(|task| {
        let statistics = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        statistics.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}

/// Processor time of the own and of the plain version: medians of interleaved rounds.
fn compare(name: &str, rounds: usize, run: impl Fn()) {
    let time = |plain: bool| {
        PLAIN.set(plain);
        let start = (Instant::now(), processor_seconds());
        run();
        [
            start.0.elapsed().as_secs_f64(),
            processor_seconds() - start.1,
        ]
    };
    time(false);
    time(true);
    let (mut own, mut plain) = (vec![], vec![]);
    for _ in 0..rounds {
        own.push(time(false));
        plain.push(time(true));
    }
    PLAIN.set(false);
    let median = |times: &[[f64; 2]], which: usize| {
        let mut times: Vec<f64> = times.iter().map(|time| time[which] * 1e3).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let [wall, processor] = [0, 1].map(|which| [median(&own, which), median(&plain, which)]);
    println!(
        "{name:58} processor ms: own {:7.2} plain {:7.2} ratio {:.2}; wall: {:7.2} {:7.2} {:.2}",
        processor[0],
        processor[1],
        processor[0] / processor[1],
        wall[0],
        wall[1],
        wall[0] / wall[1],
    );
}

#[test]
#[ignore = "a measurement"]
fn unet() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/base/unet");
    let model = UNet2d::load(folder, &Device::flex().autodiff()).unwrap();
    let plain_model = UNet2d::load(folder, &Device::flex()).unwrap();
    for rows in [16, 32] {
        let input = random([rows, 1, 28, 28]);
        let timesteps = Tensor::<1>::full([rows], 500.0, &Device::flex());
        let seed = random([rows, 1, 28, 28]);
        compare(&format!("unet forward, {rows}"), 9, || {
            plain_model.predict(input.clone(), timesteps.clone(), &());
        });
        compare(&format!("unet forward + backward, {rows}"), 9, || {
            let output = model.predict(input.clone(), timesteps.clone(), &());
            let _ = (output * seed.clone()).sum().backward();
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn group_norm_silu() {
    for [channels, size] in [[32, 28], [64, 28], [64, 14], [128, 14], [128, 7]] {
        let layer = GroupNormConfig::new(8, channels).init(&Device::flex());
        let input = random([32, channels, size, size]);
        let seed = random([32, channels, size, size]);
        compare(
            &format!("norm + silu forward, {channels} × {size}²"),
            15,
            || {
                crate::models::ops::group_norm_silu(&layer, input.clone());
            },
        );
        let tracked = input.autodiff().require_grad();
        compare(
            &format!("norm + silu both, {channels} × {size}²"),
            15,
            || {
                let output = crate::models::ops::group_norm_silu(&layer, tracked.clone());
                let _ = (output * seed.clone()).sum().backward();
            },
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn convolution() {
    for ([inputs, outputs, size], [kernel, stride]) in [
        ([1, 32, 28], [3, 1]),
        ([32, 32, 28], [3, 1]),
        ([64, 32, 28], [3, 1]),
        ([64, 64, 14], [3, 1]),
        ([128, 64, 14], [3, 1]),
        ([64, 64, 7], [3, 1]),
        ([32, 32, 28], [3, 2]),
        ([64, 64, 28], [1, 1]),
        ([32, 1, 28], [3, 1]),
    ] {
        let layer = Conv2dConfig::new([inputs, outputs], [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(
                kernel / 2,
                kernel / 2,
                kernel / 2,
                kernel / 2,
            ));
        let plain = layer.init(&Device::flex());
        let layer = layer.init(&Device::flex().autodiff());
        let input = random([32, inputs, size, size]);
        let name = format!("{inputs} → {outputs}, {size}², {kernel}×{kernel} / {stride}");
        let work = 32 * inputs * outputs * (size / stride).pow(2) * kernel * kernel;
        let name = format!("{name}, {:.2} GFLOP", 2e-9 * work as f64);
        compare(&format!("conv forward {name}"), 9, || {
            crate::models::ops::convolve(&plain, input.clone());
        });
        let seed = crate::models::ops::convolve(&plain, input.clone());
        let tracked = input.autodiff().require_grad();
        compare(&format!("conv both    {name}"), 9, || {
            let output = crate::models::ops::convolve(&layer, tracked.clone());
            let _ = (output * seed.clone()).sum().backward();
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn attention() {
    for (positions, channels, heads) in [(196, 64, 8), (49, 64, 8), (196, 64, 1), (1024, 64, 2)] {
        let rows = 32 * 196 / positions;
        let [query, key, value, seed] =
            [(); 4].map(|()| random([rows.max(1), channels, positions]));
        let name = format!("{positions} positions, {heads} heads of {channels} channels");
        compare(&format!("attention forward {name}"), 9, || {
            crate::models::ops::attend(query.clone(), key.clone(), value.clone(), heads);
        });
        let [query, key, value] = [query, key, value].map(|t| t.autodiff().require_grad());
        compare(&format!("attention both    {name}"), 9, || {
            let output =
                crate::models::ops::attend(query.clone(), key.clone(), value.clone(), heads);
            let _ = (output * seed.clone()).sum().backward();
        });
    }
}

#[test]
#[ignore = "a measurement, for a profiler"]
fn own_unet() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/base/unet");
    let model = UNet2d::load(folder, &Device::flex().autodiff()).unwrap();
    let (input, seed) = (random([32, 1, 28, 28]), random([32, 1, 28, 28]));
    let timesteps = Tensor::<1>::full([32], 500.0, &Device::flex());
    for _ in 0..20 {
        let output = model.predict(input.clone(), timesteps.clone(), &());
        let _ = (output * seed.clone()).sum().backward();
    }
}
