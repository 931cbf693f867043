//! Compares the operations with burn's own, for every set of instructions.

use std::cell::Cell;

use burn::module::Param;
use burn::nn::{GroupNormConfig, LinearConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor};

use crate::kernel::simd::testing::{FORCED, at_every_level, host, on_threads, random, tracked};
use crate::models::ops::{self, Activation};

thread_local! {
    /// Whether the operations reject all tensors on this thread.
    pub(crate) static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Asserts agreement within 1e-5 of the greatest number, or of 1: numbers in these tests are of
/// that order, and their differences may cancel completely.
fn assert_close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let scale = expected.clone().abs().max().into_scalar::<f32>();
    let error = (got - expected).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5 * scale.max(1.0), "{what}: {error} of {scale}");
}

/// An operation's output and the gradients of its three inputs.
type Found<const A: usize, const B: usize, const C: usize> =
    (Tensor<A>, Tensor<A>, Tensor<B>, Tensor<C>);

/// Output and gradients of `Σ operation(a, b, c) · seed`.
fn differentiate<const A: usize, const B: usize, const C: usize>(
    inputs: (&Tensor<A>, &Tensor<B>, &Tensor<C>),
    seed: &Tensor<A>,
    operation: impl Fn(Tensor<A>, Tensor<B>, Tensor<C>) -> Tensor<A>,
) -> Found<A, B, C> {
    let (a, b, c) = (tracked(inputs.0), tracked(inputs.1), tracked(inputs.2));
    let output = operation(a.clone(), b.clone(), c.clone());
    let grads = (output.clone() * seed.clone()).sum().backward();
    let gradients = (a.grad(&grads), b.grad(&grads), c.grad(&grads));
    (
        output.inner(),
        gradients.0.unwrap(),
        gradients.1.unwrap(),
        gradients.2.unwrap(),
    )
}

fn assert_same<const A: usize, const B: usize, const C: usize>(
    got: Found<A, B, C>,
    expected: Found<A, B, C>,
    what: &str,
) {
    assert_close(got.0, expected.0, &format!("output, {what}"));
    assert_close(got.1, expected.1, &format!("first gradient, {what}"));
    assert_close(got.2, expected.2, &format!("second gradient, {what}"));
    assert_close(got.3, expected.3, &format!("third gradient, {what}"));
}

/// Group norms are recomputed in the backward pass, from inputs that are themselves recomputed.
#[test]
fn gradient_checkpointing_changes_no_number() {
    let (input, gain, weight) = (random([2, 4, 6, 6]), random([4]), random([4, 4, 3, 3]));
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let gradients = |strategy: GradientCheckpointingStrategy| {
        fn under<const D: usize>(
            tensor: &Tensor<D>,
            strategy: GradientCheckpointingStrategy,
        ) -> Tensor<D> {
            let tensor = tensor.clone().autodiff();
            tensor
                .with_gradient_checkpointing_strategy(strategy)
                .require_grad()
        }
        let inputs = (
            under(&input, strategy),
            under(&gain, strategy),
            under(&weight, strategy),
        );
        let (input, gain, weight) = inputs.clone();
        let norm = |input: &Tensor<4>| super::group_norm(input, &gain, &gain, 2, 1e-5, true);
        let first = norm(&input).unwrap();
        let hidden = super::convolve(&first, &weight, None, &options).unwrap() + input;
        let features = norm(&hidden).unwrap().reshape([2, 4, 36]);
        let attended = super::attend(&features, &features, &features, 2).unwrap();
        let grads = (attended.reshape([2, 4, 6, 6]) * first).sum().backward();
        let found = (
            inputs.0.grad(&grads),
            inputs.1.grad(&grads),
            inputs.2.grad(&grads),
        );
        (found.0.unwrap(), found.1.unwrap(), found.2.unwrap())
    };
    let kept = gradients(GradientCheckpointingStrategy::Disabled);
    let again = gradients(GradientCheckpointingStrategy::Balanced);
    assert_close(again.0, kept.0, "input");
    assert_close(again.1, kept.1, "gain");
    assert_close(again.2, kept.2, "weight");
}

