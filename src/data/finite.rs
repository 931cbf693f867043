//! Checks that data are finite.

use burn::tensor::Tensor;

use super::side::Side;
use crate::error::{Error, Result};
use crate::host::read_f32;

/// Checks that all points of a set are finite.
///
/// # Errors
/// [`Error::NonFiniteData`] names the first NaN or infinity.
pub(crate) fn check_finite<const D: usize>(points: &Tensor<D>, side: Side) -> Result<()> {
    let values = read_f32(points.clone(), "the data")?;
    check_finite_values(&values, 0, points.dims()[0], side)
}

/// Like [`check_finite`], for the values of `rows` rows, the first of which has index `first` in
/// the set.
pub(crate) fn check_finite_values(
    values: &[f32],
    first: usize,
    rows: usize,
    side: Side,
) -> Result<()> {
    let elements = values.len() / rows.max(1);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFiniteData {
            side,
            row: first + index / elements.max(1),
            value: values[index],
        }),
    }
}
