//! The kernels in CubeCL, for wgpu and CUDA. Sums take two passes: one over the elements that
//! leaves a sum for each block of a row, and one over these sums.

mod adamw;
pub(crate) mod gradients;
mod loss;
mod mixture;
pub(crate) mod serial;
pub(crate) mod sums;
#[cfg(test)]
mod tests;

use ::burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
// `#[cube]` writes paths that begin with `cubecl`.
use burn_cubecl::cubecl::{self, calculate_cube_count_elemwise};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// Elements of a row that one cube processes.
pub(crate) const BLOCK: usize = 4096;

/// Most units of a cube: with this number each unit processes 16 elements, and a tree adds their
/// results.
const UNITS: u32 = 256;

/// Fewest units of a cube: less leaves parts of a plane idle on every GPU.
const FEWEST_UNITS: usize = 32;

/// The cubes of a kernel that works on one row of numbers per cube.
pub(crate) struct Grid {
    pub(crate) client: Client,
    /// Units of a cube, a power of two.
    pub(crate) units: u32,
}

impl Grid {
    /// For rows of `elements` numbers each.
    pub(crate) fn new(tensor: &CubeTensor, elements: usize) -> Self {
        let client = tensor.client.clone();
        let wanted = elements.next_power_of_two();
        let wanted = wanted.clamp(FEWEST_UNITS, UNITS as usize) as u32;
        let units = wanted.min(client.properties().hardware.max_units_per_cube);
        Self {
            client,
            units: 1 << units.max(1).ilog2(),
        }
    }

    /// At least `count` cubes, in as many dimensions as the device needs.
    pub(crate) fn cubes(&self, count: usize) -> CubeCount {
        cubes(&self.client, count, self.units)
    }

    pub(crate) fn dimensions(&self) -> CubeDim {
        CubeDim::new_1d(self.units)
    }
}

/// At least `count` cubes of `units` each, in as many dimensions as the device needs.
pub(crate) fn cubes(client: &Client, count: usize, units: u32) -> CubeCount {
    calculate_cube_count_elemwise(client, count * units as usize, CubeDim::new_1d(units))
}

/// How the rows of a batch are distributed over cubes.
struct Deal {
    grid: Grid,
    rows: usize,
    /// Elements of a row.
    elements: usize,
    /// Blocks of a row.
    blocks: usize,
}

impl Deal {
    fn new(batch: &CubeTensor, rows: usize) -> Self {
        let elements = batch.meta.num_elements() / rows;
        Self {
            grid: Grid::new(batch, BLOCK),
            rows,
            elements,
            blocks: elements.div_ceil(BLOCK),
        }
    }

    /// Allocates a sum for each block.
    fn block_sums(&self, batch: &CubeTensor) -> CubeTensor {
        empty_like(batch, Shape::from([self.rows * self.blocks]))
    }

    /// How many numbers of a block a unit adds.
    fn serial(&self) -> usize {
        self.elements.min(BLOCK).div_ceil(self.grid.units as usize)
    }

    /// Sums over the blocks of each row.
    fn row_sums(&self, sums: CubeTensor) -> CubeTensor {
        let of_rows = empty_like(&sums, Shape::from([self.rows]));
        serial::note("row_sums", self.blocks.div_ceil(self.grid.units as usize));
        row_sums::launch(
            &self.grid.client,
            self.grid.cubes(self.rows),
            self.grid.dimensions(),
            sums.required_address_type(),
            sums.into_buffer_arg(),
            of_rows.clone().into_buffer_arg(),
            self.blocks,
            self.grid.units as usize,
        );
        of_rows
    }
}

/// Allocates a tensor on the same device.
pub(crate) fn empty_like(tensor: &CubeTensor, shape: Shape) -> CubeTensor {
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
pub(crate) fn sum_of_units(value: f32, #[comptime] units: usize) -> f32 {
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

/// The largest value of the units of a cube, whose number is a power of two.
#[cube]
pub(crate) fn largest_of_units(value: f32, #[comptime] units: usize) -> f32 {
    let mut partial = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    partial[unit] = value;
    sync_cube();
    let mut half = CUBE_DIM as usize;
    while half > 1 {
        half /= 2;
        if unit < half {
            let other = partial[unit + half];
            partial[unit] = max(partial[unit], other);
        }
        sync_cube();
    }
    partial[0]
}
