//! Group normalisation, with or without the activation that follows it.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::functions::{sigmoid, sum};
use crate::kernel::simd::{Vectorised, dispatch};

/// The shape of the input: `[rows, groups, members, pixels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormShape {
    /// Groups of channels.
    pub(crate) groups: usize,
    /// Channels per group.
    pub(crate) members: usize,
    /// Numbers per channel.
    pub(crate) pixels: usize,
    /// Added to the variance.
    pub(crate) epsilon: f64,
    /// Whether `SiLU` follows.
    pub(crate) activated: bool,
}

/// The results of the forward pass that the backward pass needs, besides the input.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Statistics {
    mean: f32,
    inverse_deviation: f32,
}

/// Derivatives with respect to the input, the gain and the offset.
#[derive(Debug)]
pub(crate) struct GroupNormGradients {
    pub(crate) input: Vec<f32>,
    pub(crate) gain: Vec<f32>,
    pub(crate) offset: Vec<f32>,
}

/// `z = gain · (x − mean) / deviation + offset`, or `z · sigmoid(z)`, with each group's statistics.
pub(super) fn forward(
    arch: Arch,
    shape: GroupNormShape,
    input: &[f32],
    gain: &[f32],
    offset: &[f32],
) -> (Vec<f32>, Vec<Statistics>) {
    let size = shape.members * shape.pixels;
    let mut output = vec![0.0; input.len()];
    let mut statistics = vec![Statistics::default(); input.len() / size];
    output
        .par_chunks_mut(size)
        .zip(&mut statistics)
        .enumerate()
        .for_each(|(index, (output, statistics))| {
            let channels = shape.channels(index);
            let group = Forward {
                shape,
                input: &input[index * size..][..size],
                gain: &gain[channels.clone()],
                offset: &offset[channels],
                output,
                statistics,
            };
            dispatch(arch, group);
        });
    (output, statistics)
}

/// The derivatives, given those with respect to the output.
///
/// With `x̂ = (x − mean) / deviation` and `d = ∂L/∂z`: the gain's derivative is `Σ d x̂`, the
/// offset's is `Σ d`, and the input's is
/// `(gain · d − mean(gain · d) − x̂ · mean(gain · d · x̂)) / deviation`.
pub(super) fn backward(
    arch: Arch,
    shape: GroupNormShape,
    input: &[f32],
    gain: &[f32],
    offset: &[f32],
    statistics: &[Statistics],
    gradient: &[f32],
) -> GroupNormGradients {
    let size = shape.members * shape.pixels;
    let mut input_gradient = vec![0.0; input.len()];
    let mut sums = vec![[0.0; 2]; statistics.len() * shape.members];
    input_gradient
        .par_chunks_mut(size)
        .zip(sums.par_chunks_mut(shape.members))
        .zip(statistics)
        .enumerate()
        .for_each(|(index, ((result, sums), &statistics))| {
            let channels = shape.channels(index);
            let group = Backward {
                shape,
                input: &input[index * size..][..size],
                gradient: &gradient[index * size..][..size],
                gain: &gain[channels.clone()],
                offset: &offset[channels],
                statistics,
                result,
                sums,
            };
            dispatch(arch, group);
        });
    let [gain, offset] = sum_rows(&sums, shape.groups * shape.members);
    GroupNormGradients {
        input: input_gradient,
        gain,
        offset,
    }
}

impl GroupNormShape {
    /// The channels of the group with this index in the tensor.
    fn channels(&self, index: usize) -> std::ops::Range<usize> {
        let first = index % self.groups * self.members;
        first..first + self.members
    }
}

/// Adds the sums of all rows, in their order.
fn sum_rows(sums: &[[f32; 2]], channels: usize) -> [Vec<f32>; 2] {
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    for row in sums.chunks_exact(channels) {
        for (channel, [gain, offset]) in row.iter().enumerate() {
            totals[0][channel] += gain;
            totals[1][channel] += offset;
        }
    }
    totals
}

/// The forward pass of one group of one row.
struct Forward<'a> {
    shape: GroupNormShape,
    input: &'a [f32],
    gain: &'a [f32],
    offset: &'a [f32],
    output: &'a mut [f32],
    statistics: &'a mut Statistics,
}

