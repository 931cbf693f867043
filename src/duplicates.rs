//! Retained points that are almost a forgotten one.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::check_finite;
use crate::distances::squared_distances;
use crate::error::{Error, Result, Side, check_device, check_range, check_shape};
use crate::host::{read_f32, to_f32};

/// Retained points from which the typical distance is taken.
const SAMPLED: usize = 32;
/// Most near duplicates that are named of one forgotten point, nearest first.
const NAMED: usize = 16;

/// A retained point that is almost a forgotten one: a copy saved again, brightened, or with a few pixels changed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NearDuplicate {
    /// Index in the forget set.
    pub forget: usize,
    /// Index in the retain set.
    pub retain: usize,
    /// Root of the mean squared difference of their elements; 0 for the same point.
    pub distance: f64,
    /// That distance over the typical one, see [`near_duplicates`].
    pub relative: f64,
}

/// Finds the retained points within a share of the typical distance of a forgotten one, the nearest 16 of each.
///
/// The distance of two points is the root of their mean squared difference, an element. Typical for a set is how far a point lies from its
/// nearest neighbour that is not the same: the median over 32 points, spread evenly over the retained set. A pair closer than
/// `within` of that is a near duplicate; 0.25 is right for images. In a retained set without two different points only exact
/// duplicates are found.
///
/// Elements are compared one by one: a copy that was shifted, mirrored, cropped or turned is another point and is not found.
///
/// Time is that of `k + 32` comparisons with the whole retained set; memory that of one number a retained point.
///
/// # Shapes
/// - `retain`: `[n, …]`; `forget`: `[k, …]`
///
/// # Errors
/// [`Error::Empty`], [`Error::ShapeMismatch`] and [`Error::InvalidSetting`] for sets that do not fit each other;
/// [`Error::NonFiniteData`]; [`Error::OutOfRange`] unless `0 < within ≤ 1`.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// let device = Device::flex();
/// let retain = Tensor::<2>::random([50, 20], Distribution::Default, &device);
/// let copy = retain.clone().narrow(0, 7, 1) + 0.01;
/// let found = siss::near_duplicates(&retain, &copy, 0.25)?;
/// assert_eq!((found.len(), found[0].forget, found[0].retain), (1, 0, 7));
/// # Ok::<(), siss::Error>(())
/// ```
pub fn near_duplicates<const D: usize>(
    retain: &Tensor<D>,
    forget: &Tensor<D>,
    within: f64,
) -> Result<Vec<NearDuplicate>> {
    let legal = within > 0.0 && within <= 1.0;
    check_range("within", within, legal, "above 0 and at most 1")?;
    check_sets(retain, forget)?;
    let (retain, forget) = (
        to_f32(retain.clone().inner()),
        to_f32(forget.clone().inner()),
    );
    check_finite(&forget, Side::Forget)?;
    let typical = typical_distance(&retain)?;
    let mut found = Vec::new();
    for index in 0..forget.dims()[0] {
        let distances = distances(&retain, &forget.clone().narrow(0, index, 1))?;
        let near = |distance: f64| distance <= within * typical;
        let mut duplicates: Vec<NearDuplicate> = distances
            .into_iter()
            .enumerate()
            .filter(|&(_, distance)| near(distance))
            .map(|(row, distance)| NearDuplicate {
                forget: index,
                retain: row,
                distance,
                relative: if distance > 0.0 {
                    distance / typical
                } else {
                    0.0
                },
            })
            .collect();
        duplicates.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        duplicates.truncate(NAMED);
        found.extend(duplicates);
    }
    Ok(found)
}

fn check_sets<const D: usize>(retain: &Tensor<D>, forget: &Tensor<D>) -> Result<()> {
    for (what, set) in [("the retain set", retain), ("the forget set", forget)] {
        if set.dims().contains(&0) {
            return Err(Error::Empty {
                what,
                remedy: "give at least one point",
            });
        }
    }
    let remedy = "bring both sets to the model's input shape";
    let (points, others) = (retain.dims(), forget.dims());
    check_shape("a forgotten point", &points[1..], &others[1..], remedy)?;
    check_device("forgotten points", &retain.device(), &forget.device())
}

/// How far a point typically lies from its nearest neighbour that is another; 0 where there is none.
fn typical_distance<const D: usize>(retain: &Tensor<D>) -> Result<f64> {
    let count = retain.dims()[0];
    let sampled = count.min(SAMPLED);
    let mut nearest = Vec::with_capacity(sampled);
    for sample in 0..sampled {
        let point = retain.clone().narrow(0, sample * count / sampled, 1);
        let others = distances(retain, &point)?.into_iter().filter(|&d| d > 0.0);
        nearest.extend(others.min_by(f64::total_cmp));
    }
    nearest.sort_by(f64::total_cmp);
    Ok(nearest.get(nearest.len() / 2).copied().unwrap_or(0.0))
}

