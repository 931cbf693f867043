//! Scaled dot-product attention on the GPU: one kernel forward and one backward, neither of which
//! stores the matrix of weights.
//!
//! With the scores `sᵢⱼ = scale Σ_c q[c, i] k[c, j]`, `lᵢ = ln Σⱼ exp sᵢⱼ` and the weights
//! `pᵢⱼ = exp(sᵢⱼ − lᵢ)` the output is `o[c, i] = Σⱼ pᵢⱼ v[c, j]`. With the output's gradient `g`,
//! `dᵢ = Σ_c g[c, i] o[c, i]` and `tᵢⱼ = scale pᵢⱼ (Σ_c g[c, i] v[c, j] − dᵢ)` the gradients are
//! `Σⱼ tᵢⱼ k[c, j]` of `q`, `Σᵢ tᵢⱼ q[c, i]` of `k` and `Σᵢ pᵢⱼ g[c, i]` of `v`.
//!
//! A cube owns a tile of places of one head, which are queries or sources (keys and values), and
//! takes the other side a tile at a time. A unit computes the scores at every eighth of its own
//! places and every eighth of the others, and adds up every eighth channel at the same own places.

use ::burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::shapes::{ACROSS, AttentionShape, AttentionTile, UNITS};
use crate::kernel::cube::{cubes, empty_like, serial};

/// Below every score, yet far enough from the lowest number for differences to be finite.
const LOWEST: f32 = -1e30;

/// The output, and `l` of each row, head and query.
pub(super) fn forward(inputs: [CubeTensor; 3], shape: AttentionShape) -> (CubeTensor, CubeTensor) {
    let [query, key, value] = inputs.map(into_contiguous);
    let output = empty_like(&query, query.shape());
    let logs = empty_like(&query, shape.logs());
    let client = query.client.clone();
    serial::note("attend", shape.sources.max(shape.tile.size));
    attend::launch(
        &client,
        cubes(&client, shape.heads * shape.query_tiles(), UNITS as u32),
        CubeDim::new_1d(UNITS as u32),
        query
            .required_address_type()
            .max(key.required_address_type()),
        query.into_buffer_arg(),
        key.into_buffer_arg(),
        value.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        logs.clone().into_buffer_arg(),
        shape.positions,
        shape.sources,
        shape.scale(),
        shape.tile,
    );
    (output, logs)
}

/// The gradients of query, key and value.
pub(super) fn backward(
    inputs: [CubeTensor; 3],
    output: CubeTensor,
    logs: CubeTensor,
    gradient: CubeTensor,
    shape: AttentionShape,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [query, key, value] = inputs.map(into_contiguous);
    let gradient = into_contiguous(gradient);
    let [for_query, for_key, for_value] =
        [&query, &key, &value].map(|input| empty_like(input, input.shape()));
    let client = query.client.clone();
    let tiles = shape.query_tiles() + shape.source_tiles();
    let longest = shape.sources.max(shape.positions).max(shape.tile.size);
    serial::note("attend_back", longest);
    attend_back::launch(
        &client,
        cubes(&client, shape.heads * tiles, UNITS as u32),
        CubeDim::new_1d(UNITS as u32),
        query
            .required_address_type()
            .max(key.required_address_type()),
        query.into_buffer_arg(),
        key.into_buffer_arg(),
        value.into_buffer_arg(),
        output.into_buffer_arg(),
        logs.into_buffer_arg(),
        gradient.into_buffer_arg(),
        for_query.clone().into_buffer_arg(),
        for_key.clone().into_buffer_arg(),
        for_value.clone().into_buffer_arg(),
        shape.heads,
        shape.positions,
        shape.sources,
        shape.scale(),
        shape.tile,
    );
    (for_query, for_key, for_value)
}

/// Brings the tile from `first` on of a head's `[size, length]` numbers into shared memory, with
/// zeros beyond its ends.
#[cube]
fn bring(
    numbers: &[f32],
    into: &mut Shared<[f32]>,
    start: usize,
    first: usize,
    length: usize,
    #[comptime] tile: AttentionTile,
) {
    let unit = UNIT_POS as usize;
    for load in 0..comptime!(tile.padded() * tile.places / UNITS) {
        let element = unit + load * UNITS;
        let channel = element / comptime!(tile.places);
        let place = element % comptime!(tile.places);
        let mut number = 0.0f32;
        if channel < comptime!(tile.size) && first + place < length {
            number = numbers[start + channel * length + first + place];
        }
        into[channel * comptime!(tile.stride()) + place] = number;
    }
}

