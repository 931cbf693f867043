//! The backward pass of attention: weights are recomputed, one strip at a time.

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::attention::{AttentionShape, Inputs, Scratch, pad, reduce, starts, strip};
use super::functions::exp;
use super::tile::{VECTORS, load, pack_columns, pack_rows, store};
use crate::kernel::simd::{Vectorised, dispatch};

/// The results of the forward pass, and the output's gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub(super) output: &'a [f32],
    /// The log-sum-exp of each position.
    pub(super) logs: &'a [f32],
    pub(super) gradient: &'a [f32],
}

/// The gradients of queries, keys and values.
///
/// With `g` the output's gradient and
/// `d[i, j] = p[i, j] (Σ_c g[c, i] v[c, j] − Σ_c g[c, i] o[c, i])`: `∂q = k dᵀ / √size`,
/// `∂k = q d / √size`, `∂v = g p`. Weights are computed twice, once with queries and once with
/// sources side by side, so that no sum runs across a vector. Rounding errors of `s` carry over to
/// `s − l`: with scores in the hundreds, weights are accurate to about 1e-5.
pub(super) fn backward(
    arch: Arch,
    shape: &AttentionShape,
    inputs: Inputs<'_>,
    outputs: Outputs<'_>,
) -> [Vec<f32>; 3] {
    let (queries, keys) = (shape.size * shape.positions, shape.size * shape.sources);
    let mut results = [inputs.query, inputs.key, inputs.value].map(|like| vec![0.0; like.len()]);
    let [query, key, value] = &mut results;
    let heads = query
        .par_chunks_mut(queries)
        .zip(key.par_chunks_mut(keys))
        .zip(value.par_chunks_mut(keys));
    let scratch = || (Scratch::default(), Vec::new());
    heads.enumerate().for_each_init(
        scratch,
        |(scratch, products), (index, ((query, key), value))| {
            let head = Backward {
                shape,
                inputs: inputs.head(shape, index),
                gradient: &outputs.gradient[index * queries..][..queries],
                output: &outputs.output[index * queries..][..queries],
                logs: &outputs.logs[index * shape.positions..][..shape.positions],
                scratch,
                products,
                results: [query, key, value],
            };
            dispatch(arch, head);
        },
    );
    results
}

/// The backward pass of one head of one row.
struct Backward<'a> {
    shape: &'a AttentionShape,
    inputs: Inputs<'a>,
    gradient: &'a [f32],
    output: &'a [f32],
    logs: &'a [f32],
    scratch: &'a mut Scratch,
    /// `l[i]` and `Σ_c g[c, i] o[c, i]`, padded with zeros.
    products: &'a mut Vec<f32>,
    results: [&'a mut [f32]; 3],
}

