//! The loss kernel in CubeCL, for wgpu and CUDA.

use ::burn::backend::TensorMetadata;
use ::burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
// `#[cube]` writes paths that begin with `cubecl`.
use burn_cubecl::cubecl::{self, calculate_cube_count_elemwise};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::fused::LossKernel;

/// Elements of a row that one cube takes.
const BLOCK: usize = 4096;

/// The most units of a cube: each then adds 16 squares, and a tree adds what they found.
const UNITS: u32 = 256;

impl LossKernel for CubeBackend {
    fn losses_and_seed(
        prediction: CubeTensor,
        target: CubeTensor,
        weights: CubeTensor,
        scale: f32,
    ) -> (CubeTensor, CubeTensor) {
        let [prediction, target, weights] = [prediction, target, weights].map(into_contiguous);
        let client = prediction.client.clone();
        let rows = weights.meta.num_elements();
        let elements = prediction.meta.num_elements() / rows;
        let blocks = elements.div_ceil(BLOCK);
        let units = UNITS.min(client.properties().hardware.max_units_per_cube);
        let units = 1 << units.max(1).ilog2();
        let seed = empty_like(&prediction, prediction.shape());
        let sums = empty_like(&prediction, Shape::from([rows * blocks]));
        block_sums::launch(
            &client,
            cubes(&client, rows * blocks, units),
            CubeDim::new_1d(units),
            prediction.required_address_type(),
            prediction.into_buffer_arg(),
            target.into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            seed.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            scale,
            elements,
            units as usize,
        );
        let losses = empty_like(&weights, weights.shape());
        row_sums::launch(
            &client,
            cubes(&client, rows, units),
            CubeDim::new_1d(units),
            sums.required_address_type(),
            sums.into_buffer_arg(),
            losses.clone().into_buffer_arg(),
            blocks,
            units as usize,
        );
        (losses, seed)
    }
}

/// Memory of the same device.
fn empty_like(tensor: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

/// At least `count` cubes, in as many dimensions as the device needs for them.
fn cubes(client: &Client, count: usize, units: u32) -> CubeCount {
    calculate_cube_count_elemwise(client, count * units as usize, CubeDim::new_1d(units))
}

/// A cube for each block of a row: the seed `scale · w (ŷ − target)`, and the sum of `(ŷ − target)²`.
#[cube(launch, address_type = "dynamic")]
fn block_sums(
    prediction: &[f32],
    target: &[f32],
    weights: &[f32],
    seed: &mut [f32],
    sums: &mut [f32],
    scale: f32,
    elements: usize,
    #[comptime] units: usize,
) {
    let block = CUBE_POS;
    if block < sums.len() {
        let blocks = elements.div_ceil(BLOCK);
        let row = block / blocks;
        let first = block % blocks * BLOCK + UNIT_POS as usize;
        let end = min(block % blocks * BLOCK + BLOCK, elements);
        let factor = weights[row] * scale;
        let mut sum = 0.0f32;
        for index in range_stepped(first, end, units) {
            let element = row * elements + index;
            let difference = prediction[element] - target[element];
            seed[element] = difference * factor;
            sum += difference * difference;
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            sums[block] = sum;
        }
    }
}

/// A cube for each row: the sum over its blocks.
#[cube(launch, address_type = "dynamic")]
fn row_sums(sums: &[f32], losses: &mut [f32], blocks: usize, #[comptime] units: usize) {
    let row = CUBE_POS;
    if row < losses.len() {
        let mut sum = 0.0f32;
        for block in range_stepped(UNIT_POS as usize, blocks, units) {
            sum += sums[row * blocks + block];
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            losses[row] = sum;
        }
    }
}

/// The sum over the units of a cube, a power of two, by halves: the order is always the same.
#[cube]
fn sum_of_units(value: f32, #[comptime] units: usize) -> f32 {
    let mut partial = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    partial[unit] = value;
    sync_cube();
    let mut half = CUBE_DIM as usize;
    while half > 1 {
        half /= 2;
        if unit < half {
            let other = partial[unit + half];
            partial[unit] += other;
        }
        sync_cube();
    }
    partial[0]
}
