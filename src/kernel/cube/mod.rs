//! The kernels in CubeCL, for wgpu and CUDA: one pass over the elements that leaves a sum for each
//! block of a row, and one pass over these sums.

mod loss;
mod mixture;

use ::burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
// `#[cube]` writes paths that begin with `cubecl`.
use burn_cubecl::cubecl::{self, calculate_cube_count_elemwise};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// Elements of a row that one cube processes.
const BLOCK: usize = 4096;

/// Most units of a cube: with this number each unit processes 16 elements, and a tree adds their
/// results.
const UNITS: u32 = 256;

/// How the rows of a batch are distributed over cubes.
struct Deal {
    client: Client,
    rows: usize,
    /// Elements of a row.
    elements: usize,
    /// Blocks of a row.
    blocks: usize,
    units: u32,
}

impl Deal {
    fn new(batch: &CubeTensor, rows: usize) -> Self {
        let client = batch.client.clone();
        let elements = batch.meta.num_elements() / rows;
        let units = UNITS.min(client.properties().hardware.max_units_per_cube);
        Self {
            client,
            rows,
            elements,
            blocks: elements.div_ceil(BLOCK),
            units: 1 << units.max(1).ilog2(),
        }
    }

    /// At least `count` cubes, in as many dimensions as the device needs.
    fn cubes(&self, count: usize) -> CubeCount {
        let dimensions = CubeDim::new_1d(self.units);
        calculate_cube_count_elemwise(&self.client, count * self.units as usize, dimensions)
    }

    /// Allocates a sum for each block.
    fn block_sums(&self, batch: &CubeTensor) -> CubeTensor {
        empty_like(batch, Shape::from([self.rows * self.blocks]))
    }

    /// Sums over the blocks of each row.
    fn row_sums(&self, sums: CubeTensor) -> CubeTensor {
        let of_rows = empty_like(&sums, Shape::from([self.rows]));
        row_sums::launch(
            &self.client,
            self.cubes(self.rows),
            CubeDim::new_1d(self.units),
            sums.required_address_type(),
            sums.into_buffer_arg(),
            of_rows.clone().into_buffer_arg(),
            self.blocks,
            self.units as usize,
        );
        of_rows
    }
}

/// Allocates a tensor on the same device.
fn empty_like(tensor: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

/// One cube per row: the sum over its blocks.
#[cube(launch, address_type = "dynamic")]
fn row_sums(sums: &[f32], of_rows: &mut [f32], blocks: usize, #[comptime] units: usize) {
    let row = CUBE_POS;
    if row < of_rows.len() {
        let mut sum = 0.0f32;
        for block in range_stepped(UNIT_POS as usize, blocks, units) {
            sum += sums[row * blocks + block];
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            of_rows[row] = sum;
        }
    }
}

/// Sums over the units of a cube, whose number is a power of two, by halves: the order is always
/// the same.
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
