//! The mixture draw on the GPU, in CubeCL.

use ::burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{BLOCK, Deal, empty_like, serial, sum_of_units};
use crate::kernel::fused::{MixtureKernel, ROW_NUMBERS};

impl MixtureKernel for CubeBackend {
    fn mixture_draw(
        retain: CubeTensor,
        forget: CubeTensor,
        noise: CubeTensor,
        rows: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let inputs = [retain, forget, noise, rows].map(into_contiguous);
        let [retain, forget, noise, rows] = inputs;
        let deal = Deal::new(&noise, rows.meta.num_elements() / ROW_NUMBERS);
        let outputs = [(); 3].map(|()| empty_like(&noise, noise.shape()));
        let [noisy, retain_noise, forget_noise] = outputs;
        let sums = deal.block_sums(&noise);
        serial::note("explained", deal.serial());
        explained::launch(
            &deal.grid.client,
            deal.grid.cubes(deal.rows * deal.blocks),
            deal.grid.dimensions(),
            noise.required_address_type(),
            retain.into_buffer_arg(),
            forget.into_buffer_arg(),
            noise.into_buffer_arg(),
            rows.into_buffer_arg(),
            noisy.clone().into_buffer_arg(),
            retain_noise.clone().into_buffer_arg(),
            forget_noise.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            deal.elements,
            deal.grid.units as usize,
        );
        (noisy, retain_noise, forget_noise, deal.row_sums(sums))
    }
}

/// One cube per block of a row: its noisy point, the noise that explains it from either side, and
/// the block's part of the log-ratio.
#[cube(launch, address_type = "dynamic")]
fn explained(
    retain: &[f32],
    forget: &[f32],
    noise: &[f32],
    rows: &[f32],
    noisy: &mut [f32],
    retain_noise: &mut [f32],
    forget_noise: &mut [f32],
    sums: &mut [f32],
    elements: usize,
    #[comptime] units: usize,
) {
    let block = CUBE_POS;
    if block < sums.len() {
        let blocks = elements.div_ceil(BLOCK);
        let (row, count) = (block / blocks, sums.len() / blocks);
        let first = block % blocks * BLOCK + UNIT_POS as usize;
        let end = min(block % blocks * BLOCK + BLOCK, elements);
        let signal = rows[row];
        let sigma = rows[count + row];
        let ratio = rows[2 * count + row];
        let from_forget = rows[3 * count + row];
        let from_retain = 1.0f32 - from_forget;
        let mut sum = 0.0f32;
        for index in range_stepped(first, end, units) {
            let element = row * elements + index;
            let (x, a, drawn) = (retain[element], forget[element], noise[element]);
            let difference = (a - x) * ratio;
            let of_retain = drawn + difference * from_forget;
            let of_forget = drawn - difference * from_retain;
            noisy[element] = (x * from_retain + a * from_forget) * signal + drawn * sigma;
            retain_noise[element] = of_retain;
            forget_noise[element] = of_forget;
            sum += (of_retain + of_forget) * difference * 0.5f32;
        }
        let sum = sum_of_units(sum, units);
        if UNIT_POS == 0 {
            sums[block] = sum;
        }
    }
}