fn check_group_norm(shape: [usize; 4], groups: usize, activated: bool, transposed: bool) {
    let what = format!(
        "{shape:?} in {groups}, activated: {activated}, {:?}",
        FORCED.get()
    );
    let input = match transposed {
        true => random([shape[0], shape[1], shape[3], shape[2]]).swap_dims(2, 3),
        false => random(shape),
    };
    let (gain, offset, seed) = (random([shape[1]]), random([shape[1]]), random(shape));
    let inputs = (&input, &gain, &offset);
    let got = differentiate(inputs, &seed, |input, gain, offset| {
        super::group_norm(&input, &gain, &offset, groups, 1e-5, activated).unwrap()
    });
    let expected = differentiate(inputs, &seed, |input, gain, offset| {
        let mut layer = GroupNormConfig::new(groups, shape[1]).init(&Device::flex());
        layer.gamma = layer.gamma.map(|parameter| parameter.map(|_| gain));
        layer.beta = layer.beta.map(|parameter| parameter.map(|_| offset));
        let output = layer.forward(input);
        if activated { silu(output) } else { output }
    });
    assert_same(got, expected, &what);
}

#[test]
fn group_norm_is_burns() {
    let shapes = [
        ([2, 8, 28, 28], 4),
        ([3, 6, 5, 7], 2),
        ([1, 4, 1, 3], 4),
        ([2, 32, 7, 7], 8),
        ([1, 6, 16, 16], 1),
    ];
    at_every_level(|| {
        for (shape, groups) in shapes {
            for activated in [false, true] {
                check_group_norm(shape, groups, activated, false);
            }
            check_group_norm(shape, groups, true, true);
        }
    });
}

#[test]
fn linear_layers_are_burns() {
    at_every_level(|| {
        for ([rows, inputs, positions], outputs) in [
            ([2, 3, 5], 4),
            ([1, 64, 196], 70),
            ([48, 5, 49], 130),
            ([1, 1, 1], 1),
            ([64, 128, 1], 32),
        ] {
            let (input, weight) = (random([rows, inputs, positions]), random([inputs, outputs]));
            let (bias, seed) = (random([outputs]), random([rows, outputs, positions]));
            let run = |plain| {
                differentiate((&input, &weight, &bias), &seed, |input, weight, bias| {
                    let mut layer = LinearConfig::new(inputs, outputs).init(&Device::flex());
                    layer.weight = layer.weight.map(|_| weight);
                    let bias_of = |parameter: Param<Tensor<1>>| parameter.map(|_| bias);
                    layer.bias = layer.bias.map(bias_of);
                    PLAIN.set(plain);
                    let output = ops::project(&layer, input);
                    PLAIN.set(false);
                    output
                })
            };
            let what = format!("{rows} × {positions}, {inputs} to {outputs}");
            assert_same(run(false), run(true), &what);
        }
    });
}

/// Output and gradient, burn's or the crate's.
fn activated(activation: Activation, input: &Tensor<3>, plain: bool) -> [Tensor<3>; 2] {
    let input = tracked(input);
    PLAIN.set(plain);
    let output = ops::activate(activation, input.clone());
    PLAIN.set(false);
    // Each place has a weight of its own.
    let numbers = output.shape().num_elements() as i64;
    let places = Tensor::arange(0..numbers, &Device::flex()).float();
    let weights = (places * 0.7).sin().reshape(output.dims());
    let grads = (output.clone() * weights).sum().backward();
    [output.inner(), input.grad(&grads).unwrap()]
}

#[test]
fn activations_are_burns() {
    at_every_level(|| {
        for shape in [[2, 6, 5], [1, 2, 1], [3, 64, 100], [1, 40, 1000]] {
            for (activation, transposed) in [
                (Activation::Geglu, false),
                (Activation::Geglu, true),
                (Activation::GeluTanh, false),
                (Activation::GeluTanh, true),
            ] {
                let [rows, channels, positions] = shape;
                let input = match transposed {
                    true => random([rows, positions, channels]).swap_dims(1, 2),
                    false => random(shape),
                };
                let what = format!("{activation:?}, {shape:?}, {:?}", FORCED.get());
                let [output, gradient] = activated(activation, &input, false);
                let [expected, slope] = activated(activation, &input, true);
                assert_close(output, expected, &format!("output, {what}"));
                assert_close(gradient, slope, &format!("gradient, {what}"));
            }
        }
    });
}