impl Vectorised for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pixels = self.shape.pixels;
        let statistics = measure(simd, self.input, pixels, self.shape.epsilon);
        *self.statistics = statistics;
        let planes = self
            .input
            .chunks_exact(pixels)
            .zip(self.output.chunks_exact_mut(pixels));
        for ((input, output), (&gain, &offset)) in planes.zip(self.gain.iter().zip(self.offset)) {
            let affine = Affine::new(simd, statistics, gain, offset);
            let (input, input_tail) = S::as_simd_f32s(input);
            let (output, output_tail) = S::as_mut_simd_f32s(output);
            for (output, &x) in output.iter_mut().zip(input) {
                *output = affine.forward(x, self.shape.activated);
            }
            let x = simd.partial_load_f32s(input_tail);
            simd.partial_store_f32s(output_tail, affine.forward(x, self.shape.activated));
        }
    }
}

/// Mean and deviation; the squares are taken about the mean, and each plane is summed separately.
#[inline(always)]
fn measure<S: Simd>(simd: S, input: &[f32], pixels: usize, epsilon: f64) -> Statistics {
    let count = input.len() as f64;
    let mut total = 0.0;
    for plane in input.chunks_exact(pixels) {
        total += f64::from(sum(simd, plane));
    }
    let mean = (total / count) as f32;
    let mut squares = 0.0;
    for plane in input.chunks_exact(pixels) {
        squares += f64::from(sum_of_squares(simd, plane, mean));
    }
    Statistics {
        mean,
        inverse_deviation: (squares / count + epsilon).sqrt().recip() as f32,
    }
}

/// `Σ (x − mean)²`.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, plane: &[f32], mean: f32) -> f32 {
    let (body, tail) = S::as_simd_f32s(plane);
    let centre = simd.splat_f32s(mean);
    let mut partial = [simd.splat_f32s(0.0); 4];
    let (quads, rest) = body.as_chunks::<4>();
    for quad in quads {
        for (partial, &x) in partial.iter_mut().zip(quad) {
            let x = simd.sub_f32s(x, centre);
            *partial = simd.mul_add_e_f32s(x, x, *partial);
        }
    }
    for (partial, &x) in partial.iter_mut().zip(rest) {
        let x = simd.sub_f32s(x, centre);
        *partial = simd.mul_add_e_f32s(x, x, *partial);
    }
    let [a, b, c, d] = partial;
    let body = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)));
    body + tail.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// The coefficients for one channel, as vectors.
struct Affine<S: Simd> {
    simd: S,
    mean: S::f32s,
    inverse_deviation: S::f32s,
    gain: S::f32s,
    offset: S::f32s,
}

impl<S: Simd> Affine<S> {
    #[inline(always)]
    fn new(simd: S, statistics: Statistics, gain: f32, offset: f32) -> Self {
        Self {
            simd,
            mean: simd.splat_f32s(statistics.mean),
            inverse_deviation: simd.splat_f32s(statistics.inverse_deviation),
            gain: simd.splat_f32s(gain),
            offset: simd.splat_f32s(offset),
        }
    }

    /// `x̂`.
    #[inline(always)]
    fn normalise(&self, x: S::f32s) -> S::f32s {
        let simd = self.simd;
        simd.mul_f32s(simd.sub_f32s(x, self.mean), self.inverse_deviation)
    }

    #[inline(always)]
    fn forward(&self, x: S::f32s, activated: bool) -> S::f32s {
        let simd = self.simd;
        let z = simd.mul_add_e_f32s(self.normalise(x), self.gain, self.offset);
        if activated {
            simd.mul_f32s(z, sigmoid(simd, z))
        } else {
            z
        }
    }

    /// `x̂` and `∂L/∂z`; the derivative of `z s(z)` is `s (1 + z (1 − s))`.
    #[inline(always)]
    fn backward(&self, x: S::f32s, gradient: S::f32s, activated: bool) -> (S::f32s, S::f32s) {
        let simd = self.simd;
        let normalised = self.normalise(x);
        if !activated {
            return (normalised, gradient);
        }
        let one = simd.splat_f32s(1.0);
        let z = simd.mul_add_e_f32s(normalised, self.gain, self.offset);
        let s = sigmoid(simd, z);
        let slope = simd.mul_add_e_f32s(z, simd.sub_f32s(one, s), one);
        (normalised, simd.mul_f32s(gradient, simd.mul_f32s(s, slope)))
    }
}

