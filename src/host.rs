//! Transfers between host and device: row indices and numbers to tensors, tensors to numbers.
//!
//! Everything is f32 on the device, whatever its default precision.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::error::{Error, Result};

/// Parameters with fewer elements than this are concatenated before they are inspected: on a GPU
/// one launch per small parameter takes longer than the arithmetic.
pub(crate) const SMALL: usize = 1 << 12;

/// Creates a tensor of any shape from values.
pub(crate) fn tensor<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Creates a tensor of shape `[rows]` from one number per row.
pub(crate) fn vector(values: impl IntoIterator<Item = f64>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    let rows = values.len();
    tensor(values, [rows], device)
}

/// Creates a tensor of shape `[rows, 1, …]` from one number per row, which broadcasts over a batch
/// of rank `D`.
pub(crate) fn column<const D: usize>(values: &[f64], device: &Device) -> Tensor<D> {
    as_column(vector(values.iter().copied(), device))
}

/// Reshapes `[rows]` to `[rows, 1, …]`.
pub(crate) fn as_column<const D: usize>(values: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = values.dims()[0];
    values.reshape(shape)
}

/// Selects the rows with these indices, in this order.
pub(crate) fn select_rows<const D: usize>(tensor: &Tensor<D>, rows: &[usize]) -> Tensor<D> {
    Tensor::select(tensor.clone(), 0, row_index(rows, &tensor.device()))
}

/// Row indices as an index tensor, for `Tensor::select` along dimension 0.
pub(crate) fn row_index(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// Converts a tensor to f32.
pub(crate) fn to_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.dtype() == DType::F32 {
        tensor
    } else {
        tensor.cast(FloatDType::F32)
    }
}

/// Sums over all dimensions except 0: `[rows, …]` to `[rows]`.
pub(crate) fn sum_elements<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let rows = tensor.dims()[0];
    let elements: usize = tensor.dims()[1..].iter().product();
    tensor.reshape([rows, elements]).sum_dim(1).reshape([rows])
}

/// `‖·‖²` of each row: `[rows, …]` to `[rows]`.
pub(crate) fn squared_norms<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    sum_elements(tensor.clone() * tensor)
}

/// Brings a float tensor to the host.
///
/// # Errors
/// [`Error::DeviceRead`].
pub(crate) fn read_f32<const D: usize>(tensor: Tensor<D>, what: &'static str) -> Result<Vec<f32>> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| Error::DeviceRead {
            what,
            message: error.to_string(),
        })
}

/// At most `limit` of the rows, at even distances.
pub(crate) fn evenly(rows: Vec<usize>, limit: usize) -> Vec<usize> {
    let count = rows.len().min(limit);
    (0..count)
        .map(|index| rows[index * rows.len() / count])
        .collect()
}
