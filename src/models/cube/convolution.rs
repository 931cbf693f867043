//! Convolutions in f32 on the GPU, as matrix products whose columns are read from the images.
//!
//! A cube computes a tile of the product, `tile` rows by [`COLUMNS`] columns: its units bring a
//! strip of both factors into shared memory, and each unit adds up 4 × 4 products in registers. The
//! forward pass has a row for each output channel and a column for each output pixel, the gradient
//! of the input a row for each input channel and a column for each input pixel, the gradient of the
//! weight a row for each output channel and a column for each weight. The last is summed over all
//! pixels of all images: in parts by different cubes, which a second kernel adds, so that the order
//! of the sum is always the same. A further column of ones makes the gradient of the bias.

use ::burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::shapes::{ConvolutionShape, Window};
use crate::kernel::cube::gradients::buffers;
use crate::kernel::cube::sums::sum_rows;
use crate::kernel::cube::{cubes, empty_like, serial};

/// Columns of a tile.
const COLUMNS: usize = 64;
/// Rows, and columns, of a unit's part of a tile.
const SIDE: usize = 4;
/// Units across a tile.
const ACROSS: usize = COLUMNS / SIDE;
/// Products between two loads of shared memory.
const DEPTH: usize = 8;
/// The same for gradients of weights, whose strips are read along the pixels.
const LONG_DEPTH: usize = 16;
/// Pixels in a part of a weight's gradient: at most, and at least where that keeps a GPU busy.
const PART: usize = 1024;
const SMALL_PART: usize = 128;
/// Cubes that keep a GPU busy.
const BUSY: usize = 256;
/// Most numbers of all parts of a weight's gradient: 128 MiB.
const MOST_PARTS: usize = 1 << 25;

/// Rows of a tile, so that few are empty.
fn tile_of(rows: usize) -> usize {
    rows.next_power_of_two().clamp(16, 64)
}

fn units_of(tile: usize) -> u32 {
    (tile / SIDE * ACROSS) as u32
}

/// # Shapes
/// - `input`: `[rows, inputs, height, width]`
/// - `weight`: `[outputs, inputs, kernel height, kernel width]`, or a linear layer's
/// - `bias`: `[outputs]`
/// - `onto`: `[rows, outputs, …]`, a number for each output map or each output pixel, which is
///   added
pub(super) fn forward(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    onto: Option<CubeTensor>,
    shape: ConvolutionShape,
) -> CubeTensor {
    let [input, weight, bias] = [input, weight, bias].map(into_contiguous);
    let size = [shape.rows, shape.outputs, shape.out_height, shape.out_width];
    let output = empty_like(&input, Shape::from(size));
    let maps = shape.rows * shape.outputs;
    let per_map = onto
        .as_ref()
        .is_some_and(|onto| onto.meta.num_elements() == maps);
    let onto: Vec<_> = onto.into_iter().map(into_contiguous).collect();
    let tile = tile_of(shape.outputs);
    let tiles = shape.outputs.div_ceil(tile) * shape.positions().div_ceil(COLUMNS);
    let client = input.client.clone();
    serial::note("convolve", shape.patch());
    convolve::launch(
        &client,
        cubes(&client, tiles, units_of(tile)),
        CubeDim::new_1d(units_of(tile)),
        input
            .required_address_type()
            .max(output.required_address_type()),
        input.into_buffer_arg(),
        weight.into_buffer_arg(),
        bias.into_buffer_arg(),
        buffers(onto),
        output.clone().into_buffer_arg(),
        shape.positions(),
        shape.inputs,
        shape.height,
        shape.width,
        shape.outputs,
        shape.out_height,
        shape.out_width,
        shape.window,
        per_map,
        tile,
    );
    output
}

