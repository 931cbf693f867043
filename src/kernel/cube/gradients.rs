//! Products, sums and checks of whole gradients on the GPU: one launch per group of parameters, and
//! one that adds what they left.

use ::burn::backend::TensorMetadata;
use ::burn::backend::ops::FloatTensorOps;
use ::burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::sums::sum_rows;
use super::{BLOCK, Grid, empty_like, serial, sum_of_units};
use crate::kernel::fused::{GROUP, GradientKernel, Group, PRODUCTS};

/// The bits of the exponent; all are set in NaN and in infinities.
const EXPONENT: u32 = 0x7f80_0000;

impl GradientKernel for CubeBackend {
    fn note_products(
        sums: CubeTensor,
        retain: Group<Self>,
        forget: Group<Self>,
        count: usize,
        first_block: usize,
    ) -> CubeTensor {
        let [retain, forget] = [retain, forget].map(|group| contiguous(group, count));
        let sums = own(sums);
        let mut first_block = first_block;
        let pairs: Vec<_> = retain.into_iter().zip(forget).collect();
        for pairs in pairs.chunks(together(&sums, 2)) {
            let (retain, forget): (Vec<_>, Vec<_>) = pairs.iter().cloned().unzip();
            let blocks = blocks(&retain);
            let grid = Grid::new(&sums, BLOCK);
            serial::note("products", BLOCK.div_ceil(grid.units as usize));
            products::launch(
                &grid.client,
                grid.cubes(blocks),
                grid.dimensions(),
                address_type(&retain),
                buffers(retain),
                buffers(forget),
                sums.clone().into_buffer_arg(),
                first_block,
                grid.units as usize,
            );
            first_block += blocks;
        }
        sums
    }

    fn note_non_finite(
        sums: CubeTensor,
        values: Group<Self>,
        count: usize,
        first_block: usize,
    ) -> CubeTensor {
        let values = contiguous(values, count);
        let sums = own(sums);
        let mut first_block = first_block;
        for values in values.chunks(together(&sums, 1)) {
            let blocks = blocks(values);
            let grid = Grid::new(&sums, BLOCK);
            serial::note("non_finite", BLOCK.div_ceil(grid.units as usize));
            non_finite::launch(
                &grid.client,
                grid.cubes(blocks),
                grid.dimensions(),
                address_type(values),
                buffers(values.to_vec()),
                sums.clone().into_buffer_arg(),
                first_block,
                grid.units as usize,
            );
            first_block += blocks;
        }
        sums
    }

    fn sum_blocks(sums: CubeTensor) -> CubeTensor {
        let shape = sums.meta.shape();
        let (rows, columns) = (shape[0], shape[1]);
        let [sums] = sum_rows([sums], rows);
        Self::float_reshape(sums, Shape::from([columns]))
    }

    fn scaled_sums(
        retain: Group<Self>,
        forget: Group<Self>,
        count: usize,
        of_retain: f32,
        of_forget: f32,
    ) -> Group<Self> {
        let [retain, forget] = [retain, forget].map(|group| contiguous(group, count));
        let sums = empty_each(&retain);
        let together = together(&retain[0], 3);
        let parts = retain.chunks(together).zip(forget.chunks(together));
        for ((retain, forget), sums) in parts.zip(sums.chunks(together)) {
            let grid = Grid::new(&retain[0], BLOCK);
            serial::note("combine", 0);
            combine::launch(
                &grid.client,
                grid.cubes(blocks(retain)),
                grid.dimensions(),
                address_type(retain),
                buffers(retain.to_vec()),
                buffers(forget.to_vec()),
                buffers(sums.to_vec()),
                of_retain,
                of_forget,
                grid.units as usize,
            );
        }
        filled(sums)
    }
}

/// The first `count` tensors of a group.
pub(super) fn contiguous(group: Group<CubeBackend>, count: usize) -> Vec<CubeTensor> {
    let tensors = group.into_tensors().into_iter().take(count);
    tensors.map(into_contiguous).collect()
}

/// Allocates a tensor for each of the tensors.
pub(crate) fn empty_each(tensors: &[CubeTensor]) -> Vec<CubeTensor> {
    let empty = |tensor: &CubeTensor| empty_like(tensor, tensor.shape());
    tensors.iter().map(empty).collect()
}

/// A group of these tensors, of which there is at least one.
pub(super) fn filled(tensors: Vec<CubeTensor>) -> Group<CubeBackend> {
    let tensor = |index: usize| tensors.get(index).unwrap_or(&tensors[0]).clone();
    Group::new(std::array::from_fn(tensor))
}

