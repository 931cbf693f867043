//! A step of AdamW on the GPU, in CubeCL: one launch per group of parameters.

use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::gradients::{
    address_type, block_of_cube, blocks, buffers, contiguous, empty_each, filled, together,
};
use super::{BLOCK, Grid, serial};
use crate::kernel::fused::{AdamWKernel, AdamWNumbers, Group};

/// Tensors that a step reads or writes for each parameter.
const TENSORS: usize = 7;

impl AdamWKernel for CubeBackend {
    fn adamw_steps(
        parameters: Group<Self>,
        gradients: Group<Self>,
        moments_1: Group<Self>,
        moments_2: Group<Self>,
        count: usize,
        numbers: AdamWNumbers,
    ) -> (Group<Self>, Group<Self>, Group<Self>) {
        let inputs = [parameters, gradients, moments_1, moments_2];
        let inputs = inputs.map(|group| contiguous(group, count));
        let outputs = [(); 3].map(|()| empty_each(&inputs[0]));
        let together = together(&inputs[0][0], TENSORS);
        for first in (0..count).step_by(together) {
            let range = first..count.min(first + together);
            let parameters = &inputs[0][range.clone()];
            let grid = Grid::new(&parameters[0], BLOCK);
            let arguments = inputs.iter().chain(&outputs);
            let mut arguments = arguments.map(|tensors| buffers(tensors[range.clone()].to_vec()));
            let mut next = || arguments.next().unwrap_or_else(SequenceArg::new);
            serial::note("update", 0);
            update::launch(
                &grid.client,
                grid.cubes(blocks(parameters)),
                grid.dimensions(),
                address_type(parameters),
                next(),
                next(),
                next(),
                next(),
                next(),
                next(),
                next(),
                numbers.beta_1,
                numbers.beta_2,
                1.0 - numbers.beta_1,
                1.0 - numbers.beta_2,
                numbers.correction_1,
                numbers.correction_2,
                numbers.epsilon,
                numbers.keep,
                numbers.rate,
                grid.units as usize,
            );
        }
        let [parameters, moments_1, moments_2] = outputs.map(filled);
        (parameters, moments_1, moments_2)
    }
}

/// One cube per block of [`BLOCK`] elements, in the order of burn's operations.
#[cube(launch, address_type = "dynamic")]
fn update(
    parameters: &Sequence<Box<[f32]>>,
    gradients: &Sequence<Box<[f32]>>,
    moments_1: &Sequence<Box<[f32]>>,
    moments_2: &Sequence<Box<[f32]>>,
    new_parameters: &mut Sequence<Box<[f32]>>,
    new_moments_1: &mut Sequence<Box<[f32]>>,
    new_moments_2: &mut Sequence<Box<[f32]>>,
    beta_1: f32,
    beta_2: f32,
    rest_1: f32,
    rest_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    keep: f32,
    rate: f32,
    #[comptime] units: usize,
) {
    let mut before = 0usize;
    #[unroll]
    for part in 0..parameters.len() {
        let elements = parameters[part].len();
        let (start, end) = block_of_cube(elements, before);
        let new_parameter = &mut new_parameters[part];
        let new_1 = &mut new_moments_1[part];
        let new_2 = &mut new_moments_2[part];
        for index in range_stepped(start + UNIT_POS as usize, end, units) {
            let slope = gradients[part][index];
            let first = moments_1[part][index] * beta_1 + slope * rest_1;
            let second = moments_2[part][index] * beta_2 + slope * slope * rest_2;
            let change = first / correction_1 / ((second / correction_2).sqrt() + epsilon);
            new_1[index] = first;
            new_2[index] = second;
            new_parameter[index] = parameters[part][index] * keep - change * rate;
        }
        before += elements.div_ceil(BLOCK);
    }
}