/// The gradient of the input, from that of the output.
pub(super) fn input_gradient(
    weight: CubeTensor,
    gradient: CubeTensor,
    shape: ConvolutionShape,
) -> CubeTensor {
    let [weight, gradient] = [weight, gradient].map(into_contiguous);
    let size = [shape.rows, shape.inputs, shape.height, shape.width];
    let for_input = empty_like(&gradient, Shape::from(size));
    let tile = tile_of(shape.inputs);
    let tiles = shape.inputs.div_ceil(tile) * shape.input_positions().div_ceil(COLUMNS);
    let client = gradient.client.clone();
    serial::note("convolve_back", shape.outputs * shape.window.taps());
    convolve_back::launch(
        &client,
        cubes(&client, tiles, units_of(tile)),
        CubeDim::new_1d(units_of(tile)),
        gradient
            .required_address_type()
            .max(for_input.required_address_type()),
        gradient.into_buffer_arg(),
        weight.into_buffer_arg(),
        for_input.clone().into_buffer_arg(),
        shape.input_positions(),
        shape.inputs,
        shape.height,
        shape.width,
        shape.outputs,
        shape.out_height,
        shape.out_width,
        shape.window,
        tile,
    );
    for_input
}

/// The gradients of weight, laid flat, and bias, from that of the output.
pub(super) fn weight_gradient(
    input: CubeTensor,
    gradient: CubeTensor,
    shape: ConvolutionShape,
) -> (CubeTensor, CubeTensor) {
    let [input, gradient] = [input, gradient].map(into_contiguous);
    let tile = tile_of(shape.outputs);
    // The last column is the bias.
    let columns = shape.patch() + 1;
    let tiles = shape.outputs.div_ceil(tile) * columns.div_ceil(COLUMNS);
    let parts = parts_of(&shape, tiles);
    let part = shape
        .positions()
        .div_ceil(parts)
        .next_multiple_of(LONG_DEPTH);
    let parts = shape.positions().div_ceil(part);
    let sums = [shape.outputs * shape.patch(), shape.outputs];
    let [of_weight, of_bias] = sums.map(|sums| empty_like(&input, Shape::from([parts * sums])));
    let client = input.client.clone();
    let address = input
        .required_address_type()
        .max(gradient.required_address_type());
    serial::note("weigh", part);
    weigh::launch(
        &client,
        cubes(&client, tiles * parts, units_of(tile)),
        CubeDim::new_1d(units_of(tile)),
        address.max(of_weight.required_address_type()),
        input.into_buffer_arg(),
        gradient.into_buffer_arg(),
        of_weight.clone().into_buffer_arg(),
        of_bias.clone().into_buffer_arg(),
        shape.positions(),
        part,
        parts,
        shape.inputs,
        shape.height,
        shape.width,
        shape.outputs,
        shape.out_height,
        shape.out_width,
        shape.window,
        tile,
    );
    let [weight, bias] = sum_rows([of_weight, of_bias], parts);
    (weight, bias)
}

/// How many parts a weight's gradient is summed in.
fn parts_of(shape: &ConvolutionShape, tiles: usize) -> usize {
    let positions = shape.positions();
    let busy = BUSY.div_ceil(tiles).min(positions.div_ceil(SMALL_PART));
    let most = (MOST_PARTS / (shape.outputs * (shape.patch() + 1))).max(1);
    positions.div_ceil(PART).max(busy).min(most)
}

/// Adds the products of a strip of `depth` to a unit's sums.
///
/// A unit's rows lie side by side, its columns [`ACROSS`] apart: neighbouring units then read
/// neighbouring numbers.
#[cube]
fn add_products(
    sums: &mut Array<f32>,
    left: &Shared<[f32]>,
    right: &Shared<[f32]>,
    #[comptime] tile: usize,
    #[comptime] depth: usize,
) {
    let unit = UNIT_POS as usize;
    let first_row = unit / ACROSS * SIDE;
    let first_column = unit % ACROSS;
    #[unroll]
    for k in 0..depth {
        let mut of_rows = Array::<f32>::new(comptime!(SIDE));
        #[unroll]
        for i in 0..comptime!(SIDE) {
            of_rows[i] = left[k * tile + first_row + i];
        }
        #[unroll]
        for j in 0..comptime!(SIDE) {
            let of_column = right[k * COLUMNS + first_column + j * ACROSS];
            #[unroll]
            for i in 0..comptime!(SIDE) {
                sums[i * SIDE + j] += of_rows[i] * of_column;
            }
        }
    }
}

