//! Quantiles of a list.

use crate::error::{Error, Result, check_probability};

/// The `q`-quantile, with linear interpolation between the two nearest values (numpy's default).
///
/// The values need not be sorted. NaN if one of them is NaN.
///
/// # Example
/// ```
/// assert_eq!(siss::report::quantile(&[4.0, 1.0, 3.0, 2.0], 0.5)?, 2.5);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Errors
/// [`Error::Empty`] without values, [`Error::OutOfRange`] if `q` is not between 0 and 1 inclusive.
pub fn quantile(values: &[f64], q: f64) -> Result<f64> {
    check_probability("q", q)?;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return Err(Error::Empty {
            what: "the list of values",
            remedy: "a quantile needs at least one value",
        });
    };
    if sorted.iter().any(|value| value.is_nan()) {
        return Ok(f64::NAN);
    }
    let position = q * last as f64;
    let (below, above) = (
        sorted[position.floor() as usize],
        sorted[position.ceil() as usize],
    );
    if below == above {
        return Ok(below);
    }
    Ok(below + (above - below) * position.fract())
}
