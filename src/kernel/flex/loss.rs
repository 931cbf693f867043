//! Losses and seed on the CPU in one pass: each input is read once, and the seed replaces the
//! target in memory.

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::{numbers, tensor};
use crate::kernel::fused::LossKernel;
use crate::kernel::simd::{Vectorised, dispatch, instructions};

/// Elements of a row that one thread processes at a time: the partition is the same for any number
/// of threads.
pub(super) const BLOCK: usize = 1 << 14;

/// Number of elements from which it pays to wake other threads.
pub(super) const MANY: usize = 1 << 19;

/// Number of vectors whose squares are added in `f32` before the sum is added to an `f64`: few, so
/// that the sum keeps seven digits even if every addition rounds in the same direction.
pub(super) const GROUP: usize = 16;

impl LossKernel for Flex {
    fn losses_and_seed(
        prediction: FlexTensor,
        target: FlexTensor,
        weights: FlexTensor,
        scale: f32,
    ) -> (FlexTensor, FlexTensor) {
        let (prediction, weights) = (contiguous(prediction), contiguous(weights));
        let mut seed = contiguous(target);
        let losses = losses_and_seed(
            instructions(),
            numbers(&prediction),
            seed.storage_mut(),
            numbers(&weights),
            scale,
        );
        (tensor(losses, weights.shape()), seed)
    }
}

/// Brings the elements of a tensor in order.
///
/// A tensor that was the only owner of its memory stays so.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// A part of a row.
struct Block<'a> {
    prediction: &'a [f32],
    /// The target at first, then the seed.
    seed: &'a mut [f32],
    /// `2 w / B`.
    factor: f32,
    /// `Σ (ŷ − target)²`.
    squares: f64,
}

/// `‖ŷ − target‖²` of each row; `seed` holds the target, which is replaced by
/// `scale · w (ŷ − target)`.
fn losses_and_seed(
    arch: Arch,
    prediction: &[f32],
    seed: &mut [f32],
    weights: &[f32],
    scale: f32,
) -> Vec<f32> {
    let elements = prediction.len() / weights.len();
    let is_large = prediction.len() >= MANY;
    let rows = prediction
        .chunks_exact(elements)
        .zip(seed.chunks_exact_mut(elements));
    let mut blocks: Vec<Block> = rows
        .zip(weights)
        .flat_map(|((prediction, seed), weight)| {
            let parts = prediction.chunks(BLOCK).zip(seed.chunks_mut(BLOCK));
            parts.map(move |(prediction, seed)| Block {
                prediction,
                seed,
                factor: weight * scale,
                squares: 0.0,
            })
        })
        .collect();
    if is_large {
        blocks
            .par_iter_mut()
            .for_each(|block| dispatch(arch, block));
    } else {
        blocks.iter_mut().for_each(|block| dispatch(arch, block));
    }
    blocks
        .chunks_exact(elements.div_ceil(BLOCK))
        .map(|row| row.iter().map(|block| block.squares).sum::<f64>() as f32)
        .collect()
}

impl Vectorised for &mut Block<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat_f32s(self.factor);
        let zero = simd.splat_f32s(0.0);
        let (prediction, prediction_tail) = S::as_simd_f32s(self.prediction);
        let (seed, seed_tail) = S::as_mut_simd_f32s(self.seed);
        let (predictions, prediction_rest) = prediction.as_chunks::<GROUP>();
        let (seeds, seed_rest) = seed.as_chunks_mut::<GROUP>();
        let mut squares = 0.0;
        for (prediction, seed) in predictions.iter().zip(seeds) {
            let mut partial = [zero; 4];
            for (index, (&prediction, seed)) in prediction.iter().zip(seed).enumerate() {
                let sum = &mut partial[index % 4];
                (*seed, *sum) = advance(simd, prediction, *seed, factor, *sum);
            }
            let [a, b, c, d] = partial;
            let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
            squares += f64::from(simd.reduce_sum_f32s(sum));
        }
        for (&prediction, seed) in prediction_rest.iter().zip(seed_rest) {
            let sum;
            (*seed, sum) = advance(simd, prediction, *seed, factor, zero);
            squares += f64::from(simd.reduce_sum_f32s(sum));
        }
        let prediction = simd.partial_load_f32s(prediction_tail);
        let target = simd.partial_load_f32s(seed_tail);
        let (seed, sum) = advance(simd, prediction, target, factor, zero);
        simd.partial_store_f32s(seed_tail, seed);
        self.squares = squares + f64::from(simd.reduce_sum_f32s(sum));
    }
}

/// Returns `factor (ŷ − target)`, and the sum with `(ŷ − target)²` added.
#[inline(always)]
fn advance<S: Simd>(
    simd: S,
    prediction: S::f32s,
    target: S::f32s,
    factor: S::f32s,
    sum: S::f32s,
) -> (S::f32s, S::f32s) {
    let difference = simd.sub_f32s(prediction, target);
    let seed = simd.mul_f32s(difference, factor);
    (seed, simd.mul_add_e_f32s(difference, difference, sum))
}
