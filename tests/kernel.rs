//! The loss kernel and the mixture draw against the same sums on the host in f64, on any device.

mod common;

use burn::tensor::Tensor;
use common::*;
use siss::kernel::weighted_squared_error;
use siss::{DdpmScheduler, SchedulerExt, Stream, mixture_points, normal_noise};

#[test]
fn losses_and_seeds_are_those_of_the_host() {
    let device = device();
    for shape in [[1, 1, 1, 1], [3, 2, 5, 7], [8, 1, 28, 28], [5, 3, 33, 17]] {
        let noise = |seed| normal_noise::<4>(shape, seed, 0, 0, Stream::Evaluation, &device);
        let (prediction, target) = (noise(1), noise(2));
        let weights: Vec<f32> = (0..shape[0]).map(|row| 1.5 - row as f32).collect();
        let on_device = Tensor::from_data(weights.as_slice(), &device);
        let got = weighted_squared_error(prediction.clone(), target.clone(), on_device, 10);

        let difference = difference(&host(prediction), &host(target));
        let elements = difference.len() / shape[0];
        let losses: Vec<f64> = difference
            .chunks(elements)
            .map(|row| row.iter().map(|d| d * d).sum())
            .collect();
        let seed: Vec<f64> = difference
            .iter()
            .enumerate()
            .map(|(i, d)| 2.0 * f64::from(weights[i / elements]) * d / 10.0)
            .collect();
        for (got, expected) in [(host(got.losses), losses), (host(got.seed), seed)] {
            assert!(
                norm(&common::difference(&got, &expected)) <= 1e-6 * norm(&expected),
                "{shape:?}"
            );
        }
    }
}

#[test]
fn the_mixture_draw_is_that_of_the_host() {
    let device = device();
    let shape = [6, 3, 9, 9];
    let elements = 3 * 81;
    let noise = |seed| normal_noise::<4>(shape, seed, 0, 0, Stream::Evaluation, &device);
    let (retain, forget, epsilon) = (noise(1), noise(2) * 0.5, noise(3));
    let timesteps = [0.0, 50.0, 300.0, 600.0, 900.0, 999.0];
    let scales = DdpmScheduler::linear(1000)
        .unwrap()
        .scales(&timesteps)
        .unwrap();
    let from_forget = [true, false, true, false, true, false];
    let got = mixture_points(
        retain.clone(),
        forget.clone(),
        epsilon.clone(),
        &scales,
        &from_forget,
    );
    let (x, a, e) = (host(retain), host(forget), host(epsilon));
    let (m, ex, ea, delta) = (
        host(got.noisy),
        host(got.retain_noise),
        host(got.forget_noise),
        host(got.log_ratio),
    );
    for row in 0..6 {
        let (gamma, sigma) = (scales.signal[row], scales.noise[row]);
        let mut expected_delta = 0.0;
        for i in row * elements..(row + 1) * elements {
            let clean = if from_forget[row] { a[i] } else { x[i] };
            let noisy = gamma * clean + sigma * e[i];
            let explained = |clean: f64| (noisy - gamma * clean) / sigma;
            assert!((m[i] - noisy).abs() < 1e-5);
            for (got, clean) in [(ex[i], x[i]), (ea[i], a[i])] {
                assert!((got - explained(clean)).abs() < 1e-5 * (1.0 + explained(clean).abs()));
            }
            expected_delta += (explained(x[i]).powi(2) - explained(a[i]).powi(2)) / 2.0;
        }
        assert!(
            (delta[row] - expected_delta).abs() < 1e-5 * (1.0 + expected_delta.abs()),
            "{row}: {} {expected_delta}",
            delta[row]
        );
    }
}
