//! Scaled dot-product attention that never stores the whole matrix of weights.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::functions::exp;
use super::tile::{ROWS, STRIP, VECTORS, load, multiply, pack_columns, pack_rows, store, zeros};
use crate::kernel::simd::{Vectorised, dispatch};

/// The sizes of one head: queries are `[size, positions]`, keys and values `[size, sources]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Channels of a head.
    pub(crate) size: usize,
    /// Positions of the queries.
    pub(crate) positions: usize,
    /// Positions of the keys and values.
    pub(crate) sources: usize,
}

impl AttentionShape {
    pub(super) fn scale(&self) -> f32 {
        (self.size as f64).sqrt().recip() as f32
    }
}

/// The inputs, one head after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
}

impl<'a> Inputs<'a> {
    pub(super) fn head(&self, shape: &AttentionShape, index: usize) -> Inputs<'a> {
        let (queries, keys) = (shape.size * shape.positions, shape.size * shape.sources);
        Inputs {
            query: &self.query[index * queries..][..queries],
            key: &self.key[index * keys..][..keys],
            value: &self.value[index * keys..][..keys],
        }
    }
}

/// `o[c, i] = Σⱼ p[i, j] v[c, j]` with `p[i, j] = exp(s[i, j] − l[i])`, `s = qᵀk / √size` and
/// `l[i] = ln Σⱼ exp s[i, j]`; returns the output and `l`.
pub(super) fn forward(
    arch: Arch,
    shape: &AttentionShape,
    inputs: Inputs<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let size = shape.size * shape.positions;
    let mut output = vec![0.0; inputs.query.len()];
    let mut logs = vec![0.0; output.len() / shape.size];
    output
        .par_chunks_mut(size)
        .zip(logs.par_chunks_mut(shape.positions))
        .enumerate()
        .for_each_init(Scratch::default, |scratch, (index, (output, logs))| {
            let head = Forward {
                shape,
                inputs: inputs.head(shape, index),
                scratch,
                output,
                logs,
            };
            dispatch(arch, head);
        });
    (output, logs)
}

/// The working memory of a thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Rows that tiles are read from, each padded with zeros.
    pub(super) rows: [Vec<f32>; 2],
    /// Panels of factors.
    pub(super) panels: [Vec<[f32; ROWS]>; 4],
    /// A strip of weights, and one of their gradients: one row per position of the other side.
    pub(super) strips: [Vec<f32>; 2],
}

/// Multiplies rows `[count, length]` by `factor`, pads each with zeros to whole strips, and returns
/// the padded length.
pub(super) fn pad(
    from: &[f32],
    (length, width): (usize, usize),
    factor: f32,
    to: &mut Vec<f32>,
) -> usize {
    let padded = length.next_multiple_of(width);
    to.clear();
    for row in from.chunks_exact(length) {
        to.extend(row.iter().map(|number| number * factor));
        to.resize(to.len() + padded - length, 0.0);
    }
    padded
}

/// The starts of `count` rows of `length` numbers.
pub(super) fn starts(count: usize, length: usize) -> Vec<usize> {
    (0..count).map(|index| index * length).collect()
}

/// A strip of products: row `j` is `Σ_c panels[c][j] · rows[c][start ..]`.
#[inline(always)]
pub(super) fn strip<S: Simd, const HEIGHT: usize>(
    simd: S,
    panels: &[[f32; ROWS]],
    offsets: &[usize],
    rows: &[f32],
    strip: &mut [f32],
) {
    let width = VECTORS * S::F32_LANES;
    let blocks = strip.chunks_exact_mut(ROWS * width);
    for (panel, block) in panels.chunks_exact(offsets.len()).zip(blocks) {
        for (part, block) in block.chunks_exact_mut(HEIGHT * width).enumerate() {
            let tile = zeros::<S, HEIGHT>(simd);
            let tile = multiply(simd, tile, (panel, part), offsets, rows);
            for (row, to) in tile.into_iter().zip(block.chunks_exact_mut(width)) {
                store::<S>(row, to);
            }
        }
    }
}

