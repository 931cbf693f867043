//! A step of AdamW on the GPU, in CubeCL.

use ::burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::{Grid, empty_like};
use crate::kernel::fused::{AdamWKernel, AdamWNumbers};

/// Elements that a unit updates.
const PER_UNIT: usize = 4;

impl AdamWKernel for CubeBackend {
    fn adamw_step(
        parameter: CubeTensor,
        gradient: CubeTensor,
        moment_1: CubeTensor,
        moment_2: CubeTensor,
        numbers: AdamWNumbers,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let inputs = [parameter, gradient, moment_1, moment_2].map(into_contiguous);
        let [parameter, gradient, moment_1, moment_2] = inputs;
        let elements = parameter.meta.num_elements();
        let grid = Grid::new(&parameter, elements.div_ceil(PER_UNIT));
        let outputs = [(); 3].map(|()| empty_like(&parameter, parameter.shape()));
        let [new_parameter, new_1, new_2] = outputs;
        update::launch(
            &grid.client,
            grid.cubes(elements.div_ceil(PER_UNIT * grid.units as usize)),
            grid.dimensions(),
            parameter.required_address_type(),
            parameter.into_buffer_arg(),
            gradient.into_buffer_arg(),
            moment_1.into_buffer_arg(),
            moment_2.into_buffer_arg(),
            new_parameter.clone().into_buffer_arg(),
            new_1.clone().into_buffer_arg(),
            new_2.clone().into_buffer_arg(),
            numbers.beta_1,
            numbers.beta_2,
            1.0 - numbers.beta_1,
            1.0 - numbers.beta_2,
            numbers.correction_1,
            numbers.correction_2,
            numbers.epsilon,
            numbers.keep,
            numbers.rate,
            elements,
            grid.units as usize,
        );
        (new_parameter, new_1, new_2)
    }
}

/// One cube per block of [`PER_UNIT`] elements a unit, in the order of burn's operations.
#[cube(launch, address_type = "dynamic")]
fn update(
    parameter: &[f32],
    gradient: &[f32],
    moment_1: &[f32],
    moment_2: &[f32],
    new_parameter: &mut [f32],
    new_1: &mut [f32],
    new_2: &mut [f32],
    beta_1: f32,
    beta_2: f32,
    rest_1: f32,
    rest_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    keep: f32,
    rate: f32,
    elements: usize,
    #[comptime] units: usize,
) {
    let block = CUBE_POS * units * PER_UNIT;
    let end = min(block + units * PER_UNIT, elements);
    for index in range_stepped(block + UNIT_POS as usize, end, units) {
        let slope = gradient[index];
        let first = moment_1[index] * beta_1 + slope * rest_1;
        let second = moment_2[index] * beta_2 + slope * slope * rest_2;
        let change = first / correction_1 / ((second / correction_2).sqrt() + epsilon);
        new_1[index] = first;
        new_2[index] = second;
        new_parameter[index] = parameter[index] * keep - change * rate;
    }
}
