//! Precision and recall of samples, from nearest neighbours.

use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use super::estimate::Estimate;
use super::features::{Features, check_comparable};
use crate::error::{Result, check_range};

/// How many samples look real, and how much of the real data is among the samples.
///
/// The intervals are those of shares of the counted set; the other set's spread is not in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PrecisionRecall {
    /// Share of generated points that a real point explains.
    pub precision: Estimate,
    /// Share of real points that a generated point explains.
    pub recall: Estimate,
}

/// Precision and recall by `neighbours` nearest neighbours.
///
/// A point explains everything that is at most as far from it as its own `k`-th nearest neighbour in
/// its set. Both numbers depend on `k` and on the sizes of the sets. Distances are computed in f64;
/// memory is that of one block of pairs, time grows with the square of the number of points.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points in a set, or unless
/// `neighbours` is from 1 to one less than the smaller set;
/// [`Error::InvalidSetting`](crate::Error::InvalidSetting) and
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for features that were made differently.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::metrics::{Features, precision_recall};
///
/// let points = |values: [[f32; 1]; 4]| {
///     Features::of("numbers", Tensor::<2>::from_data(values, &Device::flex()))
/// };
/// let real = points([[0.0], [1.0], [2.0], [3.0]])?;
/// let generated = points([[0.1], [0.2], [0.3], [9.0]])?;
/// let found = precision_recall(&real, &generated, 1)?;
/// assert_eq!(found.precision.value, 0.75); // 9 is far from everything
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Kynkäänniemi et al. 2019, *Improved Precision and Recall Metric for Assessing Generative Models*,
/// Eq. 1 and 2.
pub fn precision_recall(
    real: &Features,
    generated: &Features,
    neighbours: usize,
) -> Result<PrecisionRecall> {
    check_comparable(real, generated)?;
    let most = real.len().min(generated.len()) - 1;
    let legal = (1..=most).contains(&neighbours);
    let requirement = "from 1 to one less than the size of the smaller set";
    check_range("neighbours", neighbours as f64, legal, requirement)?;
    let share = |name: &str, points: &Features, by: &Features| {
        let explained = count_explained(points, by, &radii(by, neighbours));
        let name = format!("{name}, {neighbours} neighbours ({})", points.made_by());
        Estimate::share(name, explained, points.len())
    };
    Ok(PrecisionRecall {
        precision: share("precision", generated, real)?,
        recall: share("recall", real, generated)?,
    })
}

/// The squared distance of each point from its `k`-th nearest neighbour.
fn radii(set: &Features, neighbours: usize) -> Vec<f64> {
    // The point itself is the first.
    let mut nearest = vec![Vec::with_capacity(neighbours + 2); set.len()];
    each_block(set, set, |first, _, distances| {
        for (nearest, row) in nearest[first..].iter_mut().zip(distances.row_iter()) {
            for &distance in row.iter() {
                let place = nearest.partition_point(|&nearer| nearer <= distance);
                if place <= neighbours {
                    nearest.insert(place, distance);
                    nearest.truncate(neighbours + 1);
                }
            }
        }
    });
    nearest.iter().map(|nearest| nearest[neighbours]).collect()
}

/// The number of points within the radius of a point of the other set.
fn count_explained(points: &Features, by: &Features, radii: &[f64]) -> usize {
    let mut explained = vec![false; points.len()];
    each_block(points, by, |first, first_by, distances| {
        for (explained, row) in explained[first..].iter_mut().zip(distances.row_iter()) {
            let mut pairs = row.iter().zip(&radii[first_by..]);
            *explained |= pairs.any(|(distance, radius)| distance <= radius);
        }
    });
    explained.into_iter().filter(|explained| *explained).count()
}

/// Gives the squared distances between two sets block by block, with the first point of each side.
fn each_block(one: &Features, other: &Features, mut take: impl FnMut(usize, usize, DMatrix<f64>)) {
    /// Of the squared norms: less is a rounding error of the difference, and means the same point.
    const ROUNDING: f64 = 1e-13;
    let norms = |columns: &DMatrix<f64>| -> Vec<f64> {
        columns
            .column_iter()
            .map(|column| column.norm_squared())
            .collect()
    };
    for (first, columns) in one.parts() {
        let (rows, of_rows) = (columns.transpose(), norms(&columns));
        for (first_other, others) in other.parts() {
            let of_others = norms(&others);
            let mut distances = &rows * others;
            for (column, mut values) in distances.column_iter_mut().enumerate() {
                for (value, norm) in values.iter_mut().zip(&of_rows) {
                    let norms = norm + of_others[column];
                    let distance = norms - 2.0 * *value;
                    *value = if distance > ROUNDING * norms {
                        distance
                    } else {
                        0.0
                    };
                }
            }
            take(first, first_other, distances);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use crate::error::Error;

    /// Written out with differences; more points than a block holds.
    #[test]
    fn shares_are_those_of_the_definition() {
        let (one, other) = (
            features(normal(1, 530, 4)),
            features(normal(2, 40, 4) * 0.5 + 0.4),
        );
        let distance = |x: &[f32], y: &[f32]| -> f64 {
            x.iter()
                .zip(y)
                .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
                .sum()
        };
        let explained = |points: &Features, by: &Features| {
            let radius = |j: usize| {
                let mut all: Vec<_> = (0..by.len())
                    .map(|i| distance(by.row(i), by.row(j)))
                    .collect();
                all.sort_by(f64::total_cmp);
                all[3]
            };
            let radii: Vec<f64> = (0..by.len()).map(radius).collect();
            let inside =
                |i: &usize| (0..by.len()).any(|j| distance(points.row(*i), by.row(j)) <= radii[j]);
            (0..points.len()).filter(inside).count()
        };
        let found = precision_recall(&one, &other, 3).unwrap();
        assert_eq!(found.precision.value, explained(&other, &one) as f64 / 40.0);
        assert_eq!(found.recall.value, explained(&one, &other) as f64 / 530.0);
        assert!(found.recall.value < found.precision.value);
    }

    /// The weight-free test of torch-fidelity: narrow samples of wide data are precise and recall
    /// little.
    #[test]
    fn narrow_samples_are_precise_and_recall_little() {
        let (narrow, wide) = (
            features(normal(3, 200, 16) * 0.1),
            features(normal(4, 200, 16) * 3.0),
        );
        let found = precision_recall(&wide, &narrow, 3).unwrap();
        assert!(
            found.precision.value > 0.8 && found.recall.value < 0.3,
            "{found:?}"
        );
    }

    #[test]
    fn a_set_explains_itself_and_copies_only_themselves() {
        let points = normal(5, 30, 6) * 1e3;
        let set = features(points.clone());
        let found = precision_recall(&set, &set, 1).unwrap();
        assert_eq!((found.precision.value, found.recall.value), (1.0, 1.0));
        let copies = features(points.clone().narrow(0, 0, 1).repeat_dim(0, 5));
        let found = precision_recall(&set, &copies, 2).unwrap();
        assert_eq!(
            (found.precision.value, found.recall.value),
            (1.0, 1.0 / 30.0)
        );
        for neighbours in [0, 5] {
            let error = precision_recall(&set, &copies, neighbours).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        name: "neighbours",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
