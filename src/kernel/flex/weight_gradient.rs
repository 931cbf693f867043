//! The gradients of a convolution's weights and bias.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::convolution::ConvolutionShape;
use super::planes::Planes;
use super::simd::{Vectorised, dispatch, sum};
use super::tile::{ROWS, Tile, load, multiply_streams, store};

/// The most sums that are kept apart. The images that go into one sum depend on their number and on the sizes
/// only, so that the result does not depend on the number of threads.
const PARTS: usize = 8;

/// From so many numbers on, one sum is kept: to add up several would take as long as to compute them.
const LARGE: usize = 1 << 17;

/// Rows of a sum that a thread computes at a time.
const SLAB: usize = 8 * ROWS;

/// Lanes of the widest vector: columns are filled up to a multiple.
const LANES: usize = 16;

/// `∂L/∂weight[o, i, tap] = Σ g[o, position] · x[i, position · stride + tap]`, over all images.
///
/// Computed with the output channels side by side: a column of the output's gradient times a number
/// of the input adds to a row of the result, so that no sum runs across a vector.
pub(super) fn weight_gradient(
    arch: Arch,
    shape: &ConvolutionShape,
    input: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let [input_size, output_size] = shape.sizes();
    let images = input.len() / input_size;
    let planes = shape.input_planes(images);
    let problem = Problem {
        offsets: shape.offsets(&planes, shape.input[0]),
        columns: shape.outputs.next_multiple_of(LANES),
        planes,
        shape,
    };
    let parts = match problem.offsets.len() * problem.columns < LARGE {
        true => PARTS,
        false => 1,
    };
    let images = images.div_ceil(parts);
    let parts: Vec<Vec<f32>> = input
        .par_chunks(images * input_size)
        .zip(gradient.par_chunks(images * output_size))
        .map(|(inputs, gradients)| problem.sum_images(arch, inputs, gradients))
        .collect();
    problem.join(&parts)
}

/// `∂L/∂bias[o] = Σ g[o, position]`, over all images.
pub(super) fn bias_gradient(arch: Arch, shape: &ConvolutionShape, gradient: &[f32]) -> Vec<f32> {
    let [height, width] = shape.output();
    let size = height * width;
    let mut sums = vec![0.0; gradient.len() / size];
    sums.par_chunks_mut(shape.outputs)
        .zip(gradient.par_chunks(shape.outputs * size))
        .for_each(|(sums, gradient)| {
            let rows = Sums {
                gradient,
                size,
                sums,
            };
            dispatch(arch, rows);
        });
    let mut bias = vec![0.0; shape.outputs];
    for image in sums.chunks_exact(shape.outputs) {
        for (total, sum) in bias.iter_mut().zip(image) {
            *total += sum;
        }
    }
    bias
}

struct Problem<'a> {
    shape: &'a ConvolutionShape,
    planes: Planes,
    /// Where each weight of an output channel reads.
    offsets: Vec<usize>,
    /// Output channels, filled up.
    columns: usize,
}

