//! Tests of both passes against tensor operations, with every set of instructions.

use burn::tensor::Tensor;

use crate::kernel::mixture_draw;
use crate::kernel::simd::testing::{at_every_level, host, on_threads, random, tracked};
use crate::objective::mixture::in_operations;
use crate::process::Scales;

/// Rows of one block and of several, with and without a remainder, run by one thread and by many.
const LOSSES: [[usize; 2]; 8] = [
    [1, 1],
    [5, 3],
    [7, 255],
    [64, 784],
    [3, 16_384],
    [2, 16_385],
    [9, 60_003],
    [70_000, 1],
];

/// Losses and seed from one pass over prediction and target.
fn one_pass(inputs: &[Tensor<2>; 2], weights: &Tensor<1>) -> (Tensor<1>, Tensor<2>) {
    let [prediction, target] = inputs.clone();
    let batch_size = prediction.dims()[0];
    let error =
        crate::kernel::weighted_squared_error(prediction, target, weights.clone(), batch_size);
    let error = error.unwrap();
    (error.losses, error.seed)
}

#[test]
fn losses_and_seed_are_those_of_operations() {
    for [rows, elements] in LOSSES {
        let inputs = [(); 2].map(|()| random([rows, elements]));
        let weights = random([rows]);
        let difference = inputs[0].clone() - inputs[1].clone();
        let factor: Tensor<2> = weights.clone().reshape([rows, 1]) * (2.0 / rows as f64);
        let expected = host(difference.clone() * factor);
        at_every_level(|| {
            let (losses, seed) = one_pass(&inputs, &weights);
            assert_eq!(host(seed), expected, "{rows} × {elements}");
            let differences = host(difference.clone());
            for (row, got) in differences.chunks(elements).zip(host(losses)) {
                let loss: f64 = row.iter().map(|&d| f64::from(d).powi(2)).sum();
                let error = (f64::from(got) - loss).abs();
                assert!(error <= 1e-6 * loss, "{rows} × {elements}: {got} {loss}");
            }
        });
    }
}

#[test]
fn mixture_draws_are_those_of_operations() {
    for [rows, elements] in LOSSES {
        let inputs = [(); 3].map(|()| random([rows, elements]));
        let (scales, from_forget) = scales_and_sides(rows);
        let expected = in_operations(inputs.clone(), &scales, &from_forget);
        let difference = inputs[1].clone() - inputs[0].clone();
        let sums = expected.retain_noise.clone() + expected.forget_noise.clone();
        let (difference, sums) = (host(difference), host(sums));
        let [noisy, retain_noise, forget_noise] =
            [expected.noisy, expected.retain_noise, expected.forget_noise].map(host);
        at_every_level(|| {
            let (got, log_ratio) = mixture_draw(inputs.each_ref(), &scales, &from_forget).unwrap();
            let expected = [&noisy, &retain_noise, &forget_noise];
            for (got, expected) in got.into_iter().zip(expected) {
                assert_eq!(&host(got), expected, "{rows} × {elements}");
            }
            for (row, got) in host(log_ratio).into_iter().enumerate() {
                let ratio = scales.ratios()[row] / 2.0;
                let products = (row * elements..(row + 1) * elements)
                    .map(|index| ratio * f64::from(difference[index]) * f64::from(sums[index]));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product: f64| {
                    (sum + product, size + product.abs())
                });
                let error = (f64::from(got) - sum).abs();
                assert!(error <= 1e-6 * size, "{rows} × {elements}: {got} {sum}");
            }
        });
    }
}

/// Scales of rows from hardly noisy to hardly visible; the sides alternate.
fn scales_and_sides(rows: usize) -> (Scales, Vec<f64>) {
    let parts = (0..rows).map(|row| (row as f64 + 0.5) / rows as f64);
    let scales = Scales {
        signal: parts.clone().map(|part| (1.0 - part).sqrt()).collect(),
        noise: parts.map(f64::sqrt).collect(),
    };
    (scales, (0..rows).map(|row| (row % 2) as f64).collect())
}

#[test]
fn a_seed_takes_the_place_of_a_target_that_nobody_shares() {
    let (prediction, target) = (random([3, 50]), random([3, 50]));
    let address = |tensor: &Tensor<2>| {
        let tensor = tensor.clone().try_into_primitive::<burn::backend::Flex>();
        tensor.unwrap().bytes().as_ptr()
    };
    let before = address(&target);
    let weights = random([3]);
    let run = |target| {
        let error =
            crate::kernel::weighted_squared_error(prediction.clone(), target, weights.clone(), 3);
        error.unwrap().seed
    };
    let shared = run(target.clone());
    assert_ne!(address(&shared), before);
    let own = run(target);
    assert_eq!(address(&own), before);
    assert_eq!(host(own), host(shared));
}

/// Tensors that are part of an autodiff graph stay in it.
#[test]
fn losses_of_tracked_tensors_have_gradients() {
    let (prediction, target) = (tracked(&random([2, 3])), random([2, 3]));
    let (losses, _) = one_pass(
        &[prediction.clone(), target.autodiff()],
        &random([2]).autodiff(),
    );
    assert!(prediction.grad(&losses.sum().backward()).is_some());
}

/// All sums are added in an order that does not depend on the number of threads.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let large = [(); 2].map(|()| random([9, 60_003]));
    let per_row = random([9]);
    let (scales, from_forget) = scales_and_sides(9);
    let run = || {
        let (losses, errors) = one_pass(&large, &per_row);
        let points = [&large[0], &large[1], &large[0]];
        let ([noisy, ..], log_ratio) = mixture_draw(points, &scales, &from_forget).unwrap();
        [noisy.reshape([-1]), log_ratio, losses, errors.reshape([-1])]
            .map(|tensor: Tensor<1>| host(tensor))
    };
    assert_eq!(on_threads(1, run), on_threads(5, run));
}
