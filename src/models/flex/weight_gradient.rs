//! The gradients of a convolution's weights and bias.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::convolution::ConvolutionShape;
use super::functions::sum;
use super::planes::Planes;
use super::tile::{STRIP, VECTORS, load_tile, multiply_streams, store_tile};
use crate::kernel::simd::{Vectorised, dispatch};

/// Most separate sums. The images that go into one sum depend only on their number and on the
/// sizes, so that the result does not depend on the number of threads.
const PARTS: usize = 8;

/// From this many numbers on, a single sum is used: adding up several would take as long as
/// computing them.
const LARGE: usize = 1 << 17;

/// Fewest positions of a separate sum: adding it up takes as long as some of them.
const SHARE: usize = 128;

/// Rows of a sum that a thread computes at a time: a multiple of a tile's height, which is 6 or 8.
const SLAB: usize = 48;

/// Up to this many positions, stacks are added to a sum together, so that large sums are read and
/// written less often.
const TOGETHER: usize = 512;

/// `∂L/∂weight[o, i, tap] = Σ g[o, position] · x[i, position · stride + tap]`, over all images.
///
/// Output channels lie side by side: a column of the output's gradient times a number of the input
/// adds to a row of the result, so that no sum runs across a vector.
pub(super) fn weight_gradient(
    arch: Arch,
    shape: &ConvolutionShape,
    input: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let [input_size, output_size] = shape.sizes();
    let images = input.len() / input_size;
    let [height, width] = shape.output();
    let parts = match shape.input[0] * shape.kernel[0] * shape.kernel[1] * shape.outputs < LARGE {
        true => (images * height * width / SHARE).clamp(1, PARTS),
        false => 1,
    };
    let images = images.div_ceil(parts);
    let planes = shape.input_planes(images);
    let problem = Problem {
        offsets: shape.offsets(&planes, shape.input[0]),
        planes,
        shape,
    };
    let parts: Vec<Vec<[f32; STRIP]>> = input
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
    /// For each weight of an output channel, where it reads.
    offsets: Vec<usize>,
}

impl Problem<'_> {
    /// The sum over some images, in strips `[outputs / STRIP, depth, STRIP]`.
    fn sum_images(&self, arch: Arch, inputs: &[f32], gradients: &[f32]) -> Vec<[f32; STRIP]> {
        let [input_size, output_size] = self.shape.sizes();
        let images = self.planes.images;
        let count = inputs.len().div_ceil(images * input_size);
        let together = (TOGETHER / self.positions()).clamp(1, count);
        let strips = self.shape.outputs.div_ceil(STRIP);
        let mut total = vec![[0.0; STRIP]; strips * self.depth()];
        let empty = Pair {
            planes: self.planes.empty(),
            strips: vec![[0.0; STRIP]; strips * self.positions()],
        };
        let mut stacks = vec![empty; together];
        let inputs = inputs.chunks(together * images * input_size);
        let gradients = gradients.chunks(together * images * output_size);
        for (inputs, gradients) in inputs.zip(gradients) {
            let inputs = inputs.par_chunks(images * input_size);
            let gradients = gradients.par_chunks(images * output_size);
            let count = inputs.len();
            let pairs = stacks.par_iter_mut().zip(inputs).zip(gradients);
            pairs.for_each(|((pair, inputs), gradients)| {
                self.planes.fill(inputs, &mut pair.planes);
                if inputs.len() < images * input_size {
                    pair.strips.fill([0.0; STRIP]);
                }
                self.transpose(gradients, &mut pair.strips);
            });
            let slabs = total.par_chunks_mut(SLAB).enumerate();
            slabs.for_each(|(index, total)| {
                let slab = Slab {
                    problem: self,
                    stacks: &stacks[..count],
                    strip: index * SLAB / self.depth(),
                    start: index * SLAB % self.depth(),
                    total,
                };
                dispatch(arch, slab);
            });
        }
        total
    }

    /// Rows of a sum, including padding.
    fn depth(&self) -> usize {
        self.offsets.len().next_multiple_of(SLAB)
    }

    /// Number of positions of a stack.
    fn positions(&self) -> usize {
        let output = self.shape.output();
        let lines = 0..self.planes.images * output[0];
        self.planes.positions(output, lines).len()
    }

    /// Converts a stack's `[outputs, height, width]` to strips
    /// `[outputs / STRIP, positions, STRIP]`. Unused positions, and columns beyond the channels,
    /// stay zero.
    fn transpose(&self, gradients: &[f32], strips: &mut [[f32; STRIP]]) {
        let [height, width] = self.shape.output();
        let size = height * width;
        let images = gradients.chunks_exact(self.shape.outputs * size);
        for (index, image) in images.enumerate() {
            let blocks = image.chunks(STRIP * size);
            for (channels, strip) in blocks.zip(strips.chunks_exact_mut(self.positions())) {
                for y in 0..height {
                    let line = &mut strip[index * self.planes.plane + y * self.planes.pitch..];
                    for (lane, channel) in channels.chunks_exact(size).enumerate() {
                        for (place, number) in line.iter_mut().zip(&channel[y * width..][..width]) {
                            place[lane] = *number;
                        }
                    }
                }
            }
        }
    }

    /// Adds up the parts in their order; the result is `[outputs, depth]`.
    fn join(&self, parts: &[Vec<[f32; STRIP]>]) -> Vec<f32> {
        let depth = self.offsets.len();
        let mut joined = vec![0.0; self.shape.outputs * depth];
        let rows = joined.par_chunks_mut(depth).enumerate();
        rows.for_each(|(output, row)| {
            for part in parts {
                let strip = &part[output / STRIP * self.depth()..];
                for (total, line) in row.iter_mut().zip(strip) {
                    *total += line[output % STRIP];
                }
            }
        });
        joined
    }
}

