//! Points that are in both sets, value by value.
//!
//! [`near_duplicates`](super::near_duplicates) and ReTrack's search for neighbours compute distances of single points
//! and see a copy at distance 0 among them; they have no second set to go through.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use burn::tensor::{Device, Tensor};

use super::finite::check_finite_values;
use super::points::{Points, chunks};
use super::side::Side;
use crate::error::{Error, Result};
use crate::host::read_f32;

/// Looks at every number of both sets once, a chunk at a time, on the host. The sets have points of one shape, on the
/// device of the forget set.
///
/// Points are told apart by a number each, and compared value by value where it is the same.
///
/// # Errors
/// [`Error::ForgottenPointRetained`] names the first retained point that is forgotten; [`Error::NonFiniteData`] the
/// first NaN or infinity before it; those of the retained set.
pub(crate) fn refuse_common_points<const D: usize>(
    retain: &dyn Points<D>,
    forget: &Tensor<D>,
) -> Result<()> {
    let device = forget.device();
    let mut forgotten: HashMap<u64, Vec<usize>> = HashMap::new();
    for_each_point(forget, &device, Side::Forget, |index, point| {
        let alike = forgotten.entry(fingerprint(point)).or_default();
        alike.push(index);
        Ok(())
    })?;
    for_each_point(retain, &device, Side::Retain, |index, point| {
        for &alike in forgotten.get(&fingerprint(point)).into_iter().flatten() {
            let other = read_f32(forget.clone().narrow(0, alike, 1), "the data")?;
            // As numbers: −0 and 0 are the same colour.
            if point == other {
                return Err(Error::ForgottenPointRetained {
                    forget: alike,
                    retain: index,
                });
            }
        }
        Ok(())
    })
}

/// Shows all points of a set in order, a chunk of them on the host at a time.
///
/// # Errors
/// [`Error::NonFiniteData`] names the first NaN or infinity.
fn for_each_point<const D: usize>(
    set: &dyn Points<D>,
    device: &Device,
    side: Side,
    mut look: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    for chunk in chunks(set, device) {
        let (first, rows) = chunk?;
        let count = rows.dims()[0];
        let values = read_f32(rows, "the data")?;
        check_finite_values(&values, first, count, side)?;
        for (index, point) in (first..).zip(values.chunks_exact(values.len() / count)) {
            look(index, point)?;
        }
    }
    Ok(())
}

/// A number that points with the same values have in common, and hardly any others.
fn fingerprint(point: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in point {
        // Adding 0 makes −0 the bits of 0.
        hasher.write_u32((value + 0.0).to_bits());
    }
    hasher.finish()
}
