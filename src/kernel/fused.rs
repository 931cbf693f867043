//! The loss kernel and the mixture draw in one pass each, if there is a kernel for the tensor's
//! backend.

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use ::burn::backend::DispatchTensor;
use ::burn::backend::tensor::FloatTensor;
use ::burn::backend::{
    Backend, Dispatch, DispatchAutodiffContext, DispatchTensorKind, backend_extension,
};
use ::burn::tensor::{DType, Tensor};

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use super::cube::BLOCK;
use super::{Mixture, WeightedSquaredError};

/// `backend_extension` names burn's fusion in `burn::backend`, which exports it only if fusion is
/// enabled.
///
/// Any crate of a program can enable it. `Cube` is then a fusion over `CubeBackend`, and both need
/// the kernels.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) mod burn {
    pub(crate) mod backend {
        pub(crate) use ::burn::backend::*;
        pub(crate) use burn_fusion as fusion;
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

/// The numbers of a step of `AdamW`.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWNumbers {
    pub(crate) beta_1: f32,
    pub(crate) beta_2: f32,
    /// `1 − β₁ᵗ`.
    pub(crate) correction_1: f32,
    /// `1 − β₂ᵗ`.
    pub(crate) correction_2: f32,
    pub(crate) epsilon: f32,
    /// `1 − η · decay`.
    pub(crate) keep: f32,
    /// `η`.
    pub(crate) rate: f32,
}

/// A step of `AdamW` in one pass over a parameter.
///
/// Every tensor is `f32`, not empty, and of the same shape.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[backend_extension(Cube, Fusion)]
pub(crate) trait AdamWKernel: Backend {
    /// The new parameter and moments.
    #[fusion(meta = |parameter, _gradient, moment_1, moment_2, _numbers| {
        (parameter.clone(), moment_1.clone(), moment_2.clone())
    })]
    fn adamw_step(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        numbers: AdamWNumbers,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Inner products of two gradients: of each with itself, and of both.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) const PRODUCTS: usize = 3;

/// Arithmetic over whole gradients, a pass per parameter.
///
/// Every tensor is `f32` and not empty. Sums are noted for blocks of a parameter, whose places
/// follow those of the parameters before it.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[backend_extension(Cube, Fusion)]
pub(crate) trait GradientKernel: Backend {
    /// Writes [`PRODUCTS`] for each block into `sums`, `[blocks, PRODUCTS]`.
    #[fusion(dtype = sums, shape = sums)]
    fn note_products(
        sums: FloatTensor<Self>,
        retain: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        first_block: usize,
    ) -> FloatTensor<Self>;

    /// Writes the number of values that are not finite for each block into `sums`, `[blocks, 1]`.
    #[fusion(dtype = sums, shape = sums)]
    fn note_non_finite(
        sums: FloatTensor<Self>,
        values: FloatTensor<Self>,
        first_block: usize,
    ) -> FloatTensor<Self>;

    /// Sums over the blocks, `[columns]`.
    #[fusion(dtype = sums, shape = ::burn::tensor::Shape::from([sums[1]]))]
    fn sum_blocks(sums: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `of_retain · retain + of_forget · forget`.
    #[fusion(dtype = retain, shape = retain)]
    fn scaled_sum(
        retain: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        of_retain: f32,
        of_forget: f32,
    ) -> FloatTensor<Self>;
}

/// Sums noted for one parameter after another on the GPU.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[derive(Debug)]
pub(crate) struct Notes {
    sums: Tensor<2>,
    next_block: usize,
}

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
impl Notes {
    /// Room for parameters of these numbers of elements.
    pub(crate) fn new(elements: &[usize], columns: usize, device: &::burn::tensor::Device) -> Self {
        let blocks = elements.iter().map(|count| count.div_ceil(BLOCK)).sum();
        Self {
            sums: Tensor::empty([blocks, columns], (device, DType::F32)),
            next_block: 0,
        }
    }

    /// Notes the products of a parameter's gradients, both of which [`is_on_cube`] accepts.
    pub(crate) fn products<const D: usize>(self, retain: Tensor<D>, forget: Tensor<D>) -> Self {
        let elements = retain.shape().num_elements();
        self.note(elements, |sums, block| {
            let [retain, forget] = [retain, forget].map(Tensor::into_dispatch);
            <Dispatch as GradientKernel>::note_products(sums, retain, forget, block)
        })
    }

    /// Notes how many values are not finite; [`is_on_cube`] accepts them.
    pub(crate) fn non_finite<const D: usize>(self, values: Tensor<D>) -> Self {
        self.note(values.shape().num_elements(), |sums, block| {
            <Dispatch as GradientKernel>::note_non_finite(sums, values.into_dispatch(), block)
        })
    }

    fn note(
        self,
        elements: usize,
        note: impl FnOnce(DispatchTensor, usize) -> DispatchTensor,
    ) -> Self {
        let sums = note(self.sums.into_dispatch(), self.next_block);
        Self {
            sums: Tensor::from_dispatch(sums),
            next_block: self.next_block + elements.div_ceil(BLOCK),
        }
    }

    /// The sums over all parameters, `[columns]`.
    pub(crate) fn summed(self) -> Tensor<1> {
        let sums = <Dispatch as GradientKernel>::sum_blocks(self.sums.into_dispatch());
        Tensor::from_dispatch(sums)
    }
}

/// `of_retain · retain + of_forget · forget` for tensors that [`is_on_cube`] accepts.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn scaled_sum<const D: usize>(
    retain: Tensor<D>,
    forget: Tensor<D>,
    of_retain: f64,
    of_forget: f64,
) -> Tensor<D> {
    let [retain, forget] = [retain, forget].map(Tensor::into_dispatch);
    let (of_retain, of_forget) = (of_retain as f32, of_forget as f32);
    let sum = <Dispatch as GradientKernel>::scaled_sum(retain, forget, of_retain, of_forget);
    Tensor::from_dispatch(sum)
}

/// Whether there is a kernel on the GPU for a tensor: `f32`, outside an autodiff graph.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn is_on_cube<const D: usize>(tensor: &Tensor<D>) -> bool {
    let is_cube = matches!(
        tensor.clone().into_dispatch().kind,
        DispatchTensorKind::Cube(_)
    );
    is_cube && takes(tensor)
}

/// A step of `AdamW` for tensors that [`is_on_cube`] accepts: the new parameter and moments.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn adamw_step<const D: usize>(
    tensors: [Tensor<D>; 4],
    numbers: AdamWNumbers,
) -> [Tensor<D>; 3] {
    let [parameter, gradient, moment_1, moment_2] = tensors.map(Tensor::into_dispatch);
    let (parameter, moment_1, moment_2) =
        <Dispatch as AdamWKernel>::adamw_step(parameter, gradient, moment_1, moment_2, numbers);
    [parameter, moment_1, moment_2].map(Tensor::from_dispatch)
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
