//! Compares the kernels with burn's operations on the CPU, output and gradients.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::nn::GroupNormConfig;
use burn::tensor::activation::{silu, softmax as burns_softmax};
use burn::tensor::module::conv2d;
use burn::tensor::{Device, Tensor};
use burn_cubecl::cubecl::dry_run::DryRun;
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};

use super::*;
use crate::backend::DeviceSpec;
use crate::denoiser::Denoiser;
use crate::draws::{Stream, normal_noise};
use crate::kernel::serial_sums;
use crate::models::ops::{self, Activation};
use crate::models::{DownBlockType, UNet2dConfig, UpBlockType};

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
                    true => convolve(&input, &weight, Some(&bias), None, &options).unwrap(),
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

#[test]
fn attention_is_burns_for_every_shape() {
    let device = device();
    for [rows, heads, size, positions, sources] in [
        [2, 8, 8, 196, 196],
        [1, 1, 8, 1100, 1100],
        [3, 2, 16, 5, 77],
        [2, 3, 32, 33, 31],
        [1, 2, 40, 70, 77],
        [2, 1, 64, 37, 50],
        [1, 2, 80, 18, 15],
        [1, 1, 80, 77, 1],
        [1, 3, 104, 16, 17],
        [2, 1, 5, 1, 9],
        [1, 1, 1, 1, 1],
    ] {
        let [queries, keys] = [positions, sources].map(|places| [rows, heads * size, places]);
        let run = |device: &Device, own: bool| {
            let parameters = vec![
                noise([keys.iter().product()], 2, device),
                noise([keys.iter().product()], 3, device),
            ];
            let query = noise(queries, 1, device) * 3.0;
            answers(query, parameters, |query, parameters| {
                let [key, value] = [0, 1].map(|index| parameters[index].clone().reshape(keys));
                if own {
                    return attend(&query, &key, &value, heads).unwrap();
                }
                let query = query.reshape([rows, heads, size, positions]);
                let [key, value] =
                    [key, value].map(|side| side.reshape([rows, heads, size, sources]));
                let scores = query.transpose().matmul(key) / (size as f64).sqrt();
                let output = value.matmul(burns_softmax(scores, 3).transpose());
                output.reshape(queries)
            })
        };
        let (mut got, mut expected) = (run(&device, true), run(&Device::flex(), false));
        let what = format!("{rows} × {heads} heads of {size}, {positions} to {sources}");
        if sources == 1 {
            // The only weight is 1, whatever the scores: no gradient reaches query and key.
            expected.drain(1..3);
            for number in got.drain(1..3).flatten() {
                assert!(number.abs() < 1e-4, "{what}: {number:e} instead of 0");
            }
        }
        assert_close(&got, &expected, &what);
    }
}

#[test]
fn heads_without_room_in_shared_memory_are_left_to_burn() {
    let features = noise([1, 160, 4], 1, &device());
    assert!(attend(&features, &features, &features, 1).is_none());
    assert!(attend(&features, &features, &features, 2).is_some());
    assert!(AttentionTile::fitting(64, 0).is_none());
}

#[test]
fn what_a_convolution_adds_to_is_added() {
    let device = device();
    let options = ConvOptions::new([2, 1], [1, 0], [1, 1], 1);
    // Output of 5×5, and one of a single pixel.
    for (input, per_map) in [
        ([3, 2, 9, 7], true),
        ([3, 2, 9, 7], false),
        ([2, 2, 2, 3], false),
    ] {
        let out = [input[0], 6, (input[2] + 1) / 2, input[3] - 2];
        let added = match per_map {
            true => [input[0], 6, 1, 1],
            false => out,
        };
        let run = |device: &Device, own: bool| {
            let parameters = vec![
                noise([6 * 2 * 9], 2, device),
                noise([6], 3, device),
                noise([added.iter().product()], 4, device),
            ];
            answers(noise(input, 1, device), parameters, |input, parameters| {
                let weight = parameters[0].clone().reshape([6, 2, 3, 3]);
                let bias = parameters[1].clone();
                let onto = parameters[2].clone().reshape(added);
                let options = options.clone();
                if own {
                    return convolve(&input, &weight, Some(&bias), Some(&onto), &options).unwrap();
                }
                conv2d(input, weight, Some(bias), options) + onto
            })
        };
        let what = format!("{input:?}, per map: {per_map}");
        assert_close(&run(&device, true), &run(&Device::flex(), false), &what);
    }
}

/// burn's own `gelu` fails here: the gradient is that of another function.
#[test]
fn activations_are_those_of_the_cpu() {
    let device = device();
    for shape in [[2, 6, 5], [1, 2, 1], [3, 64, 100]] {
        for activation in [Activation::Geglu, Activation::GeluTanh] {
            let run = |device: &Device| {
                let features = noise(shape, 1, device).mul_scalar(2.0);
                answers(features, vec![], |features, _| {
                    ops::activate(activation, features)
                })
            };
            let what = format!("{activation:?}, {shape:?}");
            assert_close(&run(&device), &run(&Device::flex()), &what);
        }
    }
}

