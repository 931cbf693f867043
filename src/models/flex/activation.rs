//! The activations of feed-forward layers.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::functions::{exp, sigmoid};
use crate::kernel::simd::{Vectorised, dispatch};
use crate::models::ops::Activation;

/// Numbers that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// The activation of a batch of this many rows; the two halves of a row are one after the other.
pub(super) fn forward(arch: Arch, activation: Activation, rows: usize, input: &[f32]) -> Vec<f32> {
    let size = input.len() / rows;
    match activation {
        Activation::Geglu => {
            let mut output = vec![0.0; input.len() / 2];
            let results = output.par_chunks_mut(size / 2);
            results
                .zip(input.par_chunks(size))
                .for_each(|(output, input)| {
                    let (values, gates) = input.split_at(size / 2);
                    let inputs = values.par_chunks(CHUNK).zip(gates.par_chunks(CHUNK));
                    let results = output.par_chunks_mut(CHUNK);
                    results.zip(inputs).for_each(|(output, (values, gates))| {
                        everywhere(arch, Gated, [values, gates], [output]);
                    });
                });
            output
        }
        Activation::GeluTanh => {
            let mut output = vec![0.0; input.len()];
            let results = output.par_chunks_mut(CHUNK);
            results
                .zip(input.par_chunks(CHUNK))
                .for_each(|(output, input)| everywhere(arch, Tanh, [input], [output]));
            output
        }
    }
}

/// The derivative with respect to the input, given that with respect to the output.
pub(super) fn backward(
    arch: Arch,
    activation: Activation,
    rows: usize,
    input: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let size = input.len() / rows;
    let mut result = vec![0.0; input.len()];
    match activation {
        Activation::Geglu => {
            let inputs = input.par_chunks(size).zip(gradient.par_chunks(size / 2));
            let results = result.par_chunks_mut(size);
            results.zip(inputs).for_each(|(result, (input, gradient))| {
                let (values, gates) = input.split_at(size / 2);
                let (of_values, of_gates) = result.split_at_mut(size / 2);
                let inputs = values.par_chunks(CHUNK).zip(gates.par_chunks(CHUNK));
                let inputs = inputs.zip(gradient.par_chunks(CHUNK));
                let results = of_values.par_chunks_mut(CHUNK);
                let results = results.zip(of_gates.par_chunks_mut(CHUNK));
                results
                    .zip(inputs)
                    .for_each(|(results, (halves, gradient))| {
                        let inputs = [halves.0, halves.1, gradient];
                        everywhere(arch, GatedGradient, inputs, results.into());
                    });
            });
        }
        Activation::GeluTanh => {
            let inputs = input.par_chunks(CHUNK).zip(gradient.par_chunks(CHUNK));
            let results = result.par_chunks_mut(CHUNK);
            results.zip(inputs).for_each(|(result, (input, gradient))| {
                everywhere(arch, TanhGradient, [input, gradient], [result]);
            });
        }
    }
    result
}

/// A function of the numbers at one place.
trait Pointwise<const INPUTS: usize, const OUTPUTS: usize>: Copy {
    fn at<S: Simd>(self, simd: S, inputs: [S::f32s; INPUTS]) -> [S::f32s; OUTPUTS];
}

/// `a · gelu(b)` of `[a, b]`.
#[derive(Clone, Copy)]
struct Gated;

/// Its derivatives, from `[a, b, gradient]`: `g gelu(b)` and `g a gelu'(b)`.
#[derive(Clone, Copy)]
struct GatedGradient;

/// `gelu` in its form with the hyperbolic tangent.
#[derive(Clone, Copy)]
struct Tanh;

/// Its derivative, from `[x, gradient]`.
#[derive(Clone, Copy)]
struct TanhGradient;

impl Pointwise<2, 1> for Gated {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, [value, gate]: [S::f32s; 2]) -> [S::f32s; 1] {
        let [share, _] = normal(simd, gate);
        [simd.mul_f32s(value, simd.mul_f32s(gate, share))]
    }
}

impl Pointwise<3, 2> for GatedGradient {
    /// `gelu'(b) = Φ(b) + b φ(b)`.
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, [value, gate, gradient]: [S::f32s; 3]) -> [S::f32s; 2] {
        let [share, density] = normal(simd, gate);
        let slope = simd.mul_add_e_f32s(gate, density, share);
        [
            simd.mul_f32s(gradient, simd.mul_f32s(gate, share)),
            simd.mul_f32s(simd.mul_f32s(gradient, value), slope),
        ]
    }
}

impl Pointwise<1, 1> for Tanh {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, [x]: [S::f32s; 1]) -> [S::f32s; 1] {
        let [share, _] = logistic(simd, x);
        [simd.mul_f32s(x, share)]
    }
}

