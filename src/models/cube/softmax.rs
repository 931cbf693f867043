//! The softmax of attention weights on the GPU, one kernel each way.

use ::burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::kernel::cube::{Grid, empty_like, largest_of_units, serial, sum_of_units};

/// `exp(s x − max s x) / Σ exp(s x − max s x)` over the last axis, with the scale `s`.
pub(super) fn forward(scores: CubeTensor, scale: f32) -> CubeTensor {
    let scores = into_contiguous(scores);
    let size = scores.meta.shape()[scores.meta.num_dims() - 1];
    let rows = scores.meta.num_elements() / size;
    let grid = Grid::new(&scores, size);
    let weights = empty_like(&scores, scores.shape());
    serial::note("softmax", size.div_ceil(grid.units as usize));
    softmax::launch(
        &grid.client,
        grid.cubes(rows),
        grid.dimensions(),
        scores.required_address_type(),
        scores.into_buffer_arg(),
        weights.clone().into_buffer_arg(),
        rows,
        size,
        scale,
        grid.units as usize,
    );
    weights
}

/// `s p (g − Σ p g)`, from the weights `p` and their gradient `g`.
pub(super) fn backward(weights: CubeTensor, gradient: CubeTensor, scale: f32) -> CubeTensor {
    let [weights, gradient] = [weights, gradient].map(into_contiguous);
    let size = weights.meta.shape()[weights.meta.num_dims() - 1];
    let rows = weights.meta.num_elements() / size;
    let grid = Grid::new(&weights, size);
    let for_scores = empty_like(&weights, weights.shape());
    serial::note("softmax_gradient", size.div_ceil(grid.units as usize));
    softmax_gradient::launch(
        &grid.client,
        grid.cubes(rows),
        grid.dimensions(),
        weights.required_address_type(),
        weights.into_buffer_arg(),
        gradient.into_buffer_arg(),
        for_scores.clone().into_buffer_arg(),
        rows,
        size,
        scale,
        grid.units as usize,
    );
    for_scores
}

/// One cube per row.
#[cube(launch, address_type = "dynamic")]
fn softmax(
    scores: &[f32],
    weights: &mut [f32],
    rows: usize,
    size: usize,
    scale: f32,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row < rows {
        let (start, unit) = (row * size, UNIT_POS as usize);
        let mut largest = scores[start] * scale;
        for index in range_stepped(unit, size, units) {
            largest = max(largest, scores[start + index] * scale);
        }
        let largest = largest_of_units(largest, units);
        let mut sum = 0.0f32;
        for index in range_stepped(unit, size, units) {
            sum += (scores[start + index] * scale - largest).exp();
        }
        let sum = sum_of_units(sum, units);
        for index in range_stepped(unit, size, units) {
            weights[start + index] = (scores[start + index] * scale - largest).exp() / sum;
        }
    }
}

/// One cube per row.
#[cube(launch, address_type = "dynamic")]
fn softmax_gradient(
    weights: &[f32],
    gradient: &[f32],
    for_scores: &mut [f32],
    rows: usize,
    size: usize,
    scale: f32,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row < rows {
        let (start, unit) = (row * size, UNIT_POS as usize);
        let mut sum = 0.0f32;
        for index in range_stepped(unit, size, units) {
            sum += weights[start + index] * gradient[start + index];
        }
        let sum = sum_of_units(sum, units);
        for index in range_stepped(unit, size, units) {
            let slope = gradient[start + index] - sum;
            for_scores[start + index] = weights[start + index] * slope * scale;
        }
    }
}
