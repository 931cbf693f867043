//! The loss and the mixture draw on the CPU, in one pass each.
//!
//! Results depend on the processor's instructions, not on the number of threads.

mod loss;
mod mixture;

#[cfg(test)]
mod tests;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Shape, TensorData};

/// The numbers of a contiguous `f32` tensor.
pub(crate) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

/// Creates a tensor of `f32` numbers.
pub(crate) fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new::<f32, Shape>(numbers, shape.into()))
}
