//! The check that no point is in both sets, by comparing values.
//!
//! [`near_duplicates`](super::near_duplicates) and ReTrack's search for neighbours do not use it:
//! they compute distances from single points, where a copy shows up at distance 0, and need no
//! second pass over the sets.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use burn::tensor::{Device, Tensor};

use super::finite::check_finite_values;
use super::points::{Points, chunks};
use super::side::Side;
use crate::error::{Error, Result};
use crate::host::read_f32;

/// Refuses sets that have a point in common.
///
/// Each value of both sets is read once, in chunks, on the host. The points of both sets must have
/// the same shape and be on the device of the forget set.
///
/// Points are compared by a hash, and value by value if the hashes are equal.
///
/// # Errors
/// [`Error::ForgottenPointRetained`] names the first retained point that is forgotten;
/// [`Error::NonFiniteData`] names the first NaN or infinity before it; those of the retained set.
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
            // Compared as numbers: −0 and 0 are the same colour.
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

/// Calls `look` with each point of a set, in order; one chunk at a time is on the host.
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

/// A hash of a point's values.
fn fingerprint(point: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in point {
        // Adding 0 turns −0 into 0.
        hasher.write_u32((value + 0.0).to_bits());
    }
    hasher.finish()
}