/// The pixel of a map under a tap of the window at `top` and `side` of the padded map; 0 on the
/// padding.
#[cube]
fn under_tap(
    input: &[f32],
    map: usize,
    top: usize,
    side: usize,
    tap: usize,
    height: usize,
    width: usize,
    #[comptime] window: Window,
) -> f32 {
    let y = top + tap / comptime!(window.wide) * comptime!(window.dilation_y);
    let x = side + tap % comptime!(window.wide) * comptime!(window.dilation_x);
    let mut value = 0.0f32;
    if y >= comptime!(window.above)
        && y < height + comptime!(window.above)
        && x >= comptime!(window.left)
        && x < width + comptime!(window.left)
    {
        let line = map * height + y - comptime!(window.above);
        value = input[line * width + x - comptime!(window.left)];
    }
    value
}

/// One cube per tile of `outputs` × `positions`.
#[cube(launch, address_type = "dynamic")]
fn convolve(
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    onto: &Sequence<Box<[f32]>>,
    output: &mut [f32],
    positions: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    out_height: usize,
    out_width: usize,
    #[comptime] window: Window,
    #[comptime] per_map: bool,
    #[comptime] tile: usize,
) {
    let taps = comptime!(window.taps());
    let units = comptime!(tile / SIDE * ACROSS);
    let across = positions.div_ceil(COLUMNS);
    let plane = out_height * out_width;
    let patch = inputs * taps;
    let first_row = CUBE_POS / across * tile;
    let first_column = CUBE_POS % across * COLUMNS;
    if first_row < outputs {
        let unit = UNIT_POS as usize;
        let mut left = Shared::<[f32]>::new_slice(comptime!(DEPTH * tile));
        let mut right = Shared::<[f32]>::new_slice(comptime!(DEPTH * COLUMNS));
        let mut sums = Array::<f32>::new(comptime!(SIDE * SIDE));
        // The pixel whose patches this unit loads.
        let position = first_column + unit % COLUMNS;
        let (row, pixel) = (position / plane, position % plane);
        let top = pixel / out_width * comptime!(window.stride_y);
        let side = pixel % out_width * comptime!(window.stride_x);
        for step in 0..patch.div_ceil(DEPTH) {
            #[unroll]
            for load in 0..comptime!(DEPTH * tile / units) {
                let element = unit + load * units;
                let (k, of_row) = (element % DEPTH, element / DEPTH);
                let depth = step * DEPTH + k;
                let mut value = 0.0f32;
                if depth < patch && first_row + of_row < outputs {
                    if comptime!(window.linear) {
                        value = weight[depth * outputs + first_row + of_row];
                    } else {
                        value = weight[(first_row + of_row) * patch + depth];
                    }
                }
                left[k * tile + of_row] = value;
            }
            #[unroll]
            for load in 0..comptime!(DEPTH * COLUMNS / units) {
                let k = unit / COLUMNS + load * comptime!(units / COLUMNS);
                let depth = step * DEPTH + k;
                let (channel, tap) = (depth / taps, depth % taps);
                let mut value = 0.0f32;
                if position < positions && depth < patch {
                    let map = row * inputs + channel;
                    value = under_tap(input, map, top, side, tap, height, width, window);
                }
                right[k * COLUMNS + unit % COLUMNS] = value;
            }
            sync_cube();
            add_products(&mut sums, &left, &right, tile, DEPTH);
            sync_cube();
        }
        #[unroll]
        for j in 0..comptime!(SIDE) {
            let position = first_column + unit % ACROSS + j * ACROSS;
            let (row, pixel) = (position / plane, position % plane);
            #[unroll]
            for i in 0..comptime!(SIDE) {
                let channel = first_row + unit / ACROSS * SIDE + i;
                if position < positions && channel < outputs {
                    let map = row * outputs + channel;
                    let mut sum = sums[i * SIDE + j] + bias[channel];
                    #[unroll]
                    for addend in 0..onto.len() {
                        if comptime!(per_map) {
                            sum += onto[addend][map];
                        } else {
                            sum += onto[addend][map * plane + pixel];
                        }
                    }
                    output[map * plane + pixel] = sum;
                }
            }
        }
    }
}

