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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_numpy() {
        let values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        let cases = [
            (0.0, 1.0),
            (0.1, 1.0),
            (0.25, 1.75),
            (0.5, 3.5),
            (0.9, 6.8999999999999995),
            (0.99, 8.79),
            (1.0, 9.0),
        ];
        for (q, expected) in cases {
            assert!(
                (quantile(&values, q).unwrap() - expected).abs() < 1e-12,
                "q = {q}"
            );
        }
        assert_eq!(quantile(&[f64::INFINITY; 2], 0.5).unwrap(), f64::INFINITY);
        assert!(quantile(&[1.0, f64::NAN], 0.0).unwrap().is_nan());
        assert!(matches!(quantile(&[], 0.5), Err(Error::Empty { .. })));
        assert!(matches!(
            quantile(&values, 1.1),
            Err(Error::OutOfRange { .. })
        ));
    }
}
