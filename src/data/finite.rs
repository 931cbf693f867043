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
    match first_non_finite(values, first, rows) {
        None => Ok(()),
        Some((row, value)) => Err(Error::NonFiniteData { side, row, value }),
    }
}

/// The first NaN or infinity and its row, of the values of `rows` rows from row `first` on.
pub(crate) fn first_non_finite(values: &[f32], first: usize, rows: usize) -> Option<(usize, f32)> {
    let elements = values.len() / rows.max(1);
    let index = values.iter().position(|value| !value.is_finite())?;
    Some((first + index / elements.max(1), values[index]))
}
