//! The loss kernel in one pass, where there is one for a tensor's backend.

use ::burn::backend::tensor::FloatTensor;
use ::burn::backend::{
    Backend, Dispatch, DispatchAutodiffContext, DispatchTensorKind, backend_extension,
};
use ::burn::tensor::{DType, Tensor};

use super::WeightedSquaredError;

/// The macro names burn's fusion in `burn::backend`, which has it only where fusion is on. It may be: any crate of a
/// program can switch it on. `Cube` is then a fusion over `CubeBackend`, and both are given the kernel.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
mod burn {
    pub(super) mod backend {
        pub(in super::super) use ::burn::backend::*;
        pub(in super::super) use burn_fusion as fusion;
    }
}

/// Losses and seed in one pass over prediction and target. Every tensor is `f32`, none is empty.
#[backend_extension(
    Flex: cfg(feature = "flex-kernels"),
    Cube: cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda"))),
    Fusion: cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))
)]
pub(crate) trait LossKernel: Backend {
    /// `‖ŷ − target‖²` of each row, and `scale · w (ŷ − target)`.
    #[fusion(meta = |prediction, _target, weights, _scale| (weights.clone(), prediction.clone()))]
    fn losses_and_seed(
        prediction: FloatTensor<Self>,
        target: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether there is a kernel for a tensor: for its backend and type, outside of an autodiff graph.
pub(super) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    let is_f32 = tensor.dtype() == DType::F32;
    let is_empty = tensor.shape().num_elements() == 0;
    let tensor = tensor.clone().into_dispatch();
    let has_kernel = match tensor.kind {
        #[cfg(feature = "flex-kernels")]
        DispatchTensorKind::Flex(_) => true,
        #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
        DispatchTensorKind::Cube(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "reached where burn has another backend"
        )]
        _ => false,
    };
    let is_plain = tensor.autodiff == DispatchAutodiffContext::Disabled;
    is_f32 && !is_empty && has_kernel && is_plain
}

/// As [`weighted_squared_error`](super::weighted_squared_error), for tensors of one backend that it [`takes`].
pub(super) fn weighted_squared_error<const D: usize>(
    prediction: Tensor<D>,
    target: Tensor<D>,
    weights: Tensor<1>,
    scale: f64,
) -> WeightedSquaredError<D> {
    let [prediction, target] = [prediction, target].map(Tensor::into_dispatch);
    let (losses, seed) = <Dispatch as LossKernel>::losses_and_seed(
        prediction,
        target,
        weights.into_dispatch(),
        scale as f32,
    );
    WeightedSquaredError {
        losses: Tensor::from_dispatch(losses),
        seed: Tensor::from_dispatch(seed),
    }
}
