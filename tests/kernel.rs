//! Compares the loss kernel and the mixture draw with the same sums on the host in f64, on any
//! device.

use burn::tensor::{Tensor, TensorData};
use siss::DdpmScheduler;
use siss::draws::{Stream, normal_noise};
use siss::kernel::weighted_squared_error;
use siss::objective::mixture_points;
use siss::process::SchedulerExt;
use siss_support::small::{self, *};

/// Asserts that losses and seeds agree with the host's, each row's to a relative accuracy of 1e-6.
fn check(prediction: Tensor<4>, target: Tensor<4>, weights: &[f32], what: &str) {
    let rows = prediction.dims()[0];
    let difference = difference(&host(prediction.clone()), &host(target.clone()));
    let elements = difference.len() / rows;
    let on_device = Tensor::from_data(weights, &prediction.device());
    let got = weighted_squared_error(prediction, target, on_device, 10).unwrap();
    let (losses, seed) = (host(got.losses), host(got.seed));
    assert_eq!((losses.len(), seed.len()), (rows, difference.len()));
    for (row, difference) in difference.chunks(elements).enumerate() {
        let loss: f64 = difference.iter().map(|d| d * d).sum();
        assert!(
            (losses[row] - loss).abs() <= 1e-6 * loss,
            "{what}, row {row}: {} {loss}",
            losses[row]
        );
        let expected: Vec<f64> = difference
            .iter()
            .map(|d| 2.0 * f64::from(weights[row]) * d / 10.0)
            .collect();
        let seed = &seed[row * elements..][..elements];
        assert!(
            norm(&small::difference(seed, &expected)) <= 1e-6 * norm(&expected),
            "{what}, row {row}"
        );
    }
}

/// Weights of both signs, and 0.
fn weights(rows: usize) -> Vec<f32> {
    (0..rows).map(|row| 1.5 - 0.5 * row as f32).collect()
}

#[test]
fn losses_and_seeds_are_those_of_the_host() {
    let device = device();
    for shape in [
        [1, 1, 1, 1],
        [300, 1, 1, 1],
        [3, 2, 5, 7],
        [8, 1, 28, 28],
        [5, 3, 33, 17],
        [1, 1, 1, 16_385],
        [2, 3, 131, 127],
        [3, 1, 128, 128],
    ] {
        let noise = |seed| normal_noise::<4>(shape, seed, 0, 0, Stream::Evaluation, &device);
        check(
            noise(1),
            noise(2),
            &weights(shape[0]),
            &format!("{shape:?}"),
        );
    }
}

/// All squares are equal, so that all additions round in the same direction.
#[test]
fn losses_of_equal_differences_keep_their_digits() {
    let device = device();
    for shape in [[2, 3, 64, 64], [1, 1, 300, 300]] {
        let prediction = Tensor::full(shape, 1.1, &device);
        check(
            prediction,
            Tensor::zeros(shape, &device),
            &weights(shape[0]),
            "equal",
        );
    }
}

#[test]
fn tensors_of_any_layout_are_taken_and_left_as_they_were() {
    let device = device();
    let noise = |shape, seed| normal_noise::<4>(shape, seed, 0, 0, Stream::Evaluation, &device);
    let transposed = |seed| noise([4, 7, 5, 3], seed).swap_dims(1, 3);
    let narrowed = |seed| noise([9, 3, 5, 7], seed).narrow(0, 2, 4);
    let flipped = |seed| noise([4, 3, 5, 7], seed).flip([2]);
    let repeated = |seed| noise([1, 3, 5, 7], seed).expand([4, 3, 5, 7]);
    let plain = |seed| noise([4, 3, 5, 7], seed);
    let tensors = [
        transposed(1),
        narrowed(2),
        flipped(3),
        repeated(4),
        plain(5),
    ];
    for prediction in &tensors {
        for target in &tensors {
            let before = [host(prediction.clone()), host(target.clone())];
            check(prediction.clone(), target.clone(), &weights(4), "layout");
            assert_eq!([host(prediction.clone()), host(target.clone())], before);
        }
    }
}

#[test]
fn huge_and_tiny_differences_keep_their_digits() {
    let device = device();
    for scale in [1e-16, 1e-9, 1e9, 1e16] {
        let noise = |seed| {
            normal_noise::<4>([3, 1, 33, 17], seed, 0, 0, Stream::Evaluation, &device) * scale
        };
        check(noise(1), noise(2), &weights(3), &format!("{scale}"));
    }
}