/// To the ends of the range, where the one half vanishes and the other is the number itself.
#[test]
fn gates_are_open_shut_or_undefined() {
    let gates = [-1e30, -20.0, -5.0, 0.0, 5.0, 20.0, 1e30, f32::NAN];
    let gates = Tensor::<1>::from_data(gates, &Device::flex()).reshape([1, 1, 8]);
    let features = Tensor::cat(vec![gates.ones_like(), gates], 1);
    at_every_level(|| {
        let [output, gradient] = activated(Activation::Geglu, &features, false).map(host);
        // −5 Φ(−5), Abramowitz and Stegun's table 26.2.
        let expected: [f32; 7] = [0.0, 0.0, -5.0 * 2.866_516e-7, 0.0, 5.0, 20.0, 1e30];
        for (found, expected) in output.iter().zip(expected) {
            let scale = f32::max(1e-6, expected.abs());
            assert!(
                (found - expected).abs() <= 1e-6 * scale,
                "{found} {expected}"
            );
        }
        assert!(output[7].is_nan());
        for (place, number) in gradient.iter().enumerate() {
            let is_undefined = [7, 15].contains(&place);
            assert_eq!(number.is_finite(), !is_undefined, "{place}: {number}");
        }
    });
}

#[test]
fn group_norm_leaves_other_types_to_burn() {
    let half = random([1, 4, 2, 2]).cast(burn::tensor::DType::F16);
    let (gain, offset) = (random([4]), random([4]));
    assert!(super::group_norm(&half, &gain, &offset, 2, 1e-5, true).is_none());
    assert!(super::group_norm(&random([1, 4, 2, 2]), &gain, &offset, 3, 1e-5, true).is_none());
}

/// A convolution: shape of the input, outputs, kernel, stride, padding before and after, dilation.
type Case = (
    [usize; 4],
    usize,
    [usize; 2],
    [usize; 2],
    [(usize, usize); 2],
    [usize; 2],
);