impl Problem<'_> {
    /// The sum over some images, `[depth, columns]`.
    fn sum_images(&self, arch: Arch, inputs: &[f32], gradients: &[f32]) -> Vec<f32> {
        let [input_size, output_size] = self.shape.sizes();
        let mut total = vec![0.0; self.offsets.len().next_multiple_of(ROWS) * self.columns];
        let mut planes = self.planes.empty();
        let images = self.planes.images;
        let output = self.shape.output();
        let mut transposed = vec![0.0; self.planes.positions(output, images) * self.columns];
        let stacks = inputs.chunks(images * input_size);
        for (inputs, gradients) in stacks.zip(gradients.chunks(images * output_size)) {
            self.planes.fill(inputs, &mut planes);
            self.transpose(gradients, &mut transposed);
            let positions = self.planes.positions(output, inputs.len() / input_size);
            let slabs = total.par_chunks_mut(SLAB * self.columns).enumerate();
            slabs.for_each(|(slab, total)| {
                let stack = Stack {
                    problem: self,
                    planes: &planes,
                    gradient: &transposed,
                    positions,
                    start: slab * SLAB,
                    total,
                };
                dispatch(arch, stack);
            });
        }
        total
    }

    /// `[positions, columns]` from the stack's `[outputs, height, width]`. Positions in vain, and columns beyond the
    /// channels, stay zero.
    fn transpose(&self, gradients: &[f32], transposed: &mut [f32]) {
        let [_, output_size] = self.shape.sizes();
        for (index, gradient) in gradients.chunks_exact(output_size).enumerate() {
            let start = index * self.planes.plane * self.columns;
            self.transpose_one(gradient, &mut transposed[start..]);
        }
    }

    /// Some channels at a time.
    fn transpose_one(&self, gradient: &[f32], transposed: &mut [f32]) {
        let [height, width] = self.shape.output();
        let size = height * width;
        for (block, channels) in gradient.chunks(ROWS * size).enumerate() {
            let count = channels.len() / size;
            for y in 0..height {
                for x in 0..width {
                    let place = (y * self.planes.pitch + x) * self.columns + block * ROWS;
                    let numbers = transposed[place..place + count].iter_mut();
                    for (number, channel) in numbers.zip(channels.chunks_exact(size)) {
                        *number = channel[y * width + x];
                    }
                }
            }
        }
    }

    /// The parts' sum in their order, `[outputs, depth]`.
    fn join(&self, parts: &[Vec<f32>]) -> Vec<f32> {
        let depth = self.offsets.len();
        let mut joined = vec![0.0; self.shape.outputs * depth];
        joined
            .par_chunks_mut(depth)
            .enumerate()
            .for_each(|(output, row)| {
                for part in parts {
                    let column = part[output..].iter().step_by(self.columns);
                    for (total, number) in row.iter_mut().zip(column) {
                        *total += number;
                    }
                }
            });
        joined
    }
}

/// A stack's share of a slab.
struct Stack<'a> {
    problem: &'a Problem<'a>,
    planes: &'a [f32],
    gradient: &'a [f32],
    positions: usize,
    /// The slab's first row.
    start: usize,
    total: &'a mut [f32],
}

impl Vectorised for Stack<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        for first in (0..self.total.len() / self.problem.columns).step_by(ROWS) {
            let mut column = 0;
            while column + width <= self.problem.columns {
                self.add::<S, VECTORS>(simd, first, column);
                column += width;
            }
            while column < self.problem.columns {
                self.add::<S, 1>(simd, first, column);
                column += S::F32_LANES;
            }
        }
    }
}

impl Stack<'_> {
    /// Adds to the slab's rows from `first` and some columns. Rows past the last repeat it, and are not read.
    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(&mut self, simd: S, first: usize, column: usize) {
        let Problem {
            offsets, columns, ..
        } = self.problem;
        let mut streams = [self.planes; ROWS];
        for (index, stream) in streams.iter_mut().enumerate() {
            *stream = &self.planes[offsets[(self.start + first + index).min(offsets.len() - 1)]..];
        }
        let mut tile: Tile<S::f32s, VECTORS> = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for (index, row) in tile.iter_mut().enumerate() {
            *row = load::<S, VECTORS>(simd, &self.total[(first + index) * columns + column..]);
        }
        let matrix = &self.gradient[column..];
        let tile = multiply_streams(simd, tile, streams, self.positions, matrix, *columns);
        for (index, row) in tile.into_iter().enumerate() {
            store::<S, VECTORS>(row, &mut self.total[(first + index) * columns + column..]);
        }
    }
}

/// The sums of the rows of a matrix.
struct Sums<'a> {
    gradient: &'a [f32],
    size: usize,
    sums: &'a mut [f32],
}

impl Vectorised for Sums<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(self, simd: S) {
        for (total, row) in self
            .sums
            .iter_mut()
            .zip(self.gradient.chunks_exact(self.size))
        {
            *total = sum(simd, row);
        }
    }
}
