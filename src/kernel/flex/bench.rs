//! How fast the operations are beside burn's: `cargo test --release --lib flex::bench -- --ignored
//! --nocapture --test-threads 1`.

use std::time::Instant;

use burn::nn::GroupNormConfig;
use burn::tensor::{Device, Distribution, Tensor};

use super::tests::PLAIN;
use crate::Denoiser;
use crate::models::UNet2d;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Seconds of the plain and of the own version: medians of interleaved rounds.
fn compare(name: &str, rounds: usize, run: impl Fn()) {
    let time = |plain: bool| {
        PLAIN.set(plain);
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    time(false);
    time(true);
    let (mut own, mut plain) = (vec![], vec![]);
    for _ in 0..rounds {
        own.push(time(false));
        plain.push(time(true));
    }
    PLAIN.set(false);
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (own, plain) = (median(own), median(plain));
    println!(
        "{name:44} own {:8.2} ms  plain {:8.2} ms  ratio {:.2}",
        own * 1e3,
        plain * 1e3,
        own / plain
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
