//! Compares the kernels with burn's operations on the CPU, output and gradients.

use burn::nn::GroupNormConfig;
use burn::tensor::activation::{silu, softmax as burns_softmax};
use burn::tensor::module::conv2d;
use burn::tensor::{Device, Tensor};

use super::*;
use crate::backend::DeviceSpec;
use crate::draws::{Stream, normal_noise};

/// Relative to the norm of the expected numbers.
const TOLERANCE: f64 = 1e-5;

/// The GPU that this build has, or the software driver.
fn device() -> Device {
    let spec = match cfg!(feature = "wgpu") {
        true => DeviceSpec::Wgpu,
        false => DeviceSpec::Cuda(0),
    };
    spec.device().unwrap()
}

fn noise<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    normal_noise(shape, seed, 0, 0, Stream::Evaluation, device)
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (part, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}, part {part}");
        let norm = |values: &mut dyn Iterator<Item = f64>| {
            values.map(|value| value * value).sum::<f64>().sqrt()
        };
        let pairs = got.iter().zip(expected);
        let difference = norm(&mut pairs.map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut expected.iter().map(|&b| f64::from(b)));
        let off = difference / size.max(1e-20);
        assert!(off < TOLERANCE, "{what}, part {part}: off by {off:.1e}");
    }
}

/// Output, and the gradients of input and parameters for a random gradient of the output.
fn answers<const D: usize>(
    input: Tensor<D>,
    parameters: Vec<Tensor<1>>,
    run: impl Fn(Tensor<D>, &[Tensor<1>]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let device = input.device();
    let input = input.autodiff().require_grad();
    let parameters: Vec<Tensor<1>> = parameters
        .into_iter()
        .map(|parameter| parameter.autodiff().require_grad())
        .collect();
    let output = run(input.clone(), &parameters);
    let gradient = noise(output.dims(), 99, &device);
    let gradients = (output.clone() * gradient).sum().backward();
    let mut answers = vec![numbers(output.inner())];
    answers.push(numbers(input.grad(&gradients).unwrap()));
    for parameter in parameters {
        answers.push(numbers(parameter.grad(&gradients).unwrap()));
    }
    answers
}

#[test]
fn convolutions_are_burns_for_every_shape() {
    let device = device();
    let cases: [(
        [usize; 4],
        usize,
        [usize; 2],
        [usize; 2],
        [usize; 4],
        [usize; 2],
    ); 12] = [
        // input, outputs, kernel, stride, padding (top, left, bottom, right), dilation
        ([2, 3, 9, 7], 5, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ([1, 1, 28, 28], 32, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ([3, 32, 14, 14], 64, [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
        ([2, 16, 8, 8], 16, [3, 3], [2, 2], [0, 0, 1, 1], [1, 1]),
        ([2, 17, 7, 5], 70, [1, 1], [1, 1], [0, 0, 0, 0], [1, 1]),
        ([1, 32, 28, 28], 1, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ([2, 4, 11, 13], 6, [5, 3], [3, 2], [2, 0, 1, 3], [1, 1]),
        ([2, 4, 11, 13], 6, [3, 3], [1, 1], [2, 2, 2, 2], [2, 2]),
        ([2, 4, 11, 13], 6, [3, 2], [2, 1], [1, 2, 3, 0], [2, 3]),
        ([1, 2, 1, 1], 3, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ([5, 100, 3, 3], 130, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ([70, 8, 7, 7], 8, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    ];
    for (input, outputs, kernel, stride, [top, left, bottom, right], dilation) in cases {
        let what = format!("{input:?} to {outputs}, {kernel:?}, stride {stride:?}");
        let run = |device: &Device, own: bool| {
            let weight_shape = [outputs, input[1], kernel[0], kernel[1]];
            let parameters = vec![
                noise([weight_shape.iter().product()], 2, device),
                noise([outputs], 3, device),
            ];
            answers(noise(input, 1, device), parameters, |input, parameters| {
                let weight = parameters[0].clone().reshape(weight_shape);
                let bias = parameters[1].clone();
                let options = ConvOptions::new_with_padding(
                    stride,
                    [(top, bottom), (left, right)],
                    dilation,
                    1,
                );
                match own {
                    true => convolve(&input, &weight, Some(&bias), &options).unwrap(),
                    false => conv2d(input, weight, Some(bias), options),
                }
            })
        };
        assert_close(&run(&device, true), &run(&Device::flex(), false), &what);
    }
}

#[test]
fn group_norms_are_burns_for_every_shape() {
    let device = device();
    for (shape, groups) in [
        ([2, 8, 5, 3], 4),
        ([1, 32, 28, 28], 8),
        ([3, 6, 1, 1], 2),
        ([2, 4, 16, 16], 1),
        ([65, 6, 7, 7], 6),
    ] {
        for activated in [false, true] {
            let channels = shape[1];
            let run = |device: &Device, own: bool| {
                let parameters = vec![noise([channels], 2, device), noise([channels], 3, device)];
                answers(noise(shape, 1, device), parameters, |input, parameters| {
                    let (gain, offset) = (parameters[0].clone(), parameters[1].clone());
                    if own {
                        return group_norm(&input, &gain, &offset, groups, 1e-5, activated)
                            .unwrap();
                    }
                    let plain = GroupNormConfig::new(groups, channels)
                        .with_affine(false)
                        .with_epsilon(1e-5)
                        .init(&input.device())
                        .forward(input);
                    let scaled = plain * gain.reshape([1, channels, 1, 1]);
                    let output = scaled + offset.reshape([1, channels, 1, 1]);
                    if activated { silu(output) } else { output }
                })
            };
            let what = format!("{shape:?}, {groups} groups, {activated}");
            assert_close(&run(&device, true), &run(&Device::flex(), false), &what);
        }
    }
}

#[test]
fn softmax_and_shift_are_burns_for_every_shape() {
    let device = device();
    for shape in [[2, 3, 5, 7], [1, 1, 196, 196], [4, 2, 1, 1], [1, 2, 3, 300]] {
        let run = |device: &Device, own: bool| {
            answers(
                noise(shape, 1, device) * 3.0,
                Vec::new(),
                |scores, _| match own {
                    true => softmax(scores, 0.7),
                    false => burns_softmax(scores * 0.7, 3),
                },
            )
        };
        let what = format!("softmax of {shape:?}");
        assert_close(&run(&device, true), &run(&Device::flex(), false), &what);
    }
    for shape in [[2, 3, 5], [1, 64, 196], [70, 5, 1], [3, 1, 300]] {
        let run = |device: &Device, own: bool| {
            let bias = vec![noise([shape[1]], 2, device)];
            answers(noise(shape, 1, device), bias, |input, parameters| {
                let bias = parameters[0].clone();
                match own {
                    true => shift(&input, &bias).unwrap(),
                    false => input + bias.reshape([1, shape[1], 1]),
                }
            })
        };
        assert_close(
            &run(&device, true),
            &run(&Device::flex(), false),
            &format!("shift of {shape:?}"),
        );
    }
}
