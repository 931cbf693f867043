//! Between host and device: numbers of rows as tensors, tensors as numbers. Everything is f32 on the device, whatever
//! its default precision.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::error::{Error, Result};

/// A parameter of fewer numbers is laid beside others before it is looked at: on a GPU a launch for each of many small
/// ones takes longer than the arithmetic.
pub(crate) const SMALL: usize = 1 << 12;

/// Values of any shape as a tensor.
pub(crate) fn tensor<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// One number a row as a tensor of shape `[rows]`.
pub(crate) fn vector(values: impl IntoIterator<Item = f64>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    let rows = values.len();
    tensor(values, [rows], device)
}

/// One number a row as a tensor of shape `[rows, 1, …]` that broadcasts over a batch of rank `D`.
pub(crate) fn column<const D: usize>(values: &[f64], device: &Device) -> Tensor<D> {
    as_column(vector(values.iter().copied(), device))
}

/// `[rows]` as `[rows, 1, …]`.
pub(crate) fn as_column<const D: usize>(values: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = values.dims()[0];
    values.reshape(shape)
}

/// The rows with these numbers, in this order.
pub(crate) fn select_rows<const D: usize>(tensor: &Tensor<D>, rows: &[usize]) -> Tensor<D> {
    Tensor::select(tensor.clone(), 0, row_index(rows, &tensor.device()))
}

/// Row numbers as an index tensor, for `Tensor::select` along dimension 0.
pub(crate) fn row_index(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// The tensor in f32.
pub(crate) fn to_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.dtype() == DType::F32 {
        tensor
    } else {
        tensor.cast(FloatDType::F32)
    }
}

/// Sums everything but dimension 0: `[rows, …]` to `[rows]`.
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
