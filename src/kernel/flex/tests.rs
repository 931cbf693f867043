//! The operations against burn's own, with every set of instructions.

use std::cell::Cell;

use burn::nn::GroupNormConfig;
use burn::tensor::activation::silu;
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

/// The gradients of `Σ output · seed` with respect to a tensor.
fn gradient<const D: usize, const E: usize>(
    output: &Tensor<E>,
    seed: &Tensor<E>,
    tensor: &Tensor<D>,
) -> Tensor<D> {
    let loss = (output.clone() * seed.clone()).sum();
    tensor.grad(&loss.backward()).unwrap()
}

type Operation<'a, const E: usize> = dyn Fn(Tensor<E>, Tensor<1>, Tensor<1>) -> Tensor<E> + 'a;

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
    let own: &Operation<4> = &|input, gain, offset| {
        super::group_norm(&input, &gain, &offset, groups, 1e-5, activated).unwrap()
    };
    let burns: &Operation<4> = &|input, gain, offset| {
        let mut layer = GroupNormConfig::new(groups, shape[1]).init(&Device::flex());
        layer.gamma = layer.gamma.map(|parameter| parameter.map(|_| gain));
        layer.beta = layer.beta.map(|parameter| parameter.map(|_| offset));
        let output = layer.forward(input);
        if activated { silu(output) } else { output }
    };
    let run = |operation: &Operation<4>| {
        let (x, a, b) = (tracked(&input), tracked(&gain), tracked(&offset));
        let output = operation(x.clone(), a.clone(), b.clone());
        let grads = (output.clone() * seed.clone()).sum().backward();
        (
            output.inner(),
            x.grad(&grads).unwrap(),
            a.grad(&grads).unwrap(),
            b.grad(&grads).unwrap(),
        )
    };
    let (got, expected) = (run(own), run(burns));
    assert_close(got.0, expected.0, &format!("output, {what}"));
    assert_close(got.1, expected.1, &format!("input, {what}"));
    assert_close(got.2, expected.2, &format!("gain, {what}"));
    assert_close(got.3, expected.3, &format!("offset, {what}"));
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
