//! Convolution in two dimensions.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::planes::Planes;
use super::simd::{MAX_WIDTH, Vectorised, dispatch};
use super::tile::{ROWS, multiply, pack_rows, splat_rows, store};

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvolutionShape {
    /// Channels, height and width of the input.
    pub(crate) input: [usize; 3],
    /// Channels of the output.
    pub(crate) outputs: usize,
    /// Height and width of the kernel.
    pub(crate) kernel: [usize; 2],
    /// Step between positions.
    pub(crate) stride: [usize; 2],
    /// Step between taps.
    pub(crate) dilation: [usize; 2],
    /// Zeros above and left of the input.
    pub(crate) leading: [usize; 2],
    /// Zeros below and right of the input.
    pub(crate) trailing: [usize; 2],
}

impl ConvolutionShape {
    /// Whether the shape is of those computed here: no dimension is empty, and the kernel is larger
    /// than the padding.
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

    /// From the first to the last tap.
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

    /// Numbers of an input, and of an output.
    pub(super) fn sizes(&self) -> [usize; 2] {
        let [height, width] = self.output();
        [self.input.iter().product(), self.outputs * height * width]
    }

    /// The one tap that sees a number, where all others see nothing but padding.
    pub(super) fn only_tap(&self) -> Option<[usize; 2]> {
        let single = self.input[1..] == [1, 1] && self.output() == [1, 1] && self.kernel != [1, 1];
        let meets = [0, 1].map(|axis| self.leading[axis].is_multiple_of(self.dilation[axis]));
        let tap = [0, 1].map(|axis| self.leading[axis] / self.dilation[axis]);
        (single && meets == [true, true]).then_some(tap)
    }

    /// How so many inputs are laid out.
    pub(super) fn input_planes(&self, images: usize) -> Planes {
        let padded = [self.padded(0), self.padded(1)];
        Planes::new(self.input, self.leading, padded, [1, 1], self.stride).stacked(images)
    }

    /// How the gradients of so many outputs are laid out, for the input's: numbers are as far apart as the
    /// positions of the output were in the input.
    fn gradient_planes(&self, images: usize) -> Planes {
        let [height, width] = self.output();
        let leading = [0, 1].map(|axis| self.reach(axis) - self.leading[axis]);
        let padded = [0, 1].map(|axis| self.input[axis + 1] + self.reach(axis));
        let image = [self.outputs, height, width];
        Planes::new(image, leading, padded, self.stride, [1, 1]).stacked(images)
    }

    /// Where each weight of an output channel reads in the planes of `channels` channels.
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

    /// The weights `[inputs, outputs, …]` that lead back: each kernel the other way round.
    fn transposed(&self, weight: &[f32]) -> Vec<f32> {
        let taps = self.kernel[0] * self.kernel[1];
        let mut transposed = vec![0.0; weight.len()];
        for (index, kernel) in weight.chunks_exact(taps).enumerate() {
            let (output, input) = (index / self.input[0], index % self.input[0]);
            let place = (input * self.outputs + output) * taps;
            let turned = kernel.iter().rev();
            for (to, from) in transposed[place..place + taps].iter_mut().zip(turned) {
                *to = *from;
            }
        }
        transposed
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
    let planes = shape.input_planes(input.len() / sizes[0]);
    let correlation = Correlation {
        offsets: shape.offsets(&planes, shape.input[0]),
        planes,
        bias,
        output: shape.output(),
    };
    correlation.run(arch, input, weight, sizes)
}

/// The gradient of the input: the output's, correlated with the kernels the other way round.
pub(super) fn input_gradient(
    arch: Arch,
    shape: &ConvolutionShape,
    weight: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let [input, output] = shape.sizes();
    let planes = shape.gradient_planes(gradient.len() / output);
    let [_, height, width] = shape.input;
    let correlation = Correlation {
        offsets: shape.offsets(&planes, shape.outputs),
        planes,
        bias: &vec![0.0; shape.input[0]],
        output: [height, width],
    };
    correlation.run(arch, gradient, &shape.transposed(weight), [output, input])
}

/// Products of weights with shifted images.
struct Correlation<'a> {
    planes: Planes,
    offsets: Vec<usize>,
    bias: &'a [f32],
    /// Height and width of the output.
    output: [usize; 2],
}

impl Correlation<'_> {
    /// The outputs for images one after another, the sizes being those of an input and an output.
    fn run(&self, arch: Arch, input: &[f32], weight: &[f32], sizes: [usize; 2]) -> Vec<f32> {
        let mut panels = Vec::new();
        pack_rows(weight, self.offsets.len(), &mut panels);
        let mut output = vec![0.0; input.len() / sizes[0] * sizes[1]];
        let images = self.planes.images;
        let run = self.planes.positions(self.output, images);
        let run = run.next_multiple_of(MAX_WIDTH);
        let scratch = || (self.planes.empty(), vec![0.0; ROWS * run]);
        output
            .par_chunks_mut(images * sizes[1])
            .zip(input.par_chunks(images * sizes[0]))
            .for_each_init(scratch, |(planes, rows), (output, images)| {
                self.planes.fill(images, planes);
                let stack = Stack {
                    correlation: self,
                    panels: &panels,
                    planes,
                    rows,
                    output,
                };
                dispatch(arch, stack);
            });
        output
    }
}

/// A stack's share.
struct Stack<'a> {
    correlation: &'a Correlation<'a>,
    panels: &'a [[f32; ROWS]],
    planes: &'a [f32],
    /// The results of a panel, with those computed in vain.
    rows: &'a mut [f32],
    output: &'a mut [f32],
}

impl Vectorised for Stack<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let Correlation {
            planes,
            offsets,
            bias,
            output,
        } = self.correlation;
        let run = self.rows.len() / ROWS;
        let images = self.output.len() / (bias.len() * output[0] * output[1]);
        let positions = planes.positions(*output, images);
        let panels = self.panels.chunks_exact(offsets.len());
        for (block, (panel, bias)) in panels.zip(bias.chunks(ROWS)).enumerate() {
            let mut start = [0.0; ROWS];
            start[..bias.len()].copy_from_slice(bias);
            for position in (0..positions).step_by(VECTORS * S::F32_LANES) {
                let tile = splat_rows::<S, VECTORS>(simd, &start);
                let tile = multiply(simd, tile, panel, offsets, &self.planes[position..]);
                for (index, row) in tile.into_iter().enumerate() {
                    store::<S, VECTORS>(row, &mut self.rows[index * run + position..]);
                }
            }
            self.write(block, bias.len());
        }
    }
}

impl Stack<'_> {
    /// Takes the results of a panel to the outputs.
    fn write(&mut self, block: usize, channels: usize) {
        let Correlation {
            planes,
            bias,
            output: [height, width],
            ..
        } = self.correlation;
        let (size, run) = (height * width, self.rows.len() / ROWS);
        let images = self.output.chunks_exact_mut(bias.len() * size);
        for (image, output) in images.enumerate() {
            let outputs = output[block * ROWS * size..].chunks_exact_mut(size);
            for (index, channel) in outputs.take(channels).enumerate() {
                for (y, row) in channel.chunks_exact_mut(*width).enumerate() {
                    let start = index * run + image * planes.plane + y * planes.pitch;
                    row.copy_from_slice(&self.rows[start..start + width]);
                }
            }
        }
    }
}
