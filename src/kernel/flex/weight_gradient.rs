//! The gradients of a convolution's weights and bias.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::convolution::ConvolutionShape;
use super::planes::Planes;
use super::simd::{Vectorised, dispatch, sum};
use super::tile::{ROWS, Tile, load, multiply_streams, store, zeros};

/// The most sums that are kept apart. The images that go into one sum depend on their number and on the sizes
/// only, so that the result does not depend on the number of threads.
const PARTS: usize = 8;

/// From so many numbers on, one sum is kept: to add up several would take as long as to compute them.
const LARGE: usize = 1 << 17;

/// Rows of a sum that a thread computes at a time: a multiple of the height of a tile, which is 6 or 8.
const SLAB: usize = 48;

/// Columns of a strip: those of a tile, or of two.
const STRIP: usize = 32;

/// Positions up to which stacks are added to a sum together, so that large sums are read and written less often.
const TOGETHER: usize = 128;

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
        columns: shape.outputs.next_multiple_of(STRIP),
        planes,
        shape,
    };
    let parts = match problem.offsets.len() * shape.outputs < LARGE {
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
    /// The sum over some images, in strips `[columns / STRIP, depth, STRIP]`, the depth filled up.
    fn sum_images(&self, arch: Arch, inputs: &[f32], gradients: &[f32]) -> Vec<f32> {
        let [input_size, output_size] = self.shape.sizes();
        let images = self.planes.images;
        let positions = self.positions(images);
        let together = (TOGETHER / positions).max(1);
        let mut stacks = vec![(self.planes.empty(), vec![0.0; positions * self.columns]); together];
        let mut total = vec![0.0; self.depth() * self.columns];
        let inputs = inputs.chunks(together * images * input_size);
        let gradients = gradients.chunks(together * images * output_size);
        for (inputs, gradients) in inputs.zip(gradients) {
            let inputs = inputs.chunks(images * input_size);
            let gradients = gradients.chunks(images * output_size);
            let mut filled = 0;
            for (((planes, strips), inputs), gradients) in
                stacks.iter_mut().zip(inputs).zip(gradients)
            {
                self.planes.fill(inputs, planes);
                if inputs.len() < images * input_size {
                    strips.fill(0.0);
                }
                self.transpose(gradients, strips);
                filled += 1;
            }
            let stacks = &stacks[..filled];
            let slabs = total.par_chunks_mut(SLAB * STRIP).enumerate();
            slabs.for_each(|(slab, total)| {
                let slab = Slab {
                    problem: self,
                    stacks,
                    positions,
                    strip: slab / (self.depth() / SLAB),
                    start: slab % (self.depth() / SLAB) * SLAB,
                    total,
                };
                dispatch(arch, slab);
            });
        }
        total
    }

    /// Rows of a sum, filled up.
    fn depth(&self) -> usize {
        self.offsets.len().next_multiple_of(SLAB)
    }

    /// Positions of a stack.
    fn positions(&self, images: usize) -> usize {
        let output = self.shape.output();
        self.planes.positions(output, 0..images * output[0]).len()
    }

    /// Strips `[columns / STRIP, positions, STRIP]` from the stack's `[outputs, height, width]`. Positions in vain, and columns
    /// beyond the channels, stay zero.
    fn transpose(&self, gradients: &[f32], strips: &mut [f32]) {
        let [height, width] = self.shape.output();
        let size = height * width;
        let length = self.positions(self.planes.images) * STRIP;
        for (index, image) in gradients
            .chunks_exact(self.shape.outputs * size)
            .enumerate()
        {
            let start = index * self.planes.plane;
            for (block, channels) in image.chunks(ROWS * size).enumerate() {
                let strip = &mut strips[block * ROWS / STRIP * length..];
                let count = channels.len() / size;
                for y in 0..height {
                    let line = &mut strip[(start + y * self.planes.pitch) * STRIP..];
                    let places = line.chunks_exact_mut(STRIP);
                    for (x, place) in places.take(width).enumerate() {
                        let numbers = place[block * ROWS % STRIP..][..count].iter_mut();
                        for (number, channel) in numbers.zip(channels.chunks_exact(size)) {
                            *number = channel[y * width + x];
                        }
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
                let start = output / STRIP * self.depth() * STRIP + output % STRIP;
                for part in parts {
                    let column = part[start..].iter().step_by(STRIP);
                    for (total, number) in row.iter_mut().zip(column) {
                        *total += number;
                    }
                }
            });
        joined
    }
}

/// Some rows of a strip of a sum, and the stacks that are added to them.
struct Slab<'a> {
    problem: &'a Problem<'a>,
    /// Planes of the input, and strips of the gradient.
    stacks: &'a [(Vec<f32>, Vec<f32>)],
    positions: usize,
    /// The number of the strip, and the first row.
    strip: usize,
    start: usize,
    total: &'a mut [f32],
}

impl Vectorised for Slab<'_> {
    #[inline(always)]
    fn run<S: Simd, const HEIGHT: usize, const VECTORS: usize>(mut self, simd: S) {
        match S::REGISTER_COUNT >= 32 {
            true => self.add::<S, 8, 2>(simd),
            false => self.add::<S, 6, 2>(simd),
        }
    }
}

impl Slab<'_> {
    /// Adds all stacks to the slab. Rows past the last repeat it, and are not read.
    #[inline(always)]
    fn add<S: Simd, const HEIGHT: usize, const VECTORS: usize>(&mut self, simd: S) {
        let Problem { offsets, shape, .. } = self.problem;
        let last = offsets.len() - 1;
        let used = STRIP.min(shape.outputs - self.strip * STRIP);
        let rows = (offsets.len() - self.start).min(SLAB);
        let blocks = self.total.chunks_exact_mut(HEIGHT * STRIP);
        for (block, total) in blocks.take(rows.div_ceil(HEIGHT)).enumerate() {
            let first = self.start + block * HEIGHT;
            for column in (0..used).step_by(VECTORS * S::F32_LANES) {
                let mut tile: Tile<S::f32s, HEIGHT, VECTORS> = zeros(simd);
                for (index, row) in tile.iter_mut().enumerate() {
                    *row = load::<S, VECTORS>(simd, &total[index * STRIP + column..]);
                }
                for (planes, strips) in self.stacks {
                    let mut streams = [&planes[..]; HEIGHT];
                    for (index, stream) in streams.iter_mut().enumerate() {
                        *stream = &planes[offsets[(first + index).min(last)]..];
                    }
                    let length = self.positions * STRIP;
                    let strip = &strips[self.strip * length..][..length];
                    tile = multiply_streams::<S, HEIGHT, VECTORS, STRIP>(
                        simd, tile, streams, strip, column,
                    );
                }
                for (index, row) in tile.into_iter().enumerate() {
                    store::<S, VECTORS>(row, &mut total[index * STRIP + column..]);
                }
            }
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
    fn run<S: Simd, const HEIGHT: usize, const VECTORS: usize>(self, simd: S) {
        for (total, row) in self
            .sums
            .iter_mut()
            .zip(self.gradient.chunks_exact(self.size))
        {
            *total = sum(simd, row);
        }
    }
}
