//! Losses and seed on the GPU, in CubeCL.

use ::burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{BLOCK, Deal, empty_like, serial, sum_of_units};
use crate::kernel::fused::LossKernel;

impl LossKernel for CubeBackend {
    fn losses_and_seed(
        prediction: CubeTensor,
        target: CubeTensor,
        weights: CubeTensor,
        scale: f32,
    ) -> (CubeTensor, CubeTensor) {
        let [prediction, target, weights] = [prediction, target, weights].map(into_contiguous);
        let deal = Deal::new(&prediction, weights.meta.num_elements());
        let seed = empty_like(&prediction, prediction.shape());
        let sums = deal.block_sums(&prediction);
        serial::note("squared_errors", deal.serial());
        squared_errors::launch(
            &deal.grid.client,
            deal.grid.cubes(deal.rows * deal.blocks),
            deal.grid.dimensions(),
            prediction.required_address_type(),
            prediction.into_buffer_arg(),
            target.into_buffer_arg(),
            weights.into_buffer_arg(),
            seed.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            scale,
            deal.elements,
            deal.grid.units as usize,
        );
        (deal.row_sums(sums), seed)
    }
}

/// One cube per block of a row: the seed `scale · w (ŷ − target)`, and the sum of `(ŷ − target)²`.
#[cube(launch, address_type = "dynamic")]
fn squared_errors(
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
