//! Convolution in two dimensions.

use std::ops::Range;

use pulp::{Arch, Simd};
use rayon::current_num_threads;
use rayon::prelude::*;

use super::planes::Planes;
use super::tile::{STRIP, VECTORS, load_tile, multiply_shifted, pack_panel, store_tile};
use crate::kernel::simd::{Vectorised, dispatch};

/// Taps that are processed together: a strip of their weights fits the fastest cache.
const DEPTH: usize = 128;

/// Positions whose sums are computed together where a line of the output is shorter.
const POSITIONS: usize = 1 << 10;

/// Fewest strips of kernels that a thread flips at a time.
const KERNELS: usize = 32;

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvolutionShape {
    /// Channels, height and width of the input.
    pub(crate) input: [usize; 3],
    /// Channels of the output.
    pub(crate) outputs: usize,
    /// Height and width of the kernel.
    pub(crate) kernel: [usize; 2],
    /// Distance between neighbouring positions in the input.
    pub(crate) stride: [usize; 2],
    /// Distance between neighbouring taps in the input.
    pub(crate) dilation: [usize; 2],
    /// Zeros above and left of the input.
    pub(crate) leading: [usize; 2],
    /// Zeros below and right of the input.
    pub(crate) trailing: [usize; 2],
}

impl ConvolutionShape {
    /// Whether this module handles the shape: no dimension is empty, and the kernel is larger than
    /// the padding.
    pub(super) fn fits(&self) -> bool {
        let counts = [self.outputs, self.stride[0], self.stride[1]];
        let counts = counts.iter().chain(&self.input).chain(&self.kernel);
        let fits = |axis: usize| {
            let reach = self.reach(axis);
            let padding = self.leading[axis].max(self.trailing[axis]);
            padding <= reach && self.padded(axis) > reach
        };
        counts.into_iter().all(|&count| count > 0) && fits(0) && fits(1)
    }

    /// Distance from the first to the last tap.
    fn reach(&self, axis: usize) -> usize {
        self.dilation[axis] * (self.kernel[axis] - 1)
    }

    fn padded(&self, axis: usize) -> usize {
        self.leading[axis] + self.input[axis + 1] + self.trailing[axis]
    }

    /// Height and width of the output.
    pub(super) fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| (self.padded(axis) - self.reach(axis) - 1) / self.stride[axis] + 1)
    }

    /// Size of an input, and of an output, in numbers.
    pub(super) fn sizes(&self) -> [usize; 2] {
        let [height, width] = self.output();
        [self.input.iter().product(), self.outputs * height * width]
    }

    /// The only tap that reads a number of the input, where all others read padding.
    pub(super) fn only_tap(&self) -> Option<[usize; 2]> {
        let single = self.input[1..] == [1, 1] && self.output() == [1, 1] && self.kernel != [1, 1];
        let meets = [0, 1].map(|axis| self.leading[axis].is_multiple_of(self.dilation[axis]));
        let tap = [0, 1].map(|axis| self.leading[axis] / self.dilation[axis]);
        (single && meets == [true, true]).then_some(tap)
    }

    /// The layout of `images` inputs.
    pub(super) fn input_planes(&self, images: usize) -> Planes {
        let padded = [self.padded(0), self.padded(1)];
        Planes::new(self.input, self.leading, padded, [1, 1], self.stride).stacked(images)
    }

    /// The layout of the gradients of `images` outputs, for the gradient of the input: numbers are
    /// as far apart as the output's positions were in the input.
    fn gradient_planes(&self, images: usize) -> Planes {
        let [height, width] = self.output();
        let leading = [0, 1].map(|axis| self.reach(axis) - self.leading[axis]);
        let padded = [0, 1].map(|axis| self.input[axis + 1] + self.reach(axis));
        let image = [self.outputs, height, width];
        Planes::new(image, leading, padded, self.stride, [1, 1]).stacked(images)
    }

    /// For each weight of an output channel, where it reads in the planes of `channels` channels.
    pub(super) fn offsets(&self, planes: &Planes, channels: usize) -> Vec<usize> {
        let [height, width] = self.kernel;
        let mut offsets = Vec::with_capacity(channels * height * width);
        for channel in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let tap = [y * self.dilation[0], x * self.dilation[1]];
                    offsets.push(planes.offset(channel, tap));
                }
            }
        }
        offsets
    }

    /// Panels of the weights, with output channels side by side.
    fn pack(&self, weight: &[f32]) -> Vec<[f32; STRIP]> {
        let depth = weight.len() / self.outputs;
        let mut panels = vec![[0.0; STRIP]; self.outputs.div_ceil(STRIP) * depth];
        panels
            .par_chunks_exact_mut(depth)
            .zip(weight.par_chunks(STRIP * depth))
            .for_each(|(panel, rows)| pack_panel(rows, panel));
        panels
    }

    /// Panels of the weights that lead back from outputs to inputs: each kernel is flipped.
    fn pack_turned(&self, weight: &[f32]) -> Vec<[f32; STRIP]> {
        let (inputs, taps) = (self.input[0], self.kernel[0] * self.kernel[1]);
        let mut panels = vec![[0.0; STRIP]; inputs.div_ceil(STRIP) * self.outputs * taps];
        let kernels = panels.par_chunks_exact_mut(taps).enumerate();
        kernels.with_min_len(KERNELS).for_each(|(index, panel)| {
            let (strip, output) = (index / self.outputs, index % self.outputs);
            let lanes = strip * STRIP..inputs.min((strip + 1) * STRIP);
            for (lane, input) in lanes.enumerate() {
                let kernel = &weight[(output * inputs + input) * taps..][..taps];
                for (factors, &factor) in panel.iter_mut().zip(kernel.iter().rev()) {
                    factors[lane] = factor;
                }
            }
        });
        panels
    }
}