/// `Σ_c own[c, i] other[c, j]` for the unit's places on both sides.
#[cube]
fn multiply(
    products: &mut Array<f32>,
    own: &Shared<[f32]>,
    other: &Shared<[f32]>,
    #[comptime] tile: AttentionTile,
) {
    let (row, column) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let side = comptime!(tile.side());
    #[unroll]
    for product in 0..comptime!(side * side) {
        products[product] = 0.0f32;
    }
    for channel in 0..comptime!(tile.size) {
        let line = channel * comptime!(tile.stride());
        let mut of_rows = Array::<f32>::new(side);
        #[unroll]
        for i in 0..side {
            of_rows[i] = own[line + row + i * ACROSS];
        }
        #[unroll]
        for j in 0..side {
            let of_column = other[line + column + j * ACROSS];
            #[unroll]
            for i in 0..side {
                products[i * side + j] += of_rows[i] * of_column;
            }
        }
    }
}

/// The scores at the unit's places on both sides, of which the other has `left` more places;
/// [`LOWEST`] beyond them, for a weight of 0.
#[cube]
fn score(
    scores: &mut Array<f32>,
    own: &Shared<[f32]>,
    other: &Shared<[f32]>,
    left: usize,
    scale: f32,
    #[comptime] tile: AttentionTile,
) {
    let column = UNIT_POS as usize % ACROSS;
    let side = comptime!(tile.side());
    multiply(scores, own, other, tile);
    #[unroll]
    for j in 0..side {
        #[unroll]
        for i in 0..side {
            if column + j * ACROSS < left {
                scores[i * side + j] *= scale;
            } else {
                scores[i * side + j] = LOWEST;
            }
        }
    }
}

/// Adds `Σⱼ weights[j, i] other[c, j]` to the sums of the unit's channels and own places.
#[cube]
fn add_weighted(
    sums: &mut Array<f32>,
    weights: &Shared<[f32]>,
    other: &Shared<[f32]>,
    #[comptime] tile: AttentionTile,
) {
    let (row, column) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let (side, channels) = comptime!((tile.side(), tile.channels()));
    let stride = comptime!(tile.stride());
    for j in 0..comptime!(tile.places) {
        let mut of_rows = Array::<f32>::new(side);
        #[unroll]
        for i in 0..side {
            of_rows[i] = weights[j * stride + row + i * ACROSS];
        }
        #[unroll]
        for c in 0..channels {
            let of_channel = other[(column + c * ACROSS) * stride + j];
            #[unroll]
            for i in 0..side {
                sums[i * channels + c] += of_rows[i] * of_channel;
            }
        }
    }
}

/// Writes the unit's sums into a head's `[size, length]` numbers.
#[cube]
fn write(
    sums: &Array<f32>,
    numbers: &mut [f32],
    start: usize,
    first: usize,
    length: usize,
    #[comptime] tile: AttentionTile,
) {
    let (row, column) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let (side, channels) = comptime!((tile.side(), tile.channels()));
    #[unroll]
    for i in 0..side {
        let place = first + row + i * ACROSS;
        #[unroll]
        for c in 0..channels {
            let channel = column + c * ACROSS;
            if place < length && channel < comptime!(tile.size) {
                numbers[start + channel * length + place] = sums[i * channels + c];
            }
        }
    }
}