#[test]
fn a_row_that_is_not_finite_stays_by_itself() {
    let device = device();
    let noise = |seed| normal_noise::<4>([5, 2, 9, 9], seed, 0, 0, Stream::Evaluation, &device);
    let mut values = host(noise(1));
    values[170] = f64::NAN;
    values[2 * 162] = f64::INFINITY;
    values[4 * 162 - 1] = 1e30;
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    let spoilt = Tensor::from_data(TensorData::new(values, [5, 2, 9, 9]), &device);
    let run = |prediction| {
        let weights = Tensor::<1>::ones([5], &device);
        let got = weighted_squared_error(prediction, noise(2), weights, 5).unwrap();
        (host(got.losses), host(got.seed))
    };
    let (losses, seed) = run(spoilt);
    let (expected_losses, expected_seed) = run(noise(1));
    for row in [0, 4] {
        assert_eq!(losses[row], expected_losses[row]);
        let elements = row * 162..(row + 1) * 162;
        assert_eq!(seed[elements.clone()], expected_seed[elements]);
    }
    assert!(losses[1].is_nan() && seed[170].is_nan());
    assert_eq!(losses[2..4], [f64::INFINITY; 2]);
    assert!(seed.iter().filter(|value| !value.is_finite()).count() == 2);
}

#[test]
fn the_mixture_draw_is_that_of_the_host() {
    for shape in [
        [1, 1, 1, 1],
        [300, 1, 1, 1],
        [6, 3, 9, 9],
        [5, 3, 33, 17],
        [1, 1, 1, 16_385],
        [2, 3, 131, 127],
    ] {
        check_mixture(shape);
    }
}

fn check_mixture(shape: [usize; 4]) {
    let device = device();
    let rows = shape[0];
    let noise = |seed| normal_noise::<4>(shape, seed, 0, 0, Stream::Evaluation, &device);
    let (retain, forget, epsilon) = (noise(1), noise(2) * 0.5, noise(3));
    let timesteps: Vec<f64> = (0..rows).map(|row| (row * 999 / rows) as f64).collect();
    let scheduler = DdpmScheduler::linear(1000).unwrap();
    let scales = scheduler.scales(&timesteps).unwrap();
    let from_forget: Vec<bool> = (0..rows).map(|row| row % 2 == 0).collect();
    let points = [&retain, &forget, &epsilon].map(Tensor::clone);
    let [x, a, e] = [retain, forget, epsilon].map(host);
    let [retain, forget, epsilon] = points;
    let got = mixture_points(retain, forget, epsilon, &scales, &from_forget).unwrap();
    let [m, ex, ea] = [got.noisy, got.retain_noise, got.forget_noise].map(host);
    let log_ratio = host(got.log_ratio);
    assert_eq!(log_ratio.len(), rows);
    for (row, of_row) in (0..x.len())
        .collect::<Vec<_>>()
        .chunks(x.len() / rows)
        .enumerate()
    {
        let (gamma, sigma) = (scales.signal[row], scales.noise[row]);
        let (mut expected, mut size) = (0.0, 0.0);
        for &i in of_row {
            let clean = if from_forget[row] { a[i] } else { x[i] };
            let noisy = gamma * clean + sigma * e[i];
            let explained = |clean: f64| (noisy - gamma * clean) / sigma;
            assert!((m[i] - noisy).abs() < 1e-5, "{shape:?}, row {row}");
            for (got, clean) in [(ex[i], x[i]), (ea[i], a[i])] {
                let error = (got - explained(clean)).abs();
                assert!(
                    error < 1e-5 * (1.0 + explained(clean).abs()),
                    "{shape:?}, row {row}"
                );
            }
            expected += (explained(x[i]).powi(2) - explained(a[i]).powi(2)) / 2.0;
            size += (explained(x[i]).powi(2) + explained(a[i]).powi(2)) / 2.0;
        }
        let error = (log_ratio[row] - expected).abs();
        let got = log_ratio[row];
        assert!(
            error < 1e-5 + 1e-6 * size,
            "{shape:?}, row {row}: {got} {expected}"
        );
    }
}
