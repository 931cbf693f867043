//! Group normalisation with `SiLU` on the GPU: one kernel forward, three backward.
//!
//! With `x̂ = (x − μ) / √(v + ε)`, `z = g x̂ + b` and `s = ∂L/∂z`, over the elements of a group:
//! `∂L/∂x = (g s − mean(g s) − x̂ mean(g s x̂)) / √(v + ε)`. The gradients of gain and offset are
//! `Σ s x̂` and `Σ s`: first over the pixels of each row and channel, then over the rows.

use ::burn::backend::TensorMetadata;
use ::burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::shapes::GroupNormShape;
use crate::kernel::cube::gradients::{buffers, empty_each};
use crate::kernel::cube::sums::{SERIAL_ROWS, sum_rows};
use crate::kernel::cube::{Grid, empty_like, serial, sum_of_units};

/// Tensors that the kernel of all gradients binds.
const ALL_TENSORS: u32 = 10;

/// The normalised input; mean and inverse deviation of each row and group.
pub(super) fn forward(
    input: CubeTensor,
    gain: CubeTensor,
    offset: CubeTensor,
    shape: GroupNormShape,
) -> (CubeTensor, CubeTensor) {
    let [input, gain, offset] = [input, gain, offset].map(into_contiguous);
    let groups = input.meta.num_elements() / (shape.members * shape.pixels);
    let grid = Grid::new(&input, shape.members * shape.pixels);
    let output = empty_like(&input, input.shape());
    let statistics = empty_like(&input, Shape::from([2 * groups]));
    let size = shape.members * shape.pixels;
    serial::note("normalise", size.div_ceil(grid.units as usize));
    normalise::launch(
        &grid.client,
        grid.cubes(groups),
        grid.dimensions(),
        input.required_address_type(),
        input.into_buffer_arg(),
        gain.into_buffer_arg(),
        offset.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        statistics.clone().into_buffer_arg(),
        shape.groups,
        shape.members,
        shape.pixels,
        shape.epsilon as f32,
        shape.activated,
        grid.units as usize,
    );
    (output, statistics)
}

/// The gradients of input, gain and offset.
pub(super) fn backward(
    inputs: [CubeTensor; 3],
    statistics: CubeTensor,
    gradient: CubeTensor,
    shape: GroupNormShape,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [input, gain, offset] = inputs.map(into_contiguous);
    let gradient = into_contiguous(gradient);
    let channels = shape.groups * shape.members;
    let rows = input.meta.num_elements() / (channels * shape.pixels);
    let [plain, scaled] = [(); 2].map(|()| empty_like(&input, Shape::from([rows * channels])));
    let grid = Grid::new(&input, shape.pixels);
    serial::note("channel_sums", shape.pixels.div_ceil(grid.units as usize));
    channel_sums::launch(
        &grid.client,
        grid.cubes(rows * channels),
        grid.dimensions(),
        input.required_address_type(),
        input.clone().into_buffer_arg(),
        gain.clone().into_buffer_arg(),
        offset.clone().into_buffer_arg(),
        statistics.clone().into_buffer_arg(),
        gradient.clone().into_buffer_arg(),
        plain.clone().into_buffer_arg(),
        scaled.clone().into_buffer_arg(),
        shape.groups,
        shape.members,
        shape.pixels,
        shape.activated,
        grid.units as usize,
    );
    let for_input = empty_like(&input, input.shape());
    let grid = Grid::new(&input, shape.members * shape.pixels);
    let groups = rows * shape.groups;
    // Gain and offset by further cubes, where a unit can add all rows.
    let bindings = grid.client.properties().hardware.max_bindings;
    let parameters = match bindings >= ALL_TENSORS && rows <= SERIAL_ROWS {
        true => vec![gain.clone(), offset.clone()],
        false => Vec::new(),
    };
    let parameters = empty_each(&parameters);
    let further = match parameters.is_empty() {
        true => 0,
        false => channels.div_ceil(grid.units as usize),
    };
    let rows_of_unit = if further > 0 { rows } else { 0 };
    serial::note("input_gradient", rows_of_unit.max(shape.members));
    input_gradient::launch(
        &grid.client,
        grid.cubes(groups + further),
        grid.dimensions(),
        input.required_address_type(),
        input.clone().into_buffer_arg(),
        gain.into_buffer_arg(),
        offset.into_buffer_arg(),
        statistics.into_buffer_arg(),
        gradient.into_buffer_arg(),
        plain.clone().into_buffer_arg(),
        scaled.clone().into_buffer_arg(),
        for_input.clone().into_buffer_arg(),
        buffers(parameters.clone()),
        rows,
        shape.groups,
        shape.members,
        shape.pixels,
        shape.activated,
        further > 0,
        grid.units as usize,
    );
    let [for_gain, for_offset] = match <[_; 2]>::try_from(parameters) {
        Ok(parameters) => parameters,
        Err(_) => sum_rows([scaled, plain], rows),
    };
    (for_input, for_gain, for_offset)
}