impl Vectorised for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let length = self.find_products(VECTORS * S::F32_LANES);
        match S::REGISTER_COUNT >= 32 {
            true => self.differentiate::<S, 8>(simd, length),
            false => self.differentiate::<S, 4>(simd, length),
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn differentiate<S: Simd, const HEIGHT: usize>(&mut self, simd: S, length: usize) {
        self.queries::<S, HEIGHT>(simd, length);
        self.sources::<S, HEIGHT>(simd, length);
    }

    /// Fills the rows of `products`, and returns their padded length.
    fn find_products(&mut self, width: usize) -> usize {
        let positions = self.shape.positions;
        let mut sums = vec![0.0; positions];
        let channels = self.gradient.chunks_exact(positions);
        for (gradient, output) in channels.zip(self.output.chunks_exact(positions)) {
            for ((sum, g), o) in sums.iter_mut().zip(gradient).zip(output) {
                *sum += g * o;
            }
        }
        let rows = [self.logs, &sums].concat();
        pad(&rows, (positions, width), 1.0, self.products)
    }

    /// The gradient of the queries, with queries side by side.
    #[inline(always)]
    fn queries<S: Simd, const HEIGHT: usize>(&mut self, simd: S, length: usize) {
        let AttentionShape {
            size,
            positions,
            sources,
        } = *self.shape;
        let Scratch {
            rows: [queries, gradients],
            panels: [keys, values, key_rows, _],
            strips: [weights, slopes],
        } = &mut *self.scratch;
        let width = VECTORS * S::F32_LANES;
        let scale = self.shape.scale();
        pad(self.inputs.query, (positions, width), scale, queries);
        pad(self.gradient, (positions, width), 1.0, gradients);
        pack_columns(self.inputs.key, sources, keys);
        pack_columns(self.inputs.value, sources, values);
        pack_rows(self.inputs.key, sources, key_rows);
        for strip in [&mut *weights, &mut *slopes] {
            strip.resize(keys.len() / size * super::tile::ROWS * width, 0.0);
        }
        let (channels, lines) = (starts(size, length), starts(sources, width));

        for start in (0..positions).step_by(width) {
            strip::<S, HEIGHT>(simd, keys, &channels, &queries[start..], weights);
            strip::<S, HEIGHT>(simd, values, &channels, &gradients[start..], slopes);
            let log = load::<S>(simd, &self.products[start..]);
            let product = load::<S>(simd, &self.products[length + start..]);
            let strips = weights
                .chunks_exact_mut(width)
                .zip(slopes.chunks_exact_mut(width));
            for (weights, slopes) in strips {
                differentiate::<S>(simd, weights, slopes, log, product);
            }
            let factor = [simd.splat_f32s(scale); VECTORS];
            let place = (&mut *self.results[0], positions, start);
            reduce::<S, HEIGHT>(simd, key_rows, &lines, slopes, factor, place);
        }
    }

    /// The gradients of keys and values, with sources side by side.
    #[inline(always)]
    fn sources<S: Simd, const HEIGHT: usize>(&mut self, simd: S, length: usize) {
        let AttentionShape {
            size,
            positions,
            sources,
        } = *self.shape;
        let Scratch {
            rows: [keys, values],
            panels: [queries, gradients, query_rows, gradient_rows],
            strips: [weights, slopes],
        } = &mut *self.scratch;
        let width = VECTORS * S::F32_LANES;
        let scale = self.shape.scale();
        let padded = pad(self.inputs.key, (sources, width), scale, keys);
        pad(self.inputs.value, (sources, width), 1.0, values);
        pack_columns(self.inputs.query, positions, queries);
        pack_columns(self.gradient, positions, gradients);
        pack_rows(self.inputs.query, positions, query_rows);
        pack_rows(self.gradient, positions, gradient_rows);
        for strip in [&mut *weights, &mut *slopes] {
            strip.resize(queries.len() / size * super::tile::ROWS * width, 0.0);
        }
        let (channels, lines) = (starts(size, padded), starts(positions, width));
        let (logs, products) = self.products.split_at(length);

        for start in (0..sources).step_by(width) {
            strip::<S, HEIGHT>(simd, queries, &channels, &keys[start..], weights);
            strip::<S, HEIGHT>(simd, gradients, &channels, &values[start..], slopes);
            let strips = weights
                .chunks_exact_mut(width)
                .zip(slopes.chunks_exact_mut(width));
            for ((weights, slopes), (&log, &product)) in strips.zip(logs.iter().zip(products)) {
                let log = [simd.splat_f32s(log); VECTORS];
                let product = [simd.splat_f32s(product); VECTORS];
                differentiate::<S>(simd, weights, slopes, log, product);
            }
            let [_, key, value] = &mut self.results;
            let factor = [simd.splat_f32s(scale); VECTORS];
            let place = (&mut **key, sources, start);
            reduce::<S, HEIGHT>(simd, query_rows, &lines, slopes, factor, place);
            let one = [simd.splat_f32s(1.0); VECTORS];
            let place = (&mut **value, sources, start);
            reduce::<S, HEIGHT>(simd, gradient_rows, &lines, weights, one, place);
        }
    }
}

/// Turns `s` into `p = exp(s − l)`, and `Σ_c g v` into `d = p (Σ_c g v − Σ_c g o)`.
#[inline(always)]
fn differentiate<S: Simd>(
    simd: S,
    weights: &mut [f32],
    slopes: &mut [f32],
    log: [S::f32s; VECTORS],
    product: [S::f32s; VECTORS],
) {
    let mut weight = load::<S>(simd, weights);
    let mut slope = load::<S>(simd, slopes);
    for index in 0..VECTORS {
        weight[index] = exp(simd, simd.sub_f32s(weight[index], log[index]));
        let difference = simd.sub_f32s(slope[index], product[index]);
        slope[index] = simd.mul_f32s(weight[index], difference);
    }
    store::<S>(weight, weights);
    store::<S>(slope, slopes);
}