/// A stack of inputs, and the gradients of their outputs.
#[derive(Debug, Clone)]
struct Pair {
    planes: Vec<f32>,
    strips: Vec<[f32; STRIP]>,
}

/// Some rows of a strip of a sum, and the stacks that are added to them.
struct Slab<'a> {
    problem: &'a Problem<'a>,
    stacks: &'a [Pair],
    /// The index of the strip, and the first row.
    strip: usize,
    start: usize,
    total: &'a mut [[f32; STRIP]],
}

impl Vectorised for Slab<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match S::REGISTER_COUNT >= 32 {
            true => self.add::<S, 8>(simd),
            false => self.add::<S, 6>(simd),
        }
    }
}

impl Slab<'_> {
    /// Adds all stacks to the slab. Rows past the last repeat it, and are not used.
    #[inline(always)]
    fn add<S: Simd, const HEIGHT: usize>(self, simd: S) {
        let Problem { offsets, shape, .. } = self.problem;
        let positions = self.problem.positions();
        let last = offsets.len() - 1;
        let columns = STRIP.min(shape.outputs - self.strip * STRIP);
        let rows = (offsets.len() - self.start).min(SLAB);
        let blocks = self.total.chunks_exact_mut(HEIGHT);
        for (block, total) in blocks.take(rows.div_ceil(HEIGHT)).enumerate() {
            let first = self.start + block * HEIGHT;
            for column in (0..columns).step_by(VECTORS * S::F32_LANES) {
                let mut tile = load_tile::<S, HEIGHT>(simd, total, column);
                for Pair { planes, strips } in self.stacks {
                    let mut streams = [&planes[..]; HEIGHT];
                    for (index, stream) in streams.iter_mut().enumerate() {
                        *stream = &planes[offsets[(first + index).min(last)]..];
                    }
                    let strip = &strips[self.strip * positions..][..positions];
                    tile = multiply_streams(simd, tile, streams, strip, column);
                }
                store_tile::<S, HEIGHT>(tile, total, column);
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
    fn run<S: Simd>(self, simd: S) {
        for (total, row) in self
            .sums
            .iter_mut()
            .zip(self.gradient.chunks_exact(self.size))
        {
            *total = sum(simd, row);
        }
    }
}