/// Reduces a strip: `output[c][start ..] = factor · Σⱼ panels[j][c] · strip[j]`, up to the end of
/// each row of `length` numbers.
#[inline(always)]
pub(super) fn reduce<S: Simd, const HEIGHT: usize>(
    simd: S,
    panels: &[[f32; ROWS]],
    offsets: &[usize],
    strip: &[f32],
    factor: [S::f32s; VECTORS],
    (output, length, start): (&mut [f32], usize, usize),
) {
    let width = VECTORS * S::F32_LANES;
    let used = width.min(length - start);
    let blocks = output.chunks_mut(ROWS * length);
    for (panel, block) in panels.chunks_exact(offsets.len()).zip(blocks) {
        for (part, block) in block.chunks_mut(HEIGHT * length).enumerate() {
            let tile = zeros::<S, HEIGHT>(simd);
            let tile = multiply(simd, tile, (panel, part), offsets, strip);
            for (mut row, channel) in tile.into_iter().zip(block.chunks_exact_mut(length)) {
                for (number, &factor) in row.iter_mut().zip(&factor) {
                    *number = simd.mul_f32s(*number, factor);
                }
                let mut numbers = [0.0; STRIP];
                store::<S>(row, &mut numbers);
                channel[start..start + used].copy_from_slice(&numbers[..used]);
            }
        }
    }
}

/// The forward pass of one head of one row.
struct Forward<'a> {
    shape: &'a AttentionShape,
    inputs: Inputs<'a>,
    scratch: &'a mut Scratch,
    output: &'a mut [f32],
    logs: &'a mut [f32],
}

impl Vectorised for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match S::REGISTER_COUNT >= 32 {
            true => self.attend::<S, 8>(simd),
            false => self.attend::<S, 4>(simd),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn attend<S: Simd, const HEIGHT: usize>(self, simd: S) {
        let AttentionShape {
            size,
            positions,
            sources,
        } = *self.shape;
        let Scratch {
            rows: [queries, _],
            panels: [keys, values, ..],
            strips: [weights, _],
        } = self.scratch;
        let width = VECTORS * S::F32_LANES;
        let length = pad(
            self.inputs.query,
            (positions, width),
            self.shape.scale(),
            queries,
        );
        pack_columns(self.inputs.key, sources, keys);
        pack_rows(self.inputs.value, sources, values);
        weights.resize(sources.next_multiple_of(ROWS) * width, 0.0);
        let (channels, lines) = (starts(size, length), starts(sources, width));

        for start in (0..positions).step_by(width) {
            strip::<S, HEIGHT>(simd, keys, &channels, &queries[start..], weights);
            let used = &mut weights[..sources * width];
            let (most, total) = exponentiate::<S>(simd, used);
            let inverse = total.map(|total| simd.div_f32s(simd.splat_f32s(1.0), total));
            let place = (&mut *self.output, positions, start);
            reduce::<S, HEIGHT>(simd, values, &lines, weights, inverse, place);
            write_logs::<S>(&mut self.logs[start..], most, total);
        }
    }
}

/// Subtracts each column's greatest number and exponentiates; returns the greatest numbers and the
/// sums.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, strip: &mut [f32]) -> ([S::f32s; VECTORS], [S::f32s; VECTORS]) {
    let width = VECTORS * S::F32_LANES;
    let mut most = load::<S>(simd, strip);
    for row in strip.chunks_exact(width) {
        let row = load::<S>(simd, row);
        for (most, number) in most.iter_mut().zip(row) {
            *most = simd.max_f32s(*most, number);
        }
    }
    let mut total = [simd.splat_f32s(0.0); VECTORS];
    for line in strip.chunks_exact_mut(width) {
        let mut row = load::<S>(simd, line);
        for ((number, &most), total) in row.iter_mut().zip(&most).zip(&mut total) {
            *number = exp(simd, simd.sub_f32s(*number, most));
            *total = simd.add_f32s(*total, *number);
        }
        store::<S>(row, line);
    }
    (most, total)
}

/// `l = most + ln total`.
#[inline(always)]
fn write_logs<S: Simd>(logs: &mut [f32], most: [S::f32s; VECTORS], total: [S::f32s; VECTORS]) {
    let (mut greatest, mut sums) = ([0.0; STRIP], [0.0; STRIP]);
    store::<S>(most, &mut greatest);
    store::<S>(total, &mut sums);
    let numbers = greatest.into_iter().zip(sums);
    let width = VECTORS * S::F32_LANES;
    for (log, (greatest, sum)) in logs.iter_mut().zip(numbers.take(width)) {
        *log = greatest + sum.ln();
    }
}
