//! Adding a number to each channel, on the GPU.

use ::burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::kernel::cube::{Grid, empty_like, serial};

/// # Shapes
/// - `input` and the result: `[rows, channels, positions]`
/// - `bias`: `[channels]`
pub(super) fn add(input: CubeTensor, bias: CubeTensor) -> CubeTensor {
    let [input, bias] = [input, bias].map(into_contiguous);
    let (channels, elements) = (bias.meta.num_elements(), input.meta.num_elements());
    let positions = input.meta.shape()[2];
    let grid = Grid::new(&input, elements);
    let output = empty_like(&input, input.shape());
    serial::note("shift", 0);
    shift::launch(
        &grid.client,
        grid.cubes(elements.div_ceil(grid.units as usize)),
        grid.dimensions(),
        input.required_address_type(),
        input.into_buffer_arg(),
        bias.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        channels,
        positions,
    );
    output
}

/// One unit per element.
#[cube(launch, address_type = "dynamic")]
fn shift(input: &[f32], bias: &[f32], output: &mut [f32], channels: usize, positions: usize) {
    if ABSOLUTE_POS < output.len() {
        let channel = ABSOLUTE_POS / positions % channels;
        output[ABSOLUTE_POS] = input[ABSOLUTE_POS] + bias[channel];
    }
}
