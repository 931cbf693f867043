//! Products, sums and checks of whole gradients on the GPU: one kernel per parameter, and one that
//! adds what they left.

use ::burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sums::sum_rows;
use super::{BLOCK, Grid, empty_like, sum_of_units};
use crate::kernel::fused::{GradientKernel, PRODUCTS};

/// The bits of the exponent; all are set in NaN and in infinities.
const EXPONENT: u32 = 0x7f80_0000;

impl GradientKernel for CubeBackend {
    fn note_products(
        sums: CubeTensor,
        retain: CubeTensor,
        forget: CubeTensor,
        first_block: usize,
    ) -> CubeTensor {
        let [retain, forget] = [retain, forget].map(into_contiguous);
        let sums = own(sums);
        let elements = retain.meta.num_elements();
        let grid = Grid::new(&retain, BLOCK);
        products::launch(
            &grid.client,
            grid.cubes(elements.div_ceil(BLOCK)),
            grid.dimensions(),
            retain.required_address_type(),
            retain.into_buffer_arg(),
            forget.into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            first_block,
            elements,
            grid.units as usize,
        );
        sums
    }

    fn note_non_finite(sums: CubeTensor, values: CubeTensor, first_block: usize) -> CubeTensor {
        let values = into_contiguous(values);
        let sums = own(sums);
        let elements = values.meta.num_elements();
        let grid = Grid::new(&values, BLOCK);
        non_finite::launch(
            &grid.client,
            grid.cubes(elements.div_ceil(BLOCK)),
            grid.dimensions(),
            values.required_address_type(),
            values.into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            first_block,
            elements,
            grid.units as usize,
        );
        sums
    }

    fn sum_blocks(sums: CubeTensor) -> CubeTensor {
        let columns = sums.meta.shape()[1];
        sum_rows(sums, columns, 0).0
    }

    fn scaled_sum(
        retain: CubeTensor,
        forget: CubeTensor,
        of_retain: f32,
        of_forget: f32,
    ) -> CubeTensor {
        let [retain, forget] = [retain, forget].map(into_contiguous);
        let elements = retain.meta.num_elements();
        let grid = Grid::new(&retain, elements);
        let sum = empty_like(&retain, retain.shape());
        combine::launch(
            &grid.client,
            grid.cubes(elements.div_ceil(grid.units as usize)),
            grid.dimensions(),
            retain.required_address_type(),
            retain.into_buffer_arg(),
            forget.into_buffer_arg(),
            sum.clone().into_buffer_arg(),
            of_retain,
            of_forget,
        );
        sum
    }
}

/// A tensor whose memory nothing else refers to.
fn own(tensor: CubeTensor) -> CubeTensor {
    if tensor.can_mut() {
        tensor
    } else {
        tensor.copy()
    }
}

/// One cube per block: the sums of `a a`, `b b` and `a b`.
#[cube(launch, address_type = "dynamic")]
fn products(
    retain: &[f32],
    forget: &[f32],
    sums: &mut [f32],
    first_block: usize,
    elements: usize,
    #[comptime] units: usize,
) {
    let start = CUBE_POS * BLOCK;
    if start < elements {
        let mut of_retain = 0.0f32;
        let mut of_forget = 0.0f32;
        let mut of_both = 0.0f32;
        let end = min(start + BLOCK, elements);
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            let (a, b) = (retain[index], forget[index]);
            of_retain += a * a;
            of_forget += b * b;
            of_both += a * b;
        }
        let of_retain = sum_of_units(of_retain, units);
        let of_forget = sum_of_units(of_forget, units);
        let of_both = sum_of_units(of_both, units);
        if UNIT_POS == 0 {
            let block = (first_block + CUBE_POS) * PRODUCTS;
            sums[block] = of_retain;
            sums[block + 1] = of_forget;
            sums[block + 2] = of_both;
        }
    }
}

/// One cube per block: how many of its numbers are NaN or infinite.
///
/// By the bits: shader compilers may assume that neither occurs.
#[cube(launch, address_type = "dynamic")]
fn non_finite(
    values: &[f32],
    sums: &mut [f32],
    first_block: usize,
    elements: usize,
    #[comptime] units: usize,
) {
    let start = CUBE_POS * BLOCK;
    if start < elements {
        let mut sum = 0.0f32;
        let end = min(start + BLOCK, elements);
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            if u32::reinterpret(values[index]) & EXPONENT == EXPONENT {
                sum += 1.0f32;
            }
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            sums[first_block + CUBE_POS] = sum;
        }
    }
}

/// One unit per element.
#[cube(launch, address_type = "dynamic")]
fn combine(retain: &[f32], forget: &[f32], sum: &mut [f32], of_retain: f32, of_forget: f32) {
    if ABSOLUTE_POS < sum.len() {
        sum[ABSOLUTE_POS] = retain[ABSOLUTE_POS] * of_retain + forget[ABSOLUTE_POS] * of_forget;
    }
}