/// The backward pass of one group of one row.
struct Backward<'a> {
    shape: GroupNormShape,
    input: &'a [f32],
    gradient: &'a [f32],
    gain: &'a [f32],
    offset: &'a [f32],
    statistics: Statistics,
    result: &'a mut [f32],
    /// `Σ d x̂` and `Σ d` of each channel.
    sums: &'a mut [[f32; 2]],
}

impl Vectorised for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.differentiate_activation(simd);
        let weighted = |which: usize| {
            let products = self.sums.iter().zip(self.gain);
            let total: f64 = products
                .map(|(sums, &gain)| f64::from(sums[which] * gain))
                .sum();
            (total / self.input.len() as f64) as f32
        };
        let (slope, shift) = (weighted(0), weighted(1));
        self.differentiate_normalisation(simd, slope, shift);
    }
}

impl Backward<'_> {
    /// Writes `d` to the result, and stores both sums.
    #[inline(always)]
    fn differentiate_activation<S: Simd>(&mut self, simd: S) {
        let (pixels, activated) = (self.shape.pixels, self.shape.activated);
        for (channel, sums) in self.sums.iter_mut().enumerate() {
            let affine = Affine::new(
                simd,
                self.statistics,
                self.gain[channel],
                self.offset[channel],
            );
            let plane = channel * pixels..(channel + 1) * pixels;
            let (input, input_tail) = S::as_simd_f32s(&self.input[plane.clone()]);
            let (gradient, gradient_tail) = S::as_simd_f32s(&self.gradient[plane.clone()]);
            let (result, result_tail) = S::as_mut_simd_f32s(&mut self.result[plane]);
            let mut products = simd.splat_f32s(0.0);
            let mut total = simd.splat_f32s(0.0);
            for ((result, &x), &g) in result.iter_mut().zip(input).zip(gradient) {
                let (normalised, d) = affine.backward(x, g, activated);
                products = simd.mul_add_e_f32s(d, normalised, products);
                total = simd.add_f32s(total, d);
                *result = d;
            }
            let x = simd.partial_load_f32s(input_tail);
            let g = simd.partial_load_f32s(gradient_tail);
            let (normalised, d) = affine.backward(x, g, activated);
            products = simd.mul_add_e_f32s(d, normalised, products);
            total = simd.add_f32s(total, d);
            simd.partial_store_f32s(result_tail, d);
            *sums = [simd.reduce_sum_f32s(products), simd.reduce_sum_f32s(total)];
        }
    }

    /// Replaces `d` by `(gain · d − shift − slope · x̂) / deviation`.
    #[inline(always)]
    fn differentiate_normalisation<S: Simd>(&mut self, simd: S, slope: f32, shift: f32) {
        let inverse = self.statistics.inverse_deviation;
        let mean = simd.splat_f32s(self.statistics.mean);
        let tilt = simd.splat_f32s(-slope * inverse * inverse);
        let shift = simd.splat_f32s(-shift * inverse);
        let planes = self
            .input
            .chunks_exact(self.shape.pixels)
            .zip(self.result.chunks_exact_mut(self.shape.pixels));
        for ((input, result), gain) in planes.zip(self.gain) {
            let factor = simd.splat_f32s(gain * inverse);
            let finish = |x: S::f32s, d: S::f32s| {
                let rest = simd.mul_add_e_f32s(simd.sub_f32s(x, mean), tilt, shift);
                simd.mul_add_e_f32s(d, factor, rest)
            };
            let (input, input_tail) = S::as_simd_f32s(input);
            let (result, result_tail) = S::as_mut_simd_f32s(result);
            for (result, &x) in result.iter_mut().zip(input) {
                *result = finish(x, *result);
            }
            let x = simd.partial_load_f32s(input_tail);
            let d = simd.partial_load_f32s(result_tail);
            simd.partial_store_f32s(result_tail, finish(x, d));
        }
    }
}