const CONVOLUTIONS: [Case; 22] = [
    ([2, 3, 9, 7], 5, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([3, 16, 28, 28], 32, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([1, 1, 28, 28], 1, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([9, 8, 7, 7], 17, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([2, 6, 8, 8], 12, [1, 1], [1, 1], [(0, 0); 2], [1, 1]),
    ([2, 6, 9, 8], 12, [1, 1], [2, 2], [(0, 0); 2], [1, 1]),
    ([2, 4, 28, 28], 6, [3, 3], [2, 2], [(1, 1); 2], [1, 1]),
    ([2, 4, 9, 10], 6, [3, 3], [2, 2], [(0, 1); 2], [1, 1]),
    ([2, 4, 11, 13], 6, [3, 3], [2, 3], [(1, 2), (2, 0)], [1, 1]),
    ([1, 2, 6, 5], 3, [3, 3], [1, 1], [(0, 0); 2], [1, 1]),
    ([2, 3, 12, 11], 4, [3, 2], [1, 2], [(2, 1), (0, 1)], [2, 1]),
    ([2, 3, 12, 11], 4, [3, 3], [3, 2], [(0, 3), (2, 3)], [2, 2]),
    ([1, 2, 5, 5], 3, [5, 5], [1, 1], [(2, 2); 2], [1, 1]),
    ([1, 48, 3, 40], 40, [1, 3], [1, 1], [(0, 0), (1, 1)], [1, 1]),
    // Stacks of images, some not full, and a kernel with only one tap that reads the image.
    ([150, 4, 1, 1], 5, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([19, 4, 2, 2], 9, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([23, 3, 3, 2], 4, [3, 3], [2, 2], [(0, 1); 2], [1, 1]),
    ([13, 6, 4, 4], 8, [3, 3], [1, 1], [(0, 2), (2, 0)], [1, 1]),
    ([9, 2, 3, 3], 3, [2, 2], [1, 1], [(1, 0), (0, 1)], [1, 1]),
    // A large kernel.
    ([9, 120, 3, 2], 130, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    // More lines than are computed together; more images than are added to one sum together.
    ([1, 3, 40, 37], 5, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
    ([7, 120, 10, 10], 130, [3, 3], [1, 1], [(1, 1); 2], [1, 1]),
];

fn convolution_inputs(case: &Case) -> (Tensor<4>, Tensor<4>, Tensor<1>, ConvOptions<2>) {
    let (shape, outputs, kernel, stride, padding, dilation) = *case;
    let options = ConvOptions::new_with_padding(stride, padding, dilation, 1);
    let weight = random([outputs, shape[1], kernel[0], kernel[1]]);
    (random(shape), weight, random([outputs]), options)
}

#[test]
fn convolution_is_burns() {
    for case in &CONVOLUTIONS {
        let (input, weight, bias, options) = convolution_inputs(case);
        check_convolution(&input, &weight, &bias, &options, &format!("{case:?}"));
    }
}

#[test]
fn convolution_takes_transposed_tensors() {
    let input = random([2, 9, 5, 3]).swap_dims(1, 3);
    let weight = random([3, 4, 3, 3]).swap_dims(0, 1);
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    check_convolution(&input, &weight, &random([4]), &options, "transposed");
}

fn check_convolution(
    input: &Tensor<4>,
    weight: &Tensor<4>,
    bias: &Tensor<1>,
    options: &ConvOptions<2>,
    what: &str,
) {
    let burns = |input, weight, bias| conv2d(input, weight, Some(bias), options.clone());
    let own = |input, weight, bias| super::convolve(&input, &weight, Some(&bias), options).unwrap();
    let seed = random(burns(input.clone(), weight.clone(), bias.clone()).dims());
    at_every_level(|| {
        let inputs = (input, weight, bias);
        let (got, expected) = (
            differentiate(inputs, &seed, own),
            differentiate(inputs, &seed, burns),
        );
        assert_same(got, expected, &format!("{what} {:?}", FORCED.get()));
    });
}

#[test]
fn convolution_without_bias_and_without_gradients() {
    let (input, weight, _, options) = convolution_inputs(&CONVOLUTIONS[0]);
    let got = super::convolve(&input, &weight, None, &options).unwrap();
    assert_close(got, conv2d(input, weight, None, options), "no bias");
}

#[test]
fn convolution_leaves_groups_and_wide_padding_to_burn() {
    let (input, weight) = (random([1, 4, 5, 5]), random([4, 2, 3, 3]));
    let grouped = ConvOptions::new([1, 1], [1, 1], [1, 1], 2);
    assert!(super::convolve(&input, &weight, None, &grouped).is_none());
    let wide = ConvOptions::new([1, 1], [3, 3], [1, 1], 1);
    assert!(super::convolve(&input, &random([4, 4, 3, 3]), None, &wide).is_none());
    let empty = ConvOptions::new([1, 1], [0, 0], [3, 3], 1);
    assert!(super::convolve(&input, &random([4, 4, 3, 3]), None, &empty).is_none());
}

/// Rows, channels, positions, sources and heads.
const ATTENTIONS: [[usize; 5]; 8] = [
    [2, 16, 196, 196, 2],
    [1, 8, 49, 49, 1],
    [2, 12, 5, 7, 3],
    [1, 64, 33, 20, 1],
    [2, 40, 17, 64, 4],
    [1, 32, 64, 32, 2],
    [3, 3, 1, 1, 1],
    [1, 192, 9, 9, 8],
];

fn check_attention([query, key, value]: [&Tensor<3>; 3], heads: usize, what: &str) {
    let seed = random(query.dims());
    let burns = |query: Tensor<3>, key: Tensor<3>, value: Tensor<3>| {
        let split = |features: Tensor<3>| {
            let [rows, channels, positions] = features.dims();
            features.reshape([rows, heads, channels / heads, positions])
        };
        let shape = query.dims();
        let scale = ((shape[1] / heads) as f64).sqrt().recip();
        let scores = split(query).transpose().matmul(split(key)) * scale;
        let weights = softmax(scores, 3).transpose();
        split(value).matmul(weights).reshape(shape)
    };
    at_every_level(|| {
        let inputs = (query, key, value);
        let got = differentiate(inputs, &seed, |query, key, value| {
            super::attend(&query, &key, &value, heads).unwrap()
        });
        let expected = differentiate(inputs, &seed, burns);
        assert_same(got, expected, &format!("{what} {:?}", FORCED.get()));
    });
}

#[test]
fn attention_is_burns() {
    for [rows, channels, positions, sources, heads] in ATTENTIONS {
        let (query, key) = (
            random([rows, channels, positions]),
            random([rows, channels, sources]),
        );
        let value = random([rows, channels, sources]);
        let what = format!("{positions} × {sources}, {heads} heads of {channels}");
        check_attention([&query, &key, &value], heads, &what);
    }
}

#[test]
fn attention_takes_transposed_tensors() {
    let [query, key, value] = [(); 3].map(|()| random([2, 9, 8]).swap_dims(1, 2));
    check_attention([&query, &key, &value], 2, "transposed");
}

/// Scores whose exponentials exceed `f32` give finite numbers.
#[test]
fn attention_does_not_overflow() {
    let features = random([2, 8, 9]) * 50.0;
    at_every_level(|| {
        let inputs = (&features, &features, &features);
        let found = differentiate(inputs, &features, |query, key, value| {
            super::attend(&query, &key, &value, 2).unwrap()
        });
        for tensor in [found.0, found.1, found.2, found.3] {
            assert!(tensor.is_finite().all().into_scalar::<bool>());
        }
    });
}

#[test]
fn attention_leaves_other_shapes_to_burn() {
    let tensor = random([2, 6, 5]);
    assert!(super::attend(&tensor, &tensor, &tensor, 4).is_none());
    assert!(super::attend(&tensor, &random([2, 4, 5]), &tensor, 2).is_none());
}

/// The order of all additions is independent of the number of threads.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (input, weight, bias, options) =
        convolution_inputs(&([21, 8, 9, 9], 8, [3, 3], [1, 1], [(1, 1); 2], [1, 1]));
    let (seed, gain) = (random([21, 8, 9, 9]), random([8]));
    let run = || {
        let convolved = differentiate((&input, &weight, &bias), &seed, |input, weight, bias| {
            super::convolve(&input, &weight, Some(&bias), &options).unwrap()
        });
        let normalised = differentiate((&input, &gain, &bias), &seed, |input, gain, bias| {
            super::group_norm(&input, &gain, &bias, 4, 1e-5, true).unwrap()
        });
        let features: Tensor<3> = input.clone().reshape([21, 8, 81]);
        let of_features = seed.clone().reshape([21, 8, 81]);
        let inputs = (&features, &features, &features);
        let attended = differentiate(inputs, &of_features, |query, key, value| {
            super::attend(&query, &key, &value, 2).unwrap()
        });
        [
            convolved.2.reshape([-1]),
            convolved.3,
            normalised.2,
            normalised.3,
            attended.0.reshape([-1]),
            attended.1.reshape([-1]),
            attended.2.reshape([-1]),
            attended.3.reshape([-1]),
        ]
        .map(|tensor: Tensor<1>| tensor.into_data().try_to_vec::<f32>().unwrap())
    };
    let alone = on_threads(1, run);
    for threads in [2, 5, 8] {
        assert_eq!(alone, on_threads(threads, run), "{threads} threads");
    }
}

/// Images that remain once every thread has equally many are divided by their channels, and small
/// ones are stacked.
#[test]
fn convolutions_are_the_same_however_images_and_channels_are_shared() {
    for (images, [height, width], stride) in [
        (1, [12, 17], 1),
        (3, [12, 17], 1),
        (5, [17, 12], 2),
        (4, [12, 12], 1),
        (1, [3, 3], 1),
        (7, [3, 4], 1),
        (21, [4, 3], 2),
    ] {
        let (input, kernel) = ([images, 40, height, width], [3, 3]);
        let case = (input, 70, kernel, [stride; 2], [(1, 1); 2], [1, 1]);
        let (input, weight, bias, options) = convolution_inputs(&case);
        let [height, width] = [height, width].map(|size| (size - 1) / stride + 1);
        let seed = random([images, 70, height, width]);
        let run = || {
            let found = differentiate((&input, &weight, &bias), &seed, |input, weight, bias| {
                super::convolve(&input, &weight, Some(&bias), &options).unwrap()
            });
            [host(found.0), host(found.1), host(found.2)]
        };
        let alone = on_threads(1, run);
        for threads in [2, 3, 4, 16] {
            let together = on_threads(threads, run);
            assert_eq!(alone, together, "{images} images, {threads} threads");
        }
    }
}