#[test]
fn linear_layers_are_burns_for_every_shape() {
    let device = device();
    for ([rows, inputs, positions], outputs) in [
        ([2, 3, 5], 4),
        ([1, 64, 196], 64),
        ([70, 5, 1], 130),
        ([1, 1, 1], 1),
        ([3, 130, 300], 7),
        ([64, 128, 1], 32),
    ] {
        for adds in [false, true] {
            let run = |device: &Device, own: bool| {
                let parameters = vec![
                    noise([inputs * outputs], 2, device),
                    noise([outputs], 3, device),
                    noise([rows * outputs * positions], 4, device),
                ];
                let input = noise([rows, inputs, positions], 1, device);
                answers(input, parameters, |input, parameters| {
                    let weight = parameters[0].clone().reshape([inputs, outputs]);
                    let bias = parameters[1].clone();
                    let onto = parameters[2].clone().reshape([rows, outputs, positions]);
                    if own {
                        let added = adds.then_some(&onto);
                        let output = project(&input, &weight, Some(&bias), added).unwrap();
                        return if adds { output } else { output + onto };
                    }
                    let product = weight.transpose().unsqueeze::<3>().matmul(input);
                    product + bias.reshape([1, outputs, 1]) + onto
                })
            };
            let what = format!("{inputs} to {outputs} at {rows} × {positions}");
            assert_close(&run(&device, true), &run(&Device::flex(), false), &what);
        }
    }
}

/// The launches of other threads are none of this process's.
#[derive(Default)]
struct Launches(Mutex<BTreeMap<String, usize>>);

impl LaunchObserver for Launches {
    fn launched(&self, kernel: &'static str) {
        let path = kernel.split('<').next().unwrap();
        let name = path.rsplit("::").next().unwrap();
        *self.0.lock().unwrap().entry(name.into()).or_default() += 1;
    }
}

/// Kernels of burn in a step of the network below, and by its sources the numbers that one unit
/// adds up, at most; 0 where it adds none.
///
/// A reduction of an enlargement's gradient sums over two pixels.
const BURNS: [(&str, usize); 9] = [
    ("ReduceKernel", 2),
    ("SharedSumKernel", 784),
    ("KernelBinop", 0),
    ("KernelScalarBinop", 0),
    ("UnaryFloat", 0),
    ("CopyKernel", 0),
    ("CopyKernelPack", 0),
    ("FullKernel", 0),
    ("SliceAssignKernel", 0),
];

/// The network of `just launches` with a batch of 64.
///
/// In a process of its own: a dry run, which compiles kernels and launches none, is one of all
/// threads.
#[test]
fn no_unit_adds_more_than_a_thousand_numbers() {
    const IN_CHILD: &str = "SISS_TEST_SERIAL";
    if std::env::var(IN_CHILD).is_err() {
        let name = "models::cube::tests::no_unit_adds_more_than_a_thousand_numbers";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        let errors = String::from_utf8_lossy(&child.stderr);
        assert!(
            child.status.success() && output.contains("1 passed"),
            "{output}{errors}"
        );
        return;
    }
    let (device, dry_run) = (device(), DryRun::new());
    let launches = Arc::new(Launches::default());
    let network = digits().init(&device).unwrap().train();
    let watching = LaunchObservation::new(launches.clone());
    let timesteps = Tensor::zeros([64], &device);
    let ((), longest) = serial_sums(|| {
        let output = network.predict(Tensor::zeros([64, 1, 28, 28], &device), timesteps, &());
        output.sum().backward();
    });
    drop((watching, dry_run));

    println!("{longest:?}");
    for kernel in [
        "weigh",
        "convolve",
        "convolve_back",
        "normalise",
        "attend",
        "attend_back",
    ] {
        assert!(
            longest.contains_key(kernel),
            "no launch of {kernel} was noted"
        );
    }
    for (kernel, length) in longest {
        // A convolution's product over 128 channels and 9 taps is not split.
        let bound = if kernel == "convolve" { 1152 } else { 1024 };
        assert!(
            length <= bound,
            "{kernel} adds {length} numbers by one unit"
        );
    }
    let launches = launches.0.lock().unwrap();
    println!("{launches:?}");
    // Both axes of two enlargements.
    assert!(launches.get("ReduceKernel").is_none_or(|&count| count <= 4));
    const OWN: [&str; 11] = [
        "Attend",
        "AttendBack",
        "Convolve",
        "ConvolveBack",
        "Weigh",
        "Normalise",
        "ChannelSums",
        "InputGradient",
        "PositionSums",
        "RowsByUnits",
        "RowsByCubes",
    ];
    for name in launches.keys() {
        let is_burns = BURNS.iter().any(|(burns, _)| burns == name);
        assert!(
            is_burns || OWN.contains(&name.as_str()),
            "{name} is not known here"
        );
    }
    assert!(BURNS.iter().all(|&(_, length)| length <= 1024));
}

fn digits() -> UNet2dConfig {
    UNet2dConfig {
        sample_size: Some([28; 2]),
        in_channels: 1,
        out_channels: 1,
        down_block_types: vec![
            DownBlockType::Resnet,
            DownBlockType::Attention,
            DownBlockType::Resnet,
        ],
        up_block_types: vec![
            UpBlockType::Resnet,
            UpBlockType::Attention,
            UpBlockType::Resnet,
        ],
        block_out_channels: vec![32, 64, 64],
        layers_per_block: 1,
        norm_num_groups: 8,
        ..UNet2dConfig::default()
    }
}