/// One cube per head and tile of queries.
///
/// Weights are relative to the largest score so far: when a tile raises it, what was added up
/// before is scaled down.
#[cube(launch, address_type = "dynamic")]
fn attend(
    query: &[f32],
    key: &[f32],
    value: &[f32],
    output: &mut [f32],
    logs: &mut [f32],
    positions: usize,
    sources: usize,
    scale: f32,
    #[comptime] tile: AttentionTile,
) {
    let (size, places, stride) = comptime!((tile.size, tile.places, tile.stride()));
    let (side, channels) = comptime!((tile.side(), tile.channels()));
    let tiles = positions.div_ceil(places);
    let (head, first) = (CUBE_POS / tiles, CUBE_POS % tiles * places);
    if head * positions < logs.len() {
        let (row, column) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
        let (of_queries, of_sources) = (head * size * positions, head * size * sources);
        let mut queries = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
        let mut keys = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
        let mut values = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
        let mut weights = Shared::<[f32]>::new_slice(comptime!(tile.weights()));
        // A number of each query from each of the units that share it.
        let mut shared = Shared::<[f32]>::new_slice(comptime!(tile.places * ACROSS));
        let mut scores = Array::<f32>::new(comptime!(tile.side() * tile.side()));
        let mut sums = Array::<f32>::new(comptime!(tile.side() * tile.channels()));
        let mut largest = Array::<f32>::new(side);
        let mut totals = Array::<f32>::new(side);
        #[unroll]
        for i in 0..side {
            largest[i] = LOWEST;
        }
        bring(query, &mut queries, of_queries, first, positions, tile);
        for step in 0..sources.div_ceil(places) {
            let from = step * places;
            bring(key, &mut keys, of_sources, from, sources, tile);
            bring(value, &mut values, of_sources, from, sources, tile);
            sync_cube();
            score(&mut scores, &queries, &keys, sources - from, scale, tile);
            #[unroll]
            for i in 0..side {
                let mut best = largest[i];
                #[unroll]
                for j in 0..side {
                    best = max(best, scores[i * side + j]);
                }
                shared[(row + i * ACROSS) * ACROSS + column] = best;
            }
            sync_cube();
            #[unroll]
            for i in 0..side {
                let place = row + i * ACROSS;
                let mut best = largest[i];
                for unit in 0..ACROSS {
                    best = max(best, shared[place * ACROSS + unit]);
                }
                let factor = (largest[i] - best).exp();
                largest[i] = best;
                totals[i] *= factor;
                #[unroll]
                for c in 0..channels {
                    sums[i * channels + c] *= factor;
                }
                #[unroll]
                for j in 0..side {
                    let weight = (scores[i * side + j] - best).exp();
                    totals[i] += weight;
                    weights[(column + j * ACROSS) * stride + place] = weight;
                }
            }
            sync_cube();
            add_weighted(&mut sums, &weights, &values, tile);
            sync_cube();
        }
        #[unroll]
        for i in 0..side {
            shared[(row + i * ACROSS) * ACROSS + column] = totals[i];
        }
        sync_cube();
        #[unroll]
        for i in 0..side {
            let place = row + i * ACROSS;
            let mut total = 0.0f32;
            for unit in 0..ACROSS {
                total += shared[place * ACROSS + unit];
            }
            #[unroll]
            for c in 0..channels {
                sums[i * channels + c] /= total;
            }
            if column == 0 && first + place < positions {
                logs[head * positions + first + place] = largest[i] + total.ln();
            }
        }
        write(&sums, output, of_queries, first, positions, tile);
    }
}

/// `dᵢ` of a tile of queries in parts, which are sums over some channels each: `[part, place]`.
#[cube]
fn bring_slopes(
    gradient: &[f32],
    output: &[f32],
    slopes: &mut Shared<[f32]>,
    start: usize,
    first: usize,
    positions: usize,
    #[comptime] tile: AttentionTile,
) {
    let (size, places, parts) = comptime!((tile.size, tile.places, tile.parts()));
    let unit = UNIT_POS as usize;
    let position = first + unit % places;
    let mut sum = 0.0f32;
    if position < positions {
        for channel in range_stepped(unit / places, size, parts) {
            let index = start + channel * positions + position;
            sum += gradient[index] * output[index];
        }
    }
    slopes[unit] = sum;
}

/// `dᵢ` of a place in the tile.
#[cube]
fn slope_at(slopes: &Shared<[f32]>, place: usize, #[comptime] tile: AttentionTile) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for part in 0..comptime!(tile.parts()) {
        sum += slopes[part * comptime!(tile.places) + place];
    }
    sum
}

