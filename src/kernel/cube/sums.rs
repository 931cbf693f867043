//! Sums over positions and over rows on the GPU, by a cube for each result, or by a unit if that
//! keeps the GPU busy.

use ::burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::gradients::buffers;
use super::{FEWEST_UNITS, Grid, empty_like, serial, sum_of_units};

/// Columns that keep a GPU busy with one unit each.
const MANY_COLUMNS: usize = 4096;

/// Most rows that one unit adds by itself.
pub(crate) const SERIAL_ROWS: usize = 1024;

/// Sums each tensor over its rows, all in one launch; a single row needs none.
///
/// # Shapes
/// - `parts`: `[rows · columns]`, each with columns of its own
/// - the results: `[columns]`
pub(crate) fn sum_rows<const N: usize>(parts: [CubeTensor; N], rows: usize) -> [CubeTensor; N] {
    if rows == 1 {
        return parts;
    }
    let columns_of = |part: &CubeTensor| part.meta.num_elements() / rows;
    let totals = parts
        .each_ref()
        .map(|part| empty_like(part, Shape::from([columns_of(part)])));
    let columns: usize = parts.iter().map(columns_of).sum();
    let Some(address) = parts.iter().map(CubeTensor::required_address_type).max() else {
        return totals;
    };
    let by_units = by_units(columns, rows);
    let grid = Grid::new(&parts[0], if by_units { columns } else { rows });
    let cubes = match by_units {
        true => columns.div_ceil(grid.units as usize),
        false => columns,
    };
    let [parts, results] = [parts, totals.clone()].map(|tensors| buffers(tensors.into()));
    let (client, count, dimensions) = (&grid.client, grid.cubes(cubes), grid.dimensions());
    if by_units {
        serial::note("rows_by_units", rows);
        rows_by_units::launch(client, count, dimensions, address, parts, results, rows);
    } else {
        let units = grid.units as usize;
        serial::note("rows_by_cubes", rows.div_ceil(units));
        rows_by_cubes::launch(
            client, count, dimensions, address, parts, results, rows, units,
        );
    }
    totals
}

/// Whether units sum one column each, instead of cubes.
fn by_units(columns: usize, rows: usize) -> bool {
    rows <= FEWEST_UNITS || (columns >= MANY_COLUMNS && rows <= SERIAL_ROWS)
}

/// The gradient of a bias, from that of `[rows, channels, positions]`: `[channels]`.
pub(crate) fn sum_positions_and_rows(gradient: CubeTensor) -> CubeTensor {
    let gradient = into_contiguous(gradient);
    let shape = gradient.meta.shape();
    let (rows, channels) = (shape[0], shape[1]);
    let positions = gradient.meta.num_elements() / (rows * channels);
    let sums = empty_like(&gradient, Shape::from([rows * channels]));
    let grid = Grid::new(&gradient, positions);
    serial::note("position_sums", positions.div_ceil(grid.units as usize));
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
    let [sums] = sum_rows([sums], rows);
    sums
}

/// One cube per column.
#[cube(launch, address_type = "dynamic")]
fn rows_by_cubes(
    parts: &Sequence<Box<[f32]>>,
    totals: &mut Sequence<Box<[f32]>>,
    rows: usize,
    #[comptime] units: usize,
) {
    let mut sum = 0.0f32;
    let mut before = 0usize;
    #[unroll]
    for part in 0..parts.len() {
        let columns = totals[part].len();
        if CUBE_POS >= before && CUBE_POS < before + columns {
            let column = CUBE_POS - before;
            for row in range_stepped(UNIT_POS as usize, rows, units) {
                sum += parts[part][row * columns + column];
            }
        }
        before += columns;
    }
    let sum = sum_of_units(sum, units);
    let mut before = 0usize;
    #[unroll]
    for part in 0..parts.len() {
        let columns = totals[part].len();
        if UNIT_POS == 0 && CUBE_POS >= before && CUBE_POS < before + columns {
            let of_part = &mut totals[part];
            of_part[CUBE_POS - before] = sum;
        }
        before += columns;
    }
}

/// One unit per column, so that neighbouring units read neighbouring numbers.
#[cube(launch, address_type = "dynamic")]
fn rows_by_units(parts: &Sequence<Box<[f32]>>, totals: &mut Sequence<Box<[f32]>>, rows: usize) {
    let mut before = 0usize;
    #[unroll]
    for part in 0..parts.len() {
        let columns = totals[part].len();
        if ABSOLUTE_POS >= before && ABSOLUTE_POS < before + columns {
            let column = ABSOLUTE_POS - before;
            let mut sum = 0.0f32;
            for row in 0..rows {
                sum += parts[part][row * columns + column];
            }
            let of_part = &mut totals[part];
            of_part[column] = sum;
        }
        before += columns;
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
