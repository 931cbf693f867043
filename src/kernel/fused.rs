//! The loss kernel and the mixture draw in one pass each, if there is a kernel for the tensor's
//! backend.

use ::burn::backend::tensor::FloatTensor;
use ::burn::backend::{
    Backend, Dispatch, DispatchAutodiffContext, DispatchTensorKind, backend_extension,
};
use ::burn::tensor::{DType, Tensor};

use super::{Mixture, WeightedSquaredError};

/// `backend_extension` names burn's fusion in `burn::backend`, which exports it only if fusion is
/// enabled.
///
/// Any crate of a program can enable it. `Cube` is then a fusion over `CubeBackend`, and both need
/// the kernels.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
mod burn {
    pub(super) mod backend {
        pub(in super::super) use ::burn::backend::*;
        pub(in super::super) use burn_fusion as fusion;
    }
}

/// Losses and seed in one pass over prediction and target.
///
/// Every tensor is `f32` and not empty.
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

/// Number of values that the mixture draw needs for each row: `γ`, `σ`, `γ/σ`, and 1 if the row is
/// drawn from the forgotten point, else 0.
pub(super) const ROW_NUMBERS: usize = 4;

/// The mixture draw in one pass over both points and the noise.
///
/// Every tensor is `f32` and not empty; `rows` is `[ROW_NUMBERS, batch]`.
#[backend_extension(
    Flex: cfg(feature = "flex-kernels"),
    Cube: cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda"))),
    Fusion: cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))
)]
pub(crate) trait MixtureKernel: Backend {
    /// Noisy point, and the noise that explains it from the retained and from the forgotten point,
    /// `[batch, …]`; log-ratio, `[batch]`.
    #[fusion(meta = |_retain, _forget, noise, rows| {
        let mut log_ratio = rows.clone();
        log_ratio.shape = [rows.shape[1]].into();
        (noise.clone(), noise.clone(), noise.clone(), log_ratio)
    })]
    fn mixture_draw(
        retain: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        noise: FloatTensor<Self>,
        rows: FloatTensor<Self>,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );
}

/// Whether there is a kernel for a tensor: for its backend and type, and outside an autodiff graph.
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

/// Like [`weighted_squared_error`](super::weighted_squared_error), for tensors of one backend that
/// [`takes`] accepts.
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

/// Like [`mixture_draw`](super::mixture_draw), for tensors of one backend that [`takes`] accepts.
pub(super) fn mixture_draw<const D: usize>(
    retain: Tensor<D>,
    forget: Tensor<D>,
    noise: Tensor<D>,
    rows: Tensor<2>,
) -> Mixture<D> {
    let [retain, forget, noise] = [retain, forget, noise].map(Tensor::into_dispatch);
    let (noisy, retain_noise, forget_noise, log_ratio) =
        <Dispatch as MixtureKernel>::mixture_draw(retain, forget, noise, rows.into_dispatch());
    let points = [noisy, retain_noise, forget_noise].map(Tensor::from_dispatch);
    (points, Tensor::from_dispatch(log_ratio))
}
