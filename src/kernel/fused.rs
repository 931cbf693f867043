//! The loss kernel and the mixture draw in one pass each, if there is a kernel for the tensor's
//! backend.

use ::burn::backend::tensor::FloatTensor;
use ::burn::backend::{
    Backend, Dispatch, DispatchAutodiffContext, DispatchTensorKind, backend_extension,
};
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use ::burn::backend::{DispatchTensor, ExtensionType};
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
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// Inner products of two gradients: of each with itself, and of both.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) const PRODUCTS: usize = 3;

/// Parameters that a kernel over whole gradients takes in one launch, at most.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) const GROUP: usize = 16;

/// A struct of [`GROUP`] tensors, because a backend extension takes no list.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
macro_rules! group {
    ($($name:ident: $tensor:ident),*) => {
        /// The tensors of up to [`GROUP`] parameters, `[elements]` each.
        ///
        /// The number of parameters goes beside it. The places of missing ones hold the first.
        #[derive(ExtensionType)]
        #[extension_type(fusion)]
        pub(crate) struct Group<B: Backend>($($tensor<B>),*);

        impl<B: Backend> Group<B> {
            pub(super) fn new([$($name),*]: [FloatTensor<B>; GROUP]) -> Self {
                Self($($name),*)
            }

            pub(super) fn into_tensors(self) -> [FloatTensor<B>; GROUP] {
                let Self($($name),*) = self;
                [$($name),*]
            }
        }
    };
}

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
group!(
    a: FloatTensor, b: FloatTensor, c: FloatTensor, d: FloatTensor,
    e: FloatTensor, f: FloatTensor, g: FloatTensor, h: FloatTensor,
    i: FloatTensor, j: FloatTensor, k: FloatTensor, l: FloatTensor,
    m: FloatTensor, n: FloatTensor, o: FloatTensor, p: FloatTensor
);

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
impl Group<Dispatch> {
    /// Of at least one and at most [`GROUP`] tensors.
    fn of(tensors: &[Tensor<1>]) -> Self {
        let tensor = |index: usize| tensors.get(index).unwrap_or(&tensors[0]).clone();
        Self::new(std::array::from_fn(tensor).map(Tensor::into_dispatch))
    }

    /// The first `count` tensors.
    fn first(self, count: usize) -> impl Iterator<Item = Tensor<1>> {
        self.into_tensors()
            .into_iter()
            .take(count)
            .map(Tensor::from_dispatch)
    }
}

/// A step of `AdamW` in one pass over a group of parameters.
///
/// Every tensor is `f32` and not empty.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[backend_extension(Cube, Fusion)]
pub(crate) trait AdamWKernel: Backend {
    /// The new parameters and moments of the first `count`.
    #[fusion(meta = |parameters, _gradients, moments_1, moments_2, _count, _numbers| {
        (parameters.clone(), moments_1.clone(), moments_2.clone())
    })]
    fn adamw_steps(
        #[extension_type] parameters: Group<Self>,
        #[extension_type] gradients: Group<Self>,
        #[extension_type] moments_1: Group<Self>,
        #[extension_type] moments_2: Group<Self>,
        count: usize,
        numbers: AdamWNumbers,
    ) -> (Group<Self>, Group<Self>, Group<Self>);
}

/// Arithmetic over whole gradients, a pass per group of parameters.
///
/// Every tensor is `f32` and not empty. The first `count` of a group are parameters. Sums are noted
/// for blocks of a parameter, whose places follow those of the parameters before it.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
#[backend_extension(Cube, Fusion)]
pub(crate) trait GradientKernel: Backend {
    /// Writes [`PRODUCTS`] for each block into `sums`, `[blocks, PRODUCTS]`.
    #[fusion(meta = |sums, _retain, _forget, _count, _first_block| sums.clone())]
    fn note_products(
        sums: FloatTensor<Self>,
        #[extension_type] retain: Group<Self>,
        #[extension_type] forget: Group<Self>,
        count: usize,
        first_block: usize,
    ) -> FloatTensor<Self>;

    /// Writes the number of values that are not finite for each block into `sums`, `[blocks, 1]`.
    #[fusion(meta = |sums, _values, _count, _first_block| sums.clone())]
    fn note_non_finite(
        sums: FloatTensor<Self>,
        #[extension_type] values: Group<Self>,
        count: usize,
        first_block: usize,
    ) -> FloatTensor<Self>;