/// One cube per row and group.
#[cube(launch, address_type = "dynamic")]
fn normalise(
    input: &[f32],
    gain: &[f32],
    offset: &[f32],
    output: &mut [f32],
    statistics: &mut [f32],
    groups: usize,
    members: usize,
    pixels: usize,
    epsilon: f32,
    #[comptime] activated: bool,
    #[comptime] units: usize,
) {
    let group = CUBE_POS;
    if group < statistics.len() / 2 {
        let size = members * pixels;
        let start = group * size;
        let unit = UNIT_POS as usize;
        let mut sum = 0.0f32;
        for index in range_stepped(unit, size, units) {
            sum += input[start + index];
        }
        let mean = sum_of_units(sum, units) / f32::cast_from(size);
        let mut squares = 0.0f32;
        for index in range_stepped(unit, size, units) {
            let centred = input[start + index] - mean;
            squares += centred * centred;
        }
        let variance = sum_of_units(squares, units) / f32::cast_from(size);
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        let first_channel = group % groups * members;
        for index in range_stepped(unit, size, units) {
            let channel = first_channel + index / pixels;
            let normal = (input[start + index] - mean) * inverse;
            let scaled = normal * gain[channel] + offset[channel];
            if activated {
                output[start + index] = scaled / (1.0f32 + (-scaled).exp());
            } else {
                output[start + index] = scaled;
            }
        }
        if UNIT_POS == 0 {
            statistics[2 * group] = mean;
            statistics[2 * group + 1] = inverse;
        }
    }
}

/// `∂L/∂z` from `∂L/∂y`: with `SiLU`, `y = z σ(z)` and `y′ = σ + y (1 − σ)`.
#[cube]
fn before_activation(gradient: f32, scaled: f32, #[comptime] activated: bool) -> f32 {
    if activated {
        let sigmoid = 1.0f32 / (1.0f32 + (-scaled).exp());
        gradient * (sigmoid + scaled * sigmoid * (1.0f32 - sigmoid))
    } else {
        gradient
    }
}

/// One cube per row and channel: `Σ s` and `Σ s x̂` over its pixels.
#[cube(launch, address_type = "dynamic")]
fn channel_sums(
    input: &[f32],
    gain: &[f32],
    offset: &[f32],
    statistics: &[f32],
    gradient: &[f32],
    plain_sums: &mut [f32],
    scaled_sums: &mut [f32],
    groups: usize,
    members: usize,
    pixels: usize,
    #[comptime] activated: bool,
    #[comptime] units: usize,
) {
    let map = CUBE_POS;
    if map < plain_sums.len() {
        let channel = map % (groups * members);
        let mean = statistics[2 * (map / members)];
        let inverse = statistics[2 * (map / members) + 1];
        let mut plain = 0.0f32;
        let mut scaled = 0.0f32;
        for pixel in range_stepped(UNIT_POS as usize, pixels, units) {
            let index = map * pixels + pixel;
            let normal = (input[index] - mean) * inverse;
            let before = normal * gain[channel] + offset[channel];
            let slope = before_activation(gradient[index], before, activated);
            plain += slope;
            scaled += slope * normal;
        }
        let plain = sum_of_units(plain, units);
        let scaled = sum_of_units(scaled, units);
        if UNIT_POS == 0 {
            plain_sums[map] = plain;
            scaled_sums[map] = scaled;
        }
    }
}

/// One cube per row and group; further cubes add the rows of a channel by each unit, for gain and
/// offset.
#[cube(launch, address_type = "dynamic")]
fn input_gradient(
    input: &[f32],
    gain: &[f32],
    offset: &[f32],
    statistics: &[f32],
    gradient: &[f32],
    plain_sums: &[f32],
    scaled_sums: &[f32],
    for_input: &mut [f32],
    for_parameters: &mut Sequence<Box<[f32]>>,
    rows: usize,
    groups: usize,
    members: usize,
    pixels: usize,
    #[comptime] activated: bool,
    #[comptime] with_parameters: bool,
    #[comptime] units: usize,
) {
    let group = CUBE_POS;
    let channels = groups * members;
    if group < rows * groups {
        let size = members * pixels;
        let first_channel = group % groups * members;
        let mean = statistics[2 * group];
        let inverse = statistics[2 * group + 1];
        let mut plain = 0.0f32;
        let mut scaled = 0.0f32;
        for member in 0..members {
            let map = group * members + member;
            plain += gain[first_channel + member] * plain_sums[map];
            scaled += gain[first_channel + member] * scaled_sums[map];
        }
        let plain = plain / f32::cast_from(size);
        let scaled = scaled / f32::cast_from(size);
        for element in range_stepped(UNIT_POS as usize, size, units) {
            let index = group * size + element;
            let channel = first_channel + element / pixels;
            let normal = (input[index] - mean) * inverse;
            let before = normal * gain[channel] + offset[channel];
            let slope = before_activation(gradient[index], before, activated);
            for_input[index] = (gain[channel] * slope - plain - normal * scaled) * inverse;
        }
    }
    if with_parameters {
        let channel = (group - min(group, rows * groups)) * units + UNIT_POS as usize;
        if group >= rows * groups && channel < channels {
            let mut plain = 0.0f32;
            let mut scaled = 0.0f32;
            for row in 0..rows {
                plain += plain_sums[row * channels + channel];
                scaled += scaled_sums[row * channels + channel];
            }
            let for_gain = &mut for_parameters[0];
            for_gain[channel] = scaled;
            let for_offset = &mut for_parameters[1];
            for_offset[channel] = plain;
        }
    }
}
