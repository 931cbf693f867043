//! The operations against burn's own, with every set of instructions.

use std::cell::Cell;

use burn::nn::GroupNormConfig;
use burn::tensor::activation::silu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Tensor};
use pulp::Arch;

use super::simd::levels;

thread_local! {
    /// The instructions to use on this thread, in the place of the best.
    pub(super) static FORCED: Cell<Option<Arch>> = const { Cell::new(None) };
    /// Whether the operations refuse all tensors on this thread.
    pub(crate) static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `check` with every set of instructions.
fn at_every_level(check: impl Fn()) {
    for level in levels() {
        FORCED.set(Some(level));
        check();
    }
    FORCED.set(None);
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.3, 1.5), &Device::flex())
}

fn tracked<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().autodiff().require_grad()
}

fn assert_close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let scale = expected.clone().abs().max().into_scalar::<f32>();
    let error = (got - expected).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5 * scale, "{what}: {error} of {scale}");
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

const CONVOLUTIONS: [Case; 14] = [
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