    /// Sums over the blocks, `[columns]`.
    #[fusion(dtype = sums, shape = ::burn::tensor::Shape::from([sums[1]]))]
    fn sum_blocks(sums: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `of_retain · retain + of_forget · forget`.
    #[fusion(meta = |retain, _forget, _count, _of_retain, _of_forget| retain.clone())]
    fn scaled_sums(
        #[extension_type] retain: Group<Self>,
        #[extension_type] forget: Group<Self>,
        count: usize,
        of_retain: f32,
        of_forget: f32,
    ) -> Group<Self>;
}

/// Sums noted for one group of parameters after another on the GPU.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
struct Notes {
    sums: DispatchTensor,
    next_block: usize,
}

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
impl Notes {
    /// Room for parameters of these numbers of elements. Every block is written, so it starts empty.
    fn new(elements: impl Iterator<Item = usize>, columns: usize, like: &Tensor<1>) -> Self {
        let blocks: usize = elements.map(|count| count.div_ceil(BLOCK)).sum();
        let shape = [blocks, columns];
        Self {
            sums: Tensor::<2>::empty(shape, (&like.device(), DType::F32)).into_dispatch(),
            next_block: 0,
        }
    }

    /// The place of the next blocks, which follow those of a group of this many elements each.
    fn advance(&mut self, group: &[Tensor<1>]) -> usize {
        let first = self.next_block;
        let blocks = |tensor: &Tensor<1>| tensor.dims()[0].div_ceil(BLOCK);
        self.next_block += group.iter().map(blocks).sum::<usize>();
        first
    }

    /// The sums over all parameters, `[columns]`.
    fn summed(self) -> Tensor<1> {
        Tensor::from_dispatch(<Dispatch as GradientKernel>::sum_blocks(self.sums))
    }
}

/// [`PRODUCTS`] over the gradients of all parameters, which [`is_on_cube`] accepts; `None` without
/// parameters.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn gradient_products(
    retain: Vec<Tensor<1>>,
    forget: Vec<Tensor<1>>,
) -> Option<Tensor<1>> {
    let sizes = retain.iter().map(|gradient| gradient.dims()[0]);
    let mut notes = Notes::new(sizes, PRODUCTS, retain.first()?);
    for (retain, forget) in retain.chunks(GROUP).zip(forget.chunks(GROUP)) {
        let (count, first_block) = (retain.len(), notes.advance(retain));
        let [retain, forget] = [retain, forget].map(Group::of);
        notes.sums = <Dispatch as GradientKernel>::note_products(
            notes.sums,
            retain,
            forget,
            count,
            first_block,
        );
    }
    Some(notes.summed())
}

/// How many of the values are not finite, `[1]`; [`is_on_cube`] accepts them. `None` if there are
/// no values.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn non_finite(values: Vec<Tensor<1>>) -> Option<Tensor<1>> {
    let sizes = values.iter().map(|values| values.dims()[0]);
    let mut notes = Notes::new(sizes, 1, values.first()?);
    for values in values.chunks(GROUP) {
        let (count, first_block) = (values.len(), notes.advance(values));
        let values = Group::of(values);
        notes.sums =
            <Dispatch as GradientKernel>::note_non_finite(notes.sums, values, count, first_block);
    }
    Some(notes.summed())
}

/// `of_retain · retain + of_forget · forget` of each pair, which [`is_on_cube`] accepts.
///
/// Frees the pairs of a group before the next.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn scaled_sums(
    pairs: Vec<[Tensor<1>; 2]>,
    of_retain: f64,
    of_forget: f64,
) -> Vec<Tensor<1>> {
    let mut sums = Vec::with_capacity(pairs.len());
    let mut pairs = pairs.into_iter();
    while pairs.len() > 0 {
        let group = pairs.by_ref().take(GROUP);
        let (retain, forget): (Vec<_>, Vec<_>) =
            group.map(|[retain, forget]| (retain, forget)).unzip();
        let count = retain.len();
        let [retain, forget] = [&retain[..], &forget].map(Group::of);
        let (of_retain, of_forget) = (of_retain as f32, of_forget as f32);
        let group =
            <Dispatch as GradientKernel>::scaled_sums(retain, forget, count, of_retain, of_forget);
        sums.extend(group.first(count));
    }
    sums
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

/// Steps of `AdamW` with the same numbers for at most [`GROUP`] parameters, in one launch if the
/// device binds enough tensors.
///
/// Takes parameter, gradient and both moments of each, which [`is_on_cube`] accepts, on one device.
/// Returns the new parameter and moments of each.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn adamw_steps(
    steps: Vec<[Tensor<1>; 4]>,
    numbers: AdamWNumbers,
) -> impl Iterator<Item = [Tensor<1>; 3]> {
    let count = steps.len();
    let part = |index: usize| {
        let tensors: Vec<_> = steps.iter().map(|step| step[index].clone()).collect();
        Group::of(&tensors)
    };
    let (parameters, moments_1, moments_2) =
        <Dispatch as AdamWKernel>::adamw_steps(part(0), part(1), part(2), part(3), count, numbers);
    let moments = moments_1.first(count).zip(moments_2.first(count));
    let steps = parameters.first(count).zip(moments);
    steps.map(|(parameter, (moment_1, moment_2))| [parameter, moment_1, moment_2])
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