/// `y[o] = bias[o] + Σ weight[o, i, tap] · x[i, position · stride + tap]`.
pub(super) fn forward(
    arch: Arch,
    shape: &ConvolutionShape,
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
) -> Vec<f32> {
    let sizes = shape.sizes();
    let planes = shape.input_planes(images_of_a_thread(input.len() / sizes[0]));
    let correlation = Correlation {
        offsets: shape.offsets(&planes, shape.input[0]),
        planes,
        bias,
        output: shape.output(),
    };
    correlation.run(arch, input, &shape.pack(weight), sizes)
}

/// The gradient of the input: the output's gradient, correlated with the flipped kernels.
pub(super) fn input_gradient(
    arch: Arch,
    shape: &ConvolutionShape,
    weight: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let [input, output] = shape.sizes();
    let planes = shape.gradient_planes(images_of_a_thread(gradient.len() / output));
    let [_, height, width] = shape.input;
    let correlation = Correlation {
        offsets: shape.offsets(&planes, shape.outputs),
        planes,
        bias: &vec![0.0; shape.input[0]],
        output: [height, width],
    };
    correlation.run(arch, gradient, &shape.pack_turned(weight), [output, input])
}

/// Most images of a stack, rounded up: with more, some threads would have nothing to do.
fn images_of_a_thread(images: usize) -> usize {
    images.div_ceil(current_num_threads())
}

/// Products of weights with shifted images.
///
/// Output channels lie side by side, and numbers of the image are the factors. A tile may therefore
/// begin at any position, and few positions are computed without being used.
struct Correlation<'a> {
    planes: Planes,
    offsets: Vec<usize>,
    bias: &'a [f32],
    /// Height and width of the output.
    output: [usize; 2],
}

impl Correlation<'_> {
    /// The outputs of successive images; `sizes` are those of one input and one output.
    fn run(
        &self,
        arch: Arch,
        input: &[f32],
        panels: &[[f32; STRIP]],
        sizes: [usize; 2],
    ) -> Vec<f32> {
        let mut output = vec![0.0; input.len() / sizes[0] * sizes[1]];
        let scratch = || (self.planes.empty(), Vec::new());
        let shares = self.shares(input, &mut output, sizes);
        shares
            .into_par_iter()
            .for_each_init(scratch, |(planes, sums), share| {
                self.planes.fill(share.images, planes);
                let stack = Stack {
                    correlation: self,
                    panels,
                    planes,
                    strips: share.strips,
                    sums,
                    output: share.output,
                };
                dispatch(arch, stack);
            });
        output
    }

    /// Stacks, in the order in which threads take them. Images that remain once every thread has
    /// equally many are divided by their channels.
    fn shares<'b>(
        &self,
        input: &'b [f32],
        output: &'b mut [f32],
        sizes: [usize; 2],
    ) -> Vec<Share<'b>> {
        let (threads, all) = (current_num_threads(), self.strips());
        let images = self.planes.images;
        let stacks = input.len().div_ceil(images * sizes[0]);
        let whole = match images {
            1 => stacks - stacks % threads,
            _ => stacks,
        };
        let mut shares: Vec<Vec<Share>> = (0..threads).map(|_| Vec::new()).collect();
        let inputs = input.chunks(images * sizes[0]);
        let outputs = output.chunks_mut(images * sizes[1]);
        for (index, (images, output)) in inputs.zip(outputs).enumerate() {
            let (thread, strips, size) = match index < whole {
                true => (index * threads / whole, all, output.len()),
                false => {
                    let strips = all.div_ceil(threads);
                    let positions = self.output[0] * self.output[1];
                    (index - whole, strips, strips * STRIP * positions)
                }
            };
            for (part, output) in output.chunks_mut(size).enumerate() {
                let strips = part * strips..all.min((part + 1) * strips);
                shares[(thread + part) % threads].push(Share {
                    strips,
                    images,
                    output,
                });
            }
        }
        shares.into_iter().flatten().collect()
    }

    /// Number of strips of output channels.
    fn strips(&self) -> usize {
        self.bias.len().div_ceil(STRIP)
    }
}