impl Pointwise<2, 1> for TanhGradient {
    /// `(x s)' = s + x s (1 − s) u'`.
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, [x, gradient]: [S::f32s; 2]) -> [S::f32s; 1] {
        let [share, slope] = logistic(simd, x);
        let rest = simd.sub_f32s(simd.splat_f32s(1.0), share);
        let change = simd.mul_f32s(simd.mul_f32s(x, share), simd.mul_f32s(rest, slope));
        [simd.mul_f32s(gradient, simd.add_f32s(share, change))]
    }
}

/// The distribution function and the density of the normal distribution.
///
/// `Φ(−|x|) = ½ erfc(z) = ½ t P(t) e^(−z²)` with `z = |x| / √2` and `t = 1 / (1 + z / 2)`; the
/// relative error of the polynomial, fitted over 0 ≤ z ≤ 9.4, is below 1e-7.
#[inline(always)]
fn normal<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 2] {
    const POLYNOMIAL: [f32; 9] = [
        -0.058_847_062,
        0.283_487_44,
        -0.484_936_5,
        0.275_462_57,
        -0.024_819_29,
        0.201_916_59,
        0.243_300_21,
        0.282_348,
        0.282_087_98,
    ];
    const TO_T: f32 = 0.5 * std::f32::consts::FRAC_1_SQRT_2;
    /// `1 / √(2π)`.
    const DENSITY: f32 = 0.398_942_3;
    let splat = |value| simd.splat_f32s(value);
    let zero = splat(0.0);
    let is_negative = simd.less_than_f32s(x, zero);
    let size = simd.select_f32s(is_negative, simd.sub_f32s(zero, x), x);
    let below = simd.mul_add_e_f32s(size, splat(TO_T), splat(1.0));
    let t = simd.div_f32s(splat(1.0), below);
    let mut sum = splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        sum = simd.mul_add_e_f32s(sum, t, splat(*coefficient));
    }
    let decay = exp(simd, simd.mul_f32s(simd.mul_f32s(x, x), splat(-0.5)));
    let tail = simd.mul_f32s(simd.mul_f32s(simd.mul_f32s(sum, t), splat(0.5)), decay);
    let rest = simd.sub_f32s(splat(1.0), tail);
    let share = simd.select_f32s(is_negative, tail, rest);
    [share, simd.mul_f32s(decay, splat(DENSITY))]
}

/// `s = ½ (1 + tanh(u / 2)) = sigmoid(u)` and `u'`, with `u = √(8/π) (x + 0.044715 x³)`.
#[inline(always)]
fn logistic<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 2] {
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = LINEAR * 0.044_715;
    let square = simd.mul_f32s(x, x);
    let splat = |value| simd.splat_f32s(value);
    let ratio = simd.mul_add_e_f32s(square, splat(CUBIC), splat(LINEAR));
    let slope = simd.mul_add_e_f32s(square, splat(3.0 * CUBIC), splat(LINEAR));
    [sigmoid(simd, simd.mul_f32s(x, ratio)), slope]
}

/// Applies a function at every place.
fn everywhere<const INPUTS: usize, const OUTPUTS: usize>(
    arch: Arch,
    function: impl Pointwise<INPUTS, OUTPUTS>,
    inputs: [&[f32]; INPUTS],
    outputs: [&mut [f32]; OUTPUTS],
) {
    let all = Everywhere {
        function,
        inputs,
        outputs,
    };
    dispatch(arch, all);
}

/// A function, and the numbers that it is applied to.
struct Everywhere<'a, F, const INPUTS: usize, const OUTPUTS: usize> {
    function: F,
    inputs: [&'a [f32]; INPUTS],
    outputs: [&'a mut [f32]; OUTPUTS],
}

impl<F, const INPUTS: usize, const OUTPUTS: usize> Vectorised for Everywhere<'_, F, INPUTS, OUTPUTS>
where
    F: Pointwise<INPUTS, OUTPUTS>,
{
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let inputs = self.inputs.map(|input| S::as_simd_f32s(input));
        let mut outputs = self.outputs.map(|output| S::as_mut_simd_f32s(output));
        let whole = inputs.first().map_or(0, |(body, _)| body.len());
        for place in 0..whole {
            let found = self.function.at(simd, inputs.map(|(body, _)| body[place]));
            for ((body, _), found) in outputs.iter_mut().zip(found) {
                body[place] = found;
            }
        }
        let found = self
            .function
            .at(simd, inputs.map(|(_, tail)| simd.partial_load_f32s(tail)));
        for ((_, tail), found) in outputs.iter_mut().zip(found) {
            simd.partial_store_f32s(tail, found);
        }
    }
}