/// One cube per tile of `inputs` × the input's positions.
#[cube(launch, address_type = "dynamic")]
fn convolve_back(
    gradient: &[f32],
    weight: &[f32],
    for_input: &mut [f32],
    positions: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    out_height: usize,
    out_width: usize,
    #[comptime] window: Window,
    #[comptime] tile: usize,
) {
    let taps = comptime!(window.taps());
    let units = comptime!(tile / SIDE * ACROSS);
    let across = positions.div_ceil(COLUMNS);
    let plane = height * width;
    let patch = outputs * taps;
    let first_row = CUBE_POS / across * tile;
    let first_column = CUBE_POS % across * COLUMNS;
    if first_row < inputs {
        let unit = UNIT_POS as usize;
        let mut left = Shared::<[f32]>::new_slice(comptime!(DEPTH * tile));
        let mut right = Shared::<[f32]>::new_slice(comptime!(DEPTH * COLUMNS));
        let mut sums = Array::<f32>::new(comptime!(SIDE * SIDE));
        let position = first_column + unit % COLUMNS;
        let (row, pixel) = (position / plane, position % plane);
        let top = pixel / width + comptime!(window.above);
        let side = pixel % width + comptime!(window.left);
        for step in 0..patch.div_ceil(DEPTH) {
            #[unroll]
            for load in 0..comptime!(DEPTH * tile / units) {
                let element = unit + load * units;
                let (k, of_row) = (element % DEPTH, element / DEPTH);
                let depth = step * DEPTH + k;
                let (channel, tap) = (depth / taps, depth % taps);
                let mut value = 0.0f32;
                if depth < patch && first_row + of_row < inputs {
                    if comptime!(window.linear) {
                        value = weight[(first_row + of_row) * outputs + channel];
                    } else {
                        value = weight[(channel * inputs + first_row + of_row) * taps + tap];
                    }
                }
                left[k * tile + of_row] = value;
            }
            #[unroll]
            for load in 0..comptime!(DEPTH * COLUMNS / units) {
                let k = unit / COLUMNS + load * comptime!(units / COLUMNS);
                let depth = step * DEPTH + k;
                let (channel, tap) = (depth / taps, depth % taps);
                // The output pixel that this tap takes the input pixel to, times the stride.
                let down = tap / comptime!(window.wide) * comptime!(window.dilation_y);
                let over = tap % comptime!(window.wide) * comptime!(window.dilation_x);
                let mut value = 0.0f32;
                if position < positions && depth < patch && top >= down && side >= over {
                    let (y, x) = (top - down, side - over);
                    let stride_y = comptime!(window.stride_y);
                    let stride_x = comptime!(window.stride_x);
                    let (out_y, out_x) = (y / stride_y, x / stride_x);
                    if y % stride_y == 0
                        && x % stride_x == 0
                        && out_y < out_height
                        && out_x < out_width
                    {
                        let line = (row * outputs + channel) * out_height + out_y;
                        value = gradient[line * out_width + out_x];
                    }
                }
                right[k * COLUMNS + unit % COLUMNS] = value;
            }
            sync_cube();
            add_products(&mut sums, &left, &right, tile, DEPTH);
            sync_cube();
        }
        #[unroll]
        for j in 0..comptime!(SIDE) {
            let position = first_column + unit % ACROSS + j * ACROSS;
            let (row, pixel) = (position / plane, position % plane);
            #[unroll]
            for i in 0..comptime!(SIDE) {
                let channel = first_row + unit / ACROSS * SIDE + i;
                if position < positions && channel < inputs {
                    for_input[(row * inputs + channel) * plane + pixel] = sums[i * SIDE + j];
                }
            }
        }
    }
}