/// One cube per head and tile of queries, and then one per head and tile of sources.
///
/// A cube of queries has their tile and the one of the output's gradient as its own, a cube of
/// sources those of keys and values.
#[cube(launch, address_type = "dynamic")]
fn attend_back(
    query: &[f32],
    key: &[f32],
    value: &[f32],
    output: &[f32],
    logs: &[f32],
    gradient: &[f32],
    for_query: &mut [f32],
    for_key: &mut [f32],
    for_value: &mut [f32],
    heads: usize,
    positions: usize,
    sources: usize,
    scale: f32,
    #[comptime] tile: AttentionTile,
) {
    let (size, places, stride) = comptime!((tile.size, tile.places, tile.stride()));
    let side = comptime!(tile.side());
    let (row, column) = (UNIT_POS as usize / ACROSS, UNIT_POS as usize % ACROSS);
    let (query_tiles, source_tiles) = (positions.div_ceil(places), sources.div_ceil(places));
    let mut own = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
    let mut own_second = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
    let mut other = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
    let mut other_second = Shared::<[f32]>::new_slice(comptime!(tile.numbers()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tile.weights()));
    let mut changes = Shared::<[f32]>::new_slice(comptime!(tile.weights()));
    let mut slopes = Shared::<[f32]>::new_slice(UNITS);
    let mut scores = Array::<f32>::new(comptime!(tile.side() * tile.side()));
    let mut products = Array::<f32>::new(comptime!(tile.side() * tile.side()));
    let mut sums = Array::<f32>::new(comptime!(tile.side() * tile.channels()));
    if CUBE_POS < heads * query_tiles {
        let (head, first) = (CUBE_POS / query_tiles, CUBE_POS % query_tiles * places);
        let (of_queries, of_sources) = (head * size * positions, head * size * sources);
        bring(query, &mut own, of_queries, first, positions, tile);
        bring(
            gradient,
            &mut own_second,
            of_queries,
            first,
            positions,
            tile,
        );
        bring_slopes(
            gradient,
            output,
            &mut slopes,
            of_queries,
            first,
            positions,
            tile,
        );
        for step in 0..source_tiles {
            let from = step * places;
            bring(key, &mut other, of_sources, from, sources, tile);
            bring(value, &mut other_second, of_sources, from, sources, tile);
            sync_cube();
            score(&mut scores, &own, &other, sources - from, scale, tile);
            multiply(&mut products, &own_second, &other_second, tile);
            #[unroll]
            for i in 0..side {
                let place = row + i * ACROSS;
                let slope = slope_at(&slopes, place, tile);
                let log = logs[head * positions + min(first + place, positions - 1)];
                #[unroll]
                for j in 0..side {
                    let weight = (scores[i * side + j] - log).exp();
                    let change = scale * weight * (products[i * side + j] - slope);
                    changes[(column + j * ACROSS) * stride + place] = change;
                }
            }
            sync_cube();
            add_weighted(&mut sums, &changes, &other, tile);
            sync_cube();
        }
        write(&sums, for_query, of_queries, first, positions, tile);
    } else if CUBE_POS < heads * (query_tiles + source_tiles) {
        let cube = CUBE_POS - heads * query_tiles;
        let (head, first) = (cube / source_tiles, cube % source_tiles * places);
        let (of_queries, of_sources) = (head * size * positions, head * size * sources);
        let mut value_sums = Array::<f32>::new(comptime!(tile.side() * tile.channels()));
        bring(key, &mut own, of_sources, first, sources, tile);
        bring(value, &mut own_second, of_sources, first, sources, tile);
        for step in 0..query_tiles {
            let from = step * places;
            bring(query, &mut other, of_queries, from, positions, tile);
            bring(
                gradient,
                &mut other_second,
                of_queries,
                from,
                positions,
                tile,
            );
            bring_slopes(
                gradient,
                output,
                &mut slopes,
                of_queries,
                from,
                positions,
                tile,
            );
            sync_cube();
            score(&mut scores, &own, &other, positions - from, scale, tile);
            multiply(&mut products, &own_second, &other_second, tile);
            #[unroll]
            for j in 0..side {
                let place = column + j * ACROSS;
                let slope = slope_at(&slopes, place, tile);
                let log = logs[head * positions + min(from + place, positions - 1)];
                #[unroll]
                for i in 0..side {
                    let weight = (scores[i * side + j] - log).exp();
                    let change = scale * weight * (products[i * side + j] - slope);
                    weights[place * stride + row + i * ACROSS] = weight;
                    changes[place * stride + row + i * ACROSS] = change;
                }
            }
            sync_cube();
            add_weighted(&mut sums, &changes, &other, tile);
            add_weighted(&mut value_sums, &weights, &other_second, tile);
            sync_cube();
        }
        write(&sums, for_key, of_sources, first, sources, tile);
        write(&value_sums, for_value, of_sources, first, sources, tile);
    }
}