/// The root of the mean squared difference to each retained point.
fn distances<const D: usize>(retain: &Tensor<D>, point: &Tensor<D>) -> Result<Vec<f64>> {
    let elements: usize = point.dims()[1..].iter().product();
    let squares = read_f32(squared_distances(retain, point), "distances")?;
    if squares.iter().any(|square| !square.is_finite()) {
        check_finite(retain, Side::Retain)?;
    }
    let root = |square: f32| (f64::from(square) / elements as f64).sqrt();
    Ok(squares.into_iter().map(root).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    fn set(rows: usize) -> Tensor<2> {
        normal_noise([rows, 50], 3, 0, 0, Stream::Evaluation, &Device::flex())
    }

    /// Points of a normal distribution lie about √2 apart, a little less for the nearest.
    #[test]
    fn copies_are_found_with_their_distance_and_others_are_not() {
        let retain = set(200);
        let noise = normal_noise([1, 50], 4, 0, 0, Stream::Evaluation, &Device::flex());
        let near = retain.clone().narrow(0, 17, 1) + noise.clone() * 0.1;
        let exact = retain.clone().narrow(0, 30, 1);
        let forget = Tensor::cat(vec![noise, near, exact], 0);
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        let pairs: Vec<_> = found.iter().map(|d| (d.forget, d.retain)).collect();
        assert_eq!(pairs, [(1, 17), (2, 30)]);
        assert!((found[0].distance - 0.1).abs() < 0.03, "{:?}", found[0]);
        let typical = found[0].distance / found[0].relative;
        assert!((0.8..1.4).contains(&typical), "{typical}");
        assert_eq!((found[1].distance, found[1].relative), (0.0, 0.0));
    }

    /// The typical distance leaves copies of the sampled points out; two copies of the forgotten point are both named.
    #[test]
    fn a_retained_set_full_of_copies_does_not_hide_a_duplicate() {
        let half = set(20);
        let retain = Tensor::cat(vec![half.clone(), half.clone()], 0);
        let forget = half.narrow(0, 3, 1) + 0.02;
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        let rows: Vec<_> = found.iter().map(|d| d.retain).collect();
        assert_eq!(rows, [3, 23]);
    }

    #[test]
    fn the_nearest_sixteen_are_named_nearest_first() {
        let apart = set(40);
        let copies: Vec<_> = (1..=20)
            .rev()
            .map(|copy| apart.clone().narrow(0, 0, 1) + 1e-3 * f64::from(copy))
            .collect();
        let others = apart.clone().narrow(0, 1, 39);
        let retain = Tensor::cat([vec![others], copies].concat(), 0);
        let found = near_duplicates(&retain, &apart.narrow(0, 0, 1), 0.25).unwrap();
        let rows: Vec<_> = found.iter().map(|d| d.retain).collect();
        assert_eq!(rows, (43..59).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_set_of_one_point_has_exact_duplicates_only() {
        let (one, other) = (set(1), set(1) + 1e-3);
        assert_eq!(near_duplicates(&one, &one, 0.5).unwrap().len(), 1);
        assert!(near_duplicates(&one, &other, 0.5).unwrap().is_empty());
    }

    /// Points on a line, 4 apart but for a tenth at the beginning. What is typical is neither the nearest pair nor told from the
    /// first points, and what is near is so beside it.
    #[test]
    fn nearness_is_relative_to_the_distance_that_is_typical_of_the_whole_set() {
        let line = |index: i64| {
            if index < 32 {
                1e-3 * index as f64
            } else {
                4.0 * index as f64
            }
        };
        let points: Vec<f32> = (0..320).map(|index| line(index) as f32).collect();
        let device = Device::flex();
        let retain = Tensor::<1>::from_data(points.as_slice(), &device).reshape([320, 1]);
        let forget = Tensor::<2>::from_data([[800.8f32]], &device);
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].retain, found[0].forget), (200, 0));
        assert!((found[0].relative - 0.2).abs() < 1e-4, "{:?}", found[0]);
        assert!((found[0].distance - 0.8).abs() < 1e-4, "{:?}", found[0]);
        assert_eq!(near_duplicates(&retain, &forget, 1.0).unwrap().len(), 2);
    }
}
