//! The mixture draw on the CPU in one pass: each input is read once, and each output is written
//! once.

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::loss::{BLOCK, GROUP, MANY};
use super::{numbers, tensor};
use crate::kernel::fused::{MixtureKernel, ROW_NUMBERS};
use crate::kernel::simd::{Vectorised, dispatch, instructions};

impl MixtureKernel for Flex {
    fn mixture_draw(
        retain: FlexTensor,
        forget: FlexTensor,
        noise: FlexTensor,
        rows: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let shape = noise.shape();
        let inputs = [retain, forget, noise, rows].map(|tensor| tensor.to_contiguous());
        let [retain, forget, noise, rows] = inputs.each_ref().map(numbers);
        let (outputs, log_ratios) = mixture_draw(instructions(), [retain, forget, noise], rows);
        let [noisy, retain_noise, forget_noise] =
            outputs.map(|numbers| tensor(numbers, shape.clone()));
        let count = log_ratios.len();
        (
            noisy,
            retain_noise,
            forget_noise,
            tensor(log_ratios, [count]),
        )
    }
}

/// A part of a row.
struct Block<'a> {
    /// Retained point, forgotten point, noise.
    inputs: [&'a [f32]; 3],
    /// Noisy point, and the noise that explains it from the retained and from the forgotten point.
    outputs: [&'a mut [f32]; 3],
    row: Row,
    /// `Σ (ε_x + ε_a)·r`.
    product: f64,
}

/// The numbers that all elements of a row share.
#[derive(Clone, Copy)]
struct Row {
    signal: f32,
    sigma: f32,
    ratio: f32,
    from_forget: f32,
}

/// The noisy points and their explanations as in
/// [`mixture_points`](crate::objective::mixture_points), and the log-ratio of each row.
fn mixture_draw(arch: Arch, inputs: [&[f32]; 3], rows: &[f32]) -> ([Vec<f32>; 3], Vec<f32>) {
    let count = rows.len() / ROW_NUMBERS;
    let elements = inputs[0].len() / count;
    let mut outputs = inputs.map(|input| vec![0.0; input.len()]);
    let mut blocks: Vec<Block> = Vec::new();
    let [noisy, retain_noise, forget_noise] = &mut outputs;
    let of_rows = noisy
        .chunks_exact_mut(elements)
        .zip(retain_noise.chunks_exact_mut(elements))
        .zip(forget_noise.chunks_exact_mut(elements));
    for (row, ((noisy, retain_noise), forget_noise)) in of_rows.enumerate() {
        let number = |index: usize| rows[index * count + row];
        let shared = Row {
            signal: number(0),
            sigma: number(1),
            ratio: number(2),
            from_forget: number(3),
        };
        let of_blocks = noisy
            .chunks_mut(BLOCK)
            .zip(retain_noise.chunks_mut(BLOCK))
            .zip(forget_noise.chunks_mut(BLOCK));
        for (block, ((noisy, retain_noise), forget_noise)) in of_blocks.enumerate() {
            let first = row * elements + block * BLOCK;
            blocks.push(Block {
                inputs: inputs.map(|input| &input[first..first + noisy.len()]),
                outputs: [noisy, retain_noise, forget_noise],
                row: shared,
                product: 0.0,
            });
        }
    }
    if inputs[0].len() >= MANY {
        blocks
            .par_iter_mut()
            .for_each(|block| dispatch(arch, block));
    } else {
        blocks.iter_mut().for_each(|block| dispatch(arch, block));
    }
    let of_rows = blocks.chunks_exact(elements.div_ceil(BLOCK));
    let log_ratio = |row: &[Block]| row.iter().map(|block| block.product).sum::<f64>() / 2.0;
    let log_ratios = of_rows.map(|row| log_ratio(row) as f32).collect();
    (outputs, log_ratios)
}

impl Vectorised for &mut Block<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let explain = Explain::new(simd, self.row);
        let [x, a, noise] = self.inputs.map(S::as_simd_f32s);
        let [noisy, of_retain, of_forget] = self
            .outputs
            .each_mut()
            .map(|output| S::as_mut_simd_f32s(output));
        let mut product = 0.0;
        let mut partial = simd.splat_f32s(0.0);
        for index in 0..noise.0.len() {
            let (outputs, sum) =
                explain.at(simd, [x.0[index], a.0[index], noise.0[index]], partial);
            [noisy.0[index], of_retain.0[index], of_forget.0[index]] = outputs;
            partial = sum;
            if index % GROUP == GROUP - 1 {
                product += f64::from(simd.reduce_sum_f32s(partial));
                partial = simd.splat_f32s(0.0);
            }
        }
        let tail = [x.1, a.1, noise.1].map(|tail| simd.partial_load_f32s(tail));
        let (outputs, sum) = explain.at(simd, tail, partial);
        for (tail, output) in [noisy.1, of_retain.1, of_forget.1].into_iter().zip(outputs) {
            simd.partial_store_f32s(tail, output);
        }
        self.product = product + f64::from(simd.reduce_sum_f32s(sum));
    }
}

/// The numbers of a row, one copy per lane.
struct Explain<S: Simd> {
    signal: S::f32s,
    sigma: S::f32s,
    ratio: S::f32s,
    from_forget: S::f32s,
    from_retain: S::f32s,
}

impl<S: Simd> Explain<S> {
    #[inline(always)]
    fn new(simd: S, row: Row) -> Self {
        Self {
            signal: simd.splat_f32s(row.signal),
            sigma: simd.splat_f32s(row.sigma),
            ratio: simd.splat_f32s(row.ratio),
            from_forget: simd.splat_f32s(row.from_forget),
            from_retain: simd.splat_f32s(1.0 - row.from_forget),
        }
    }

    /// Returns `m`, `ε_x`, `ε_a`, and the sum with `(ε_x + ε_a)·r` added.
    ///
    /// Rounding is that of the tensor operations.
    #[inline(always)]
    fn at(&self, simd: S, [x, a, noise]: [S::f32s; 3], sum: S::f32s) -> ([S::f32s; 3], S::f32s) {
        let (add, multiply) = (|a, b| simd.add_f32s(a, b), |a, b| simd.mul_f32s(a, b));
        let difference = multiply(simd.sub_f32s(a, x), self.ratio);
        let of_retain = add(noise, multiply(difference, self.from_forget));
        let of_forget = simd.sub_f32s(noise, multiply(difference, self.from_retain));
        let clean = add(multiply(x, self.from_retain), multiply(a, self.from_forget));
        let noisy = add(multiply(clean, self.signal), multiply(noise, self.sigma));
        let sum = add(sum, multiply(add(of_retain, of_forget), difference));
        ([noisy, of_retain, of_forget], sum)
    }
}