/// One cube per tile of `outputs` × (`patch` + 1) and part of the positions.
#[cube(launch, address_type = "dynamic")]
fn weigh(
    input: &[f32],
    gradient: &[f32],
    of_weight: &mut [f32],
    of_bias: &mut [f32],
    positions: usize,
    part: usize,
    parts: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    out_height: usize,
    out_width: usize,
    #[comptime] window: Window,
    #[comptime] tile: usize,
) {
    let taps = comptime!(window.taps());
    let units = comptime!(tile / SIDE * ACROSS);
    let plane = out_height * out_width;
    let patch = inputs * taps;
    let across = (patch + 1).div_ceil(COLUMNS);
    let tiles = outputs.div_ceil(tile) * across;
    let (which, cube) = (CUBE_POS / tiles, CUBE_POS % tiles);
    let first_row = cube / across * tile;
    let first_column = cube % across * COLUMNS;
    if which < parts {
        let unit = UNIT_POS as usize;
        let mut left = Shared::<[f32]>::new_slice(comptime!(LONG_DEPTH * tile));
        let mut right = Shared::<[f32]>::new_slice(comptime!(LONG_DEPTH * COLUMNS));
        let mut sums = Array::<f32>::new(comptime!(SIDE * SIDE));
        let k = unit % LONG_DEPTH;
        let end = min(which * part + part, positions);
        for step in 0..part.div_ceil(LONG_DEPTH) {
            let position = which * part + step * LONG_DEPTH + k;
            let (row, pixel) = (position / plane, position % plane);
            let top = pixel / out_width * comptime!(window.stride_y);
            let side = pixel % out_width * comptime!(window.stride_x);
            #[unroll]
            for load in 0..comptime!(LONG_DEPTH * tile / units) {
                let of_row = unit / LONG_DEPTH + load * comptime!(units / LONG_DEPTH);
                let channel = first_row + of_row;
                let mut value = 0.0f32;
                if position < end && channel < outputs {
                    value = gradient[(row * outputs + channel) * plane + pixel];
                }
                left[k * tile + of_row] = value;
            }
            #[unroll]
            for load in 0..comptime!(LONG_DEPTH * COLUMNS / units) {
                let of_column = unit / LONG_DEPTH + load * comptime!(units / LONG_DEPTH);
                let column = first_column + of_column;
                let (channel, tap) = (column / taps, column % taps);
                let mut value = 0.0f32;
                if column == patch {
                    value = 1.0f32;
                } else if position < end && column < patch {
                    let map = row * inputs + channel;
                    value = under_tap(input, map, top, side, tap, height, width, window);
                }
                right[k * COLUMNS + of_column] = value;
            }
            sync_cube();
            add_products(&mut sums, &left, &right, tile, LONG_DEPTH);
            sync_cube();
        }
        #[unroll]
        for j in 0..comptime!(SIDE) {
            let column = first_column + unit % ACROSS + j * ACROSS;
            #[unroll]
            for i in 0..comptime!(SIDE) {
                let channel = first_row + unit / ACROSS * SIDE + i;
                if channel < outputs {
                    let row = which * outputs + channel;
                    if column == patch {
                        of_bias[row] = sums[i * SIDE + j];
                    } else if column < patch {
                        if comptime!(window.linear) {
                            let line = which * patch + column;
                            of_weight[line * outputs + channel] = sums[i * SIDE + j];
                        } else {
                            of_weight[row * patch + column] = sums[i * SIDE + j];
                        }
                    }
                }
            }
        }
    }
}