/// A stack, or some strips of the outputs of one image.
struct Share<'a> {
    strips: Range<usize>,
    images: &'a [f32],
    output: &'a mut [f32],
}

/// The outputs of a share, and everything needed to compute them.
struct Stack<'a> {
    correlation: &'a Correlation<'a>,
    panels: &'a [[f32; STRIP]],
    planes: &'a [f32],
    /// The strips of channels that are computed.
    strips: Range<usize>,
    /// The sums of some lines for a strip of channels, including unused positions.
    sums: &'a mut Vec<[f32; STRIP]>,
    output: &'a mut [f32],
}

impl Vectorised for Stack<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Correlation {
            planes,
            bias,
            output: [_, width],
            ..
        } = self.correlation;
        let channels = bias.len().min(self.strips.end * STRIP) - self.strips.start * STRIP;
        let count = self.output.len() / (channels * width);
        let together = (POSITIONS / planes.pitch).clamp(1, count);
        for start in (0..count).step_by(together) {
            let lines = start..count.min(start + together);
            for strip in self.strips.clone() {
                match S::REGISTER_COUNT >= 32 {
                    true => self.sum::<S, 8>(simd, strip, lines.clone()),
                    false => self.sum::<S, 6>(simd, strip, lines.clone()),
                }
                self.write(strip, lines.clone());
            }
        }
    }
}

impl Stack<'_> {
    /// Computes the sums of some lines for a strip of channels, in the order of the taps.
    #[inline(always)]
    fn sum<S: Simd, const HEIGHT: usize>(&mut self, simd: S, strip: usize, lines: Range<usize>) {
        let Correlation {
            planes,
            offsets,
            bias,
            output,
        } = self.correlation;
        let bias = &bias[strip * STRIP..];
        let channels = bias.len().min(STRIP);
        let mut start = [0.0; STRIP];
        start[..channels].copy_from_slice(&bias[..channels]);
        let positions = planes.positions(*output, lines);
        self.sums.clear();
        let filled = positions.len().next_multiple_of(HEIGHT);
        self.sums.resize(filled, start);
        let source = &self.planes[positions.start..];
        let panel = self.panels[strip * offsets.len()..].chunks(DEPTH);
        for (panel, offsets) in panel.zip(offsets.chunks(DEPTH)) {
            for (index, sums) in self.sums.chunks_exact_mut(HEIGHT).enumerate() {
                let source = &source[index * HEIGHT..];
                for column in (0..channels).step_by(VECTORS * S::F32_LANES) {
                    let tile = load_tile::<S, HEIGHT>(simd, sums, column);
                    let tile = multiply_shifted(simd, tile, panel, column, offsets, source);
                    store_tile::<S, HEIGHT>(tile, sums, column);
                }
            }
        }
    }

    /// Copies the sums of some lines to a strip of the outputs.
    fn write(&mut self, strip: usize, lines: Range<usize>) {
        let Correlation {
            planes,
            bias,
            output: [height, width],
            ..
        } = self.correlation;
        let first = planes.line(*height, lines.start);
        let channels = STRIP.min(bias.len() - strip * STRIP);
        for line in lines {
            let sums = &self.sums[planes.line(*height, line) - first..][..*width];
            let image = line / height * bias.len() + (strip - self.strips.start) * STRIP;
            for channel in 0..channels {
                let place = ((image + channel) * height + line % height) * width;
                let row = self.output[place..place + width].iter_mut();
                for (number, sums) in row.zip(sums) {
                    *number = sums[channel];
                }
            }
        }
    }
}
