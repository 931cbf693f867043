//! Sums over positions and over rows on the GPU, by a cube for each result, or by a unit if that
//! keeps the GPU busy.

use ::burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{FEWEST_UNITS, Grid, empty_like, sum_of_units};

/// Columns that keep a GPU busy with one unit each.
const MANY_COLUMNS: usize = 4096;

/// Most rows that one unit adds by itself.
const SERIAL_ROWS: usize = 1024;

/// Sums a tensor of `first + second` columns over its rows, into its first columns and its others.
///
/// There may be no others; the second result then has one element without meaning.
pub(crate) fn sum_rows(sums: CubeTensor, first: usize, second: usize) -> (CubeTensor, CubeTensor) {
    let columns = first + second;
    let rows = sums.meta.num_elements() / columns;
    let [of_first, of_second] =
        [first, second].map(|size| empty_like(&sums, Shape::from([size.max(1)])));
    let is_wide = columns >= MANY_COLUMNS && rows <= SERIAL_ROWS;
    if is_wide || rows <= FEWEST_UNITS {
        let grid = Grid::new(&sums, columns);
        columns_of_two::launch(
            &grid.client,
            grid.cubes(columns.div_ceil(grid.units as usize)),
            grid.dimensions(),
            sums.required_address_type(),
            sums.into_buffer_arg(),
            of_first.clone().into_buffer_arg(),
            of_second.clone().into_buffer_arg(),
            rows,
            first,
            columns,
        );
        return (of_first, of_second);
    }
    let grid = Grid::new(&sums, rows);
    rows_of_two::launch(
        &grid.client,
        grid.cubes(columns),
        grid.dimensions(),
        sums.required_address_type(),
        sums.into_buffer_arg(),
        of_first.clone().into_buffer_arg(),
        of_second.clone().into_buffer_arg(),
        rows,
        first,
        columns,
        grid.units as usize,
    );
    (of_first, of_second)
}

/// The gradient of a bias, from that of `[rows, channels, positions]`: `[channels]`.
pub(crate) fn sum_positions_and_rows(gradient: CubeTensor) -> CubeTensor {
    let gradient = into_contiguous(gradient);
    let shape = gradient.meta.shape();
    let (rows, channels) = (shape[0], shape[1]);
    let positions = gradient.meta.num_elements() / (rows * channels);
    let sums = empty_like(&gradient, Shape::from([rows * channels]));
    let grid = Grid::new(&gradient, positions);
    position_sums::launch(
        &grid.client,
        grid.cubes(rows * channels),
        grid.dimensions(),
        gradient.required_address_type(),
        gradient.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        positions,
        grid.units as usize,
    );
    match rows {
        1 => sums,
        _ => sum_rows(sums, channels, 0).0,
    }
}

/// One cube per column.
#[cube(launch, address_type = "dynamic")]
fn rows_of_two(
    sums: &[f32],
    of_first: &mut [f32],
    of_second: &mut [f32],
    rows: usize,
    first: usize,
    columns: usize,
    #[comptime] units: usize,
) {
    let column = CUBE_POS;
    if column < columns {
        let mut sum = 0.0f32;
        for row in range_stepped(UNIT_POS as usize, rows, units) {
            sum += sums[row * columns + column];
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            if column < first {
                of_first[column] = sum;
            } else {
                of_second[column - first] = sum;
            }
        }
    }
}

/// One unit per column, so that neighbouring units read neighbouring numbers.
#[cube(launch, address_type = "dynamic")]
fn columns_of_two(
    sums: &[f32],
    of_first: &mut [f32],
    of_second: &mut [f32],
    rows: usize,
    first: usize,
    columns: usize,
) {
    let column = ABSOLUTE_POS;
    if column < columns {
        let mut sum = 0.0f32;
        for row in 0..rows {
            sum += sums[row * columns + column];
        }
        if column < first {
            of_first[column] = sum;
        } else {
            of_second[column - first] = sum;
        }
    }
}

/// One cube per row and channel.
#[cube(launch, address_type = "dynamic")]
fn position_sums(values: &[f32], sums: &mut [f32], positions: usize, #[comptime] units: usize) {
    let map = CUBE_POS;
    if map < sums.len() {
        let mut sum = 0.0f32;
        for position in range_stepped(UNIT_POS as usize, positions, units) {
            sum += values[map * positions + position];
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            sums[map] = sum;
        }
    }
}