/// How many parameters one launch takes that binds `tensors` of each, and one more.
pub(super) fn together(tensor: &CubeTensor, tensors: usize) -> usize {
    let bindings = tensor.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(1) / tensors).clamp(1, GROUP)
}

/// Blocks of all parameters.
pub(super) fn blocks(tensors: &[CubeTensor]) -> usize {
    let blocks = |tensor: &CubeTensor| tensor.meta.num_elements().div_ceil(BLOCK);
    tensors.iter().map(blocks).sum()
}

pub(crate) fn buffers(tensors: Vec<CubeTensor>) -> SequenceArg<Box<[f32]>> {
    tensors
        .into_iter()
        .map(CubeTensor::into_buffer_arg)
        .collect()
}

/// The one that reaches every element of every tensor.
pub(super) fn address_type(tensors: &[CubeTensor]) -> AddressType {
    let types = tensors.iter().map(CubeTensor::required_address_type);
    types.max().unwrap_or_default()
}

/// A tensor whose memory nothing else refers to.
fn own(tensor: CubeTensor) -> CubeTensor {
    if tensor.can_mut() {
        tensor
    } else {
        tensor.copy()
    }
}

/// Where the block of this cube begins and ends in a parameter of `elements`, which has its blocks
/// after `before` others; nowhere, if the block is another parameter's.
#[cube]
pub(super) fn block_of_cube(elements: usize, before: usize) -> (usize, usize) {
    let mut start = 0usize;
    let mut end = 0usize;
    if CUBE_POS >= before && CUBE_POS < before + elements.div_ceil(BLOCK) {
        start = (CUBE_POS - before) * BLOCK;
        end = min(start + BLOCK, elements);
    }
    (start, end)
}

/// One cube per block: the sums of `a a`, `b b` and `a b`.
#[cube(launch, address_type = "dynamic")]
fn products(
    retain: &Sequence<Box<[f32]>>,
    forget: &Sequence<Box<[f32]>>,
    sums: &mut [f32],
    first_block: usize,
    #[comptime] units: usize,
) {
    let mut of_retain = 0.0f32;
    let mut of_forget = 0.0f32;
    let mut of_both = 0.0f32;
    let mut before = 0usize;
    #[unroll]
    for part in 0..retain.len() {
        let elements = retain[part].len();
        let (start, end) = block_of_cube(elements, before);
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            let (a, b) = (retain[part][index], forget[part][index]);
            of_retain += a * a;
            of_forget += b * b;
            of_both += a * b;
        }
        before += elements.div_ceil(BLOCK);
    }
    let of_retain = sum_of_units(of_retain, units);
    let of_forget = sum_of_units(of_forget, units);
    let of_both = sum_of_units(of_both, units);
    if UNIT_POS == 0 && CUBE_POS < before {
        let block = (first_block + CUBE_POS) * PRODUCTS;
        sums[block] = of_retain;
        sums[block + 1] = of_forget;
        sums[block + 2] = of_both;
    }
}

/// One cube per block: how many of its numbers are NaN or infinite.
///
/// By the bits: shader compilers may assume that neither occurs.
#[cube(launch, address_type = "dynamic")]
fn non_finite(
    values: &Sequence<Box<[f32]>>,
    sums: &mut [f32],
    first_block: usize,
    #[comptime] units: usize,
) {
    let mut sum = 0.0f32;
    let mut before = 0usize;
    #[unroll]
    for part in 0..values.len() {
        let elements = values[part].len();
        let (start, end) = block_of_cube(elements, before);
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            if u32::reinterpret(values[part][index]) & EXPONENT == EXPONENT {
                sum += 1.0f32;
            }
        }
        before += elements.div_ceil(BLOCK);
    }
    let sum = sum_of_units(sum, units);
    if UNIT_POS == 0 && CUBE_POS < before {
        sums[first_block + CUBE_POS] = sum;
    }
}

/// One cube per block of [`BLOCK`] elements.
#[cube(launch, address_type = "dynamic")]
fn combine(
    retain: &Sequence<Box<[f32]>>,
    forget: &Sequence<Box<[f32]>>,
    sums: &mut Sequence<Box<[f32]>>,
    of_retain: f32,
    of_forget: f32,
    #[comptime] units: usize,
) {
    let mut before = 0usize;
    #[unroll]
    for part in 0..retain.len() {
        let elements = retain[part].len();
        let (start, end) = block_of_cube(elements, before);
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            let sum = retain[part][index] * of_retain + forget[part][index] * of_forget;
            let of_part = &mut sums[part];
            of_part[index] = sum;
        }
        before += elements.div_ceil(BLOCK);
    }
}
